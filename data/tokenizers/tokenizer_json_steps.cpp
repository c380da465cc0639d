#include "data/tokenizers/tokenizer_json_steps.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {

namespace {

using nlohmann::json;

// Calls `use` for every part of a sequence, however deep (the JSON reader bounds how deep).
template <class Use>
void for_each_step(const json& part, const char* list, const JsonPlace& place, const Use& use) {
  if (part.is_null()) return;
  const std::string& type = require_string(part, "type", place.text());
  if (type != "Sequence") return use(type, part, place);
  check_keys(part, {"type", list}, place.text());
  const json& steps = require_array(part, list, place.text());
  constexpr std::size_t kMaxSteps = 64;
  if (steps.size() > kMaxSteps) {
    storage_error("{}: {} steps, at most {} are expected", place.text(), steps.size(), kMaxSteps);
  }
  for (std::size_t i = 0; i < steps.size(); ++i) for_each_step(steps[i], list, place.element(list, i), use);
}

[[noreturn]] void refuse_type(const char* what, const std::string& type, const char* known, const JsonPlace& place) {
  storage_error("{}: the {} \"{}\" is not among those that weft has: {}", place.text(), what, printable(type), known);
}

// {"String": ...} or {"Regex": ...}.
struct Pattern {
  bool regex = false;
  std::string text;
};
Pattern read_pattern(const json& part, const JsonPlace& place) {
  const JsonPlace inner = place.member("pattern");
  const json& pattern = require_object(part, "pattern", place.text());
  check_keys(pattern, {"String", "Regex"}, inner.text());
  if (pattern.size() != 1) storage_error("{}: expected either \"String\" or \"Regex\"", inner.text());
  const bool regex = pattern.contains("Regex");
  std::string text = require_string(pattern, regex ? "Regex" : "String", inner.text());
  if (text.empty()) storage_error("{}: the pattern is empty", inner.text());
  return {regex, std::move(text)};
}

// How much longer steps after each other may make a text: a small file must not ask for memory without bound.
class Growth {
 public:
  // A step that makes `before` bytes `after`, at worst.
  void take(std::size_t before, std::size_t after, const JsonPlace& place) {
    constexpr double kMostTimes = 256.0;
    times_ *= std::max(1.0, static_cast<double>(after) / static_cast<double>(before));
    if (times_ > kMostTimes) {
      storage_error("{}: the steps up to this one make a text {:.4g} times as long at worst, at most {} is expected",
                    place.text(), times_, kMostTimes);
    }
  }
  // Bytes in front of the text.
  void prepend(std::size_t bytes, const JsonPlace& place) {
    constexpr std::size_t kMostBytes = 1024;
    prepended_ += bytes;
    if (prepended_ > kMostBytes) {
      storage_error("{}: {} bytes in front of every text, at most {} are expected", place.text(), prepended_,
                    kMostBytes);
    }
  }

