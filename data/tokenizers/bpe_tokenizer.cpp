#include "data/tokenizers/bpe_tokenizer.h"

#include <algorithm>

#include "autograd/check.h"
#include "data/storage/text.h"
#include "data/storage/utf8.h"
#include "data/tokenizers/byte_alphabet.h"

namespace weft {

namespace {

std::vector<AddedTokenMatcher::Pattern> patterns_of(const BpeDefinition& definition, bool normalized) {
  std::vector<AddedTokenMatcher::Pattern> patterns;
  std::string buffer;
  std::string spare;
  // Special tokens come first, as in `tokenizers`: of equal contents the first counts.
  for (const bool special : {true, false}) {
    for (const AddedToken& token : definition.added) {
      if (token.normalized != normalized || token.special != special) continue;
      std::string content = token.content;
      if (normalized) content = normalize(definition.normalizer, token.content, buffer, spare);
      if (content.size() > AddedTokenMatcher::kMaxContentBytes) {
        storage_error("{}: the added token \"{}\" has {} bytes after the normalizer, at most {} are expected",
                      definition.source, printable(token.content), content.size(), AddedTokenMatcher::kMaxContentBytes);
      }
      if (!content.empty()) patterns.push_back({std::move(content), token});
    }
  }
  return patterns;
}

std::int64_t ids_of(const BpeDefinition& definition) {
  auto size = static_cast<std::int64_t>(definition.tokens.size());
  for (const AddedToken& token : definition.added) size = std::max<std::int64_t>(size, token.id + 1);
  return size;
}

// Byte-level tokens as bytes. One that spells no bytes is out of reach of any text, and decodes as it is written.
std::vector<std::string> tokens_of(const BpeDefinition& definition) {
  std::vector<std::string> tokens = definition.tokens;
  if (!definition.rules.bytes) return tokens;
  for (std::string& token : tokens) {
    if (std::optional<std::string> bytes = spelled_bytes(token)) token = std::move(*bytes);
  }
  return tokens;
}

Sha256::Digest fingerprint_of(const BpeDefinition& definition) {
  Sha256 digest;
  const auto update = [&](std::string_view text) { digest.update(std::as_bytes(std::span(text))); };
  const auto update_number = [&](std::int64_t number) {
    std::array<std::byte, 4> bytes;
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number >> (8 * i) & 0xFF);
    digest.update(bytes);
  };
  update(definition.description);
  update_number(static_cast<std::int64_t>(definition.tokens.size()));
  for (const std::string& token : definition.tokens) {
    update_number(static_cast<std::int64_t>(token.size()));
    update(token);
  }
  for (const Merge& merge : definition.merges) {
    update_number(merge.left);
    update_number(merge.right);
  }
  return digest.finish();
}

}  // namespace

struct BpeTokenizer::Scratch {
  std::string repaired;
  std::string normalized;
  std::string spare;
  std::vector<TokenOrText> raw_parts;
  std::vector<TokenOrText> normalized_parts;
  PreTokenizerScratch pre_tokenizer;
  BpeScratch bpe;
  std::vector<std::int32_t> ids;
};

