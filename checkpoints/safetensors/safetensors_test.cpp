// Writing and reading back: values, bytes, shards, folders.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>

#include "autograd/check.h"
#include "checkpoints/float16.h"
#include "checkpoints/safetensors/hostile_cases.h"
#include "checkpoints/safetensors/index.h"
#include "checkpoints/safetensors/reader.h"
#include "checkpoints/safetensors/writer.h"
#include "data/storage/file.h"
#include "tests/support/error_message.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing_support::message_of;

class SafetensorsTest : public testing::Test {
 protected:
  void SetUp() override {
    directory = fs::temp_directory_path() / ("weft-safetensors-" + random_nonce());
    fs::create_directory(directory);
  }
  void TearDown() override { fs::remove_all(directory); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
  }
  fs::path directory;
};

float value_at(const std::string& name, std::int64_t i) {
  return static_cast<float>(static_cast<int>(name.size()) + static_cast<int>(i % 100)) / 64.0f;
}

// Every element a number that all dtypes hold, in pieces of 1000.
void supply_counting(const TensorDeclaration& tensor, TensorSink& sink) {
  std::int64_t left = 1;
  for (const std::int64_t extent : tensor.shape) left *= extent;
  std::vector<float> piece;
  for (std::int64_t i = 0; left > 0; --left, ++i) {
    piece.push_back(value_at(tensor.name, i));
    if (piece.size() == 1000 || left == 1) {
      sink.write_floats(piece);
      piece.clear();
    }
  }
}

const std::vector<TensorDeclaration> kTensors = {
    {"b.half", SafetensorsDType::f16, {30, 70}},   {"a.brain", SafetensorsDType::bf16, {3}},
    {"d.single", SafetensorsDType::f32, {7, 300}}, {"c.double", SafetensorsDType::f64, {2, 2, 2}},
    {"e.scalar", SafetensorsDType::f32, {}},       {"f.empty", SafetensorsDType::f32, {0, 5}}};

void expect_counting(const TensorSource& source) {
  ASSERT_EQ(source.tensors().size(), kTensors.size());
  for (const TensorDeclaration& tensor : kTensors) {
    const SourceTensor& found = source.require(tensor.name);
    EXPECT_EQ(found.shape, tensor.shape);
    EXPECT_EQ(found.dtype, name_of(tensor.dtype));
    for (std::int64_t begin = 0; begin < found.rows(); ++begin) {
      const std::int64_t end = std::min(begin + 3, found.rows());
      std::vector<float> values(static_cast<std::size_t>((end - begin) * found.row_elements()));
      source.read_floats(tensor.name, begin, end, values);
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(values[i], value_at(tensor.name, begin * found.row_elements() + static_cast<std::int64_t>(i)));
      }
    }
  }
}

TEST(Float16, EveryValueComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = float16_to_float(half);
    if (std::isnan(value)) {
      EXPECT_GT(bits & 0x7fff, 0x7c00u);
      EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(value))));
    } else {
      ASSERT_EQ(float_to_float16(value), half) << value;
    }
  }
  EXPECT_EQ(float16_to_float(0x0001), 0x1p-24f);
  EXPECT_EQ(float16_to_float(0x8400), -0x1p-14f);
  EXPECT_EQ(float16_to_float(0x7bff), 65504.0f);
}

// Between two neighbours the middle goes to the even one, and what is beside it to the nearer.
TEST(Float16, RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto low = static_cast<std::uint16_t>(bits);
    const auto high = static_cast<std::uint16_t>(bits + 1);
    const float middle = (float16_to_float(low) + float16_to_float(high)) / 2;
    ASSERT_EQ(float_to_float16(middle), bits % 2 == 0 ? low : high);
    ASSERT_EQ(float_to_float16(std::nextafter(middle, 0.0f)), low);
    ASSERT_EQ(float_to_float16(std::nextafter(middle, 1e9f)), high);
    ASSERT_EQ(float_to_float16(-middle), (bits % 2 == 0 ? low : high) | 0x8000);
  }
  EXPECT_EQ(float_to_float16(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_float16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_float16(1e-30f), 0);
}

