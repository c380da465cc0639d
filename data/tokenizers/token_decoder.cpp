#include "data/tokenizers/token_decoder.h"

#include <charconv>

#include "data/tokenizers/normalizer.h"

namespace weft {

std::optional<unsigned char> TokenDecoder::byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  unsigned char byte = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return byte;
}

std::string TokenDecoder::decode(std::string_view token, bool first) const {
  if (byte_level) return std::string(token);
  if (byte_fallback) {
    if (const auto byte = byte_of(token)) return std::string(1, static_cast<char>(*byte));
  }
  std::string text(token);
  std::string next;
  const auto replace = [&](std::string_view pattern, std::string_view content) {
    next.clear();
    replace_all(text, pattern, content, next);
    text.swap(next);
  };
  for (const auto& [pattern, content] : replacements) replace(pattern, content);
  if (!metaspace.empty()) replace(metaspace, first && metaspace_drops_first ? "" : " ");
  if (first && !first_strip.empty() && text.starts_with(first_strip)) text.erase(0, first_strip.size());
  return text;
}

}  // namespace weft
