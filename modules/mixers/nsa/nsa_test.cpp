#include "modules/mixers/nsa/nsa.h"

#include <fmt/format.h>
#include <numeric>

#include "modules/families/block_sparse/sparse_layer_case.h"
#include "modules/mixers/attention/attention.h"
#include "modules/mixers/nsa/branch_gate.h"
#include "tests/support/op_check.h"

namespace weft::testing::block_sparse {
namespace {

using Blocks = std::vector<std::vector<std::int64_t>>;  // chosen, for each token and key/value head

struct NsaShape {
  std::int64_t H_Q, H_KV, D, D_V, l, delta, block, n, first, local, window;
  std::string phi;
  bool rope;

  OptionList options() const {
    return {{"heads", H_Q},          {"kv_heads", H_KV},         {"head_dim", D},    {"value_dim", D_V},
            {"compress_length", l},  {"compress_stride", delta}, {"block", block},   {"selected", n},
            {"first_blocks", first}, {"local_blocks", local},    {"window", window}, {"phi", phi},
            {"rope", rope}};
  }
};

// The layer of the README, token by token. `chosen` is filled, or, if it is not empty, taken.
class NsaFormula {
 public:
  NsaFormula(const NsaShape& shape, SparseLayerCase& layer) : s_(shape), layer_(layer) {}

  Tensor operator()(const Tensor& x, const Documents& documents, Blocks& chosen) {
    const Tensor q = layer_.product(x, "wq");
    std::array<Tensor, 3> k, v;
    for (std::size_t b = 0; b < 3; ++b) {
      k[b] = layer_.product(x, std::array{"wk_c", "wk_s", "wk_w"}[b]);
      v[b] = layer_.product(x, std::array{"wv_c", "wv_s", "wv_w"}[b]);
    }
    if (s_.rope) {
      for (const Tensor& t : {q, k[1], k[2]}) rotate(t, s_.D, documents.positions());
    }
    Tensor gates = layer_.product(x, "w_gate");
    const bool choose = chosen.empty();
    const Tensor mixed = Tensor::zeros({x.dim(0), s_.H_Q * s_.D_V}, DType::f64);
    for (std::int64_t n = 0; n < documents.count(); ++n) {
      const Tensor k_c = compressed(k[0], "phi_k.", s_.D, documents, n);
      const Tensor v_c = compressed(v[0], "phi_v.", s_.D_V, documents, n);
      std::vector<std::int32_t> starts;
      for (std::int64_t i = 0; i < k_c.dim(0); ++i) starts.push_back(static_cast<std::int32_t>(i * s_.delta));
      if (s_.rope) rotate(k_c, s_.D, starts);
      for (std::int64_t row = documents.begin(n); row < documents.end(n); ++row) {
        const std::int64_t t = row - documents.begin(n);
        std::vector<std::int64_t> visible, window;
        for (std::int64_t i = 0; i * s_.delta + s_.l - 1 <= t; ++i) visible.push_back(i);
        for (std::int64_t u = std::max<std::int64_t>(0, t - s_.window + 1); u <= t; ++u) {
          window.push_back(documents.begin(n) + u);
        }
        for (std::int64_t head = 0; head < s_.H_KV; ++head) {
          if (choose) chosen.push_back(choice(q, k_c, visible, row, t, head));
          const std::vector<std::int64_t> tokens =
              tokens_of(chosen[static_cast<std::size_t>(row * s_.H_KV + head)], s_.block, t, documents.begin(n));
          const std::int64_t G = s_.H_Q / s_.H_KV;
          for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
            add(q, k_c, v_c, visible, row, h, 0, gates, mixed);
            add(q, k[1], v[1], tokens, row, h, 1, gates, mixed);
            add(q, k[2], v[2], window, row, h, 2, gates, mixed);
          }
        }
      }
    }
    return layer_.product(mixed, "wo");
  }

 private:
  const double* head_of(const Tensor& t, std::int64_t row, std::int64_t head, std::int64_t width) const {
    return t.data<double>() + row * t.dim(1) + head * width;
  }

