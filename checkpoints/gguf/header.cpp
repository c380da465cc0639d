#include "checkpoints/gguf/header.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <limits>
#include <utility>

#include "autograd/check.h"
#include "checkpoints/safetensors/header.h"
#include "data/storage/text.h"
#include "data/storage/utf8.h"

namespace weft {

namespace {

static_assert(std::endian::native == std::endian::little, "the numbers of files are used as they are");

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 1 << 20;
constexpr std::uint64_t kMaxKeyBytes = 65535;
constexpr std::uint32_t kMaxDims = 4;

enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// Bytes of a value of a fixed size; of a string, those of its length.
std::uint64_t stored_bytes(ValueType type) {
  constexpr std::uint64_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return kBytes[static_cast<std::size_t>(type)];
}

// Reads forwards through a window of the file, and never beyond what the file or the limit allows.
class Cursor {
 public:
  Cursor(const ReadAt& read_at, std::uint64_t file_bytes, std::string_view source)
      : read_at_(read_at), file_bytes_(file_bytes), end_(std::min(file_bytes, kMaxGgufHeaderBytes)), source_(source) {}

  std::uint64_t offset() const { return window_begin_ + at_; }
  std::uint64_t left() const { return end_ - offset(); }
  // What errors say is being read.
  void set_context(std::string context) { context_ = std::move(context); }

  template <class T>
  T number() {
    T value;
    take(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  std::string text(std::uint64_t max_bytes = kMaxGgufHeaderBytes) {
    const auto bytes = number<std::uint64_t>();
    need(bytes);
    if (bytes > max_bytes) refuse("a text of {} bytes, at most {} are expected", bytes, max_bytes);
    std::string result(static_cast<std::size_t>(bytes), '\0');
    take(std::as_writable_bytes(std::span(result)));
    if (valid_utf8_prefix(result) != result.size()) refuse("the text \"{}\" is not valid UTF-8", printable(result, 40));
    return result;
  }

  // Before anything of this size is allocated or looped over.
  void need(std::uint64_t bytes) const {
    if (bytes <= left()) return;
    if (end_ < file_bytes_) refuse("metadata and tensor infos take more than {} bytes", kMaxGgufHeaderBytes);
    refuse("{} bytes are needed at offset {}, but only {} are left", bytes, offset(), left());
  }

  template <class... Args>
  [[noreturn]] void refuse(FormatString<Args...> format, Args&&... args) const {
    storage_error("{}: {}: {}", source_, context_, format_text<Args...>(format, std::forward<Args>(args)...));
  }

 private:
  static constexpr std::size_t kWindowBytes = std::size_t{1} << 16;

  void take(std::span<std::byte> out) {
    need(out.size());
    while (!out.empty()) {
      if (at_ == window_.size()) fill();
      const std::size_t n = std::min(out.size(), window_.size() - at_);
      std::memcpy(out.data(), window_.data() + at_, n);
      at_ += n;
      out = out.subspan(n);
    }
  }

  void fill() {
    window_begin_ += window_.size();
    at_ = 0;
    window_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kWindowBytes, end_ - window_begin_)));
    read_at_(window_begin_, window_);
  }

  const ReadAt& read_at_;
  std::uint64_t file_bytes_;
  std::uint64_t end_;
  std::string_view source_;
  std::string context_ = "header";
  std::uint64_t window_begin_ = 0;
  std::vector<std::byte> window_;
  std::size_t at_ = 0;
};

ValueType read_type(Cursor& cursor) {
  const auto id = cursor.number<std::uint32_t>();
  if (id > static_cast<std::uint32_t>(ValueType::f64)) cursor.refuse("unknown value type {}", id);
  return static_cast<ValueType>(id);
}

bool is_real(ValueType type) {
  return type == ValueType::f32 || type == ValueType::f64;
}

bool read_bool(Cursor& cursor) {
  const auto value = cursor.number<std::uint8_t>();
  if (value > 1) cursor.refuse("{} is neither true nor false", value);
  return value == 1;
}

std::int64_t read_integer(Cursor& cursor, ValueType type) {
  switch (type) {
    case ValueType::u8:
      return cursor.number<std::uint8_t>();
    case ValueType::i8:
      return cursor.number<std::int8_t>();
    case ValueType::u16:
      return cursor.number<std::uint16_t>();
    case ValueType::i16:
      return cursor.number<std::int16_t>();
    case ValueType::u32:
      return cursor.number<std::uint32_t>();
    case ValueType::i32:
      return cursor.number<std::int32_t>();
    case ValueType::boolean:
      return read_bool(cursor) ? 1 : 0;
    case ValueType::i64:
      return cursor.number<std::int64_t>();
    default: {
      const auto value = cursor.number<std::uint64_t>();
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        cursor.refuse("{} is outside the range of int64", value);
      }
      return static_cast<std::int64_t>(value);
    }
  }
}

