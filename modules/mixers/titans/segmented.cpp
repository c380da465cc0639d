#include "modules/mixers/titans/segmented.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/ops/gate/gate.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/transfer.h"

namespace weft::titans {
namespace {

RowMapPtr map_of(std::span<const std::int32_t> index, std::int64_t source_rows) {
  return std::make_shared<const RowMap>(index, source_rows);
}

// Parts one after the other. A tree, so that a row is copied as often as the logarithm of the number of parts.
Var stacked(Tape& tape, std::vector<Var> parts) {
  while (parts.size() > 1) {
    std::vector<Var> next;
    for (std::size_t i = 0; i + 1 < parts.size(); i += 2) {
      std::vector<std::int32_t> all(static_cast<std::size_t>(parts[i].dim(0) + parts[i + 1].dim(0)));
      std::iota(all.begin(), all.end(), 0);
      const auto rows = static_cast<std::int64_t>(all.size());
      next.push_back(take_rows(tape, {parts[i], parts[i + 1]}, map_of(std::move(all), rows)));
    }
    if (parts.size() % 2 == 1) next.push_back(parts.back());
    parts = std::move(next);
  }
  return parts.front();
}

// The states of those sequences of a wave that have a next one; both lists are in order.
Var going_on(Tape& tape, const Var& states, const std::vector<std::int32_t>& sequences,
             const std::vector<std::int32_t>& next) {
  if (next.size() == sequences.size()) return states;
  std::vector<std::int32_t> kept;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (std::binary_search(next.begin(), next.end(), sequences[i])) kept.push_back(static_cast<std::int32_t>(i));
  }
  return take_rows(tape, {states}, map_of(std::move(kept), states.dim(0)));
}

}  // namespace

std::unique_ptr<MixerState> SegmentedState::clone() const {
  auto copy = std::make_unique<SegmentedState>(
      memory.clone(), to_memory(segment_start, memory.place.lasting, memory.place.stream), KeyValueCache(cache));
  copy->place = place;
  return copy;
}

std::size_t SegmentedState::bytes() const {
  return memory.bytes() + segment_start.nbytes() + place.size() * sizeof(place[0]) + cache.bytes();
}

void SegmentedState::advance(const Documents& documents, std::int32_t segment) {
  Tensor W;  // made when the first sequence needs it
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    std::int32_t& at = place[static_cast<std::size_t>(n)];
    at += documents.length(n);
    if (at < segment) continue;
    at = 0;
    cache.restart(n);
    if (!W.defined()) W = Memory::read_part(memory);
    copy(segment_start.rows(n, n + 1), W.rows(n, n + 1), memory.place.stream);
  }
}

// The next segment, or what is left of it, of several documents.
struct SegmentedTitans::Wave {
  std::vector<std::int32_t> sequences;  // documents of the row, in order
  std::vector<std::int32_t> place;      // their tokens in the segment before the wave
  std::vector<std::int32_t> tokens;     // rows of x, document by document
  DocumentsPtr documents;               // of the wave's tokens
};

SegmentedTitans::SegmentedTitans(const ParameterScope& scope, const Config& config)
    : c_(config), memory_(scope, config, config.inner()), attention_(scope, config, config.site.width) {
  keep(attention_.angles());
  const std::int64_t d = c_.site.width;
  const auto norm = [&](const char* name) {
    return &scope.declare(name, {c_.inner()}, ParameterKind::vector, Init::constant(1.0));
  };
  wq_h_ = &scope.declare("wq_h", {c_.inner(), d}, ParameterKind::matrix, Init::normal(0.02));
  norm_h_ = norm("norm_h");
  wh_ = &scope.declare("wh", {d, c_.inner()}, ParameterKind::matrix, Init::normal(0.02));
  norm_o_ = norm("norm_o");
  norm_m_ = norm("norm_m");
  wo_ = &scope.declare("wo", {d, c_.inner()}, ParameterKind::matrix,
                       Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(c_.site.layers))));
}

