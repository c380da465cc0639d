// A model that goes on from prompts token by token, where it lives. On a GPU a step's kernels are recorded once and
// replayed, if every layer's state allows that.
//
// N sequences, V vocabulary.
#pragma once

#include <memory>
#include <span>

#include "autograd/cuda/cuda_graph.h"
#include "autograd/document_tables.h"
#include "autograd/place.h"
#include "modules/language_model.h"

namespace weft {

// Device memory that states of so many sequences take while they grow to so many tokens, beside tables and what the
// driver hands out in large pieces.
double decoding_bytes(const LanguageModel& model, DType activations, std::int64_t sequences, std::int64_t tokens);

class Decoder {
 public:
  // The model lives at `place`.
  Decoder(LanguageModel& model, const Place& place, std::int64_t sequences);

  // Document n of the row goes to sequence n. Logits after the last token of each: [N, V], on the host. Before all
  // steps.
  Tensor prefill(std::span<const std::int32_t> tokens, const DocumentsPtr& documents);
  // One more token for each sequence. What it returns is overwritten by the next step.
  Tensor step(std::span<const std::int32_t> tokens);

  std::size_t state_bytes() const { return state_.bytes(); }

 private:
  Tensor step_on_device(std::span<const std::int32_t> tokens);

  LanguageModel& model_;
  Place place_;
  ModelState state_;
  // On a GPU: what a recorded step reads and writes.
  Tensor tokens_, logits_;  // i32 [N], [N, V]
  Tensor pinned_tokens_, pinned_logits_;
  std::shared_ptr<DocumentTables> tables_;
  CudaGraph graph_;
  bool ran_ = false;  // once, so that all that a recording must not make exists
};

}  // namespace weft
