#include "data/tokenizers/tokenizer.h"

#include "autograd/check.h"
#include "data/tokenizers/byte_tokenizer.h"

namespace weft {

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  encode(text, ids);
  return ids;
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  if (name == "byte") return std::make_unique<ByteTokenizer>();
  config_error("tokenizer \"{}\": this build has the tokenizer \"byte\" and cannot read tokenizer files", name);
}

}  // namespace weft
