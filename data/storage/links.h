// Symbolic links in folders from elsewhere, which could lead to any file of the machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace weft {

// Where the files of a model's folder may lie when they are symbolic links.
enum class LinkTargets {
  inside_the_folder,
  // Also <folder>/../../blobs, where the cache of a model hub keeps what its snapshots link to.
  inside_the_hub_cache,
};

// The file behind a bare name, once links are followed. Error (storage), at `source`, if it is not there or outside.
std::filesystem::path resolve_link(const std::filesystem::path& directory, const std::string& name, LinkTargets links,
                                   std::string_view source);

// read_small_file for a file of a model's folder, or of a snapshot in a model hub's cache.
std::string read_model_file(const std::filesystem::path& path, std::uint64_t max_bytes);

}  // namespace weft
