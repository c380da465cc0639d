// The PyTorch files of exports against weft in fp64: a model of every tiny recipe, with parameters of which none has a
// value that hides a term, is exported and loaded in transformers, where check.py compares logits, splits, padding,
// beams, loss and generate(); and check.py's own verdicts. Needs an interpreter with torch, transformers and
// safetensors, named by WEFT_PYTHON.
#include <cmath>
#include <cstdlib>
#include <gtest/gtest.h>
#include <map>
#include <numeric>

#include "checkpoints/huggingface/export.h"
#include "checkpoints/huggingface/targets/weft.h"
#include "checkpoints/safetensors/writer.h"
#include "tests/conformance/subject.h"
#include "tests/integration/program.h"
#include "tests/support/random.h"

namespace weft::testing {
namespace {

constexpr std::int64_t kVocabulary = 257;
constexpr std::int64_t kLengths[] = {1, 2, 63, 64, 65, 257};

// The same parameters in both: of unit gain where they are matrices, near their first value where they are not.
void perturb(LanguageModel& narrow, LanguageModel& wide) {
  const std::vector<Parameter*> to = narrow.parameters().all(), to_wide = wide.parameters().all();
  for (std::size_t i = 0; i < to.size(); ++i) {
    const Shape& shape = to[i]->shape;
    const bool matrix = shape.rank() >= 2;
    const double scale = matrix ? 1.0 / std::sqrt(static_cast<double>(shape.back())) : 0.1;
    const Tensor value = normal(shape, i + 1, scale);
    for (std::int64_t j = 0; j < value.numel(); ++j) {
      float& number = to[i]->value.data<float>()[j];
      number = static_cast<float>(value.data<double>()[j] + (matrix ? 0.0 : static_cast<double>(number)));
      to_wide[i]->value.data<double>()[j] = static_cast<double>(number);
    }
  }
}

Tensor logits(LanguageModel& model, const std::vector<std::int32_t>& ids) {
  const auto T = static_cast<std::int64_t>(ids.size());
  std::vector<std::int64_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  Tape tape(heap_allocator(), Tape::Mode::inference);
  return model.logits_at(tape, Tensor::from({T}, std::span<const std::int32_t>(ids)), Documents::single(T), positions);
}

// Pairs ids.N, logits.N, as check.py reads them.
void write_expected(LanguageModel& model, const std::filesystem::path& path) {
  std::map<std::string, Tensor> tensors;
  std::vector<TensorDeclaration> declarations;
  for (const std::int64_t T : kLengths) {
    const std::size_t n = tensors.size() / 2;
    const std::vector<std::int32_t> ids = probe_tokens(T, kVocabulary);
    const std::vector<std::int64_t> wide(ids.begin(), ids.end());
    const std::string ids_name = fmt::format("ids.{}", n), logits_name = fmt::format("logits.{}", n);
    tensors[ids_name] = Tensor::from({T}, std::span<const std::int64_t>(wide));
    tensors[logits_name] = logits(model, ids);
    declarations.push_back({.name = ids_name, .dtype = SafetensorsDType::i64, .shape = {T}});
    declarations.push_back({.name = logits_name, .dtype = SafetensorsDType::f64, .shape = {T, kVocabulary}});
  }
  write_safetensors_file(path, declarations, [&](const TensorDeclaration& declaration, TensorSink& sink) {
    const Tensor& tensor = tensors.at(declaration.name);
    sink.write_bytes({static_cast<const std::byte*>(tensor.raw()), tensor.nbytes()});
  });
}

class RemoteCodeSweep : public ::testing::TestWithParam<Subject> {};

TEST_P(RemoteCodeSweep, ComputesInTransformersWhatItDoesHere) {
  const char* python = std::getenv("WEFT_PYTHON");
  if (python == nullptr) GTEST_SKIP() << "WEFT_PYTHON names no interpreter with torch, transformers and safetensors";
  const LanguageModelConfig config = language_model_config(GetParam().recipe, kVocabulary);
  LanguageModel model(config), wide(config);
  model.initialise(1, DType::f32);
  wide.initialise(1, DType::f64);
  perturb(model, wide);

  const Workspace workspace;
  const std::filesystem::path folder = workspace.path() / GetParam().name;
  std::filesystem::create_directory(folder);
  const HubModel hub{.model = config, .max_positions = config.max_tokens, .eos = {}};
  const ExportSource source{.target = weft_target(), .hub = hub, .model = model, .tokenizer = nullptr};
  write_export(source, {.dtype = SafetensorsDType::f32, .card = "a test"}, folder);
  write_expected(wide, folder / "expected.safetensors");
  Program check({"env", "HF_HUB_OFFLINE=1", "TOKENIZERS_PARALLELISM=false", "PYTHONDONTWRITEBYTECODE=1",
                 "HF_MODULES_CACHE=" + workspace / "modules", python, "tests/remote_code/check.py", folder.string()});
  const ProgramResult result = check.wait(std::chrono::seconds(600));
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
}

TEST(RemoteCode, JudgesWhatItCompares) {
  const char* python = std::getenv("WEFT_PYTHON");
  if (python == nullptr) GTEST_SKIP() << "WEFT_PYTHON names no interpreter with torch, transformers and safetensors";
  Program check({"env", "PYTHONDONTWRITEBYTECODE=1", python, "tests/remote_code/check_test.py"});
  const ProgramResult result = check.wait(std::chrono::seconds(120));
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
}

INSTANTIATE_TEST_SUITE_P(Mixers, RemoteCodeSweep, ::testing::ValuesIn(conformance_subjects()), subject_name);

}  // namespace
}  // namespace weft::testing
