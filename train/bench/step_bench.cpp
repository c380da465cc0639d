#include <algorithm>

#include "autograd/random_tensor.h"
#include "autograd/stopwatch.h"
#include "parallel/launch.h"
#include "train/bench/bench.h"
#include "train/bench/device_speed.h"
#include "train/loop/row_slots.h"
#include "train/loop/step_engine.h"
#include "train/optimizers/optimizer.h"

namespace weft {
namespace {

constexpr int kWarmUp = 3;
constexpr double kMostSeconds = 60.0;  // for the timed steps; a step that is slow is timed less often
constexpr int kLeastSteps = 3;

// A micro-batch of random tokens in host memory, each row one document.
Batch random_batch(const Recipe& recipe, std::int64_t vocabulary) {
  const std::int64_t rows = rows_per_micro_batch(recipe), T = rows * recipe.data.sequence_length;
  const auto ids = [&](std::uint64_t seed) {
    const Tensor draws = uniform({T}, seed, 0.0, static_cast<double>(vocabulary));
    const Tensor t = Tensor::empty({T}, DType::i32);
    for (std::int64_t i = 0; i < T; ++i) t.data<std::int32_t>()[i] = static_cast<std::int32_t>(draws.data<double>()[i]);
    return t;
  };
  const std::vector<std::int32_t> lengths(static_cast<std::size_t>(rows),
                                          static_cast<std::int32_t>(recipe.data.sequence_length));
  return {.tokens = ids(1), .labels = ids(2), .weights = {}, .documents = Documents::from_lengths(lengths)};
}

// What a step of training does with the gradients, at a rate of 0, so that the model stays what it is.
class Steps {
 public:
  Steps(const Recipe& recipe, std::int64_t vocabulary, Compute& compute)
      : recipe_(recipe),
        compute_(compute),
        model_(language_model_config(recipe, vocabulary)),
        batch_(random_batch(recipe, vocabulary)),
        vocabulary_(vocabulary) {
    const Place& place = compute.place();
    model_.initialise(1, place);
    const OptimizerOptions options = optimizer_options(recipe);
    std::int64_t state_bytes = 0;
    for (const ParameterPlan& plan : plan_parameters(model_.parameters().all(), options)) {
      state_bytes += plan.state_bytes;
    }
    compute.open_arena(static_cast<std::size_t>(state_bytes));
    optimizer_.emplace(model_.parameters().all(), options,
                       OptimizerPlace{.stream = place.stream, .memory = place.lasting, .scratch = place.arena});
    micro_batches_ = recipe.data.batch_tokens / batch_.tokens.numel();
    engine_.emplace(model_, place,
                    StepEngineOptions{.z_loss = recipe.model.z_loss,
                                      .graphs = recipe.run.cuda_graphs && model_.not_recordable().empty(),
                                      .micro_batches = micro_batches_});
  }

  // As training makes it.
  void whole() {
    optimizer_->prepare({.schedule_factor = 0.0, .clip = recipe_.optimizer.clip});
    engine_->begin(static_cast<double>(recipe_.data.batch_tokens));
    PhaseClock clock;
    for (std::int64_t a = 0; a < micro_batches_; ++a) engine_->accumulate(batch_, clock);
    update(engine_->mean_loss(*self_communicator()));
  }

  // The same operation by operation; fills in what it tells.
  void profiled(StepBench& result) {
    const Place& place = compute_.place();
    // On a GPU in the tables that training uses, so that operations find theirs without making them.
    std::optional<RowSlot> slot;
    if (!place.on_cpu()) {
      slot.emplace(row_form(batch_), place);
      slot->load(batch_, vocabulary_);
    }
    const Batch& batch = slot ? slot->batch() : batch_;
    const Tensor seed = to_memory(Tensor::from({1}, std::vector<float>{1.0F}), place.lasting, place.stream);
    const auto one_pass = [&] {
      Tape tape(place.arena, Tape::Mode::record, place.stream);
      const LossTerms terms = model_.loss(tape, batch.tokens, batch.documents, batch.labels, {},
                                          {.denominator = static_cast<double>(recipe_.data.batch_tokens),
                                           .z_loss = recipe_.model.z_loss,
                                           .token_losses = {},
                                           .unit_seed = true});
      tape.backward(terms.loss, seed);
    };
    // The host does not wait between the pass that warms up and those that count: it stays ahead of the device.
    one_pass();
    TapeProfile profile(place.stream);
    for (std::int64_t a = 0; a < micro_batches_; ++a) {
      profile.skip();
      one_pass();
    }
    result.operations = profile.entries();
    for (const TapeProfile::Entry& entry : result.operations) {
      (entry.backward ? result.backward_seconds : result.forward_seconds) += entry.seconds;
    }
    optimizer_->prepare({.schedule_factor = 0.0, .clip = recipe_.optimizer.clip});
    synchronize(place.stream);
    Stopwatch stopwatch(place.stream);
    stopwatch.mark();
    update({});
    stopwatch.mark();
    result.optimizer_seconds = stopwatch.take()[0];
  }

  double flops() const { return model_.cost(recipe_.data.batch_tokens, recipe_.data.sequence_length).total(); }

 private:
  void update(const Tensor& loss) {
    optimizer_->step(loss);
    optimizer_->finish();
  }

  const Recipe& recipe_;
  Compute& compute_;
  LanguageModel model_;
  Batch batch_;
  std::int64_t vocabulary_, micro_batches_ = 1;
  std::optional<Optimizer> optimizer_;
  std::optional<StepEngine> engine_;
};

}  // namespace

StepBench bench_step(const Recipe& recipe, std::int64_t vocabulary, int steps) {
  Compute compute(recipe.run, World(self_communicator()));
  Steps step(recipe, vocabulary, compute);
  StepBench result;
  result.speed = measure_speed(compute);
  result.tokens = recipe.data.batch_tokens;
  result.flops = step.flops();
  step.profiled(result);
  for (int i = 0; i < kWarmUp; ++i) step.whole();
  // The host's clock: whole() waits for the device, and what it waits for is what training waits for.
  std::vector<double> seconds;
  double sum = 0.0;
  while (static_cast<int>(seconds.size()) < steps &&
         (sum < kMostSeconds || static_cast<int>(seconds.size()) < kLeastSteps)) {
    Stopwatch clock{Stream{}};
    clock.mark();
    step.whole();
    clock.mark();
    seconds.push_back(clock.take()[0]);
    sum += seconds.back();
  }
  result.steps = static_cast<int>(seconds.size());
  result.seconds = median(seconds);
  if (compute.place().on_cpu()) return result;
  // Last, because what watches kernels slows them.
  KernelProfile profile;
  step.whole();
  result.kernels = profile.take();
  result.kernels_missing = profile.missing();
  return result;
}

}  // namespace weft
