#include "tests/support/layer_case.h"

namespace weft::testing {

namespace {

// Calls f(parameter, normal numbers of its shape) for each.
template <class F>
void with_noise(ParameterStore& store, double matrices, double vectors, F&& f) {
  std::uint64_t seed = 10;
  for (Parameter* p : store.all()) f(*p, normal(p->shape, seed++, p->shape.rank() >= 2 ? matrices : vectors));
}

}  // namespace

Options options_with(const MixerType& type, const OptionList& changes) {
  Options options(type.options);
  for (const auto& [key, value] : changes) options.set(key, value);
  return options;
}

Tensor product(const Tensor& x, const Tensor& w) {
  const Tensor y = Tensor::zeros({x.dim(0), w.dim(0)}, DType::f64);
  for (std::int64_t t = 0; t < y.dim(0); ++t) {
    for (std::int64_t o = 0; o < y.dim(1); ++o) {
      for (std::int64_t c = 0; c < w.dim(1); ++c) at(y, t, o) += at(x, t, c) * at(w, o, c);
    }
  }
  return y;
}

LayerCase::LayerCase(const MixerType& type, const OptionList& changes, const MixerSite& site_, DType dtype)
    : site(site_), mixer(type.create(ParameterScope(store), site, options_with(type, changes), "[mixer.test]")) {
  store.initialise(1, dtype);
}

void LayerCase::randomise(double matrices, double vectors) {
  with_noise(store, matrices, vectors, [](const Parameter& p, const Tensor& noise) { p.value.copy_from(noise); });
}

void LayerCase::perturb(double matrices, double vectors) {
  with_noise(store, matrices, vectors, [](const Parameter& p, const Tensor& noise) {
    const Tensor first = cast(p.value, DType::f64);
    for (std::int64_t i = 0; i < noise.numel(); ++i) noise.data<double>()[i] += first.data<double>()[i];
    p.value.copy_from(noise);
  });
}

const Tensor& LayerCase::value(const std::string& name) {
  const Parameter* p = store.find(name);
  WEFT_CHECK(p != nullptr, "no parameter {}", name);
  return p->value;
}

Tensor LayerCase::forward(const Tensor& x, const DocumentsPtr& documents, MixerState* state) {
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  return cast(mixer->forward(tape, Tape::constant(x), documents, state).value, x.dtype());
}

void LayerCase::expect_saved_bytes() {
  store.initialise(1, DType::f32);
  const std::int32_t T = 2048;
  const auto memory = heap_allocator();
  Tape tape(memory);
  Tensor input(Shape{T, site.width}, DType::f32, memory);
  input.fill_zero();
  (void)mixer->forward(tape, tape.leaf(input), Documents::single(T), nullptr);
  input = {};
  const double planned = mixer->cost(T, T).saved_bytes;
  EXPECT_NEAR(static_cast<double>(memory->stats().current_bytes), planned, 0.01 * planned);
}

std::string refusal(const std::function<void()>& make) {
  try {
    make();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "";
}

}  // namespace weft::testing
