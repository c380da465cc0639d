// Hand-written scanners for the pre-tokenizer patterns in common use: one pass, no backtracking beyond white space.
#pragma once

#include <string_view>

#include "data/tokenizers/unicode_classes.h"

namespace weft {

// The patterns as tokenizer.json files spell them.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The end of the match at `p`; there always is one. [p, end) is valid UTF-8 and not empty.
using Scanner = const char* (*)(const char* p, const char* end, const UnicodeClasses& classes);

const char* scan_gpt2(const char* p, const char* end, const UnicodeClasses& classes);
const char* scan_llama3(const char* p, const char* end, const UnicodeClasses& classes);
const char* scan_qwen2(const char* p, const char* end, const UnicodeClasses& classes);

// The scanner whose matches are those of the pattern, or null.
Scanner scanner_of(std::string_view pattern);

}  // namespace weft
