// Multi-scale retention (RetNet, arXiv:2307.08621): README.md.
#pragma once

#include <vector>

#include "modules/mixer.h"

namespace weft {

const MixerType& retnet_mixer();

// ln(1 - 2^{-5-h}) for h = 0..H-1, the same in all layers.
std::vector<double> retnet_log_decays(std::int64_t heads);

}  // namespace weft
