#include <algorithm>
#include <memory>

#include "autograd/cuda/cuda_devices.h"
#include "modules/families/gated_linear/gated_linear_cuda_cases.cuh"
#include "tests/support/gpu.h"

namespace weft::testing {
namespace {

struct Limits {
  double forward, backward, max;
};
constexpr Limits kF32{2e-6, 1e-5, 1e-4};
constexpr Limits kBf16{8e-3, 1.5e-2, 4e-2};

struct Gap {
  double rel_f = 0.0, rel_max = 0.0;
  std::size_t worst = 0;
};
// NaN counts as infinite. `least` is a size below which a reference counts as zero.
Gap gap(const std::vector<double>& x, const std::vector<double>& y, double least = 1e-30) {
  double difference = 0.0, norm = 0.0, largest = 0.0, top = least;
  Gap g;
  for (std::size_t e = 0; e < y.size(); ++e) {
    const double d = std::isnan(x[e]) ? INFINITY : std::abs(x[e] - y[e]);
    if (d > largest) largest = d, g.worst = e;
    difference += d * d, norm += y[e] * y[e], top = std::max(top, std::abs(y[e]));
  }
  const double floor = least * std::sqrt(static_cast<double>(std::max<std::size_t>(1, y.size())));
  g.rel_f = std::sqrt(difference) / std::max(std::sqrt(norm), floor);
  g.rel_max = largest / top;
  return g;
}

class GatedLinearKernelsGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_devices().empty()) GTEST_SKIP() << "no CUDA device";
  }
};

void expect_close(const CudaCase& c, const CudaTensors& x, const CudaTensors& y, const Limits& limits) {
  std::string line = c.str() + ":";
  bool good = true;
  // A decay's gradient that is structurally zero is measured against what it sums up.
  double products = 0.0;
  for (std::size_t e = 0; e < y.dq.size() && c.map == FeatureMap::identity; ++e) {
    products = std::max(products, std::abs(y.dq[e]));
  }
  const auto check = [&](const char* name, const std::vector<double>& a, const std::vector<double>& b, double rel_f,
                         double least = 1e-30) {
    if (a.size() != b.size()) {
      ADD_FAILURE() << c.str() << " " << name << ": " << a.size() << " elements, expected " << b.size();
      return;
    }
    const Gap g = gap(a, b, least);
    line += format_text(" {} {:.1e} {:.1e}", name, g.rel_f, g.rel_max);
    if (!(g.rel_f <= rel_f) || !(g.rel_max <= limits.max)) {
      good = false;
      line += format_text(" [{}: {:.4g} for {:.4g}]", g.worst, a[g.worst], b[g.worst]);
    }
  };
  check("o", x.o, y.o, limits.forward);
  check("st", x.st, y.st, limits.forward);
  check("dq", x.dq, y.dq, limits.backward);
  check("dk", x.dk, y.dk, limits.backward);
  check("dv", x.dv, y.dv, limits.backward);
  check("dg", x.dg, y.dg, limits.backward, std::max(1e-3 * products, 1e-30));
  check("ds0", x.ds0, y.ds0, limits.backward);
  EXPECT_TRUE(good) << line;
  if (good) std::printf("  %s\n", line.c_str());
}

void check_cases(std::vector<CudaCase> cases, DType dtype) {
  if (sanitize() != Sanitize::no) {
    // Every seventh: of each kind of decay some lengths alone and some packed.
    std::size_t at = 0;
    std::erase_if(cases, [&](const CudaCase&) { return at++ % 7 != 3; });
  }
  std::vector<CudaTensors> all(cases.size());
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < cases.size(); ++i) {
    all[i] = cuda_inputs(cases[i], dtype);
    cuda_reference(cases[i], all[i]);
  }
  for (std::size_t i = 0; i < cases.size(); ++i) {
    expect_close(cases[i], cuda_evaluate(cases[i], all[i], dtype), all[i], dtype == DType::bf16 ? kBf16 : kF32);
  }
}

const std::vector<std::int32_t> kLengths = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000};
constexpr DecayKind kKinds[] = {DecayKind::constant, DecayKind::scalar, DecayKind::vector};

