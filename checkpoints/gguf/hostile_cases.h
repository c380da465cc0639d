// Malformed GGUF files with what is said about them; also the seeds of tests/fuzz.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::gguf_tests {

// Writes a GGUF file piece by piece, also such pieces as no writer would.
class GgufBytes {
 public:
  explicit GgufBytes(std::uint64_t tensors = 0, std::uint64_t values = 0, std::uint32_t version = 3) {
    raw("GGUF");
    number(version);
    number(tensors);
    number(values);
  }
  GgufBytes& raw(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }
  template <class T>
  GgufBytes& number(T value) {
    char buffer[sizeof(T)];
    std::memcpy(buffer, &value, sizeof(T));
    return raw(std::string_view(buffer, sizeof(T)));
  }
  GgufBytes& text(std::string_view value) { return number<std::uint64_t>(value.size()).raw(value); }
  GgufBytes& key(std::string_view name, std::uint32_t type) { return text(name).number(type); }
  GgufBytes& integer(std::string_view name, std::uint32_t value) { return key(name, 4).number(value); }
  GgufBytes& string(std::string_view name, std::string_view value) { return key(name, 8).text(value); }
  GgufBytes& array(std::string_view name, std::uint32_t type, std::uint64_t count) {
    return key(name, 9).number(type).number(count);
  }
  GgufBytes& strings(std::string_view name, const std::vector<std::string>& values) {
    array(name, 8, values.size());
    for (const std::string& value : values) text(value);
    return *this;
  }
  // `dims`: the fastest first.
  GgufBytes& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                    std::uint64_t offset) {
    text(name).number(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t extent : dims) number(extent);
    return number(type).number(offset);
  }
  // Zeros up to the alignment, then `count` more.
  GgufBytes& data(std::size_t count, std::size_t alignment = 32) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment + count, '\0');
    return *this;
  }
  operator std::string() const { return bytes_; }

 private:
  std::string bytes_;
};

struct HostileCase {
  std::string name;
  std::string bytes;
  // Part of the message.
  std::string message;
};

inline std::vector<HostileCase> hostile_files() {
  constexpr std::uint64_t kHuge = ~std::uint64_t{0};
  return {
      {"empty", "", "does not begin with \"GGUF\""},
      {"another format", "GGML\x03", "does not begin with \"GGUF\""},
      {"only the magic", "GGUF", "4 bytes are needed at offset 4, but only 0 are left"},
      {"version 1", GgufBytes(0, 0, 1), "version 1 is not supported, 2 and 3 are"},
      {"version 4", GgufBytes(0, 0, 4), "version 4 is not supported"},
      {"big-endian", GgufBytes(0, 0, 0x03000000), "big-endian files are not supported"},
      {"too many tensors", GgufBytes(kHuge), "18446744073709551615 tensors, at most 1000000 are expected"},
      {"tensors that are not there", GgufBytes(1), "tensor 0: 8 bytes are needed at offset 24, but only 0 are left"},
      {"values that are not there", GgufBytes(0, kHuge), "key 0: 8 bytes are needed"},
      {"key of huge length", GgufBytes(0, 1).number(kHuge), "key 0: 18446744073709551615 bytes are needed"},
      {"long key", GgufBytes(0, 1).text(std::string(65536, 'k')), "a text of 65536 bytes, at most 65535"},
      {"empty key", GgufBytes(0, 1).integer("", 1), "key \"\": the name is empty"},
      {"key is no UTF-8", GgufBytes(0, 1).integer("\xff", 1), "is not valid UTF-8"},
      {"key twice", GgufBytes(0, 2).integer("a", 1).integer("a", 1), "key \"a\": it is there twice"},
      {"unknown value type", GgufBytes(0, 1).key("a", 13), "key \"a\": unknown value type 13"},
      {"text of huge length", GgufBytes(0, 1).key("a", 8).number(kHuge), "key \"a\": 18446744073709551615 bytes"},
      {"text is no UTF-8", GgufBytes(0, 1).string("a", "\xc0\xaf"), "is not valid UTF-8"},
      {"neither true nor false", GgufBytes(0, 1).key("a", 7).raw("\x02"), "2 is neither true nor false"},
      {"beyond int64", GgufBytes(0, 1).key("a", 10).number(kHuge), "is outside the range of int64"},
      {"array of huge length", GgufBytes(0, 1).array("a", 0, kHuge), "an array of 18446744073709551615 values"},
      {"array of texts of huge length", GgufBytes(0, 1).array("a", 8, 1u << 30), "an array of 1073741824 values"},
      {"array of unknown type", GgufBytes(0, 1).array("a", 99, 1), "unknown value type 99"},
      {"array of arrays", GgufBytes(0, 1).array("a", 9, 1).number(4u).number(std::uint64_t{0}), "arrays of arrays"},
      {"alignment 0", GgufBytes(0, 1).integer("general.alignment", 0), "0 is no power of two"},
      {"alignment 24", GgufBytes(0, 1).integer("general.alignment", 24), "24 is no power of two"},
      {"huge alignment", GgufBytes(0, 1).integer("general.alignment", 1u << 31), "is no power of two up to"},
      {"alignment is a text", GgufBytes(0, 1).string("general.alignment", "32"), "found a text, expected an integer"},
      {"tensor without a name", GgufBytes(1).tensor("", {1}, 0, 0).data(4), "the name is empty"},
      {"control character in a name", GgufBytes(1).tensor("a\n", {1}, 0, 0).data(4), "has a control character"},
      {"tensor twice", GgufBytes(2).tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32).data(64), "it is there twice"},
      {"no dimensions", GgufBytes(1).tensor("a", {}, 0, 0).data(4), "0 dimensions, 1 to 4 are expected"},
      {"five dimensions", GgufBytes(1).tensor("a", {1, 1, 1, 1, 1}, 0, 0).data(4), "5 dimensions, 1 to 4"},
      {"four billion dimensions", GgufBytes(1).text("a").number(~0u), "4294967295 dimensions"},
      {"extent beyond int64", GgufBytes(1).tensor("a", {kHuge}, 0, 0).data(4), "is outside the range of int64"},
      {"elements overflow", GgufBytes(1).tensor("a", {1u << 31, 1u << 31, 1u << 31}, 0, 0).data(4), "overflows"},
      {"bytes overflow", GgufBytes(1).tensor("a", {std::uint64_t{1} << 62}, 0, 0).data(4), "overflows"},
      {"unknown tensor type", GgufBytes(1).tensor("a", {1}, 4, 0).data(4), "unknown tensor type 4"},
      {"part of a block", GgufBytes(1).tensor("a", {48}, 2, 0).data(32), "no whole number of Q4_0's blocks of 32"},
      {"data outside the file", GgufBytes(1).tensor("a", {8}, 0, 0).data(31), "end after the file"},
      {"no data at all", GgufBytes(1).tensor("a", {8}, 0, 0), "end after the file"},
      {"offset beyond the file", GgufBytes(1).tensor("a", {8}, 0, kHuge - 31).data(32), "expected 0"},
      {"overlap", GgufBytes(2).tensor("a", {8}, 0, 0).tensor("b", {8}, 0, 0).data(64), "expected 32"},
      {"hole", GgufBytes(2).tensor("a", {8}, 0, 0).tensor("b", {8}, 0, 64).data(96), "expected 32"},
      {"not aligned", GgufBytes(2).tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 4).data(64), "expected 32"},
  };
}

}  // namespace weft::gguf_tests
