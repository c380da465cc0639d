// Mamba-2, the state space dual layer (arXiv:2405.21060): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& mamba2_mixer();

}  // namespace weft
