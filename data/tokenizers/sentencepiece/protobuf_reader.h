// A walk over one protocol-buffer message, for files that may be hostile: every length is bounded by the message that
// holds it, nothing is copied or allocated. Write with the functions below.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

struct ProtobufField {
  enum class Type : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
  std::uint32_t number = 0;
  Type type = Type::varint;
  std::uint64_t value = 0;  // of varint and fixed
  std::string_view bytes;
  std::size_t offset = 0;  // of the field in the file
};

class ProtobufReader {
 public:
  // `offset`: where `message` begins in the file that errors call `source`.
  ProtobufReader(std::string_view message, std::size_t offset, const std::string& source)
      : message_(message), offset_(offset), source_(source) {}

  // The next field, false at the end. Error (storage) with the place for anything that is no field.
  bool next(ProtobufField& field);

  // The field's value as the type that its number has. Error (storage) that names `key` if it is of another.
  std::uint64_t varint(const ProtobufField& field, std::string_view key) const;
  bool boolean(const ProtobufField& field, std::string_view key) const { return varint(field, key) != 0; }
  float real(const ProtobufField& field, std::string_view key) const;
  std::string_view bytes(const ProtobufField& field, std::string_view key) const;
  // A message inside this one.
  ProtobufReader message(const ProtobufField& field, std::string_view key) const;

 private:
  std::uint64_t read_varint();
  std::uint64_t read_fixed(std::size_t width);
  void expect(const ProtobufField& field, ProtobufField::Type type, std::string_view key) const;

  std::string_view message_;
  std::size_t offset_;
  const std::string& source_;
  std::size_t at_ = 0;
};

void append_varint(std::uint32_t number, std::uint64_t value, std::string& message);
void append_real(std::uint32_t number, float value, std::string& message);
void append_bytes(std::uint32_t number, std::string_view bytes, std::string& message);

}  // namespace weft
