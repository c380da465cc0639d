// Checksums, files and strict JSON.
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include "data/storage/crc32c.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "data/storage/sha256.h"
#include "data/storage/text.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

class StorageTest : public testing::Test {
 protected:
  void SetUp() override {
    directory = fs::temp_directory_path() / ("weft-storage-" + random_nonce());
    fs::create_directory(directory);
  }
  void TearDown() override { fs::remove_all(directory); }
  fs::path directory;
};

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::storage);
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(Crc32c, KnownValues) {
  // RFC 3720 appendix B.4, and the customary check value.
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283u);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62A8AB43u);
  EXPECT_EQ(crc32c({}), 0u);
}

TEST(Crc32c, PiecesGiveTheWhole) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += static_cast<char>(i * 37 + 11);
  const std::uint32_t whole = crc32c(bytes_of(text));
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    const std::string_view view(text);
    EXPECT_EQ(crc32c(bytes_of(view.substr(cut)), crc32c(bytes_of(view.substr(0, cut)))), whole);
  }
}

TEST(Sha256Test, KnownValues) {
  EXPECT_EQ(hex(sha256(std::string_view(""))), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex(sha256(std::string_view("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_F(StorageTest, DigestOfAFileIsThatOfItsBytes) {
  std::string text(3'000'000, 'a');
  text[2'999'999] = 'b';
  write_file_atomically(directory / "f", text);
  EXPECT_EQ(sha256_file(directory / "f"), sha256(text));
}

TEST_F(StorageTest, PositionalReadsStayInsideTheFile) {
  write_file_atomically(directory / "f", std::string_view("hello world"));
  const InputFile file(directory / "f");
  EXPECT_EQ(file.size(), 11u);
  std::string part(5, '\0');
  file.read_at(6, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "world");
  EXPECT_EQ(message_of([&] { file.read_at(7, std::as_writable_bytes(std::span(part))); }),
            "cannot read 5 bytes at offset 7 of " + (directory / "f").string() + ": the file has 11 bytes");
  EXPECT_THROW(file.read_at(~std::uint64_t{0}, std::as_writable_bytes(std::span(part))), Error);
}

TEST_F(StorageTest, OnlyRegularFilesAreRead) {
  EXPECT_EQ(message_of([&] { InputFile file(directory / "none"); }),
            "cannot open " + (directory / "none").string() + ": No such file or directory");
  EXPECT_EQ(message_of([&] { InputFile file(directory); }),
            "cannot read " + directory.string() + ": it is not a regular file");
  ASSERT_EQ(::mkfifo((directory / "fifo").c_str(), 0600), 0);
  EXPECT_THROW(InputFile file(directory / "fifo"), Error);
}

TEST_F(StorageTest, OutputIsExclusiveAndLeavesNothingUnfinished) {
  {
    OutputFile file(directory / "f");
    file.write("abc");
    EXPECT_TRUE(fs::exists(directory / "f"));
  }
  EXPECT_FALSE(fs::exists(directory / "f"));
  {
    OutputFile file(directory / "f");
    file.write("abc");
    file.fsync();
    file.close();
  }
  EXPECT_EQ(read_small_file(directory / "f", 10), "abc");
  EXPECT_EQ(message_of([&] { OutputFile again(directory / "f"); }),
            "cannot create " + (directory / "f").string() + ": File exists");
  EXPECT_EQ(read_small_file(directory / "f", 10), "abc");
}

TEST_F(StorageTest, AtomicWriteReplacesAndLeavesNoTemporary) {
  write_file_atomically(directory / "f", std::string_view("old"));
  write_file_atomically(directory / "f", std::string_view("new"));
  EXPECT_EQ(read_small_file(directory / "f", 3), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(directory), fs::directory_iterator()), 1);
  EXPECT_THROW(read_small_file(directory / "f", 2), Error);
  // The target is a directory, so the rename fails; the temporary file goes away.
  fs::create_directory(directory / "d");
  EXPECT_THROW(write_file_atomically(directory / "d", std::string_view("x")), Error);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory), fs::directory_iterator()), 2);
}

TEST_F(StorageTest, FullDeviceIsRecognised) {
  try {
    const int full = 28;  // ENOSPC
    fail_with_errno("write to", directory / "f", full);
  } catch (const DiskFull& error) {
    EXPECT_EQ(std::string(error.what()), "cannot write to " + (directory / "f").string() + ": No space left on device");
    EXPECT_EQ(error.code(), ExitCode::storage);
    return;
  }
  FAIL();
}

TEST(Json, CanonicalTextIsSortedAndCompact) {
  const auto value = parse_strict(" { \"b\" : [1, -2, 2.5, null, true], \"a\" : {\"z\":\"\\u00e9\"} } ", "t");
  EXPECT_EQ(canonical(value), "{\"a\":{\"z\":\"é\"},\"b\":[1,-2,2.5,null,true]}");
  EXPECT_EQ(canonical(parse_strict(canonical(value), "t")), canonical(value));
  EXPECT_THROW(canonical(nlohmann::json(std::numeric_limits<double>::quiet_NaN())), Error);
}

