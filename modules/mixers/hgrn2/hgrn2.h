// HGRN2 (arXiv:2404.07904): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& hgrn2_mixer();

// The lower bound gamma of forget gates in layer `layer` of `layers`: layer / layers.
double hgrn2_lower_bound(std::int64_t layer, std::int64_t layers);

}  // namespace weft
