// The part of the regular expression language that Oniguruma and PCRE2 share.
#pragma once

#include <string>
#include <string_view>

namespace weft {

// The PCRE2 pattern that means what `pattern` means to Oniguruma (Ruby syntax, Unicode); see Regex for what is taken.
// Error (storage) that begins with `source` for everything else.
std::string pcre2_pattern(std::string_view pattern, const std::string& source);

}  // namespace weft
