#include "train/loop/find_nonfinite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits>

#include "autograd/cuda/cuda_memory.h"
#include "tests/support/gpu.h"
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

TEST(FindNonfiniteGpu, NamesTheParameterAndTheOperation) {
  WEFT_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const char* recompute : {"none", "selective", "block"}) check("attention", recompute, gpu_place(dtype));
    check("gla", "none", gpu_place(dtype));
  }
}

}  // namespace
}  // namespace weft
