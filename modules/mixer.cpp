#include "modules/mixer.h"

#include "autograd/check.h"

namespace weft {

Tensor Mixer::decode(Tape& tape, const Tensor& x, std::span<const std::int32_t> positions, MixerState& state) {
  WEFT_CHECK(x.dim(0) == static_cast<std::int64_t>(positions.size()), "{} tokens, {} positions", x.dim(0),
             positions.size());
  return forward(tape, Tape::constant(x), Documents::single_tokens(positions), &state).value;
}

const MixerType* find_mixer(const std::string& name) {
  for (const MixerType* type : mixer_types()) {
    if (type->name == name) return type;
  }
  return nullptr;
}

}  // namespace weft