 private:
  double times_ = 1.0;
  std::size_t prepended_ = 0;
};

std::string read_literal(const json& part, const char* what, const JsonPlace& place) {
  Pattern pattern = read_pattern(part, place);
  if (pattern.regex) {
    storage_error("{}: a {} of a regular expression; weft replaces literal text only", place.text(), what);
  }
  return std::move(pattern.text);
}

SplitBehavior read_behavior(const json& part, const JsonPlace& place) {
  const std::string& name = require_string(part, "behavior", place.text());
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  storage_error(
      "{}: \"behavior\" is \"{}\"; expected Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous",
      place.text(), printable(name));
}

PrependScheme read_prepend(const json& part, const JsonPlace& place) {
  // Files from before there was a prepend_scheme say only whether.
  const bool old = bool_or(part, "add_prefix_space", true, place);
  const std::string scheme = string_or(part, "prepend_scheme", old ? "always" : "never", place);
  if (scheme == "always") return PrependScheme::always;
  if (scheme == "first") return PrependScheme::first;
  if (scheme == "never") return PrependScheme::never;
  storage_error("{}: \"prepend_scheme\" is \"{}\"; expected always, first or never", place.text(), printable(scheme));
}

std::string read_replacement(const json& part, const JsonPlace& place) {
  const std::string& mark = require_string(part, "replacement", place.text());
  if (mark.empty() || utf8_char_at(mark.data()).bytes != mark.size()) {
    storage_error("{}: \"replacement\" is \"{}\"; expected one character", place.text(), printable(mark));
  }
  return mark;
}

// `recorded` receives the step with every default filled in.
PreTokenizerStep read_pre_tokenizer_step(const std::string& type, const json& part, const JsonPlace& place,
                                         json& recorded) {
  const std::string source = place.text();
  if (type == "Split") {
    check_keys(part, {"type", "pattern", "behavior", "invert"}, source);
    Pattern pattern = read_pattern(part, place);
    SplitStep step{
        .pattern = nullptr, .behavior = read_behavior(part, place), .invert = bool_or(part, "invert", false, place)};
    recorded = {{"type", type},
                {pattern.regex ? "regex" : "literal", pattern.text},
                {"behavior", part["behavior"]},
                {"invert", step.invert}};
    if (!pattern.regex) {
      step.pattern = std::move(pattern.text);
    } else if (const Scanner scanner = scanner_of(pattern.text)) {
      step.pattern = scanner;
    } else {
      step.pattern = Regex(pattern.text, source);
    }
    return step;
  }
  if (type == "Digits") {
    check_keys(part, {"type", "individual_digits"}, source);
    const DigitsStep step{bool_or(part, "individual_digits", false, place)};
    recorded = {{"type", type}, {"individual_digits", step.individual}};
    return step;
  }
  if (type == "Metaspace") {
    check_keys(part, {"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"}, source);
    const MetaspaceStep step{read_replacement(part, place), read_prepend(part, place),
                             bool_or(part, "split", true, place)};
    recorded = {{"type", type},
                {"replacement", step.replacement},
                {"prepend", static_cast<int>(step.prepend)},
                {"split", step.split}};
    return step;
  }
  if (type == "ByteLevel") {
    check_keys(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, source);
    const ByteLevelStep step{bool_or(part, "add_prefix_space", true, place), bool_or(part, "use_regex", true, place)};
    recorded = {{"type", type}, {"add_prefix_space", step.add_prefix_space}, {"use_regex", step.use_regex}};
    return step;
  }
  refuse_type("pre-tokenizer", type, "Split, Digits, Metaspace, ByteLevel, Sequence", place);
}

std::int64_t read_strip_count(const json& part, const char* key, const JsonPlace& place) {
  return require_int(part, key, place.text(), 0);
}

// Ids of one item of a template that is a special token.
void append_special(const json& item, const json& special_tokens, const JsonPlace& place, std::int64_t vocab_size,
                    std::vector<std::int32_t>& ids) {
  const std::string& name = require_string(item, "id", place.text());
  const JsonPlace entry = place.member("special_tokens." + printable(name));
  const json& token = require_object(special_tokens, name, place.text());
  check_keys(token, {"id", "ids", "tokens"}, entry.text());
  for (const json& id : require_array(token, "ids", entry.text())) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() >= vocab_size) {
      storage_error("{}: id {} is not in the vocabulary of {}", entry.text(), printable(id.dump()), vocab_size);
    }
    constexpr std::size_t kMaxIds = 64;
    if (ids.size() == kMaxIds) storage_error("{}: more than {} tokens around a text", place.text(), kMaxIds);
    ids.push_back(id.get<std::int32_t>());
  }
}

