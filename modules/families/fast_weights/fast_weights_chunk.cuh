// One chunk of one head of fast_weights.h for a thread block, forward and backward, as fast_weights_cpu.h and
// fast_weights_backward_cpu.h have it. A chunk is worked through in tiles of rows, which are added up in order.
//
// P elements of one head's weights; a memory is W and Z, P floats each. T: element type of the tokens' tensors.
#pragma once

#include "modules/families/fast_weights/memory_network.cuh"
#include "modules/families/fast_weights/orthogonalise.cuh"
#include "modules/families/fast_weights/row_norms.cuh"
#include "modules/families/memory_span.h"
#include "modules/families/memory_walk.cuh"

namespace weft {

struct FastWeightArrays {
  MemoryNetworkArrays network;
  OrthogonaliserArrays orthogonal;
  BlockArray norms, dnorms;  // of the rows of the initial weights
  BlockArray normalised;     // N(W)
  BlockArray g;              // what a chunk adds to Z; then D, or the gradient of what it read
  BlockArray Z_next, unnormalised, d_inner;

  FastWeightArrays() = default;
  FastWeightArrays(const FastWeightProblem& p, bool backward, BlockLayout& layout) {
    const std::int64_t P = 3 * p.d_m * p.d_h, rows = std::min({MemoryNetworkArrays::kRows, p.config.chunk, p.T});
    for (BlockArray* x : {&norms, &dnorms}) *x = layout.take(2 * p.d_h + p.d_m);
    network = MemoryNetworkArrays(rows, p.d_m, p.d_h, backward, layout);
    for (BlockArray* x : {&normalised, &g}) *x = layout.take(P);
    if (backward) {
      for (BlockArray* x : {&Z_next, &unnormalised, &d_inner}) *x = layout.take(P);
    }
    if (p.config.orthogonalise) orthogonal = OrthogonaliserArrays(p.d_m, p.d_h, backward, layout);
  }
};

template <class T>
class FastWeightChunkCuda {
 public:
  using Element = T;
  using Problem = FastWeightProblem;
  using Forward = FastWeightForward;
  using Backward = FastWeightBackward;
  using Arrays = FastWeightArrays;

  static constexpr bool kStateFirst = false;
  static std::int64_t state_floats(const FastWeightProblem& p) { return 6 * p.d_m * p.d_h; }
  static std::int64_t kept_floats(const FastWeightProblem& p) { return state_floats(p); }
  static std::int64_t line_floats(const FastWeightProblem& p) { return 3 * p.d_m * p.d_h; }
  static Arrays arrays(const FastWeightProblem& p, bool backward, BlockLayout& layout) { return {p, backward, layout}; }
  static __host__ __device__ std::int64_t chunk(const FastWeightProblem& p) { return p.config.chunk; }
  static __host__ __device__ const std::int32_t* phases(const FastWeightProblem&) { return nullptr; }
  static __device__ T* output(const FastWeightForward& a) { return static_cast<T*>(a.out); }

  __device__ FastWeightChunkCuda(const FastWeightForward& a, const Arrays& arrays, const BlockMemory& memory)
      : FastWeightChunkCuda(a, a.final_weights != nullptr, arrays, memory) {}
  __device__ FastWeightChunkCuda(const FastWeightBackward& a, const Arrays& arrays, const BlockMemory& memory)
      : FastWeightChunkCuda(a, a.dfinal_weights != nullptr || a.dfinal_momentum != nullptr, arrays, memory) {}

  __device__ __noinline__ void begin(std::int64_t n, std::int64_t h, float* state) const {
    float *W = state, *Z = state + P_, *norms = m_[a_.norms];
    pack_initial(h, W);
    rows_.norms(W, norms);
    const std::int64_t at = (n * p_.H + h) * P_;
    const auto *weights = static_cast<const float*>(p_.initial_weights),
               *momentum = static_cast<const float*>(p_.initial_momentum);
    block_for(P_, [&](int i) {
      if (weights != nullptr) W[i] = weights[at + i];
      Z[i] = momentum == nullptr ? 0.0F : momentum[at + i];
    });
  }
  __device__ void between_chunks(float*) const {}
  __device__ void finish(const FastWeightForward& a, std::int64_t n, std::int64_t h, const float* state) const {
    if (a.final_weights == nullptr) return;
    const std::int64_t at = (n * p_.H + h) * P_;
    auto *weights = static_cast<float*>(a.final_weights), *momentum = static_cast<float*>(a.final_momentum);
    block_for(P_, [&](int i) {
      weights[at + i] = state[i];
      momentum[at + i] = state[P_ + i];
    });
  }