TEST_F(SafetensorsTest, OneFileComesBackExactly) {
  EXPECT_EQ(write_safetensors_directory(directory, kTensors, supply_counting),
            std::vector<std::string>{"model.safetensors"});
  EXPECT_EQ(files(), 1u);
  const SafetensorsDirectory model(directory);
  expect_counting(model);
  EXPECT_TRUE(model.extra_tensors().empty());
  const SafetensorsFile& file = model.files()[0];
  EXPECT_EQ(file.metadata(), kPyTorchMetadata);
  // Wide elements first, then by name, which keeps every tensor aligned.
  EXPECT_EQ(file.entry("c.double").begin, 0u);
  EXPECT_EQ(file.entry("d.single").begin, 64u);
  EXPECT_EQ(file.entry("e.scalar").begin, 64u + 8400);
  EXPECT_EQ(file.entry("a.brain").begin, 64u + 8404);
  EXPECT_EQ(file.entry("b.half").begin, 64u + 8410);
  std::uint64_t length = 0;
  InputFile(directory / "model.safetensors").read_at(0, std::as_writable_bytes(std::span(&length, 1)));
  EXPECT_EQ((8 + length) % 64, 0u);
}

TEST_F(SafetensorsTest, ShardsComeBackExactly) {
  const auto names = write_safetensors_directory(directory, kTensors, supply_counting, 8000);
  EXPECT_EQ(names, (std::vector<std::string>{"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                             "model-00003-of-00003.safetensors", "model.safetensors.index.json"}));
  EXPECT_EQ(files(), 4u);
  const SafetensorsDirectory model(directory);
  expect_counting(model);
  EXPECT_EQ(model.where("a.brain"), (directory / names[0]).string());
  EXPECT_EQ(model.where("d.single"), (directory / names[1]).string());
  EXPECT_EQ(model.where("c.double"), (directory / names[2]).string());
  EXPECT_EQ(read_small_file(directory / names[3], 1000),
            "{\"metadata\":{\"total_size\":12674},\"weight_map\":{\"a.brain\":\"model-00001-of-00003.safetensors\","
            "\"b.half\":\"model-00001-of-00003.safetensors\",\"c.double\":\"model-00003-of-00003.safetensors\","
            "\"d.single\":\"model-00002-of-00003.safetensors\",\"e.scalar\":\"model-00003-of-00003.safetensors\","
            "\"f.empty\":\"model-00003-of-00003.safetensors\"}}\n");
  EXPECT_THROW(write_safetensors_directory(directory, kTensors, supply_counting), Error);
}

TEST_F(SafetensorsTest, EqualTensorsGiveEqualBytes) {
  std::vector<TensorDeclaration> reversed(kTensors.rbegin(), kTensors.rend());
  write_safetensors_file(directory / "a", kTensors, supply_counting);
  write_safetensors_file(directory / "b", reversed, [](const TensorDeclaration& tensor, TensorSink& sink) {
    supply_counting(tensor, sink);
    sink.write_floats({});
  });
  EXPECT_EQ(read_small_file(directory / "a", 100'000), read_small_file(directory / "b", 100'000));
}

TEST_F(SafetensorsTest, StoredBytesAreReadByRows) {
  write_safetensors_file(directory / "f", {{"ids", SafetensorsDType::i64, {3, 2}}},
                         [](const TensorDeclaration&, TensorSink& sink) {
                           const std::int64_t ids[] = {0, 1, 2, 3, 4, 5};
                           sink.write_bytes(std::as_bytes(std::span(ids)));
                         });
  std::int64_t rows[4];
  SafetensorsFile(directory / "f").read_rows("ids", 1, 3, std::as_writable_bytes(std::span(rows)));
  EXPECT_EQ(std::vector<std::int64_t>(rows, rows + 4), (std::vector<std::int64_t>{2, 3, 4, 5}));
}

TEST_F(SafetensorsTest, ValuesOutsideTheRangeNameTheTensor) {
  const auto write = [&](SafetensorsDType dtype, float value) {
    return message_of(
        [&] {
          write_safetensors_directory(directory, {{"w", dtype, {1}}}, [&](const TensorDeclaration&, TensorSink& sink) {
            sink.write_floats(std::span(&value, 1));
          });
          fs::remove(directory / "model.safetensors");
        },
        ExitCode::config);
  };
  EXPECT_EQ(write(SafetensorsDType::f16, 65520.0f),
            "tensor \"w\" holds 65520, which is outside the range of F16; write it as F32");
  EXPECT_EQ(write(SafetensorsDType::bf16, -std::numeric_limits<float>::max()).substr(0, 18), "tensor \"w\" holds -");
  EXPECT_EQ(files(), 0u);
  // What was infinite or no number before stays so.
  EXPECT_EQ(write(SafetensorsDType::f16, std::numeric_limits<float>::infinity()), "no error");
  EXPECT_EQ(write(SafetensorsDType::bf16, std::numeric_limits<float>::quiet_NaN()), "no error");
}

TEST_F(SafetensorsTest, DoublesRoundOnceAndMustFit) {
  const auto read = [&](double value) {
    write_safetensors_file(
        directory / "f", {{"w", SafetensorsDType::f64, {1}}},
        [&](const TensorDeclaration&, TensorSink& sink) { sink.write_bytes(std::as_bytes(std::span(&value, 1))); });
    float result = 0;
    SafetensorsFile(directory / "f").read_floats("w", 0, 1, std::span(&result, 1));
    return result;
  };
  EXPECT_EQ(read(0.1), 0.1f);
  EXPECT_EQ(read(std::numeric_limits<double>::infinity()), std::numeric_limits<float>::infinity());
  EXPECT_EQ(message_of([&] { read(1e39); }),
            (directory / "f").string() + ": tensor \"w\": element 0 does not fit a float");
}

TEST_F(SafetensorsTest, FailingSuppliersLeaveNothing) {
  int supplied = 0;
  const auto fail_late = [&](const TensorDeclaration& tensor, TensorSink& sink) {
    if (++supplied == 5) config_error("stop");
    supply_counting(tensor, sink);
  };
  EXPECT_EQ(message_of([&] { write_safetensors_directory(directory, kTensors, fail_late, 8000); }, ExitCode::config),
            "stop");
  EXPECT_EQ(files(), 0u);
}

// A mistake of the caller's must not become a file.
TEST_F(SafetensorsTest, SuppliersWriteExactlyWhatTheyDeclared) {
  const auto write = [&](std::size_t count) {
    write_safetensors_file(
        directory / "f", {{"w", SafetensorsDType::bf16, {4}}},
        [&](const TensorDeclaration&, TensorSink& sink) { sink.write_floats(std::vector<float>(count)); });
  };
  EXPECT_NE(message_of([&] { write(3); }, ExitCode::internal).find("2 bytes too few"), std::string::npos);
  EXPECT_NE(message_of([&] { write(5); }, ExitCode::internal).find("too many bytes"), std::string::npos);
  EXPECT_EQ(files(), 0u);
}

// Offsets beyond 32 bits, in a file that takes no room.
TEST_F(SafetensorsTest, OffsetsBeyondFourGigabytes) {
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kRow = std::int64_t{1} << 29;
  const SafetensorsEntry entry = {"w", SafetensorsDType::bf16, {kRows, kRow}, 0, kRows * kRow * 2};
  const std::string header = format_safetensors_header(std::span(&entry, 1), {});
  const fs::path path = directory / "big";
  write_file_atomically(path, header);
  std::error_code error;
  fs::resize_file(path, header.size() + entry.end, error);
  if (error) GTEST_SKIP() << "the file system has no sparse files of this size: " << error.message();
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(header.size() + entry.end - 2));
    file.write("\x80\x3f", 2);
    ASSERT_TRUE(file.good());
  }
  const SafetensorsFile big(path);
  EXPECT_EQ(big.require("w").rows(), kRows);
  // The last row, read as bytes at its end only through a tensor of one element a row would take 1 GiB; so the header
  // is exchanged for one of the same length whose rows are short.
  SafetensorsEntry narrow = entry;
  narrow.shape = {kRows * kRow, 1};
  std::string narrow_header = format_safetensors_header(std::span(&narrow, 1), {});
  ASSERT_EQ(narrow_header.size(), header.size());
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.write(narrow_header.data(), static_cast<std::streamsize>(narrow_header.size()));
  }
  float last[2];
  SafetensorsFile(path).read_floats("w", kRows * kRow - 2, kRows * kRow, last);
  EXPECT_EQ(last[0], 0.0f);
  EXPECT_EQ(last[1], 1.0f);
}

