// CUDA kernels of decay_gate.h. C = H W channels of a token.
#include "autograd/cuda/functions.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/decay_gate/decay_gate.h"

namespace weft {
namespace {

struct SoftplusDecay {
  __device__ float value(float rate, float z) const { return -rate * device_softplus(z); }
  __device__ void gradient(float rate, float z, float dg, float& dz, float& da_log) const {
    dz = -rate * device_sigmoid(z) * dg;
    da_log = value(rate, z) * dg;
  }
};

struct BoundedDecay {
  float bound;
  __device__ float value(float rate, float z) const { return bound * device_sigmoid(rate * z); }
  __device__ void gradient(float rate, float z, float dg, float& dz, float& da_log) const {
    dz = rate * bound * DeviceSigmoid{}.slope(rate * z) * dg;
    da_log = z * dz;
  }
};

template <class F>
void dispatch_decay_function(const DecayGateProblem& p, F&& f) {
  if (p.function == DecayGateFunction::softplus) return f(SoftplusDecay{});
  f(BoundedDecay{static_cast<float>(p.bound)});
}

template <class T>
struct Channels {
  const T* f;
  const float* a_log;
  const float* dt_bias;
  std::int64_t C;
  Divider width;  // W

  explicit Channels(const DecayGateProblem& p)
      : f(static_cast<const T*>(p.f)),
        a_log(static_cast<const float*>(p.a_log)),
        dt_bias(static_cast<const float*>(p.dt_bias)),
        C(p.H * p.W),
        width(static_cast<std::uint32_t>(p.W)) {}

  // Rates, then biases.
  template <int kN>
  __device__ ColumnPacks<kN, 2> prepare(std::int64_t c) const {
    ColumnPacks<kN, 2> packs;
    load_pack(dt_bias + c, packs.data[1]);
#pragma unroll
    for (int i = 0; i < kN; ++i) packs.data[0][i] = expf(a_log[width.quotient(static_cast<std::uint32_t>(c) + i)]);
    return packs;
  }
};

template <class T, class Function>
struct Decay {
  Channels<T> channels;
  float* g;
  Function function;

  template <int kN>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    const ColumnPacks<kN, 2> packs = channels.template prepare<kN>(c);
    float f[kN];
    load_pack(channels.f + t * channels.C + c, f);
#pragma unroll
    for (int i = 0; i < kN; ++i) f[i] = function.value(packs.data[0][i], f[i] + packs.data[1][i]);
    store_pack(g + t * channels.C + c, f);
  }
};

// Sums over tokens of dz, and of what channels give to da_log; df on the way. In fp64 from groups of a few tokens on,
// whose sums in fp32 round about as much as their terms did, because terms of both signs from a whole row of tokens end
// in one number.
template <class T, class Function>
struct DecayGradients {
  Channels<T> channels;
  const float* dg;
  T* df;
  Write write_df;
  Function function;

  template <int kN>
  __device__ ColumnPacks<kN, 2> prepare(std::int64_t c) const {
    return channels.template prepare<kN>(c);
  }

  static constexpr int kAhead = 4, kResidentBlocks = 3;
  template <int kN>
  struct Held {
    HeldPack<T, kN> f;
    HeldPack<float, kN> dg;
  };
  template <int kN>
  __device__ Held<kN> load(std::int64_t t, std::int64_t c) const {
    return {HeldPack<T, kN>::load(channels.f + t * channels.C + c), HeldPack<float, kN>::load(dg + t * channels.C + c)};
  }
  template <int kN>
  __device__ void add(const ColumnPacks<kN, 2>& packs, const Held<kN>& held, std::int64_t t, std::int64_t c,
                      float (&sums)[2][kN]) const {
    float dz[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      float da_log;
      function.gradient(packs.data[0][i], held.f[i] + packs.data[1][i], held.dg[i], dz[i], da_log);
      // Not contracted with the products before it: every use of the kernel gives the same bits.
      sums[0][i] = __fadd_rn(sums[0][i], dz[i]);
      sums[1][i] = __fadd_rn(sums[1][i], da_log);
    }
    if (df != nullptr) store_pack(df + t * channels.C + c, dz, write_df);
  }
};

// lines [count, 2, C]: the first C / 32 blocks add up ddt_bias, the others the heads' da_log. A null one is not wanted.
template <class Sum>
__global__ void __launch_bounds__(1024) add_gradients_kernel(const Sum* lines, std::int64_t count, std::int64_t C,
                                                             std::int64_t W, PutTotal ddt_bias, PutTotal da_log) {
  wait_for_earlier_kernels();
  const std::int64_t column_blocks = (C + 31) / 32;
  if (blockIdx.x < column_blocks) {
    if (ddt_bias.target != nullptr) detail::add_columns(lines, count, 2 * C, C, blockIdx.x, ddt_bias);
  } else if (da_log.target != nullptr) {
    detail::add_group(lines + C, count, 2 * C, W, blockIdx.x - column_blocks, da_log);
  }
}

constexpr int kPack = 8;          // forward
constexpr int kBackwardPack = 4;  // sums and rows on their way stay in registers

// Element type of the gate inputs: f32 or bf16.
template <class T, int kN>
bool fits(const DecayGateProblem& p) {
  return packs_fit<kN>(static_cast<const T*>(p.f), p.H * p.W) &&
         packs_fit<kN>(static_cast<const float*>(p.dt_bias), p.H * p.W);
}

}  // namespace

void decay_gate_forward_cuda(const DecayGateForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "decay_gate", [&]<class T>() {
    dispatch_decay_function(a, [&]<class Function>(Function function) {
      auto* g = static_cast<float*>(a.g);
      map_rows<kPack>(launch, a.T, a.H * a.W, fits<T, kPack>(a) && packs_fit<kPack>(g, a.H * a.W),
                      Decay<T, Function>{Channels<T>(a), g, function});
    });
  });
}

std::size_t decay_gate_backward_cuda_workspace(const DecayGateBackward& a) {
  return column_sums_workspace<double>(a.T, a.H * a.W, 2);
}

void decay_gate_backward_cuda(const DecayGateBackward& a, const Launch& launch) {
  const std::int64_t C = a.H * a.W, count = column_blocks<double>(a.T, C).count;
  auto* lines = static_cast<double*>(launch.workspace);
  dispatch_cuda(a.dtype, "decay_gate", [&]<class T>() {
    dispatch_decay_function(a, [&]<class Function>(Function function) {
      const DecayGradients<T, Function> gradients{.channels = Channels<T>(a),
                                                  .dg = static_cast<const float*>(a.dg),
                                                  .df = static_cast<T*>(a.df),
                                                  .write_df = a.write_df,
                                                  .function = function};
      if (fits<T, kBackwardPack>(a) && packs_fit<kBackwardPack>(gradients.dg, C) &&
          packs_fit<kBackwardPack>(gradients.df, C)) {
        column_sums<kBackwardPack, 2>(launch, a.T, C, lines, gradients);
      } else {
        column_sums<1, 2>(launch, a.T, C, lines, gradients);
      }
    });
  });
  if (C == 0) return;
  launch_early(add_gradients_kernel<double>, static_cast<unsigned>((C + 31) / 32 + a.H), 1024,
               cuda_stream(launch.stream), lines, count, C, a.W,
               PutTotal{static_cast<float*>(a.ddt_bias), a.write_ddt_bias},
               PutTotal{static_cast<float*>(a.da_log), a.write_da_log});
}

}  // namespace weft
