// Text of uncertain origin, made fit for messages.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace weft {

// At most `max_bytes` of the text, with "?" for control characters, and U+FFFD for what is not UTF-8: a file must not
// steer a terminal through the error it causes.
std::string printable(std::string_view text, std::size_t max_bytes = 200);

}  // namespace weft
