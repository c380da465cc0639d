// Sliding-window attention beside a memory of fast weights (AllMem, arXiv:2602.13680; LaCT, arXiv:2505.23884):
// README.md.
#pragma once

#include "modules/mixer.h"

namespace weft {

const MixerType& swa_ttt_mixer();

}  // namespace weft
