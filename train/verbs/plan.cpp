#include "train/plan/plan.h"

#include <nlohmann/json.hpp>

#include "train/loop/run_data.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace {

double gib(double bytes) {
  return bytes / (1024.0 * 1024.0 * 1024.0);
}

nlohmann::json to_json(const Plan& plan, const DeviceRates& rates) {
  nlohmann::json memory = nlohmann::json::object();
  for (const PlannedPart& part : plan.memory) memory[part.name] = part.bytes;
  return {{"device", plan.device},
          {"assumed", rates.name},
          {"parameters", plan.parameters},
          {"micro_batch_tokens", plan.micro_batch_tokens},
          {"micro_batches", plan.micro_batches},
          {"memory", memory},
          {"memory_total", plan.total_bytes},
          {"flops", plan.flops},
          {"moved_bytes", plan.moved_bytes},
          {"matrix_seconds", plan.matrix_seconds},
          {"memory_seconds", plan.memory_seconds}};
}

void print_times(const Plan& plan, const DeviceRates& rates) {
  fmt::print("  {:<32} {:8.1f} ms at {:.0f} TFLOP/s\n", "in matrix products", plan.matrix_seconds * 1e3,
             rates.matrix_flops / 1e12);
  fmt::print("  {:<32} {:8.1f} ms at {:.1f} TB/s\n", "in memory", plan.memory_seconds * 1e3, rates.bandwidth / 1e12);
}

void print(const Plan& plan, const DeviceRates& rates) {
  fmt::print("{} parameters, {} micro-batches of {} tokens a step ({})\n", plan.parameters, plan.micro_batches,
             plan.micro_batch_tokens, plan.device);
  for (const PlannedPart& part : plan.memory) fmt::print("  {:<32} {:8.2f} GiB\n", part.name, gib(part.bytes));
  fmt::print("  {:<32} {:8.2f} GiB\n", "memory in all", gib(plan.total_bytes));
  fmt::print("  {:<32} {:8.1f} TFLOP\n", "work of a step", plan.flops / 1e12);
  if (plan.on_gpu) print_times(plan, rates);
  fmt::print("\n{}", plan.rules);
}

}  // namespace

void run_plan(const PlanArguments& arguments) {
  const Recipe recipe = load_recipe(arguments.recipe, arguments.overrides);
  std::int64_t vocabulary = recipe.model.vocabulary;
  if (vocabulary == 0) vocabulary = open_run_data(recipe)->vocabulary();
  const Plan plan = plan_recipe(recipe, vocabulary);
  const DeviceRates rates = planned_gpu();
  if (arguments.form == OutputForm::json) {
    fmt::print("{}\n", to_json(plan, rates).dump());
  } else {
    print(plan, rates);
  }
  if (!plan.on_gpu || plan.total_bytes <= rates.memory) return;
  config_error("{}: more than the {:.2f} GiB of {}. {}", arguments.recipe, gib(rates.memory), rates.name,
               memory_advice(plan, recipe));
}

}  // namespace weft
