// What a run learns from and is validated on, whether datasets or a synthetic task: all that the trainer knows of it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autograd/place.h"
#include "data/sampler/row_stream.h"
#include "data/tokenizers/tokenizer_files.h"
#include "modules/language_model.h"
#include "parallel/communicator.h"
#include "train/evaluate/validation.h"
#include "train/recipe/recipe.h"

namespace weft {

// The validation loss of something simple.
struct LossReference {
  std::string name;
  double loss = 0.0;
  double bits_per_byte = 0.0;
};

class RunData {
 public:
  virtual ~RunData() = default;

  // Token ids are 0 .. vocabulary() - 1.
  virtual std::int64_t vocabulary() const = 0;
  // What ids stand for, to be kept with the model; its tokenizer is null if ids are symbols of a task.
  virtual const TokenizerBundle& tokenizer() const = 0;
  // Of every source of rows to train on, hexadecimal.
  virtual std::vector<std::string> digests() const = 0;
  // Of what it is validated on; empty if it is not.
  virtual std::string validation_digest() const = 0;

  // The rows to train on, from the start. `skipped` come on top of the recipe's.
  virtual std::unique_ptr<RowStream> open_stream(const SkippedSteps& skipped) const = 0;
  // Collective, where the model lives. Nothing if there is nothing to validate on.
  virtual std::optional<ValidationResult> validate(LanguageModel& model, Communicator& group,
                                                   const Place& place) const = 0;
  // What to compare validation losses with, if that is known or soon computed.
  virtual std::optional<LossReference> reference() const = 0;
};

// Opens the recipe's datasets, or makes its task. Error (config) if they do not fit together.
std::unique_ptr<RunData> open_run_data(const Recipe& recipe);

}  // namespace weft
