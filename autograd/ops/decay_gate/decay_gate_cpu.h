// CPU kernels of decay_gate.h, templated on float/double.
#pragma once

#include <cmath>

#include "autograd/block_sum.h"
#include "autograd/carver.h"
#include "autograd/ops/activation/activation_cpu.h"
#include "autograd/ops/decay_gate/decay_gate.h"

namespace weft {

template <class T>
struct SoftplusDecay {
  T value(T rate, T z) const { return -rate * fast_softplus(z); }
  void gradient(T rate, T z, T dg, T& dz, T& da_log) const {
    dz = -rate * sigmoid(z) * dg;
    da_log = value(rate, z) * dg;
  }
};

template <class T>
struct BoundedDecay {
  T bound;
  T value(T rate, T z) const { return bound * sigmoid(rate * z); }
  void gradient(T rate, T z, T dg, T& dz, T& da_log) const {
    dz = rate * bound * SigmoidFunction{}.slope(rate * z) * dg;
    da_log = z * dz;
  }
};

template <class T, class F>
void dispatch_decay_gate(const DecayGateProblem& p, F&& f) {
  if (p.function == DecayGateFunction::softplus) return f(SoftplusDecay<T>{});
  f(BoundedDecay<T>{static_cast<T>(p.bound)});
}

template <class T>
struct DecayGateScratch {
  DecayGateScratch(const DecayGateProblem& p, bool backward, void* workspace) : blocks(row_blocks(p.T, p.H * p.W)) {
    const std::int64_t C = p.H * p.W;
    Carver<double> carver(static_cast<double*>(workspace));
    if (backward) {
      lines = carver.take(blocks.count * 2 * C);
      sums = carver.take(2 * C);
      rows = reinterpret_cast<T*>(carver.take(blocks.count * C));  // room for doubles whatever T is
    }
    rates = reinterpret_cast<T*>(carver.take(C));
    bytes = static_cast<std::size_t>(carver.used()) * sizeof(double);
  }

  RowBlocks blocks;
  // [count, 2, H, W] what the tokens of a block add to ddt_bias and, channel by channel, to da_log: in fp64, because
  // terms of both signs from a whole row of tokens end in one number.
  double* lines = nullptr;
  double* sums = nullptr;  // [2, H, W]
  T* rows = nullptr;       // [count, H, W] dz of one token
  T* rates;                // [H, W] rate a of each channel
  std::size_t bytes;
};

template <class T>
void decay_rates(const DecayGateProblem& p, T* rates) {
  const auto* a_log = static_cast<const T*>(p.a_log);
  for (std::int64_t h = 0; h < p.H; ++h) std::fill(rates + h * p.W, rates + (h + 1) * p.W, std::exp(a_log[h]));
}

template <class T>
void decay_gate_forward_cpu(const DecayGateForward& a, void* workspace) {
  const DecayGateScratch<T> scratch(a, false, workspace);
  decay_rates(a, scratch.rates);
  const std::int64_t C = a.H * a.W;
  const T* rates = scratch.rates;
  const auto* bias = static_cast<const T*>(a.dt_bias);
  dispatch_decay_gate<T>(a, [&](const auto function) {
    parallel_blocks(a.T, scratch.blocks.rows, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* f = static_cast<const T*>(a.f) + t * C;
        T* g = static_cast<T*>(a.g) + t * C;
#pragma omp simd
        for (std::int64_t c = 0; c < C; ++c) g[c] = function.value(rates[c], f[c] + bias[c]);
      }
    });
  });
}

template <class T>
void decay_gate_backward_cpu(const DecayGateBackward& a, void* workspace) {
  const DecayGateScratch<T> scratch(a, true, workspace);
  decay_rates(a, scratch.rates);
  const std::int64_t C = a.H * a.W;
  const T* rates = scratch.rates;
  const auto* bias = static_cast<const T*>(a.dt_bias);
  dispatch_decay_gate<T>(a, [&](const auto function) {
    parallel_blocks(a.T, scratch.blocks.rows, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
      double* bias_line = scratch.lines + b * 2 * C;
      double* rate_line = bias_line + C;
      T* dz = scratch.rows + b * C;
      std::fill(bias_line, bias_line + 2 * C, 0.0);
      for (std::int64_t t = begin; t < end; ++t) {
        const T* f = static_cast<const T*>(a.f) + t * C;
        const T* dg = static_cast<const T*>(a.dg) + t * C;
#pragma omp simd
        for (std::int64_t c = 0; c < C; ++c) {
          T da_log;
          function.gradient(rates[c], f[c] + bias[c], dg[c], dz[c], da_log);
          bias_line[c] += static_cast<double>(dz[c]);
          rate_line[c] += static_cast<double>(da_log);
        }
        if (a.df == nullptr) continue;
        T* df = static_cast<T*>(a.df) + t * C;
        for (std::int64_t c = 0; c < C; ++c) store(df[c], dz[c], a.write_df);
      }
    });
  });
  add_lines(scratch.lines, scratch.blocks.count, 2 * C, scratch.sums, Write::overwrite);
  if (a.ddt_bias != nullptr) {
    auto* ddt_bias = static_cast<T*>(a.ddt_bias);
    for (std::int64_t c = 0; c < C; ++c) store(ddt_bias[c], static_cast<T>(scratch.sums[c]), a.write_ddt_bias);
  }
  if (a.da_log == nullptr) return;
  for (std::int64_t h = 0; h < a.H; ++h) {
    double sum = 0.0;
    for (std::int64_t x = 0; x < a.W; ++x) sum += scratch.sums[C + h * a.W + x];
    store(static_cast<T*>(a.da_log)[h], static_cast<T>(sum), a.write_da_log);
  }
}

}  // namespace weft
