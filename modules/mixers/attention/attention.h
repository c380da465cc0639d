// The mixer `attention`: full or sliding-window softmax attention with grouped heads. README.md has the maths.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& attention_mixer();

}  // namespace weft
