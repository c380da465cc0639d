// Lightning attention (TransNormerLLM, arXiv:2307.14995; MiniMax-01, arXiv:2501.08313): README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& lightning_mixer();

}  // namespace weft