  __device__ __noinline__ void begin_gradient(const FastWeightBackward& a, std::int64_t n, std::int64_t h,
                                              float* dstate) const {
    const std::int64_t at = (n * p_.H + h) * P_;
    const auto *dW = static_cast<const float*>(a.dfinal_weights), *dZ = static_cast<const float*>(a.dfinal_momentum);
    float* dnorms = m_[a_.dnorms];
    block_for(P_, [&](int i) {
      dstate[i] = dW == nullptr ? 0.0F : dW[at + i];
      dstate[P_ + i] = dZ == nullptr ? 0.0F : dZ[at + i];
    });
    block_for(rows_.count(), [&](int r) { dnorms[r] = 0.0F; });
  }
  // What is left is the gradient of the weights at the start.
  __device__ __noinline__ void finish_gradient(const FastWeightBackward& a, std::int64_t n, std::int64_t h,
                                               const float* dstate, float* line) const {
    if (!p_.config.detach_norm && norm() != NormMode::none) {
      float *start = m_[a_.normalised], *norms = m_[a_.norms];
      pack_initial(h, start);
      rows_.norms(start, norms);
      rows_.add_norm_gradients(norms, m_[a_.dnorms], start, line);
    }
    if (p_.initial_weights == nullptr) return block_for(P_, [&](int i) { line[i] += dstate[i]; });
    const std::int64_t at = (n * p_.H + h) * P_;
    auto *dW = static_cast<float*>(a.dinitial_weights), *dZ = static_cast<float*>(a.dinitial_momentum);
    block_for(P_, [&](int i) {
      if (dW != nullptr) store_value(dW[at + i], dstate[i], a.write_dinitial_weights);
      if (dZ != nullptr) store_value(dZ[at + i], dstate[P_ + i], a.write_dinitial_momentum);
    });
  }

  __device__ __noinline__ void forward(const MemorySpan& s, float* state, T* out) const {
    const bool writes = written(s);
    float *W = state, *Z = state + P_, *g = m_[a_.g];
    prepare(W);
    for_each_tile(s, [&](const RowTileCuda<T>& tile, float beta) {
      if (out != nullptr) network_.read(tile, read_weights(W), out);
      if (writes) network_.descent(tile, inner_weights(W), beta, g);
    });
    if (!writes) return;
    const float mu = mean(s, p_.mu), keep = 1.0F - mean(s, p_.lambda);
    block_for(P_, [&](int i) { Z[i] = mu * Z[i] + g[i]; });
    const float* D = Z;
    if (p_.config.orthogonalise) {
      for_each_matrix([&](OrthogonaliserCuda& ns, int at) { ns.run(Z + at, g + at); });
      D = g;
    }
    const float* base = update_base(W);
    block_for(P_, [&](int i) { W[i] = keep * base[i] + D[i]; });
    if (norm() == NormMode::post) rows_.normalise(m_[a_.norms], W, W);
  }

