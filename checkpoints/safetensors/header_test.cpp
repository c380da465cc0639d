// The rules of the header and of the index, one violation a row, and what is legal though unusual.
#include "checkpoints/safetensors/header.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

#include "checkpoints/safetensors/hostile_cases.h"
#include "checkpoints/safetensors/index.h"
#include "checkpoints/safetensors/reader.h"
#include "data/storage/file.h"
#include "tests/support/error_message.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing_support::message_of;
using namespace safetensors_tests;

class SafetensorsHeaderTest : public testing::Test {
 protected:
  void SetUp() override { path = fs::temp_directory_path() / ("weft-header-" + random_nonce()); }
  void TearDown() override { fs::remove(path); }
  SafetensorsFile open(std::string_view bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    return SafetensorsFile(path);
  }
  fs::path path;
};

TEST_F(SafetensorsHeaderTest, HostileFilesAreRefusedWithTheirRule) {
  for (const HostileCase& hostile : hostile_files()) {
    const std::string message = message_of([&] { open(hostile.bytes); });
    EXPECT_NE(message.find(hostile.message), std::string::npos) << hostile.name << ": " << message;
    EXPECT_TRUE(message.starts_with(path.string())) << hostile.name << ": " << message;
  }
}

TEST(SafetensorsIndex, HostileIndexesAreRefusedWithTheirRule) {
  for (const HostileCase& hostile : hostile_indexes()) {
    const std::string message = message_of([&] { parse_safetensors_index(hostile.bytes, "index"); });
    EXPECT_NE(message.find(hostile.message), std::string::npos) << hostile.name << ": " << message;
    EXPECT_TRUE(message.starts_with("index")) << hostile.name << ": " << message;
  }
}

TEST_F(SafetensorsHeaderTest, UnusualButLegal) {
  EXPECT_TRUE(open(file_of("{}")).entries().empty());
  EXPECT_TRUE(open(file_of("{}  \n  ")).entries().empty());
  // A scalar, two tensors without elements at one place, keys in any order, bytes that are no multiple of anything.
  const SafetensorsFile file =
      open(file_of("{\"s\":{\"shape\":[],\"data_offsets\":[1,3],\"dtype\":\"BF16\"},"
                   "\"z\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[3,3]},"
                   "\"y\":{\"dtype\":\"F64\",\"shape\":[3,0],\"data_offsets\":[3,3]},"
                   "\"\xc3\xa9\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]},"
                   "\"__metadata__\":{\"format\":\"pt\",\"\":\"\"}}",
                   3));
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors()[0].name, "s");
  EXPECT_EQ(file.entry("s").begin, 1u);
  EXPECT_EQ(file.require("z").row_elements(), 0);
  EXPECT_EQ(file.require("y").rows(), 3);
  EXPECT_EQ(file.require("\xc3\xa9").dtype, "F4");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(message_of([&] { file.entry("t"); }), path.string() + ": there is no tensor \"t\"");
}

TEST_F(SafetensorsHeaderTest, EveryDTypeHasItsSize) {
  constexpr std::pair<std::string_view, int> kBits[] = {
      {"BOOL", 8},        {"U8", 8},          {"I8", 8},      {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
      {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
      {"I32", 32},        {"U32", 32},        {"F32", 32},    {"I64", 64},    {"U64", 64},    {"F64", 64},
      {"C64", 64},        {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"F4", 4}};
  for (const auto& [name, bits] : kBits) {
    const std::string end = std::to_string(bits);
    const SafetensorsFile file = open(one_tensor("[2,4]", "[0," + end + "]", static_cast<std::size_t>(bits), name));
    EXPECT_EQ(file.require("a").dtype, name);
    std::vector<std::byte> bytes(static_cast<std::size_t>(bits));
    EXPECT_NO_THROW(file.read("a", bytes));
    std::vector<float> floats(8);
    const bool is_real = name == "F64" || name == "F32" || name == "F16" || name == "BF16";
    const std::string message = message_of([&] { file.read_floats("a", 0, 2, floats); });
    EXPECT_EQ(message == "no error", is_real) << message;
  }
}

}  // namespace
}  // namespace weft
