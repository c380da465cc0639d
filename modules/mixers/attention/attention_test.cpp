// The attention layer: gradients along random directions, decode against prefill, its parameters and its objections.
#include "modules/mixers/attention/attention.h"

#include <cmath>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/layer_case.h"

namespace weft::testing {
namespace {

constexpr MixerSite kSite{.width = 24, .layers = 6, .layer = 2, .max_tokens = 256};

struct Layer : LayerCase {
  // Initial values are small; larger ones give attention something to choose.
  explicit Layer(const OptionList& options) : LayerCase(attention_mixer(), options, kSite) { perturb(0.3, 0.2); }
};

std::vector<std::pair<std::string, OptionList>> variants() {
  using Text = std::string;
  return {{"plain", {{"heads", std::int64_t{3}}}},
          {"grouped window",
           {{"heads", std::int64_t{4}},
            {"kv_heads", std::int64_t{2}},
            {"head_dim", std::int64_t{10}},
            {"window", std::int64_t{9}},
            {"sinks", std::int64_t{2}},
            {"sink_logit", true},
            {"gate", Text("elementwise")},
            {"rope_fraction", 0.6}}},
          {"no positions", {{"rope", false}, {"gate", Text("headwise")}, {"soft_cap", 5.0}, {"qk_norm", false}}},
          {"stretched",
           {{"yarn_factor", 4.0}, {"yarn_original_length", std::int64_t{32}}, {"rope_base", 500.0}, {"bias", true}}},
          {"scaled as llama3",
           {{"rope_scaling", Text("llama3")},
            {"rope_factor", 8.0},
            {"rope_original_length", std::int64_t{64}},
            {"bias", true},
            {"out_bias", true}}},
          {"scaled as yarn",
           {{"rope_scaling", Text("yarn")},
            {"rope_factor", 4.0},
            {"rope_original_length", std::int64_t{64}},
            {"rope_attention_factor", 1.5},
            {"out_bias", true}}}};
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < a.numel(); ++i) sum += a.data<double>()[i] * b.data<double>()[i];
  return sum;
}

TEST(AttentionMixer, GradientsAlongARandomDirection) {
  for (const auto& [name, options] : variants()) {
    SCOPED_TRACE(name);
    Layer layer(options);
    const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{5, 0, 40, 1});
    const Tensor x = normal({46, kSite.width}, 1), w = normal({46, kSite.width}, 2);
    Tape tape(heap_allocator(Hygiene::hostile));
    const Var leaf = tape.leaf(x);
    tape.backward(layer.mixer->forward(tape, leaf, documents, nullptr), w);

    std::vector<std::pair<Tensor, Tensor>> pairs{{x, tape.gradient(leaf)}};  // value, gradient
    for (Parameter* p : layer.store.all()) pairs.emplace_back(p->value, p->grad);
    double exact = 0.0, scale = 0.0;
    std::vector<Tensor> directions;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      directions.push_back(normal(pairs[i].first.shape(), 70 + i));
      exact += dot(pairs[i].second, directions[i]);
      scale += dot(pairs[i].second, pairs[i].second);
    }
    const auto loss_at = [&](double h) {
      for (std::size_t i = 0; i < pairs.size(); ++i) {
        for (std::int64_t j = 0; j < directions[i].numel(); ++j) {
          pairs[i].first.data<double>()[j] += h * directions[i].data<double>()[j];
        }
      }
      Tape inference(heap_allocator(), Tape::Mode::inference);
      const double loss = dot(w, layer.mixer->forward(inference, Tape::constant(x), documents, nullptr).value);
      for (std::size_t i = 0; i < pairs.size(); ++i) {
        for (std::int64_t j = 0; j < directions[i].numel(); ++j) {
          pairs[i].first.data<double>()[j] -= h * directions[i].data<double>()[j];
        }
      }
      return loss;
    };
    const double numeric = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6;
    EXPECT_NEAR(numeric, exact, 1e-6 * std::sqrt(scale));
  }
}

