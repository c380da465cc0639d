// Kimi Delta Attention (arXiv:2510.26692): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& kda_mixer();

}  // namespace weft
