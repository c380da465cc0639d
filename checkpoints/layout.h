// The names inside RUN/checkpoints, and what may be done with directories there: list, discard, clean.
//
//   step_0000012000/              complete and immutable: manifest.json, shard_00000.h5, shard_00000.idx.json,
//                                 attachments, [PINNED]
//   step_0000013000.tmp-<nonce>/  being written, or left by a process that died
//   .trash-<nonce>/               being deleted
//   LATEST                        name of the newest directory, for people and scripts
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

inline constexpr std::int64_t kMaxStep = 9'999'999'999;

// Where a save or a deletion stands, by name. Called at every step of the protocols; tests stop or fail there.
using ProtocolHook = std::function<void(std::string_view)>;

std::filesystem::path checkpoints_directory(const std::filesystem::path& run);
std::string step_directory_name(std::int64_t step);  // "step_0000012000"
std::string shard_name(int writer);                  // "shard_00000.h5"
std::string index_name(int writer);                  // "shard_00000.idx.json"
inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kPinnedName = "PINNED";

// The step of a complete checkpoint's directory name, -1 for any other name.
std::int64_t step_of_directory_name(std::string_view name);
// An unfinished save or a half-deleted checkpoint.
bool is_debris_name(std::string_view name);
// True for names that the files of every checkpoint have or may have: manifest, shards, indices, PINNED.
bool is_reserved_name(std::string_view name);
// A name without any path: letters, digits, dot, dash and underscore, not beginning with a dot.
bool is_bare_name(std::string_view name);

struct CheckpointEntry {
  std::filesystem::path directory;
  std::int64_t step = 0;
};

// All step_* directories of a run, newest first, whether valid or not. None if the run has no checkpoints directory.
std::vector<CheckpointEntry> list_checkpoints(const std::filesystem::path& run);
// Unfinished saves and half-deleted checkpoints of a run.
std::vector<std::filesystem::path> list_debris(const std::filesystem::path& run);

// Deletes a checkpoint in two steps: it loses its name at once and durably, then its files go.
std::filesystem::path move_to_trash(const std::filesystem::path& directory, const ProtocolHook& hook = {});
void remove_trash(const std::filesystem::path& trash, const ProtocolHook& hook = {});
// Deletes debris; only the process that holds the run's lock may. Returns what was deleted.
std::vector<std::filesystem::path> clean_debris(const std::filesystem::path& run);

}  // namespace weft
