// Checking checkpoints on disk, thoroughly: what `weft fsck` does.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "checkpoints/reader.h"

namespace weft {

using PrintLine = std::function<void(const std::string&)>;

// Verifies a run (or its checkpoints folder), or one checkpoint: sizes, SHA-256 of every file, CRC-32C of every block,
// and that index and HDF5 file say the same. Prints a line per checkpoint, newest first. True if there is at least one
// and all are good.
bool fsck(const std::filesystem::path& path, const PrintLine& print);

// Checks one shard of a checkpoint through the HDF5 library against its index. Error (storage) with the first
// difference.
void compare_with_hdf5(const CheckpointReader& reader, std::size_t shard);

// What a path is, for tools that take runs, checkpoints and files.
enum class CheckpointPath { none, run, checkpoint, shard };
// A run's folder or its checkpoints folder; a checkpoint's folder or its manifest.json; a shard file.
CheckpointPath classify_checkpoint_path(const std::filesystem::path& path);
// The run's folder of a path classified as run: the path or its parent.
std::filesystem::path run_of(const std::filesystem::path& path);

}  // namespace weft
