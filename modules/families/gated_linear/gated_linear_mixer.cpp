#include "modules/families/gated_linear/gated_linear_mixer.h"

#include <algorithm>
#include <cmath>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/ops/linear/linear.h"
#include "autograd/transfer.h"

namespace weft {

std::vector<OptionSpec> gated_linear_head_options() {
  return {integer_option("heads", 8, "heads H", 1, 4096),
          integer_option("head_dim", 64, "width d_k of a head's queries and keys", 1, 4096),
          integer_option("value_dim", 0, "width d_v of a head's values; 0 = head_dim", 0, 4096)};
}

std::unique_ptr<MixerState> GatedLinearState::clone() const {
  std::vector<Tensor> copies;
  for (const Tensor& part : parts) copies.push_back(to_memory(part, place_.lasting, place_.stream));
  return std::make_unique<GatedLinearState>(std::move(copies), place_);
}

std::size_t GatedLinearState::bytes() const {
  std::size_t total = 0;
  for (const Tensor& part : parts) total += part.nbytes();
  return total;
}

ConstantVector::ConstantVector(const std::vector<double>& values)
    : f64_(Tensor::from({static_cast<std::int64_t>(values.size())}, values)),
      f32_(Tensor::empty(f64_.shape(), DType::f32)) {
  f32_.copy_from(f64_);
}

Var ConstantVector::on(const Tape& tape, DType dtype) const {
  const Tensor& host = accumulator_dtype(dtype) == DType::f64 ? f64_ : f32_;
  if (tape.device().is_cpu()) return Tape::constant(host);
  copy_to(lasting_memory(tape.device()), tape.stream());
  return Tape::constant(device_);
}

void ConstantVector::move_to(const Place& place) const {
  if (!place.on_cpu()) copy_to(place.lasting, place.stream);
}

void ConstantVector::copy_to(const std::shared_ptr<Allocator>& memory, const Stream& stream) const {
  if (!device_.defined() || device_.device() != stream.device) device_ = to_memory(f32_, memory, stream);
}

HeadProjections::HeadProjections(const ParameterScope& scope, std::int64_t width, std::int64_t heads, std::int64_t D_k,
                                 std::int64_t D_v)
    : heads_(heads), D_k_(D_k), D_v_(D_v) {
  const auto declare = [&](const char* name, std::int64_t D) {
    return &scope.declare(name, {heads * D, width}, ParameterKind::matrix, Init::normal(0.02));
  };
  wq_ = declare("wq", D_k);
  wk_ = declare("wk", D_k);
  wv_ = declare("wv", D_v);
}

Heads HeadProjections::operator()(Tape& tape, const Var& x) const {
  const auto project = [&](Parameter* w, std::int64_t D) {
    return linear(tape, x, tape.parameter(*w)).reshape({x.dim(0), heads_, D});
  };
  return {project(wq_, D_k_), project(wk_, D_k_), project(wv_, D_v_)};
}

Parameter& declare_output(const ParameterScope& scope, const MixerSite& site, std::int64_t values) {
  return scope.declare("wo", {site.width, values}, ParameterKind::matrix,
                       Init::normal(0.02 / std::sqrt(2.0 * static_cast<double>(site.layers))));
}

std::vector<Shape> GatedLinearMixer::state_shapes(std::int64_t sequences) const {
  std::vector<Shape> shapes{{sequences, sizes_.heads, sizes_.d_k, sizes_.d_v}};
  for (const auto& carried : sizes_.carried) {
    shapes.push_back({sequences});
    for (const std::int64_t extent : carried.shape) shapes.back().push_back(extent);
  }
  return shapes;
}

Var GatedLinearMixer::forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) {
  if (state == nullptr) return mix(tape, x, documents, nullptr);
  auto* own = dynamic_cast<GatedLinearState*>(state);
  const std::vector<Shape> expected = state_shapes(documents->count());
  WEFT_CHECK(own != nullptr && own->parts.size() == expected.size(), "the state belongs to another kind of mixer");
  for (std::size_t i = 0; i < expected.size(); ++i) {
    WEFT_CHECK(own->parts[i].shape() == expected[i], "state {}, expected {}", own->parts[i].shape().str(),
               expected[i].str());
  }
  return mix(tape, x, documents, own);
}

Var GatedLinearMixer::recurrence(Tape& tape, const Inputs& in, const DocumentsPtr& documents, const Tensor& matrices) {
  if (!matrices.defined()) {
    return gated_linear(tape, in.map, in.q, in.k, in.v, in.decay, {}, documents, in.scale, {.final_state = false}).o;
  }
  if (is_decoding_step(*documents)) {
    const Var q = feature_map(tape, in.map, in.q), k = feature_map(tape, in.map, in.k);
    return Tape::constant(gated_linear_decode(tape, q.value, k.value, in.v.value, in.decay.value, matrices, in.scale));
  }
  const auto [o, final_state] =
      gated_linear(tape, in.map, in.q, in.k, in.v, in.decay, Tape::constant(matrices), documents, in.scale);
  copy(matrices, final_state.value, tape.stream());
  return o;
}

std::unique_ptr<MixerState> GatedLinearMixer::initial_state(std::int64_t sequences, const Place& place) const {
  std::vector<Tensor> parts;
  for (const Shape& shape : state_shapes(sequences)) {
    const bool activations = !parts.empty() && sizes_.carried[parts.size() - 1].activations;
    parts.push_back(place.zeros(shape, activations ? place.dtype : accumulator_dtype(place.dtype)));
  }
  return std::make_unique<GatedLinearState>(std::move(parts), place);
}

// Matrix products of the layer; element-wise work is small beside them. Masked products are counted by their triangle.
MixerCost GatedLinearMixer::cost(std::int64_t tokens, std::int64_t document_length) const {
  const auto T = static_cast<double>(tokens);
  const auto H = static_cast<double>(sizes_.heads);
  const auto d_k = static_cast<double>(sizes_.d_k);
  const auto d_v = static_cast<double>(sizes_.d_v);
  const auto weights = static_cast<double>(sizes_.weights);
  const auto saved = static_cast<double>(sizes_.saved);

  constexpr double kDiagonal = 16.0;  // half-filled blocks on the diagonal
  const auto C = static_cast<double>(
      std::min<std::int64_t>(gated_linear_chunk(sizes_.decay), std::max<std::int64_t>(1, document_length)));
  const double masked = (C + kDiagonal) * (d_k + d_v);
  const double states = d_k * d_v;
  return {.forward_flops = T * (2.0 * weights + H * (4.0 * states + masked)),
          .backward_flops = T * (4.0 * weights + H * (10.0 * states + 2.5 * masked)),
          // Weights once, what is kept written and read once, the result.
          .forward_bytes = 4.0 * (weights + T * (2.0 * saved + static_cast<double>(sizes_.width))),
          .saved_bytes = 4.0 * T * saved};
}

double GatedLinearMixer::state_bytes(std::int64_t) const {
  std::int64_t elements = 0;
  for (const Shape& shape : state_shapes(1)) elements += shape.numel();
  return 4.0 * static_cast<double>(elements);
}

}  // namespace weft
