// The mixer `nsa`, Native Sparse Attention: compressed blocks, selected blocks and a window, mixed by gates. README.md
// has the maths.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& nsa_mixer();

}  // namespace weft
