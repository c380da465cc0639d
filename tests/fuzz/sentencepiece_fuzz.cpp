// A tokenizer.model: checking it, and what the sentencepiece library makes of those that pass.
#include "data/tokenizers/sentencepiece/sentencepiece_tokenizer.h"
#include "tests/fuzz/fuzz_support.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  fuzz::accepts([&] {
    const SentencePieceTokenizer tokenizer(std::string(fuzz::text_of(data, size)), "fuzz", {});
    // The file's own bytes hold pieces of the vocabulary.
    for (const std::string_view text : {std::string_view("  ab \xEF\xBC\xA1 <s> e\xCC\x81 \xE6\xB0\xB4"),
                                        fuzz::text_of(data, size < 4096 ? size : 4096)}) {
      const std::vector<std::int32_t> ids = tokenizer.encode(text);
      for (const std::int32_t id : ids) fuzz::expect(id >= 0 && id < tokenizer.vocab_size(), "ids are pieces");
      tokenizer.decode(ids);
      tokenizer.encode(text, EncodeMode::prompt);
    }
  });
  return 0;
}
