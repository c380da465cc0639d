// Closed forms and special cases: what the recurrence becomes when a part of it is switched off, and its map as a
// whole.
#include <cmath>

#include "modules/families/delta_rule/delta_rule_test_cases.h"

namespace weft {
namespace {

using namespace testing;

void fill(const Tensor& t, double value) {
  for (double& x : t.span<double>()) x = value;
}

// Element [token, head, channel].
double& at(const Tensor& t, std::int64_t i, std::int64_t j, std::int64_t k) {
  return t.data<double>()[(i * t.dim(1) + j) * t.dim(2) + k];
}

TEST(DeltaRule, EqualChannelsAreTheScalarDecayAndZeroIsNone) {
  DeltaCase channel{.lengths = {70, 9}, .H = 4}, scalar = channel, none = channel;
  scalar.decay = DeltaDecay::scalar;
  none.decay = DeltaDecay::none;
  for (const bool zero : {false, true}) {
    DeltaInputs scalar_in = make_inputs(scalar);
    if (zero) scalar_in.g.fill_zero();
    DeltaInputs channel_in = scalar_in, none_in = scalar_in;
    channel_in.g = Tensor::zeros({channel.tokens(), channel.H, channel.d_k}, DType::f64);
    for (std::int64_t i = 0; i < channel_in.g.numel(); ++i) {
      channel_in.g.data<double>()[i] = scalar_in.g.data<double>()[i / channel.d_k];
    }
    none_in.g = {};
    DeltaResult from_channel = evaluate(channel, channel_in), from_scalar = evaluate(scalar, scalar_in);
    const Tensor summed = Tensor::zeros(from_scalar.dg.shape(), DType::f64);
    for (std::int64_t i = 0; i < from_channel.dg.numel(); ++i) {
      summed.data<double>()[i / channel.d_k] += from_channel.dg.data<double>()[i];
    }
    from_channel.dg = summed;
    expect_close(from_channel, from_scalar, kFp64Chunked);
    if (!zero) continue;
    from_scalar.dg = {};
    expect_bitwise_equal(from_scalar, evaluate(none, none_in));
  }
}

// Nothing is written: without a state nothing is read either; with one, it only decays.
TEST(DeltaRule, WithoutWritesTheStateOnlyDecays) {
  for (const DeltaDecay decay : kAllDecays) {
    DeltaCase c{.lengths = {70}, .decay = decay, .H = 1, .H_K = 1, .gate = 0.05};
    DeltaInputs in = make_inputs(c);
    in.beta.fill_zero();
    const DeltaResult r = evaluate(c, in);
    std::vector<double> sums(static_cast<std::size_t>(c.d_k), 0.0);
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      for (std::int64_t x = 0; x < c.d_k; ++x) {
        if (decay == DeltaDecay::scalar) sums[static_cast<std::size_t>(x)] += in.g.data<double>()[t];
        if (decay == DeltaDecay::channel) sums[static_cast<std::size_t>(x)] += at(in.g, t, 0, x);
      }
      for (std::int64_t y = 0; y < c.d_v; ++y) {
        double expected = 0.0;
        for (std::int64_t x = 0; x < c.d_k; ++x) {
          expected += c.scale * at(in.q, t, 0, x) * std::exp(sums[static_cast<std::size_t>(x)]) *
                      in.s0.data<double>()[x * c.d_v + y];
        }
        EXPECT_NEAR(at(r.o, t, 0, y), expected, 1e-13);
      }
    }
    c.initial_state = false;
    in.s0 = {};
    const DeltaResult empty = evaluate(c, in);
    for (const Tensor* zero : {&empty.o, &empty.st, &empty.dv}) {
      for (const double x : zero->span<double>()) ASSERT_EQ(x, 0.0);
    }
  }
}

// beta = 1 and keys that are unit vectors: an associative memory whose rows are values, replaced when a key returns.
TEST(DeltaRule, UnitKeysStoreAndReplaceValuesExactly) {
  DeltaCase c{.lengths = {24}, .decay = DeltaDecay::none, .H = 1, .H_K = 1, .d_k = 8, .initial_state = false};
  for (const std::int64_t chunk : {5, 64}) {
    c.plan.chunk = chunk;
    const DeltaInputs in = make_inputs(c);
    fill(in.beta, 1.0);
    in.k.fill_zero();
    in.q.fill_zero();
    for (std::int64_t t = 0; t < 24; ++t) {
      at(in.k, t, 0, 3 * t % 8) = 1.0;
      at(in.q, t, 0, 3 * t % 8) = 1.0;
    }
    const DeltaResult r = evaluate(c, in);
    for (std::int64_t t = 0; t < 24; ++t) {
      for (std::int64_t y = 0; y < c.d_v; ++y) EXPECT_NEAR(at(r.o, t, 0, y), c.scale * at(in.v, t, 0, y), 1e-15);
    }
    for (std::int64_t t = 16; t < 24; ++t) {  // the last writes to each of the 8 keys
      for (std::int64_t y = 0; y < c.d_v; ++y) {
        EXPECT_NEAR(r.st.data<double>()[3 * t % 8 * c.d_v + y], at(in.v, t, 0, y), 1e-15);
      }
    }
  }
}

// The same with orthonormal keys that point nowhere in particular, and for every kind of decay when nothing decays:
// what was written under a key is read back exactly, however many other keys were written since.
TEST(DeltaRule, OrthonormalKeysRecallTheirValues) {
  for (const DeltaDecay decay : kAllDecays) {
    const std::int64_t n = 80;  // keys, over two chunks
    const DeltaCase c{.lengths = {2 * n}, .decay = decay, .H = 1, .H_K = 1, .d_k = n, .initial_state = false};
    const DeltaInputs in = make_inputs(c);
    if (in.g.defined()) in.g.fill_zero();
    // Rows of I - 2 w w^T / |w|^2, which are orthonormal; the first n tokens write, the others read them backwards.
    const Tensor w = normal({n}, 70);
    double squares = 0.0;
    for (const double x : w.span<double>()) squares += x * x;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t x = 0; x < n; ++x) {
        const double key = (i == x ? 1.0 : 0.0) - 2.0 * w.data<double>()[i] * w.data<double>()[x] / squares;
        at(in.k, i, 0, x) = key;
        at(in.q, 2 * n - 1 - i, 0, x) = key;
      }
      in.beta.data<double>()[i] = 1.0;
      in.beta.data<double>()[n + i] = 0.0;
    }
    const DeltaResult r = evaluate(c, in);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t y = 0; y < c.d_v; ++y) {
        EXPECT_NEAR(at(r.o, 2 * n - 1 - i, 0, y), c.scale * at(in.v, i, 0, y), 1e-13) << c.str() << " key " << i;
      }
    }
  }
}

