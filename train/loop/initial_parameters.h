// model.init_from: a new run begins with the parameters of another run, or of an imported model.
#pragma once

#include <string>

#include "autograd/place.h"
#include "checkpoints/reader.h"
#include "data/tokenizers/tokenizer_files.h"
#include "modules/language_model.h"

namespace weft {

// The key of a checkpoint's provenance that says which run or checkpoint its parameters began as.
inline constexpr const char* kInitFromKey = "init_from";

// What a run passes on to its checkpoints of where its parameters came from, as a JSON object to be merged into their
// provenance: "init_from" (path, step, digest) and, if it was once imported, what export needs to know ("hub",
// "imported_from").
// Parameters are read to where the model's masters are. `path` is a run (its newest valid checkpoint is taken) or a
// checkpoint. Error (config) if there is none, if it is of another model, listing what differs, or if its tokenizer is
// not that of the `data` (one without a tokenizer goes with any).
std::string load_initial_parameters(const std::string& path, LanguageModel& model, const TokenizerIdentity& data,
                                    const Stream& stream);

// The same object from a checkpoint of a run that goes on.
std::string origin_of(const CheckpointReader& reader);

}  // namespace weft
