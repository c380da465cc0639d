// Choosing the checkpoint that a run starts from: the newest that loads, and never silently none.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "checkpoints/checkpoint_group.h"
#include "checkpoints/reader.h"

namespace weft {

struct ResumeRequest {
  enum class Mode {
    automatic,  // the newest valid checkpoint, or none if the run has none
    never,      // start from scratch
    exactly,    // this checkpoint or an error
  };
  Mode mode = Mode::automatic;
  std::filesystem::path checkpoint;  // its directory, for `exactly`
  // Of the data; manifest and indices are verified in any case.
  enum class Verify {
    blocks,   // the CRC of every block that is read
    files,    // and, before loading, the SHA-256 of all files
    nothing,  // nothing: for media that verify by themselves
  };
  Verify verify = Verify::blocks;
};

struct LoadedCheckpoint {
  std::filesystem::path directory;
  std::int64_t step = 0;
  std::string digest;
};

// Collective. Calls `load` with a reader of the newest checkpoint of `run`; when validation or `load` throws an Error
// of code storage on any rank, all ranks go on with the next older one, after one line to `log` on rank 0: what was
// rejected and why. `load` must therefore overwrite everything that an earlier call may have written. Other errors end
// the search on all ranks. If there are checkpoints and none is valid, or the requested one is not: Error (storage).
std::optional<LoadedCheckpoint> choose_checkpoint(const std::filesystem::path& run, const ResumeRequest& request,
                                                  CheckpointGroup& group,
                                                  const std::function<void(const CheckpointReader&)>& load,
                                                  const std::function<void(const std::string&)>& log);

}  // namespace weft
