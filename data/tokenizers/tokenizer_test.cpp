#include "data/tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include "data/dataset_test_support.h"
#include "data/tokenizers/stream_decoder.h"

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
