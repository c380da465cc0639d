// The device that a rank computes on.
#pragma once

#include <optional>
#include <string>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/place.h"
#include "parallel/launch.h"
#include "train/recipe/recipe.h"

namespace weft {

class Compute {
 public:
  // "auto" takes the first GPU if there is one and the world has one rank, else the CPU. Error (config) if what the
  // recipe asks for is not there, saying what is. `asked` is how the user asked for the GPU, for messages.
  Compute(const RunSection& run, const World& world, const std::string& asked = "run.device = \"cuda\"");

  const Place& place() const { return place_; }
  // Lets steps take device memory up to what is left when `lasting_bytes` more will last, of `what` (for messages). On
  // the CPU steps have an arena from the start.
  void open_arena(std::size_t lasting_bytes, const char* what = "optimizer states");

  // For the first line of a run: "NVIDIA H100 80GB HBM3, bf16" or "CPU, fp32".
  const std::string& description() const { return description_; }
  // Floating-point operations a second of a large matrix product in the type of activations: the yardstick of model
  // FLOP utilisation. Takes 0.2 s.
  double measure_matrix_rate() const;

 private:
  std::optional<CudaStream> stream_;
  Place place_;
  std::string description_;
};

}  // namespace weft
