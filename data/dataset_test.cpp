// Reading datasets: ranges, damage, and files that are no datasets.
#include "data/dataset.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "data/dataset_test_support.h"
#include "data/storage/hdf5.h"

namespace weft {
namespace {

using data_test::counting_documents;
using data_test::Documents;
using data_test::flip_bit;
using data_test::make_dataset;
using data_test::message_of;
using data_test::read_text;
using data_test::TemporaryFolder;
using data_test::write_text;

std::vector<std::int32_t> read_all(const Dataset& dataset) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(dataset.n_tokens()));
  dataset.read(0, tokens);
  return tokens;
}

TEST(Dataset, ReadsAcrossShards) {
  const TemporaryFolder folder;
  const Documents documents = counting_documents(500, 700);
  const auto dataset = make_dataset(folder / "d", documents, 120);
  EXPECT_EQ(dataset->manifest().shards.size(), 5u);
  std::vector<std::int32_t> expected;
  for (const auto& document : documents) expected.insert(expected.end(), document.begin(), document.end());
  EXPECT_EQ(read_all(*dataset), expected);
  for (std::int64_t begin = 0; begin + 3000 < dataset->n_tokens(); begin += 2777) {
    std::vector<std::int32_t> part(3000);
    dataset->read(begin, part);
    ASSERT_TRUE(std::equal(part.begin(), part.end(), expected.begin() + begin));
  }
  std::int64_t at = 0;
  for (std::size_t d = 0; d < documents.size(); ++d) {
    EXPECT_EQ(dataset->doc_offsets()[d], at);
    EXPECT_EQ(dataset->doc_of(at), static_cast<std::int64_t>(d));
    at += static_cast<std::int64_t>(documents[d].size());
    EXPECT_EQ(dataset->doc_of(at - 1), static_cast<std::int64_t>(d));
  }
  verify_dataset(folder / "d");
}

TEST(Dataset, FlippedBitsInTokensAreFoundWhereTheyAre) {
  const TemporaryFolder folder;
  const auto good = make_dataset(folder / "d", counting_documents(400, 1000));
  const std::string shard = folder / "d/tokens-00000.h5";
  const std::int64_t offset = good->manifest().shards[0].offsets.at("tokens");
  for (const std::int64_t token : {std::int64_t{0}, std::int64_t{65535}, std::int64_t{65536}, good->n_tokens() - 1}) {
    for (const int bit : {0, 3, 11}) {
      const std::int64_t byte = offset + 2 * token + bit / 8;
      flip_bit(shard, byte, bit % 8);
      const Dataset damaged(folder / "d");
      const std::int64_t block = token / 65536;
      std::vector<std::int32_t> one(1);
      const std::string expected = fmt::format(
          "{}: tokens [{}, {}) (block {}) do not match their checksum; the file is damaged: copy or prepare the "
          "dataset again",
          shard, block * 65536, std::min((block + 1) * 65536, good->n_tokens()), block);
      // Any token of the block finds it, another block does not.
      EXPECT_EQ(message_of(ExitCode::config, [&] { damaged.read(block * 65536 + 5, one); }), expected);
      EXPECT_NO_THROW(damaged.read(block == 0 ? 65536 : 0, one));
      EXPECT_EQ(message_of(ExitCode::config, [&] { verify_dataset(folder / "d"); }), expected);
      flip_bit(shard, byte, bit % 8);
    }
  }
  verify_dataset(folder / "d");
}

TEST(Dataset, AnyFlippedByteIsFoundByVerify) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", counting_documents(20, 100));
  const std::string shard = folder / "d/tokens-00000.h5";
  const auto size = static_cast<std::int64_t>(std::filesystem::file_size(shard));
  for (std::int64_t byte = 0; byte < size; byte += 97) {
    flip_bit(shard, byte, 2);
    EXPECT_THROW(verify_dataset(folder / "d"), Error) << byte;
    flip_bit(shard, byte, 2);
  }
  verify_dataset(folder / "d");
}