// Every length alone (narrow heads), all of them packed, and heads that forget at once, slowly, and never.
std::vector<CudaCase> sweep(std::int64_t narrow, std::int64_t wide) {
  std::vector<CudaCase> cases;
  for (const DecayKind kind : kKinds) {
    for (const std::int32_t length : kLengths) {
      cases.push_back({.lengths = {length}, .kind = kind, .H = 1, .H_k = 1, .d_k = narrow, .d_v = narrow});
    }
    cases.push_back({.lengths = kLengths, .kind = kind, .d_k = wide, .d_v = narrow});
    cases.push_back({.lengths = kLengths, .kind = kind, .d_k = narrow, .d_v = wide, .initial_state = false});
    cases.push_back({.lengths = kLengths, .kind = kind, .d_k = wide, .d_v = wide, .final_gradient = false});
    cases.push_back({.lengths = {2300, 700},
                     .kind = kind,
                     .H = 3,
                     .H_k = 3,
                     .d_k = wide,
                     .d_v = wide,
                     .gates = {1000.0, 1e-6, 0.0}});
    cases.push_back({.lengths = {1100},
                     .kind = kind,
                     .H = 3,
                     .H_k = 3,
                     .d_k = wide,
                     .d_v = wide,
                     .gates = {5.0, 1.0, 0.02},
                     .initial_state = false,
                     .final_gradient = false});
    if (kind != DecayKind::vector) {
      cases.push_back({.lengths = {70, 600}, .kind = kind, .H = 4, .H_k = 2, .d_k = wide, .d_v = narrow});
    }
  }
  return cases;
}

TEST_F(GatedLinearKernelsGpu, IsTheRecurrenceInF32) {
  std::vector<CudaCase> cases = sweep(24, 40);
  cases.push_back({.lengths = {130, 33}, .d_k = 5, .d_v = 3});
  cases.push_back({.lengths = {130, 33}, .kind = DecayKind::scalar, .d_k = 65, .d_v = 129});
  cases.push_back({.lengths = {130, 33}, .kind = DecayKind::vector, .d_k = 129, .d_v = 65});
  check_cases(cases, DType::f32);
}

TEST_F(GatedLinearKernelsGpu, IsTheRecurrenceInBf16) {
  check_cases(sweep(64, 128), DType::bf16);
  cuda_whole_rows = true;
  check_cases(sweep(64, 128), DType::bf16);
  // Documents that are walked as rows, between others, with a last tile of few tokens.
  std::vector<CudaCase> cases;
  for (const DecayKind kind : {DecayKind::constant, DecayKind::scalar}) {
    cases.push_back({.lengths = {1025, 30, 1087, 1, 0, 1153}, .kind = kind, .d_v = 64, .gates = {0.02}});
    cases.push_back({.lengths = {1024, 1151, 7, 2049}, .kind = kind, .d_k = 64, .gates = {0.02}});
    // On both sides of the lengths that are left to the other kernel, alone and packed.
    for (const std::int32_t length : {192, 193, 1024}) {
      cases.push_back({.lengths = {length}, .kind = kind, .gates = {0.02}});
    }
    cases.push_back({.lengths = {0, 192, 193, 60, 1024, 0}, .kind = kind, .gates = {0.02}});
    cases.push_back({.lengths = {0, 100, 0, 90}, .kind = kind, .gates = {0.02}});
  }
  check_cases(cases, DType::bf16);
  cuda_whole_rows = false;
}

TEST_F(GatedLinearKernelsGpu, TakesAnyWidthInBf16) {
  std::vector<CudaCase> cases;
  for (const DecayKind kind : kKinds) {
    cases.push_back({.lengths = {70, 131}, .kind = kind, .d_k = 128, .d_v = 256});
    cases.push_back({.lengths = {70, 131}, .kind = kind, .d_k = 48, .d_v = 65});
    cases.push_back({.lengths = {70, 131}, .kind = kind, .d_k = 256, .d_v = 128});
  }
  check_cases(cases, DType::bf16);
}

TEST_F(GatedLinearKernelsGpu, MapsFeatures) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    std::vector<CudaCase> cases;
    for (const FeatureMap map : {FeatureMap::taylor, FeatureMap::softmax_pair, FeatureMap::elu_plus_one}) {
      cases.push_back({.lengths = {1, 131, 64}, .H = 2, .H_k = 2, .d_v = 33, .gates = {0.0}, .map = map, .D_x = 16});
      cases.push_back({.lengths = {131}, .H = 4, .H_k = 2, .d_v = 17, .gates = {0.05}, .map = map, .D_x = 12});
    }
    for (CudaCase& c : cases) c.d_k = feature_width(c.map, c.D_x);
    check_cases(cases, dtype);
  }
}

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}
void expect_same(const CudaTensors& a, const CudaTensors& b, const std::string& what) {
  EXPECT_TRUE(same(a.o, b.o)) << what << ": o";
  EXPECT_TRUE(same(a.st, b.st)) << what << ": st";
  EXPECT_TRUE(same(a.dq, b.dq)) << what << ": dq";
  EXPECT_TRUE(same(a.dk, b.dk)) << what << ": dk";
  EXPECT_TRUE(same(a.dv, b.dv)) << what << ": dv";
  EXPECT_TRUE(same(a.dg, b.dg)) << what << ": dg";
  EXPECT_TRUE(same(a.ds0, b.ds0)) << what << ": ds0";
}

