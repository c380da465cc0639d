// TTT-Linear (arXiv:2407.04620): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& ttt_linear_mixer();

}  // namespace weft
