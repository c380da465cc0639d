// The mixer `moba`: every query head attends to the blocks whose mean keys it likes best. README.md has the maths.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& moba_mixer();

}  // namespace weft
