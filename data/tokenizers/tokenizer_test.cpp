#include "data/tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include "data/dataset_test_support.h"

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
            "tokenizer \"dir/tokenizer.json\": this build has the tokenizer \"byte\" and cannot read tokenizer files");
}

}  // namespace
}  // namespace weft