double read_real(Cursor& cursor, ValueType type) {
  return type == ValueType::f32 ? static_cast<double>(cursor.number<float>()) : cursor.number<double>();
}

// The double of the shortest decimal that denotes the float: 1e-5 stored as a float was meant as 1e-5.
double as_meant(float value) {
  const std::string decimal = fmt::format("{}", value);
  double result = static_cast<double>(value);
  std::from_chars(decimal.data(), decimal.data() + decimal.size(), result);
  return result;
}

GgufValue read_array(Cursor& cursor) {
  const ValueType type = read_type(cursor);
  const auto count = cursor.number<std::uint64_t>();
  if (type == ValueType::array) cursor.refuse("arrays of arrays are not supported");
  if (count > cursor.left() / stored_bytes(type)) {
    cursor.refuse("an array of {} values, but only {} bytes are left", count, cursor.left());
  }
  const auto collect = [&]<class T>(std::vector<T> values, auto&& read) -> GgufValue {
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(read());
    return values;
  };
  if (type == ValueType::string) return collect(std::vector<std::string>(), [&] { return cursor.text(); });
  if (is_real(type)) return collect(std::vector<double>(), [&] { return read_real(cursor, type); });
  return collect(std::vector<std::int64_t>(), [&] { return read_integer(cursor, type); });
}

GgufValue read_value(Cursor& cursor) {
  const ValueType type = read_type(cursor);
  if (type == ValueType::array) return read_array(cursor);
  if (type == ValueType::string) return cursor.text();
  if (type == ValueType::boolean) return read_bool(cursor);
  if (type == ValueType::f32) return as_meant(cursor.number<float>());
  if (type == ValueType::f64) return cursor.number<double>();
  return read_integer(cursor, type);
}

// An info without its place in the data, and where it says that is.
std::pair<GgufTensor, std::uint64_t> read_tensor_info(Cursor& cursor, std::uint64_t index) {
  cursor.set_context(fmt::format("tensor {}", index));
  GgufTensor result;
  result.tensor.name = cursor.text(kMaxTensorNameBytes);
  if (const std::string problem = tensor_name_problem(result.tensor.name); !problem.empty())
    cursor.refuse("{}", problem);
  cursor.set_context(fmt::format("tensor \"{}\"", result.tensor.name));
  const auto dims = cursor.number<std::uint32_t>();
  if (dims == 0 || dims > kMaxDims) cursor.refuse("{} dimensions, 1 to {} are expected", dims, kMaxDims);
  for (std::uint32_t i = 0; i < dims; ++i) {
    result.tensor.shape.insert(result.tensor.shape.begin(), read_integer(cursor, ValueType::u64));
  }
  const auto type_id = cursor.number<std::uint32_t>();
  result.type = gguf_tensor_type(type_id);
  if (result.type == nullptr) cursor.refuse("unknown tensor type {}", type_id);
  result.tensor.dtype = result.type->name;
  return {std::move(result), cursor.number<std::uint64_t>()};
}

std::uint64_t bytes_of(const GgufTensor& tensor, Cursor& cursor) {
  std::int64_t bytes = tensor.type->block_bytes;
  const std::int64_t row = tensor.tensor.shape.back();
  if (row % tensor.type->block_elements != 0) {
    cursor.refuse("rows of {} elements are no whole number of {}'s blocks of {}", row, tensor.type->name,
                  tensor.type->block_elements);
  }
  std::int64_t elements = 1;
  bool overflow = __builtin_mul_overflow(bytes, row / tensor.type->block_elements, &bytes);
  for (const std::int64_t extent : tensor.tensor.shape) {
    overflow = overflow || __builtin_mul_overflow(elements, extent, &elements);
  }
  for (std::size_t i = 0; i + 1 < tensor.tensor.shape.size(); ++i) {
    overflow = overflow || __builtin_mul_overflow(bytes, tensor.tensor.shape[i], &bytes);
  }
  if (overflow) cursor.refuse("the size of shape [{}] overflows", fmt::join(tensor.tensor.shape, ", "));
  return static_cast<std::uint64_t>(bytes);
}

