// Both kinds of residual, with and without biases of the feed-forward branch: the formula, gradients, recomputation and
// decoding.
#include "modules/language_model.h"

#include <cmath>
#include <gtest/gtest.h>

#include "modules/mixers/attention/attention.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {
namespace {

constexpr std::int64_t kWidth = 12, kVocabulary = 20;

LanguageModelConfig config_of(Residual residual, bool ffn_bias, std::int64_t ffn = 16) {
  Options options(attention_mixer().options);
  options.set("heads", std::int64_t{2});
  return {.vocabulary = kVocabulary,
          .width = kWidth,
          .layers = 3,
          .ffn_hidden = ffn,
          .pattern = {{&attention_mixer(), options, "[mixer.attention]"}},
          .tied = false,
          .norm_eps = 1e-3,
          .ffn_bias = ffn_bias,
          .residual = residual};
}

// A model whose parameters are all of ordinary size, and a row of two documents.
struct Case {
  explicit Case(const LanguageModelConfig& config) : model(config) {
    model.initialise(1, DType::f64);
    std::uint64_t seed = 10;
    for (Parameter* p : model.parameters().all()) p->value.copy_from(normal(p->shape, ++seed, 0.4));
    std::vector<std::int32_t> ids(17), next(17);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>((i * 7 + 3) % kVocabulary);
      next[i] = static_cast<std::int32_t>((i * 5 + 1) % kVocabulary);
    }
    tokens = Tensor::from({17}, ids);
    labels = Tensor::from({17}, next);
    documents = Documents::from_lengths(std::vector<std::int32_t>{6, 11});
  }

  double loss() {
    Tape tape(heap_allocator(Hygiene::hostile));
    const LossTerms terms = model.loss(tape, tokens, documents, labels, {}, {});
    const double value = terms.loss.value.data<double>()[0];
    model.parameters().zero_gradients();
    tape.backward(terms.loss, Tensor::from({1}, std::vector<double>{1.0}));
    return value;
  }

  LanguageModel model;
  Tensor tokens, labels;
  DocumentsPtr documents;
};

struct Variant {
  const char* name;
  Residual residual;
  bool ffn_bias;
  std::int64_t ffn;
};

class BlockVariants : public ::testing::TestWithParam<Variant> {
 protected:
  LanguageModelConfig config() const { return config_of(GetParam().residual, GetParam().ffn_bias, GetParam().ffn); }
};

TEST_P(BlockVariants, GradientsAlongARandomDirection) {
  Case c(config());
  c.loss();
  double exact = 0.0, scale = 0.0;
  std::vector<Tensor> directions;
  for (Parameter* p : c.model.parameters().all()) {
    directions.push_back(normal(p->shape, 300 + directions.size()));
    double own = 0.0;
    for (std::int64_t i = 0; i < p->grad.numel(); ++i) {
      exact += p->grad.data<double>()[i] * directions.back().data<double>()[i];
      own += p->grad.data<double>()[i] * p->grad.data<double>()[i];
    }
    EXPECT_GT(own, 0.0) << p->name;
    scale += own;
  }
  const auto moved = [&](double h) {
    std::size_t n = 0;
    for (Parameter* p : c.model.parameters().all()) {
      const Tensor& direction = directions[n++];
      for (std::int64_t i = 0; i < direction.numel(); ++i) {
        p->value.data<double>()[i] += h * direction.data<double>()[i];
      }
    }
  };
  moved(1e-6);
  const double above = c.loss();
  moved(-2e-6);
  const double below = c.loss();
  EXPECT_NEAR((above - below) / 2e-6, exact, 1e-6 * std::sqrt(scale));
}

TEST_P(BlockVariants, RecomputationHasTheSameBits) {
  LanguageModelConfig again = config();
  again.recompute = Recompute::block;
  Case kept(config()), recomputed(again);
  EXPECT_EQ(kept.loss(), recomputed.loss());
  for (Parameter* p : kept.model.parameters().all()) {
    EXPECT_TRUE(bitwise_equal(p->grad, recomputed.model.parameters().find(p->name)->grad)) << p->name;
  }
}

TEST_P(BlockVariants, DecodingIsThatOfTheWholePrefix) {
  Case c(config());
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const DocumentsPtr one = Documents::single(17);
  ModelState state = c.model.initial_state(1, cpu_place(DType::f64));
  c.model.prefill(tape, c.tokens.rows(0, 4), Documents::single(4), state);
  for (std::int64_t t = 4; t < 17; ++t) {
    const Tensor logits = c.model.decode(tape, c.tokens.rows(t, t + 1), state);
    const Tensor whole = c.model.logits_at(tape, c.tokens, one, std::array{t});
    ASSERT_TRUE(close(logits, whole, 1e-12, 1e-10)) << "position " << t;
  }
}

std::string variant_name(const ::testing::TestParamInfo<Variant>& variant) {
  return variant.param.name;
}

INSTANTIATE_TEST_SUITE_P(All, BlockVariants,
                         ::testing::Values(Variant{"pre_norm", Residual::pre_norm, false, 16},
                                           Variant{"pre_norm_biases", Residual::pre_norm, true, 16},
                                           Variant{"post_norm_input", Residual::post_norm_input, false, 16},
                                           Variant{"post_norm_input_biases", Residual::post_norm_input, true, 16},
                                           Variant{"post_norm_input_without_ffn", Residual::post_norm_input, false, 0}),
                         variant_name);

// With branches that give nothing, pre-norm passes its input on, and the other its normalised input.
TEST(Blocks, WhatBranchesAreAddedTo) {
  for (const Residual residual : {Residual::pre_norm, Residual::post_norm_input}) {
    LanguageModelConfig config = config_of(residual, false);
    config.layers = 1;
    Case c(config);
    for (Parameter* p : c.model.parameters().all()) {
      const bool silent = p->name.ends_with("mixer.wo") || p->name.ends_with("w_down");
      if (silent) p->value.copy_from(Tensor::zeros(p->shape, DType::f64));
    }
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Tensor hidden = c.model.forward(tape, c.tokens, c.documents).value;
    const auto weight = [&](const char* name) { return c.model.parameters().find(name)->value.data<double>(); };
    for (std::int64_t t = 0; t < 17; ++t) {
      std::vector<double> x(kWidth);
      std::copy_n(weight("embedding") + c.tokens.data<std::int32_t>()[t] * kWidth, kWidth, x.begin());
      const auto normalise = [&](const char* name) {
        double squares = 0.0;
        for (const double v : x) squares += v * v;
        const double scale = 1.0 / std::sqrt(squares / kWidth + 1e-3);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] *= scale * weight(name)[i];
      };
      if (residual == Residual::post_norm_input) {
        normalise("layers.0.mixer_norm_w");
        normalise("layers.0.ffn_norm_w");
      }
      normalise("final_norm_w");
      for (std::int64_t i = 0; i < kWidth; ++i) {
        ASSERT_NEAR(hidden.data<double>()[t * kWidth + i], x[static_cast<std::size_t>(i)], 1e-12);
      }
    }
  }
}

}  // namespace
}  // namespace weft::testing
