// Linear attention on second-order Taylor features (BASED, arXiv:2402.18668): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& based_mixer();

}  // namespace weft
