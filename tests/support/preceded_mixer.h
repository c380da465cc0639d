// A mixer whose input first passes through something else, such as a planted fault.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "modules/mixer.h"

namespace weft::testing {

class PrecededMixer final : public Mixer {
 public:
  using Step = std::function<Var(Tape&, const Var&)>;

  PrecededMixer(Step before, std::unique_ptr<Mixer> mixer) : before_(std::move(before)), mixer_(std::move(mixer)) {}

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override {
    return mixer_->forward(tape, before_(tape, x), documents, state);
  }
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override {
    return mixer_->initial_state(sequences, place);
  }
  MixerCost cost(std::int64_t tokens, std::int64_t length) const override { return mixer_->cost(tokens, length); }
  double state_bytes(std::int64_t length) const override { return mixer_->state_bytes(length); }

 private:
  Step before_;
  std::unique_ptr<Mixer> mixer_;
};

}  // namespace weft::testing
