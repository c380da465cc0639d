// Describing checkpoints: what `weft inspect` prints. Nothing is verified beyond what reading needs.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace weft {

// Describes a run, a checkpoint or a shard file (see classify_checkpoint_path); Error (storage) for anything else.
// A run lists its checkpoints, damaged ones with the reason; a checkpoint has step, digest, mesh, parameters with
// shape, stored kinds, types and bytes, and its scalar state; a shard file has its slices.
nlohmann::json inspect_checkpoint_json(const std::filesystem::path& path);
// The same for people.
std::string inspect_checkpoint_text(const std::filesystem::path& path);

}  // namespace weft
