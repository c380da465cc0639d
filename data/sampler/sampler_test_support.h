// Two small datasets and options over them, for the tests of the sampler.
#pragma once

#include <memory>
#include <vector>

#include "data/dataset_test_support.h"
#include "data/sampler/sampler.h"

namespace weft::data_test {

struct SamplerFixture {
  TemporaryFolder folder;
  std::shared_ptr<const Dataset> a = make_dataset(folder / "a", counting_documents(400, 90), 150);
  std::shared_ptr<const Dataset> b = make_dataset(folder / "b", counting_documents(150, 200));

  SamplerOptions options(Packing packing, bool mixture = false) const {
    SamplerOptions o;
    o.seed = 17;
    o.rows_per_step = 8;
    o.rows.length = 64;
    o.rows.max_docs = 70;
    o.rows.packing = packing;
    o.rows.min_bucket_log2 = 3;
    o.cycles = 3;
    o.sources.push_back({a, {{0, 0.7}}, 3});
    if (mixture) o.sources.push_back({b, {{0, 0.3}, {40000, 0.8}}, 2});
    return o;
  }
};

inline std::vector<StepPlan> all_steps(Sampler& sampler, std::size_t most = 100000) {
  std::vector<StepPlan> steps;
  while (steps.size() < most) {
    auto step = sampler.next();
    if (!step) break;
    steps.push_back(std::move(*step));
  }
  return steps;
}

}  // namespace weft::data_test
