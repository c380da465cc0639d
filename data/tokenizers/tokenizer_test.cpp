#include "data/tokenizers/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

#include "data/dataset_test_support.h"
#include "data/tokenizers/stream_decoder.h"
#include "data/tokenizers/tokenizer_files.h"

namespace weft {
namespace {

TEST(ByteTokenizer, RoundTripsEveryByte) {
  const auto tokenizer = make_tokenizer("byte");
  std::string text;
  for (int b = 0; b < 256; ++b) text += static_cast<char>(b);
  const std::vector<std::int32_t> ids = tokenizer->encode(text);
  ASSERT_EQ(ids.size(), 256u);
  for (int b = 0; b < 256; ++b) EXPECT_EQ(ids[static_cast<std::size_t>(b)], b);
  EXPECT_EQ(tokenizer->decode(ids), text);
  std::vector<std::uint16_t> narrow = {7};
  tokenizer->encode("ab", narrow);
  EXPECT_EQ(narrow, (std::vector<std::uint16_t>{7, 'a', 'b'}));
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eos_id(), 256);
  EXPECT_EQ(tokenizer->bos_id(), -1);
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{104, 256, 105}), "hi");
  EXPECT_EQ(tokenizer->text_bytes(104), 1);
  EXPECT_EQ(tokenizer->text_bytes(256), 0);
  // Part of every dataset and checkpoint: may not change.
  EXPECT_EQ(hex(tokenizer->fingerprint()), hex(sha256(R"({"eos_id":256,"type":"byte","vocab_size":257})")));
}

TEST(ByteTokenizer, RefusesForeignIds) {
  EXPECT_THROW(make_tokenizer("byte")->decode(std::vector<std::int32_t>{257}), Error);
  EXPECT_EQ(data_test::message_of(ExitCode::config, [] { make_tokenizer("dir/tokenizer.json"); }),
            "tokenizer \"dir/tokenizer.json\": neither \"byte\" nor the path of a tokenizer's file");
}

// A folder from elsewhere may not bring the machine's own files along.
TEST(TokenizerFiles, LinksStayInsideTheFolder) {
  namespace fs = std::filesystem;
  const data_test::TemporaryFolder outside;
  const fs::path folder = outside / "snapshots/revision";
  fs::create_directories(folder);
  fs::create_directory(outside / "blobs");
  fs::copy_file("tests/golden/tokenizers/smollm.json", outside / "blobs/0123");
  fs::create_symlink("../../blobs/0123", folder / "tokenizer.json");
  std::ofstream(folder / "template") << "{{ messages }}";
  fs::create_symlink("template", folder / "chat_template.jinja");
  const TokenizerBundle taken = open_tokenizer(folder.string());
  ASSERT_EQ(taken.files.size(), 2U);
  EXPECT_EQ(taken.files[1].content, "{{ messages }}");

  std::ofstream(outside / "secret") << "{}";
  const auto problem = [&] {
    return data_test::message_of(ExitCode::storage, [&] { open_tokenizer(folder.string()); });
  };
  for (const char* name : {"chat_template.jinja", "special_tokens_map.json", "generation_config.json", "config.json",
                           "tokenizer_config.json", "tokenizer.json"}) {
    fs::remove(folder / name);
    fs::create_symlink("../../secret", folder / name);
    EXPECT_EQ(problem(), fmt::format("{}: \"{}\" is a link to {}, outside the model's folder", folder.string(), name,
                                     fs::canonical(outside / "secret").string()));
    if (std::string_view(name) != "tokenizer.json") fs::remove(folder / name);
  }
}

TEST(StreamDecoder, HoldsPartsOfCharactersBack) {
  const auto tokenizer = make_tokenizer("byte");
  StreamDecoder decoder(*tokenizer);
  std::vector<std::string> pieces;
  for (const char byte : std::string("a\xE2\x82\xAC\xE2\x82z\xF0\x9F\xFF\xF0\x9F\x98\x80\xC3")) {
    pieces.push_back(decoder.push(static_cast<unsigned char>(byte)));
  }
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "", "", "\u20AC", "", "", "\uFFFDz", "", "", "\uFFFD\uFFFD", "", "",
                                              "", "\U0001F600", ""}));
  EXPECT_EQ(decoder.push(256), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "");
}

}  // namespace
}  // namespace weft