  // phi of every block of document n: [blocks, H_KV width].
  Tensor compressed(const Tensor& x, const std::string& name, std::int64_t width, const Documents& documents,
                    std::int64_t n) {
    const std::int64_t blocks = documents.length(n) < s_.l ? 0 : (documents.length(n) - s_.l) / s_.delta + 1;
    const Tensor y = Tensor::zeros({blocks, s_.H_KV * width}, DType::f64);
    const auto value = [&](const char* weight) { return layer_.value(name + weight).data<double>(); };
    for (std::int64_t i = 0; i < blocks * s_.H_KV; ++i) {
      const std::int64_t block = i / s_.H_KV, head = i % s_.H_KV;
      double* out = y.data<double>() + i * width;
      std::vector<double> rows;
      for (std::int64_t u = 0; u < s_.l; ++u) {
        const double* row = head_of(x, documents.begin(n) + block * s_.delta + u, head, width);
        for (std::int64_t c = 0; c < width; ++c) {
          out[c] += row[c] / static_cast<double>(s_.l);
          rows.push_back(row[c]);
        }
      }
      if (s_.phi == "mean") continue;
      const auto size = static_cast<std::int64_t>(rows.size());
      const std::int64_t r = layer_.value(name + "w1").dim(2);
      for (std::int64_t j = 0; j < r; ++j) {
        double a = s_.phi == "mlp" ? value("b1")[head * r + j] : 0.0;
        for (std::int64_t e = 0; e < size; ++e) {
          a += value("w1")[(head * size + e) * r + j] *
               (rows[static_cast<std::size_t>(e)] + (s_.phi == "mlp" ? value("pe")[head * size + e] : 0.0));
        }
        if (s_.phi == "linear") out[j] += a;
        for (std::int64_t c = 0; s_.phi == "mlp" && c < width; ++c) {
          out[c] += value("w2")[(head * r + j) * width + c] * a / (1.0 + std::exp(-a));
        }
      }
    }
    return y;
  }

  std::vector<std::int64_t> choice(const Tensor& q, const Tensor& k_c, const std::vector<std::int64_t>& visible,
                                   std::int64_t row, std::int64_t t, std::int64_t head) const {
    const std::int64_t G = s_.H_Q / s_.H_KV, own = t / s_.block;
    std::vector<double> score(static_cast<std::size_t>(own + 1), 0.0);
    for (std::int64_t h = head * G; h < (head + 1) * G; ++h) {
      const std::vector<double> p =
          probabilities(head_of(q, row, h, s_.D), k_c.data<double>() + head * s_.D, s_.H_KV * s_.D, s_.D, visible);
      for (std::int64_t j = 0; j <= own; ++j) {
        for (std::int64_t m = 0; m < s_.block / s_.delta; ++m) {
          for (std::int64_t r = 0; r < s_.l / s_.delta; ++r) {
            const std::int64_t i = j * s_.block / s_.delta + m - r;
            if (i >= 0 && i < static_cast<std::int64_t>(p.size())) {
              score[static_cast<std::size_t>(j)] += p[static_cast<std::size_t>(i)];
            }
          }
        }
      }
    }
    return best_blocks(score, own, s_.n, s_.first, s_.local);
  }

  // Adds one gated branch to the row's head h.
  void add(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<std::int64_t>& rows, std::int64_t row,
           std::int64_t h, std::int64_t branch, const Tensor& gates, const Tensor& mixed) {
    const std::int64_t head = h / (s_.H_Q / s_.H_KV);
    const std::vector<double> p =
        probabilities(head_of(q, row, h, s_.D), k.data<double>() + head * s_.D, s_.H_KV * s_.D, s_.D, rows);
    const double logit =
        gates.data<double>()[row * 3 * s_.H_Q + 3 * h + branch] + layer_.value("b_gate").data<double>()[3 * h + branch];
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double* value = head_of(v, rows[i], head, s_.D_V);
      for (std::int64_t c = 0; c < s_.D_V; ++c) {
        mixed.data<double>()[row * s_.H_Q * s_.D_V + h * s_.D_V + c] += p[i] * value[c] / (1.0 + std::exp(-logit));
      }
    }
  }

  NsaShape s_;
  SparseLayerCase& layer_;
};