void read_template(const json& part, const JsonPlace& place, BpeDefinition& definition) {
  check_keys(part, {"type", "single", "pair", "special_tokens"}, place.text());
  if (!definition.prefix.empty() || !definition.suffix.empty()) {
    storage_error("{}: a second template", place.text());
  }
  const json& special_tokens = require_object(part, "special_tokens", place.text());
  const json& items = require_array(part, "single", place.text());
  auto vocab_size = static_cast<std::int64_t>(definition.tokens.size());
  for (const AddedToken& token : definition.added) vocab_size = std::max<std::int64_t>(vocab_size, token.id + 1);
  bool text_seen = false;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const JsonPlace at = place.element("single", i);
    check_keys(items[i], {"SpecialToken", "Sequence"}, at.text());
    if (items[i].contains("SpecialToken")) {
      append_special(require_object(items[i], "SpecialToken", at.text()), special_tokens, place, vocab_size,
                     text_seen ? definition.suffix : definition.prefix);
      continue;
    }
    const json& sequence = require_object(items[i], "Sequence", at.text());
    if (require_string(sequence, "id", at.text()) != "A" || text_seen) {
      storage_error("{}: a template of one text names it once, as A", at.text());
    }
    text_seen = true;
  }
  if (!text_seen) storage_error("{}: the template \"single\" has no place for the text", place.text());
}

NormalizerStep read_replace(const json& part, const JsonPlace& place, Growth& growth, json& recorded) {
  Pattern pattern = read_pattern(part, place);
  std::string content = require_string(part, "content", place.text());
  recorded.push_back({{"type", "Replace"}, {pattern.regex ? "regex" : "pattern", pattern.text}, {"content", content}});
  if (!pattern.regex) {
    growth.take(pattern.text.size(), content.size(), place);
    return NormalizeReplace{std::move(pattern.text), std::move(content)};
  }
  Regex regex(pattern.text, place.text());
  if (regex.shortest_match() == 0) {
    storage_error("{}: a Replace of a regular expression that matches where there is no character", place.text());
  }
  growth.take(regex.shortest_match(), content.size(), place);
  return NormalizeReplaceMatches{std::move(regex), std::move(content)};
}

}  // namespace

bool bool_or(const json& object, const char* key, bool fallback, const JsonPlace& place) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? fallback : require_bool(object, key, place.text());
}

std::string string_or(const json& object, const char* key, const std::string& fallback, const JsonPlace& place) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? fallback : require_string(object, key, place.text());
}

json read_normalizer(const json& part, const JsonPlace& place, BpeDefinition& definition) {
  json recorded = json::array();
  Growth growth;
  for_each_step(part, "normalizers", place, [&](const std::string& type, const json& step, const JsonPlace& at) {
    if (type == "NFC" || type == "NFKC") {
      check_keys(step, {"type"}, at.text());
      // In UTF-8 (UAX 15).
      growth.take(1, type == "NFC" ? 3 : 11, at);
      definition.normalizer.push_back(NormalizeUnicode{type == "NFC" ? UnicodeForm::nfc : UnicodeForm::nfkc});
      recorded.push_back({{"type", type}});
    } else if (type == "Prepend") {
      check_keys(step, {"type", "prepend"}, at.text());
      std::string prefix = require_string(step, "prepend", at.text());
      growth.prepend(prefix.size(), at);
      recorded.push_back({{"type", type}, {"prepend", prefix}});
      definition.normalizer.push_back(NormalizePrepend{std::move(prefix)});
    } else if (type == "Replace") {
      check_keys(step, {"type", "pattern", "content"}, at.text());
      definition.normalizer.push_back(read_replace(step, at, growth, recorded));
    } else {
      refuse_type("normalizer", type, "NFC, NFKC, Prepend, Replace, Sequence", at);
    }
  });
  return recorded;
}