TEST(Json, RefusesWhatIsNotStrict) {
  const auto problem = [](std::string_view text) { return message_of([&] { parse_strict(text, "file"); }); };
  EXPECT_EQ(problem("{\"a\":1,\"a\":2}"), "file: invalid JSON: duplicate key \"a\"");
  EXPECT_EQ(problem("[9223372036854775808]"), "file: invalid JSON: an integer outside the range of int64");
  EXPECT_EQ(problem("[-9223372036854775809]"), "file: invalid JSON: an integer outside the range of int64");
  EXPECT_EQ(problem("[99999999999999999999999]"), "file: invalid JSON: an integer outside the range of int64");
  EXPECT_EQ(problem("\xEF\xBB\xBF{}"), "file: line 1, column 1: JSON begins with a byte order mark");
  EXPECT_EQ(problem(std::string(65, '[') + std::string(65, ']')), "file: invalid JSON: nesting deeper than 64");
  EXPECT_NO_THROW(parse_strict(std::string(64, '[') + std::string(64, ']'), "file"));
  EXPECT_TRUE(problem("{\n  \"a\": NaN}").starts_with("file: line 2, column 8: invalid JSON: "));
  for (const std::string_view text :
       {"",      " ",        "{",        "[1,]",         "{\"a\":1,}",       "{'a':1}",
        "[1] x", "// c\n1",  "[01]",     "[1.]",         "[1e999]",          "Infinity",
        "-",     "\"\x01\"", "\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\\ud800\"",
        "nul",   "[1 2]",    "\"a"}) {
    EXPECT_NE(problem(text), "") << text;
  }
  EXPECT_NE(problem(std::string(1'000'000, '[')), "");
  EXPECT_EQ(problem(std::string_view("{}\n\0junk", 8)), "file: line 2, column 1: invalid JSON: a NUL byte");
  EXPECT_EQ(message_of([] { parse_strict("[1,2]", "file", 4); }), "file: 5 bytes of JSON, at most 4 are expected");
}

// A handler sees the text in its order, and refuses what it does not expect.
TEST(Json, EventsComeInTheTextsOrder) {
  class Listing final : public JsonEvents {
   public:
    std::string seen;
    void begin_object() override { seen += "{ "; }
    void end_object() override { seen += "} "; }
    void key(std::string& name) override { seen += name + ": "; }
    void begin_array() override { seen += "[ "; }
    void end_array() override { seen += "] "; }
    void integer(std::int64_t n) override { seen += std::to_string(n) + " "; }

   private:
    [[noreturn]] void unexpected(std::string_view found) override { storage_error("{} after {}", found, seen); }
  };
  Listing listing;
  parse_strict_events("{\"b\":[1,-2,[]],\"a\":{}}", "file", listing, 3);
  EXPECT_EQ(listing.seen, "{ b: [ 1 -2 [ ] ] a: { } } ");
  Listing refusing;
  EXPECT_EQ(message_of([&] { parse_strict_events("[1,2.0]", "file", refusing, 3); }),
            "a number with a fraction or an exponent after [ 1 ");
  Listing deep;
  EXPECT_EQ(message_of([&] { parse_strict_events("[[[[]]]]", "file", deep, 3); }),
            "file: invalid JSON: nesting deeper than 3");
}

// What a file holds must not reach a terminal as it is.
TEST(Json, MessagesArePrintable) {
  EXPECT_EQ(printable("a\x1b[31m\xff\n"), "a?[31m\xEF\xBF\xBD?");
  EXPECT_EQ(printable(std::string(300, 'a'), 3), "aaa...");
  const auto hidden = parse_strict("{\"\\u001b[2J\":1}", "f");
  EXPECT_EQ(message_of([&] { check_keys(hidden, {}, "f"); }), "f: unknown key \"?[2J\"");
  for (const char c : message_of([] { parse_strict("\"\x1b\x80", "f"); }))
    EXPECT_GE(static_cast<unsigned char>(c), 0x20);
}

TEST(Json, GettersNameFileAndKey) {
  const auto object = parse_strict("{\"i\":5,\"s\":\"x\",\"b\":true,\"o\":{},\"a\":[],\"f\":1.5}", "f");
  EXPECT_EQ(require_int(object, "i", "f"), 5);
  EXPECT_EQ(require_string(object, "s", "f"), "x");
  EXPECT_TRUE(require_bool(object, "b", "f"));
  EXPECT_TRUE(require_object(object, "o", "f").empty());
  EXPECT_TRUE(require_array(object, "a", "f").empty());
  EXPECT_EQ(message_of([&] { require_int(object, "n", "f"); }), "f: key \"n\" is missing");
  EXPECT_EQ(message_of([&] { require_int(object, "f", "f"); }), "f: key \"f\": expected an integer, found number");
  EXPECT_EQ(message_of([&] { require_int(object, "i", "f", 0, 4); }), "f: key \"i\": 5 is outside [0, 4]");
  EXPECT_EQ(message_of([&] { require_string(object, "i", "f"); }), "f: key \"i\": expected a string, found number");
  EXPECT_EQ(message_of([&] { require_int(object["a"], "i", "f"); }), "f: expected an object, found array");
  EXPECT_EQ(message_of([&] { check_keys(object, {"i", "s", "b", "o", "a"}, "f"); }), "f: unknown key \"f\"");
  EXPECT_NO_THROW(check_keys(parse_strict("{\"x_more\":1}", "f"), {}, "f"));
}

}  // namespace
}  // namespace weft
