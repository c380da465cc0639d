#include "data/tokenizers/sentencepiece/model_file.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <unordered_map>

#include "autograd/check.h"
#include "data/storage/text.h"
#include "data/storage/utf8.h"
#include "data/tokenizers/sentencepiece/protobuf_reader.h"

namespace weft {

namespace {

// The library looks for every piece at every place of a text.
constexpr std::size_t kMaxPieceBytes = 1024;
// Field numbers of sentencepiece's ModelProto, TrainerSpec, NormalizerSpec and SentencePiece.
enum ModelField : std::uint32_t { kPieces = 1, kTrainer = 2, kNormalizer = 3, kDenormalizer = 5 };
enum PieceField : std::uint32_t { kText = 1, kScore = 2, kType = 3 };
enum TrainerField : std::uint32_t {
  kAlgorithm = 3,
  kWhitespaceAsSuffix = 24,
  kByteFallback = 35,
  kUnknownId = 40,
  kBosId = 41,
  kEosId = 42,
  kPadId = 43,
  kUnknownSurface = 44,
  kUnknownPiece = 45,
  kBosPiece = 46,
  kEosPiece = 47,
  kPadPiece = 48
};
enum NormalizerField : std::uint32_t { kCharsmap = 2, kDummyPrefix = 3, kRemoveExtraSpaces = 4, kEscapeSpaces = 5 };

// Of valid UTF-8 that is not empty.
bool is_one_character(std::string_view text) {
  return std::ranges::all_of(text.substr(1), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; });
}

class ModelParser {
 public:
  explicit ModelParser(const std::string& source) : source_(source) {}

  SentencePieceModel parse(std::string_view file) {
    ProtobufReader reader(file, 0, source_);
    for (ProtobufField field; reader.next(field);) {
      switch (field.number) {
        case kPieces:
          if (model_.pieces.size() == kMaxSentencePieces)
            storage_error("{}: more than {} pieces", source_, kMaxSentencePieces);
          parse_piece(reader.message(field, "pieces"));
          break;
        case kTrainer:
          parse_trainer(reader.message(field, "trainer_spec"));
          break;
        case kNormalizer:
          parse_normalizer(reader.message(field, "normalizer_spec"));
          break;
        case kDenormalizer:
          parse_denormalizer(reader.message(field, "denormalizer_spec"));
          break;
        default:
          break;
      }
    }
    check_pieces();
    if (!model_.charsmap.empty()) model_.charsmap_matches_space = check_charsmap(model_.charsmap, source_);
    return std::move(model_);
  }

 private:
  void parse_piece(ProtobufReader reader) {
    SentencePiece piece;
    const std::size_t id = model_.pieces.size();
    for (ProtobufField field; reader.next(field);) {
      if (field.number == kText) piece.text = reader.bytes(field, "piece");
      if (field.number == kScore) piece.score = reader.real(field, "score");
      if (field.number == kType) {
        const std::uint64_t type = reader.varint(field, "type");
        if (type < 1 || type > 6) storage_error("{}: piece {} has the unknown type {}", source_, id, type);
        piece.type = static_cast<PieceType>(type);
      }
    }
    if (piece.text.empty()) storage_error("{}: piece {} is empty", source_, id);
    if (piece.text.size() > kMaxPieceBytes) {
      storage_error("{}: piece {} has {} bytes, at most {} are read", source_, id, piece.text.size(), kMaxPieceBytes);
    }
    if (valid_utf8_prefix(piece.text) != piece.text.size() || piece.text.find('\0') != std::string::npos) {
      storage_error("{}: piece {} (\"{}\") is no text in UTF-8", source_, id, printable(piece.text));
    }
    if (!std::isfinite(piece.score)) storage_error("{}: piece {} has the score {}", source_, id, piece.score);
    model_.pieces.push_back(std::move(piece));
  }

  void parse_trainer(ProtobufReader reader) {
    for (ProtobufField field; reader.next(field);) {
      switch (field.number) {
        case kAlgorithm:
          parse_algorithm(reader.varint(field, "model_type"));
          break;
        case kWhitespaceAsSuffix:
          model_.whitespace_as_suffix = reader.boolean(field, "treat_whitespace_as_suffix");
          break;
        case kByteFallback:
          model_.byte_fallback = reader.boolean(field, "byte_fallback");
          break;
        case kUnknownSurface:
          model_.unknown_surface = text(reader, field, "unk_surface");
          break;
        case kUnknownPiece:
          model_.unknown_piece = text(reader, field, "unk_piece");
          break;
        case kBosPiece:
          model_.bos_piece = text(reader, field, "bos_piece");
          break;
        case kEosPiece:
          model_.eos_piece = text(reader, field, "eos_piece");
          break;
        case kPadPiece:
          model_.pad_piece = text(reader, field, "pad_piece");
          break;
        default:
          break;
      }
    }
  }

  void parse_algorithm(std::uint64_t type) {
    if (type == 3 || type == 4) {
      storage_error("{}: a model of {}; weft reads unigram and BPE models", source_,
                    type == 3 ? "words" : "characters");
    }
    if (type < 1 || type > 4) storage_error("{}: the unknown model_type {}", source_, type);
    model_.algorithm = static_cast<SentencePieceModel::Algorithm>(type);
  }

  void parse_normalizer(ProtobufReader reader) {
    for (ProtobufField field; reader.next(field);) {
      if (field.number == kCharsmap) model_.charsmap = reader.bytes(field, "precompiled_charsmap");
      if (field.number == kDummyPrefix) model_.dummy_prefix = reader.boolean(field, "add_dummy_prefix");
      if (field.number == kRemoveExtraSpaces) {
        model_.remove_extra_spaces = reader.boolean(field, "remove_extra_whitespaces");
      }
      if (field.number == kEscapeSpaces) model_.escape_spaces = reader.boolean(field, "escape_whitespaces");
    }
  }

