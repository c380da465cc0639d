// The layer against its README written in plain loops, its special cases, its parameters, memory and objections.
#include "modules/mixers/swa_ttt/swa_ttt.h"

#include <cmath>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "modules/families/fast_weights/fast_weights_reference.h"
#include "modules/mixers/attention/attention.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {
namespace {

using OptionList = std::vector<std::pair<std::string, OptionValue>>;

constexpr MixerSite kSite{.width = 24, .layers = 3, .layer = 1, .max_tokens = 64};
constexpr std::int64_t kChunk = 4;

Options options_with(const MixerType& type, const OptionList& values) {
  Options options(type.options);
  for (const auto& [key, value] : values) options.set(key, value);
  return options;
}

struct Layer {
  explicit Layer(const OptionList& values, DType dtype = DType::f64) {
    OptionList all{{"chunk", kChunk}, {"window", std::int64_t{6}}, {"memory_heads", std::int64_t{2}}};
    all.insert(all.end(), values.begin(), values.end());
    mixer = swa_ttt_mixer().create(ParameterScope(store), kSite, options_with(swa_ttt_mixer(), all), "[mixer.test]");
    store.initialise(3, dtype);
    std::uint64_t seed = 40;
    for (Parameter* p : store.all()) {
      const Tensor noise = normal(p->shape, ++seed, p->shape.rank() >= 2 ? 0.4 : 0.2);
      const Tensor value = cast(p->value, DType::f64);
      for (std::int64_t i = 0; i < noise.numel(); ++i) value.data<double>()[i] += noise.data<double>()[i];
      p->value.copy_from(value);
    }
  }
  const Tensor& value(const char* name) { return store.find(name)->value; }
  bool has(const char* name) { return store.find(name) != nullptr; }
  Tensor forward(const Tensor& x, const DocumentsPtr& documents) {
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    return cast(mixer->forward(tape, Tape::constant(x), documents, nullptr).value, x.dtype());
  }

  ParameterStore store;
  std::unique_ptr<Mixer> mixer;
};

// --- the README in plain loops
// -----------------------------------------------------------------------------------------

double& at(const Tensor& t, std::int64_t row, std::int64_t column) {
  return t.data<double>()[row * t.dim(1) + column];
}
double sigma(double a) {
  return 1.0 / (1.0 + std::exp(-a));
}

// x w^T (+ b)
Tensor product(const Tensor& x, const Tensor& w, const Tensor& b = {}) {
  const Tensor y = Tensor::zeros({x.dim(0), w.dim(0)}, DType::f64);
  for (std::int64_t t = 0; t < y.dim(0); ++t) {
    for (std::int64_t o = 0; o < y.dim(1); ++o) {
      at(y, t, o) = b.defined() ? b.data<double>()[o] : 0.0;
      for (std::int64_t c = 0; c < x.dim(1); ++c) at(y, t, o) += at(x, t, c) * at(w, o, c);
    }
  }
  return y;
}
template <class F>
Tensor map(const Tensor& x, F&& f) {
  const Tensor y = cast(x, DType::f64);
  for (std::int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] = f(y.data<double>()[i], i % y.dim(1));
  return y;
}
// Groups of `width` columns divided by sqrt(sum of squares / mean_over + eps), times w [width] if given.
Tensor normed(const Tensor& x, std::int64_t width, double mean_over, const Tensor& w = {}) {
  const Tensor y = cast(x, DType::f64);
  for (double* group = y.data<double>(); group < y.data<double>() + y.numel(); group += width) {
    double squares = 0.0;
    for (std::int64_t c = 0; c < width; ++c) squares += group[c] * group[c];
    for (std::int64_t c = 0; c < width; ++c) {
      group[c] *= (w.defined() ? w.data<double>()[c] : 1.0) / std::sqrt(squares / mean_over + 1e-6);
    }
  }
  return y;
}
Tensor rotated(const Tensor& x, const Documents& documents, std::int64_t D) {
  const Tensor y = cast(x, DType::f64);
  for (std::int64_t t = 0; t < x.dim(0); ++t) {
    for (std::int64_t c = 0; c < x.dim(1); ++c) {
      const std::int64_t i = c % D;
      if (i >= D / 2) continue;
      const double angle = documents.positions()[static_cast<std::size_t>(t)] *
                           std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(D));
      at(y, t, c) = at(x, t, c) * std::cos(angle) - at(x, t, c + D / 2) * std::sin(angle);
      at(y, t, c + D / 2) = at(x, t, c) * std::sin(angle) + at(x, t, c + D / 2) * std::cos(angle);
    }
  }
  return y;
}

