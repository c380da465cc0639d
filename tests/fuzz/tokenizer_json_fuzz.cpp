// tokenizer.json: whatever is accepted encodes and decodes some text.
#include "data/tokenizers/stream_decoder.h"
#include "data/tokenizers/tokenizer.h"
#include "tests/fuzz/fuzz_support.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  fuzz::accepts([&] {
    const auto tokenizer = parse_tokenizer_json(std::string(fuzz::text_of(data, size)), "input");
    const std::string text =
        "Hello  world's 123\r\n caf\u0065\u0301 \u4f60\u597d <|endoftext|> <s>x</s>\t\xFF\u2581ab aaaabbbb ";
    for (const EncodeMode mode : {EncodeMode::text, EncodeMode::markup, EncodeMode::prompt}) {
      const auto ids = tokenizer->encode(text, mode);
      for (const std::int32_t id : ids)
        fuzz::expect(id >= 0 && id < tokenizer->vocab_size(), "ids are in the vocabulary");
      fuzz::expect(tokenizer->encode(text, mode) == ids, "the same ids again");
      tokenizer->decode(ids);
      StreamDecoder decoder(*tokenizer);
      for (const std::int32_t id : ids) decoder.push(id);
      decoder.finish();
    }
  });
  return 0;
}
