#include "data/tokenizers/sentencepiece/tokenizer_json_of.h"

#include <algorithm>
#include <fmt/format.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "data/storage/text.h"
#include "data/tokenizers/tokenizer_json_file.h"

namespace weft {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kMark = "\xE2\x96\x81";  // U+2581, what spaces become
// `\A` and `\z` in the language that all readers share.
constexpr std::string_view kAtStart = R"((?<!.|\n))";
constexpr std::string_view kAtEnd = R"((?!.|\n))";

struct Obstacle {
  std::string text;
};
template <class... Args>
[[noreturn]] void stop(fmt::format_string<Args...> format, Args&&... args) {
  throw Obstacle{fmt::format(format, std::forward<Args>(args)...)};
}

bool is_character_start(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
}

std::size_t first_character(std::string_view text) {
  std::size_t end = 1;
  while (end < text.size() && !is_character_start(text[end])) ++end;
  return end;
}

std::string escaped(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view(R"(\.^$|()[]{}*+?)").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

// "a|b|c", longest first as the search for added tokens has it.
std::string any_of(std::vector<std::string> texts) {
  std::ranges::stable_sort(texts, std::ranges::greater{}, &std::string::size);
  std::string pattern;
  for (const std::string& text : texts) pattern += (pattern.empty() ? "" : "|") + escaped(text);
  return pattern;
}

Json replace(std::string_view key, std::string_view pattern, std::string_view content) {
  return {{"type", "Replace"}, {"pattern", {{key, pattern}}}, {"content", content}};
}
Json replace_literal(std::string_view pattern, std::string_view content) {
  return replace("String", pattern, content);
}
Json remove(std::string_view regex) {
  return replace("Regex", regex, "");
}

class Converter {
 public:
  Converter(const SentencePieceModel& model, const TokenizerJsonChoices& choices) : model_(model), choices_(choices) {}

  std::string run() {
    if (!model_.charsmap.empty()) {
      stop("it has rules of normalisation, which `tokenizers` applies to other characters than sentencepiece does");
    }
    if (!model_.escape_spaces) stop("spaces stay spaces in it");
    if (model_.whitespace_as_suffix) stop("spaces are at the ends of its pieces");
    sort_pieces();
    check_contents();
    const bool is_bpe = model_.algorithm == SentencePieceModel::Algorithm::bpe;
    return tokenizer_json({.added = added(is_bpe),
                           .normalizer = normalizer(is_bpe).dump(),
                           .pre_tokenizer = is_bpe ? "null" : unigram_cuts(),
                           .post_processor = post_processor(),
                           .decoder = decoder().dump(),
                           .model = is_bpe ? bpe() : unigram()});
  }

 private:
  const SentencePiece& unknown() const { return model_.pieces[unknown_id_]; }

  void sort_pieces() {
    for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
      const SentencePiece& piece = model_.pieces[id];
      switch (piece.type) {
        case PieceType::unused:
          stop("its piece {} is of type unused", id);
        case PieceType::unknown:
          unknown_id_ = id;
          if (choices_.unknown_is_special) special_.push_back(piece.text);
          break;
        case PieceType::control:
          special_.push_back(piece.text);
          break;
        case PieceType::user_defined:
          user_defined_.push_back(piece.text);
          frozen_.insert(piece.text);
          break;
        case PieceType::normal:
          normal_.emplace(piece.text, piece.score);
          break;
        case PieceType::byte:
          break;
      }
    }
  }

  // The normalizer goes over added tokens, too, and must leave them as they are.
  void check_contents() const {
    for (const std::vector<std::string>& contents : {special_, user_defined_}) {
      for (const std::string& content : contents) {
        const bool marked = content.find(kMark) != std::string::npos;
        if (content.find(' ') == std::string::npos &&
            !(marked && (model_.remove_extra_spaces || &contents == &special_)))
          continue;
        stop("its piece \"{}\" has spaces in it", printable(content));
      }
    }
    for (const std::string& a : special_) {
      for (const std::string& b : user_defined_) {
        if (a.find(b) == std::string::npos && b.find(a) == std::string::npos) continue;
        stop("its piece \"{}\" is part of its piece \"{}\"", printable(a.size() < b.size() ? a : b),
             printable(a.size() < b.size() ? b : a));
      }
    }
  }

  // Special pieces wherever they are; user-defined ones of BPE, which are never joined with what is beside them. Those
  // of unigram compete with other pieces.
  std::vector<AddedEntry> added(bool is_bpe) const {
    std::vector<AddedEntry> entries;
    for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
      const SentencePiece& piece = model_.pieces[id];
      const bool special =
          piece.type == PieceType::control || (piece.type == PieceType::unknown && choices_.unknown_is_special);
      if (!special && !(is_bpe && piece.type == PieceType::user_defined)) continue;
      entries.push_back(
          {.id = static_cast<std::int64_t>(id), .content = piece.text, .special = special, .normalized = true});
    }
    return entries;
  }

