#include "parallel/sequence_plan.h"

#include <algorithm>

#include "autograd/check.h"

namespace weft {

SequencePlan plan_sequence(const DocumentsPtr& row, int ranks, int rank) {
  WEFT_CHECK(row != nullptr && ranks >= 1 && rank >= 0 && rank < ranks, "plan of rank {} of {}", rank, ranks);
  SequencePlan plan;
  plan.ranks = ranks;
  plan.rank = rank;
  plan.row_tokens = row->tokens();
  if (ranks == 1) {
    plan.end = row->tokens();
    plan.local = row;
    return plan;
  }
  WEFT_CHECK(row->tokens() > 0 && row->tokens() % ranks == 0, "a row of {} tokens over {} ranks", row->tokens(), ranks);
  const std::int64_t share = row->tokens() / ranks;
  plan.begin = rank * share;
  plan.end = plan.begin + share;

  std::vector<std::int32_t> cu{0};
  std::vector<std::int32_t> pos0;
  std::int64_t first = -1;
  std::int64_t last = -1;
  for (std::int64_t n = 0; n < row->count(); ++n) {
    const std::int64_t begin = std::max<std::int64_t>(row->begin(n), plan.begin);
    const std::int64_t end = std::min<std::int64_t>(row->end(n), plan.end);
    if (begin >= end) continue;
    if (first < 0) first = n;
    last = n;
    cu.push_back(static_cast<std::int32_t>(end - plan.begin));
    pos0.push_back(static_cast<std::int32_t>(row->pos0(n) + (begin - row->begin(n))));
  }
  const auto holders = [&](std::int64_t n) {
    return RankRange{static_cast<int>(row->begin(n) / share), static_cast<int>((row->end(n) - 1) / share)};
  };
  plan.carry_in = std::max<std::int64_t>(0, plan.begin - row->begin(first));
  plan.carry_out = std::max<std::int64_t>(0, row->end(last) - plan.end);
  plan.first_document = holders(first);
  plan.last_document = holders(last);
  plan.has_reset = plan.carry_in == 0 || first != last;
  plan.local = std::make_shared<const Documents>(std::move(cu), std::move(pos0));
  return plan;
}

}  // namespace weft
