// Magnitude-aware linear attention, causal (MALA, arXiv:2507.00698): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& mala_mixer();

}  // namespace weft
