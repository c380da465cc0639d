#include "train/loop/find_nonfinite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"
#include "tests/support/gpu.h"
#include "tests/support/preceded_mixer.h"
#include "train/recipe/recipe.h"

namespace weft {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::int64_t kVocabulary = 40;

Place gpu_place(DType dtype) {
  return {.stream = testing::gpu_stream(),
          .lasting = cuda_allocator(0),
          .arena = testing::gpu_memory(std::size_t{1} << 28),
          .dtype = dtype};
}

Batch batch() {
  const std::vector<std::int32_t> lengths = {70, 1, 29};
  Batch b{.tokens = Tensor::empty({100}, DType::i32),
          .labels = Tensor::empty({100}, DType::i32),
          .weights = {},
          .documents = Documents::from_lengths(lengths)};
  for (std::int32_t t = 0; t < 100; ++t) {
    b.tokens.data<std::int32_t>()[t] = t * 7 % kVocabulary;
    b.labels.data<std::int32_t>()[t] = t * 11 % kVocabulary;
  }
  return b;
}

void put(const Tensor& tensor, std::int64_t at, float value, const Place& place) {
  const Tensor host = to_host(tensor, DType::f32, place.stream);
  Tensor changed = Tensor::empty(tensor.shape(), DType::f32);
  changed.copy_from(host);
  changed.data<float>()[at] = value;
  copy(tensor, to_host(changed, tensor.dtype(), {}), place.stream);
}

// Passes its input on. Backward, the gradient that it hands on to its input or to its parameter is not finite.
enum class Fault : std::uint8_t { input, parameter };
Var fault(Tape& tape, const Var& x, Parameter& parameter, Fault where) {
  struct Saved {
    Fault where;
    void backward(Backward& pass) const {
      const Stream& stream = pass.tape().stream();
      const Tensor dy = pass.grad(0);
      const GradTarget dx = pass.target(0), dw = pass.target(1);
      fill_zero(dw.tensor, stream);
      if (dx.write == Write::overwrite) {
        copy(dx.tensor, dy, stream);
      } else {
        add_into(dx.tensor, dy, stream);
      }
      const Tensor& bad = where == Fault::input ? dx.tensor : dw.tensor;
      fill(bad.reshape({bad.numel()}).rows(7, 9), std::numeric_limits<double>::quiet_NaN(), stream);
    }
  };
  return tape.record("fault", {x, tape.parameter(parameter)}, x.value, [&] { return Saved{where}; });
}

// Attention with a fault in its second layer.
template <Fault kWhere>
MixerType faulty_mixer() {
  MixerType type = *find_mixer("attention");
  type.name = "faulty";
  type.create = [](const ParameterScope& scope, const MixerSite& site, const Options& options,
                   const std::string& where) -> std::unique_ptr<Mixer> {
    std::unique_ptr<Mixer> mixer = find_mixer("attention")->create(scope, site, options, where);
    if (site.layer != 1) return mixer;
    Parameter& parameter = scope.declare("planted", {9}, ParameterKind::vector, Init::constant(1.0));
    const auto planted = [&parameter](Tape& tape, const Var& x) { return fault(tape, x, parameter, kWhere); };
    return std::make_unique<testing::PrecededMixer>(planted, std::move(mixer));
  };
  return type;
}

void check_backward(const MixerType& type, const std::string& recompute, const std::string& made, const Place& place) {
  SCOPED_TRACE(made + ", recompute " + recompute);
  std::vector<const MixerType*> types = mixer_types();
  types.push_back(&type);
  const Recipe recipe = parse_recipe(R"(
[run]
steps = 1
[model]
width = 32
layers = 3
pattern = ["faulty"]
[mixer.faulty]
heads = 2
[data]
train = "nowhere"
sequence_length = 256
batch_tokens = 256
)",
                                     "test.toml", std::vector<std::string>{"model.recompute=" + recompute}, types);
  LanguageModel model(language_model_config(recipe, kVocabulary));
  model.initialise(3, place);
  const std::vector<std::string> found = find_nonfinite(model, {batch()}, place, 100.0, 0.0);
  ASSERT_EQ(found.size(), 1) << ::testing::PrintToString(found);
  EXPECT_EQ(found[0], "backward, at layers.1.mixer: fault with layers.1.mixer.planted makes nan at element 7 of " +
                          made + " values not finite from finite inputs");
}

void check_backward(const Place& place) {
  static const MixerType input = faulty_mixer<Fault::input>(), parameter = faulty_mixer<Fault::parameter>();
  for (const char* recompute : {"none", "selective", "block"}) {
    check_backward(input, recompute, "[100, 32], 2 of 3200", place);
    check_backward(parameter, recompute, "[9], 2 of 9", place);
  }
}

void check(const std::string& mixer, const std::string& recompute, const Place& place) {
  SCOPED_TRACE(mixer + ", recompute " + recompute);
  const Recipe recipe = load_recipe("modules/mixers/" + mixer + "/tiny.toml",
                                    std::vector<std::string>{"model.layers=3", "model.recompute=" + recompute});
  LanguageModel model(language_model_config(recipe, kVocabulary));
  model.initialise(3, place);
  const std::vector<Batch> batches = {batch(), batch()};
  const auto lines = [&] { return find_nonfinite(model, batches, place, 200.0, 1e-4); };
  EXPECT_THAT(lines(), IsEmpty());

  Parameter& wq = *model.parameters().find("layers.1.mixer.wq");
  put(wq.value, 5, std::numeric_limits<float>::infinity(), place);
  const std::vector<std::string> found = lines();
  ASSERT_EQ(found.size(), 2) << ::testing::PrintToString(found);
  EXPECT_THAT(found[0], AllOf(HasSubstr("the parameter layers.1.mixer.wq is inf at element 5"), HasSubstr("1 of ")));
  EXPECT_THAT(found[1], AllOf(HasSubstr("forward, at layers.1.mixer: linear with layers.1.mixer.wq makes "),
                              HasSubstr("from finite inputs")));
}

TEST(FindNonfinite, NamesTheParameterAndTheOperation) {
  for (const char* recompute : {"none", "selective", "block"}) {
    check("attention", recompute, cpu_place(DType::f32, heap_allocator()));
  }
  check("gla", "none", cpu_place(DType::f32, heap_allocator()));
}

TEST(FindNonfinite, NamesWhatIsWrongInBackward) {
  check_backward(cpu_place(DType::f32, heap_allocator()));
}

TEST(FindNonfiniteGpu, NamesWhatIsWrongInBackward) {
  WEFT_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::bf16}) check_backward(gpu_place(dtype));
}

TEST(FindNonfiniteGpu, NamesTheParameterAndTheOperation) {
  WEFT_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const char* recompute : {"none", "selective", "block"}) check("attention", recompute, gpu_place(dtype));
    check("gla", "none", gpu_place(dtype));
  }
}

}  // namespace
}  // namespace weft
