// The latent attention layer: its formula in plain loops, both of its forms, its state, its parameters and objections.
#include "modules/mixers/mla/mla.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

#include "tests/support/layer_case.h"

namespace weft::testing {
namespace {

constexpr std::int64_t kWidth = 20, kHeads = 3, kLatent = 10, kContent = 6, kShared = 4, kValue = 5;

struct Layer : LayerCase {
  explicit Layer(const OptionList& changes)
      : LayerCase(mla_mixer(), dimensions_and(changes), {.width = kWidth, .layers = 2, .layer = 1, .max_tokens = 256}) {
    randomise(0.4, 0.4);
  }

  static OptionList dimensions_and(const OptionList& changes) {
    OptionList all{{"heads", kHeads},
                   {"latent_dim", kLatent},
                   {"content_dim", kContent},
                   {"shared_dim", kShared},
                   {"value_dim", kValue}};
    all.insert(all.end(), changes.begin(), changes.end());
    return all;
  }
};

const std::vector<std::pair<std::string, OptionList>> kVariants = {
    {"no positions", {{"rope", false}}},
    {"rotary", {{"rope_base", 100.0}}},
    {"query latent", {{"query_latent_dim", std::int64_t{8}}, {"rope_base", 50.0}}},
    {"query latent, no positions", {{"query_latent_dim", std::int64_t{7}}, {"rope", false}}},
    {"stretched", {{"yarn_factor", 4.0}, {"yarn_original_length", std::int64_t{32}}}}};

// --- the formula -----------------------------------------------------------------------------------------------------

using Row = std::vector<double>;

Row row_of(const Tensor& x, std::int64_t t) {
  const double* from = x.data<double>() + t * x.dim(1);
  return {from, from + x.dim(1)};
}

Row product(const Tensor& w, const Row& x) {
  Row y(static_cast<std::size_t>(w.dim(0)), 0.0);
  for (std::size_t o = 0; o < y.size(); ++o) {
    for (std::size_t i = 0; i < x.size(); ++i) y[o] += w.data<double>()[o * x.size() + i] * x[i];
  }
  return y;
}

Row part(const Row& x, std::int64_t begin, std::int64_t width) {
  return {x.begin() + begin, x.begin() + begin + width};
}

Row normalised(Row x, const Tensor& w) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  const double r = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + 1e-6);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= r * w.data<double>()[i];
  return x;
}

Row turned(Row x, double position, double base) {
  const std::size_t half = x.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const double angle = position * std::pow(base, -static_cast<double>(i) / static_cast<double>(half));
    const double a = x[i], b = x[i + half];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + half] = a * std::sin(angle) + b * std::cos(angle);
  }
  return x;
}

double dot(const Row& a, const Row& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// README.md's formula for one document, token by token; base 0 = no positions.
Tensor by_the_formula(Layer& layer, const Tensor& x, double base) {
  const Tensor y = Tensor::empty(x.shape(), DType::f64);
  std::vector<Row> latents, shared_keys;
  for (std::int64_t t = 0; t < x.dim(0); ++t) {
    const Row in = row_of(x, t);
    const Row down = product(layer.value("wkv_a"), in);
    latents.push_back(normalised(part(down, 0, kLatent), layer.value("kv_a_norm_w")));
    const Row k_r = part(down, kLatent, kShared);
    shared_keys.push_back(base == 0.0 ? k_r : turned(k_r, static_cast<double>(t), base));
    const Row q = layer.has("wq") ? product(layer.value("wq"), in)
                                  : product(layer.value("wq_b"),
                                            normalised(product(layer.value("wq_a"), in), layer.value("q_a_norm_w")));
    Row o;
    for (std::int64_t h = 0; h < kHeads; ++h) {
      const Row q_n = part(q, h * (kContent + kShared), kContent);
      const Row q_part = part(q, h * (kContent + kShared) + kContent, kShared);
      const Row q_r = base == 0.0 ? q_part : turned(q_part, static_cast<double>(t), base);
      Row o_h(kValue, 0.0);
      double mass = 0.0;
      for (std::size_t j = 0; j < latents.size(); ++j) {
        const Row kv = part(product(layer.value("wkv_b"), latents[j]), h * (kContent + kValue), kContent + kValue);
        const double scale = 1.0 / std::sqrt(static_cast<double>(kContent + kShared));
        const double p = std::exp(scale * (dot(q_n, part(kv, 0, kContent)) + dot(q_r, shared_keys[j])));
        mass += p;
        for (std::size_t c = 0; c < o_h.size(); ++c) o_h[c] += p * kv[kContent + c];
      }
      for (const double v : o_h) o.push_back(v / mass);
    }
    const Row out = product(layer.value("wo"), o);
    std::copy(out.begin(), out.end(), y.data<double>() + t * kWidth);
  }
  return y;
}

TEST(MlaMixer, EqualsItsFormula) {
  for (const auto& [options, base] : {std::pair{OptionList{{"rope", false}}, 0.0},
                                      {OptionList{{"rope_base", 100.0}}, 100.0},
                                      {OptionList{{"rope_base", 50.0}, {"query_latent_dim", std::int64_t{8}}}, 50.0},
                                      {OptionList{{"rope", false}, {"query_latent_dim", std::int64_t{8}}}, 0.0}}) {
    Layer layer(options);
    const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{5, 0, 70, 1});
    const Tensor x = normal({76, kWidth}, 3);
    const Tensor y = layer.forward(x, documents);
    for (std::int64_t n = 0; n < documents->count(); ++n) {
      const Tensor rows = cast(x.rows(documents->begin(n), documents->end(n)), DType::f64);
      EXPECT_TRUE(
          close(y.rows(documents->begin(n), documents->end(n)), by_the_formula(layer, rows, base), 1e-12, 1e-10))
          << "document " << n;
    }
  }
}

