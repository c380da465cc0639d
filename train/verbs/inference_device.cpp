#include "train/verbs/inference_device.h"

namespace weft {
namespace {

// Tables, and memory that the driver hands out in large pieces.
constexpr double kOtherBytes = 256e6;

}  // namespace

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
  double bytes = kOtherBytes;
  // Pages are taken for twice the tokens at most; the states' own figures are for fp32.
  for (std::int64_t l = 0; l < model.config().layers; ++l) {
    bytes += static_cast<double>(sequences) * model.block(l).mixer().state_bytes(2 * tokens);
  }
  compute_->open_arena(static_cast<std::size_t>(bytes), "the states of sequences");
}

}  // namespace weft
