#include "data/storage/text.h"

#include "data/storage/utf8.h"

namespace weft {

std::string printable(std::string_view text, std::size_t max_bytes) {
  std::string shown = repair_utf8(text.substr(0, max_bytes));
  for (char& c : shown) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code == 0x7f) c = '?';
  }
  return text.size() > max_bytes ? shown + "..." : shown;
}

}  // namespace weft
