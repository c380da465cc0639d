#include "train/verbs/inference_device.h"

#include "train/generate/decoder.h"

namespace weft {
void within_gpu_memory(const std::string& advice, const std::function<void()>& work) {
  try {
    work();
  } catch (const OutOfGpuMemory& error) {
    config_error("the GPU's memory does not suffice: {}. {}", error.what(), advice);
  }
}

const Place& InferenceDevice::choose(const Recipe& recipe) {
  RunSection run = recipe.run;
  // What a model was trained on says nothing about this machine, but "cpu" is a wish.
  if (run.device == DeviceChoice::cuda) run.device = DeviceChoice::automatic;
  if (device_ == "auto") run.device = DeviceChoice::automatic;
  if (device_ == "cpu") run.device = DeviceChoice::cpu;
  if (device_ == "cuda") run.device = DeviceChoice::cuda;
  if (run.precision == Precision::bf16) run.precision = Precision::automatic;
  compute_.emplace(run, world_, "--device cuda");
  return compute_->place();
}

void InferenceDevice::open_arena(const LanguageModel& model, std::int64_t sequences, std::int64_t tokens) {
  const double bytes = decoding_bytes(model, place().dtype, sequences, tokens);
  compute_->open_arena(static_cast<std::size_t>(bytes), "the states of sequences");
}

}  // namespace weft