TEST(DatasetErrors, MissingAndForeign) {
  const TemporaryFolder folder;
  const auto error = [&](const std::string& name) {
    return message_of(ExitCode::config, [&] { Dataset(folder / name); });
  };
  const std::string path = folder / "none";
  EXPECT_EQ(error("none"),
            "dataset " + path + ": no such folder; 'weft prepare --out " + path + " INPUT...' makes one");
  write_text(folder / "file", "x");
  EXPECT_EQ(error("file"), "dataset " + (folder / "file") + ": not a folder; expected one that 'weft prepare' wrote");
  write_text(folder / "other/readme", "x");
  EXPECT_EQ(error("other"),
            "dataset " + (folder / "other") + ": the folder has no dataset.json, so it is not a weft dataset");
  write_text(folder / "other/dataset.json", "{\"format\":\"something\"}");
  EXPECT_EQ(error("other"), (folder / "other/dataset.json") +
                                ": not the manifest of a weft dataset (\"format\" is not \"weft-tokens\")");
  write_text(folder / "other/dataset.json", "[1,");
  EXPECT_NE(error("other").find("dataset.json: line 1, column 4: invalid JSON"), std::string::npos);
}

TEST(DatasetErrors, TruncatedShardAndManifest) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", counting_documents(50, 100));
  const std::string shard = folder / "d/tokens-00000.h5";
  const auto size = std::filesystem::file_size(shard);
  std::filesystem::resize_file(shard, size - 100);
  EXPECT_EQ(message_of(ExitCode::config, [&] { Dataset(folder / "d"); }),
            fmt::format("{}: {} bytes, dataset.json says {}; the file is truncated: copy or prepare the dataset again",
                        shard, size - 100, size));
  std::filesystem::remove(shard);
  EXPECT_EQ(message_of(ExitCode::config, [&] { Dataset(folder / "d"); }),
            shard + ": the shard is missing, dataset.json lists it");
  const std::string text = read_text(folder / "d/dataset.json");
  write_text(folder / "d/dataset.json", text.substr(0, text.size() / 2));
  EXPECT_NE(message_of(ExitCode::config, [&] { Dataset(folder / "d"); }).find("invalid JSON"), std::string::npos);
}

TEST(DatasetErrors, TokenOutOfRange) {
  const TemporaryFolder folder;
  Documents documents = counting_documents(50, 100);
  documents[20][0] = 300;
  const auto dataset = make_dataset(folder / "d", documents);
  EXPECT_EQ(message_of(ExitCode::config, [&] { read_all(*dataset); }),
            fmt::format("{}: token {} (block 0) is 300, outside the vocabulary of 257 ids; prepare the dataset again",
                        folder / "d/tokens-00000.h5", dataset->doc_offsets()[20]));
  std::vector<std::int32_t> before(static_cast<std::size_t>(dataset->doc_offsets()[20]));
  EXPECT_NO_THROW(dataset->read(0, before));
}

// Manifests that lie: every change is refused on opening, or by verify.
TEST(DatasetErrors, LyingManifests) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", counting_documents(50, 100));
  const std::string path = folder / "d/dataset.json";
  const auto original = nlohmann::json::parse(read_text(path));
  const auto error_of = [&](const std::function<void(nlohmann::json&)>& change) {
    auto changed = original;
    change(changed);
    write_text(path, changed.dump());
    return message_of(ExitCode::config, [&] { verify_dataset(folder / "d"); });
  };
  using nlohmann::json;
  const std::string shard = folder / "d/tokens-00000.h5";
  EXPECT_EQ(error_of([](json& m) { m["shards"][0]["file"] = "../x.h5"; }),
            path + ", shards[0]: key \"file\": \"../x.h5\" is not a bare file name");
  EXPECT_NE(error_of([](json& m) { m["shards"][0]["offsets"]["tokens"] = 1 << 30; }).find("is outside [0, "),
            std::string::npos);
  const std::int64_t bytes = original["shards"][0]["bytes"];
  EXPECT_EQ(error_of([&](json& m) { m["shards"][0]["offsets"]["tokens"] = bytes - 2; }),
            fmt::format("{}: dataset.json places /tokens at bytes [{}, {}), but the file has {}", shard, bytes - 2,
                        bytes - 2 + 2 * original["n_tokens"].get<std::int64_t>(), bytes));
  EXPECT_EQ(error_of([](json& m) { m["shards"][0]["offsets"]["doc_bytes"] = m["shards"][0]["offsets"]["doc_source"]; }),
            shard + ": dataset.json places /doc_source and /doc_bytes on the same bytes");
  EXPECT_NE(error_of([](json& m) {
              m["n_tokens"] = 7;
              m["n_docs"] = 2;
            }).find("7 tokens in 2 documents, but its shards add up to"),
            std::string::npos);
  EXPECT_NE(error_of([](json& m) {
              m["shards"][0]["n_docs"] = 49;
              m["n_docs"] = 49;
            }).find("/doc_offsets"),
            std::string::npos);
  // Counts whose sizes in bytes would overflow.
  EXPECT_EQ(error_of([](json& m) {
              for (const char* key : {"n_tokens", "n_docs"}) m["shards"][0][key] = m[key] = std::int64_t{1} << 60;
            }),
            path + ": key \"n_tokens\": 1152921504606846976 is outside [1, 72057594037927936]");
  EXPECT_EQ(error_of([](json& m) { m["surprise"] = 1; }), path + ": unknown key \"surprise\"");
  EXPECT_EQ(error_of([](json& m) { m["version"] = 3; }),
            path + ": dataset version 3, this build reads versions 1 to 2");
  EXPECT_EQ(error_of([](json& m) { m.erase("tokenizer"); }), path + ": key \"tokenizer\" is missing");
  EXPECT_EQ(error_of([](json& m) { m["tokenizer"]["vocab_size"] = 258; }),
            shard + ": vocab_size is 257, dataset.json says 258");
  EXPECT_EQ(error_of([](json& m) { m["tokenizer"]["eos_id"] = 255; }),
            shard + ": eos_id is 256, dataset.json says 255");
  EXPECT_NE(error_of([](json& m) { m["text_bytes"] = 1; }).find("the length of its text is"), std::string::npos);
  write_text(path, original.dump());
  verify_dataset(folder / "d");
}

