// manifest.json: written last, it makes a directory a checkpoint. Its digest identifies the checkpoint everywhere.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "checkpoints/checkpoint_state.h"

namespace weft {

inline constexpr std::uint64_t kMaxManifestBytes = std::uint64_t{256} << 20;

struct ShardFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string sha256;  // 64 hexadecimal digits
  std::string index_name;
  std::string index_sha256;
};

struct AttachedFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  std::int64_t step = 0;
  std::string nonce;
  int zero_stage = 0;
  std::vector<ShardFile> files;
  std::vector<ParameterRecord> parameters;
  std::map<std::string, double> metrics;
  // Manifests without any (minor version 0) are as they were before there were attachments.
  std::vector<AttachedFile> attachments;
  std::string digest;
  // The objects "mesh", "state", "provenance" and "info" as they were saved.
  std::shared_ptr<const nlohmann::json> mesh, state, provenance, info;
};

// The canonical text, digest included. `manifest.digest` is ignored and computed; the four objects must be there.
std::string format_manifest(const Manifest& manifest);
// Error (storage) naming `source` for anything that format_manifest does not write and for a wrong digest.
Manifest parse_manifest(std::string_view text, std::string_view source);
// Reads and parses directory/manifest.json.
Manifest read_manifest(const std::filesystem::path& directory);

}  // namespace weft
