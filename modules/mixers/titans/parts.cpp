#include "modules/mixers/titans/parts.h"

#include <cmath>

#include "autograd/document_tables.h"
#include "autograd/ops/activation/activation.h"
#include "autograd/ops/cast/cast.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/l2_norm/l2_norm.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/norm_rope/norm_rope.h"
#include "autograd/transfer.h"

namespace weft::titans {

MemoryState MemoryState::clone() const {
  return {to_memory(states, place.lasting, place.stream), phase, place};
}

// --- memory ----------------------------------------------------------------------------------------------------------

Memory::Memory(const ParameterScope& scope, const Config& config, std::int64_t width) : c_(config), width_(width) {
  const std::int64_t H = c_.heads, D = c_.head_dim;
  const auto matrix = [&](const char* name, std::int64_t out) {
    return &scope.declare(name, {out, width}, ParameterKind::matrix, Init::normal(0.02));
  };
  const auto bias = [&](const char* name, double value) {
    return &scope.declare(name, {H}, ParameterKind::vector, Init::constant(value));
  };
  wq_ = matrix("wq_m", c_.inner());
  wk_ = matrix("wk_m", c_.inner());
  wv_ = matrix("wv_m", c_.inner());
  w_keep_ = matrix("w_keep", H);
  b_keep_ = bias("b_keep", 4.0);  // forgets 1.8 % a token at first
  w_mu_ = matrix("w_mu", H);
  b_mu_ = bias("b_mu", 0.0);
  w_rate_ = matrix("w_rate", H);
  b_rate_ = bias("b_rate", 0.0);
  const auto memory = [&](const char* name, const Shape& shape, double deviation) {
    return &scope.declare(name, shape, ParameterKind::fast_weight, Init::normal(deviation));
  };
  if (c_.hidden == 0) {
    w2_ = memory("memory_w", {H, D, D}, 0.02);
  } else {  // wide enough that the inner gradients pass
    w1_ = memory("memory_w1", {H, D, c_.hidden}, 1.0 / std::sqrt(static_cast<double>(D)));
    w2_ = memory("memory_w2", {H, c_.hidden, D}, 1.0 / std::sqrt(static_cast<double>(c_.hidden)));
  }
}

Var Memory::keys(Tape& tape, const Var& x, Parameter& w) const {
  const Var y = linear(tape, x, tape.parameter(w)).reshape({x.dim(0), c_.heads, c_.head_dim});
  return l2_norm(tape, silu(tape, y));
}

TitansInputs Memory::features(Tape& tape, const Var& x) const {
  const auto gate = [&](Parameter& w, Parameter& b) {
    return sigmoid(tape, linear_unrounded(tape, x, tape.parameter(w), tape.parameter(b)));
  };
  TitansInputs in;
  in.q = keys(tape, x, *wq_);
  in.k = keys(tape, x, *wk_);
  in.v = linear(tape, x, tape.parameter(*wv_)).reshape(in.q.shape());
  in.keep = gate(*w_keep_, *b_keep_);
  in.momentum = gate(*w_mu_, *b_mu_);
  in.rate = scale(tape, gate(*w_rate_, *b_rate_), c_.rate_max);
  return in;
}

TitansWeights Memory::weights(Tape& tape) const {
  return {w1_ == nullptr ? Var{} : tape.parameter(*w1_), tape.parameter(*w2_)};
}

Var Memory::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MemoryState* state) const {
  const TitansInputs in = features(tape, x);
  if (state == nullptr) {
    return titans_memory(tape, in, weights(tape), c_.chunk, documents, FinalState::skip).o;
  }
  const TitansStart start{Tape::constant(state->states), state->phase};
  const TitansOutput out = titans_memory(tape, in, weights(tape), c_.chunk, documents, FinalState::keep, &start);
  copy(state->states, out.final_state.value, tape.stream());
  for (std::int64_t n = 0; n < documents->count(); ++n) {
    std::int32_t& place = state->phase[static_cast<std::size_t>(n)];
    place = static_cast<std::int32_t>((place + documents->length(n)) % c_.chunk);
  }
  return out.o;
}

