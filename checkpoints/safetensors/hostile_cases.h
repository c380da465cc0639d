// Malformed safetensors files and indexes with what is said about them; also the seeds of tests/fuzz.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft::safetensors_tests {

struct HostileCase {
  std::string name;
  std::string bytes;
  // Part of the message.
  std::string message;
};

// A file of this header and `data_bytes` zero bytes.
inline std::string file_of(std::string_view header, std::size_t data_bytes = 0) {
  std::string file(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + std::string(header) + std::string(data_bytes, '\0');
}

// {"a": F32 of `shape` at [begin, end)} in front of `data_bytes`.
inline std::string one_tensor(std::string_view shape, std::string_view offsets, std::size_t data_bytes = 0,
                              std::string_view dtype = "F32") {
  return file_of("{\"a\":{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":" + std::string(shape) +
                     ",\"data_offsets\":" + std::string(offsets) + "}}",
                 data_bytes);
}

inline std::vector<HostileCase> hostile_files() {
  const std::string good = "\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]";
  const auto two = [](std::string_view first, std::string_view second) {
    return "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" + std::string(first) +
           "},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" + std::string(second) + "}}";
  };
  return {
      {"empty", "", "0 bytes are too few"},
      {"nine bytes", file_of("{"), "9 bytes are too few"},
      {"length past the end", std::string("\x03\0\0\0\0\0\0\0{}", 10), "said to have 3 bytes, but only 2 follow"},
      {"length above the limit", std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), "at most 100000000 are expected"},
      {"length that overflows", std::string(8, '\xff') + "{}", "said to have 18446744073709551615 bytes"},
      {"space before the object", file_of(" {}"), "does not begin with \"{\""},
      {"array", file_of("[1]"), "does not begin with \"{\""},
      {"cut off", file_of("{\"a\":{\"dtype\""), "invalid JSON"},
      {"invalid UTF-8", file_of("{\"\xff\":{" + good + "}}", 4), "invalid JSON"},
      {"overlong UTF-8", file_of("{\"\xc0\xaf\":{" + good + "}}", 4), "invalid JSON"},
      {"byte after the object", file_of("{}x"), "invalid JSON"},
      {"NUL as padding", file_of(std::string("{}\0\0", 4)), "a NUL byte"},
      {"two tensors of one name", file_of("{\"a\":{" + good + "},\"b\":{" + good + "},\"a\":{" + good + "}}", 4),
       "duplicate key \"a\""},
      {"names equal once unescaped", file_of("{\"a\":{" + good + "},\"\\u0061\":{" + good + "}}", 4),
       "duplicate key \"a\""},
      {"dtype twice", file_of("{\"a\":{\"dtype\":\"F16\"," + good + "}}", 4), "tensor \"a\": duplicate key \"dtype\""},
      {"metadata twice", file_of("{\"__metadata__\":{},\"__metadata__\":{}}"), "duplicate key \"__metadata__\""},
      {"metadata key twice", file_of("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}"), "duplicate key \"k\""},
      {"metadata with a number", file_of("{\"__metadata__\":{\"k\":1}}"), "key \"k\" has an integer as its value"},
      {"metadata with an object", file_of("{\"__metadata__\":{\"k\":{}}}"), "key \"k\" has an object as its value"},
      {"metadata is a string", file_of("{\"__metadata__\":\"k\"}"), "__metadata__ is a string, an object of strings"},
      {"deeply nested", file_of("{\"a\":" + std::string(1'000, '[')), "its entry is an array, an object is expected"},
      {"nested shape", one_tensor("[[1]]", "[0,4]", 4), "shape holds an array, integers are expected"},
      {"entry is a number", file_of("{\"a\":7}"), "its entry is an integer, an object is expected"},
      {"dtype is missing", file_of("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4), "key \"dtype\" is missing"},
      {"shape is missing", file_of("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4), "key \"shape\" is missing"},
      {"offsets are missing", file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4),
       "key \"data_offsets\" is missing"},
      {"unknown key", file_of("{\"a\":{\"strides\":[1]," + good + "}}", 4), "tensor \"a\": unknown key \"strides\""},
      {"unknown dtype", one_tensor("[1]", "[0,4]", 4, "FLOAT"), "unknown dtype \"FLOAT\""},
      {"dtype is a number", file_of("{\"a\":{\"dtype\":4}}"), "dtype is an integer, a string is expected"},
      {"shape is a string", one_tensor("\"1\"", "[0,4]", 4), "shape is a string, an array is expected"},
      {"extent with a fraction", one_tensor("[1.0]", "[0,4]", 4), "shape holds a number with a fraction"},
      {"extent with an exponent", one_tensor("[1e0]", "[0,4]", 4), "shape holds a number with a fraction"},
      {"offset with a fraction", one_tensor("[1]", "[0,4.0]", 4), "data_offsets holds a number with a fraction"},
      {"extent is true", one_tensor("[true]", "[0,4]", 4), "shape holds true or false, integers are expected"},
      {"negative extent", one_tensor("[-1]", "[0,4]", 4), "shape holds the negative number -1"},
      {"negative offset", one_tensor("[1]", "[-4,0]", 4), "data_offsets holds the negative number -4"},
      {"extent of 2^63", one_tensor("[9223372036854775808]", "[0,4]", 4), "outside the range of int64"},
      {"nine dimensions", one_tensor("[1,1,1,1,1,1,1,1,1]", "[0,4]", 4), "more than 8 dimensions"},
      {"product overflows", one_tensor("[4294967296,4294967296,4294967296]", "[0,4]", 4), "overflows"},
      {"bits overflow", one_tensor("[288230376151711744]", "[0,4]", 4), "overflows"},
      {"half a byte", one_tensor("[3]", "[0,1]", 1, "F4"), "is no whole number of bytes"},
      {"one offset", one_tensor("[1]", "[0]", 4), "data_offsets has 1 numbers, 2 are expected"},
      {"three offsets", one_tensor("[1]", "[0,4,8]", 4), "data_offsets has more than 2 numbers"},
      {"end before begin", one_tensor("[0]", "[4,0]", 4), "data_offsets end at 0, before their begin 4"},
      {"wrong span", one_tensor("[2]", "[0,4]", 4), "data_offsets span 4 bytes, F32 of shape [2] needs 8"},
      {"hole at the start", file_of(two("[4,12]", "[12,20]"), 20),
       "tensor \"a\": begins at byte 4 of the data, leaving"},
      {"hole in the middle", file_of(two("[0,8]", "[12,20]"), 20),
       "\"b\": begins at byte 12 of the data, leaving a hole"},
      {"overlap", file_of(two("[0,8]", "[4,12]"), 12), "tensor \"b\": begins at byte 4 of the data, overlapping"},
      {"the same bytes twice", file_of(two("[0,8]", "[0,8]"), 8), "begins at byte 0 of the data, overlapping"},
      {"bytes left over", one_tensor("[1]", "[0,4]", 5), "end at byte 4 of the data, of which there are 5"},
      {"data cut off", one_tensor("[1]", "[0,4]", 3), "end at byte 4 of the data, of which there are 3"},
      {"data without tensors", file_of("{}", 1), "end at byte 0 of the data, of which there are 1"},
      {"empty name", file_of("{\"\":{" + good + "}}", 4), "the name is empty"},
      {"long name", file_of("{\"" + std::string(1025, 'n') + "\":{" + good + "}}", 4), "the name has 1025 bytes"},
      {"NUL in a name", file_of("{\"a\\u0000b\":{" + good + "}}", 4), "the name has a control character"},
      {"C1 control in a name", file_of("{\"a\\u009bb\":{" + good + "}}", 4), "the name has a control character"},
  };
}

inline std::vector<HostileCase> hostile_indexes() {
  const auto mapped_to = [](std::string_view file) { return "{\"weight_map\":{\"a\":\"" + std::string(file) + "\"}}"; };
  return {
      {"empty", "", "invalid JSON"},
      {"array", "[]", "expected an object, found array"},
      {"no weight map", "{\"metadata\":{}}", "key \"weight_map\" is missing"},
      {"metadata is an array", "{\"metadata\":[],\"weight_map\":{\"a\":\"m.safetensors\"}}", "key \"metadata\""},
      {"weight map is an array", "{\"weight_map\":[\"a\"]}", "expected an object, found array"},
      {"no tensors", "{\"weight_map\":{}}", "weight_map is empty"},
      {"file is a number", "{\"weight_map\":{\"a\":1}}", "expected a file name, found number"},
      {"parent folder", mapped_to("../m.safetensors"), "no bare name"},
      {"absolute path", mapped_to("/etc/m.safetensors"), "no bare name"},
      {"folder", mapped_to("d/m.safetensors"), "no bare name"},
      {"backslash", mapped_to("d\\\\m.safetensors"), "no bare name"},
      {"drive", mapped_to("c:m.safetensors"), "no bare name"},
      {"dots alone", mapped_to(".."), "no bare name"},
      {"hidden", mapped_to(".m.safetensors"), "no bare name"},
      {"NUL in the name", mapped_to("m\\u0000.safetensors"), "no bare name"},
      {"no name", mapped_to(""), "no bare name"},
      {"pickle", mapped_to("pytorch_model.bin"), "is no .safetensors file"},
      {"tensor twice", "{\"weight_map\":{\"a\":\"m.safetensors\",\"a\":\"n.safetensors\"}}", "duplicate key \"a\""},
      {"tensor without a name", "{\"weight_map\":{\"\":\"m.safetensors\"}}", "the name is empty"},
      {"deeply nested", "{\"metadata\":" + std::string(100'000, '['), "nesting deeper than 64"},
  };
}

}  // namespace weft::safetensors_tests
