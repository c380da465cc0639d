#include "train/bench/bench.h"

#include <nlohmann/json.hpp>

#include "train/loop/run_data.h"
#include "train/plan/plan.h"
#include "train/verbs/inference_device.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace {

const char* pass_name(bool backward) {
  return backward ? "backward" : "forward";
}

void print_line(const nlohmann::json& line) {
  fmt::print("{}\n", line.dump());
  std::fflush(stdout);
}

void print_speed(const DeviceSpeed& speed) {
  fmt::print("{}: {:.4g} TFLOP/s in a large product, {:.4g} GB/s in a copy (read and written)\n", speed.device,
             1e-12 * speed.matrix_rate, 1e-9 * speed.bandwidth);
}

nlohmann::json to_json(const DeviceSpeed& speed) {
  return {
      {"device", speed.device}, {"matrix_flops_per_second", speed.matrix_rate}, {"bytes_per_second", speed.bandwidth}};
}

void bench_operations(const BenchArguments& arguments) {
  const bool json = arguments.form == OutputForm::json;
  BenchOptions options;
  options.filter = arguments.filter;
  options.device = arguments.device;
  bench(
      options,
      [&](const DeviceSpeed& speed) {
        if (json) return print_line(to_json(speed));
        print_speed(speed);
        fmt::print("{:<44} {:<8} {:>11} {:>9} {:>9} {:>8} {:>8} {:>11} {:>6}\n", "", "pass", "time", "GFLOP", "MB",
                   "TFLOP/s", "GB/s", "floor", "ratio");
      },
      [&](const BenchRow& row, const DeviceSpeed& speed) {
        const double floor = row.floor(speed);
        if (json) {
          return print_line({{"name", row.name},
                             {"pass", pass_name(row.backward)},
                             {"seconds", row.seconds},
                             {"flops", row.flops},
                             {"bytes", row.bytes},
                             {"floor_seconds", floor},
                             {"floor_ratio", row.seconds > 0.0 ? floor / row.seconds : 0.0}});
        }
        fmt::print("{:<44} {:<8} {:8.1f} us {:9.3f} {:9.1f} {:8.3f} {:8.1f} {:8.1f} us {:6.3f}\n", row.name,
                   pass_name(row.backward), 1e6 * row.seconds, 1e-9 * row.flops, 1e-6 * row.bytes,
                   1e-12 * row.flops / row.seconds, 1e-9 * row.bytes / row.seconds, 1e6 * floor, floor / row.seconds);
        std::fflush(stdout);
      });
}

void print_kernels(const StepBench& step) {
  constexpr std::size_t kMost = 40;
  if (!step.kernels_missing.empty()) fmt::print("no times of kernels: {}\n", step.kernels_missing);
  if (step.kernels.empty()) return;
  double sum = 0.0, rest = 0.0;
  std::int64_t calls = 0, rest_calls = 0;
  for (std::size_t i = 0; i < step.kernels.size(); ++i) {
    const KernelTime& kernel = step.kernels[i];
    sum += kernel.seconds;
    calls += kernel.calls;
    if (i < kMost) continue;
    rest += kernel.seconds;
    rest_calls += kernel.calls;
  }
  const auto line = [&](const std::string& name, std::int64_t count, double seconds) {
    fmt::print("  {:>6} {:9.3f} ms {:5.1f} %  {}\n", count, 1e3 * seconds, 100.0 * seconds / sum, name);
  };
  fmt::print("kernel by kernel {:.3f} ms in {} calls\n  {:>6} {:>12} {:>7}  {}\n", 1e3 * sum, calls, "calls", "time",
             "share", "kernel");
  for (std::size_t i = 0; i < std::min(kMost, step.kernels.size()); ++i) {
    line(step.kernels[i].name, step.kernels[i].calls, step.kernels[i].seconds);
  }
  if (rest_calls > 0) line(fmt::format("{} others", step.kernels.size() - kMost), rest_calls, rest);
}

