// Linear attention on learned features (Hedgehog, arXiv:2402.04347): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& hedgehog_mixer();

}  // namespace weft
