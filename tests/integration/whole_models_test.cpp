// Published models as recipes, at their own size: every recipe of recipes/models builds, decodes what it would compute
// anew, keeps the state it plans, and trains. And every mixer of constant memory, over 10,000 tokens.

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "autograd/ops/linear/linear.h"
#include "data/tokenizers/byte_tokenizer.h"
#include "tests/conformance/subject.h"
#include "tests/support/compare.h"
#include "train/optimizers/gradient_norm.h"

namespace weft::testing {
namespace {

std::vector<std::string> model_recipes() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("recipes/models")) {
    if (entry.path().extension() == ".toml") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The model of a recipe with projections of unit gain and noise on everything else, so that no part of it is silent.
struct RandomModel {
  RandomModel(const std::string& name, DType dtype)
      : recipe(load_recipe("recipes/models/" + name + ".toml")),
        model(language_model_config(recipe, ByteTokenizer::kVocabSize)) {
    model.initialise(1, dtype);
    std::uint64_t seed = 100;
    for (Parameter* p : model.parameters().all()) {
      const bool matrix = p->shape.rank() >= 2;
      const Tensor noise =
          normal(p->shape, ++seed, matrix ? 1.0 / std::sqrt(static_cast<double>(p->shape.back())) : 0.1);
      if (!matrix) {
        const Tensor initial = cast(p->value, DType::f64);
        for (std::int64_t i = 0; i < noise.numel(); ++i) noise.data<double>()[i] += initial.data<double>()[i];
      }
      p->value.copy_from(noise);
    }
  }

  double planned_state_bytes(std::int64_t length) const {
    double total = 0.0;
    for (std::int64_t l = 0; l < recipe.model.layers; ++l) total += model.block(l).mixer().state_bytes(length);
    return total;
  }

  // Logits [T, V] after every token of a row, computed without a state.
  Tensor logits(const Tensor& tokens, const DocumentsPtr& documents) {
    Tape tape(heap_allocator(), Tape::Mode::inference);
    Parameter* head = model.parameters().find("head");
    if (head == nullptr) head = model.parameters().find("embedding");
    return linear(tape, model.forward(tape, tokens, documents), tape.parameter(*head)).value;
  }

  Recipe recipe;
  LanguageModel model;
};

using Text = std::vector<std::int32_t>;

Text random_text(std::int64_t length, std::uint64_t seed) {
  const Tensor bytes = uniform({length}, seed, 0.0, 256.0);
  Text text;
  for (const double b : bytes.span<double>()) text.push_back(static_cast<std::int32_t>(b));
  return text;
}

Tensor token_tensor(const Text& text) {
  return Tensor::from({static_cast<std::int64_t>(text.size())}, text);
}

std::int32_t most_likely(const Tensor& logits, std::int64_t row) {
  const std::span<const double> values = logits.rows(row, row + 1).span<double>();
  return static_cast<std::int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

std::string recipe_name(const ::testing::TestParamInfo<std::string>& info) {
  return info.param;
}

class WholeModels : public ::testing::TestWithParam<std::string> {};

// Two sequences of unequal length continue greedily on cached states. Then the whole of both texts goes through once
// without a state: by causality its logits at each token are those of computing that prefix anew. In fp64, where no two
// candidates are nearer to each other than rounding errors reach.
TEST_P(WholeModels, GreedyTextIsThatOfTheWholePrefix) {
  RandomModel m(GetParam(), DType::f64);
  constexpr std::int64_t kNew = 40;
  std::vector<Text> texts = {random_text(300, 1), random_text(37, 2)};
  const std::vector<std::int64_t> prompt = {300, 37};
  std::vector<Tensor> decoded;  // [N, V] for each new token

  ModelState state = m.model.initial_state(2, cpu_place(DType::f64));
  Text both = texts[0];
  both.insert(both.end(), texts[1].begin(), texts[1].end());
  {
    Tape tape(heap_allocator(), Tape::Mode::inference);
    const auto documents = Documents::from_lengths(std::vector<std::int32_t>{300, 37});
    decoded.push_back(m.model.prefill(tape, token_tensor(both), documents, state));
  }
  for (std::int64_t i = 0; i < kNew; ++i) {
    const Text next = {most_likely(decoded.back(), 0), most_likely(decoded.back(), 1)};
    for (std::size_t n = 0; n < 2; ++n) texts[n].push_back(next[n]);
    Tape tape(heap_allocator(), Tape::Mode::inference);
    decoded.push_back(m.model.decode(tape, token_tensor(next), state));
  }

  for (std::size_t n = 0; n < 2; ++n) {
    const auto row = static_cast<std::int64_t>(n);
    const Tensor whole = m.logits(token_tensor(texts[n]), Documents::single(prompt[n] + kNew));
    for (std::int64_t i = 0; i <= kNew; ++i) {
      const std::int64_t at = prompt[n] + i - 1;
      const Tensor& here = decoded[static_cast<std::size_t>(i)];
      ASSERT_TRUE(close(here.rows(row, row + 1), whole.rows(at, at + 1), 1e-11, 1e-10)) << "token " << at;
      ASSERT_EQ(most_likely(here, row), most_likely(whole, at)) << "token " << at;
    }
  }
}

TEST_P(WholeModels, KeepsTheStateItPlans) {
  RandomModel m(GetParam(), DType::f32);
  const Text text = random_text(m.recipe.data.sequence_length, 3);
  ModelState state = m.model.initial_state(1, cpu_place(DType::f32));
  std::int32_t length = 0;
  for (const std::int32_t end : {1, 100, static_cast<std::int32_t>(text.size())}) {
    Tape tape(heap_allocator(), Tape::Mode::inference);
    m.model.prefill(tape, token_tensor(Text(text.begin() + length, text.begin() + end)),
                    Documents::single(end - length, length), state);
    length = end;
    EXPECT_EQ(static_cast<double>(state.bytes()), m.planned_state_bytes(length)) << length << " tokens";
  }
  const std::int64_t parameters = m.model.parameters().element_count();
  const double growth = (m.planned_state_bytes(131072) - m.planned_state_bytes(65536)) / 65536.0;
  RecordProperty("parameters", std::to_string(parameters));
  RecordProperty("state_bytes", std::to_string(state.bytes()));
  RecordProperty("state_bytes_per_token", std::to_string(growth));
  fmt::print("{}: {} parameters, {} bytes of state at {} tokens, {} more for each token after the windows\n",
             GetParam(), parameters, state.bytes(), length, growth);
}

TEST_P(WholeModels, TrainsEveryParameter) {
  RandomModel m(GetParam(), DType::f32);
  const auto documents = Documents::from_lengths(std::vector<std::int32_t>{300, 56});
  const Tensor tokens = token_tensor(random_text(356, 4)), labels = token_tensor(random_text(356, 5));
  const auto loss = [&](Tape& tape) {
    return m.model.loss(tape, tokens, documents, labels, {}, {.denominator = 356.0, .token_losses = {}});
  };
  Tape tape(heap_allocator());
  const LossTerms terms = loss(tape);
  EXPECT_TRUE(std::isfinite(read_loss_sums(terms.sums, tape.stream()).loss));
  tape.backward(terms.loss, Tensor::from({1}, std::vector<float>{1.0F}));
  for (const Parameter* p : m.model.parameters().all()) {
    double squares = 0.0;
    for (const float g : p->grad.span<float>()) squares += static_cast<double>(g) * static_cast<double>(g);
    EXPECT_TRUE(std::isfinite(squares) && squares > 0.0) << p->name << ": squared gradient " << squares;
  }

  Optimizer optimizer(m.model.parameters().all(), optimizer_options(m.recipe));
  const GradientNorm norm = gradient_norm(optimizer.trainable());
  optimizer.update(1.0, clip_factor(norm.norm, m.recipe.optimizer.clip), GradientsAfter::zero);
  Tape after(heap_allocator(), Tape::Mode::inference);
  EXPECT_TRUE(std::isfinite(read_loss_sums(loss(after).sums, after.stream()).loss));
}

INSTANTIATE_TEST_SUITE_P(Recipes, WholeModels, ::testing::ValuesIn(model_recipes()), recipe_name);

// --- constant memory -------------------------------------------------------------------------------------------------

// Whether the plan for 10,000 tokens is that for 1,000. Parameters stay without memory: this runs whenever the program
// starts.
bool plans_constant_memory(const Subject& subject) {
  const ModelSection& model = subject.recipe.model;
  const MixerTable& table = subject.recipe.mixer(model.pattern.front());
  const MixerSite site{.width = model.width, .layers = model.layers, .layer = 0, .max_tokens = 10000};
  ParameterStore store;
  const auto mixer = table.type->create(ParameterScope(store), site, table.options, table.where);
  return mixer->state_bytes(1000) == mixer->state_bytes(10000);
}

// The mixers, in the variants of their tiny recipes, that plan so.
std::vector<Subject> constant_memory_subjects() {
  std::vector<Subject> subjects = conformance_subjects();
  std::erase_if(subjects, [](const Subject& subject) { return !plans_constant_memory(subject); });
  return subjects;
}

// A plan that grows by mistake would only leave its mixer out of the tests below.
TEST(MemoryPlans, GrowWhereEveryTokenStaysWithinReach) {
  const std::vector<std::string> growing = {"attention", "mla", "nsa", "moba", "infllm2"};
  for (const Subject& subject : conformance_subjects()) {
    const Recipe& recipe = subject.recipe;
    const std::string& type = recipe.mixer(recipe.model.pattern.front()).type->name;
    if (std::find(growing.begin(), growing.end(), type) != growing.end()) continue;
    EXPECT_TRUE(plans_constant_memory(subject)) << subject.path;
  }
}

class ConstantMemory : public ::testing::TestWithParam<Subject> {};

TEST_P(ConstantMemory, TenThousandTokensTakeNoMore) {
  Layer layer(GetParam(), DType::f32);
  constexpr std::int32_t kTokens = 10000;
  const Tensor x = cast(normal({kTokens, layer.width()}, 1), DType::f32);
  const auto state = layer.mixer().initial_state(1, cpu_place(DType::f32));
  const std::shared_ptr<Allocator> memory = heap_allocator();
  for (std::int32_t t = 0; t < kTokens; ++t) {
    Tape tape(memory, Tape::Mode::inference);
    const Tensor y =
        layer.mixer().forward(tape, Tape::constant(x.rows(t, t + 1)), Documents::single(1, t), state.get()).value;
    for (const float v : y.span<float>()) ASSERT_TRUE(std::isfinite(v)) << "token " << t;
    if (t + 1 >= 1000 && (t + 1) % 500 == 0) {
      ASSERT_EQ(static_cast<double>(state->bytes()), layer.mixer().state_bytes(1000)) << "after token " << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, ConstantMemory, ::testing::ValuesIn(constant_memory_subjects()), subject_name);

}  // namespace
}  // namespace weft::testing
