// `weft bench`: operations, mixers and whole training steps against what this machine can do, measured in the same run.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "autograd/bench_case.h"
#include "autograd/cuda/kernel_profile.h"
#include "autograd/place.h"
#include "autograd/tape_profile.h"
#include "modules/mixer.h"
#include "train/recipe/recipe.h"

namespace weft {

// What the device does at best.
struct DeviceSpeed {
  std::string device;      // "NVIDIA H100 80GB HBM3, bf16"
  double matrix_rate = 0;  // floating-point operations a second of a large product
  double bandwidth = 0;    // bytes a second of a large copy, read and written
};

struct BenchRow {
  std::string name;
  bool backward = false;
  double seconds = 0;  // median
  double flops = 0;
  double bytes = 0;  // that must move at least

  // The products at the matrix rate, or the bytes at the bandwidth, whichever takes longer. What lies in a cache may be
  // faster.
  double floor(const DeviceSpeed& speed) const;
};

// All cases of bench_case.h, in the order of their folders. Generated.
std::vector<BenchCase> bench_cases(const BenchShape& shape);
// Sizes that keep such a device busy and go beyond its caches.
BenchShape bench_shape(bool gpu);

struct BenchOptions {
  std::string filter;           // of names: those that contain it; empty: all
  int repeats = 21;             // of which the median counts; fewer where a second is over before
  std::string device = "auto";  // "auto", "cpu" or "cuda"
  // For tests: smaller than bench_shape().
  std::optional<BenchShape> shape = {};
};

// Operations and mixers whose names contain the filter, forward and backward; mixers are named "mixer NAME" and have
// default options but for heads of the shape. Calls `on_speed` first, and `on_row` as rows come. Error (config) if
// there is nothing of that name.
void bench(const BenchOptions& options, const std::function<void(const DeviceSpeed&)>& on_speed,
           const std::function<void(const BenchRow&, const DeviceSpeed&)>& on_row);

// A training step of a recipe's model, on rows of random tokens, each of them one document.
struct StepBench {
  DeviceSpeed speed;
  std::int64_t tokens = 0;  // of a step
  int steps = 0;            // that were timed
  double seconds = 0;       // of a step, median: what training waits for
  double flops = 0;         // of the model; nothing recomputed counts
  // Of one step launched operation by operation, which is slower than a recorded one where kernels are short.
  double forward_seconds = 0, backward_seconds = 0, optimizer_seconds = 0;
  std::vector<TapeProfile::Entry> operations;  // of one step, most seconds first
  // On a GPU, of one step as training makes it, most seconds first; or why there are none.
  std::vector<KernelTime> kernels;
  std::string kernels_missing;

  double utilisation() const { return flops / seconds / speed.matrix_rate; }
};
StepBench bench_step(const Recipe& recipe, std::int64_t vocabulary, int steps = 21);

// One sequence of random tokens: a prompt, then token by token.
struct DecodeBench {
  DeviceSpeed speed;
  std::int64_t prompt = 0, tokens = 0;  // of the prompt; decoded ones that were timed
  double cold_seconds = 0;              // until the logits after the first prompt of all
  double first_seconds = 0;             // the same for later ones, median
  double seconds = 0;                   // of a token, median
  double weight_bytes = 0, state_bytes = 0;

  // The time in which a token's weights could be read.
  double floor() const { return weight_bytes / speed.bandwidth; }
};
DecodeBench bench_decode(const Recipe& recipe, std::int64_t vocabulary, std::int64_t prompt = 2048,
                         std::int64_t tokens = 256);

}  // namespace weft
