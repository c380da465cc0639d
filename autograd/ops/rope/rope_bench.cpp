#include "autograd/bench_case.h"
#include "autograd/ops/rope/rope.h"

namespace weft {

std::vector<BenchCase> rope_bench(const BenchShape& s) {
  const auto turned = [&](const char* name, std::int64_t T, std::int64_t H, std::int64_t rotary) {
    const auto table = std::make_shared<const RopeTable>(RopeConfig{.rotary_dim = rotary});
    const DocumentsPtr documents =
        Documents::from_lengths(std::vector<std::int32_t>(16, static_cast<std::int32_t>(T / 16)));
    return BenchCase{.name = name,
                     .inputs = {{{T, H, s.D}}},
                     .function =
                         [table, documents](Tape& tape, std::span<const Var> in) {
                           return std::vector{rope(tape, in[0], documents, *table)};
                         },
                     .forward = {.elements = 2 * s.row()},
                     .backward = {.elements = 2 * s.row()}};
  };
  return {turned("rope", s.T, s.H, s.D), turned("rope, four times the heads", s.T / 4, 4 * s.H, s.D),
          turned("rope, half the channels", s.T, s.H, s.D / 2)};
}

}  // namespace weft