const std::vector<NsaShape> kShapes = {{.H_Q = 4,
                                        .H_KV = 2,
                                        .D = 6,
                                        .D_V = 5,
                                        .l = 6,
                                        .delta = 3,
                                        .block = 6,
                                        .n = 4,
                                        .first = 1,
                                        .local = 2,
                                        .window = 9,
                                        .phi = "mlp",
                                        .rope = true},
                                       {.H_Q = 3,
                                        .H_KV = 3,
                                        .D = 4,
                                        .D_V = 4,
                                        .l = 4,
                                        .delta = 4,
                                        .block = 8,
                                        .n = 3,
                                        .first = 0,
                                        .local = 1,
                                        .window = 5,
                                        .phi = "linear",
                                        .rope = false},
                                       {.H_Q = 4,
                                        .H_KV = 1,
                                        .D = 4,
                                        .D_V = 6,
                                        .l = 8,
                                        .delta = 2,
                                        .block = 4,
                                        .n = 5,
                                        .first = 1,
                                        .local = 3,
                                        .window = 1,
                                        .phi = "mean",
                                        .rope = true},
                                       {.H_Q = 16,
                                        .H_KV = 1,
                                        .D = 2,
                                        .D_V = 2,
                                        .l = 4,
                                        .delta = 2,
                                        .block = 8,
                                        .n = 3,
                                        .first = 1,
                                        .local = 2,
                                        .window = 30,
                                        .phi = "mlp",
                                        .rope = true}};

TEST(Nsa, IsTheLayerOfItsReadme) {
  for (const NsaShape& shape : kShapes) {
    SparseLayerCase layer(nsa_mixer(), shape.options());
    const auto l = static_cast<std::int32_t>(shape.l), block = static_cast<std::int32_t>(shape.block);
    const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{1, l - 1, l, 0, block + 1, 80});
    const Tensor x = normal({documents->tokens(), layer.site.width}, 3);
    Blocks chosen;
    const Tensor expected = NsaFormula(shape, layer)(x, *documents, chosen);
    EXPECT_TRUE(close(layer.forward(x, documents), expected, 1e-12, 1e-10))
        << shape.phi << ", G " << shape.H_Q / shape.H_KV;
    std::size_t fewest = 100;
    for (const auto& blocks : chosen) fewest = std::min(fewest, blocks.size());
    EXPECT_EQ(fewest, 1U) << "the first token has one block";
    EXPECT_LT(chosen.back().size(), static_cast<std::size_t>(79 / shape.block + 1)) << "selection is sparse";
  }
}

// Gradients against central differences of the formula with the blocks held, entry by entry.
TEST(Nsa, GradientsAreThoseOfTheFormulaWithBlocksHeld) {
  for (std::size_t i = 0; i < 2; ++i) {
    const NsaShape& shape = kShapes[i];
    SparseLayerCase layer(nsa_mixer(), shape.options());
    const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{41, 8});
    const Tensor x = normal({documents->tokens(), layer.site.width}, 3), w = normal(x.shape(), 4);
    NsaFormula formula(shape, layer);
    Blocks chosen;
    formula(x, *documents, chosen);
    const auto loss = [&] {
      const Tensor y = formula(x, *documents, chosen);
      return std::inner_product(y.span<double>().begin(), y.span<double>().end(), w.data<double>(), 0.0);
    };
    Tape tape(heap_allocator(Hygiene::hostile));
    const Var leaf = tape.leaf(x);
    tape.backward(layer.mixer->forward(tape, leaf, documents, nullptr), w);
    const auto check = [&](const std::string& name, const Tensor& value, const Tensor& gradient) {
      double worst = 0.0, largest = 0.0;
      for (const double g : gradient.span<double>()) largest = std::max(largest, std::abs(g));
      const std::int64_t stride = std::max<std::int64_t>(1, value.numel() / 6);
      for (std::int64_t e = 0; e < value.numel(); e += stride) {
        double& entry = value.data<double>()[e];
        const double original = entry;
        entry = original + 1e-6;
        const double up = loss();
        entry = original - 1e-6;
        const double down = loss();
        entry = original;
        worst = std::max(worst, std::abs((up - down) / 2e-6 - gradient.data<double>()[e]));
      }
      EXPECT_LE(worst, 1e-6 * std::max(1e-3, largest)) << name;
    };
    check("x", x, tape.gradient(leaf));
    for (Parameter* p : layer.store.all()) check(p->name, p->value, p->grad);
  }
}

