// Strict JSON, which config.json, tokenizer.json and the like are read with.
#include <nlohmann/json.hpp>

#include "data/storage/json.h"
#include "tests/fuzz/fuzz_support.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  fuzz::accepts([&] {
    const std::string text = canonical(parse_strict(fuzz::text_of(data, size), "input"));
    fuzz::expect(canonical(parse_strict(text, "canonical")) == text, "canonical text is its own canonical text");
  });
  return 0;
}
