// Where eval and generate compute: on the first GPU if there is one, unless --device or the model's recipe says "cpu".
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "train/loop/compute.h"
#include "train/loop/run_folder.h"

namespace weft {

// Does `work`; where a GPU has too little memory for it, the error says so and gives `advice`: "Use ...".
void within_gpu_memory(const std::string& advice, const std::function<void()>& work);

class InferenceDevice {
 public:
  // `device` is --device: auto, cpu, cuda, or empty.
  InferenceDevice(std::string device, const World& world) : device_(std::move(device)), world_(world) {}

  // For load_model().
  PlaceOf place_of() {
    return [this](const Recipe& recipe) { return choose(recipe); };
  }
  // When the model is loaded: leaves room for states of so many sequences of so many tokens.
  void open_arena(const LanguageModel& model, std::int64_t sequences, std::int64_t tokens);

  const Place& place() const { return compute_->place(); }
  // "NVIDIA H100 80GB HBM3, bf16", "CPU, fp32"
  const std::string& description() const { return compute_->description(); }

 private:
  const Place& choose(const Recipe& recipe);

  std::string device_;
  const World& world_;
  std::optional<Compute> compute_;
};

}  // namespace weft