MemoryState Memory::initial_state(std::int64_t sequences, const Place& place) const {
  const std::int64_t H = c_.heads, P = c_.memory_size();
  MemoryState state{place.zeros({sequences, H, 3, P}, accumulator_dtype(place.dtype)),
                    std::vector<std::int32_t>(static_cast<std::size_t>(sequences), 0), place};
  Tape tape(place.arena, Tape::Mode::inference, place.stream);
  const Tensor flat = state.states.reshape({sequences * H * 3 * P});
  std::int64_t at = 0;
  for (const Parameter* part : {w1_, w2_}) {
    if (part == nullptr) continue;
    const std::int64_t elements = part->value.numel() / H;
    const Tensor heads = cast(tape, Tape::constant(part->value), state.states.dtype()).value;
    for (std::int64_t i = 0; i < sequences * H; ++i) {
      const std::int64_t begin = i * 3 * P + at;
      copy(flat.rows(begin, begin + elements), heads.rows(i % H, i % H + 1), place.stream);
    }
    at += elements;
  }
  return state;
}

Tensor Memory::read_part(const MemoryState& state) {
  const std::int64_t N = state.states.dim(0), H = state.states.dim(1), P = state.states.dim(3);
  const Tensor W({N, H, P}, state.states.dtype(), state.place.lasting);
  const Tensor from = state.states.reshape({N * H * 3, P}), to = W.reshape({N * H, P});
  for (std::int64_t i = 0; i < N * H; ++i) copy(to.rows(i, i + 1), from.rows(3 * i, 3 * i + 1), state.place.stream);
  return W;
}

double Memory::products() const {
  return static_cast<double>(width_ * 3 * (c_.inner() + c_.heads));
}

// A token and head: the error, two reads, two updates, and for each layer the scores of its chunk and the errors behind
// them; with a hidden layer also the way back through the last one.
double Memory::forward_flops() const {
  const auto D = static_cast<double>(c_.head_dim), C = static_cast<double>(c_.chunk);
  const auto m = static_cast<double>(c_.hidden), P = static_cast<double>(c_.memory_size());
  const double scores = m > 0.0 ? 4.0 * C * (D + m) : 4.0 * C * D;
  return static_cast<double>(c_.heads) * (10.0 * P + 2.0 * m * D + scores);
}

// The chain of updates twice more, the chunk once, two products for each of its own.
double Memory::backward_flops() const {
  const auto D = static_cast<double>(c_.head_dim), m = static_cast<double>(c_.hidden);
  const double chain = 6.0 * static_cast<double>(c_.memory_size()) + 2.0 * m * D;
  return static_cast<double>(c_.heads) * 2.0 * chain + 3.0 * forward_flops();
}

// q and k before silu, between silu and norm, and after it, with inverse norms; v; three gates
// before and after their sigmoid.
double Memory::saved() const {
  return static_cast<double>(7 * c_.inner() + 8 * c_.heads);
}

double Memory::state_bytes() const {
  return 4.0 * static_cast<double>(c_.heads * 3 * c_.memory_size() + 1);
}

// --- attention -------------------------------------------------------------------------------------------------------

ShortAttention::ShortAttention(const ParameterScope& scope, const Config& config, std::int64_t width)
    : c_(config), width_(width), rope_(std::make_shared<const RopeTable>(config.rope)) {
  if (c_.variant != Variant::context) {
    options_.window = static_cast<std::int32_t>(c_.window);
    options_.sink_tokens = static_cast<std::int32_t>(c_.persistent);
  }
  const auto matrix = [&](const char* name, std::int64_t out) {
    return &scope.declare(name, {out, width}, ParameterKind::matrix, Init::normal(0.02));
  };
  wq_ = matrix("wq", c_.inner());
  wk_ = matrix("wk", c_.inner());
  wv_ = matrix("wv", c_.inner());
  q_norm_w_ = &scope.declare("q_norm_w", {c_.head_dim}, ParameterKind::vector, Init::constant(1.0));
  k_norm_w_ = &scope.declare("k_norm_w", {c_.head_dim}, ParameterKind::vector, Init::constant(1.0));
  if (c_.persistent > 0) {
    persistent_ = &scope.declare("persistent", {c_.persistent, width}, ParameterKind::vector, Init::normal(0.02));
  }
}

Var ShortAttention::forward(Tape& tape, const Var& rows, const DocumentsPtr& documents, KeyValueCache* cache) const {
  const auto heads = [&](Parameter& w) {
    return linear(tape, rows, tape.parameter(w)).reshape({rows.dim(0), c_.heads, c_.head_dim});
  };
  const auto turned = [&](Parameter& w, Parameter& norm_w) {
    return norm_rope(tape, heads(w), tape.parameter(norm_w), documents, *rope_);
  };
  const Var q = turned(*wq_, *q_norm_w_), k = turned(*wk_, *k_norm_w_), v = heads(*wv_);
  if (cache == nullptr) return attention(tape, q, k, v, {}, documents, options_);
  return Tape::constant(attention_cached(tape, q.value, k.value, v.value, {}, *documents, options_, *cache));
}