void print(const StepBench& step, const std::string& name) {
  print_speed(step.speed);
  fmt::print("{}: a step of {} tokens takes {:.3f} ms (median of {}), {:.0f} tokens/s, {:.3f} TFLOP/s, MFU {:.1f} %\n",
             name, step.tokens, 1e3 * step.seconds, step.steps, static_cast<double>(step.tokens) / step.seconds,
             1e-12 * step.flops / step.seconds, 100.0 * step.utilisation());
  const double passes = step.forward_seconds + step.backward_seconds, sum = passes + step.optimizer_seconds;
  fmt::print("operation by operation {:.3f} ms: forward {:.3f}, backward {:.3f}, optimizer {:.3f}\n", 1e3 * sum,
             1e3 * step.forward_seconds, 1e3 * step.backward_seconds, 1e3 * step.optimizer_seconds);
  fmt::print("  {:<28} {:<8} {:>6} {:>12} {:>7}\n", "operation", "pass", "calls", "time", "share");
  for (const TapeProfile::Entry& entry : step.operations) {
    fmt::print("  {:<28} {:<8} {:>6} {:9.3f} ms {:5.1f} %\n", entry.op, pass_name(entry.backward), entry.calls,
               1e3 * entry.seconds, 100.0 * entry.seconds / sum);
  }
  print_kernels(step);
}

nlohmann::json to_json(const StepBench& step, const std::string& name) {
  nlohmann::json operations = nlohmann::json::array();
  for (const TapeProfile::Entry& entry : step.operations) {
    operations.push_back({{"operation", entry.op},
                          {"pass", pass_name(entry.backward)},
                          {"calls", entry.calls},
                          {"seconds", entry.seconds}});
  }
  nlohmann::json kernels = nlohmann::json::array();
  for (const KernelTime& kernel : step.kernels) {
    kernels.push_back({{"kernel", kernel.name}, {"calls", kernel.calls}, {"seconds", kernel.seconds}});
  }
  nlohmann::json json = to_json(step.speed);
  json.update({{"recipe", name},
               {"tokens", step.tokens},
               {"steps", step.steps},
               {"seconds", step.seconds},
               {"flops", step.flops},
               {"mfu", step.utilisation()},
               {"forward_seconds", step.forward_seconds},
               {"backward_seconds", step.backward_seconds},
               {"optimizer_seconds", step.optimizer_seconds},
               {"operations", operations},
               {"kernels", kernels}});
  return json;
}

void print(const DecodeBench& decode, const std::string& name) {
  print_speed(decode.speed);
  fmt::print("{}: first token of a prompt of {} after {:.3f} ms ({:.1f} ms the first time)\n", name, decode.prompt,
             1e3 * decode.first_seconds, 1e3 * decode.cold_seconds);
  fmt::print(
      "{:.4f} ms a token (median of {}), {:.1f} tokens/s; the weights, {:.3f} GB, take {:.4f} ms at least, ratio "
      "{:.3f}; states hold {:.1f} MB\n",
      1e3 * decode.seconds, decode.tokens, 1.0 / decode.seconds, 1e-9 * decode.weight_bytes, 1e3 * decode.floor(),
      decode.floor() / decode.seconds, 1e-6 * decode.state_bytes);
}

nlohmann::json to_json(const DecodeBench& decode, const std::string& name) {
  nlohmann::json json = to_json(decode.speed);
  json.update({{"recipe", name},
               {"prompt_tokens", decode.prompt},
               {"first_token_seconds", decode.first_seconds},
               {"cold_first_token_seconds", decode.cold_seconds},
               {"tokens", decode.tokens},
               {"seconds", decode.seconds},
               {"weight_bytes", decode.weight_bytes},
               {"state_bytes", decode.state_bytes},
               {"floor_seconds", decode.floor()}});
  return json;
}

}  // namespace

void run_bench(const BenchArguments& arguments) {
  if (arguments.recipe.empty()) {
    return within_gpu_memory("Use a FILTER that leaves out what is large, --device cpu, or end what else is on the GPU",
                             [&] { bench_operations(arguments); });
  }
  const Recipe recipe = load_recipe(arguments.recipe, arguments.overrides);
  std::int64_t vocabulary = recipe.model.vocabulary;
  if (vocabulary == 0) vocabulary = open_run_data(recipe)->vocabulary();
  if (arguments.decode) {
    DecodeBench decode;
    within_gpu_memory(fmt::format("Use fewer --prompt-tokens (now {}), a smaller model, or end what else is on the GPU",
                                  arguments.prompt),
                      [&] { decode = bench_decode(recipe, vocabulary, arguments.prompt); });
    if (arguments.form == OutputForm::json) return print_line(to_json(decode, recipe.run.name));
    return print(decode, recipe.run.name);
  }
  StepBench step;
  within_gpu_memory(memory_advice(plan_recipe(recipe, vocabulary), recipe),
                    [&] { step = bench_step(recipe, vocabulary); });
  if (arguments.form == OutputForm::json) {
    print_line(to_json(step, recipe.run.name));
  } else {
    print(step, recipe.run.name);
  }
}

}  // namespace weft
