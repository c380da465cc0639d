#include "autograd/parameter.h"

#include <cmath>

#include "autograd/portable_math.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

// FNV-1a: names each parameter's random sequence.
std::uint64_t hash_name(const std::string& name) {
  std::uint64_t h = 14695981039346656037ull;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return h;
}

double uniform53(std::uint32_t high, std::uint32_t low) {
  return static_cast<double>(((static_cast<std::uint64_t>(high) << 32) | low) >> 11) * 0x1p-53;
}

// Element `index` of the sequence `key`: one Philox block gives two 53-bit uniforms.
double draw(const Init& init, std::uint64_t key, std::uint64_t index) {
  const PhiloxCounter words = random_block(key, RandomStream::parameter_init, index, 0);
  const double u = uniform53(words[0], words[1]);
  switch (init.law) {
    case Init::Law::constant:
      return init.a;
    case Init::Law::normal: {
      const double v = uniform53(words[2], words[3]);
      return init.a * std::sqrt(-2.0 * portable_log(1.0 - u)) * portable_cos_2pi(v);
    }
    case Init::Law::uniform:
      return init.a + (init.b - init.a) * u;
    case Init::Law::log_uniform:
      return portable_log(init.a + (init.b - init.a) * u);
    case Init::Law::inverse_softplus_log_uniform: {
      const double low = portable_log(init.a);
      const double x = portable_exp(low + (portable_log(init.b) - low) * u);
      return portable_log(portable_exp(x) - 1.0);
    }
  }
  return 0.0;
}

}  // namespace

Parameter& ParameterStore::declare(std::string name, const Shape& shape, ParameterKind kind, const Init& init) {
  WEFT_CHECK(find(name) == nullptr, "parameter {} is declared twice", name);
  parameters_.push_back(
      {.name = std::move(name), .shape = shape, .kind = kind, .init = init, .value = {}, .grad = {}, .master = {}});
  return parameters_.back();
}

void ParameterStore::initialise(std::uint64_t seed, DType dtype) {
  for (Parameter& p : parameters_) {
    p.value = Tensor::empty(p.shape, dtype);
    p.grad = Tensor::zeros(p.shape, dtype);
    p.master = p.value;
    const std::uint64_t key = seed ^ hash_name(p.name);
    dispatch_real(dtype, "parameter initialisation", [&]<class T>() {
      T* values = p.value.data<T>();
      const std::int64_t n = p.shape.numel();
#pragma omp parallel for schedule(static)
      for (std::int64_t i = 0; i < n; ++i) values[i] = static_cast<T>(draw(p.init, key, static_cast<std::uint64_t>(i)));
    });
  }
}

void ParameterStore::allocate(const Place& place) {
  for (Parameter& p : parameters_) {
    p.master = Tensor(p.shape, accumulator_dtype(place.dtype), place.lasting);
    p.value = place.dtype == DType::bf16 && p.kind != ParameterKind::vector
                  ? Tensor(p.shape, DType::bf16, place.lasting)
                  : p.master;
    p.grad = Tensor(p.shape, p.master.dtype(), place.lasting);
  }
}

void ParameterStore::move_to(const Place& place) {
  std::vector<Tensor> host;
  for (const Parameter& p : parameters_) host.push_back(p.master);
  allocate(place);
  for (std::size_t i = 0; i < host.size(); ++i) {
    WEFT_CHECK(host[i].defined() && host[i].device().is_cpu(), "{} is not in host memory", parameters_[i].name);
    copy(parameters_[i].master, host[i], place.stream);
  }
  zero_gradients(place.stream);
  take_masters(place.stream);
  synchronize(place.stream);  // before the host copies go
}

void ParameterStore::take_masters(const Stream& stream) {
  for (Parameter& p : parameters_) {
    if (p.value.dtype() == p.master.dtype()) continue;
    const Tensor rounded = to_host(to_host(p.master, stream), p.value.dtype(), {});
    copy(p.value, rounded, stream);
    synchronize(stream);  // before the host copy goes
  }
}

void ParameterStore::zero_gradients(const Stream& stream) {
  for (Parameter& p : parameters_) fill_zero(p.grad, stream);
}

std::vector<Parameter*> ParameterStore::all() {
  std::vector<Parameter*> list;
  for (Parameter& p : parameters_) list.push_back(&p);
  return list;
}

Parameter* ParameterStore::find(const std::string& name) {
  for (Parameter& p : parameters_) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

std::int64_t ParameterStore::element_count() const {
  std::int64_t n = 0;
  for (const Parameter& p : parameters_) n += p.shape.numel();
  return n;
}

}  // namespace weft