// Kept in f32, whose gradient is one too: rows taken from it have the type of the others.
Var ShortAttention::persistent(Tape& tape, DType activations) const {
  return cast(tape, tape.parameter(*persistent_), activations);
}

namespace {

// A row with the persistent tokens before each document that has nothing in the cache yet.
struct ExtendedRow {
  std::vector<std::int32_t> cu{0}, pos0;  // its documents
  std::vector<std::int32_t> in, out;      // its rows among those of [persistent, x]; the tokens among its rows

  ExtendedRow(const Documents& documents, std::int32_t n_p, const KeyValueCache* cache) {
    for (std::int64_t n = 0; n < documents.count(); ++n) {
      const std::int32_t seen = cache == nullptr ? 0 : cache->length(n);
      pos0.push_back(seen);
      for (std::int32_t i = 0; seen == 0 && i < n_p; ++i) in.push_back(i);
      for (std::int32_t t = documents.begin(n); t < documents.end(n); ++t) {
        out.push_back(static_cast<std::int32_t>(in.size()));
        in.push_back(n_p + t);
      }
      cu.push_back(static_cast<std::int32_t>(in.size()));
    }
  }
};

struct Extension {
  DocumentsPtr documents;
  RowMapPtr insert, remove;
};

Extension extension(const Documents& documents, std::int32_t n_p, const KeyValueCache* cache) {
  ExtendedRow row(documents, n_p, cache);
  const auto rows = static_cast<std::int64_t>(row.in.size());
  return {std::make_shared<const Documents>(std::move(row.cu), std::move(row.pos0)),
          std::make_shared<const RowMap>(row.in, n_p + documents.tokens()),
          std::make_shared<const RowMap>(row.out, rows)};
}

// The same where a recorded step finds that of any row: its length depends on the number of documents alone.
Extension extension_on(const Stream& stream, const Documents& documents, std::int32_t n_p) {
  DocumentTables& tables = documents.tables(stream);
  const std::int64_t T = documents.tokens(), rows = T + n_p * tables.document_count();
  const auto map = [&](const char* what, std::int64_t count, std::int64_t source_rows,
                       std::vector<std::int32_t> ExtendedRow::*index) {
    const auto write = [=](const Documents& row, std::span<std::int32_t> to) {
      RowMap::write_tables(ExtendedRow(row, n_p, nullptr).*index, source_rows, to);
    };
    const Tensor here = tables.numbers_of(documents, fmt::format("{} of {} persistent tokens", what, n_p),
                                          RowMap::table_size(count, source_rows), write);
    return std::make_shared<const RowMap>(count, source_rows, here);
  };
  const auto extend = [n_p](const Documents& row) {
    ExtendedRow extended(row, n_p, nullptr);
    return Documents(std::move(extended.cu), std::move(extended.pos0));
  };
  return {tables.row_of(documents, fmt::format("with {} persistent tokens", n_p), extend),
          map("insertion", rows, n_p + T, &ExtendedRow::in), map("removal", T, rows, &ExtendedRow::out)};
}

}  // namespace

Var ShortAttention::with_persistent(Tape& tape, const Var& x, const DocumentsPtr& documents,
                                    KeyValueCache* cache) const {
  const auto n_p = static_cast<std::int32_t>(c_.persistent);
  const Extension to = tape.device().is_cpu() || cache != nullptr ? extension(*documents, n_p, cache)
                                                                  : extension_on(tape.stream(), *documents, n_p);
  if (n_p == 0) return forward(tape, x, to.documents, cache);
  const Var o = forward(tape, take_rows(tape, {persistent(tape, x.dtype()), x}, to.insert), to.documents, cache);
  return take_rows(tape, {o}, to.remove);
}

KeyValueCache ShortAttention::cache(std::int64_t sequences, const Place& place) const {
  return KeyValueCache(sequences, c_.heads, c_.head_dim, c_.head_dim, options_, place);
}

double ShortAttention::products() const {
  return static_cast<double>(width_ * 3 * c_.inner());
}

// q and k before and after norm and rotation, with inverse norms; v, o and its log-sum-exp.
double ShortAttention::saved() const {
  return static_cast<double>(6 * c_.inner() + 3 * c_.heads);
}

}  // namespace weft::titans