Var SegmentedTitans::attend(Tape& tape, const Var& x, const Var& queries, const Var& memory, const Wave& wave,
                            KeyValueCache* cache) const {
  const std::int64_t T = x.dim(0);
  const Var read = titans_read(tape, queries, memory_.weights(tape), memory, wave.documents).reshape({T, c_.inner()});
  const Var h = linear(tape, rms_norm(tape, read, tape.parameter(*norm_h_)), tape.parameter(*wh_));

  const auto n_p = static_cast<std::int32_t>(c_.persistent), W = static_cast<std::int32_t>(T);
  std::vector<std::int32_t> cu{0}, pos0, in, out;
  for (std::int64_t n = 0; n < wave.documents->count(); ++n) {
    const std::int32_t place = wave.place[static_cast<std::size_t>(n)];
    pos0.push_back(place > 0 ? n_p + 2 * place : 0);
    for (std::int32_t i = 0; place == 0 && wave.documents->length(n) > 0 && i < n_p; ++i) in.push_back(i);
    for (std::int32_t t = wave.documents->begin(n); t < wave.documents->end(n); ++t) {
      in.push_back(n_p + t);
      out.push_back(static_cast<std::int32_t>(in.size()));
      in.push_back(n_p + W + t);
    }
    cu.push_back(static_cast<std::int32_t>(in.size()));
  }
  const auto count = static_cast<std::int64_t>(in.size());
  const RowMapPtr interleave = map_of(in, n_p + 2 * T);
  const Var rows = n_p > 0 ? take_rows(tape, {attention_.persistent(tape, x.dtype()), h, x}, interleave)
                           : take_rows(tape, {h, x}, interleave);
  const auto documents = std::make_shared<const Documents>(std::move(cu), std::move(pos0));
  const Var o = attention_.forward(tape, rows, documents, cache);
  const Var own = take_rows(tape, {o}, map_of(out, count));
  return rms_norm(tape, own.reshape({T, c_.inner()}), tape.parameter(*norm_o_));
}

Var SegmentedTitans::gate(Tape& tape, const Var& y, const Var& read) const {
  return sigmoid_gate(tape, y, rms_norm(tape, read.reshape(y.shape()), tape.parameter(*norm_m_)));
}

Var SegmentedTitans::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) {
  auto* own = dynamic_cast<SegmentedState*>(state);
  WEFT_CHECK(state == nullptr || (own != nullptr && !tape.recording()),
             "titans: continuing from a state is inference only, from a state of this mixer");
  const std::int64_t T = x.dim(0), N = documents->count();
  const auto S = static_cast<std::int32_t>(c_.window), C = static_cast<std::int32_t>(c_.chunk);
  const Var queries = memory_.keys(tape, x, *wq_h_);
  std::vector<std::int32_t> done(static_cast<std::size_t>(N), 0);
  // The next wave. A cache has all sequences, so with a state every wave has all documents, some without tokens.
  const auto next_wave = [&] {
    Wave wave;
    std::vector<std::int32_t> cu{0};
    for (std::int64_t n = 0; n < N; ++n) {
      const auto i = static_cast<std::size_t>(n);
      const std::int32_t place = own == nullptr ? 0 : own->place[i];
      const std::int32_t count = std::min(documents->length(n) - done[i], S - place);
      if (count == 0 && own == nullptr) continue;
      wave.sequences.push_back(static_cast<std::int32_t>(n));
      wave.place.push_back(place);
      for (std::int32_t t = 0; t < count; ++t) wave.tokens.push_back(documents->begin(n) + done[i] + t);
      cu.push_back(cu.back() + count);
      done[i] += count;
    }
    wave.documents = std::make_shared<const Documents>(std::move(cu));
    return wave;
  };

  std::vector<Var> parts;
  std::vector<std::int32_t> order(static_cast<std::size_t>(T));  // row of each token in the stacked parts
  std::int32_t stacked_rows = 0, phase = 0;
  Var states;  // in training: of the wave's documents, empty at first
  for (Wave wave = next_wave(); !wave.tokens.empty();) {
    for (const std::int32_t t : wave.tokens) order[static_cast<std::size_t>(t)] = stacked_rows++;
    const RowMapPtr take = map_of(wave.tokens, T);
    const Var x_w = take_rows(tape, {x}, take), queries_w = take_rows(tape, {queries}, take);
    if (own != nullptr) {
      const Var memory = Tape::constant(own->segment_start);
      const Var y = attend(tape, x_w, queries_w, memory, wave, &own->cache);
      parts.push_back(gate(tape, y, memory_.forward(tape, y, wave.documents, &own->memory)));
      own->advance(*wave.documents, S);
      wave = next_wave();
      continue;
    }
    const bool first = !states.value.defined();
    const Var y = attend(tape, x_w, queries_w, states, wave, nullptr);
    Wave next = next_wave();
    const TitansStart start{states, std::vector<std::int32_t>(wave.sequences.size(), phase)};
    const TitansOutput out =
        titans_memory(tape, memory_.features(tape, y), memory_.weights(tape), C, wave.documents,
                      next.tokens.empty() ? FinalState::skip : FinalState::keep, first ? nullptr : &start);
    parts.push_back(gate(tape, y, out.o));
    phase = (phase + S) % C;
    states = out.final_state;
    if (!next.tokens.empty()) states = going_on(tape, states, wave.sequences, next.sequences);
    wave = std::move(next);
  }
  if (parts.empty()) parts.push_back(Tape::constant(tape.empty({0, c_.inner()}, x.dtype())));
  Var z = stacked(tape, std::move(parts));
  if (!std::is_sorted(order.begin(), order.end())) z = take_rows(tape, {z}, map_of(std::move(order), T));
  return linear(tape, z, tape.parameter(*wo_));
}