std::uint64_t read_alignment(const GgufMetadata& metadata, Cursor& cursor) {
  const auto* given = metadata.find<std::int64_t>("general.alignment");
  if (given == nullptr) return kDefaultAlignment;
  const auto alignment = static_cast<std::uint64_t>(*given);
  if (*given <= 0 || alignment > kMaxAlignment || !std::has_single_bit(alignment)) {
    cursor.set_context("key \"general.alignment\"");
    cursor.refuse("{} is no power of two up to {}", *given, kMaxAlignment);
  }
  return alignment;
}

}  // namespace

void GgufMetadata::refuse_type(std::string_view key, std::size_t found, std::size_t expected) const {
  constexpr std::string_view kNames[] = {
      "an integer",          "a number",         "true or false", "a text", "an array of integers",
      "an array of numbers", "an array of texts"};
  storage_error("{}: key \"{}\": found {}, expected {}", source_, key, kNames[found], kNames[expected]);
}

void GgufMetadata::refuse_missing(std::string_view key) const {
  storage_error("{}: key \"{}\" is missing", source_, key);
}

GgufHeader parse_gguf_header(const ReadAt& read_at, std::uint64_t file_bytes, std::string_view source) {
  Cursor cursor(read_at, file_bytes, source);
  if (file_bytes < 4 || cursor.number<std::uint32_t>() != kMagic) cursor.refuse("it does not begin with \"GGUF\"");
  const auto version = cursor.number<std::uint32_t>();
  if (version != 0 && (version & 0xffffu) == 0) cursor.refuse("big-endian files are not supported");
  if (version != 2 && version != 3) cursor.refuse("version {} is not supported, 2 and 3 are", version);
  const auto tensor_count = cursor.number<std::uint64_t>();
  const auto value_count = cursor.number<std::uint64_t>();
  if (tensor_count > kMaxSafetensorsTensors) {
    cursor.refuse("{} tensors, at most {} are expected", tensor_count, kMaxSafetensorsTensors);
  }

  GgufHeader header{GgufMetadata(std::string(source)), {}};
  for (std::uint64_t i = 0; i < value_count; ++i) {
    cursor.set_context(fmt::format("key {}", i));
    std::string key = cursor.text(kMaxKeyBytes);
    cursor.set_context(fmt::format("key \"{}\"", printable(key)));
    if (key.empty()) cursor.refuse("the name is empty");
    GgufValue value = read_value(cursor);
    if (!header.metadata.values.emplace(std::move(key), std::move(value)).second) cursor.refuse("it is there twice");
  }

  const std::uint64_t alignment = read_alignment(header.metadata, cursor);
  const auto aligned = [&](std::uint64_t offset) { return (offset + alignment - 1) / alignment * alignment; };
  std::vector<std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    auto [tensor, offset] = read_tensor_info(cursor, i);
    header.tensors.push_back(std::move(tensor));
    offsets.push_back(offset);
  }
  const std::uint64_t data_begin = aligned(cursor.offset());
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    GgufTensor& tensor = header.tensors[i];
    cursor.set_context(fmt::format("tensor \"{}\"", tensor.tensor.name));
    const std::uint64_t bytes = bytes_of(tensor, cursor);
    if (offsets[i] != aligned(end)) {
      cursor.refuse("begins at byte {} of the data, expected {}", offsets[i], aligned(end));
    }
    const std::uint64_t room = file_bytes - std::min(file_bytes, data_begin);
    if (offsets[i] > room || bytes > room - offsets[i]) {
      cursor.refuse("its {} bytes at byte {} of the data end after the file", bytes, offsets[i]);
    }
    tensor.begin = data_begin + offsets[i];
    end = offsets[i] + bytes;
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const GgufTensor& a, const GgufTensor& b) { return a.tensor.name < b.tensor.name; });
  for (std::size_t i = 1; i < header.tensors.size(); ++i) {
    if (header.tensors[i - 1].tensor.name == header.tensors[i].tensor.name) {
      cursor.set_context(fmt::format("tensor \"{}\"", header.tensors[i].tensor.name));
      cursor.refuse("it is there twice");
    }
  }
  return header;
}

}  // namespace weft
