#include "train/generate/decoder.h"

#include <algorithm>

#include "autograd/check.h"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/ops/rope/rope.h"
#include "autograd/transfer.h"
#include "modules/families/attention/key_value_cache.h"

namespace weft {

double decoding_bytes(const LanguageModel& model, DType activations, std::int64_t sequences, std::int64_t tokens) {
  // Tables, logits, and memory that the driver hands out in large pieces.
  constexpr double kOther = 256e6;
  double bytes = 0.0;
  for (std::int64_t l = 0; l < model.config().layers; ++l) {
    // Figures are for fp32. What grows with the length, keys and values, has the type of activations.
    const double constant = model.block(l).mixer().state_bytes(0);
    const double all = model.block(l).mixer().state_bytes(KeyValueCache::room_for(tokens));
    bytes += constant + (all - constant) * static_cast<double>(size_of(activations)) / 4.0;
  }
  return kOther + static_cast<double>(sequences) * bytes;
}

Decoder::Decoder(LanguageModel& model, const Place& place, std::int64_t sequences)
    : model_(model), place_(place), state_(model.initial_state(sequences, place)) {
  if (place.on_cpu()) return;
  const Shape logits{sequences, model.config().vocabulary};
  const DType exact = accumulator_dtype(place.dtype);
  tokens_ = Tensor({sequences}, DType::i32, place.lasting);
  logits_ = Tensor(logits, exact, place.lasting);
  pinned_tokens_ = Tensor({sequences}, DType::i32, pinned_allocator());
  pinned_logits_ = Tensor(logits, exact, pinned_allocator());
  tables_ = std::make_shared<DocumentTables>(place.stream, sequences, sequences);
}

Tensor Decoder::prefill(std::span<const std::int32_t> tokens, const DocumentsPtr& documents) {
  WEFT_CHECK(!ran_, "a prompt after steps: recorded steps hold the addresses of the caches that it may replace");
  Tape tape(place_.arena, Tape::Mode::inference, place_.stream);
  const auto T = static_cast<std::int64_t>(tokens.size());
  return to_host(model_.prefill(tape, tape.here(Tensor::from({T}, tokens)), documents, state_), place_.stream);
}

Tensor Decoder::step(std::span<const std::int32_t> tokens) {
  if (!place_.on_cpu()) return step_on_device(tokens);
  Tape tape(place_.arena, Tape::Mode::inference, place_.stream);
  return model_.decode(tape, Tensor::from({static_cast<std::int64_t>(tokens.size())}, tokens), state_);
}

Tensor Decoder::step_on_device(std::span<const std::int32_t> tokens) {
  WEFT_CHECK(static_cast<std::int64_t>(tokens.size()) == tokens_.numel(), "{} tokens for {} sequences", tokens.size(),
             tokens_.numel());
  const bool stays = state_.make_room();
  const DocumentsPtr documents = Documents::single_tokens(state_.lengths);
  documents->attach(tables_);
  tables_->load(*documents);
  std::ranges::copy(tokens, pinned_tokens_.data<std::int32_t>());
  copy(tokens_, pinned_tokens_, place_.stream);
  const auto work = [&] {
    Tape tape(place_.arena, Tape::Mode::inference, place_.stream);
    copy(logits_, model_.decode(tape, tokens_, documents, state_), place_.stream);
  };
  // A replay checks nothing: beyond the tables of rotary angles the layers see each step, and say where they end.
  const bool checked = std::ranges::all_of(state_.lengths, [](std::int32_t n) { return n < kRopeReach; });
  const bool replay = ran_ && state_.replayable() && checked;
  if (!replay) {
    work();
    ran_ = true;
  } else if (stays && graph_.recorded()) {
    state_.count_token();
    graph_.replay(place_.stream);
  } else {
    graph_.record(place_.stream, work);
    graph_.replay(place_.stream);
  }
  for (std::int32_t& length : state_.lengths) ++length;
  copy(pinned_logits_, logits_, place_.stream);
  synchronize(place_.stream);
  tables_->rewind();
  return pinned_logits_;
}

}  // namespace weft
