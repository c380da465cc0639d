// DeltaNet (arXiv:2406.06484): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& deltanet_mixer();

}  // namespace weft
