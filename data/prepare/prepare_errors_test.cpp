// What prepare says when inputs, options or outputs are no good.
#include <gtest/gtest.h>

#include "data/prepare/prepare.h"
#include "data/prepare/prepare_test_support.h"
#include "tests/support/small_filesystem.h"

namespace weft {
namespace {

using namespace data_test;

TEST(PrepareErrors, Inputs) {
  const TemporaryFolder folder;
  const auto error = [&](std::vector<std::string> inputs, TextSplit split = TextSplit::file) {
    PrepareOptions options = options_for(folder / "out", std::move(inputs));
    options.split = split;
    return message_of(ExitCode::config, [&] { prepare(options); });
  };
  EXPECT_EQ(error({}), "no input: name text or jsonl files, or - for standard input");
  EXPECT_EQ(error({folder / "none.txt"}),
            "input " + (folder / "none.txt") + ": no such file, and no file matches it as a pattern");
  write_text(folder / "empty.txt", "");
  EXPECT_EQ(error({folder / "empty.txt"}),
            "none of the 1 documents can be used (empty: 1); " + (folder / "empty.txt") + ": an empty document");
  EXPECT_EQ(error({folder / "empty.txt"}, TextSplit::blank), "the input has no documents");
  write_text(folder / "bad.txt", "caf\xE9");
  EXPECT_EQ(error({folder / "bad.txt"}), "none of the 1 documents can be used (invalid_utf8: 1); " +
                                             (folder / "bad.txt") + ": invalid UTF-8 at byte 3 of the document");
  write_text(folder / "text.jsonl", "This is no json.\nNor this.\n");
  EXPECT_EQ(error({folder / "text.jsonl"}), "none of the 2 documents can be used (invalid_json: 2); " +
                                                (folder / "text.jsonl") +
                                                ":1: invalid JSON at byte 0: expected an object");
  {
    const StandardInput input(folder / "text.jsonl");
    EXPECT_EQ(
        error({"-"}),
        "none of the 2 documents can be used (invalid_json: 2); standard input:1: invalid JSON at byte 0: expected an "
        "object; standard input is taken as jsonl unless --format text is given");
  }
  const std::string packed = gzip(random_text(1, 100000));
  write_text(folder / "cut.txt.gz", packed.substr(0, packed.size() / 2));
  EXPECT_EQ(error({folder / "cut.txt.gz"}), (folder / "cut.txt.gz") + ": gzip data is truncated near byte " +
                                                std::to_string(packed.size() / 2) + " of the file");
  std::string damaged = zstd(random_text(1, 100000));
  write_text(folder / "cut.txt.zst", damaged.substr(0, damaged.size() - 5));
  EXPECT_EQ(error({folder / "cut.txt.zst"}), (folder / "cut.txt.zst") + ": zstd data is truncated near byte " +
                                                 std::to_string(damaged.size() - 5) + " of the file");
  write_text(folder / "bomb.txt.gz", gzip(std::string(80 << 20, 'a')));
  EXPECT_NE(error({folder / "bomb.txt.gz"}).find("over 200 times as many; if it is meant to, unpack it first"),
            std::string::npos);
  write_text(folder / "x.parquet", "PAR1");
  EXPECT_NE(
      error({folder / "x.parquet"}).find("x.parquet: this build cannot read parquet; pipe it in as jsonl: python3"),
      std::string::npos);
  EXPECT_EQ(error({folder / "bad.txt", folder / "bad.txt"}), "input " + (folder / "bad.txt") + " is named twice");
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out.partial/dataset"));
}

TEST(PrepareErrors, NamesAndContentsOfPackedFiles) {
  const TemporaryFolder folder;
  // Refused before anything is read, so that the work on other files is not lost.
  write_text(folder / "a.txt", "good");
  const auto error = [&](const std::string& name, const std::string& content) {
    write_text(folder / name, content);
    const PrepareOptions options = options_for(folder / "out", {folder / "a.txt", folder / name});
    const std::string message = message_of(ExitCode::config, [&] { prepare(options); });
    EXPECT_FALSE(std::filesystem::exists(folder / "out.partial")) << name;
    return message;
  };
  const auto misnamed = [&](const std::string& name, const std::string& ending, std::size_t bytes,
                            const std::string& form) {
    return fmt::format(
        "{}: named {}, but its {} bytes are no {} data; fetch it again, or rename it if it is something else",
        folder / name, ending, bytes, form);
  };
  EXPECT_EQ(error("plain.txt.gz", "just text\n"), misnamed("plain.txt.gz", ".gz", 10, "gzip"));
  EXPECT_EQ(error("plain.jsonl.zst", "{\"text\":\"x\"}"), misnamed("plain.jsonl.zst", ".zst", 12, "zstd"));
  EXPECT_EQ(error("empty.gz", ""), misnamed("empty.gz", ".gz", 0, "gzip"));
  const std::string other = zstd("text");
  EXPECT_EQ(error("other.gz", other), misnamed("other.gz", ".gz", other.size(), "gzip"));

  const auto foreign = [&](const std::string& path, const std::string& form, const std::string& command) {
    return fmt::format(
        "{}: packed with {}, which this build does not read; pipe it in: {} FILE | weft prepare --out DIR -", path,
        form, command);
  };
  using namespace std::string_literals;
  EXPECT_EQ(error("b.xz", "\xfd\x37zXZ\0\0\4"s), foreign(folder / "b.xz", "xz", "xz -dc"));
  EXPECT_EQ(error("b.bz2", "BZh91AY&SY\x99\x1f"), foreign(folder / "b.bz2", "bzip2", "bzip2 -dc"));
  EXPECT_EQ(error("b.lz4", "\x04\x22\x4d\x18\x64\x40"), foreign(folder / "b.lz4", "lz4", "lz4 -dc"));
  EXPECT_EQ(error("text", "PK\x03\x04\x14\0\0"s), foreign(folder / "text", "zip", "unzip -p"));
  const StandardInput input(folder / "b.xz");
  EXPECT_EQ(message_of(ExitCode::config, [&] { prepare(jsonl_options(folder / "out", {"-"})); }),
            foreign("standard input", "xz", "xz -dc"));
}

TEST(PrepareErrors, Outputs) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", "text");
  PrepareOptions options = options_for(folder / "out", {folder / "a.txt"});
  write_text(folder / "out/file", "precious");
  EXPECT_EQ(message_of(ExitCode::config, [&] { prepare(options); }),
            "output " + (folder / "out") + " exists; remove it or choose another --out");
  EXPECT_EQ(read_text(folder / "out/file"), "precious");

