#include "data/tokenizers/unicode_classes.h"

#include <map>

namespace weft {

UnicodeClasses::UnicodeClasses() {
  std::map<std::array<std::uint8_t, kBlock>, std::uint16_t> known;
  std::array<std::uint8_t, kBlock> block{};
  std::size_t run = 0;
  for (std::uint32_t c = 0; c < 0x110000; ++c) {
    while (run + 1 < detail::kUnicodeClassRunCount && detail::kUnicodeClassRuns[run + 1] >> 8 <= c) ++run;
    block[c % kBlock] = static_cast<std::uint8_t>(detail::kUnicodeClassRuns[run] & 0xFF);
    if (c % kBlock != kBlock - 1) continue;
    const auto [at, fresh] = known.try_emplace(block, static_cast<std::uint16_t>(known.size()));
    if (fresh) blocks_.insert(blocks_.end(), block.begin(), block.end());
    index_[c / kBlock] = at->second;
  }
}

const UnicodeClasses& UnicodeClasses::get() {
  static const UnicodeClasses classes;
  return classes;
}

}  // namespace weft
