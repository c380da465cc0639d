// What a recipe will need, found by going through one step on a device that is not there: every tensor gets its place
// in memory by the same code as in training, and no kernel runs.
//
// T tokens of a micro-batch of one rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "modules/language_model.h"
#include "train/recipe/recipe.h"

namespace weft {

struct PlannedPart {
  std::string name;
  double bytes = 0.0;
};

// Of one rank.
struct Plan {
  std::string device;  // "cuda, bf16"
  bool on_gpu = false;
  std::int64_t parameters = 0;
  std::int64_t micro_batch_tokens = 0;
  std::int64_t micro_batches = 0;  // of a step

  // Memory, largest first; what lasts and what a step takes on top at its peak. They add up to total_bytes.
  std::vector<PlannedPart> memory;
  double total_bytes = 0.0;

  // Of one optimizer step.
  double flops = 0.0;           // of the model, counted by each mixer; nothing recomputed counts
  double moved_bytes = 0.0;     // that must move at least
  double matrix_seconds = 0.0;  // at the device's rate of matrix products
  double memory_seconds = 0.0;  // at its bandwidth

  std::string rules;  // which update rule each parameter gets: describe_plans
};

// Rates of a device that plans assume.
struct DeviceRates {
  std::string name;
  double matrix_flops = 0.0;  // a second
  double bandwidth = 0.0;     // bytes a second
  double memory = 0.0;        // bytes
};
// An H100 SXM, unless this machine has another GPU.
DeviceRates planned_gpu();

Plan plan_recipe(const Recipe& recipe, std::int64_t vocabulary);

// What takes most of the memory, and what to change in the recipe: "`weft plan` counts 90.10 GiB for a step, of them
// gradients 25.20 GiB, ... Use model.recompute = ...".
std::string memory_advice(const Plan& plan, const Recipe& recipe);

}  // namespace weft