struct Formula {
  std::int64_t H_Q, H_KV, D, H_m, d_m;
  std::int64_t window, sinks = 0;
  FastWeightConfig memory;
  bool value_norm, value_silu, shared = false;
  double eta_max = 0.0;
};

Tensor window_attention(const Formula& f, Layer& layer, const Documents& documents, const Tensor& q, const Tensor& k,
                        const Tensor& v) {
  const Tensor o = Tensor::zeros({q.dim(0), f.H_Q * f.D}, DType::f64);
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    for (std::int64_t h = 0; h < f.H_Q; ++h) {
      const std::int64_t key = h / (f.H_Q / f.H_KV) * f.D;
      for (std::int64_t i = documents.begin(n); i < documents.end(n); ++i) {
        double total = layer.has("sink_logit") ? std::exp(layer.value("sink_logit").data<double>()[h]) : 0.0;
        for (std::int64_t j = documents.begin(n); j <= i; ++j) {
          if (i - j >= f.window && j - documents.begin(n) >= f.sinks) continue;
          double score = 0.0;
          for (std::int64_t c = 0; c < f.D; ++c) score += at(q, i, h * f.D + c) * at(k, j, key + c);
          const double weight = std::exp(score / std::sqrt(static_cast<double>(f.D)));
          total += weight;
          for (std::int64_t c = 0; c < f.D; ++c) at(o, i, h * f.D + c) += weight * at(v, j, key + c);
        }
        for (std::int64_t c = 0; c < f.D; ++c) at(o, i, h * f.D + c) /= total;
      }
    }
  }
  return o;
}

// A key head for every query head.
Tensor spread(const Formula& f, const Tensor& x) {
  const Tensor y = Tensor::zeros({x.dim(0), f.H_Q * f.D}, DType::f64);
  for (std::int64_t t = 0; t < x.dim(0); ++t) {
    for (std::int64_t c = 0; c < y.dim(1); ++c) {
      at(y, t, c) = at(x, t, c / f.D * f.H_KV / f.H_Q * f.D + c % f.D);
    }
  }
  return y;
}

