#include "train/plan/plan.h"

#include <algorithm>

#include "autograd/cuda/cuda_devices.h"
#include "train/loop/batch.h"
#include "train/loop/compute.h"
#include "train/optimizers/parameter_groups.h"

namespace weft {
namespace {

#ifdef WEFT_CUDA
constexpr bool kKnowsGpus = true;  // without CUDA nobody knows what its kernels ask for
#else
constexpr bool kKnowsGpus = false;
#endif

// Address space of a planned device: more than any has.
constexpr std::size_t kAddresses = std::size_t{1} << 42;

Place planned_place(DeviceKind kind, DType dtype) {
  const Device device{.kind = kind, .index = Device::kPlanned};
  return {.stream = {.device = device, .handle = nullptr},
          .lasting = std::make_shared<Arena>(device, kAddresses),
          .arena = std::make_shared<Arena>(device, kAddresses),
          .dtype = dtype};
}

double bytes_of(const Tensor& tensor) {
  return static_cast<double>(tensor.nbytes());
}

// Forward and backward of one micro-batch: what the arena holds when the loss is known, at most, and with the gaps
// between its blocks.
struct StepMemory {
  double saved = 0.0;
  double peak = 0.0;
  double extent = 0.0;
};

StepMemory run_planned(LanguageModel& model, const Place& place, const Recipe& recipe, std::int64_t T) {
  const std::int64_t row = recipe.data.sequence_length;
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(T / row), static_cast<std::int32_t>(row));
  const DocumentsPtr documents = Documents::from_lengths(lengths);
  Tape tape(place.arena, Tape::Mode::record, place.stream);
  const Tensor tokens = tape.empty({T}, DType::i32), labels = tape.empty({T}, DType::i32);
  const LossTerms terms = model.loss(tape, tokens, documents, labels, {},
                                     {.z_loss = recipe.model.z_loss, .token_losses = {}, .unit_seed = true});
  const auto saved = static_cast<double>(place.arena->stats().current_bytes);
  tape.backward(terms.loss, tape.empty({1}, terms.loss.dtype()));
  const MemoryStats& stats = place.arena->stats();
  return {saved, static_cast<double>(stats.peak_bytes), static_cast<double>(stats.extent_bytes)};
}

}  // namespace

DeviceRates planned_gpu() {
  const std::vector<CudaDeviceInfo> devices = cuda_devices();
  DeviceRates rates{.name = "H100 SXM", .matrix_flops = 750e12, .bandwidth = 3.0e12, .memory = 79.1 * 1073741824.0};
  if (devices.empty()) return rates;
  rates.name = devices[0].name;
  rates.memory = static_cast<double>(devices[0].memory_bytes);
  return rates;
}

Plan plan_recipe(const Recipe& recipe, std::int64_t vocabulary) {
  if (recipe.run.device == DeviceChoice::cuda && !kKnowsGpus) {
    config_error("a plan for run.device = \"cuda\" needs a weft that was built with CUDA: `cmake --preset cuda`");
  }
  const bool gpu = recipe.run.device != DeviceChoice::cpu && kKnowsGpus;
  const DType dtype = gpu && recipe.run.precision != Precision::fp32 ? DType::bf16 : DType::f32;
  const Place place = planned_place(gpu ? DeviceKind::cuda : DeviceKind::cpu, dtype);
  LanguageModel model(language_model_config(recipe, vocabulary));
  model.parameters().allocate(place);

  Plan plan;
  plan.on_gpu = gpu;
  plan.device = fmt::format("{}, {}", gpu ? "cuda" : "cpu", name_of(dtype));
  plan.parameters = model.parameters().element_count();
  plan.micro_batch_tokens = rows_per_micro_batch(recipe) * recipe.data.sequence_length;
  plan.micro_batches = recipe.data.batch_tokens / plan.micro_batch_tokens;

  double values = 0.0, masters = 0.0, gradients = 0.0, states = 0.0;
  const std::vector<Parameter*> parameters = model.parameters().all();
  for (const Parameter* p : parameters) {
    masters += bytes_of(p->master);
    gradients += bytes_of(p->grad);
    if (p->value.dtype() != p->master.dtype()) values += bytes_of(p->value);
  }
  const std::vector<ParameterPlan> rules = plan_parameters(parameters, optimizer_options(recipe));
  for (const ParameterPlan& p : rules) states += static_cast<double>(p.state_bytes);
  plan.rules = describe_plans(rules);
  const StepMemory step = run_planned(model, place, recipe, plan.micro_batch_tokens);
  plan.memory = {{"master weights", masters},
                 {"gradients", gradients},
                 {"optimizer states", states},
                 {"activations kept for backward", step.saved},
                 {"a step's peak above them", step.peak - step.saved},
                 {"gaps between them", step.extent - step.peak}};
  if (values > 0.0) plan.memory.push_back({"weights in bf16", values});
  std::ranges::stable_sort(plan.memory, std::greater(), &PlannedPart::bytes);
  for (const PlannedPart& part : plan.memory) plan.total_bytes += part.bytes;

  const ModelCost cost = model.cost(recipe.data.batch_tokens, recipe.data.sequence_length);
  plan.flops = cost.total();
  const DeviceRates rates = planned_gpu();
  // Every kept activation is written and read once, weights and gradients are read and written, states updated.
  plan.moved_bytes = static_cast<double>(plan.micro_batches) * (2.0 * step.saved + 2.0 * values + 2.0 * gradients) +
                     2.0 * (masters + states) + gradients;
  plan.matrix_seconds = plan.flops / rates.matrix_flops;
  plan.memory_seconds = plan.moved_bytes / rates.bandwidth;
  return plan;
}

std::string memory_advice(const Plan& plan, const Recipe& recipe) {
  std::string largest;
  for (std::size_t i = 0; i < 3; ++i) {
    largest +=
        fmt::format("{}{} {:.2f} GiB", i == 0 ? "" : ", ", plan.memory[i].name, plan.memory[i].bytes / 1073741824.0);
  }
  std::string ways;
  const auto way = [&](const std::string& text) { ways += (ways.empty() ? "" : ", or ") + text; };
  if (recipe.model.recompute == Recompute::none) way("model.recompute = \"selective\" (now \"none\")");
  if (recipe.model.recompute != Recompute::block) way("model.recompute = \"block\"");
  const std::int64_t row = recipe.data.sequence_length;
  if (plan.micro_batch_tokens > row) {
    const std::int64_t fewer = plan.micro_batch_tokens / 2 / row * row;
    way(fmt::format("parallel.micro_batch_tokens = {} (now {})", fewer, plan.micro_batch_tokens));
  } else {
    way(fmt::format("a shorter data.sequence_length (now {})", row));
  }
  way("a smaller model");
  return fmt::format("`weft plan` counts {:.2f} GiB for a step, of them {}. Use {}", plan.total_bytes / 1073741824.0,
                     largest, ways);
}

}  // namespace weft