// --- both forms ------------------------------------------------------------------------------------------------------

// A layer without a state expands the latents; one that continues from a token attends to the latents themselves.
TEST(MlaMixer, AbsorbedEqualsExpanded) {
  for (const auto& [name, options] : kVariants) {
    SCOPED_TRACE(name);
    Layer layer(options);
    const std::int32_t T = 200;
    const Tensor x = normal({T, kWidth}, 1);
    const Tensor whole = layer.forward(x, Documents::single(T));
    const auto state = layer.mixer->initial_state(1, cpu_place(DType::f64));
    EXPECT_TRUE(bitwise_equal(layer.forward(cast(x.rows(0, 1), DType::f64), Documents::single(1), state.get()),
                              layer.forward(cast(x.rows(0, 1), DType::f64), Documents::single(1))));
    const Tensor rest = layer.forward(cast(x.rows(1, T), DType::f64), Documents::single(T - 1, 1), state.get());
    EXPECT_TRUE(close(rest, whole.rows(1, T), 1e-12, 1e-10));
    EXPECT_EQ(static_cast<double>(state->bytes()), 2.0 * layer.mixer->state_bytes(T));  // fp64 against fp32
  }
}

TEST(MlaMixer, DecodesFromNothing) {
  for (const auto& [name, options] : kVariants) {
    SCOPED_TRACE(name);
    Layer layer(options);
    const std::int32_t T = 70;
    const Tensor x = normal({T, kWidth}, 1);
    const Tensor whole = layer.forward(x, Documents::single(T));
    const auto state = layer.mixer->initial_state(1, cpu_place(DType::f64));
    for (std::int32_t t = 0; t < T; ++t) {
      Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
      const Tensor y =
          layer.mixer->forward(tape, Tape::constant(x.rows(t, t + 1)), Documents::single(1, t), state.get()).value;
      ASSERT_TRUE(close(y, whole.rows(t, t + 1), 1e-12, 1e-10)) << "position " << t;
    }
  }
}

// Sequences that begin while others go on.
TEST(MlaMixer, ContinuesUnequalSequences) {
  Layer layer({});
  const Tensor x = normal({40, kWidth}, 1), z = normal({9, kWidth}, 2);
  const auto state = layer.mixer->initial_state(2, cpu_place(DType::f64));
  layer.forward(cast(x.rows(0, 30), DType::f64), Documents::from_lengths(std::vector<std::int32_t>{30, 0}),
                state.get());
  const Tensor both = Tensor::empty({19, kWidth}, DType::f64);
  both.rows(0, 10).copy_from(x.rows(30, 40));
  both.rows(10, 19).copy_from(z);
  const auto documents =
      std::make_shared<const Documents>(std::vector<std::int32_t>{0, 10, 19}, std::vector<std::int32_t>{30, 0});
  const Tensor y = layer.forward(both, documents, state.get());
  EXPECT_TRUE(close(y.rows(0, 10), layer.forward(x, Documents::single(40)).rows(30, 40), 1e-12, 1e-10));
  EXPECT_TRUE(close(y.rows(10, 19), layer.forward(z, Documents::single(9)), 1e-12, 1e-10));
}

// --- positions -------------------------------------------------------------------------------------------------------

TEST(MlaMixer, KnowsOrderByRotationAlone) {
  const std::int64_t T = 50;
  const Tensor x = normal({T, kWidth}, 1);
  const Tensor shuffled = cast(x, DType::f64);
  for (std::int64_t t = 0; t < T - 1; ++t) {
    shuffled.rows(t, t + 1).copy_from(x.rows((t * 11 + 5) % (T - 1), (t * 11 + 5) % (T - 1) + 1));
  }
  const auto last = [&](Layer& layer, const Tensor& in) {
    return cast(layer.forward(in, Documents::single(T)).rows(T - 1, T), DType::f64);
  };
  Layer none({{"rope", false}}), rotary({});
  EXPECT_TRUE(close(last(none, shuffled), last(none, x), 1e-12, 1e-12));
  EXPECT_GT(distance(last(rotary, shuffled), last(rotary, x)).rel_f, 1e-3);
}

