// The rotary positions of a config.json, in the form of any release: `rope_parameters`, for all layers or by their
// kind, and the older `rope_theta` with `rope_scaling`.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "autograd/ops/rope/rope.h"
#include "checkpoints/huggingface/config_reader.h"

namespace weft {

struct HubRope {
  double theta = 10000.0;
  RopeScaling scaling;
  bool operator==(const HubRope&) const = default;
};

// The rotary positions of each of `kinds` ("full_attention", ...), in their order. Where both forms are there they must
// agree. Error (config) for what weft does not compute, by name.
std::vector<HubRope> read_rope(ConfigReader& config, const std::vector<std::string>& kinds, double default_theta,
                               std::int64_t max_positions);

// Adds `rope_parameters` and, for older releases, `rope_theta` and `rope_scaling`.
void write_rope(nlohmann::json& config, const HubRope& rope);

}  // namespace weft
