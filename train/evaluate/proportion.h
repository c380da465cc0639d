// A share of successes and how sure it is.
#pragma once

#include <cstdint>

namespace weft {

struct Interval {
  double low = 0.0;
  double high = 1.0;
};

struct Proportion {
  std::int64_t hits = 0;
  std::int64_t count = 0;

  void add(bool hit) {
    hits += hit ? 1 : 0;
    ++count;
  }
  // 0 without trials.
  double value() const { return count == 0 ? 0.0 : static_cast<double>(hits) / static_cast<double>(count); }
  // Wilson's score interval at 95 %, for independent trials; everything is possible without trials.
  Interval wilson() const;
};

}  // namespace weft
