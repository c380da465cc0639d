// From text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/storage/sha256.h"

namespace weft {

// How text that is no plain corpus is encoded.
enum class EncodeMode {
  text,    // what spells a special token is ordinary text: corpora, anything untrusted
  markup,  // special tokens are recognised: chat templates that are already rendered
  prompt,  // as markup, framed by the tokenizer's own template (BOS, EOS): what transformers makes of a prompt
};

// Ids of the tokens that begin and end a document; -1 is none. What is not given is found by the rule of
// make_tokenizer.
struct BoundaryIds {
  std::optional<std::int64_t> bos = {};
  std::optional<std::int64_t> eos = {};
  // tokenizer.model only, whose file has no template: whether a prompt begins with BOS; not given: it does.
  std::optional<bool> bos_in_prompts = {};
};

// Const and without locks: any number of threads may use one object at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // "byte", or the name of the file that it is read from and that file() is to be stored under: "tokenizer.json",
  // "tokenizer.model". As shown to people and stored in manifests; which tokenizer it is, the fingerprint says.
  virtual std::string name() const = 0;
  // The bytes of that file, unchanged; empty if it needs none.
  virtual std::string_view file() const { return {}; }
  // Ids are 0 .. vocab_size - 1; not each of them need have a token.
  virtual std::int64_t vocab_size() const = 0;
  // -1 if the vocabulary has none.
  virtual std::int64_t bos_id() const = 0;
  virtual std::int64_t eos_id() const = 0;
  // The id of the token of this content (special or not, as the vocabulary spells it), -1 if there is none.
  virtual std::int64_t token_id(std::string_view content) const = 0;
  // Control tokens, which stand for no text.
  virtual bool is_special(std::int32_t id) const = 0;

  // Appends the ids of `text` in EncodeMode::text, without BOS and EOS. Invalid UTF-8 is encoded as U+FFFD, except by
  // the byte tokenizer.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& ids) const = 0;
  // The same for vocabularies of at most 65,536 ids, whose datasets store 16-bit tokens.
  virtual void encode(std::string_view text, std::vector<std::uint16_t>& ids) const = 0;
  virtual std::vector<std::int32_t> encode(std::string_view text, EncodeMode mode) const = 0;
  std::vector<std::int32_t> encode(std::string_view text) const { return encode(text, EncodeMode::text); }

  // The text of the ids in order; special ids give nothing. The byte tokenizer gives the bytes as they are, the others
  // valid UTF-8 with U+FFFD for what is none. An id outside the vocabulary is an error.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;
  // Appends the bytes of one id, which may be part of a character; nothing for special ids. `first`: no other
  // than special ids come before it (some vocabularies drop a space there). For output as it is made, see
  // stream_decoder.h.
  virtual void decode_token(std::int32_t id, bool first, std::string& bytes) const = 0;
  // Bytes of text that one id stands for, 0 for special and unknown ids: what bits per byte divides by.
  virtual int text_bytes(std::int32_t id) const = 0;

  // SHA-256 of a canonical description of everything that decides the ids of documents.
  virtual Sha256::Digest fingerprint() const = 0;
};

// `name` is "byte", or the path of a tokenizer.json or tokenizer.model, or of a folder that holds one (tokenizer.json
// is preferred, unless it is what weft writes of the tokenizer.model beside it; a folder with both is refused if they
// differ on a thousand lines, see probe.h). BOS and EOS, unless
// `ids` gives them, are
//   1. bos_token and eos_token of tokenizer_config.json, or else of special_tokens_map.json, beside the file;
//   2. else bos_token_id and eos_token_id (the first of several) of generation_config.json, or else of config.json;
//   3. else those that the file itself states (tokenizer.model), or the first of its special tokens named
//      <|endoftext|>, </s>, <|end_of_text|>, <|im_end|>, <eos> (EOS), and <s>, <|begin_of_text|>, <bos> (BOS);
//   4. else -1.
// Prompts of a tokenizer.model begin with BOS unless add_bos_token of tokenizer_config.json is false.
// Error (config) for a path that is no such thing, Error (storage) for files that cannot be read or understood.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name, const BoundaryIds& ids = {});

// The tokenizer of a tokenizer.json's text, with rules 3 and 4 of make_tokenizer. `source` is how errors call the file.
// What the file asks for and weft does not do is an Error (storage) that names it; data/tokenizers/README.md has the
// list.
std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string text, const std::string& source,
                                                const BoundaryIds& ids = {});

// add_bos_token of a tokenizer_config.json's object. Error (storage) that names `source` if it is neither true nor
// false.
std::optional<bool> bos_in_prompts(const nlohmann::json& tokenizer_config, const std::string& source);

// The same for a tokenizer.model's bytes.
std::unique_ptr<Tokenizer> parse_tokenizer_model(std::string file, const std::string& source,
                                                 const BoundaryIds& ids = {});

}  // namespace weft