// Each branch, with everything in its reach and its gates alone open, is full attention with the branch's weights.
TEST(Nsa, BranchesThatReachEverythingAreFullAttention) {
  const std::int64_t T = 70;
  for (std::int64_t branch = 0; branch < 3; ++branch) {
    SparseLayerCase layer(nsa_mixer(), {{"heads", integer(4)},
                                        {"kv_heads", integer(2)},
                                        {"head_dim", integer(6)},
                                        {"compress_length", integer(1)},
                                        {"compress_stride", integer(1)},
                                        {"block", integer(8)},
                                        {"selected", integer(9)},
                                        {"window", T},
                                        {"phi", std::string("mean")}});
    SparseLayerCase full(
        attention_mixer(),
        {{"heads", integer(4)}, {"kv_heads", integer(2)}, {"head_dim", integer(6)}, {"qk_norm", false}});
    layer.value("w_gate").fill_zero();
    for (std::int64_t i = 0; i < 12; ++i) layer.value("b_gate").data<double>()[i] = i % 3 == branch ? 60.0 : -800.0;
    const std::string suffix = std::array{"_c", "_s", "_w"}[static_cast<std::size_t>(branch)];
    full.value("wq").copy_from(layer.value("wq"));
    full.value("wk").copy_from(layer.value("wk" + suffix));
    full.value("wv").copy_from(layer.value("wv" + suffix));
    full.value("wo").copy_from(layer.value("wo"));
    const Tensor x = normal({T, layer.site.width}, 3);
    const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{50, 20});
    EXPECT_TRUE(close(layer.forward(x, documents), full.forward(x, documents), 1e-12, 1e-11)) << "branch " << branch;
  }
}

// A single matching key far away: its compressed score is the largest, so its block is selected and its value comes
// back through the selected branch.
TEST(Nsa, FindsANeedle) {
  SparseLayerCase layer(nsa_mixer(),
                        {{"heads", integer(1)},
                         {"head_dim", integer(8)},
                         {"rope", false},
                         {"compress_length", integer(8)},
                         {"compress_stride", integer(4)},
                         {"block", integer(8)},
                         {"selected", integer(4)},
                         {"window", integer(8)},
                         {"phi", std::string("mean")}},
                        16);
  // Queries and keys are the first eight channels, values the others.
  for (Parameter* p : layer.store.all()) p->value.fill_zero();
  for (std::int64_t c = 0; c < 8; ++c) {
    for (const char* name : {"wq", "wk_c", "wk_s"}) layer.value(name).data<double>()[c * 16 + c] = 1.0;
    layer.value("wv_s").data<double>()[c * 16 + 8 + c] = 1.0;
    layer.value("wo").data<double>()[c * 8 + c] = 1.0;
  }
  for (int b = 0; b < 3; ++b) layer.value("b_gate").data<double>()[b] = b == 1 ? 60.0 : -800.0;
  const std::int64_t T = 400, needle = 133;
  const Tensor x = normal({T, 16}, 3);
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t c = 0; c < 8; ++c) x.data<double>()[t * 16 + c] *= 0.1;
  }
  const auto output = [&] { return layer.forward(x, Documents::single(T)).rows(T - 1, T); };
  const auto set = [&](std::int64_t t, double value) {
    for (std::int64_t c = 0; c < 8; ++c) x.data<double>()[t * 16 + c] = c % 2 == 0 ? value : -value;
  };
  set(T - 1, 5.0);
  double distance_before = 0.0, distance_after = 0.0;
  const Tensor before = output();
  set(needle, 5.0);
  set(T - 1, 5.0);
  const Tensor after = output();
  for (std::int64_t c = 0; c < 8; ++c) {
    // The query's own key matches as well: the output is the mean of both values.
    const double expected = 0.5 * (x.data<double>()[needle * 16 + 8 + c] + x.data<double>()[(T - 1) * 16 + 8 + c]);
    distance_before = std::max(distance_before, std::abs(before.data<double>()[c] - expected));
    distance_after = std::max(distance_after, std::abs(after.data<double>()[c] - expected));
  }
  EXPECT_GT(distance_before, 0.1);
  EXPECT_LT(distance_after, 1e-9);
}