  // From the gradients of what the chunk leaves behind to those of the memory before it, and to those of its rows.
  __device__ __noinline__ void backward(const FastWeightBackward& a, const MemorySpan& s, const float* state,
                                        float* dstate, float*) const {
    const float *W = state, *Z = state + P_;
    float *dW = dstate, *dZ = dstate + P_, *d_read = m_[a_.g], *d_inner = m_[a_.d_inner];
    const bool was_written = written(s);
    prepare(W);
    if (was_written) {
      update_gradients(a, s, W, Z, dW, dZ);
      for_each_tile(s, [&](const RowTileCuda<T>& tile, float beta) {
        network_.descent_gradients(a, tile, inner_weights(W), dZ, beta, d_inner);
      });
      const float mu = mean(s, p_.mu);
      block_for(P_, [&](int i) { dZ[i] *= mu; });
    } else {
      put_zeros(a, s);
    }
    for_each_tile(s, [&](const RowTileCuda<T>& tile, float beta) {
      network_.read_gradients(a, tile, read_weights(W), beta, d_read);
    });
    float *to = norm() == NormMode::pre ? d_read : dW, *norms = m_[a_.norms], *dnorms = m_[a_.dnorms];
    if (was_written) block_for(P_, [&](int i) { to[i] += d_inner[i]; });
    if (norm() == NormMode::pre || (norm() == NormMode::read_raw && was_written)) {
      rows_.normalise_gradients(norms, W, to, dnorms);
    }
    block_for(P_, [&](int i) { dW[i] += d_read[i]; });
  }

 private:
  __device__ FastWeightChunkCuda(const FastWeightProblem& p, bool final_state, const Arrays& arrays,
                                 const BlockMemory& memory)
      : p_(p),
        a_(arrays),
        m_(memory),
        P_(static_cast<int>(3 * p.d_m * p.d_h)),
        final_state_(final_state),
        rows_{static_cast<int>(p.d_m), static_cast<int>(p.d_h)},
        network_(p, arrays.network, memory) {}

  __device__ NormMode norm() const { return p_.config.norm; }
  // A last write that completes its document matters to the final state only.
  __device__ bool written(const MemorySpan& s) const { return s.complete && (final_state_ || !s.last); }
  __device__ const float* read_weights(const float* W) const { return norm() == NormMode::pre ? m_[a_.normalised] : W; }
  __device__ const float* inner_weights(const float* W) const {
    return norm() == NormMode::pre || norm() == NormMode::read_raw ? m_[a_.normalised] : W;
  }
  __device__ const float* update_base(const float* W) const {
    return norm() == NormMode::read_raw ? m_[a_.normalised] : W;
  }
  __device__ void prepare(const float* W) const {
    if (inner_weights(W) != W) rows_.normalise(m_[a_.norms], W, m_[a_.normalised]);
  }

  // W0, W2, W1
  __device__ void pack_initial(std::int64_t h, float* to) const {
    const int matrix = P_ / 3;
    int at = 0;
    for (const void* w : {p_.w0, p_.w2, p_.w1}) {
      const T* from = static_cast<const T*>(w) + h * matrix;
      block_for(matrix, [&](int i) { to[at + i] = to_float(from[i]); });
      at += matrix;
    }
  }

  // f(rows, whether sums over rows start with them: 0, or go on: 1)
  template <class F>
  __device__ void for_each_tile(const MemorySpan& s, F&& f) const {
    constexpr std::int64_t kRows = MemoryNetworkArrays::kRows;
    for (std::int64_t i = 0; i < s.n; i += kRows) {
      const std::int64_t n = s.n - i < kRows ? s.n - i : kRows;
      f(RowTileCuda<T>{static_cast<int>(n), (s.begin + i) * p_.H + s.head, static_cast<int>(p_.H)},
        i == 0 ? 0.0F : 1.0F);
    }
  }
  // f(orthogonaliser, offset in W) for the three matrices.
  template <class F>
  __device__ void for_each_matrix(F&& f) const {
    for (int i = 0; i < 3; ++i) {
      const int rows = i < 2 ? rows_.d_h : rows_.d_m, columns = i < 2 ? rows_.d_m : rows_.d_h;
      OrthogonaliserCuda ns(rows, columns, a_.orthogonal, m_);
      f(ns, i * P_ / 3);
    }
  }

  // Over the tokens of a chunk, x [T, H] or null: 0.
  __device__ float mean(const MemorySpan& s, const void* x) const {
    if (x == nullptr) return 0.0F;
    const float* from = static_cast<const float*>(x) + s.begin * p_.H + s.head;
    const double sum = block_sum(static_cast<int>(s.n), [&](int i) { return from[i * p_.H]; });
    return static_cast<float>(sum / static_cast<double>(s.n));
  }

