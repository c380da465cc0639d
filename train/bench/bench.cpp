#include "train/bench/bench.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "autograd/parallel_for.h"
#include "autograd/random_tensor.h"
#include "autograd/stopwatch.h"
#include "parallel/launch.h"
#include "train/bench/device_speed.h"
#include "train/loop/compute.h"

namespace weft {
namespace {

constexpr int kWarmUp = 3;
constexpr double kMostSeconds = 1.0;  // for the repeats; what is slow is timed less often
constexpr int kLeastRepeats = 3;
constexpr std::size_t kMixerParameters = std::size_t{2} << 30;  // bytes, values, masters and gradients of one layer

DType stored_type(const BenchInput& input, DType activations) {
  return input.kind == BenchInput::Kind::vector ? accumulator_dtype(activations) : activations;
}

// Normal numbers, other ones for every `seed`, that repeat out of step with heads and tokens: a GPU at its power limit
// runs faster on numbers that are alike, and queries that equal their keys see nothing but themselves.
Tensor numbers(const BenchInput& input, DType dtype, std::uint64_t seed, const Place& place) {
  constexpr std::int64_t kPeriod = 65521;  // a prime
  const Tensor draws = normal({kPeriod}, seed, input.deviation);
  for (double& x : draws.span<double>()) x += input.mean;
  const Tensor t(input.shape, dtype, place.arena);
  const Tensor period = to_memory(to_host(draws, t.dtype(), {}), place.arena, place.stream);
  const std::int64_t n = t.numel();
  const Tensor flat = t.reshape({n});
  for (std::int64_t i = 0; i < n; i += kPeriod) {
    const std::int64_t end = std::min(n, i + kPeriod);
    copy(flat.rows(i, end), period.rows(0, end - i), place.stream);
  }
  return t;
}

struct Passes {
  double forward, backward;  // seconds
};

// Medians of a forward and a backward pass, each on a fresh tape, with weights and vectors as parameters, whose
// gradients are added to as in training. The host waits once, after all of them: a GPU always has work ahead, so that
// its time is not that of launches.
Passes time_passes(const Place& place, const BenchCase& c, int repeats) {
  std::vector<Tensor> inputs, seeds;
  std::deque<Parameter> parameters;  // tapes keep their addresses
  for (const BenchInput& input : c.inputs) {
    inputs.push_back(numbers(input, stored_type(input, place.dtype), inputs.size(), place));
    if (input.kind == BenchInput::Kind::activation) continue;
    const Tensor grad(input.shape, accumulator_dtype(place.dtype), place.arena);
    fill(grad, 0.0, place.stream);
    parameters.push_back(
        {.name = {}, .shape = input.shape, .init = {}, .value = inputs.back(), .grad = grad, .master = {}});
  }
  Stopwatch stopwatch(place.stream);
  const auto pass = [&] {
    Tape tape(place.arena, Tape::Mode::record, place.stream);
    std::vector<Var> leaves;
    auto parameter = parameters.begin();
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      const bool activation = c.inputs[k].kind == BenchInput::Kind::activation;
      leaves.push_back(activation ? tape.leaf(inputs[k]) : tape.parameter(*parameter++));
    }
    stopwatch.mark();
    const std::vector<Var> outputs = c.function(tape, leaves);
    for (std::size_t k = seeds.size(); k < outputs.size(); ++k) {  // while it warms up
      const Tensor& y = outputs[k].value;
      seeds.push_back(numbers({y.shape()}, y.dtype(), inputs.size() + k, place));
    }
    stopwatch.mark();
    tape.backward(outputs, seeds);
    stopwatch.mark();
  };
  double warm = 0.0, one = 0.0;  // seconds of all passes until now, of the last one
  for (int i = 0; i < kWarmUp && warm < kMostSeconds; ++i) {
    pass();
    const std::vector<double> seconds = stopwatch.take();
    warm += one = seconds[0] + seconds[1];
  }
  const double most = kMostSeconds / std::max(one, 1e-9);
  if (most < repeats) repeats = std::min(repeats, std::max(kLeastRepeats, static_cast<int>(most)));
  for (int i = 0; i < repeats; ++i) pass();
  const std::vector<double> seconds = stopwatch.take();
  std::vector<double> forward, backward;
  for (std::size_t i = 0; i + 1 < seconds.size(); i += 3) {
    forward.push_back(seconds[i]);
    backward.push_back(seconds[i + 1]);
  }
  return {median(forward), median(backward)};
}

double bytes_of(const BenchWork& work, DType activations) {
  return work.elements * static_cast<double>(size_of(activations)) +
         work.wide * static_cast<double>(size_of(accumulator_dtype(activations)));
}

// A layer of a mixer; its options are the defaults, but for heads of the shape. `layer` keeps what the case refers to.
struct MixerLayer {
  ParameterStore parameters;
  std::unique_ptr<Mixer> mixer;
};

BenchCase mixer_case(const MixerType& type, const BenchShape& s, const Place& place, MixerLayer& layer) {
  const std::int64_t T = s.T / 8;
  Options options(type.options);
  for (const auto& [key, value] : {std::pair{"heads", s.H}, std::pair{"head_dim", s.D}}) {
    if (options.values().contains(key)) options.set(key, value);
  }
  const MixerSite site{.width = s.width, .layers = 24, .layer = 1, .max_tokens = T};
  layer.mixer = type.create(ParameterScope(layer.parameters), site, options, "[mixer." + type.name + "]");
  layer.parameters.initialise(1, place);
  layer.mixer->move_constants(place);
  const DocumentsPtr documents = Documents::single(T);
  const MixerCost cost = layer.mixer->cost(T, T);
  // Costs count bytes in fp32. Backward reads what was kept and what forward read, and writes as many gradients.
  const double forward = cost.forward_bytes / 4.0;
  return {.name = fmt::format("mixer {}, {} tokens", type.name, T),
          .inputs = {{{T, s.width}}},
          .function =
              [mixer = layer.mixer.get(), documents](Tape& tape, std::span<const Var> in) {
                return std::vector{mixer->forward(tape, in[0], documents, nullptr)};
              },
          .forward = {.elements = forward, .flops = cost.forward_flops},
          .backward = {.elements = 2.0 * forward, .flops = cost.backward_flops}};
}

}  // namespace