  // Added tokens are found in normalised text, since a normalizer of the texts between them would not know which of
  // them comes first: only that one gets a dummy prefix.
  Json normalizer(bool is_bpe) const {
    Json steps = Json::array();
    const std::string special = any_of(special_);
    if (model_.remove_extra_spaces) {
      steps.push_back(remove(fmt::format("{} +", kAtStart)));
      if (!special.empty()) steps.push_back(remove(fmt::format("(?<={}) +", special)));
      steps.push_back(remove("(?<= ) +"));
    }
    if (model_.dummy_prefix) {
      steps.push_back({{"type", "Prepend"}, {"prepend", kMark}});
      // Not before a special piece; and the user-defined pieces themselves shall not be changed.
      std::string without = special;
      if (is_bpe && !user_defined_.empty()) {
        without += fmt::format("{}(?:{}){}", without.empty() ? "" : "|", any_of(user_defined_), kAtEnd);
      }
      if (!without.empty()) steps.push_back(remove(fmt::format("{}{}(?={})", kAtStart, kMark, without)));
    }
    steps.push_back(replace_literal(" ", kMark));
    if (model_.remove_extra_spaces) {
      const std::string here = special.empty() ? "" : fmt::format("|(?={})", special);
      steps.push_back(remove(fmt::format("(?<!{0})(?>{0}+)(?:{1}{2})", kMark, kAtEnd, here)));
    }
    return {{"type", "Sequence"}, {"normalizers", steps}};
  }

  std::string post_processor() const {
    if (choices_.begin < 0) return "null";
    const VocabularyToken begin{choices_.begin, model_.pieces.at(static_cast<std::size_t>(choices_.begin)).text};
    return begin_with({&begin, 1});
  }

  Json decoder() const {
    Json steps = Json::array();
    if (!choices_.unknown_is_special) {
      for (const SentencePiece& piece : model_.pieces) {
        if (piece.type != PieceType::unknown && piece.text.find(unknown().text) != std::string::npos) {
          stop("its piece \"{}\" has the unknown piece in it", printable(piece.text));
        }
      }
      steps.push_back(replace_literal(unknown().text, model_.unknown_surface));
    }
    steps.push_back(replace_literal(kMark, " "));
    if (model_.byte_fallback) steps.push_back({{"type", "ByteFallback"}});
    steps.push_back({{"type", "Fuse"}});
    if (model_.dummy_prefix || model_.remove_extra_spaces) {
      steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    return {{"type", "Sequence"}, {"decoders", steps}};
  }

  // sentencepiece joins the two neighbours that make the piece of the highest score, so that a piece is as many merges
  // as there are ways to cut it into pieces.
  std::string bpe() const {
    BpeModelPart part{
        .unknown = unknown().text, .fuse_unknown = !model_.byte_fallback, .byte_fallback = model_.byte_fallback};
    if (unknown().text.size() == first_character(unknown().text)) stop("its unknown piece is a single character");
    // Pieces may be long; looking for all their cuts takes the square of that.
    constexpr std::size_t kMostWork = std::size_t{1} << 31;
    std::size_t work = 0;
    std::vector<const SentencePiece*> ranked;
    for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
      const SentencePiece& piece = model_.pieces[id];
      part.tokens.push_back({static_cast<std::int64_t>(id), piece.text});
      work += piece.text.size() * piece.text.size();
      if (piece.type == PieceType::normal && piece.text.find(' ') == std::string::npos) ranked.push_back(&piece);
    }
    if (work > kMostWork) stop("its pieces are too long");
    std::ranges::stable_sort(ranked, std::ranges::greater{}, &SentencePiece::score);
    const SentencePiece* previous = nullptr;
    for (const SentencePiece* piece : ranked) {
      const std::size_t before = part.merges.size();
      append_merges(piece->text, part.merges);
      if (part.merges.size() == before) continue;
      if (previous != nullptr && previous->score == piece->score) {
        stop("its pieces \"{}\" and \"{}\" have the same score", printable(previous->text), printable(piece->text));
      }
      previous = piece;
    }
    return json_of(part);
  }

  // The shortest left part first. Where two cuts of a piece overlap in a text, sentencepiece takes the one further
  // left.
  void append_merges(std::string_view text, std::vector<std::string>& merges) const {
    const std::size_t first = first_character(text);
    for (std::size_t at = first; at < text.size(); ++at) {
      if (!is_character_start(text[at])) continue;
      const std::string_view left = text.substr(0, at), right = text.substr(at);
      const bool has_left = is_symbol(left), has_right = is_symbol(right);
      if (has_left && has_right) {
        merges.push_back(fmt::format("{} {}", left, right));
      } else if ((has_left || left.size() == first) && (has_right || right.size() == first_character(right))) {
        // A character that is no piece is joined with others all the same.
        const std::string_view lacking = has_left ? right : left;
        if (frozen_.contains(lacking)) continue;
        stop("a character of its piece \"{}\" is no piece: \"{}\"", printable(text), printable(lacking));
      }
    }
  }