  // dW becomes the gradient of what the update started from, dZ that of g; dmu and dlambda are stored.
  __device__ __noinline__ void update_gradients(const FastWeightBackward& a, const MemorySpan& s, const float* W,
                                                const float* Z, float* dW, float* dZ) const {
    const float mu = mean(s, p_.mu), keep = 1.0F - mean(s, p_.lambda);
    const bool post = norm() == NormMode::post, orthogonalise = p_.config.orthogonalise;
    float *Z_next = m_[a_.Z_next], *unnormalised = m_[a_.unnormalised];
    if (post || orthogonalise) {
      for_each_tile(
          s, [&](const RowTileCuda<T>& tile, float beta) { network_.descent(tile, inner_weights(W), beta, Z_next); });
      block_for(P_, [&](int i) { Z_next[i] += mu * Z[i]; });
    }
    if (post) {
      const float* D = Z_next;
      if (orthogonalise) {
        for_each_matrix([&](OrthogonaliserCuda& ns, int at) { ns.run(Z_next + at, unnormalised + at); });
        D = unnormalised;
      }
      block_for(P_, [&](int i) { unnormalised[i] = keep * W[i] + D[i]; });
      rows_.normalise_gradients(m_[a_.norms], unnormalised, dW, m_[a_.dnorms]);
    }
    const float* base = update_base(W);
    const double dlambda =
        -block_sum(P_, [&](int i) { return static_cast<double>(dW[i]) * static_cast<double>(base[i]); });
    if (orthogonalise) {
      for_each_matrix([&](OrthogonaliserCuda& ns, int at) {
        ns.run(Z_next + at, nullptr);
        ns.gradient(Z_next + at, dW + at, dZ + at);
      });
    } else {
      block_for(P_, [&](int i) { dZ[i] += dW[i]; });
    }
    const double dmu = block_sum(P_, [&](int i) { return static_cast<double>(dZ[i]) * static_cast<double>(Z[i]); });
    block_for(P_, [&](int i) { dW[i] *= keep; });
    put_each(s, a.dmu, static_cast<float>(dmu / static_cast<double>(s.n)), a.write_dmu);
    put_each(s, a.dlambda, static_cast<float>(dlambda / static_cast<double>(s.n)), a.write_dlambda);
  }

  // The same for all tokens of a chunk.
  __device__ void put_each(const MemorySpan& s, void* target, float value, Write write) const {
    if (target == nullptr) return;
    float* to = static_cast<float*>(target) + s.begin * p_.H + s.head;
    block_for(static_cast<int>(s.n), [&](int i) { store_value(to[i * p_.H], value, write); });
  }
  // Gradients of rows that are not written.
  __device__ __noinline__ void put_zeros(const FastWeightBackward& a, const MemorySpan& s) const {
    put_each(s, a.write_dmu == Write::overwrite ? a.dmu : nullptr, 0.0F, a.write_dmu);
    put_each(s, a.write_dlambda == Write::overwrite ? a.dlambda : nullptr, 0.0F, a.write_dlambda);
    const auto rows = [&]<class U>(U* to, int width) {
      if (to == nullptr) return;
      const std::int64_t token = s.begin * p_.H + s.head;
      block_elements(static_cast<int>(s.n), width,
                     [&](int i, int c) { to[(token + i * p_.H) * width + c] = from_float<U>(0.0F); });
    };
    rows(a.write_dk == Write::overwrite ? static_cast<T*>(a.dk) : nullptr, rows_.d_m);
    rows(a.write_dv == Write::overwrite ? static_cast<T*>(a.dv) : nullptr, rows_.d_m);
    rows(a.write_deta == Write::overwrite ? static_cast<float*>(a.deta) : nullptr, 3);
  }

  const FastWeightProblem& p_;
  const Arrays& a_;
  const BlockMemory& m_;
  int P_;
  bool final_state_;
  WeightRowsCuda rows_;
  MemoryNetworkCuda<T> network_;
};

}  // namespace weft
