// The mixer `infllm2`: dense attention that turns block-sparse where it gets long, with no parameters of its own.
// README.md has the maths.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& infllm2_mixer();

}  // namespace weft