  bool is_symbol(std::string_view text) const { return normal_.contains(text); }

  // `tokenizers` would find pieces of every type in a text. Those that are spelled there are cut, where no piece
  // reaches over the cut.
  std::string unigram_cuts() const {
    std::set<std::string, std::less<>> pairs;  // of neighbours in any piece
    for (const SentencePiece& piece : model_.pieces) {
      if (piece.type != PieceType::normal && piece.type != PieceType::user_defined) continue;
      for (std::size_t at = 0; at + 1 < piece.text.size(); ++at) pairs.insert(piece.text.substr(at, 2));
    }
    const auto cut = [&](std::string_view text) -> std::size_t {
      for (std::size_t at = 1; at < text.size(); ++at) {
        if (is_character_start(text[at]) && !pairs.contains(text.substr(at - 1, 2))) return at;
      }
      return 0;
    };
    std::vector<std::string> patterns;
    const auto append = [&](const std::string& text, std::string_view rest_pattern, std::size_t at) {
      const std::size_t begin = [&] {
        std::size_t i = at - 1;
        while (!is_character_start(text[i])) --i;
        return i;
      }();
      const std::string before = text.substr(0, begin);
      patterns.push_back(fmt::format("{}{}(?={})", before.empty() ? "" : fmt::format("(?<={})", escaped(before)),
                                     escaped(text.substr(begin, at - begin)), rest_pattern));
    };
    for (const SentencePiece& piece : model_.pieces) {
      if (piece.type != PieceType::unknown && piece.type != PieceType::control) continue;
      const std::size_t at = cut(piece.text);
      if (at > 0) {
        append(piece.text, escaped(piece.text.substr(at)), at);
      } else if (piece.type == PieceType::unknown && !choices_.unknown_is_special) {
        stop("its pieces reach over every place of \"{}\"", printable(piece.text));
      }
    }
    if (model_.byte_fallback) {
      const std::string begin = "<0x";
      const std::size_t at = cut(begin);
      if (at == 0) stop("its pieces reach over every place of \"<0x\"");
      append(begin, begin.substr(at) + "[0-9A-F][0-9A-F]>", at);
    }
    std::string pattern;
    for (const std::string& one : patterns) pattern += (pattern.empty() ? "" : "|") + one;
    if (pattern.empty()) return "null";
    return Json({{"type", "Split"},
                 {"pattern", {{"Regex", pattern}}},
                 {"behavior", "MergedWithPrevious"},
                 {"invert", false}})
        .dump();
  }

  // With the scores that sentencepiece reckons with.
  std::string unigram() const {
    UnigramModelPart part{.unknown_id = static_cast<std::int64_t>(unknown_id_), .byte_fallback = model_.byte_fallback};
    double least = std::numeric_limits<double>::max(), most = std::numeric_limits<float>::min();
    for (const auto& [text, score] : normal_) {
      least = std::min<double>(least, score);
      most = std::max<double>(most, score);
    }
    if (normal_.empty() || least > 0) stop("its scores are not below zero");
    for (const SentencePiece& piece : model_.pieces) {
      double score = least;  // so that the unknown piece has the score that it has in sentencepiece
      if (piece.type == PieceType::normal) score = piece.score;
      if (piece.type == PieceType::user_defined) score = static_cast<double>(piece.text.size()) * most - 0.1;
      if (score < least) stop("its piece \"{}\" has a score below those of all others", printable(piece.text));
      part.pieces.push_back({piece.text, score});
    }
    return json_of(part);
  }

  const SentencePieceModel& model_;
  const TokenizerJsonChoices& choices_;
  std::size_t unknown_id_ = 0;
  std::vector<std::string> special_, user_defined_;
  std::unordered_set<std::string_view> frozen_;  // those of user_defined_
  std::unordered_map<std::string_view, float> normal_;
};

}  // namespace

TokenizerJsonChoices tokenizer_json_choices(const Tokenizer& tokenizer, const nlohmann::json& tokenizer_config) {
  const std::vector<std::int32_t> prompt = tokenizer.encode("", EncodeMode::prompt);
  const bool named = tokenizer_config.is_object() && tokenizer_config.contains("unk_token") &&
                     !tokenizer_config.at("unk_token").is_null();
  return {.begin = prompt.empty() ? -1 : prompt.front(), .unknown_is_special = named};
}

SentencePieceJson tokenizer_json_of(const SentencePieceModel& model, const TokenizerJsonChoices& choices) {
  try {
    return {.text = Converter(model, choices).run(), .obstacle = {}};
  } catch (const Obstacle& obstacle) {
    return {.text = {}, .obstacle = obstacle.text};
  }
}

}  // namespace weft