Tensor expected_output(const Formula& f, Layer& layer, const Tensor& x, const Documents& documents) {
  const auto maybe_normed = [&](const Tensor& t, const char* w) {
    return layer.has(w) ? normed(t, f.D, static_cast<double>(f.D), layer.value(w)) : t;
  };
  const Tensor q = maybe_normed(product(x, layer.value("wq")), "q_norm_w");
  const Tensor k = maybe_normed(product(x, layer.value("wk")), "k_norm_w");
  const Tensor v = product(x, layer.value("wv"));
  const Tensor o = window_attention(f, layer, documents, rotated(q, documents, f.D), rotated(k, documents, f.D), v);

  const auto feature = [&](const Tensor& own, const char* s, const char* t) {
    const Tensor a = map(own, [&](double u, std::int64_t c) {
      const double z = layer.value(s).data<double>()[c] * u + layer.value(t).data<double>()[c];
      return z * sigma(z);
    });
    return normed(a, f.d_m, 1.0);
  };
  const Tensor q_m = feature(f.shared ? q : product(x, layer.value("wq_m")), "s_q", "t_q");
  const Tensor k_m = feature(f.shared ? spread(f, k) : product(x, layer.value("wk_m")), "s_k", "t_k");
  Tensor v_m = f.shared ? spread(f, v) : product(x, layer.value("wv_m"));
  if (f.value_silu) v_m = map(v_m, [](double u, std::int64_t) { return u * sigma(u); });
  if (f.value_norm) v_m = normed(v_m, f.d_m, static_cast<double>(f.d_m));
  const Tensor eta = map(product(x, layer.value("w_eta"), layer.value("b_eta")), [&](double u, std::int64_t) {
    return f.eta_max > 0.0 ? f.eta_max * sigma(u) : std::log1p(std::exp(u));
  });
  const auto fraction = [&](const char* w, const char* b) {
    if (!layer.has(w)) return Tensor{};
    return map(product(x, layer.value(w), layer.value(b)), [](double u, std::int64_t) { return sigma(u); });
  };
  const Tensor mu = fraction("w_mu", "b_mu"), lambda = fraction("w_lambda", "b_lambda");
  const Tensor answer = Tensor::zeros({x.dim(0), f.H_m * f.d_m}, DType::f64);
  FastWeightForward memory{{.dtype = DType::f64,
                            .config = f.memory,
                            .T = x.dim(0),
                            .N = documents.count(),
                            .H = f.H_m,
                            .d_m = f.d_m,
                            .d_h = layer.value("w0").dim(1),
                            .q = q_m.raw(),
                            .k = k_m.raw(),
                            .v = v_m.raw(),
                            .eta = eta.raw(),
                            .mu = mu.defined() ? mu.raw() : nullptr,
                            .lambda = lambda.defined() ? lambda.raw() : nullptr,
                            .w0 = layer.value("w0").raw(),
                            .w1 = layer.value("w1").raw(),
                            .w2 = layer.value("w2").raw(),
                            .cu_seqlens = documents.cu_seqlens().data()}};
  memory.out = answer.raw();
  reference::fast_weight_memory(memory, nullptr);
  const Tensor m = normed(answer, f.d_m, static_cast<double>(f.d_m), layer.value("norm_m"));

  if (!layer.has("w_s")) {
    const Tensor y = product(o, layer.value("wo")), from_memory = product(m, layer.value("wo_m"));
    for (std::int64_t i = 0; i < y.numel(); ++i) {
      y.data<double>()[i] += layer.value("alpha").data<double>()[i % y.dim(1)] * from_memory.data<double>()[i];
    }
    return y;
  }
  const Tensor gate = product(x, layer.value("w_s"));
  for (std::int64_t t = 0; t < o.dim(0); ++t) {
    for (std::int64_t c = 0; c < o.dim(1); ++c) {
      const double g = at(gate, t, c / f.d_m);
      at(o, t, c) += g * sigma(g) * at(m, t, c);
    }
  }
  return product(o, layer.value("wo"));
}

struct Variant {
  OptionList options;
  Formula formula;
};

std::vector<Variant> variants() {
  using Text = std::string;
  const auto number = [](std::int64_t n) { return OptionValue{n}; };
  const FastWeightConfig allmem{.chunk = kChunk};
  const FastWeightConfig lact{
      .chunk = kChunk, .loss = InnerLoss::dot, .norm = NormMode::post, .residual = false, .orthogonalise = true};
  FastWeightConfig pre{.chunk = kChunk, .norm = NormMode::pre};
  return {{{{"heads", number(2)}, {"kv_heads", number(1)}, {"memory_hidden", number(5)}, {"sinks", number(1)}},
           {.H_Q = 2,
            .H_KV = 1,
            .D = 12,
            .H_m = 2,
            .d_m = 12,
            .window = 6,
            .sinks = 1,
            .memory = allmem,
            .value_norm = true,
            .value_silu = false}},
          {{{"preset", Text("lact")}, {"heads", number(3)}, {"qk_norm", false}, {"sink_logit", true}},
           {.H_Q = 3,
            .H_KV = 3,
            .D = 8,
            .H_m = 2,
            .d_m = 12,
            .window = 6,
            .memory = lact,
            .value_norm = false,
            .value_silu = true}},
          {{{"heads", number(4)},
            {"kv_heads", number(2)},
            {"head_dim", number(2)},
            {"projections", Text("shared")},
            {"norm", Text("pre")},
            {"momentum", Text("off")},
            {"eta_max", 0.5},
            {"eta_init", 0.1},
            {"gate", Text("head")}},
           {.H_Q = 4,
            .H_KV = 2,
            .D = 2,
            .H_m = 2,
            .d_m = 4,
            .window = 6,
            .memory = pre,
            .value_norm = true,
            .value_silu = false,
            .shared = true,
            .eta_max = 0.5}}};
}

TEST(SwaTtt, IsTheLayerOfItsReadme) {
  for (const Variant& variant : variants()) {
    Layer layer(variant.options);
    const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{18, 0, 3, 13});
    const Tensor x = normal({documents->tokens(), kSite.width}, 1);
    EXPECT_TRUE(
        close(layer.forward(x, documents), expected_output(variant.formula, layer, x, *documents), 1e-12, 1e-10));
  }
}

