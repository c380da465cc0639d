#include "train/plan/plan.h"

#include <gtest/gtest.h>

#include "autograd/place.h"
#include "tests/support/compare.h"

namespace weft {
namespace {

const PlannedPart& part(const Plan& plan, const std::string& name) {
  for (const PlannedPart& p : plan.memory) {
    if (p.name == name) return p;
  }
  ADD_FAILURE() << "no " << name;
  return plan.memory.front();
}

// What the same step takes where it is really made.
TEST(Plan, StepsTakeThePlannedMemory) {
  for (const char* recompute : {"none", "selective", "block"}) {
    SCOPED_TRACE(recompute);
    const Recipe recipe = load_recipe(
        "recipes/models/kimi_linear.toml",
        std::vector<std::string>{"run.device=cpu", "data.sequence_length=128", "data.batch_tokens=1024",
                                 "parallel.micro_batch_tokens=256", fmt::format("model.recompute={}", recompute)});
    constexpr std::int64_t kVocabulary = 257;
    const Plan plan = plan_recipe(recipe, kVocabulary);

    const auto arena = std::make_shared<Arena>(std::size_t{8} << 30);
    LanguageModel model(language_model_config(recipe, kVocabulary));
    model.initialise(1, DType::f32);
    const std::int64_t T = plan.micro_batch_tokens;
    const std::int64_t rows = T / recipe.data.sequence_length;
    Tape tape(arena);
    const Tensor tokens = tape.empty({T}, DType::i32), labels = tape.empty({T}, DType::i32);
    tokens.fill_zero();
    labels.fill_zero();
    const std::vector<std::int32_t> lengths(static_cast<std::size_t>(rows),
                                            static_cast<std::int32_t>(recipe.data.sequence_length));
    const LossTerms terms = model.loss(tape, tokens, Documents::from_lengths(lengths), labels, {},
                                       {.z_loss = recipe.model.z_loss, .token_losses = {}, .unit_seed = true});
    EXPECT_EQ(part(plan, "activations kept for backward").bytes, static_cast<double>(arena->stats().current_bytes));
    const Tensor seed = tape.empty({1}, DType::f32);
    *seed.data<float>() = 1.0F;
    tape.backward(terms.loss, seed);
    EXPECT_EQ(part(plan, "activations kept for backward").bytes + part(plan, "a step's peak above them").bytes,
              static_cast<double>(arena->stats().peak_bytes));
    EXPECT_EQ(part(plan, "gaps between them").bytes,
              static_cast<double>(arena->stats().extent_bytes - arena->stats().peak_bytes));
  }
}

// Of the models of recipes/models: what is kept shrinks from none to selective to block, and selective recomputation
// never raises the peak.
TEST(Plan, RecomputationKeepsLess) {
  for (const char* name : {"kimi_linear", "minimax_01", "qwen3_next", "samba", "retnet", "based", "nsa"}) {
    SCOPED_TRACE(name);
    std::vector<double> kept, peak;
    for (const char* recompute : {"none", "selective", "block"}) {
      const Recipe recipe =
          load_recipe(fmt::format("recipes/models/{}.toml", name),
                      std::vector<std::string>{"run.device=cpu", fmt::format("model.recompute={}", recompute)});
      const Plan plan = plan_recipe(recipe, 257);
      kept.push_back(part(plan, "activations kept for backward").bytes);
      peak.push_back(kept.back() + part(plan, "a step's peak above them").bytes);
    }
    EXPECT_LT(kept[1], 0.9 * kept[0]);
    EXPECT_LT(kept[2], kept[1]);
    EXPECT_LT(peak[1], peak[0]);
  }
}

// Gradients of a whole model, of which some parameters are used in several spans and outside of them.
TEST(Plan, RecomputationChangesNoBit) {
  for (const char* name : {"kimi_linear", "qwen3_next", "samba"}) {
    std::vector<Tensor> expected;
    for (const char* recompute : {"none", "selective", "block"}) {
      SCOPED_TRACE(fmt::format("{} {}", name, recompute));
      const Recipe recipe =
          load_recipe(fmt::format("recipes/models/{}.toml", name),
                      std::vector<std::string>{"data.sequence_length=96", "data.batch_tokens=96", "model.layers=4",
                                               fmt::format("model.recompute={}", recompute)});
      LanguageModel model(language_model_config(recipe, 64));
      model.initialise(1, DType::f32);
      Tape tape(heap_allocator(Hygiene::hostile));
      const Tensor tokens = Tensor::empty({96}, DType::i32);
      for (std::int64_t t = 0; t < 96; ++t) tokens.data<std::int32_t>()[t] = static_cast<std::int32_t>(t * 37 % 64);
      const LossTerms terms = model.loss(tape, tokens, Documents::from_lengths(std::vector<std::int32_t>{60, 36}),
                                         tokens, {}, {.denominator = 96.0, .token_losses = {}});
      tape.backward(terms.loss, Tensor::from({1}, std::vector<float>{1.0F}));
      std::size_t i = 0;
      for (const Parameter* p : model.parameters().all()) {
        if (expected.size() == i) expected.push_back(p->grad);
        EXPECT_TRUE(testing::bitwise_equal(p->grad, expected[i++])) << p->name;
      }
    }
  }
}

TEST(Plan, CountsParametersAndStates) {
  const Recipe recipe = load_recipe("recipes/models/kimi_linear.toml",
                                    std::vector<std::string>{"run.device=cpu", "optimizer.name=adamw"});
  const Plan plan = plan_recipe(recipe, 257);
  const auto parameters = static_cast<double>(plan.parameters);
  EXPECT_EQ(part(plan, "master weights").bytes, 4.0 * parameters);
  EXPECT_EQ(part(plan, "gradients").bytes, 4.0 * parameters);
  EXPECT_EQ(part(plan, "optimizer states").bytes, 8.0 * parameters);
  double total = 0.0;
  for (const PlannedPart& p : plan.memory) total += p.bytes;
  EXPECT_EQ(plan.total_bytes, total);
  EXPECT_GT(plan.flops, 6.0 * parameters);
}

}  // namespace
}  // namespace weft