// f(case, element type) on all paths.
template <class F>
void for_each_path(F&& f) {
  for (const DecayKind kind : kKinds) {
    for (const bool whole_rows : {false, true}) {
      cuda_whole_rows = whole_rows;
      f(CudaCase{.lengths = {600, 0, 65, 193, 192, 1300}, .kind = kind, .d_k = 128, .d_v = 64}, DType::bf16);
    }
    cuda_whole_rows = false;
    f(CudaCase{.lengths = {70, 0, 65, 130}, .kind = kind, .H = 2, .H_k = 2, .d_k = 40, .d_v = 24}, DType::f32);
  }
}

TEST_F(GatedLinearKernelsGpu, RepeatsItsBits) {
  for_each_path([](const CudaCase& c, DType dtype) {
    const CudaTensors in = cuda_inputs(c, dtype);
    const CudaTensors first = cuda_evaluate(c, in, dtype);
    CudaRun padded;
    padded.padding = 17;
    for (int i = 0; i < 3; ++i) expect_same(first, cuda_evaluate(c, in, dtype, padded), c.str());
  });
}

TEST_F(GatedLinearKernelsGpu, PackingChangesNoBit) {
  for_each_path([](const CudaCase& c, DType dtype) {
    const CudaTensors in = cuda_inputs(c, dtype);
    const CudaTensors packed = cuda_evaluate(c, in, dtype);
    CudaTensors alone;
    for (const std::int32_t length : c.lengths) {
      CudaCase one = c;
      one.lengths = {length};
      CudaTensors inputs = cuda_inputs(one, dtype);
      if (c.kind == DecayKind::constant) inputs.g = in.g;
      const CudaTensors out = cuda_evaluate(one, inputs, dtype);
      const auto append = [](std::vector<double>& to, const std::vector<double>& x) {
        to.insert(to.end(), x.begin(), x.end());
      };
      append(alone.o, out.o), append(alone.st, out.st), append(alone.dq, out.dq), append(alone.dk, out.dk);
      append(alone.dv, out.dv), append(alone.dg, out.dg), append(alone.ds0, out.ds0);
    }
    expect_same(packed, alone, c.str());
  });
}

TEST_F(GatedLinearKernelsGpu, LaterTokensChangeNoEarlierOutput) {
  for_each_path([](CudaCase c, DType dtype) {
    c.lengths = {c.lengths.back()};
    c.final_gradient = false;
    const CudaTensors in = cuda_inputs(c, dtype), other = cuda_inputs(c, dtype, 2);
    const CudaTensors before = cuda_evaluate(c, in, dtype);
    for (const std::int64_t t : {1, 63, 64, 100}) {
      CudaTensors changed = in;
      const auto replace = [&](std::vector<double>& x, const std::vector<double>& y) {
        const std::size_t row = x.size() / static_cast<std::size_t>(c.tokens());
        const auto from = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(t) * row);
        std::copy(y.begin() + from, y.end(), x.begin() + from);
      };
      replace(changed.q, other.q), replace(changed.k, other.k), replace(changed.v, other.v);
      if (c.kind != DecayKind::constant) replace(changed.g, other.g);
      for (std::size_t e = static_cast<std::size_t>(t) * in.d_o.size() / static_cast<std::size_t>(c.tokens());
           e < in.d_o.size(); ++e) {
        changed.d_o[e] = 0.0;
      }
      const CudaTensors after = cuda_evaluate(c, changed, dtype);
      const std::size_t row = before.o.size() / static_cast<std::size_t>(c.tokens());
      const std::size_t end = static_cast<std::size_t>(t) * row;
      EXPECT_EQ(std::memcmp(before.o.data(), after.o.data(), end * sizeof(double)), 0) << c.str() << " t " << t;
      // Gradients of tokens that nothing depends on are zero.
      for (const std::vector<double>* x : {&after.dq, &after.dk, &after.dv, &after.dg}) {
        if (x->empty()) continue;
        const std::size_t from = static_cast<std::size_t>(t) * x->size() / static_cast<std::size_t>(c.tokens());
        EXPECT_TRUE(
            std::all_of(x->begin() + static_cast<std::ptrdiff_t>(from), x->end(), [](double d) { return d == 0.0; }))
            << c.str() << " t " << t;
      }
    }
  });
}