std::unique_ptr<MixerState> SegmentedTitans::initial_state(std::int64_t sequences, const Place& place) const {
  MemoryState memory = memory_.initial_state(sequences, place);
  const Tensor start = Memory::read_part(memory);
  return std::make_unique<SegmentedState>(std::move(memory), start, attention_.cache(sequences, place));
}

MixerCost SegmentedTitans::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto d = static_cast<double>(c_.site.width), inner = static_cast<double>(c_.inner());
  const auto n_p = static_cast<double>(c_.persistent), H = static_cast<double>(c_.heads);
  const std::int64_t S = c_.window, L = std::max<std::int64_t>(1, document_length);
  const double documents = T / static_cast<double>(L);
  const auto segments = static_cast<double>((L + S - 1) / S);  // of a document
  const auto pairs = [&](std::int64_t length) {
    const double rows = length > 0 ? n_p + 2.0 * static_cast<double>(length) : 0.0;
    return rows * (rows + 1.0) / 2.0;
  };
  const double scores = 4.0 * inner * documents * (static_cast<double>(L / S) * pairs(std::min(S, L)) + pairs(L % S));
  const double rows = 2.0 * T + n_p * documents * segments;
  const double per_token = memory_.products() + 3.0 * d * inner;
  const double projections = 2.0 * (T * per_token + rows * attention_.products());
  const auto memory = H * static_cast<double>(c_.memory_size());
  const double reads = 2.0 * T * memory;
  // x; the queries before and after silu and norm; what they read, normed; the attention's rows; its results and the
  // memory's, normed; the gated ones; the memory between segments.
  const double states = documents * (segments - 1.0) * 3.0 * memory;
  const double saved = T * (d + 10.0 * inner + H + 3.0 + memory_.saved()) + rows * (d + attention_.saved()) + states;
  return {.forward_flops = projections + scores + reads + T * memory_.forward_flops(),
          .backward_flops = 2.0 * projections + 2.5 * scores + 2.0 * reads + T * memory_.backward_flops(),
          .forward_bytes = 4.0 * (per_token + attention_.products() + 2.0 * saved + T * d),
          .saved_bytes = 4.0 * saved};
}

double SegmentedTitans::state_bytes(std::int64_t length) const {
  const std::int64_t rows = length > 0 ? c_.persistent + 2 * std::min(length, c_.window) : 0;
  const auto start = static_cast<double>(c_.heads * c_.memory_size() + 1);
  return memory_.state_bytes() + 4.0 * start +
         KeyValueCache::bytes_for(rows, c_.heads, c_.head_dim, c_.head_dim, attention_.options(), DType::f32);
}

}  // namespace weft::titans
