#include "train/verify/verify.h"

#include <nlohmann/json.hpp>

#include "train/loop/run_data.h"
#include "train/plan/plan.h"
#include "train/verbs/inference_device.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace {

const char* verdict(bool ok) {
  return ok ? "ok" : "FAILED";
}

void print(const VerifiedPart& part) {
  fmt::print("\n{}: {}; compared: {} ({:.1f} s)\n", part.name, part.row, part.compared, part.seconds);
  fmt::print("  {:<22} {:>10} {:>10} {:>10} {:>10}\n", "", "rel_F", "limit", "rel_max", "limit");
  for (const PrecisionResult& r : part.results) {
    fmt::print("  {:<22} {:10.2e} {:10.2e} {:10.2e} {:10.2e}  {}\n", r.quantity, r.error.rel_f, r.limit.rel_f,
               r.error.rel_max, r.limit.rel_max, verdict(r.ok()));
  }
  std::fflush(stdout);
}

nlohmann::json to_json(const Verification& verification) {
  nlohmann::json parts = nlohmann::json::array();
  for (const VerifiedPart& part : verification.parts) {
    nlohmann::json results = nlohmann::json::array();
    for (const PrecisionResult& r : part.results) {
      results.push_back({{"quantity", r.quantity},
                         {"rel_f", r.error.rel_f},
                         {"rel_f_limit", r.limit.rel_f},
                         {"rel_max", r.error.rel_max},
                         {"rel_max_limit", r.limit.rel_max},
                         {"ok", r.ok()}});
    }
    parts.push_back({{"part", part.name},
                     {"tokens", part.tokens},
                     {"compared_tokens", part.compared_tokens},
                     {"row", part.row},
                     {"compared", part.compared},
                     {"ok", part.ok()},
                     {"results", results}});
  }
  return {{"device", verification.device}, {"ok", verification.ok()}, {"parts", parts}};
}

}  // namespace

bool run_verify(const VerifyArguments& arguments) {
  const Recipe recipe = load_recipe(arguments.recipe, arguments.overrides);
  std::int64_t vocabulary = recipe.model.vocabulary;
  if (vocabulary == 0) vocabulary = open_run_data(recipe)->vocabulary();
  const bool text = arguments.form == OutputForm::text;
  if (text) {
    fmt::print("{}: each part of the model forward and backward, against fp64 on the same rounded inputs\n",
               recipe.run.name);
  }
  Verification verification;
  within_gpu_memory(memory_advice(plan_recipe(recipe, vocabulary), recipe), [&] {
    verification = verify_recipe(recipe, vocabulary, {.tokens = arguments.tokens},
                                 text ? print : std::function<void(const VerifiedPart&)>{});
  });
  if (!text) {
    fmt::print("{}\n", to_json(verification).dump());
    return verification.ok();
  }
  std::size_t failed = 0, all = 0;
  for (const VerifiedPart& part : verification.parts) {
    all += part.results.size();
    failed += static_cast<std::size_t>(std::ranges::count(part.results, false, &PrecisionResult::ok));
  }
  fmt::print("\n{}: {} ({} of {} quantities within their limits)\n", verification.device, verdict(failed == 0),
             all - failed, all);
  return failed == 0;
}

}  // namespace weft
