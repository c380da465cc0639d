#include "modules/mixers/titans/titans.h"

#include <cmath>

#include "modules/families/gated_linear/gated_linear_layer_test_cases.h"
#include "modules/families/titans_memory/titans_memory_reference.h"

namespace weft {
namespace {

using namespace testing;

constexpr std::int64_t kWindow = 3, kPersistent = 2, kChunk = 2;
constexpr double kRate = 0.3;

OptionList options_for(const char* variant, std::int64_t persistent = kPersistent, std::int64_t hidden_factor = 0) {
  return {{"hidden_factor", hidden_factor},
          {"variant", std::string(variant)},
          {"window", kWindow},
          {"persistent", persistent},
          {"chunk", kChunk},
          {"inner_learning_rate", kRate}};
}

// The formulas of the README in plain loops over rows of one document.
using Row = std::vector<double>;
using Rows = std::vector<Row>;

class Formula {
 public:
  Formula(LayerUnderTest& layer, std::int64_t persistent)
      : layer_(layer), H_(layer.heads), D_(layer.d_k), n_p_(persistent) {}

  Rows document(std::int64_t n) const {
    Rows rows;
    for (std::int64_t t = layer_.documents->begin(n); t < layer_.documents->end(n); ++t) {
      const double* x = layer_.x.data<double>() + t * layer_.site.width;
      rows.emplace_back(x, x + layer_.site.width);
    }
    return rows;
  }
  Rows mag(const Rows& x) const {
    const Rows m = norm(memory(x, nullptr), "norm_m"), o = norm(windowed(x), "norm_o");
    return map(gated(o, m), "wo");
  }
  Rows mal(const Rows& x) const { return map(windowed(norm(memory(x, nullptr), "norm_m")), "wo"); }
  Rows mac(const Rows& x) const {
    const Rows queries = keys(x, "wq_h");
    Rows y;  // of all segments so far
    for (std::size_t begin = 0; begin < x.size(); begin += kWindow) {
      std::vector<double> M;  // of all heads, before the segment
      memory(y, &M);
      const std::size_t end = std::min(x.size(), begin + kWindow);
      Rows rows = persistent();
      for (std::size_t t = begin; t < end; ++t) {
        rows.push_back(map(norm({network(M, queries[t])}, "norm_h"), "wh")[0]);
        rows.push_back(x[t]);
      }
      const Rows o = attention(rows, 1 << 20);
      for (std::size_t t = begin; t < end; ++t) {
        y.push_back(norm({o[size(n_p_) + 2 * (t - begin) + 1]}, "norm_o")[0]);
      }
    }
    return map(gated(y, norm(memory(y, nullptr), "norm_m")), "wo");
  }

 private:
  static std::size_t size(std::int64_t i) { return static_cast<std::size_t>(i); }
  static std::ptrdiff_t size_as_offset(std::size_t i) { return static_cast<std::ptrdiff_t>(i); }
  std::int64_t hidden() const {
    const Parameter* w1 = layer_.store.find("memory_w1");
    return w1 == nullptr ? 0 : w1->shape[2];
  }
  static double sigma(double a) { return 1.0 / (1.0 + std::exp(-a)); }
  const Tensor& parameter(const char* name) const { return layer_.store.find(name)->value; }