// Everything is forgotten at once, or almost: each token reads its own write, o_t = s beta_t <q_t, k_t> v_t.
TEST(DeltaRule, InfiniteDecayLeavesEachTokenToItself) {
  for (const DeltaDecay decay : {DeltaDecay::scalar, DeltaDecay::channel}) {
    for (const double g : {-5.0, -1e4, -1e30}) {
      for (const DType dtype : {DType::f64, DType::f32}) {
        const DeltaCase c{.lengths = {150}, .decay = decay, .H = 1, .H_K = 1, .initial_state = false};
        SCOPED_TRACE(fmt::format("{} g {}", c.str(), g));
        DeltaInputs in = make_inputs(c);
        fill(in.g, g);
        in = rounded(in, dtype);
        const DeltaResult r = evaluate(c, in);
        const DeltaInputs exact = rounded(in, DType::f64);
        const Tensor expected = Tensor::zeros(in.v.shape(), DType::f64);
        for (std::int64_t t = 0; t < c.tokens(); ++t) {
          double score = 0.0;
          for (std::int64_t x = 0; x < c.d_k; ++x) score += at(exact.q, t, 0, x) * at(exact.k, t, 0, x);
          for (std::int64_t y = 0; y < c.d_v; ++y) {
            at(expected, t, 0, y) = c.scale * exact.beta.data<double>()[t] * score * at(exact.v, t, 0, y);
          }
        }
        // At the bound of the bounded gate a 150th part of the previous write is left.
        const double tolerance = g == -5.0 ? 2.0 * std::exp(-5.0) : dtype == DType::f64 ? 1e-12 : 2e-6;
        EXPECT_TRUE(close(r.o, expected, tolerance, 100.0 * tolerance));
        for (const Tensor* t : {&r.st, &r.dq, &r.dk, &r.dv, &r.dg, &r.dbeta}) {
          const Tensor values = cast(*t, DType::f64);
          for (const double x : values.span<double>()) ASSERT_TRUE(std::isfinite(x));
        }
      }
    }
  }
}