// --- special cases
// -----------------------------------------------------------------------------------------------------

TEST(SwaTtt, WithAlphaZeroItIsWindowAttention) {
  Layer layer({{"heads", std::int64_t{2}}, {"alpha_init", 0.0}}, DType::f32);
  layer.store.find("alpha")->value.fill_zero();
  ParameterStore store;
  const auto attention = attention_mixer().create(
      ParameterScope(store), kSite,
      options_with(attention_mixer(), {{"heads", std::int64_t{2}}, {"window", std::int64_t{6}}}), "");
  store.initialise(1, DType::f32);
  for (Parameter* p : store.all()) p->value.copy_from(layer.value(p->name.c_str()));
  const Tensor x = cast(normal({40, kSite.width}, 1), DType::f32);
  Tape tape(heap_allocator(), Tape::Mode::inference);
  const Tensor expected = attention->forward(tape, Tape::constant(x), Documents::single(40), nullptr).value;
  EXPECT_TRUE(bitwise_equal(layer.forward(x, Documents::single(40)), expected));
}

TEST(SwaTtt, StartsAsDeclared) {
  for (const double eta_max : {0.0, 0.4}) {
    ParameterStore store;
    swa_ttt_mixer().create(
        ParameterScope(store), kSite,
        options_with(swa_ttt_mixer(),
                     {{"alpha_init", 0.0}, {"eta_init", 0.02}, {"eta_max", eta_max}, {"forget_init", 0.1}}),
        "");
    store.initialise(1, DType::f64);
    const auto first = [&](const char* name) { return store.find(name)->value.data<double>()[0]; };
    EXPECT_EQ(first("alpha"), 0.0);
    EXPECT_NEAR(eta_max > 0.0 ? eta_max * sigma(first("b_eta")) : std::log1p(std::exp(first("b_eta"))), 0.02, 1e-15);
    EXPECT_EQ(first("b_mu"), 0.0);
    EXPECT_NEAR(sigma(first("b_lambda")), 0.1, 1e-15);
    for (const char* name : {"w0", "w1", "w2"}) EXPECT_EQ(store.find(name)->kind, ParameterKind::fast_weight);
  }
}

// Nothing is written before the first chunk is complete, and nobody reads what the last one writes.
TEST(SwaTtt, OneChunkTrainsOnlyWhatReads) {
  Layer layer({});
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(normal({kChunk, kSite.width}, 1));
  tape.backward(layer.mixer->forward(tape, x, Documents::single(kChunk), nullptr), normal(x.shape(), 2));
  for (const Parameter* p : layer.store.all()) {
    const bool writes = p->name.ends_with("k_m") || p->name.ends_with("v_m") || p->name.ends_with("_k") ||
                        p->name.ends_with("eta") || p->name.ends_with("mu") || p->name.ends_with("lambda");
    double largest = 0.0;
    for (const double g : p->grad.span<double>()) largest = std::max(largest, std::abs(g));
    EXPECT_EQ(largest == 0.0, writes) << p->name;
  }
}

TEST(SwaTtt, ItsStateHasOneSize) {
  Layer layer({{"sinks", std::int64_t{3}}}, DType::f32);
  const auto state = layer.mixer->initial_state(1, DType::f32);
  Tape tape(heap_allocator(), Tape::Mode::inference);
  std::size_t bytes = 0;
  for (std::int32_t length = 0; length < 1000; length += 250) {
    const Tensor x = cast(normal({250, kSite.width}, 1), DType::f32);
    layer.mixer->forward(tape, Tape::constant(x), Documents::single(250, length), state.get());
    EXPECT_TRUE(length == 0 || state->bytes() == bytes) << length;
    bytes = state->bytes();
    EXPECT_EQ(static_cast<double>(bytes), layer.mixer->state_bytes(length + 250));
  }
}

