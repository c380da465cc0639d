// Everything that decides how a run goes on, to and from a checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "autograd/place.h"
#include "checkpoints/checkpoint_group.h"
#include "checkpoints/checkpoint_state.h"
#include "checkpoints/reader.h"
#include "data/tokenizers/tokenizer_files.h"
#include "modules/language_model.h"
#include "parallel/communicator.h"
#include "train/optimizers/optimizer.h"
#include "train/optimizers/step_guard.h"

namespace weft {

// The ranks of a communicator, as checkpoints see them.
class CommunicatorGroup final : public CheckpointGroup {
 public:
  explicit CommunicatorGroup(Communicator& communicator) : communicator_(communicator) {}
  int rank() const override { return communicator_.rank(); }
  int size() const override { return communicator_.size(); }
  std::vector<std::string> gather(const std::string& text) override { return gather_strings(communicator_, text, 0); }
  std::string broadcast(const std::string& text) override { return broadcast_string(communicator_, text, 0); }

 private:
  Communicator& communicator_;
};

// Counters between steps. The schedule is a function of `step`, and all randomness one of (seed, step).
struct TrainingProgress {
  std::int64_t step = 0;       // optimizer steps completed
  std::int64_t tokens = 0;     // trained on
  std::int64_t data_step = 0;  // of the sampler's stream; ahead of `step` by what was left out
  std::string sampler;         // state after data_step; empty before the first step
  std::vector<std::pair<std::int64_t, std::int64_t>> data_skips;  // data steps left out after a rollback
};

struct TrainingParts {
  const Place& place;
  LanguageModel& model;
  Optimizer& optimizer;
  SpikeGuard& guard;
  NonfinitePolicy& policy;
  TrainingProgress& progress;
};

// The state as rank `rank` of `ranks` saves it: replicated arrays are dealt out so that each element is written once.
// Arrays in host memory are referred to and must not change while the snapshot is in use; those of a device are copied.
struct Snapshot {
  CheckpointState state;
  std::vector<Tensor> copies;
};
Snapshot take_snapshot(const TrainingParts& parts, int rank, int ranks);

// The counters and guards of a run that has not begun, as checkpoints store them.
std::string fresh_training_state();

// Reads parameters, optimizer states and counters. Error (storage) for a damaged checkpoint, Error (config) if it is
// not of this model, listing what differs.
void load_training_state(const CheckpointReader& reader, const TrainingParts& parts);

// Reads the parameters alone, to where the model's masters are. Error (config) if it is not of this model, listing what
// differs.
void load_parameters(const CheckpointReader& reader, LanguageModel& model, const Stream& stream = {});
// For a model that only computes: allocates the parameters' values at `place` and reads them there. In fp32 they are
// the masters; gradients are left undefined.
void load_values(const CheckpointReader& reader, LanguageModel& model, const Place& place);

// The recipe that a checkpoint was trained with, as TOML.
std::string recipe_of(const CheckpointReader& reader);
// Adds what `bundle` is to a checkpoint: files as attachments, and in `provenance` what they are.
void attach_tokenizer(const TokenizerBundle& bundle, CheckpointState& state, nlohmann::json& provenance);
// The tokenizer that its data was made with, from its attachments; null if its tokens are symbols of a task. Error
// (config) if they are another tokenizer than it says.
TokenizerBundle tokenizer_of(const CheckpointReader& reader);
// The same without its files; the name is empty for symbols of a task.
TokenizerIdentity tokenizer_identity_of(const CheckpointReader& reader);
// Error (config) that names both if `data` (of `source`, for the message) has other ids than the checkpoint.
void check_same_tokenizer(const CheckpointReader& reader, const TokenizerIdentity& data, const std::string& source);

}  // namespace weft