json read_pre_tokenizer(const json& part, const JsonPlace& place, BpeDefinition& definition) {
  json recorded = json::array();
  for_each_step(part, "pretokenizers", place, [&](const std::string& type, const json& step, const JsonPlace& at) {
    if (definition.rules.bytes) storage_error("{}: a step after ByteLevel, which has to be the last one", at.text());
    json canonical_step;
    definition.pre_tokenizer.push_back(read_pre_tokenizer_step(type, step, at, canonical_step));
    recorded.push_back(std::move(canonical_step));
    definition.rules.bytes = type == "ByteLevel";
  });
  return recorded;
}

void read_decoder(const json& part, const JsonPlace& place, BpeDefinition& definition) {
  if (part.is_null()) {
    storage_error("{}: there is no decoder, so that tokens cannot become text again", place.text());
  }
  TokenDecoder& decoder = definition.decoder;
  // The order in which a TokenDecoder works; a file that asks for another order asks for something else.
  int done = 0;
  bool fused = false;
  Growth growth;
  const auto in_order = [&](int rank, const std::string& type, const JsonPlace& at) {
    if (rank < done) storage_error("{}: the decoder {} in this place", at.text(), type);
    done = rank;
  };
  for_each_step(part, "decoders", place, [&](const std::string& type, const json& step, const JsonPlace& at) {
    if (type == "ByteLevel") {
      check_keys(step, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, at.text());
      in_order(0, type, at);
      done = 3;
      decoder.byte_level = true;
    } else if (type == "Replace") {
      check_keys(step, {"type", "pattern", "content"}, at.text());
      in_order(0, type, at);
      std::string pattern = read_literal(step, "Replace", at);
      std::string content = require_string(step, "content", at.text());
      growth.take(pattern.size(), content.size(), at);
      decoder.replacements.emplace_back(std::move(pattern), std::move(content));
    } else if (type == "ByteFallback") {
      check_keys(step, {"type"}, at.text());
      in_order(1, type, at);
      decoder.byte_fallback = true;
    } else if (type == "Metaspace") {
      check_keys(step, {"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"}, at.text());
      in_order(2, type, at);
      if (!decoder.metaspace.empty()) storage_error("{}: a second Metaspace", at.text());
      decoder.metaspace = read_replacement(step, at);
      decoder.metaspace_drops_first = read_prepend(step, at) != PrependScheme::never;
    } else if (type == "Fuse") {
      check_keys(step, {"type"}, at.text());
      in_order(3, type, at);
      fused = true;
    } else if (type == "Strip") {
      check_keys(step, {"type", "content", "start", "stop"}, at.text());
      in_order(4, type, at);
      if (!fused || read_strip_count(step, "start", at) > 1 || read_strip_count(step, "stop", at) > 0 ||
          !decoder.first_strip.empty()) {
        storage_error("{}: weft strips one character at the beginning of the whole text, after Fuse, and nothing else",
                      at.text());
      }
      if (step["start"] == 1) decoder.first_strip = require_string(step, "content", at.text());
    } else {
      refuse_type("decoder", type, "ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace, Sequence", at);
    }
  });
  if (decoder.byte_level && (decoder.byte_fallback || !decoder.replacements.empty() || !decoder.first_strip.empty())) {
    storage_error("{}: ByteLevel together with decoders that change characters", place.text());
  }
  if (decoder.byte_level != definition.rules.bytes) {
    storage_error("{}: {}", place.text(),
                  decoder.byte_level ? "the decoder ByteLevel without the pre-tokenizer ByteLevel"
                                     : "the pre-tokenizer ByteLevel needs the decoder ByteLevel");
  }
}

void read_post_processor(const json& part, const JsonPlace& place, BpeDefinition& definition) {
  for_each_step(part, "processors", place, [&](const std::string& type, const json& step, const JsonPlace& at) {
    if (type == "ByteLevel") {
      // Only moves offsets.
      check_keys(step, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, at.text());
    } else if (type == "TemplateProcessing") {
      read_template(step, at, definition);
    } else {
      refuse_type("post-processor", type, "TemplateProcessing, ByteLevel, Sequence", at);
    }
  });
}

}  // namespace weft