double BenchRow::floor(const DeviceSpeed& speed) const {
  return std::max(flops / speed.matrix_rate, bytes / speed.bandwidth);
}

BenchShape bench_shape(bool gpu) {
  if (gpu) return {.T = 65536, .width = 2048, .H = 16, .D = 128, .vocabulary = 50304, .classes = 131072};
  return {.T = 8192, .width = 512, .H = 8, .D = 64, .vocabulary = 8192, .classes = 8192};
}

void bench(const BenchOptions& options, const std::function<void(const DeviceSpeed&)>& on_speed,
           const std::function<void(const BenchRow&, const DeviceSpeed&)>& on_row) {
  RunSection run;
  run.device = options.device == "cpu"    ? DeviceChoice::cpu
               : options.device == "cuda" ? DeviceChoice::cuda
                                          : DeviceChoice::automatic;
  Compute compute(run, World(self_communicator()));
  compute.open_arena(kMixerParameters);
  const Place& place = compute.place();
  const BenchShape shape = options.shape ? *options.shape : bench_shape(!place.on_cpu());
  const auto chosen = [&](const std::string& name) { return name.find(options.filter) != std::string::npos; };

  std::vector<BenchCase> cases = bench_cases(shape);
  std::erase_if(cases, [&](const BenchCase& c) { return !chosen(c.name); });
  std::vector<const MixerType*> mixers = mixer_types();
  std::erase_if(mixers, [&](const MixerType* type) { return !chosen("mixer " + type->name); });
  if (cases.empty() && mixers.empty()) {
    config_error("no operation or mixer has \"{}\" in its name; `weft bench` without it times them all",
                 options.filter);
  }

  const DeviceSpeed speed = measure_speed(compute);
  on_speed(speed);
  const auto time = [&](const BenchCase& c) {
    const Passes passes = time_passes(place, c, options.repeats);
    on_row({c.name, false, passes.forward, c.forward.flops, bytes_of(c.forward, place.dtype)}, speed);
    on_row({c.name, true, passes.backward, c.backward.flops, bytes_of(c.backward, place.dtype)}, speed);
  };
  for (const BenchCase& c : cases) time(c);
  for (const MixerType* type : mixers) {
    MixerLayer layer;
    time(mixer_case(*type, shape, place, layer));
  }
}

}  // namespace weft