TEST(IndexDataset, RebuildsTheManifest) {
  const TemporaryFolder folder;
  const auto before = make_dataset(folder / "d", counting_documents(60, 100), 25);
  EXPECT_EQ(message_of(ExitCode::config, [&] { index_dataset(folder / "d"); }),
            (folder / "d/dataset.json") + " exists; move it away to build a new one");
  const DatasetManifest original = before->manifest();
  std::filesystem::remove(folder / "d/dataset.json");
  const DatasetManifest rebuilt = index_dataset(folder / "d");
  EXPECT_EQ(rebuilt.n_tokens, original.n_tokens);
  EXPECT_EQ(rebuilt.text_bytes, original.text_bytes);
  EXPECT_EQ(rebuilt.tokenizer_fingerprint, original.tokenizer_fingerprint);
  ASSERT_EQ(rebuilt.shards.size(), 3u);
  for (std::size_t s = 0; s < 3; ++s) {
    EXPECT_EQ(rebuilt.shards[s].sha256, original.shards[s].sha256);
    EXPECT_EQ(rebuilt.shards[s].offsets, original.shards[s].offsets);
  }
  verify_dataset(folder / "d");
  EXPECT_EQ(read_all(Dataset(folder / "d")), read_all(*before));
}

TEST(IndexDataset, RefusesForeignShards) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "d");
  EXPECT_EQ(message_of(ExitCode::config, [&] { index_dataset(folder / "d"); }),
            "dataset " + (folder / "d") + ": the folder has no shards (tokens-*.h5)");
  const std::string shard = folder / "d/tokens-00000.h5";
  {
    Hdf5Writer writer(shard);
    writer.set_attribute("/", "format", std::string_view("something"));
    writer.close();
  }
  EXPECT_EQ(message_of(ExitCode::config, [&] { index_dataset(folder / "d"); }),
            shard + ": not a shard of a weft dataset (attribute format is not \"weft-tokens\")");
  write_text(shard, "no hdf5");
  EXPECT_NE(message_of(ExitCode::config, [&] { index_dataset(folder / "d"); }).find("tokens-00000.h5"),
            std::string::npos);
}

TEST(DescribeDataset, NamesWhatMatters) {
  const TemporaryFolder folder;
  const auto dataset = make_dataset(folder / "d", counting_documents(60, 100));
  const std::string text = describe_dataset(folder / "d");
  EXPECT_NE(text.find(dataset->digest()), std::string::npos);
  EXPECT_NE(text.find("tokenizer  byte (257 ids, 2 bytes a token stored)"), std::string::npos);
  EXPECT_NE(text.find(fmt::format("tokens     {}\n", dataset->n_tokens())), std::string::npos);
}

}  // namespace
}  // namespace weft
