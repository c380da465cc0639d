// What prepare writes, and that it writes the same whatever the machine.
#include "data/prepare/prepare.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "autograd/philox.h"
#include "data/dataset.h"
#include "data/prepare/prepare_test_support.h"

namespace weft {
namespace {

using namespace data_test;

// Documents as text, in dataset order.
std::vector<std::string> documents_of(const std::string& folder) {
  const Dataset dataset(folder);
  const ByteTokenizer tokenizer;
  std::vector<std::string> documents;
  const auto offsets = dataset.doc_offsets();
  for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(offsets[d + 1] - offsets[d]));
    dataset.read(offsets[d], tokens);
    EXPECT_EQ(tokens.back(), ByteTokenizer::kEos);
    documents.push_back(tokenizer.decode(tokens));
  }
  return documents;
}

TEST(Prepare, TextByFileBlankLineAndDelimiter) {
  const TemporaryFolder folder;
  write_text(folder / "in/b.txt", "second\n\nwith a gap");
  write_text(folder / "in/a.txt",
             "\xEF\xBB\xBF"
             "first\r\n");
  PrepareOptions options = options_for(folder / "by_file", {folder / "in"});
  options.shuffle_seed.reset();
  options.split = TextSplit::file;
  prepare(options);
  EXPECT_EQ(documents_of(folder / "by_file"), (std::vector<std::string>{"first\r\n", "second\n\nwith a gap"}));

  options.out = folder / "by_blank";
  options.split = TextSplit::blank;
  const PrepareResult result = prepare(options);
  EXPECT_EQ(documents_of(folder / "by_blank"), (std::vector<std::string>{"first\r\n", "second\n", "with a gap"}));
  EXPECT_EQ(result.documents, 3);
  EXPECT_EQ(result.text_bytes, 7 + 7 + 10);
  EXPECT_EQ(result.tokens, 7 + 7 + 10 + 3);

  options.out = folder / "by_line";
  options.split = TextSplit::delimiter;
  options.delimiter = "second";
  prepare(options);
  EXPECT_EQ(documents_of(folder / "by_line"), (std::vector<std::string>{"first\r\n", "\nwith a gap"}));
  EXPECT_FALSE(std::filesystem::exists(folder / "by_line.partial"));
}

TEST(Prepare, ManifestSaysWhatIsInside) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", "one\n\ntwo\n");
  write_text(folder / "b.txt", "three");
  prepare(options_for(folder / "out", {folder / "a.txt", folder / "b.txt"}));
  const Dataset dataset(folder / "out");
  const DatasetManifest& manifest = dataset.manifest();
  EXPECT_EQ(manifest.tokenizer_name, "byte");
  EXPECT_EQ(manifest.vocab_size, 257);
  EXPECT_EQ(manifest.eos_id, 256);
  EXPECT_EQ(manifest.bos_id, -1);
  EXPECT_EQ(manifest.token_bytes, 2);
  ASSERT_EQ(manifest.sources.size(), 2u);
  EXPECT_EQ(manifest.sources[0].name, "a.txt");
  EXPECT_EQ(manifest.sources[0].documents, 2);
  EXPECT_EQ(manifest.sources[0].tokens, 10);
  EXPECT_EQ(manifest.sources[0].sha256, hex(sha256("one\n\ntwo\n")));
  EXPECT_EQ(manifest.sources[1].bytes, 5);
  EXPECT_EQ(manifest.options.at("shuffle"), "0");
  EXPECT_EQ(dataset.digest(), hex(sha256_file(folder / "out/dataset.json")));
  verify_dataset(folder / "out");
  // Strictly canonical: parsing and writing again changes nothing.
  const std::string text = read_text(folder / "out/dataset.json");
  EXPECT_EQ(manifest_to_json(manifest_from_json(text, "x")), text);
}