// A header of many tensors costs no more than its reading.
TEST_F(SafetensorsTest, ManyTensors) {
  std::vector<SafetensorsEntry> entries(50'000);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i] = {"t" + std::to_string(i), SafetensorsDType::u8, {1, 1}, i, i + 1};
  }
  write_file_atomically(directory / "f", format_safetensors_header(entries, {}) + std::string(entries.size(), '\0'));
  const SafetensorsFile file(directory / "f");
  EXPECT_EQ(file.tensors().size(), entries.size());
  EXPECT_EQ(file.entry("t49999").begin, 49999u);
}

class SafetensorsDirectoryTest : public SafetensorsTest {
 protected:
  // A file whose tensors are scalars of these names.
  void write(const std::string& file, std::initializer_list<std::string> names) {
    std::vector<TensorDeclaration> tensors;
    for (const std::string& name : names) tensors.push_back({name, SafetensorsDType::f32, {}});
    write_safetensors_file(directory / file, tensors, supply_counting);
  }
  void write_index(const std::map<std::string, std::string>& weight_map) {
    write_file_atomically(directory / "model.safetensors.index.json", format_safetensors_index(weight_map, 0));
  }
  std::string problem(LinkTargets links = LinkTargets::inside_the_folder) {
    return message_of([&] { SafetensorsDirectory(directory, links); });
  }
  std::string index() const { return (directory / "model.safetensors.index.json").string(); }
};