  Rows map(const Rows& x, const char* name) const {
    const Tensor& w = parameter(name);
    Rows y;
    for (const Row& row : x) {
      Row to(size(w.dim(0)), 0.0);
      for (std::int64_t i = 0; i < w.numel(); ++i) {
        to[size(i / w.dim(1))] += w.data<double>()[i] * row[size(i % w.dim(1))];
      }
      y.push_back(to);
    }
    return y;
  }
  // RMS norm over groups of channels as wide as the weight.
  Rows norm(Rows x, const char* name) const {
    const Tensor& w = parameter(name);
    for (Row& row : x) {
      for (std::size_t begin = 0; begin < row.size(); begin += size(w.numel())) {
        double squares = 0.0;
        for (std::int64_t c = 0; c < w.numel(); ++c) squares += row[begin + size(c)] * row[begin + size(c)];
        const double r = 1.0 / std::sqrt(squares / static_cast<double>(w.numel()) + 1e-6);
        for (std::int64_t c = 0; c < w.numel(); ++c) row[begin + size(c)] *= r * w.data<double>()[c];
      }
    }
    return x;
  }
  Rows keys(const Rows& x, const char* name) const {
    Rows y = map(x, name);
    for (Row& row : y) {
      for (double& a : row) a *= sigma(a);
      for (std::int64_t h = 0; h < H_; ++h) {
        double squares = 0.0;
        for (std::int64_t c = 0; c < D_; ++c) squares += row[size(h * D_ + c)] * row[size(h * D_ + c)];
        for (std::int64_t c = 0; c < D_; ++c) row[size(h * D_ + c)] /= std::sqrt(squares + 1e-6);
      }
    }
    return y;
  }
  static Rows gated(Rows y, const Rows& g) {
    for (std::size_t t = 0; t < y.size(); ++t) {
      for (std::size_t c = 0; c < y[t].size(); ++c) y[t][c] *= sigma(g[t][c]);
    }
    return y;
  }
  static std::vector<double> flat(const Rows& x) {
    std::vector<double> all;
    for (const Row& row : x) all.insert(all.end(), row.begin(), row.end());
    return all;
  }
  // x [H D] through the memories M of all heads.
  Row network(const std::vector<double>& M, const Row& x) const {
    const std::size_t m = size(hidden()), D = size(D_), P = size(titans_memory_size(D_, hidden(), D_));
    Row y(x.size(), 0.0);
    for (std::size_t h = 0; h < size(H_); ++h) {
      const double* W = M.data() + h * P;
      Row inputs(x.begin() + size_as_offset(h * D), x.begin() + size_as_offset((h + 1) * D));
      if (m > 0) {
        Row a(m, 0.0);
        for (std::size_t i = 0; i < D * m; ++i) a[i % m] += inputs[i / m] * W[i];
        for (double& u : a) u = 0.5 * u * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (u + 0.044715 * u * u * u)));
        inputs = a;
        W += D * m;
      }
      for (std::size_t i = 0; i < inputs.size() * D; ++i) y[h * D + i % D] += inputs[i / D] * W[i];
    }
    return y;
  }
  // What the tokens of one document read; `last`: the memory after them.
  Rows memory(const Rows& x, std::vector<double>* last) const {
    const auto q = flat(keys(x, "wq_m")), k = flat(keys(x, "wk_m")), v = flat(map(x, "wv_m"));
    const auto gate = [&](const char* w, const char* b, double factor) {
      std::vector<double> g = flat(map(x, w));
      for (std::size_t i = 0; i < g.size(); ++i) {
        g[i] = factor * sigma(g[i] + parameter(b).data<double>()[i % size(H_)]);
      }
      return g;
    };
    const auto keep = gate("w_keep", "b_keep", 1.0), mu = gate("w_mu", "b_mu", 1.0);
    const auto rate = gate("w_rate", "b_rate", kRate);
    const auto T = static_cast<std::int64_t>(x.size());
    const std::int32_t cu[] = {0, static_cast<std::int32_t>(T)};
    const TitansProblem problem{.dtype = DType::f64,
                                .T = T,
                                .N = 1,
                                .H = H_,
                                .d_k = D_,
                                .d_v = D_,
                                .m = hidden(),
                                .C = kChunk,
                                .q = q.data(),
                                .k = k.data(),
                                .v = v.data(),
                                .keep = keep.data(),
                                .momentum = mu.data(),
                                .rate = rate.data(),
                                .w1 = hidden() > 0 ? parameter("memory_w1").raw() : nullptr,
                                .w2 = parameter(hidden() > 0 ? "memory_w2" : "memory_w").raw(),
                                .state = nullptr,
                                .cu_seqlens = cu,
                                .phase = nullptr};
    const std::int64_t P = titans_memory_size(D_, problem.m, D_);
    std::vector<double> o(size(T * H_ * D_)), state(size(H_ * 3 * P));
    for (std::int64_t h = 0; h < H_; ++h) TitansReference(problem, 0, h).forward(o.data(), state.data());
    if (last != nullptr) {
      for (std::int64_t h = 0; h < H_; ++h) {
        const auto from = state.begin() + h * 3 * P;
        last->insert(last->end(), from, from + P);
      }
    }
    Rows rows;
    for (std::int64_t t = 0; t < T; ++t) rows.emplace_back(o.begin() + t * H_ * D_, o.begin() + (t + 1) * H_ * D_);
    return rows;
  }