TEST(Prepare, SameBytesForAnyThreadsAndMemory) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", random_text(1, 7 << 20));
  write_text(folder / "b.txt", random_text(2, 5 << 20));
  PrepareOptions options = options_for(folder / "reference", {folder / "a.txt", folder / "b.txt"});
  options.validation_every = 50;
  options.shard_tokens = 4 << 20;
  options.threads = 1;
  prepare(options);
  const auto reference = content_of(folder / "reference");
  const auto validation = content_of(folder / "reference-validation");
  EXPECT_EQ(reference.size(), 4u);  // three shards and the manifest
  int run = 0;
  for (const int threads : {2, 7}) {
    for (const std::int64_t memory : {16, 24, 512}) {  // 3, 2 and 1 spills
      options.out = folder / ("run" + std::to_string(run++));
      options.threads = threads;
      options.memory = memory << 20;
      prepare(options);
      EXPECT_TRUE(content_of(options.out) == reference);
      EXPECT_TRUE(content_of(options.out + "-validation") == validation);
      std::filesystem::remove_all(options.out);
      std::filesystem::remove_all(options.out + "-validation");
    }
  }
  verify_dataset(folder / "reference");
}

TEST(Prepare, EveryDocumentOnceAndShuffled) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", random_text(3, 1 << 20));
  PrepareOptions options = options_for(folder / "plain", {folder / "a.txt"});
  options.shuffle_seed.reset();
  prepare(options);
  const auto plain = documents_of(folder / "plain");
  std::vector<std::string> expected;
  std::istringstream lines(read_text(folder / "a.txt"));
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    const bool blank = line.find_first_not_of(' ') == line.npos;
    if (!blank && !inside) expected.emplace_back();
    if (!blank) expected.back() += line + "\n";
    inside = !blank;
  }
  EXPECT_TRUE(plain == expected);

  options.out = folder / "shuffled";
  options.shuffle_seed = 5;
  prepare(options);
  const auto shuffled = documents_of(folder / "shuffled");
  EXPECT_TRUE(shuffled != plain);
  EXPECT_TRUE(std::is_permutation(shuffled.begin(), shuffled.end(), plain.begin(), plain.end()));

  // The order is that of the keys, however it came about.
  std::vector<std::pair<std::uint64_t, std::size_t>> order;
  for (std::size_t i = 0; i < plain.size(); ++i)
    order.emplace_back(RandomWords(5, RandomStream::document_shuffle, i).word64(), i);
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i) ASSERT_EQ(shuffled[i], plain[order[i].second]);

  // From standard input, with 64 spills instead of one, the same documents in the same order.
  options.out = folder / "piped";
  options.inputs = {"-"};
  options.format = InputFormat::text;
  const StandardInput input(folder / "a.txt");
  prepare(options);
  EXPECT_TRUE(documents_of(folder / "piped") == shuffled);
}

TEST(Prepare, HoldsOutEveryNthDocument) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 100; ++i) text += "document " + std::to_string(i) + "\n\n";
  write_text(folder / "a.txt", text);
  PrepareOptions options = options_for(folder / "out", {folder / "a.txt"});
  options.shuffle_seed.reset();
  options.validation_every = 10;
  const PrepareResult result = prepare(options);
  EXPECT_EQ(result.validation_folder, folder / "out-validation");
  const auto train = documents_of(folder / "out");
  const auto validation = documents_of(folder / "out-validation");
  ASSERT_EQ(validation.size(), 10u);
  EXPECT_EQ(train.size(), 90u);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(validation[static_cast<std::size_t>(i)], "document " + std::to_string(10 * i + 9) + "\n");
  }
}

TEST(Prepare, JsonlPackedOrNotGivesTheSame) {
  const TemporaryFolder folder;
  std::string lines;
  RandomWords words(4, RandomStream::test, 4);
  std::vector<std::string> expected;
  for (int i = 0; i < 3000; ++i) {
    const std::string text = random_text(words.word64(), words.below(400) + 1);
    expected.push_back(text);
    lines += nlohmann::json({{"id", i}, {"text", text}}).dump(-1, ' ', i % 2 == 0) + "\n";
  }
  write_text(folder / "a.jsonl", lines);
  write_text(folder / "b.jsonl.gz", gzip(lines.substr(0, 1000)) + gzip(lines.substr(1000)));  // two members
  write_text(folder / "c.jsonl.zst", zstd(lines.substr(0, 77)) + zstd(lines.substr(77)));
  // Under a plain name, and behind a skippable frame.
  write_text(folder / "d.jsonl", gzip(lines));
  const std::string skippable("\x52\x2a\x4d\x18\x03\0\0\0xyz", 11);
  write_text(folder / "e.jsonl.zst", skippable + zstd(lines));
  for (const char* name : {"a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.jsonl", "e.jsonl.zst"}) {
    PrepareOptions options = jsonl_options(folder / "out", {folder / name});
    prepare(options);
    EXPECT_TRUE(documents_of(folder / "out") == expected) << name;
    std::filesystem::remove_all(folder / "out");
    const StandardInput input(folder / name);
    options.inputs = {"-"};
    prepare(options);
    EXPECT_TRUE(documents_of(folder / "out") == expected) << name;
    std::filesystem::remove_all(folder / "out");
  }
}