TEST(AttentionMixer, DecodeEqualsPrefill) {
  for (const auto& [name, options] : variants()) {
    SCOPED_TRACE(name);
    Layer layer(options);
    const std::int32_t T = 140, prefix = 67;
    const Tensor x = normal({T, kSite.width}, 1);
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Tensor whole = layer.mixer->forward(tape, Tape::constant(x), Documents::single(T), nullptr).value;
    const auto state = layer.mixer->initial_state(1, cpu_place(DType::f64));
    layer.mixer->forward(tape, Tape::constant(x.rows(0, prefix)), Documents::single(prefix), state.get());
    const auto branch = state->clone();
    for (std::int32_t t = prefix; t < T; ++t) {
      const Tensor y =
          layer.mixer->forward(tape, Tape::constant(x.rows(t, t + 1)), Documents::single(1, t), state.get()).value;
      ASSERT_TRUE(close(y, whole.rows(t, t + 1), 1e-12, 1e-10)) << "position " << t;
    }
    EXPECT_EQ(static_cast<double>(state->bytes()), 2.0 * layer.mixer->state_bytes(T));  // fp64 against fp32
    EXPECT_EQ(static_cast<double>(branch->bytes()), 2.0 * layer.mixer->state_bytes(prefix));
  }
}

TEST(AttentionMixer, DeclaresItsParameters) {
  ParameterStore store;
  attention_mixer().create(ParameterScope(store, "m."), kSite,
                           options_with(attention_mixer(), {{"heads", std::int64_t{4}},
                                                            {"kv_heads", std::int64_t{2}},
                                                            {"sink_logit", true},
                                                            {"gate", std::string("headwise")},
                                                            {"bias", true}}),
                           "");
  std::vector<std::string> list;
  for (const Parameter* p : store.all()) {
    list.push_back(
        fmt::format("{} {} {}", p->name, p->shape.str(), p->kind == ParameterKind::matrix ? "decays" : "stays"));
  }
  EXPECT_EQ(list, (std::vector<std::string>{"m.wq [24, 24] decays", "m.wk [12, 24] decays", "m.wv [12, 24] decays",
                                            "m.bq [24] stays", "m.bk [12] stays", "m.bv [12] stays",
                                            "m.q_norm_w [6] stays", "m.k_norm_w [6] stays", "m.sink_logit [4] stays",
                                            "m.wg [4, 24] decays", "m.wo [24, 24] decays"}));
}

// Doubling the documents doubles the work; a window makes it linear in their length.
TEST(AttentionMixer, CountsItsPairs) {
  Layer full({{"heads", std::int64_t{3}}}), window({{"window", std::int64_t{8}}, {"sinks", std::int64_t{1}}});
  const double projections = 2.0 * 64 * 24 * 4 * 24;
  EXPECT_EQ(full.mixer->cost(64, 64).forward_flops, projections + 4.0 * 24 * (64 * 65 / 2));
  EXPECT_EQ(full.mixer->cost(64, 32).forward_flops, projections + 2 * 4.0 * 24 * (32 * 33 / 2));
  EXPECT_EQ(full.mixer->cost(64, 64).backward_flops, 2 * projections + 10.0 * 24 * (64 * 65 / 2));
  // 8 W - W (W - 1) / 2 in the window, and one sink for each of the 56 queries beyond it.
  EXPECT_EQ(window.mixer->cost(64, 64).forward_flops, projections + 4.0 * 24 * (64 * 8 - 28 + 56));
}

std::string objection(const OptionList& options) {
  return refusal([&] { const LayerCase layer(attention_mixer(), options, kSite); });
}

TEST(AttentionMixer, ObjectsToImpossibleValues) {
  EXPECT_EQ(objection({}), "");
  EXPECT_EQ(objection({{"heads", std::int64_t{6}}, {"kv_heads", std::int64_t{4}}}),
            "[mixer.test]: heads = 6 is not a multiple of kv_heads = 4");
  EXPECT_EQ(objection({{"heads", std::int64_t{5}}}),
            "[mixer.test]: heads = 5 does not divide the model's width = 24; set head_dim");
  EXPECT_EQ(objection({{"head_dim", std::int64_t{7}}}),
            "[mixer.test]: head_dim = 7 is odd; rope = true turns channels in pairs and needs an even number");
  EXPECT_EQ(objection({{"head_dim", std::int64_t{4}}, {"rope_fraction", 0.25}}),
            "[mixer.test]: rope_fraction = 0.25 of head_dim = 4 leaves no pair of channels to turn; raise it, or "
            "set rope = false");
  EXPECT_EQ(objection({{"sinks", std::int64_t{4}}}),
            "[mixer.test]: sinks = 4 has no effect without window: full attention sees every token");
  EXPECT_EQ(objection({{"yarn_factor", 2.0}}),
            "[mixer.test]: yarn_factor = 2 needs yarn_original_length, the length the model was first trained on");
  EXPECT_EQ(objection({{"yarn_factor", 2.0}, {"rope", false}}),
            "[mixer.test]: yarn_factor = 2 has no effect with rope = false; remove one");
}

}  // namespace
}  // namespace weft::testing