  Rows persistent() const {
    Rows rows;
    for (std::int64_t i = 0; i < n_p_; ++i) {
      const Tensor& p = parameter("persistent");
      rows.emplace_back(p.data<double>() + i * p.dim(1), p.data<double>() + (i + 1) * p.dim(1));
    }
    return rows;
  }
  Rows windowed(const Rows& x) const {
    Rows rows = persistent();
    rows.insert(rows.end(), x.begin(), x.end());
    const Rows o = attention(rows, kWindow);
    return {o.begin() + n_p_, o.end()};
  }
  Rows turned(Rows x) const {
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::int64_t i = 0; i < H_ * D_; ++i) {
        if (i % D_ >= D_ / 2) continue;
        const double angle =
            static_cast<double>(t) * std::pow(10000.0, -2.0 * static_cast<double>(i % D_) / static_cast<double>(D_));
        double &a = x[t][size(i)], &b = x[t][size(i + D_ / 2)];
        const double first = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = first;
      }
    }
    return x;
  }
  // Causal, rows of the window and the persistent ones.
  Rows attention(const Rows& x, std::int64_t window) const {
    const Rows q = turned(norm(map(x, "wq"), "q_norm_w")), k = turned(norm(map(x, "wk"), "k_norm_w"));
    const Rows v = map(x, "wv");
    Rows o(x.size(), Row(size(H_ * D_), 0.0));
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(x.size()); ++i) {
      for (std::int64_t h = 0; h < H_; ++h) {
        double total = 0.0;
        for (std::int64_t j = 0; j <= i; ++j) {
          if (j >= n_p_ && i - j >= window) continue;
          double logit = 0.0;
          for (std::int64_t c = h * D_; c < (h + 1) * D_; ++c) logit += q[size(i)][size(c)] * k[size(j)][size(c)];
          const double weight = std::exp(logit / std::sqrt(static_cast<double>(D_)));
          total += weight;
          for (std::int64_t c = h * D_; c < (h + 1) * D_; ++c) o[size(i)][size(c)] += weight * v[size(j)][size(c)];
        }
        for (std::int64_t c = h * D_; c < (h + 1) * D_; ++c) o[size(i)][size(c)] /= total;
      }
    }
    return o;
  }

  LayerUnderTest& layer_;
  std::int64_t H_, D_, n_p_;
};

struct Wiring {
  std::string variant;
  std::int64_t persistent, hidden_factor;

  OptionList options() const { return options_for(variant.c_str(), persistent, hidden_factor); }
  std::string str() const { return fmt::format("{} n_p {} hidden {}", variant, persistent, hidden_factor); }
};
std::vector<Wiring> wirings() {
  std::vector<Wiring> all;
  for (const char* variant : {"mag", "mac", "mal"}) {
    all.push_back({variant, kPersistent, 0});
    all.push_back({variant, 0, 2});
  }
  return all;
}

