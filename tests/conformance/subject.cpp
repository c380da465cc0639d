#include "tests/conformance/subject.h"

#include <cmath>
#include <filesystem>

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

Layer::Layer(const Subject& subject, DType dtype) : width_(subject.recipe.model.width), dtype_(dtype) {
  const MixerTable& table = subject.recipe.mixer(subject.recipe.model.pattern.front());
  const MixerSite site{.width = width_, .layers = 4, .layer = 1, .max_tokens = 2048};
  mixer_ = table.type->create(ParameterScope(store_), site, table.options, table.where);
  store_.initialise(11, dtype);
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
}

Tensor Layer::forward(const Tensor& x, const DocumentsPtr& documents, MixerState* state) {
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const Var y = mixer_->forward(tape, Tape::constant(cast(x, dtype_)), documents, state);
  return cast(y.value, dtype_);
}

Layer::Gradients Layer::backward(const Tensor& x, const DocumentsPtr& documents, const Tensor& dy, bool recompute) {
  store_.zero_gradients();
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var leaf = tape.leaf(cast(x, dtype_));
  Var y;
  if (recompute) {
    y = tape.recompute(std::span(&leaf, 1), [&](Tape& inner, std::span<const Var> in) {
      return std::vector{mixer_->forward(inner, in[0], documents, nullptr)};
    })[0];
  } else {
    y = mixer_->forward(tape, leaf, documents, nullptr);
  }
  Gradients result{.y = cast(y.value, dtype_), .dx = {}, .parameters = {}};
  tape.backward(y, cast(dy, dtype_));
  result.dx = cast(tape.gradient(leaf), dtype_);
  for (Parameter* p : store_.all()) result.parameters.push_back(cast(p->grad, dtype_));
  return result;
}

}  // namespace weft::testing
