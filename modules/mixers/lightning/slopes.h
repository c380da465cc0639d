// Constant decays of lightning attention: one log decay per head, scaled down towards the last layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft {

// Log decays g_h <= 0 of the heads of layer `layer` of `layers`, h = 0..H-1. Three conventions circulate:
//   "geometric"  g_h = -2^{-8(h+1)/H} f               (MiniMax-01, arXiv:2501.08313)
//   "alibi"      the same for powers of two; otherwise the slopes of the power of two P below, then every other one of
//                2P                                    (ALiBi, arXiv:2108.12409)
//   "linear"     g_h = -(8h/H) (1 - layer/layers)      (TransNormerLLM, arXiv:2307.14995; head 0 does not decay)
// with f = 1 - layer/(layers - 1 + 1e-5) + 1e-5.
std::vector<double> lightning_log_decays(const std::string& convention, std::int64_t heads, std::int64_t layer,
                                         std::int64_t layers);

}  // namespace weft