TEST(Titans, IsTheLayerOfItsReadme) {
  for (const Wiring& wiring : wirings()) {
    SCOPED_TRACE(wiring.str());
    LayerUnderTest layer(titans_mixer(), wiring.options());
    const Formula formula(layer, wiring.persistent);
    const Tensor expected = Tensor::zeros(layer.x.shape(), DType::f64);
    double* to = expected.data<double>();
    for (std::int64_t n = 0; n < layer.documents->count(); ++n) {
      const Rows x = formula.document(n);
      for (const Row& row : wiring.variant == "mag"   ? formula.mag(x)
                            : wiring.variant == "mac" ? formula.mac(x)
                                                      : formula.mal(x)) {
        to = std::copy(row.begin(), row.end(), to);
      }
    }
    layer.expect_mixed(expected);
  }
}

TEST(Titans, PlansTheMemoryItKeeps) {
  for (const Wiring& wiring : wirings()) {
    SCOPED_TRACE(wiring.str());
    OptionList options = wiring.options();
    options.emplace_back("window", std::int64_t{500});  // allocations of small segments would be mostly padding
    LayerUnderTest(titans_mixer(), options).expect_saved_bytes();
  }
}

TEST(Titans, ItsStateHasConstantBytes) {
  for (const Wiring& wiring : wirings()) {
    SCOPED_TRACE(wiring.str());
    LayerUnderTest layer(titans_mixer(), wiring.options());
    EXPECT_EQ(layer.mixer->state_bytes(300), layer.mixer->state_bytes(100000));
    layer.store.initialise(1, DType::f32);
    const auto state = layer.mixer->initial_state(1, cpu_place(DType::f32));
    std::int32_t seen = 0;
    for (const std::int32_t tokens : {1, 2, 70, 300}) {
      Tape tape(heap_allocator(), Tape::Mode::inference);
      const Var x = Tape::constant(cast(normal({tokens, layer.site.width}, 1), DType::f32));
      layer.mixer->forward(tape, x, Documents::single(tokens, seen), state.get());
      seen += tokens;
      EXPECT_EQ(static_cast<double>(state->bytes()), layer.mixer->state_bytes(seen)) << "after " << seen;
    }
  }
}

// The worst case for steps on stale gradients: every token of every chunk is the same.
TEST(Titans, ItsDefaultsStayBoundedOnEqualTokens) {
  for (const char* variant : {"mag", "mac", "mal"}) {
    for (const std::int64_t chunk : {1, 16, 64}) {
      for (const std::int64_t hidden_factor : {0, 4}) {
        LayerUnderTest layer(titans_mixer(),
                             {{"variant", std::string(variant)}, {"chunk", chunk}, {"hidden_factor", hidden_factor}});
        layer.store.initialise(1, DType::f32);
        const Tensor row = cast(normal({1, layer.site.width}, 1), DType::f32);
        const Tensor x = Tensor::empty({1000, layer.site.width}, DType::f32);
        for (std::int64_t t = 0; t < 1000; ++t) x.rows(t, t + 1).copy_from(row);
        Tape tape(heap_allocator(), Tape::Mode::inference);
        const auto state = layer.mixer->initial_state(1, cpu_place(DType::f32));
        const Var y = layer.mixer->forward(tape, Tape::constant(x), Documents::single(1000), state.get());
        for (const float v : y.value.span<float>()) {
          ASSERT_LT(std::abs(v), 10.0F) << fmt::format("{} C {} hidden {}", variant, chunk, hidden_factor);
        }
      }
    }
  }
}

TEST(Titans, RefusesWhatCannotBe) {
  EXPECT_EQ(creation_error<LayerUnderTest>(titans_mixer(), {{"heads", std::int64_t{3}}, {"head_dim", std::int64_t{0}}}),
            "[mixer.test]: heads = 3 does not divide the model's width = 10; set head_dim");
  EXPECT_EQ(creation_error<LayerUnderTest>(titans_mixer(), {{"head_dim", std::int64_t{5}}}),
            "[mixer.test]: head_dim = 5 is odd; the attention's rotary positions turn channels in pairs and need an "
            "even number");
}

}  // namespace
}  // namespace weft