TEST_F(GatedLinearKernelsGpu, AccumulatesAndLeavesOut) {
  for_each_path([](const CudaCase& c, DType dtype) {
    const CudaTensors in = cuda_inputs(c, dtype);
    const CudaTensors all = cuda_evaluate(c, in, dtype);
    CudaRun run;
    run.write = Write::accumulate;
    run.before = 2.0;
    const CudaTensors added = cuda_evaluate(c, in, dtype, run);
    const auto check = [&](const char* name, const std::vector<double>& sum, const std::vector<double>& x,
                           double unit) {
      ASSERT_EQ(sum.size(), x.size());
      for (std::size_t e = 0; e < x.size(); ++e) {
        if (std::abs(sum[e] - (x[e] + 2.0)) <= unit * (std::abs(x[e]) + 2.0)) continue;
        ADD_FAILURE() << c.str() << " " << name << "[" << e << "]: " << sum[e] << " for " << x[e] << " + 2";
        return;
      }
    };
    const double unit = dtype == DType::bf16 ? 1.0 / 128 : 1e-6;
    check("dq", added.dq, all.dq, unit), check("dk", added.dk, all.dk, unit), check("dv", added.dv, all.dv, unit);
    check("dg", added.dg, all.dg, 1e-6), check("ds0", added.ds0, all.ds0, 1e-6);
    using Want = bool CudaRun::*;
    for (const Want want :
         {&CudaRun::want_dq, &CudaRun::want_dk, &CudaRun::want_dv, &CudaRun::want_dg, &CudaRun::want_ds0}) {
      CudaRun without;
      without.*want = false;
      CudaTensors expected = all;
      if (!without.want_dq) expected.dq.clear();
      if (!without.want_dk) expected.dk.clear();
      if (!without.want_dv) expected.dv.clear();
      if (!without.want_dg) expected.dg.clear();
      if (!without.want_ds0) expected.ds0.clear();
      expect_same(cuda_evaluate(c, in, dtype, without), expected, c.str());
    }
  });
}

TEST_F(GatedLinearKernelsGpu, DecodesLikeTheRecurrence) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const DecayKind kind : kKinds) {
      CudaCase c{.lengths = {1, 1, 1},
                 .kind = kind,
                 .H = 4,
                 .H_k = kind == DecayKind::vector ? 4 : 2,
                 .d_k = 72,
                 .d_v = 65,
                 .final_gradient = false};
      CudaTensors t = cuda_inputs(c, dtype);
      cuda_reference(c, t);
      const auto upload = [&](const std::vector<double>& x, DType type) {
        auto buffer = std::make_unique<DeviceBuffer>(x.size() * 4);
        std::vector<float> f(x.begin(), x.end());
        std::vector<bfloat16> b;
        for (const float value : f) b.emplace_back(value);
        WEFT_CUDA_CALL(cudaMemcpy(buffer->raw(), type == DType::bf16 ? static_cast<const void*>(b.data()) : f.data(),
                                  x.size() * size_of(type), cudaMemcpyHostToDevice));
        return buffer;
      };
      const auto q = upload(t.q, dtype), k = upload(t.k, dtype), v = upload(t.v, dtype), g = upload(t.g, DType::f32),
                 state = upload(t.s0, DType::f32);
      DeviceBuffer o(t.v.size() * size_of(dtype));
      gated_linear_decode_cuda({.dtype = dtype,
                                .kind = kind,
                                .N = 3,
                                .H = 4,
                                .H_k = c.H_k,
                                .d_k = c.d_k,
                                .d_v = c.d_v,
                                .scale = c.scale,
                                .q = q->raw(),
                                .k = k->raw(),
                                .v = v->raw(),
                                .g = g->raw(),
                                .state = state->raw(),
                                .o = o.raw()},
                               Launch{Stream{{DeviceKind::cuda, 0}, nullptr}});
      std::vector<float> st(t.st.size()), out(t.o.size());
      std::vector<bfloat16> out_half(t.o.size());
      WEFT_CUDA_CALL(cudaMemcpy(st.data(), state->raw(), st.size() * 4, cudaMemcpyDeviceToHost));
      WEFT_CUDA_CALL(cudaMemcpy(dtype == DType::bf16 ? static_cast<void*>(out_half.data()) : out.data(), o.raw(),
                                t.o.size() * size_of(dtype), cudaMemcpyDeviceToHost));
      if (dtype == DType::bf16) {
        std::transform(out_half.begin(), out_half.end(), out.begin(), [](bfloat16 b) { return static_cast<float>(b); });
      }
      EXPECT_LE(gap({out.begin(), out.end()}, t.o).rel_f, dtype == DType::bf16 ? 8e-3 : 2e-6);
      EXPECT_LE(gap({st.begin(), st.end()}, t.st).rel_f, 2e-6);
    }
  }
}

}  // namespace
}  // namespace weft::testing