// The planned bytes are those that a recording tape holds in fp32.
TEST(SwaTtt, PlansTheMemoryItKeeps) {
  std::vector<OptionList> list;
  for (const Variant& variant : variants()) list.push_back(variant.options);
  list.push_back({{"projections", std::string("shared")}, {"rope", false}});
  list.push_back({{"heads", std::int64_t{4}},
                  {"kv_heads", std::int64_t{2}},
                  {"projections", std::string("shared")},
                  {"rope", false},
                  {"value_norm", std::string("off")},
                  {"forget", std::string("off")}});
  for (const OptionList& options : list) {
    Layer layer(options, DType::f32);
    const std::int32_t T = 2048;
    const auto memory = heap_allocator();
    Tape tape(memory);
    Tensor input(Shape{T, kSite.width}, DType::f32, memory);
    input.fill_zero();
    (void)layer.mixer->forward(tape, tape.leaf(input), Documents::single(T), nullptr);
    input = {};
    const double planned = layer.mixer->cost(T, T).saved_bytes;
    EXPECT_NEAR(static_cast<double>(memory->stats().current_bytes), planned, 0.01 * planned);
  }
}

// --- objections
// --------------------------------------------------------------------------------------------------------

std::string objection(const OptionList& values) {
  ParameterStore store;
  try {
    swa_ttt_mixer().create(ParameterScope(store), kSite, options_with(swa_ttt_mixer(), values), "r.toml:7: [mixer.m]");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "";
}

TEST(SwaTtt, ObjectsToImpossibleValues) {
  using Text = std::string;
  const auto number = [](std::int64_t n) { return OptionValue{n}; };
  const Text where = "r.toml:7: [mixer.m]: ";
  EXPECT_EQ(objection({}), "");
  EXPECT_EQ(objection({{"preset", Text("lact")}}), "");
  EXPECT_EQ(objection({{"window", number(100)}}),
            where +
                "window = 100 is shorter than the memory's chunk = 1024; tokens between the start of a chunk and "
                "the window would be visible to nobody; use window >= chunk, or a shorter chunk");
  EXPECT_EQ(objection({{"heads", number(6)}, {"kv_heads", number(4)}}),
            where + "heads = 6 is not a multiple of kv_heads = 4");
  EXPECT_EQ(objection({{"heads", number(5)}}),
            where + "heads = 5 does not divide the model's width = 24; set head_dim");
  EXPECT_EQ(objection({{"head_dim", number(3)}}),
            where + "head_dim = 3 is odd; rope = true turns channels in pairs and needs an even number");
  EXPECT_EQ(objection({{"heads", number(2)}, {"memory_heads", number(5)}}),
            where + "memory_heads = 5 does not divide the model's width = 24; set memory_dim");
  EXPECT_EQ(objection({{"heads", number(2)}, {"projections", Text("shared")}, {"memory_dim", number(4)}}),
            where +
                "memory_heads = 4 of memory_dim = 4 are 16 channels, but the 2 attention heads have 24; projections "
                "= \"shared\" needs as many");
  EXPECT_EQ(objection({{"heads", number(2)}, {"gate", Text("head")}, {"memory_heads", number(5)}}),
            where +
                "memory_heads = 5 of memory_dim = 4 are 20 channels, but the 2 attention heads have 24; gate = "
                "\"head\" needs as many");
  EXPECT_EQ(objection({{"preset", Text("lact")}, {"alpha_init", 0.0}}),
            where + "alpha_init = 0 has no effect with gate = \"head\"; remove it, or use gate = \"channel\"");
  EXPECT_EQ(objection({{"norm", Text("none")}, {"detach_norm", true}}),
            where + "detach_norm = true has no effect with norm = \"none\"; remove it");
  EXPECT_EQ(objection({{"eta_max", 1e-3}}),
            where + "eta_max = 0.001 is not above eta_init = 0.001; use a larger bound, or 0 for none");
  EXPECT_EQ(objection({{"eta_init", 0.0}}), where + "eta_init = 0 must be positive");
  EXPECT_EQ(objection({{"forget_init", 1.0}}), where + "forget_init = 1 must lie between 0 and 1");
  EXPECT_EQ(objection({{"forget", Text("off")}, {"forget_init", 0.5}}),
            where + "forget_init = 0.5 has no effect without forgetting; remove it, or set forget = \"on\"");
  EXPECT_EQ(objection({{"rope", false}, {"rope_base", 500.0}}),
            where + "rope_base = 500 has no effect with rope = false; remove one");
}

}  // namespace
}  // namespace weft::testing