  write_text(folder / "mine.partial/file", "precious");
  options.out = folder / "mine";
  EXPECT_EQ(message_of(ExitCode::config, [&] { prepare(options); }),
            (folder / "mine.partial") +
                " exists and has no journal of an interrupted run; remove it or choose another --out");
  EXPECT_EQ(read_text(folder / "mine.partial/file"), "precious");

  std::filesystem::create_directories(folder / "empty");
  options.out = folder / "empty";
  EXPECT_EQ(prepare(options).documents, 1);

  options.out = folder / "a.txt/out";
  EXPECT_EQ(message_of(ExitCode::storage, [&] { prepare(options); }),
            "cannot create folder " + (folder / "a.txt/out.partial") + ": Not a directory");

  options.out = folder / "options";
  const auto error = [&](const PrepareOptions& changed) {
    return message_of(ExitCode::config, [&] { prepare(changed); });
  };
  options.delimiter = "--";
  EXPECT_EQ(error(options), "--delimiter: it is for --split delimiter");
  options.split = TextSplit::delimiter;
  options.delimiter = "";
  EXPECT_EQ(error(options), "--split delimiter: name the line between documents with --delimiter");
  options.split = TextSplit::blank;
  options.validation_every = 1;
  EXPECT_EQ(error(options), "--hold-out 1: every how many documents one is held out; 0 for none, or 2 and more");
  options.validation_every = 5;
  EXPECT_EQ(error(options),
            "no document is left for " + (folder / "options-validation") + ": 1 documents, every 5th is held out");
  options.validation_every = 0;
  options.memory = 1 << 20;
  EXPECT_EQ(error(options), "--memory: 1048576 bytes, at least 16777216 are needed");
  write_text(folder / "a.jsonl", "{\"text\":\"x\"}");
  const PrepareOptions jsonl = options_for(folder / "options", {folder / "a.jsonl"});
  EXPECT_EQ(error(jsonl),
            "--split is for text, but " + (folder / "a.jsonl") + " is taken as jsonl; --format text says otherwise");

  options = options_for(folder / "options", {folder / "a.txt"});
  options.tokenizer = "some.json";
  EXPECT_EQ(message_of(ExitCode::config, [&] { prepare(options); }),
            "tokenizer \"some.json\": neither \"byte\" nor the path of a tokenizer's file");
}

TEST(PrepareErrors, FullDisk) {
  const TemporaryFolder folder;
  const testing_support::SmallFilesystem small(folder / "small", 4 << 20);
  if (!small.mounted()) GTEST_SKIP() << "cannot mount a small file system: " << small.reason();
  const std::string text = random_text(1, 3 << 20);
  write_text(folder / "a.txt", text);
  PrepareOptions options = options_for(folder / "small/out", {folder / "a.txt"});
  // 2 bytes a token, twice; an empty tmpfs has all of its space but what the journal's folder takes.
  const std::string expected = fmt::format(", this needs at least {}", 4 * text.size());
  EXPECT_NE(message_of(ExitCode::storage, [&] { prepare(options); }).find(expected), std::string::npos);

  // How much packed text becomes is not known in advance: the disk fills up on the way.
  write_text(folder / "a.txt.gz", gzip(text));
  options.inputs = {folder / "a.txt.gz"};
  options.checkpoint_bytes = 1 << 20;
  EXPECT_NE(message_of(ExitCode::storage, [&] { prepare(options); }).find("No space left on device"),
            std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(options.out));
}

}  // namespace
}  // namespace weft
