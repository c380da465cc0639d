// Saving a checkpoint, collectively. A crash at any instant leaves every earlier checkpoint as it was, and the new one
// either complete or ignored; README.md has the protocol.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoints/checkpoint_group.h"
#include "checkpoints/checkpoint_state.h"
#include "checkpoints/layout.h"
#include "checkpoints/retention.h"
#include "checkpoints/shard_index.h"

namespace weft {

struct SaveOptions {
  RetentionPolicy retention;
  // Free space that must remain beside 1.1 times the checkpoint.
  std::uint64_t spare_bytes = std::uint64_t{1} << 30;
  std::uint64_t crc_block_bytes = kDefaultCrcBlockBytes;
  ProtocolHook hook;
};

struct SaveResult {
  bool saved = false;
  // Why not, for the log; complete by itself.
  std::string failure;
  std::filesystem::path directory;
  std::string digest;
  std::uint64_t bytes = 0;  // of all files
  double seconds = 0;
  // On rank 0: what else happened (space made, checkpoints deleted by retention, LATEST not written). For the log.
  std::vector<std::string> notes;
};

// Saves `state` as RUN/checkpoints/step_<step> and then applies retention. All ranks call it and get the same outcome;
// it returns when the outcome is known. Storage problems (no space, I/O errors) are no exceptions: training goes on,
// and the caller decides how many failures in a row are too many. Contradictory `state` is a defect of the caller
// (Error, internal), on the rank that has it.
SaveResult save_checkpoint(const std::filesystem::path& run, const CheckpointState& state, CheckpointGroup& group,
                           const SaveOptions& options = {});

}  // namespace weft