TEST(Prepare, SkipsAndCounts) {
  const TemporaryFolder folder;
  write_text(folder / "a.jsonl",
             "{\"text\":\"good\"}\n"
             "not json\n"
             "{\"other\":\"x\"}\n"
             "{\"text\":\"\\ud800\"}\n"
             "{\"text\":\"\"}\n"
             "{\"text\":\"bad \xFF\"}\n"
             "\n"
             "{\"text\":\"good \\n\"}\n"
             "{\"text\":\"" +
                 std::string(60, 'x') +
                 "\"}\n"
                 "{\"text\":\"<|endoftext|></s>\"}");
  PrepareOptions options = jsonl_options(folder / "out", {folder / "a.jsonl"});
  options.dedup_exact = true;
  options.max_doc_bytes = 50;
  const PrepareResult result = prepare(options);
  // Text that looks like a special token is text.
  EXPECT_EQ(documents_of(folder / "out"), (std::vector<std::string>{"good", "<|endoftext|></s>"}));
  const std::map<std::string, std::int64_t> expected = {{"duplicate", 1},    {"empty", 1},   {"invalid_json", 1},
                                                        {"invalid_utf8", 1}, {"no_text", 1}, {"lone_surrogate", 1},
                                                        {"too_large", 1}};
  EXPECT_EQ(result.skipped, expected);
  EXPECT_EQ(Dataset(folder / "out").manifest().skipped, expected);
  const std::string path = folder / "a.jsonl";
  EXPECT_EQ(result.first_skipped,
            (std::vector<std::string>{"empty: " + path + ":5: an empty document",
                                      "invalid_json: " + path + ":2: invalid JSON at byte 0: expected an object",
                                      "invalid_utf8: " + path + ":6: invalid UTF-8 at byte 13 of the line",
                                      "lone_surrogate: " + path + ":4: byte 9: a surrogate without its other half",
                                      "no_text: " + path + ":3: no member \"text\" that is a string",
                                      "too_large: " + path + ":9: a document of 60 bytes"}));
}

TEST(Prepare, ReplacesInvalidText) {
  const TemporaryFolder folder;
  write_text(folder / "a.txt", "bad \xFF text");
  write_text(folder / "b.txt", "");
  write_text(folder / "c.txt", std::string("nul\0byte", 8));
  PrepareOptions options = options_for(folder / "out", {folder / "a.txt", folder / "b.txt", folder / "c.txt"});
  options.split = TextSplit::file;
  options.shuffle_seed.reset();
  options.replace_invalid = true;
  const PrepareResult result = prepare(options);
  EXPECT_EQ(documents_of(folder / "out"), (std::vector<std::string>{"bad \uFFFD text", std::string("nul\0byte", 8)}));
  EXPECT_EQ(result.skipped.at("empty"), 1);
}

TEST(Prepare, OversizedRecordsDoNotTakeMemory) {
  const TemporaryFolder folder;
  const std::string huge(5 << 20, 'x');
  write_text(folder / "a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"" + huge + "\"}\n{\"text\":\"two\"}\n");
  PrepareOptions options = jsonl_options(folder / "jsonl", {folder / "a.jsonl"});
  options.max_line_bytes = 1 << 20;
  EXPECT_EQ(prepare(options).skipped.at("too_large"), 1);
  EXPECT_EQ(documents_of(folder / "jsonl"), (std::vector<std::string>{"one", "two"}));

  write_text(folder / "a.txt", "one\n\n" + huge + "\n" + huge + "\n\ntwo\n\n" + huge);
  options = options_for(folder / "txt", {folder / "a.txt"});
  options.shuffle_seed.reset();
  options.max_doc_bytes = 1 << 20;
  EXPECT_EQ(prepare(options).skipped.at("too_large"), 2);
  EXPECT_EQ(documents_of(folder / "txt"), (std::vector<std::string>{"one\n", "two\n"}));
}

}  // namespace
}  // namespace weft