class BpeTokenizer::Lease {
 public:
  explicit Lease(const BpeTokenizer& tokenizer) : idle_(tokenizer.idle_) {
    for (std::size_t i = 0; i < kIdleScratches && scratch_ == nullptr; ++i) {
      std::atomic<Scratch*>& slot = idle_[(home() + i) % kIdleScratches];
      if (slot.load(std::memory_order_relaxed) != nullptr) {
        scratch_.reset(slot.exchange(nullptr, std::memory_order_acquire));
      }
    }
    if (scratch_ == nullptr) scratch_ = std::make_unique<Scratch>();
  }
  ~Lease() {
    for (std::size_t i = 0; i < kIdleScratches; ++i) {
      Scratch* expected = nullptr;
      std::atomic<Scratch*>& slot = idle_[(home() + i) % kIdleScratches];
      if (slot.compare_exchange_strong(expected, scratch_.get(), std::memory_order_release,
                                       std::memory_order_relaxed)) {
        scratch_.release();
        return;
      }
    }
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Scratch& operator*() const { return *scratch_; }

 private:
  static std::size_t home() {
    static std::atomic<std::size_t> threads = 0;
    thread_local const std::size_t own = threads++;
    return own;
  }

  std::array<std::atomic<Scratch*>, kIdleScratches>& idle_;
  std::unique_ptr<Scratch> scratch_;
};

BpeTokenizer::BpeTokenizer(BpeDefinition definition)
    : vocab_size_(ids_of(definition)),
      added_(definition.added),
      raw_added_(patterns_of(definition, false)),
      normalized_added_(patterns_of(definition, true)),
      normalizer_(definition.normalizer),
      pre_tokenizer_(definition.pre_tokenizer),
      bpe_(tokens_of(definition), definition.merges, definition.rules),
      decoder_(definition.decoder),
      prefix_(definition.prefix),
      suffix_(definition.suffix),
      bos_(definition.bos),
      eos_(definition.eos),
      file_(std::move(definition.file)),
      fingerprint_(fingerprint_of(definition)) {
  for (std::size_t i = 0; i < added_.size(); ++i) added_of_id_.emplace(added_[i].id, i);
}

BpeTokenizer::~BpeTokenizer() {
  for (std::atomic<Scratch*>& slot : idle_) delete slot.load();
}

const AddedToken* BpeTokenizer::added_token(std::int32_t id) const {
  const auto found = added_of_id_.find(id);
  return found == added_of_id_.end() ? nullptr : &added_[found->second];
}

std::int64_t BpeTokenizer::token_id(std::string_view content) const {
  for (const AddedToken& token : added_) {
    if (token.content == content) return token.id;
  }
  if (content.empty() || valid_utf8_prefix(content) != content.size()) return -1;
  if (!bpe_.rules().bytes) return bpe_.find(content);
  const std::optional<std::string> bytes = spelled_bytes(content);
  return bpe_.find(bytes ? *bytes : content);
}

bool BpeTokenizer::is_special(std::int32_t id) const {
  const AddedToken* const added = added_token(id);
  return added != nullptr && added->special;
}

void BpeTokenizer::append_ids(std::string_view text, bool special_tokens, Scratch& scratch,
                              std::vector<std::int32_t>& ids) const {
  if (valid_utf8_prefix(text) != text.size()) {
    scratch.repaired = repair_utf8(text);
    text = scratch.repaired;
  }
  const auto encode_text = [&](std::string_view part, bool at_start) {
    pre_tokenizer_.for_each_piece(part, at_start, scratch.pre_tokenizer,
                                  [&](std::string_view piece) { bpe_.encode(piece, scratch.bpe, ids); });
  };
  scratch.raw_parts.clear();
  raw_added_.split(text, special_tokens, scratch.raw_parts);
  for (const TokenOrText& raw : scratch.raw_parts) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    const std::string_view normalized = normalize(normalizer_, raw.text, scratch.normalized, scratch.spare);
    const bool at_start = raw.text.data() == text.data();
    scratch.normalized_parts.clear();
    normalized_added_.split(normalized, special_tokens, scratch.normalized_parts);
    for (const TokenOrText& part : scratch.normalized_parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_text(part.text, at_start && part.text.data() == normalized.data());
      }
    }
  }
}

void BpeTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  const Lease lease(*this);
  append_ids(text, false, *lease, ids);
}

void BpeTokenizer::encode(std::string_view text, std::vector<std::uint16_t>& ids) const {
  WEFT_CHECK(vocab_size_ <= 65536, "16-bit tokens of a vocabulary of {}", vocab_size_);
  const Lease lease(*this);
  std::vector<std::int32_t>& wide = (*lease).ids;
  wide.clear();
  append_ids(text, false, *lease, wide);
  const std::size_t before = ids.size();
  ids.resize(before + wide.size());
  std::transform(wide.begin(), wide.end(), ids.begin() + static_cast<std::ptrdiff_t>(before),
                 [](std::int32_t id) { return static_cast<std::uint16_t>(id); });
}

std::vector<std::int32_t> BpeTokenizer::encode(std::string_view text, EncodeMode mode) const {
  std::vector<std::int32_t> ids;
  if (mode == EncodeMode::prompt) ids = prefix_;
  const Lease lease(*this);
  append_ids(text, mode != EncodeMode::text, *lease, ids);
  if (mode == EncodeMode::prompt) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

void BpeTokenizer::decode_token(std::int32_t id, bool first, std::string& bytes) const {
  WEFT_CHECK(id >= 0 && id < vocab_size_, "tokenizer: id {} is outside [0, {})", id, vocab_size_);
  if (const AddedToken* const added = added_token(id)) {
    if (added->special) return;
    bytes += decoder_.byte_level ? added->content : decoder_.decode(added->content, first);
  } else if (id < bpe_.vocab_size()) {
    if (decoder_.byte_level) {
      bytes += bpe_.token(id);
    } else {
      bytes += decoder_.decode(bpe_.token(id), first);
    }
  }
}

std::string BpeTokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  std::string run;  // of the bytes of <0xNN> tokens: characters, or, if one of them is none, U+FFFD for each byte
  bool first = true;
  const auto end_run = [&] {
    if (valid_utf8_prefix(run) == run.size()) {
      text += run;
    } else {
      for (std::size_t i = 0; i < run.size(); ++i) text += "\uFFFD";
    }
    run.clear();
  };
  for (const std::int32_t id : ids) {
    std::string bytes;
    decode_token(id, first, bytes);
    if (is_special(id)) continue;
    first = false;
    if (decoder_.byte_fallback && id < bpe_.vocab_size() && TokenDecoder::byte_of(bpe_.token(id))) {
      run += bytes;
    } else {
      end_run();
      text += bytes;
    }
  }
  end_run();
  return decoder_.byte_level ? repair_utf8(text) : text;
}

int BpeTokenizer::text_bytes(std::int32_t id) const {
  if (id < 0 || id >= vocab_size_ || id == bpe_.rules().unknown_id) return 0;
  std::string bytes;
  decode_token(id, false, bytes);
  return static_cast<int>(bytes.size());
}

}  // namespace weft
