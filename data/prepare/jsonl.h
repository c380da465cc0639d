// One line of jsonl: a strict scan (RFC 8259) that builds nothing but the wanted text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

enum class LineStatus : std::uint8_t { ok, invalid_json, no_text, lone_surrogate };

struct LineText {
  LineStatus status = LineStatus::ok;
  std::string_view text;     // valid until the line or the scratch space changes
  std::size_t byte = 0;      // where a bad line went wrong
  const char* problem = "";  // what was expected there
};

// The string member `field` of the object in `line`. The whole line is checked: syntax, escapes, control characters,
// nesting of at most 64 levels, and that the object has `field` once. UTF-8 is the caller's to check. Text without
// escapes is a view of the line; otherwise it is decoded into `scratch`.
LineText extract_text(std::string_view line, std::string_view field, std::string& scratch);

}  // namespace weft
