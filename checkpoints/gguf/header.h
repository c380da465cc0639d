// What stands before the data of a GGUF file (versions 2 and 3, little-endian): key-value metadata and tensor infos.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "checkpoints/gguf/tensor_type.h"
#include "checkpoints/tensor_source.h"

namespace weft {

// Metadata and tensor infos together; the vocabularies of published models take up to 20 MB.
inline constexpr std::uint64_t kMaxGgufHeaderBytes = std::uint64_t{256} << 20;

// All integer types become int64, both floating types double; arrays of bool are arrays of 0 and 1.
using GgufValue = std::variant<std::int64_t, double, bool, std::string, std::vector<std::int64_t>, std::vector<double>,
                               std::vector<std::string>>;

class GgufMetadata {
 public:
  GgufMetadata() = default;
  explicit GgufMetadata(std::string source) : source_(std::move(source)) {}

  std::map<std::string, GgufValue, std::less<>> values;

  bool contains(std::string_view key) const { return values.contains(key); }
  // T is one of GgufValue's types. nullptr if there is no such key; Error (storage) if it has another type.
  template <class T>
  const T* find(std::string_view key) const {
    const auto found = values.find(key);
    if (found == values.end()) return nullptr;
    const T* value = std::get_if<T>(&found->second);
    if (value == nullptr) refuse_type(key, found->second.index(), GgufValue(T()).index());
    return value;
  }
  // Error (storage) also if there is no such key.
  template <class T>
  const T& require(std::string_view key) const {
    const T* value = find<T>(key);
    if (value == nullptr) refuse_missing(key);
    return *value;
  }
  // How messages call the file.
  const std::string& source() const { return source_; }

 private:
  [[noreturn]] void refuse_type(std::string_view key, std::size_t found, std::size_t expected) const;
  [[noreturn]] void refuse_missing(std::string_view key) const;

  std::string source_;
};

// The slowest dimension first, as everywhere in weft; files have them the other way round.
struct GgufTensor {
  SourceTensor tensor;
  const GgufTensorType* type = nullptr;
  // In the file.
  std::uint64_t begin = 0;
};

struct GgufHeader {
  GgufMetadata metadata;
  // Sorted by name.
  std::vector<GgufTensor> tensors;
};

// Fills `bytes` from `offset`; asked only for ranges inside the file.
using ReadAt = std::function<void(std::uint64_t offset, std::span<std::byte> bytes)>;

// Parses and validates the beginning of a file of `file_bytes`: lengths and counts against what is left, types, UTF-8,
// unique names, sizes that multiply without overflow, rows of whole blocks, data that lies where the sizes before say,
// aligned and inside the file. Anything else is an Error (storage) that names `source`, the key or tensor and the rule.
// Memory is bounded by a multiple of what is read, which kMaxGgufHeaderBytes bounds.
GgufHeader parse_gguf_header(const ReadAt& read_at, std::uint64_t file_bytes, std::string_view source);

}  // namespace weft
