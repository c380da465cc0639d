#include "train/verify/specimen.h"

#include <cmath>

#include "autograd/random_tensor.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

constexpr std::uint64_t kFirstValues = 11, kNoise = 100;

void make_generic(ParameterStore& store) {
  std::uint64_t seed = kNoise;
  for (Parameter* p : store.all()) {
    const bool matrix = p->shape.rank() >= 2;
    const double scale = matrix ? 1.0 / std::sqrt(static_cast<double>(p->shape.back())) : 0.1;
    const Tensor value = normal(p->shape, ++seed, scale);
    if (!matrix) {
      const Tensor first = to_host(p->value, DType::f64, {});
      for (std::int64_t i = 0; i < value.numel(); ++i) value.data<double>()[i] += first.data<double>()[i];
    }
    p->value.copy_from(to_host(value, DType::f32, {}));  // the same values in every type
  }
}

}  // namespace

Specimen::Specimen(const SpecimenDeclaration& declare, const Place& place)
    : place_(place), function_(declare(ParameterScope(parameters_))) {
  parameters_.initialise(kFirstValues, place.on_cpu() ? place.dtype : DType::f32);
  make_generic(parameters_);
  if (!place.on_cpu()) parameters_.move_to(place);
}

Specimen::Specimen(const SpecimenDeclaration& declare, const Specimen& rounded)
    : place_(cpu_place(DType::f64)), function_(declare(ParameterScope(parameters_))) {
  parameters_.initialise(kFirstValues, DType::f64);
  // all() gives mutable parameters; these are only read.
  const std::vector<Parameter*> from = const_cast<Specimen&>(rounded).parameters_.all(), to = parameters_.all();
  for (std::size_t i = 0; i < to.size(); ++i) to[i]->value.copy_from(rounded.fetch(from[i]->value));
}

Tensor Specimen::fetch(const Tensor& tensor) const {
  return to_host(tensor, place_.stream).clone();
}

SpecimenResult Specimen::backward(const std::vector<Tensor>& inputs, const SpecimenRow& row,
                                  const std::vector<Tensor>& seeds, Recompute recompute) {
  parameters_.zero_gradients(place_.stream);
  Tape tape(place_.arena, Tape::Mode::record, place_.stream);
  const auto here = [&](const Tensor& host, DType dtype) { return tape.here(to_host(host, dtype, {}).clone()); };
  std::vector<Var> leaves;
  for (const Tensor& x : inputs) leaves.push_back(tape.leaf(here(x, place_.dtype)));
  const auto forward = [&](Tape& on, std::span<const Var> in) { return function_(on, in, row); };
  const auto run = [&] {
    if (recompute == Recompute::none) return forward(tape, leaves);
    return recompute == Recompute::block ? tape.recompute(leaves, forward) : tape.recompute_cheap(leaves, forward);
  };
  const std::vector<Var> outputs = run();
  SpecimenResult result;
  for (const Var& y : outputs) result.outputs.push_back(fetch(y.value));
  std::vector<Tensor> placed;
  for (std::size_t i = 0; i < seeds.size(); ++i) placed.push_back(here(seeds[i], outputs[i].dtype()));
  tape.backward(std::span(outputs).first(seeds.size()), placed);
  for (const Var& x : leaves) result.inputs.push_back(fetch(tape.gradient(x)));
  for (const Parameter* p : parameters_.all()) result.parameters.push_back(fetch(p->grad));
  return result;
}

}  // namespace weft