TEST(MlaMixer, OnlyRelativePositionsMatter) {
  Layer layer({});
  const Tensor x = normal({40, kWidth}, 1);
  EXPECT_TRUE(
      close(layer.forward(x, Documents::single(40, 100000)), layer.forward(x, Documents::single(40)), 1e-10, 1e-9));
}

// --- costs -----------------------------------------------------------------------------------------------------------

// d_c + D_r numbers a token, whatever the number of heads.
TEST(MlaMixer, CachesLatentsOnce) {
  for (const std::int64_t heads : {2, 16}) {
    Layer layer({{"heads", heads}});
    EXPECT_EQ(layer.mixer->state_bytes(64), 64.0 * (kLatent + kShared) * 4.0);
    EXPECT_EQ(layer.mixer->state_bytes(6400), 6400.0 * (kLatent + kShared) * 4.0);
  }
}

TEST(MlaMixer, CountsItsWork) {
  Layer layer({{"query_latent_dim", std::int64_t{8}}});
  const double weights = 20 * 8 + 8 * 3 * 10 + 20 * 14 + 10 * 3 * 11 + 3 * 5 * 20;
  const double pairs = 64 * 65 / 2;
  const MixerCost cost = layer.mixer->cost(64, 64);
  EXPECT_EQ(cost.forward_flops, 2 * 64 * weights + 2 * 3 * (10 + 5) * pairs);
  EXPECT_EQ(cost.backward_flops, 4 * 64 * weights + 3 * (6 * 10 + 4 * 5) * pairs);
}

TEST(MlaMixer, PlansWhatTheTapeKeeps) {
  for (const auto& [name, options] : kVariants) {
    SCOPED_TRACE(name);
    Layer(options).expect_saved_bytes();
  }
}

// --- parameters and objections ---------------------------------------------------------------------------------------

TEST(MlaMixer, DeclaresItsParameters) {
  const auto declared = [](const OptionList& options) {
    Layer layer(options);
    std::vector<std::string> list;
    for (const Parameter* p : layer.store.all()) {
      list.push_back(
          fmt::format("{} {} {}", p->name, p->shape.str(), p->kind == ParameterKind::matrix ? "decays" : "stays"));
    }
    return list;
  };
  EXPECT_EQ(declared({}),
            (std::vector<std::string>{"wq [30, 20] decays", "wkv_a [14, 20] decays", "kv_a_norm_w [10] stays",
                                      "wkv_b [33, 10] decays", "wo [20, 15] decays"}));
  EXPECT_EQ(declared({{"query_latent_dim", std::int64_t{8}}, {"value_dim", std::int64_t{0}}}),
            (std::vector<std::string>{"wq_a [8, 20] decays", "q_a_norm_w [8] stays", "wq_b [30, 8] decays",
                                      "wkv_a [14, 20] decays", "kv_a_norm_w [10] stays", "wkv_b [36, 10] decays",
                                      "wo [20, 18] decays"}));
}

std::string objection(const OptionList& options) {
  return refusal([&] { Layer layer(options); });
}

TEST(MlaMixer, ObjectsToImpossibleValues) {
  EXPECT_EQ(objection({}), "");
  EXPECT_EQ(objection({{"shared_dim", std::int64_t{5}}}),
            "[mixer.test]: shared_dim = 5 is odd; rope = true turns channels in pairs and needs an even number");
  EXPECT_EQ(objection({{"shared_dim", std::int64_t{5}}, {"rope", false}}), "");
  EXPECT_EQ(objection({{"latent_dim", std::int64_t{33}}}),
            "[mixer.test]: latent_dim = 33 is no smaller than the keys and values it stands for, 3 heads of 6 + "
            "5 channels; use a smaller latent, or the mixer attention");
  EXPECT_EQ(objection({{"query_latent_dim", std::int64_t{20}}}),
            "[mixer.test]: query_latent_dim = 20 is no low rank for queries from 20 to 30 channels; use a "
            "smaller rank, or 0 for queries straight from the input");
  EXPECT_EQ(objection({{"yarn_factor", 2.0}}),
            "[mixer.test]: yarn_factor = 2 needs yarn_original_length, the length the model was first trained on");
  EXPECT_EQ(objection({{"yarn_factor", 2.0}, {"rope", false}}),
            "[mixer.test]: yarn_factor = 2 has no effect with rope = false; remove one");
}

TEST(MlaMixer, RefusesStatesThatDoNotFit) {
  Layer layer({});
  const Tensor x = normal({4, kWidth}, 1);
  const auto state = layer.mixer->initial_state(1, cpu_place(DType::f64));
  EXPECT_THROW(layer.forward(x, Documents::single(4, 3), state.get()), Error);
  layer.forward(x, Documents::single(4), state.get());
  EXPECT_THROW(layer.forward(x, Documents::single(4, 3), state.get()), Error);
  EXPECT_THROW(layer.forward(x, Documents::from_lengths(std::vector<std::int32_t>{2, 2}), state.get()), Error);
}

}  // namespace
}  // namespace weft::testing
