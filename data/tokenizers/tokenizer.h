// From text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/storage/sha256.h"

namespace weft {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // As shown to people and stored in manifests, e.g. "byte".
  virtual std::string name() const = 0;
  // Ids are 0 .. vocab_size - 1.
  virtual std::int64_t vocab_size() const = 0;
  // -1 if the vocabulary has none.
  virtual std::int64_t bos_id() const = 0;
  virtual std::int64_t eos_id() const = 0;

  // Appends the ids of `text`, without BOS and EOS. Text that looks like a special token is ordinary text.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& ids) const = 0;
  // The same for vocabularies of at most 65,536 ids, whose datasets store 16-bit tokens.
  virtual void encode(std::string_view text, std::vector<std::uint16_t>& ids) const = 0;
  std::vector<std::int32_t> encode(std::string_view text) const;

  // The bytes of the ids in order; special ids give nothing. The result need not be valid UTF-8.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;
  // Bytes of text that one id stands for, 0 for special ids: what bits per byte divides by.
  virtual int text_bytes(std::int32_t id) const = 0;

  // SHA-256 of a canonical description of everything that decides the ids.
  virtual Sha256::Digest fingerprint() const = 0;
};

// `name` is "byte". A path is for tokenizer files, which this build cannot read: error (config).
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace weft
