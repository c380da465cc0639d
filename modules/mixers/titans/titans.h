// Titans (arXiv:2501.00663), with memory as a gate, as a context or as a layer: README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& titans_mixer();

}  // namespace weft
