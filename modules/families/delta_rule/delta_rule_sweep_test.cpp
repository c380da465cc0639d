// The head widths that models use; too slow for every run.
#include "modules/families/delta_rule/delta_rule_test_cases.h"

namespace weft {
namespace {

using namespace testing;

TEST(DeltaRuleSweep, HeadWidthsOfModels) {
  for (const DeltaDecay decay : kAllDecays) {
    for (const std::int64_t d_k : {32, 64, 128}) {
      for (const std::int64_t group : {1, 4}) {
        const DeltaCase c{.lengths = {300, 0, 3},
                          .decay = decay,
                          .H = 2 * group,
                          .d_k = d_k,
                          .d_v = 192 - d_k,
                          .gate = 0.02,
                          .largest_beta = group == 4 ? 2.0 : 1.0};
        SCOPED_TRACE(c.str());
        expect_the_recurrence(c, make_inputs(c));
      }
    }
  }
}

}  // namespace
}  // namespace weft
