// Errors: one exception type that carries the exit code of the process, and the checks that throw it.
#pragma once

#include <fmt/format.h>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace weft {

// What a process exits with; the numbers are part of the command line's contract (docs/running.md).
enum class ExitCode : int {
  ok = 0,
  internal = 1,   // a defect of weft
  config = 2,     // a recipe, an argument or input data
  nonfinite = 3,  // NaN or infinity that training could not skip
  replica = 4,    // replicas that should be equal are not
  peer_lost = 5,  // another rank died
  timeout = 6,    // a rank or a device hangs
  storage = 7,    // reading or writing files
};

// The message is complete by itself: what was wrong, where, what was expected, what to do.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

#ifdef __CUDACC__
// nvcc cannot evaluate fmt's compile-time check; in .cu files format strings are checked when they are used.
template <class... Args>
struct RuntimeFormatString {
  fmt::string_view text;
  RuntimeFormatString(const char* string) : text(string) {}
  operator fmt::string_view() const { return text; }
};
template <class... Args>
using FormatString = RuntimeFormatString<std::type_identity_t<Args>...>;
#else
template <class... Args>
using FormatString = fmt::format_string<Args...>;
#endif

template <class... Args>
std::string format_text(FormatString<Args...> format, Args&&... args) {
  return fmt::vformat(format, fmt::make_format_args(args...));
}

template <class... Args>
[[noreturn]] void fail(ExitCode code, FormatString<Args...> format, Args&&... args) {
  throw Error(code, format_text<Args...>(format, std::forward<Args>(args)...));
}

// For what a user can cause: recipes, arguments, datasets.
template <class... Args>
[[noreturn]] void config_error(FormatString<Args...> format, Args&&... args) {
  throw Error(ExitCode::config, format_text<Args...>(format, std::forward<Args>(args)...));
}

// For files that cannot be read or written.
template <class... Args>
[[noreturn]] void storage_error(FormatString<Args...> format, Args&&... args) {
  throw Error(ExitCode::storage, format_text<Args...>(format, std::forward<Args>(args)...));
}

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);
}  // namespace detail

}  // namespace weft

// A precondition of an API; failing it is a defect of the caller, reported with its place: WEFT_CHECK(n > 0, "n is {}",
// n).
#define WEFT_CHECK(condition, ...)                                                                    \
  do {                                                                                                \
    if (!(condition)) [[unlikely]]                                                                    \
      ::weft::detail::check_failed(__FILE__, __LINE__, #condition, ::weft::format_text(__VA_ARGS__)); \
  } while (false)
