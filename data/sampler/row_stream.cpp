#include "data/sampler/row_stream.h"

#include <algorithm>

namespace weft {

void check_skipped_steps(const SkippedSteps& skipped) {
  for (const auto& [first, last] : skipped) {
    if (first < 0 || last < first) config_error("skip_steps: [{}, {}] is no range of steps", first, last);
  }
}

bool contains(const SkippedSteps& skipped, std::int64_t step) {
  return std::ranges::any_of(skipped, [&](const auto& range) { return step >= range.first && step <= range.second; });
}

}  // namespace weft
