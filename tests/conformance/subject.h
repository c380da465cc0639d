// What the conformance suite runs on: every tiny*.toml of every mixer's folder. No mixer is named here.
#pragma once

#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <vector>

#include "modules/mixer.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"
#include "train/recipe/recipe.h"

namespace weft::testing {

struct Subject {
  std::string name;  // e.g. "gla" or "attention_window"
  std::string path;  // of its recipe
  Recipe recipe;
};

// Registered mixers without a tiny recipe fail the suite's own test.
std::vector<Subject> conformance_subjects();
inline std::string subject_name(const ::testing::TestParamInfo<Subject>& info) {
  return info.param.name;
}
inline void PrintTo(const Subject& subject, std::ostream* out) {
  *out << subject.path;
}

// Where and in which type a layer computes.
struct Target {
  DeviceKind device;
  DType dtype;
};
inline std::string target_name(const Target& target) {
  return fmt::format("{}_{}", target.device == DeviceKind::cpu ? "cpu" : "gpu", name_of(target.dtype));
}

inline void PrintTo(const Target& target, std::ostream* out) {
  *out << target_name(target);
}

// One layer of a subject's mixer with generic parameters: projections of unit gain, and noise on everything else, so
// that no gradient is small for want of a signal. Takes and gives host tensors wherever it computes.
class Layer {
 public:
  Layer(const Subject& subject, DType dtype) : Layer(subject, Target{DeviceKind::cpu, dtype}) {}
  Layer(const Subject& subject, Target target);
  // In fp64 on the CPU with the parameters of another layer, as they were rounded there.
  Layer(const Subject& subject, const Layer& rounded);

  Mixer& mixer() { return *mixer_; }
  std::int64_t width() const { return width_; }
  DType dtype() const { return target_.dtype; }
  std::vector<Parameter*> parameters() { return store_.all(); }

  // Output for x, in hostile memory; the state, if any, goes on.
  Tensor forward(const Tensor& x, const DocumentsPtr& documents, MixerState* state = nullptr);

  struct Gradients {
    Tensor y, dx;
    std::vector<Tensor> parameters;
  };
  // Gradients of <dy, y>. With `recompute`, the layer is a recomputed span.
  Gradients backward(const Tensor& x, const DocumentsPtr& documents, const Tensor& dy, bool recompute = false);

 private:
  Stream stream() const { return target_.device == DeviceKind::cpu ? Stream{} : gpu_stream(); }
  std::shared_ptr<Allocator> memory() const;
  // On the host, with storage of its own.
  Tensor fetch(const Tensor& tensor) const;

  std::int64_t width_;
  Target target_;
  ParameterStore store_;
  std::unique_ptr<Mixer> mixer_;
};

}  // namespace weft::testing
