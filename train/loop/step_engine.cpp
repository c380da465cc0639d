#include "train/loop/step_engine.h"

#include "autograd/cuda/cuda_memory.h"
#include "train/loop/cuda_step.h"

namespace weft {

StepEngine::StepEngine(LanguageModel& model, const Place& place, const StepEngineOptions& options)
    : model_(model), place_(place), options_(options) {
  seed_ = to_memory(Tensor::from({1}, std::vector<float>{1.0F}), place.lasting, place.stream);
  sums_ = place.zeros({options.micro_batches, 4}, DType::f64);
  mean_ = place.zeros({1}, DType::f64);
  if (place.on_cpu()) return;
  latest_ = Tensor({4}, DType::f64, place.lasting);
  recorded_denominator_ = Tensor({1}, DType::f32, place.lasting);
  pinned_denominator_ = Tensor({1}, DType::f32, pinned_allocator());
  model.move_constants(place);
  synchronize(place.stream);
}

void StepEngine::begin(double denominator) {
  done_ = 0;
  denominator_ = denominator;
  if (place_.on_cpu()) return;
  for (const auto& [form, recording] : recordings_) recording->slot.rewind();  // the last step was waited for
  *pinned_denominator_.data<float>() = static_cast<float>(denominator);
  copy(recorded_denominator_, pinned_denominator_, place_.stream);
}

void StepEngine::run(const Batch& batch, double denominator, PhaseClock& clock,
                     const std::function<void(Parameter&)>& on_ready) {
  clock.enter(Phase::forward);
  Tape tape(place_.arena, Tape::Mode::record, place_.stream);
  tape.on_parameter_ready = on_ready;
  const LossOptions options{.denominator = denominator,
                            .recorded_denominator = recorded_denominator_,
                            .z_loss = options_.z_loss,
                            .token_losses = {},
                            .unit_seed = true};
  const LossTerms terms = model_.loss(tape, batch.tokens, batch.documents, batch.labels, batch.weights, options);
  copy(place_.on_cpu() ? sums_.rows(done_, done_ + 1) : latest_, terms.sums, place_.stream);
  clock.enter(Phase::backward);
  tape.backward(terms.loss, seed_);
}

void StepEngine::accumulate(const Batch& batch, PhaseClock& clock, const std::function<void(Parameter&)>& on_ready) {
  WEFT_CHECK(done_ < options_.micro_batches, "more than {} micro-batches in a step", options_.micro_batches);
  if (place_.on_cpu()) {
    run(batch, denominator_, clock, on_ready);
  } else {
    accumulate_on_device(batch, clock);
    copy(sums_.rows(done_, done_ + 1), latest_, place_.stream);
  }
  ++done_;
}

void StepEngine::accumulate_on_device(const Batch& batch, PhaseClock& clock) {
  const RowForm form = row_form(batch);
  std::unique_ptr<Recording>& recording = recordings_[form];
  if (recording == nullptr) recording = std::make_unique<Recording>(form, place_);
  RowSlot& slot = recording->slot;
  slot.load(batch, model_.config().vocabulary);
  const auto work = [&] { run(slot.batch(), 1.0, clock, {}); };
  if (!recording->ran || !options_.graphs) {
    work();
    recording->ran = true;
    return;
  }
  if (!recording->graph.recorded()) recording->graph.record(place_.stream, work);
  recording->graph.replay(place_.stream);
}

Tensor StepEngine::mean_loss(Communicator& group) {
  if (place_.on_cpu()) {
    const double local = sums().loss;
    *mean_.data<double>() = all_reduce(group, std::span<const double>(&local, 1), ReduceOp::sum)[0] / denominator_;
  } else {
    WEFT_CHECK(group.size() == 1, "{} ranks on GPUs", group.size());
    mean_loss_cuda({.micro_batches = done_,
                    .sums = sums_.data<double>(),
                    .denominator = recorded_denominator_.data<float>(),
                    .mean = mean_.data<double>()},
                   place_.stream);
  }
  return mean_;
}

LossSums StepEngine::sums() const {
  const Tensor host = to_host(sums_.rows(0, done_), place_.stream);
  LossSums total;
  for (std::int64_t a = 0; a < done_; ++a) {
    const LossSums one = read_loss_sums(host.rows(a, a + 1).reshape({4}), {});
    total.loss += one.loss;
    total.log_z_squared += one.log_z_squared;
    total.weight += one.weight;
    total.token_count += one.token_count;
  }
  return total;
}

}  // namespace weft
