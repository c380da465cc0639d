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
#include "train/verify/specimen.h"

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

// A place for checks: hostile memory.
Place hostile_place(Target target);

// The subject's mixer as the part of a model that precision checks take.
SpecimenDeclaration mixer_of(const Subject& subject);

// One layer of a subject's mixer with generic parameters. Takes and gives host tensors wherever it computes.
class Layer {
 public:
  Layer(const Subject& subject, DType dtype) : Layer(subject, Target{DeviceKind::cpu, dtype}) {}
  Layer(const Subject& subject, Target target);
  // The same layer in fp64 on the CPU, with the parameters as they were rounded where it computes.
  Layer exact() const;

  Mixer& mixer() { return *mixer_; }
  Specimen& specimen() { return *specimen_; }
  std::int64_t width() const { return width_; }
  DType dtype() const { return specimen_->place().dtype; }
  std::vector<Parameter*> parameters() { return specimen_->parameters().all(); }

  // Output for x, in hostile memory; the state, if any, goes on.
  Tensor forward(const Tensor& x, const DocumentsPtr& documents, MixerState* state = nullptr);

  std::unique_ptr<MixerState> initial_state(std::int64_t sequences) const;

  struct Gradients {
    Tensor y, dx;
    std::vector<Tensor> parameters;
  };
  // Gradients of <dy, y>. Unless `recompute` is none, the layer is a recomputed span.
  Gradients backward(const Tensor& x, const DocumentsPtr& documents, const Tensor& dy,
                     Recompute recompute = Recompute::none);

 private:
  Layer(const Subject& subject, const Layer& rounded);
  SpecimenDeclaration declaration();

  Subject subject_;
  std::int64_t width_;
  std::shared_ptr<Mixer> mixer_;
  std::unique_ptr<Specimen> specimen_;
};

}  // namespace weft::testing
