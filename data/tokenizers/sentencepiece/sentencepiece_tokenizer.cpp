#include "data/tokenizers/sentencepiece/sentencepiece_tokenizer.h"

#include <algorithm>
#include <sentencepiece_processor.h>

#include "autograd/check.h"
#include "data/storage/text.h"
#include "data/storage/utf8.h"

namespace weft {

namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581
// The library takes some 150 bytes a character, so that long texts go through it in parts of about this size. A unigram
// model adds up scores in single precision from the start of a text; parts so long change none that matter.
constexpr std::size_t kBpePart = std::size_t{1} << 14;
constexpr std::size_t kUnigramPart = std::size_t{1} << 20;

using Processor = sentencepiece::SentencePieceProcessor;

std::unique_ptr<Processor> load(const std::string& serialized, const std::string& source) {
  auto processor = std::make_unique<Processor>();
  try {
    const auto status = processor->LoadFromSerializedProto(serialized);
    if (!status.ok()) storage_error("{}: {}", source, printable(status.message()));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    storage_error("{}: {}", source, printable(error.what()));
  }
  return processor;
}

bool is_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

// Where the part of a text that begins at `begin` may end: at a space between letters or digits, or at the end.
std::size_t end_of_part(std::string_view text, std::size_t begin, std::size_t bytes) {
  if (text.size() - begin <= bytes) return text.size();
  for (std::size_t at = begin + bytes; at + 1 < text.size(); ++at) {
    if (text[at] == ' ' && is_alphanumeric(text[at - 1]) && is_alphanumeric(text[at + 1])) return at;
  }
  return text.size();
}

// True if a space stands behind something else in the piece.
bool has_inner_space(std::string_view piece) {
  std::size_t at = 0;
  while (piece.substr(at).starts_with(kSpace)) at += kSpace.size();
  return piece.find(kSpace, at) != piece.npos;
}

std::int64_t boundary(const std::optional<std::int64_t>& given, const SentencePieceModel& model,
                      const std::string& name) {
  if (given) return *given;
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    const SentencePiece& piece = model.pieces[id];
    if (piece.type == PieceType::control && piece.text == name) return static_cast<std::int64_t>(id);
  }
  return -1;
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(std::string file, const std::string& source, const BoundaryIds& ids)
    : file_(std::move(file)),
      model_(parse_sentencepiece_model(file_, source)),
      bos_in_prompts_(ids.bos_in_prompts.value_or(true)) {
  bos_id_ = boundary(ids.bos, model_, model_.bos_piece);
  eos_id_ = boundary(ids.eos, model_, model_.eos_piece);
  for (const std::int64_t id : {bos_id_, eos_id_}) {
    if (id >= vocab_size()) storage_error("{}: id {} is no piece of its {}", source, id, vocab_size());
  }
  ids_.reserve(model_.pieces.size());
  for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
    const SentencePiece& piece = model_.pieces[id];
    ids_.emplace(piece.text, static_cast<std::int32_t>(id));
    if (piece.type == PieceType::control) longest_control_ = std::max(longest_control_, piece.text.size());
  }
  cuts_at_spaces_ = can_cut_at_spaces();
  const std::string serialized = serialize(model_, model_.dummy_prefix);
  fingerprint_ = sha256(fmt::format("sentencepiece bos {} eos {}\n", bos_id_, eos_id_) + serialized);
  processor_ = load(serialized, source);
  if (model_.dummy_prefix) processor_behind_ = load(serialize(model_, false), source);
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

// No piece and no rule reaches over a space between two words, and a part begins as the text does: with a space.
bool SentencePieceTokenizer::can_cut_at_spaces() const {
  if (!model_.escape_spaces || !model_.dummy_prefix || model_.whitespace_as_suffix || model_.charsmap_matches_space) {
    return false;
  }
  bool has_space = model_.byte_fallback;  // otherwise a space could be part of an unknown piece
  for (const SentencePiece& piece : model_.pieces) {
    if (piece.type == PieceType::control || piece.type == PieceType::byte || piece.type == PieceType::unknown) continue;
    if (has_inner_space(piece.text) || piece.text.find(' ') != std::string::npos) return false;
    has_space = has_space || (piece.type == PieceType::normal && piece.text == kSpace);
  }
  return has_space;
}

const SentencePiece& SentencePieceTokenizer::piece(std::int32_t id) const {
  WEFT_CHECK(id >= 0 && id < vocab_size(), "tokenizer.model: id {} is outside [0, {})", id, vocab_size());
  return model_.pieces[static_cast<std::size_t>(id)];
}

std::int64_t SentencePieceTokenizer::token_id(std::string_view content) const {
  const auto found = ids_.find(content);
  return found == ids_.end() ? -1 : found->second;
}

bool SentencePieceTokenizer::is_special(std::int32_t id) const {
  return piece(id).type == PieceType::control;
}

void SentencePieceTokenizer::encode_part(std::string_view text, const Processor& processor,
                                         std::vector<std::int32_t>& ids) const {
  std::vector<int> part;
  const auto status = processor.Encode(text, &part);
  WEFT_CHECK(status.ok(), "sentencepiece: {}", status.message());
  ids.insert(ids.end(), part.begin(), part.end());
}

void SentencePieceTokenizer::encode_valid(std::string_view text, const Processor& processor,
                                          std::vector<std::int32_t>& ids) const {
  const std::size_t part = model_.algorithm == SentencePieceModel::Algorithm::bpe ? kBpePart : kUnigramPart;
  if (!cuts_at_spaces_ || text.size() <= part) return encode_part(text, processor, ids);
  const Processor* first = &processor;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = end_of_part(text, at, part);
    encode_part(text.substr(at, end - at), *first, ids);
    first = processor_.get();  // whose dummy prefix stands for the space
    at = end + 1;
  }
}

void SentencePieceTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (valid_utf8_prefix(text) == text.size()) return encode_valid(text, *processor_, ids);
  encode_valid(repair_utf8(text), *processor_, ids);
}

void SentencePieceTokenizer::encode(std::string_view text, std::vector<std::uint16_t>& ids) const {
  WEFT_CHECK(vocab_size() <= 65536, "16-bit tokens of a vocabulary of {}", vocab_size());
  std::vector<std::int32_t> wide;
  encode(text, wide);
  ids.insert(ids.end(), wide.begin(), wide.end());
}

SentencePieceTokenizer::ControlMatch SentencePieceTokenizer::next_control(std::string_view text,
                                                                          std::size_t from) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    for (std::size_t bytes = std::min(longest_control_, text.size() - at); bytes > 0; --bytes) {
      const auto found = ids_.find(text.substr(at, bytes));
      if (found != ids_.end() && is_special(found->second)) return {at, bytes, found->second};
    }
  }
  return {text.size(), 0, -1};
}

std::vector<std::int32_t> SentencePieceTokenizer::encode(std::string_view text, EncodeMode mode) const {
  std::vector<std::int32_t> ids;
  if (mode == EncodeMode::prompt && bos_in_prompts_ && bos_id_ >= 0) ids.push_back(static_cast<std::int32_t>(bos_id_));
  if (mode == EncodeMode::text) {
    encode(text, ids);
    return ids;
  }
  const std::string valid = repair_utf8(text);
  const std::string_view view = valid;
  for (std::size_t at = 0; at < view.size();) {
    const ControlMatch control = next_control(view, at);
    const Processor& processor = at > 0 && processor_behind_ ? *processor_behind_ : *processor_;
    if (control.at > at) encode_valid(view.substr(at, control.at - at), processor, ids);
    if (control.id >= 0) ids.push_back(control.id);
    at = control.at + control.bytes;
  }
  return ids;
}

void SentencePieceTokenizer::decode_token(std::int32_t id, bool first, std::string& bytes) const {
  const SentencePiece& p = piece(id);
  switch (p.type) {
    case PieceType::control:
      return;
    case PieceType::unknown:
      bytes += model_.unknown_surface;
      return;
    case PieceType::byte:
      bytes += static_cast<char>(std::stoi(p.text.substr(3, 2), nullptr, 16));
      return;
    case PieceType::normal:
    case PieceType::user_defined:
    case PieceType::unused:
      break;
  }
  std::string_view rest = p.text;
  const bool drops_space = first && (model_.dummy_prefix || model_.remove_extra_spaces);
  if (drops_space && rest.starts_with(kSpace)) rest.remove_prefix(kSpace.size());
  for (std::size_t space; (space = rest.find(kSpace)) != rest.npos; rest.remove_prefix(space + kSpace.size())) {
    bytes += rest.substr(0, space);
    bytes += ' ';
  }
  bytes += rest;
}

std::string SentencePieceTokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  bool dropped = false;  // the one space that a dummy prefix is
  for (const std::int32_t id : ids) {
    const bool first = text.empty() && (!dropped || model_.remove_extra_spaces);
    decode_token(id, first, text);
    dropped = dropped || (first && piece(id).text.starts_with(kSpace));
  }
  return repair_utf8(text);
}

int SentencePieceTokenizer::text_bytes(std::int32_t id) const {
  const SentencePiece& p = piece(id);
  if (p.type == PieceType::control || p.type == PieceType::unknown) return 0;
  if (p.type == PieceType::byte) return 1;
  std::string text;
  decode_token(id, false, text);
  return static_cast<int>(text.size());
}

std::unique_ptr<Tokenizer> parse_tokenizer_model(std::string file, const std::string& source, const BoundaryIds& ids) {
  return std::make_unique<SentencePieceTokenizer>(std::move(file), source, ids);
}

}  // namespace weft