TEST_F(SafetensorsDirectoryTest, PicklesAreNamedAndNeverOpened) {
  EXPECT_EQ(problem(), directory.string() + ": there is neither model.safetensors nor model.safetensors.index.json");
  // Not even that it is no file is noticed.
  fs::create_directory(directory / "pytorch_model.bin");
  EXPECT_EQ(problem(), directory.string() +
                           ": its weights are pickled (pytorch_model.bin), and weft never opens pickles, because "
                           "loading one runs the code it holds; convert them to safetensors where they come from");
  EXPECT_EQ(message_of([&] { SafetensorsDirectory(directory / "none"); }),
            (directory / "none").string() + " is no directory of a model");
}

TEST_F(SafetensorsDirectoryTest, TheIndexAndTheShardsMustAgree) {
  write("one.safetensors", {"a", "x"});
  write("two.safetensors", {"b"});
  write_index({{"a", "one.safetensors"}, {"b", "two.safetensors"}});
  const SafetensorsDirectory model(directory);
  EXPECT_EQ(model.tensors().size(), 2u);
  EXPECT_EQ(model.extra_tensors(), std::vector<std::string>{"x"});

  write_index({{"a", "one.safetensors"}, {"b", "one.safetensors"}});
  EXPECT_EQ(problem(), index() + ": tensor \"b\" should be in one.safetensors, but is not there");
  write_index({{"a", "one.safetensors"}, {"b", "two.safetensors"}, {"x", "two.safetensors"}});
  EXPECT_EQ(problem(), index() + ": tensor \"x\" should be in two.safetensors, but is in one.safetensors");
  write_index({{"a", "one.safetensors"}, {"b", "three.safetensors"}});
  EXPECT_EQ(problem(), index() + ": \"three.safetensors\" cannot be opened: No such file or directory");
  write("two.safetensors", {"a", "b"});
  write_index({{"a", "one.safetensors"}, {"b", "two.safetensors"}});
  EXPECT_EQ(problem(), index() + ": tensor \"a\" is in two files, one.safetensors and two.safetensors");
  write("two.safetensors", {"b"});
  write("model.safetensors", {"a", "b"});
  EXPECT_NE(problem().find("which does not list it; remove the one that is out of date"), std::string::npos);
}

TEST_F(SafetensorsDirectoryTest, AnIndexMayListASingleFile) {
  write("model.safetensors", {"a"});
  write_index({{"a", "model.safetensors"}});
  EXPECT_EQ(SafetensorsDirectory(directory).tensors().size(), 1u);
}

TEST_F(SafetensorsDirectoryTest, LinksStayInsideTheFolder) {
  const fs::path outside = directory;
  directory /= "snapshots/revision";
  fs::create_directories(directory);
  fs::create_directory(outside / "blobs");
  write("inside.safetensors", {"a"});
  fs::create_symlink("inside.safetensors", directory / "model.safetensors");
  EXPECT_EQ(problem(), "no error");

  fs::rename(directory / "inside.safetensors", outside / "elsewhere");
  fs::remove(directory / "model.safetensors");
  fs::create_symlink("../../elsewhere", directory / "model.safetensors");
  const std::string refusal = "outside the model's folder";
  EXPECT_TRUE(problem().ends_with(refusal)) << problem();
  EXPECT_TRUE(problem(LinkTargets::inside_the_hub_cache).ends_with(refusal));

  fs::rename(outside / "elsewhere", outside / "blobs/0123");
  fs::remove(directory / "model.safetensors");
  fs::create_symlink("../../blobs/0123", directory / "model.safetensors");
  EXPECT_TRUE(problem().ends_with(refusal + "; the hub cache's blobs must be allowed explicitly")) << problem();
  EXPECT_EQ(problem(LinkTargets::inside_the_hub_cache), "no error");

  fs::remove(directory / "model.safetensors");
  fs::create_symlink("nowhere", directory / "model.safetensors");
  EXPECT_TRUE(problem().ends_with("cannot be opened: No such file or directory")) << problem();
  fs::remove(directory / "model.safetensors");
  fs::create_directory(directory / "model.safetensors");
  EXPECT_TRUE(problem().ends_with("it is not a regular file")) << problem();
  directory = outside;
}

}  // namespace
}  // namespace weft
