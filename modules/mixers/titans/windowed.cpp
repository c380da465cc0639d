#include "modules/mixers/titans/windowed.h"

#include <cmath>

#include "autograd/ops/gate/gate.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft::titans {

WindowedTitans::WindowedTitans(const ParameterScope& scope, const Config& config)
    : c_(config),
      memory_(scope, config, config.site.width),
      attention_(scope, config, config.variant == Variant::gate ? config.site.width : config.inner()) {
  keep(attention_.angles());
  const auto norm = [&](const char* name) {
    return &scope.declare(name, {c_.inner()}, ParameterKind::vector, Init::constant(1.0));
  };
  if (c_.variant == Variant::gate) norm_o_ = norm("norm_o");
  norm_m_ = norm("norm_m");
  wo_ = &scope.declare("wo", {c_.site.width, c_.inner()}, ParameterKind::matrix,
                       Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(c_.site.layers))));
}

Var WindowedTitans::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) {
  auto* own = dynamic_cast<WindowedState*>(state);
  WEFT_CHECK(state == nullptr || (own != nullptr && !tape.recording()),
             "titans: continuing from a state is inference only, from a state of this mixer");
  const Shape flat{x.dim(0), c_.inner()};
  const Var read = memory_.forward(tape, x, documents, own == nullptr ? nullptr : &own->memory).reshape(flat);
  const Var m = rms_norm(tape, read, tape.parameter(*norm_m_));
  KeyValueCache* cache = own == nullptr ? nullptr : &own->cache;
  const Var o = attention_.with_persistent(tape, c_.variant == Variant::gate ? x : m, documents, cache).reshape(flat);
  if (c_.variant == Variant::layer) return linear(tape, o, tape.parameter(*wo_));
  const Var y = sigmoid_gate(tape, rms_norm(tape, o, tape.parameter(*norm_o_)), m);
  return linear(tape, y, tape.parameter(*wo_));
}

std::unique_ptr<MixerState> WindowedTitans::initial_state(std::int64_t sequences, const Place& place) const {
  return std::make_unique<WindowedState>(memory_.initial_state(sequences, place), attention_.cache(sequences, place));
}

MixerCost WindowedTitans::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto d = static_cast<double>(c_.site.width), inner = static_cast<double>(c_.inner());
  const double documents = document_length > 0 ? T / static_cast<double>(document_length) : 0.0;
  const auto extended = Documents::single(document_length + c_.persistent);
  const double rows = T + documents * static_cast<double>(c_.persistent);
  const double scores = 4.0 * inner * documents * attention_pairs(*extended, attention_.options());
  const double weights = memory_.products() + attention_.products() + d * inner;
  const double projections = 2.0 * (T * (memory_.products() + d * inner) + rows * attention_.products());
  // The memory's result and its inverse norm, the normed one, the rows of the attention, and what it keeps of each;
  // what enters wo: the attention's result, or that with inverse norm, normed and gated.
  const bool gate = c_.variant == Variant::gate;
  const double width = gate ? d : inner;
  const bool copied = c_.persistent > 0;  // rows apart from x or the normed memory, results apart from the attention's
  double saved = T * (d + memory_.saved() + inner + 1.0) + rows * attention_.saved();
  if (gate || !copied) saved += T * inner;  // the normed memory
  if (copied) saved += rows * width;
  if (gate) saved += T * (2.0 * inner + 1.0);  // the normed and the gated
  if (copied) saved += T * inner;              // results without those of the persistent tokens
  return {.forward_flops = projections + scores + T * memory_.forward_flops(),
          .backward_flops = 2.0 * projections + 2.5 * scores + T * memory_.backward_flops(),
          .forward_bytes = 4.0 * (weights + 2.0 * saved + T * d),
          .saved_bytes = 4.0 * saved};
}

double WindowedTitans::state_bytes(std::int64_t length) const {
  return memory_.state_bytes() + KeyValueCache::bytes_for(length > 0 ? length + c_.persistent : 0, c_.heads,
                                                          c_.head_dim, c_.head_dim, attention_.options(), DType::f32);
}

}  // namespace weft::titans
