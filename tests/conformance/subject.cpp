#include "tests/conformance/subject.h"

#include <cmath>
#include <filesystem>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"

namespace weft::testing {

std::vector<Subject> conformance_subjects() {
  std::vector<Subject> subjects;
  for (const MixerType* type : mixer_types()) {
    const std::filesystem::path folder = std::filesystem::path("modules/mixers") / type->name;
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("tiny") && name.ends_with(".toml")) files.push_back(name);
    }
    std::sort(files.begin(), files.end());
    for (const std::string& file : files) {
      const std::string variant = file.substr(4, file.size() - 4 - 5);  // "" or "_window"
      const std::string path = (folder / file).string();
      subjects.push_back({type->name + variant, path, load_recipe(path)});
    }
  }
  return subjects;
}

Layer::Layer(const Subject& subject, Target target) : width_(subject.recipe.model.width), target_(target) {
  const MixerTable& table = subject.recipe.mixer(subject.recipe.model.pattern.front());
  const MixerSite site{.width = width_, .layers = 4, .layer = 1, .max_tokens = 2048};
  mixer_ = table.type->create(ParameterScope(store_), site, table.options, table.where);
  const bool on_cpu = target.device == DeviceKind::cpu;
  store_.initialise(11, on_cpu ? target.dtype : DType::f32);
  std::uint64_t seed = 100;
  for (Parameter* p : store_.all()) {
    const bool matrix = p->shape.rank() >= 2;
    const double scale = matrix ? 1.0 / std::sqrt(static_cast<double>(p->shape.back())) : 0.1;
    const Tensor noise = normal(p->shape, ++seed, scale);
    Tensor value = matrix ? noise : cast(p->value, DType::f64);
    if (!matrix) {
      for (std::int64_t i = 0; i < value.numel(); ++i) value.data<double>()[i] += noise.data<double>()[i];
    }
    p->value.copy_from(cast(value, DType::f32));  // the same values in every type
  }
  if (!on_cpu) {
    store_.move_to({.stream = gpu_stream(), .lasting = cuda_allocator(0), .arena = nullptr, .dtype = target.dtype});
  }
}

Layer::Layer(const Subject& subject, const Layer& rounded) : Layer(subject, DType::f64) {
  Layer& other = const_cast<Layer&>(rounded);
  const std::vector<Parameter*> from = other.parameters(), to = parameters();
  for (std::size_t i = 0; i < to.size(); ++i) to[i]->value.copy_from(other.fetch(from[i]->value));
}

std::shared_ptr<Allocator> Layer::memory() const {
  return target_.device == DeviceKind::cpu ? heap_allocator(Hygiene::hostile) : gpu_memory();
}

Tensor Layer::fetch(const Tensor& tensor) const {
  return cast(to_host(tensor, stream()), tensor.dtype());
}

Tensor Layer::forward(const Tensor& x, const DocumentsPtr& documents, MixerState* state) {
  Tape tape(memory(), Tape::Mode::inference, stream());
  const Var y = mixer_->forward(tape, Tape::constant(tape.here(cast(x, dtype()))), documents, state);
  return fetch(y.value);
}

Layer::Gradients Layer::backward(const Tensor& x, const DocumentsPtr& documents, const Tensor& dy, bool recompute) {
  store_.zero_gradients(stream());
  Tape tape(memory(), Tape::Mode::record, stream());
  const Var leaf = tape.leaf(tape.here(cast(x, dtype())));
  Var y;
  if (recompute) {
    y = tape.recompute(std::span(&leaf, 1), [&](Tape& inner, std::span<const Var> in) {
      return std::vector{mixer_->forward(inner, in[0], documents, nullptr)};
    })[0];
  } else {
    y = mixer_->forward(tape, leaf, documents, nullptr);
  }
  Gradients result{.y = fetch(y.value), .dx = {}, .parameters = {}};
  tape.backward(y, tape.here(cast(dy, dtype())));
  result.dx = fetch(tape.gradient(leaf));
  for (Parameter* p : store_.all()) result.parameters.push_back(fetch(p->grad));
  return result;
}

}  // namespace weft::testing
