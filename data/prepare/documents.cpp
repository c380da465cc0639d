#include "data/prepare/documents.h"

#include <algorithm>
#include <cstring>

namespace weft {

namespace {

constexpr std::string_view kBlanks = " \t\r\v\f";

bool is_blank(std::string_view line) {
  return line.find_first_not_of(kBlanks) == line.npos;
}

// A line without its terminator, also without the CR of a CRLF.
std::string_view without_cr(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

std::size_t last_newline(std::string_view text) {
  const void* found = text.empty() ? nullptr : ::memrchr(text.data(), '\n', text.size());
  return found == nullptr ? text.npos : static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

// The next line with its terminator; empty only at the end.
std::string_view next_line(std::string_view text) {
  const void* found = text.empty() ? nullptr : std::memchr(text.data(), '\n', text.size());
  if (found == nullptr) return text;
  return text.substr(0, static_cast<std::size_t>(static_cast<const char*>(found) - text.data()) + 1);
}

bool is_separator(const RecordRule& rule, std::string_view line) {
  if (rule.split == TextSplit::blank) return is_blank(line);
  return without_cr(line) == rule.delimiter;
}

}  // namespace

std::size_t RecordRule::last_end(std::string_view text, std::size_t from) const {
  if (format == InputFormat::jsonl) {
    const std::size_t newline = last_newline(text.substr(from));
    return newline == text.npos ? 0 : from + newline + 1;
  }
  if (split == TextSplit::file) return 0;
  // Backwards over the lines that end after `from`, to the last one that separates documents.
  std::size_t end = last_newline(text);
  while (end != text.npos && end >= from) {
    const std::size_t before = last_newline(text.substr(0, end));
    const std::size_t begin = before == text.npos ? 0 : before + 1;
    if (is_separator(*this, text.substr(begin, end - begin))) return end + 1;
    end = before;
  }
  return 0;
}

std::size_t RecordRule::first_end(std::string_view text) const {
  if (format == InputFormat::text && split == TextSplit::file) return 0;
  std::size_t at = 0;
  for (;;) {
    const std::string_view line = next_line(text.substr(at));
    if (!line.ends_with('\n')) return 0;
    at += line.size();
    if (format == InputFormat::jsonl || is_separator(*this, line.substr(0, line.size() - 1))) return at;
  }
}

std::int64_t RecordRule::for_each(std::string_view text,
                                  const std::function<void(std::string_view, std::int64_t)>& record) const {
  if (format == InputFormat::jsonl) {
    std::int64_t lines = 0;
    while (!text.empty()) {
      const std::string_view line = next_line(text);
      text.remove_prefix(line.size());
      if (line.find_first_not_of(" \t\r\n") != line.npos) record(line, lines);
      ++lines;
    }
    return lines;
  }
  if (split == TextSplit::file) {
    if (!text.empty()) record(text, 0);
    return 0;
  }
  const char* begin = text.data();
  const char* at = begin;
  const auto emit = [&] {
    const std::string_view document(begin, static_cast<std::size_t>(at - begin));
    // Between blank lines there is always text; two delimiter lines in a row enclose an empty document.
    if (split == TextSplit::delimiter || !document.empty()) record(document, 0);
  };
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    text.remove_prefix(line.size());
    if (is_separator(*this, line.ends_with('\n') ? line.substr(0, line.size() - 1) : line)) {
      emit();
      begin = line.data() + line.size();
    }
    at = line.data() + line.size();
  }
  if (at != begin) emit();
  return 0;
}

}  // namespace weft