OP_TEST(Nsa, BranchGateIsAWellBehavedOperation) {
  for (const std::int64_t D : {3, 132}) {
    const Shape shape{5, 2, D};
    check_op({.name = "branch gate",
              .inputs = {normal(shape, 1), normal(shape, 2), normal(shape, 3), normal({5, 6}, 4)},
              .function = [](Tape& tape, std::span<const Var> in) {
                return std::vector{branch_gate(tape, {in[0], in[1], in[2]}, in[3])};
              }});
  }
}

TEST(Nsa, DeclaresItsParameters) {
  SparseLayerCase layer(nsa_mixer(), {{"heads", integer(4)},
                                      {"kv_heads", integer(2)},
                                      {"value_dim", integer(5)},
                                      {"head_dim", integer(6)},
                                      {"compress_length", integer(4)},
                                      {"compress_stride", integer(2)}});
  std::vector<std::string> list;
  for (const Parameter* p : layer.store.all()) {
    list.push_back(
        fmt::format("{} {} {}", p->name, p->shape.str(), p->kind == ParameterKind::matrix ? "decays" : "stays"));
  }
  EXPECT_EQ(list,
            (std::vector<std::string>{
                "phi_k.w1 [2, 24, 12] decays", "phi_k.pe [2, 4, 6] stays", "phi_k.b1 [2, 12] stays",
                "phi_k.w2 [2, 12, 6] decays", "phi_v.w1 [2, 20, 10] decays", "phi_v.pe [2, 4, 5] stays",
                "phi_v.b1 [2, 10] stays", "phi_v.w2 [2, 10, 5] decays", "wq [24, 12] decays", "wk_c [12, 12] decays",
                "wk_s [12, 12] decays", "wk_w [12, 12] decays", "wv_c [10, 12] decays", "wv_s [10, 12] decays",
                "wv_w [10, 12] decays", "w_gate [12, 12] decays", "b_gate [12] stays", "wo [12, 20] decays"}));
}

TEST(Nsa, PlansTheMemoryItKeeps) {
  for (const char* phi : {"mean", "linear", "mlp"}) {
    SparseLayerCase(nsa_mixer(), {{"heads", integer(4)},
                                  {"kv_heads", integer(2)},
                                  {"head_dim", integer(8)},
                                  {"value_dim", integer(6)},
                                  {"phi", std::string(phi)}})
        .expect_saved_bytes();
  }
}

TEST(Nsa, ObjectsToImpossibleValues) {
  const auto objection = [](const OptionList& options) {
    return creation_error<SparseLayerCase>(nsa_mixer(), options);
  };
  EXPECT_EQ(objection({{"head_dim", integer(6)}}), "");
  EXPECT_EQ(objection({{"heads", integer(6)}, {"kv_heads", integer(4)}}),
            "[mixer.test]: heads = 6 is not a multiple of kv_heads = 4");
  EXPECT_EQ(objection({{"heads", integer(5)}}),
            "[mixer.test]: heads = 5 does not divide the model's width = 12; set head_dim");
  EXPECT_EQ(objection({{"head_dim", integer(7)}}),
            "[mixer.test]: head_dim = 7 is odd; rope = true turns channels in pairs and needs an even number");
  EXPECT_EQ(objection({{"head_dim", integer(6)}, {"compress_length", integer(20)}}),
            "[mixer.test]: compress_length = 20 is not a multiple of compress_stride = 16");
  EXPECT_EQ(objection({{"head_dim", integer(6)}, {"block", integer(40)}}),
            "[mixer.test]: block = 40 is not a multiple of compress_stride = 16");
  EXPECT_EQ(objection({{"head_dim", integer(6)}, {"selected", integer(2)}}),
            "[mixer.test]: selected = 2 leaves no room for the 1 first and 2 last blocks, which are always selected; "
            "raise it to at least 3");
  EXPECT_EQ(objection({{"head_dim", integer(6)}, {"phi", std::string("mean")}, {"phi_width", integer(8)}}),
            "[mixer.test]: phi_width = 8 has no effect with phi = \"mean\"; remove it, or set phi = \"mlp\"");
}

}  // namespace
}  // namespace weft::testing::block_sparse