  void parse_denormalizer(ProtobufReader reader) const {
    for (ProtobufField field; reader.next(field);) {
      if (field.number == kCharsmap && !reader.bytes(field, "precompiled_charsmap").empty()) {
        storage_error("{}: it has rules of denormalisation, which weft does not apply", source_);
      }
    }
  }

  std::string text(const ProtobufReader& reader, const ProtobufField& field, std::string_view key) const {
    const std::string_view bytes = reader.bytes(field, key);
    if (bytes.size() > kMaxPieceBytes || valid_utf8_prefix(bytes) != bytes.size() || bytes.find('\0') != bytes.npos) {
      storage_error("{}: {} (\"{}\") is no text in UTF-8", source_, key, printable(bytes));
    }
    return std::string(bytes);
  }

  void check_pieces() const {
    if (model_.pieces.empty()) storage_error("{}: not a sentencepiece model: it has no pieces", source_);
    std::unordered_map<std::string_view, std::size_t> ids;
    ids.reserve(model_.pieces.size());
    std::size_t unknown = 0;
    std::size_t bytes = 0;
    std::size_t found = 0;  // by encoding
    for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
      const SentencePiece& piece = model_.pieces[id];
      const auto [same, is_new] = ids.emplace(piece.text, id);
      if (!is_new) {
        storage_error("{}: pieces {} and {} are both \"{}\"", source_, same->second, id, printable(piece.text));
      }
      if (piece.type == PieceType::unknown) ++unknown;
      if (piece.type == PieceType::normal || piece.type == PieceType::user_defined) ++found;
      if (piece.type == PieceType::byte) {
        check_byte(piece, id);
        ++bytes;
      }
      if (piece.type == PieceType::control && model_.algorithm == SentencePieceModel::Algorithm::bpe &&
          is_one_character(piece.text)) {
        storage_error("{}: piece {} (\"{}\") is of type control, but the library finds single characters in texts",
                      source_, id, printable(piece.text));
      }
    }
    if (unknown != 1) storage_error("{}: {} pieces of type unknown, expected one", source_, unknown);
    if (found == 0) storage_error("{}: it has no piece of text", source_);
    if (model_.byte_fallback && bytes != 256) {
      storage_error("{}: it falls back to bytes, but has {} byte pieces, not 256", source_, bytes);
    }
    if (!model_.byte_fallback && bytes > 0) {
      storage_error("{}: it has {} byte pieces, but does not fall back to bytes", source_, bytes);
    }
  }

  void check_byte(const SentencePiece& piece, std::size_t id) const {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    const std::string& t = piece.text;
    const bool right = t.size() == 6 && t.starts_with("<0x") && t.back() == '>' && kDigits.find(t[3]) != kDigits.npos &&
                       kDigits.find(t[4]) != kDigits.npos;
    if (!right) storage_error("{}: piece {} (\"{}\") is of type byte, but not <0xNN>", source_, id, printable(t));
  }

  const std::string& source_;
  SentencePieceModel model_;
};

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view file, const std::string& source) {
  return ModelParser(source).parse(file);
}

std::string serialize(const SentencePieceModel& model, bool dummy_prefix) {
  std::string bytes;
  std::string inner;
  for (const SentencePiece& piece : model.pieces) {
    inner.clear();
    append_bytes(kText, piece.text, inner);
    append_real(kScore, piece.score, inner);
    append_varint(kType, static_cast<std::uint64_t>(piece.type), inner);
    append_bytes(kPieces, inner, bytes);
  }
  inner.clear();
  append_varint(kAlgorithm, static_cast<std::uint64_t>(model.algorithm), inner);
  append_varint(kWhitespaceAsSuffix, model.whitespace_as_suffix ? 1 : 0, inner);
  append_varint(kByteFallback, model.byte_fallback ? 1 : 0, inner);
  append_bytes(kUnknownSurface, model.unknown_surface, inner);
  append_bytes(kUnknownPiece, model.unknown_piece, inner);
  append_bytes(kBosPiece, model.bos_piece, inner);
  append_bytes(kEosPiece, model.eos_piece, inner);
  append_bytes(kPadPiece, model.pad_piece, inner);
  append_bytes(kTrainer, inner, bytes);
  inner.clear();
  append_bytes(kCharsmap, model.charsmap, inner);
  append_varint(kDummyPrefix, dummy_prefix ? 1 : 0, inner);
  append_varint(kRemoveExtraSpaces, model.remove_extra_spaces ? 1 : 0, inner);
  append_varint(kEscapeSpaces, model.escape_spaces ? 1 : 0, inner);
  append_bytes(kNormalizer, inner, bytes);
  return bytes;
}

std::string serialize_with_ids(const SentencePieceModel& model, const SentencePieceIds& ids) {
  std::string trainer;
  // Negative numbers are written as 64 bits of two's complement.
  append_varint(kUnknownId, static_cast<std::uint64_t>(ids.unknown), trainer);
  append_varint(kBosId, static_cast<std::uint64_t>(ids.bos), trainer);
  append_varint(kEosId, static_cast<std::uint64_t>(ids.eos), trainer);
  append_varint(kPadId, static_cast<std::uint64_t>(ids.pad), trainer);
  std::string bytes = serialize(model, model.dummy_prefix);
  append_bytes(kTrainer, trainer, bytes);  // messages of one field are one message
  return bytes;
}

}  // namespace weft
