// Gated delta net (arXiv:2412.06464): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& gdn_mixer();

}  // namespace weft
