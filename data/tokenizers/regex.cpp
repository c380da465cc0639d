#include "data/tokenizers/regex.h"

#include <algorithm>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "autograd/check.h"
#include "data/storage/text.h"
#include "data/tokenizers/regex_syntax.h"

namespace weft {

namespace {

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

// What one search needs besides the pattern: a thread's own.
struct Workspace {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(std::size_t{64} << 10, std::size_t{8} << 20, nullptr);
  Workspace() {
    WEFT_CHECK(match != nullptr && context != nullptr, "PCRE2 could not allocate");
    pcre2_set_heap_limit(context, std::uint32_t{256} << 10);  // KiB
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Workspace() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
};

}  // namespace

struct Regex::Code {
  pcre2_code* pattern = nullptr;
  ~Code() { pcre2_code_free(pattern); }
};

Regex::Regex(std::string_view pattern, const std::string& source) : source_(source) {
  const std::string translated = pcre2_pattern(pattern, source);
  // Ruby's ^ and $ are at lines.
  const std::uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE where = 0;
  pcre2_compile_context* const context = pcre2_compile_context_create(nullptr);
  WEFT_CHECK(context != nullptr, "PCRE2 could not allocate");
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, 32);
  auto code = std::make_shared<Code>();
  code->pattern = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                                &where, context);
  pcre2_compile_context_free(context);
  if (code->pattern == nullptr) {
    storage_error("{}: the pattern {} is no regular expression: {} (near byte {})", source, printable(pattern),
                  pcre2_message(error), where);
  }
  // Without JIT on this machine the interpreter gives the same matches.
  pcre2_jit_compile(code->pattern, PCRE2_JIT_COMPLETE);
  code_ = std::move(code);
}

std::size_t Regex::shortest_match() const {
  std::uint32_t least = 0;
  pcre2_pattern_info(code_->pattern, PCRE2_INFO_MINLENGTH, &least);
  return least;
}

std::optional<RegexMatch> Regex::find(std::string_view text, std::size_t from) const {
  thread_local Workspace workspace;
  constexpr std::size_t kLeastSteps = 10'000'000;
  const std::size_t steps = std::min<std::size_t>(kLeastSteps + 64 * text.size(), UINT32_MAX);
  pcre2_set_match_limit(workspace.context, static_cast<std::uint32_t>(steps));
  const int found = pcre2_match(code_->pattern, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK, workspace.match, workspace.context);
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) {
    config_error("{}: the pattern cannot be matched at byte {} of a text of {} bytes: {}", source_, from, text.size(),
                 pcre2_message(found));
  }
  const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(workspace.match);
  return RegexMatch{range[0], range[1]};
}

}  // namespace weft
