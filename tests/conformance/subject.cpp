#include "tests/conformance/subject.h"

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

namespace {

std::shared_ptr<Mixer> create_mixer(const Subject& subject, const ParameterScope& scope) {
  const MixerTable& table = subject.recipe.mixer(subject.recipe.model.pattern.front());
  const MixerSite site{.width = subject.recipe.model.width, .layers = 4, .layer = 1, .max_tokens = 2048};
  return table.type->create(scope, site, table.options, table.where);
}

SpecimenFunction function_of(const std::shared_ptr<Mixer>& mixer) {
  return [mixer](Tape& tape, std::span<const Var> in, const SpecimenRow& row) {
    return std::vector{mixer->forward(tape, in[0], row.documents, nullptr)};
  };
}

}  // namespace

Place hostile_place(Target target) {
  if (target.device == DeviceKind::cpu) return cpu_place(target.dtype, heap_allocator(Hygiene::hostile));
  return {.stream = gpu_stream(), .lasting = cuda_allocator(0), .arena = gpu_memory(), .dtype = target.dtype};
}

SpecimenDeclaration mixer_of(const Subject& subject) {
  return [subject](const ParameterScope& scope) { return function_of(create_mixer(subject, scope)); };
}

SpecimenDeclaration Layer::declaration() {
  return [this](const ParameterScope& scope) {
    mixer_ = create_mixer(subject_, scope);
    return function_of(mixer_);
  };
}

Layer::Layer(const Subject& subject, Target target)
    : subject_(subject),
      width_(subject.recipe.model.width),
      specimen_(std::make_unique<Specimen>(declaration(), hostile_place(target))) {}

Layer::Layer(const Subject& subject, const Layer& rounded)
    : subject_(subject),
      width_(subject.recipe.model.width),
      specimen_(std::make_unique<Specimen>(declaration(), *rounded.specimen_)) {}

Layer Layer::exact() const {
  return {subject_, *this};
}

std::unique_ptr<MixerState> Layer::initial_state(std::int64_t sequences) const {
  return mixer_->initial_state(sequences, specimen_->place());
}

Tensor Layer::forward(const Tensor& x, const DocumentsPtr& documents, MixerState* state) {
  const Place& place = specimen_->place();
  Tape tape(place.arena, Tape::Mode::inference, place.stream);
  const Var y = mixer_->forward(tape, Tape::constant(tape.here(cast(x, dtype()))), documents, state);
  return specimen_->fetch(y.value);
}

Layer::Gradients Layer::backward(const Tensor& x, const DocumentsPtr& documents, const Tensor& dy,
                                 Recompute recompute) {
  const SpecimenResult r = specimen_->backward({x}, {.documents = documents}, {dy}, recompute);
  return {.y = r.outputs[0], .dx = r.inputs[0], .parameters = r.parameters};
}

}  // namespace weft::testing
