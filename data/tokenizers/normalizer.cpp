#include "data/tokenizers/normalizer.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <utf8proc.h>

#include "autograd/check.h"
#include "data/tokenizers/unicode_classes.h"

namespace weft {

namespace {

bool may_change(const UnicodeClasses& classes, UnicodeForm form, std::uint32_t code_point) {
  return form == UnicodeForm::nfc ? classes.may_change_in_nfc(code_point) : classes.may_change_in_nfkc(code_point);
}

void append_normalized(UnicodeForm form, std::string_view text, std::string& out) {
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE |
                                                      (form == UnicodeForm::nfkc ? UTF8PROC_COMPAT : 0));
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t bytes = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                              static_cast<utf8proc_ssize_t>(text.size()), &result, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  WEFT_CHECK(bytes >= 0, "normalising {} bytes: {}", text.size(), utf8proc_errmsg(bytes));
  out.append(reinterpret_cast<const char*>(result), static_cast<std::size_t>(bytes));
}

// Of a character that the table leaves as it is: it is newer than the rules of the table, but not than the library's.
bool changes_by_itself(UnicodeForm form, std::uint32_t code_point) {
  const utf8proc_property_t* const property = utf8proc_get_property(static_cast<utf8proc_int32_t>(code_point));
  return property->combining_class != 0 || (form == UnicodeForm::nfkc && property->decomp_type != 0);
}

const char* skip_ascii(const char* p, const char* end) {
  constexpr std::uint64_t kHighBits = 0x8080808080808080ull;
  for (; end - p >= 8; p += 8) {
    std::uint64_t word;
    std::memcpy(&word, p, 8);
    if ((word & kHighBits) != 0) break;
  }
  while (p != end && static_cast<unsigned char>(*p) < 0x80) ++p;
  return p;
}

// Only stretches around characters that may change go through the library; nearly all text has none. False: nothing
// changes, and `out` is not touched.
bool normalize_unicode(UnicodeForm form, std::string_view text, std::string& out) {
  const UnicodeClasses& classes = UnicodeClasses::get();
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* copied = begin;    // what is before it has its form in `out`
  const char* previous = begin;  // the last character that does not change
  for (const char* p = begin; p != end;) {
    const char* const next = skip_ascii(p, end);
    if (next != p) previous = next - 1;
    p = next;
    if (p == end) break;
    const Utf8Char c = utf8_char_at(p);
    if (!may_change(classes, form, c.code_point)) {
      previous = p;
      p += c.bytes;
      continue;
    }
    const char* stretch = p;
    while (stretch != end) {
      const Utf8Char follower = utf8_char_at(stretch);
      if (!may_change(classes, form, follower.code_point)) break;
      stretch += follower.bytes;
    }
    if (previous < p && changes_by_itself(form, utf8_char_at(previous).code_point)) previous = p;
    if (copied == begin) out.clear();
    out.append(copied, previous);
    append_normalized(form, {previous, static_cast<std::size_t>(stretch - previous)}, out);
    copied = previous = p = stretch;
  }
  if (copied == begin) return false;
  out.append(copied, end);
  return true;
}

// False: there is no match, and `out` is not touched.
bool replace_matches(const NormalizeReplaceMatches& step, std::string_view text, std::string& out) {
  std::size_t copied = 0;
  for (auto match = step.pattern.find(text, 0); match; match = step.pattern.find(text, match->end)) {
    WEFT_CHECK(match->end > match->begin, "an empty match at byte {} of {}", match->begin, text.size());
    if (copied == 0) out.clear();
    out += text.substr(copied, match->begin - copied);
    out += step.content;
    copied = match->end;
  }
  if (copied == 0) return false;
  out += text.substr(copied);
  return true;
}

}  // namespace

void replace_all(std::string_view text, std::string_view pattern, std::string_view content, std::string& out) {
  for (;;) {
    const std::size_t found = text.find(pattern);
    out += text.substr(0, found);
    if (found == std::string_view::npos) return;
    out += content;
    text.remove_prefix(found + pattern.size());
  }
}

std::string_view normalize(const std::vector<NormalizerStep>& steps, std::string_view text, std::string& buffer,
                           std::string& spare) {
  if (text.empty()) return text;
  for (const NormalizerStep& step : steps) {
    // `text` lies in `buffer` after a step that changed it, so that the next one writes to `spare`.
    bool changed = false;
    if (const auto* unicode = std::get_if<NormalizeUnicode>(&step)) {
      changed = normalize_unicode(unicode->form, text, spare);
    } else if (const auto* prepend = std::get_if<NormalizePrepend>(&step)) {
      spare = prepend->prefix;
      spare += text;
      changed = true;
    } else if (const auto* matches = std::get_if<NormalizeReplaceMatches>(&step)) {
      changed = replace_matches(*matches, text, spare);
    } else {
      const auto& replace = std::get<NormalizeReplace>(step);
      if (text.find(replace.pattern) != std::string_view::npos) {
        spare.clear();
        replace_all(text, replace.pattern, replace.content, spare);
        changed = true;
      }
    }
    if (changed) {
      buffer.swap(spare);
      text = buffer;
    }
  }
  return text;
}

}  // namespace weft
