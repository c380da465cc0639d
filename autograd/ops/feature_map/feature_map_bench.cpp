#include "autograd/bench_case.h"
#include "autograd/ops/feature_map/feature_map.h"

namespace weft {

std::vector<BenchCase> feature_map_bench(const BenchShape& s) {
  const double N = s.row();
  const auto map = [](FeatureMap kind) {
    return [kind](Tape& tape, std::span<const Var> in) { return std::vector{feature_map(tape, kind, in[0])}; };
  };
  constexpr std::int64_t kTaylor = 16;  // channels, as in published models
  const auto features = static_cast<double>(feature_width(FeatureMap::taylor, kTaylor));
  const auto taylor_rows = static_cast<double>(s.T * s.H) / 2.0;
  return {{.name = "feature_map, softmax_pair",
           .inputs = {{{2 * s.T, s.H, s.D / 2}}},
           .function = map(FeatureMap::softmax_pair),
           .forward = {.elements = 3 * N},
           .backward = {.elements = 4 * N}},  // a GPU forms the features again
          {.name = "feature_map, elu_plus_one",
           .inputs = {{{s.T, s.H, s.D}}},
           .function = map(FeatureMap::elu_plus_one),
           .forward = {.elements = 2 * N},
           .backward = {.elements = 3 * N}},
          {.name = "feature_map, taylor of 16 channels",
           .inputs = {{{s.T / 2, s.H, kTaylor}}},
           .function = map(FeatureMap::taylor),
           .forward = {.elements = taylor_rows * (kTaylor + features)},
           .backward = {.elements = taylor_rows * (2 * kTaylor + features)}}};
}

}  // namespace weft
