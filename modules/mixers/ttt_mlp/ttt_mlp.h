// TTT-MLP (arXiv:2407.04620): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& ttt_mlp_mixer();

}  // namespace weft
