// Gated linear attention (arXiv:2312.06635): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& gla_mixer();

}  // namespace weft