// The operation is linear in (v, S0), column by column: the span's map is S_T = Phi S0 + S_ext, and Phi is what the
// identity becomes with v = 0. Ranks exchange it; here it is compared with its definition, a product over tokens of
// (I - beta k^T k) diag(e^g).
TEST(DeltaRule, ItsMapOfStatesIsAffine) {
  for (const DeltaDecay decay : kAllDecays) {
    const DeltaCase c{.lengths = {100}, .decay = decay, .H = 1, .H_K = 1, .d_k = 6, .d_v = 4, .gate = 0.02};
    const DeltaInputs in = make_inputs(c);
    const Tensor whole = evaluate(c, in).st;

    DeltaCase from_zero = c;
    from_zero.initial_state = false;
    DeltaInputs zero_in = in;
    zero_in.s0 = {};
    const Tensor ext = evaluate(from_zero, zero_in).st;

    // d_k more value channels carry Phi: v = 0 and S0 = I there.
    const std::int64_t D = c.d_k, wide = c.d_v + D;
    DeltaCase augmented = c;
    augmented.d_v = wide;
    augmented.final_gradient = false;
    DeltaInputs wide_in = make_inputs(augmented);
    wide_in.q = in.q, wide_in.k = in.k, wide_in.g = in.g, wide_in.beta = in.beta, wide_in.dst = {};
    wide_in.v.fill_zero();
    wide_in.s0.fill_zero();
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      for (std::int64_t y = 0; y < c.d_v; ++y) at(wide_in.v, t, 0, y) = at(in.v, t, 0, y);
    }
    for (std::int64_t x = 0; x < D; ++x) wide_in.s0.data<double>()[x * wide + c.d_v + x] = 1.0;
    const Tensor both = evaluate(augmented, wide_in).st;

    std::vector<double> phi(static_cast<std::size_t>(D * D), 0.0);
    const auto element = [&](std::int64_t x, std::int64_t z) -> double& {
      return phi[static_cast<std::size_t>(x * D + z)];
    };
    for (std::int64_t x = 0; x < D; ++x) element(x, x) = 1.0;
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      for (std::int64_t z = 0; z < D; ++z) {
        double read = 0.0;
        for (std::int64_t x = 0; x < D; ++x) {
          if (decay != DeltaDecay::none) {
            element(x, z) *= std::exp(decay == DeltaDecay::scalar ? in.g.data<double>()[t] : at(in.g, t, 0, x));
          }
          read += at(in.k, t, 0, x) * element(x, z);
        }
        for (std::int64_t x = 0; x < D; ++x) element(x, z) -= in.beta.data<double>()[t] * at(in.k, t, 0, x) * read;
      }
    }
    for (std::int64_t x = 0; x < D; ++x) {
      for (std::int64_t z = 0; z < D; ++z) EXPECT_NEAR(both.data<double>()[x * wide + c.d_v + z], element(x, z), 1e-13);
      for (std::int64_t y = 0; y < c.d_v; ++y) {
        EXPECT_NEAR(both.data<double>()[x * wide + y], ext.data<double>()[x * c.d_v + y], 1e-13);
        double folded = ext.data<double>()[x * c.d_v + y];
        for (std::int64_t z = 0; z < D; ++z) folded += element(x, z) * in.s0.data<double>()[z * c.d_v + y];
        EXPECT_NEAR(whole.data<double>()[x * c.d_v + y], folded, 1e-13);
      }
    }
  }
}

// The recurrence is linear in values and state, and value channels do not depend on each other.
TEST(DeltaRule, PermutingAndScalingValueChannelsCommutes) {
  for (const DeltaDecay decay : kAllDecays) {
    const DeltaCase c{.lengths = {90}, .decay = decay, .H = 4};
    const DeltaInputs in = make_inputs(c);
    DeltaInputs turned = rounded(in, DType::f64);
    const auto turn = [&](const Tensor& from, const Tensor& to, double factor) {
      for (std::int64_t i = 0; i < from.numel(); ++i) {
        to.data<double>()[i / c.d_v * c.d_v + (i + 1) % c.d_v] = factor * from.data<double>()[i];
      }
    };
    turn(in.v, turned.v, 3.0);
    turn(in.s0, turned.s0, 3.0);
    turn(in.d_o, turned.d_o, 1.0 / 3.0);
    turn(in.dst, turned.dst, 1.0 / 3.0);
    DeltaResult expected = evaluate(c, in);
    const DeltaResult got = evaluate(c, turned);
    for (const auto& [tensor, factor] : {std::pair{&expected.o, 3.0}, std::pair{&expected.st, 3.0},
                                         std::pair{&expected.dv, 1.0 / 3.0}, std::pair{&expected.ds0, 1.0 / 3.0}}) {
      const Tensor original = cast(*tensor, DType::f64);
      turn(original, *tensor, factor);
    }
    expect_close(got, expected, kFp64Chunked);
  }
}

}  // namespace
}  // namespace weft
