#include "autograd/parameter.h"

#include "autograd/initial_values.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

// FNV-1a: names each parameter's random sequence.
std::uint64_t hash_name(const std::string& name) {
  std::uint64_t h = 14695981039346656037ull;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return h;
}

constexpr Dispatch<InitialValues> kDraw{
    .op = "initial values",
    .cpu =
        [](const InitialValues& args, const Launch&) {
          dispatch_real(args.dtype, "initial values", [&]<class T>() {
            T* y = static_cast<T*>(args.y);
#pragma omp parallel for schedule(static)
            for (std::int64_t i = 0; i < args.N; ++i) {
              y[i] = static_cast<T>(initial_value(args.init, args.key, static_cast<std::uint64_t>(i)));
            }
          });
        },
    .cuda = WEFT_ON_CUDA(initial_values_cuda)};

}  // namespace

Parameter& ParameterStore::declare(std::string name, const Shape& shape, ParameterKind kind, const Init& init) {
  WEFT_CHECK(find(name) == nullptr, "parameter {} is declared twice", name);
  parameters_.push_back(
      {.name = std::move(name), .shape = shape, .kind = kind, .init = init, .value = {}, .grad = {}, .master = {}});
  Parameter& added = parameters_.back();
  by_name_.emplace(added.name, &added);
  return added;
}

void ParameterStore::initialise(std::uint64_t seed, const Place& place) {
  allocate(place);
  for (const Parameter& p : parameters_) {
    kDraw({.dtype = p.master.dtype(),
           .init = p.init,
           .key = seed ^ hash_name(p.name),
           .N = p.shape.numel(),
           .y = p.master.raw()},
          {.stream = place.stream});
  }
  zero_gradients(place.stream);
  take_masters(place.stream);
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
    convert(p.value, p.master, stream);
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

Parameter* ParameterStore::find(std::string_view name) {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

std::int64_t ParameterStore::element_count() const {
  std::int64_t n = 0;
  for (const Parameter& p : parameters_) n += p.shape.numel();
  return n;
}

}  // namespace weft
