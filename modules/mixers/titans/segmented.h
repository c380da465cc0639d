// Titans with memory as a context ("mac"): attention inside segments, over what the memory gives for their tokens.
#pragma once

#include "modules/mixers/titans/parts.h"

namespace weft::titans {

class SegmentedState final : public MixerState {
 public:
  SegmentedState(MemoryState memory_, Tensor segment_start_, KeyValueCache cache_)
      : memory(std::move(memory_)),
        segment_start(std::move(segment_start_)),
        place(memory.phase.size(), 0),
        cache(std::move(cache_)) {}
  std::unique_ptr<MixerState> clone() const override;
  std::size_t bytes() const override;
  // After the tokens of `documents` have been written to the memory: a sequence at the end of its segment starts anew.
  void advance(const Documents& documents, std::int32_t segment);

  MemoryState memory;
  Tensor segment_start;             // [N, H, P] the memory before the segment
  std::vector<std::int32_t> place;  // [N] tokens of the segment so far
  KeyValueCache cache;              // of the segment: persistent tokens, then h_0, x_0, h_1, x_1, ...
};

// For the segments s of a document in order, with M_s the memory before the segment:
//   h = wh RMSNorm(L2(silu(x wq_h^T)) M_s; norm_h)
//   y = RMSNorm(attention of the x rows over [persistent, h_0, x_0, h_1, x_1, ...]; norm_o)
//   z = y * sigma(RMSNorm(memory(y); norm_m))          memory(y) writes y, and reads with the token's own memory
// and the output is z wo^T.
class SegmentedTitans final : public Mixer {
 public:
  SegmentedTitans(const ParameterScope& scope, const Config& config);

  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override;
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override;
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;
  std::string not_recordable() const override {
    return "how many segments are walked one after the other depends on the longest document";
  }
  double state_bytes(std::int64_t length) const override;

 private:
  struct Wave;
  // y [tokens of the wave, H D] from their x and the queries with which they read the memory: `memory`, or the weights
  // if that is empty.
  Var attend(Tape& tape, const Var& x, const Var& queries, const Var& memory, const Wave& wave,
             KeyValueCache* cache) const;
  Var gate(Tape& tape, const Var& y, const Var& read) const;

  Config c_;
  Memory memory_;
  ShortAttention attention_;
  Parameter *wq_h_, *norm_h_, *wh_, *norm_o_, *norm_m_, *wo_;
};

}  // namespace weft::titans
