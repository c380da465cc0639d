// Titans with window attention: memory as a gate ("mag") and memory as a layer ("mal").
#pragma once

#include "modules/mixers/titans/parts.h"

namespace weft::titans {

class WindowedState final : public MixerState {
 public:
  WindowedState(MemoryState memory_, KeyValueCache cache_) : memory(std::move(memory_)), cache(std::move(cache_)) {}
  std::unique_ptr<MixerState> clone() const override {
    return std::make_unique<WindowedState>(memory.clone(), KeyValueCache(cache));
  }
  std::size_t bytes() const override { return memory.bytes() + cache.bytes(); }

  MemoryState memory;
  KeyValueCache cache;
};

//   mag:  y = wo (RMSNorm(attention(x); norm_o) * sigma(RMSNorm(memory(x); norm_m)))
//   mal:  y = wo attention(RMSNorm(memory(x); norm_m))
class WindowedTitans final : public Mixer {
 public:
  WindowedTitans(const ParameterScope& scope, const Config& config);

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override;
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override;
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;
  double state_bytes(std::int64_t length) const override;

 private:
  Config c_;
  Memory memory_;
  ShortAttention attention_;
  Parameter* norm_o_ = nullptr;
  Parameter *norm_m_, *wo_;
};

}  // namespace weft::titans
