// The mixer `mla`: multi-head latent attention. README.md has the maths.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& mla_mixer();

}  // namespace weft
