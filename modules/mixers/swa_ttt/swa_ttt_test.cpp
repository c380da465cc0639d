// The layer against its README written in plain loops, its special cases, its parameters, memory and objections.
#include "modules/mixers/swa_ttt/swa_ttt.h"

#include "modules/mixers/attention/attention.h"
#include "modules/mixers/swa_ttt/swa_ttt_formula.h"

namespace weft::testing {
namespace {

using namespace swa_ttt;

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

// --- special cases --------------------------------------------------------------------------------------------------

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
  const auto state = layer.mixer->initial_state(1, cpu_place(DType::f32));
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
  for (const OptionList& options : list) Layer(options).expect_saved_bytes();
}

// --- objections -----------------------------------------------------------------------------------------------------

std::string objection(const OptionList& options) {
  return refusal([&] { const LayerCase layer(swa_ttt_mixer(), options, kSite); });
}

TEST(SwaTtt, ObjectsToImpossibleValues) {
  using Text = std::string;
  const auto number = [](std::int64_t n) { return OptionValue{n}; };
  const Text where = "[mixer.test]: ";
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
