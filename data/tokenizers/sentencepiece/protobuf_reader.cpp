#include "data/tokenizers/sentencepiece/protobuf_reader.h"

#include <bit>

#include "autograd/check.h"

namespace weft {

namespace {

void append_raw_varint(std::uint64_t value, std::string& message) {
  for (; value >= 0x80; value >>= 7) message += static_cast<char>(value | 0x80);
  message += static_cast<char>(value);
}

void append_tag(std::uint32_t number, ProtobufField::Type type, std::string& message) {
  append_raw_varint((std::uint64_t{number} << 3) | static_cast<std::uint64_t>(type), message);
}

}  // namespace

std::uint64_t ProtobufReader::read_varint() {
  const std::size_t begin = at_;
  std::uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (at_ == message_.size()) storage_error("{}: byte {}: the file ends within a number", source_, offset_ + begin);
    const auto byte = static_cast<unsigned char>(message_[at_++]);
    if (shift == 63 && byte > 1) break;
    value |= std::uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
  storage_error("{}: byte {}: a number of more than 64 bits", source_, offset_ + begin);
}

std::uint64_t ProtobufReader::read_fixed(std::size_t width) {
  if (message_.size() - at_ < width) {
    storage_error("{}: byte {}: {} bytes are expected, the message has {} left", source_, offset_ + at_, width,
                  message_.size() - at_);
  }
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < width; ++i) {
    value |= std::uint64_t{static_cast<unsigned char>(message_[at_ + i])} << (8 * i);
  }
  at_ += width;
  return value;
}

bool ProtobufReader::next(ProtobufField& field) {
  if (at_ == message_.size()) return false;
  field = {};
  field.offset = offset_ + at_;
  const std::uint64_t tag = read_varint();
  if (tag >> 3 == 0 || tag >> 3 > 536'870'911)
    storage_error("{}: byte {}: no field begins here", source_, field.offset);
  field.number = static_cast<std::uint32_t>(tag >> 3);
  using Type = ProtobufField::Type;
  field.type = static_cast<Type>(tag & 7);
  switch (field.type) {
    case Type::varint:
      field.value = read_varint();
      return true;
    case Type::fixed64:
      field.value = read_fixed(8);
      return true;
    case Type::fixed32:
      field.value = read_fixed(4);
      return true;
    case Type::bytes: {
      const std::uint64_t length = read_varint();
      if (length > message_.size() - at_) {
        storage_error("{}: byte {}: field {} claims {} bytes, the message has {} left", source_, field.offset,
                      field.number, length, message_.size() - at_);
      }
      field.bytes = message_.substr(at_, static_cast<std::size_t>(length));
      at_ += static_cast<std::size_t>(length);
      return true;
    }
  }
  storage_error("{}: byte {}: field {} has the unknown type {}", source_, field.offset, field.number, tag & 7);
}

void ProtobufReader::expect(const ProtobufField& field, ProtobufField::Type type, std::string_view key) const {
  if (field.type == type) return;
  storage_error("{}: byte {}: {} (field {}) has type {}, expected {}", source_, field.offset, key, field.number,
                static_cast<int>(field.type), static_cast<int>(type));
}

std::uint64_t ProtobufReader::varint(const ProtobufField& field, std::string_view key) const {
  expect(field, ProtobufField::Type::varint, key);
  return field.value;
}

float ProtobufReader::real(const ProtobufField& field, std::string_view key) const {
  expect(field, ProtobufField::Type::fixed32, key);
  return std::bit_cast<float>(static_cast<std::uint32_t>(field.value));
}

std::string_view ProtobufReader::bytes(const ProtobufField& field, std::string_view key) const {
  expect(field, ProtobufField::Type::bytes, key);
  return field.bytes;
}

ProtobufReader ProtobufReader::message(const ProtobufField& field, std::string_view key) const {
  expect(field, ProtobufField::Type::bytes, key);
  // Its bytes are a view of the whole message.
  return {field.bytes, offset_ + static_cast<std::size_t>(field.bytes.data() - message_.data()), source_};
}

void append_varint(std::uint32_t number, std::uint64_t value, std::string& message) {
  append_tag(number, ProtobufField::Type::varint, message);
  append_raw_varint(value, message);
}

void append_real(std::uint32_t number, float value, std::string& message) {
  append_tag(number, ProtobufField::Type::fixed32, message);
  const auto bits = std::bit_cast<std::uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) message += static_cast<char>(bits >> shift);
}

void append_bytes(std::uint32_t number, std::string_view bytes, std::string& message) {
  append_tag(number, ProtobufField::Type::bytes, message);
  append_raw_varint(bytes.size(), message);
  message += bytes;
}

}  // namespace weft
