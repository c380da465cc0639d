// Cases for the CUDA kernels of gated_linear.h: inputs as the kernels see them, the fp64 oracle on the same rounded
// numbers, and one run of forward and backward in hostile memory. For tests.
#pragma once

#include <cmath>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <random>
#include <string>
#include <vector>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/ops/feature_map/feature_map_cpu.h"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "modules/families/gated_linear/gated_linear_reference.h"

namespace weft::testing {

// Device memory that starts as NaN bytes.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    WEFT_CUDA_CALL(cudaMalloc(&data_, bytes + 256));
    WEFT_CUDA_CALL(cudaMemset(data_, 0xff, bytes + 256));
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  void* raw() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

struct CudaCase {
  std::vector<std::int32_t> lengths;
  DecayKind kind = DecayKind::constant;
  std::int64_t H = 2, H_k = 2, d_k = 128, d_v = 128;
  std::vector<double> gates = {0.1};  // mean sizes of log decays, one for each head in turn
  bool initial_state = true;
  bool final_gradient = true;
  double scale = 0.5;
  FeatureMap map = FeatureMap::identity;
  std::int64_t D_x = 0;

  std::int64_t tokens() const {
    std::int64_t total = 0;
    for (const std::int32_t length : lengths) total += length;
    return total;
  }
  std::int64_t documents() const { return static_cast<std::int64_t>(lengths.size()); }
  std::int64_t key_width() const { return map == FeatureMap::identity ? d_k : D_x; }
  std::int64_t states() const { return documents() * H * d_k * d_v; }
  std::int64_t decays() const {
    return kind == DecayKind::constant ? H : tokens() * H * (kind == DecayKind::scalar ? 1 : d_k);
  }
  std::string str() const {
    const std::string shape = lengths.size() > 3 ? "packed" : "";
    std::string text =
        format_text("kind {} T {} N {} H {}/{} d {}x{} map {} g {} S0 {} dST {}", static_cast<int>(kind), tokens(),
                    documents(), H, H_k, d_k, d_v, static_cast<int>(map), gates[0], initial_state, final_gradient);
    return text + shape;
  }
};

// All tensors of a case as doubles; gradients and outputs are in the same struct.
struct CudaTensors {
  std::vector<double> q, k, v, g, s0, d_o, dst;
  std::vector<double> o, st, dq, dk, dv, dg, ds0;
};

inline double rounded(double x, DType dtype) {
  return dtype == DType::bf16 ? static_cast<float>(bfloat16(x)) : static_cast<float>(x);
}

// The values of a token depend on its place in its document and on the document's length, not on the packing.
inline CudaTensors cuda_inputs(const CudaCase& c, DType dtype, std::uint64_t seed = 1) {
  CudaTensors t;
  const auto fill = [&](std::vector<double>& to, std::int64_t per_token, std::uint64_t salt, DType type, double size) {
    for (const std::int32_t length : c.lengths) {
      std::mt19937_64 random(seed * 1000003 + static_cast<std::uint64_t>(length) * 101 + salt);
      std::normal_distribution<double> normal(0.0, size);
      for (std::int64_t i = 0; i < length * per_token; ++i) to.push_back(rounded(normal(random), type));
    }
  };
  const double key_size = c.map == FeatureMap::identity ? 1.0 / std::sqrt(static_cast<double>(c.d_k)) : 0.5;
  fill(t.q, c.H_k * c.key_width(), 1, dtype, 1.0);
  fill(t.k, c.H_k * c.key_width(), 2, dtype, key_size);
  fill(t.v, c.H * c.d_v, 3, dtype, 1.0);
  fill(t.d_o, c.H * c.d_v, 4, dtype, 1.0);
  const auto gate = [&](std::int64_t h) { return c.gates[static_cast<std::size_t>(h) % c.gates.size()]; };
  if (c.kind == DecayKind::constant) {
    for (std::int64_t h = 0; h < c.H; ++h) t.g.push_back(static_cast<float>(-gate(h)));
  } else {
    const std::int64_t channels = c.kind == DecayKind::scalar ? 1 : c.d_k;
    fill(t.g, c.H * channels, 5, DType::f32, 1.0);
    for (std::size_t e = 0; e < t.g.size(); ++e) {
      const std::int64_t h = static_cast<std::int64_t>(e) / channels % c.H;
      t.g[e] = static_cast<float>(-gate(h) * std::exp(t.g[e] - 0.5));
    }
  }
  const auto states = [&](std::vector<double>& to, std::uint64_t salt) {
    for (const std::int32_t length : c.lengths) {
      std::mt19937_64 random(seed * 7919 + static_cast<std::uint64_t>(length) * 31 + salt);
      std::normal_distribution<double> normal(0.0, 0.5);
      for (std::int64_t i = 0; i < c.H * c.d_k * c.d_v; ++i) to.push_back(static_cast<float>(normal(random)));
    }
  };
  if (c.initial_state) states(t.s0, 6);
  if (c.final_gradient) states(t.dst, 7);
  return t;
}

// The oracle, with keys spread over the heads that share them and features made of what is stored.
inline void cuda_reference(const CudaCase& c, CudaTensors& t) {
  const std::int64_t T = c.tokens(), set = c.H / c.H_k, width = c.key_width();
  const auto spread = [&](const std::vector<double>& x, std::vector<double>& features) {
    features.resize(static_cast<std::size_t>(T * c.H_k * c.d_k));
    feature_rows(c.map, T * c.H_k, width, x.data(), width, features.data());
    std::vector<double> all(static_cast<std::size_t>(T * c.H * c.d_k));
    for (std::int64_t row = 0; row < T * c.H; ++row) {
      const auto from = features.begin() + (row / c.H * c.H_k + row % c.H / set) * c.d_k;
      std::copy(from, from + c.d_k, all.begin() + row * c.d_k);
    }
    return all;
  };
  std::vector<double> q_features, k_features;
  const std::vector<double> q = spread(t.q, q_features), k = spread(t.k, k_features);
  std::vector<std::int32_t> cu{0};
  for (const std::int32_t length : c.lengths) cu.push_back(cu.back() + length);
  const GatedLinearProblem problem{.dtype = DType::f64,
                                   .kind = c.kind,
                                   .schedule = ChunkSchedule::automatic,
                                   .T = T,
                                   .N = c.documents(),
                                   .H = c.H,
                                   .d_k = c.d_k,
                                   .d_v = c.d_v,
                                   .C = 0,
                                   .scale = c.scale,
                                   .q = q.data(),
                                   .k = k.data(),
                                   .v = t.v.data(),
                                   .g = t.g.data(),
                                   .s0 = c.initial_state ? t.s0.data() : nullptr,
                                   .cu_seqlens = cu.data(),
                                   .chunks = nullptr,
                                   .document_offset = nullptr,
                                   .chunk_count = 0};
  GatedLinearForward forward{problem};
  t.o.resize(t.v.size());
  t.st.resize(static_cast<std::size_t>(c.states()));
  forward.o = t.o.data();
  forward.st = t.st.data();
  gated_linear_forward_reference(forward);
  GatedLinearBackward backward{problem};
  backward.d_o = t.d_o.data();
  backward.dst = c.final_gradient ? t.dst.data() : nullptr;
  std::vector<double> dq(q.size()), dk(k.size());
  t.dv.resize(t.v.size());
  if (c.kind != DecayKind::constant) t.dg.resize(t.g.size());
  if (c.initial_state) t.ds0.resize(t.s0.size());
  backward.dq = dq.data();
  backward.dk = dk.data();
  backward.dv = t.dv.data();
  backward.dg = t.dg.data();
  backward.ds0 = c.initial_state ? t.ds0.data() : nullptr;
  gated_linear_backward_reference(backward);
  const auto gather = [&](const std::vector<double>& all, const std::vector<double>& x,
                          const std::vector<double>& features, std::vector<double>& to) {
    std::vector<double> sums(features.size(), 0.0);
    for (std::int64_t row = 0; row < T * c.H; ++row) {
      for (std::int64_t i = 0; i < c.d_k; ++i) {
        sums[static_cast<std::size_t>((row / c.H * c.H_k + row % c.H / set) * c.d_k + i)] +=
            all[static_cast<std::size_t>(row * c.d_k + i)];
      }
    }
    to.resize(x.size());
    feature_rows_backward(c.map, T * c.H_k, width, x.data(), width, features.data(), sums.data(), to.data(),
                          Write::overwrite);
  };
  gather(dq, t.q, q_features, t.dq);
  gather(dk, t.k, k_features, t.dk);
}

// Whether runs use the kernels that walk whole rows where they serve a problem, however few heads it has.
inline bool cuda_whole_rows = false;

// What a run may leave out or do otherwise.
struct CudaRun {
  bool want_dq = true, want_dk = true, want_dv = true, want_dg = true, want_ds0 = true;
  Write write = Write::overwrite;
  double before = 0.0;       // what gradients hold before a run that accumulates
  std::int64_t padding = 3;  // entries at the end of the chunk table that do nothing
};

// Forward and backward on the device; inputs lie before NaNs, outputs and workspaces start as NaNs.
inline CudaTensors cuda_evaluate(const CudaCase& c, const CudaTensors& in, DType dtype, const CudaRun& run = {}) {
  std::vector<std::unique_ptr<DeviceBuffer>> keep;
  const auto room = [&](std::size_t elements, DType type) {
    keep.push_back(std::make_unique<DeviceBuffer>(elements * size_of(type) + 64 * 256 * size_of(type)));
    return keep.back()->raw();
  };
  const auto upload = [&](const std::vector<double>& x, DType type) {
    void* to = room(x.size(), type);
    std::vector<std::byte> bytes(x.size() * size_of(type));
    for (std::size_t e = 0; e < x.size(); ++e) {
      const auto f = static_cast<float>(x[e]);
      const bfloat16 b(f);
      if (type == DType::bf16) {
        std::memcpy(bytes.data() + 2 * e, &b, 2);
      } else {
        std::memcpy(bytes.data() + 4 * e, &f, 4);
      }
    }
    if (!bytes.empty()) WEFT_CUDA_CALL(cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    return to;
  };
  const auto download = [&](const void* from, std::size_t elements, DType type) {
    std::vector<std::byte> bytes(elements * size_of(type) + 256);
    WEFT_CUDA_CALL(cudaMemcpy(bytes.data(), from, bytes.size(), cudaMemcpyDeviceToHost));
    for (std::size_t e = elements * size_of(type); e < bytes.size(); ++e) {
      if (bytes[e] != std::byte{0xff}) {
        ADD_FAILURE() << "wrote past the end of an output";
        break;
      }
    }
    std::vector<double> x(elements);
    for (std::size_t e = 0; e < elements; ++e) {
      float f = 0.0f;
      bfloat16 b;
      if (type == DType::bf16) {
        std::memcpy(&b, bytes.data() + 2 * e, 2);
        f = static_cast<float>(b);
      } else {
        std::memcpy(&f, bytes.data() + 4 * e, 4);
      }
      x[e] = f;
    }
    return x;
  };
  const auto upload_bytes = [&](const void* from, std::size_t bytes) {
    keep.push_back(std::make_unique<DeviceBuffer>(bytes));
    if (bytes > 0) WEFT_CUDA_CALL(cudaMemcpy(keep.back()->raw(), from, bytes, cudaMemcpyHostToDevice));
    return keep.back()->raw();
  };

  GatedLinearProblem problem{.dtype = dtype,
                             .kind = c.kind,
                             .schedule = ChunkSchedule::automatic,
                             .T = c.tokens(),
                             .N = c.documents(),
                             .H = c.H,
                             .d_k = c.d_k,
                             .d_v = c.d_v,
                             .C = 0,
                             .scale = c.scale,
                             .q = upload(in.q, dtype),
                             .k = upload(in.k, dtype),
                             .v = upload(in.v, dtype),
                             .g = upload(in.g, DType::f32),
                             .s0 = c.initial_state ? upload(in.s0, DType::f32) : nullptr,
                             .cu_seqlens = nullptr,
                             .chunks = nullptr,
                             .document_offset = nullptr,
                             .chunk_count = 0,
                             .H_k = c.H_k,
                             .map = c.map,
                             .D_x = c.D_x};
  problem.C = gated_linear_chunk_cuda(problem);
  std::vector<std::int32_t> cu{0}, offset{0};
  std::vector<Chunk> chunks;
  for (std::size_t n = 0; n < c.lengths.size(); ++n) {
    const std::int32_t begin = cu.back(), end = begin + c.lengths[n];
    std::int32_t index = 0;
    for (std::int32_t t = begin; t < end; t += static_cast<std::int32_t>(problem.C)) {
      chunks.push_back(
          {static_cast<std::int32_t>(n), index++, t, std::min(end, t + static_cast<std::int32_t>(problem.C))});
    }
    cu.push_back(end);
    offset.push_back(static_cast<std::int32_t>(chunks.size()));
  }
  for (std::int64_t i = 0; i < run.padding; ++i) chunks.push_back({0, 0, 0, 0});
  problem.cu_seqlens = static_cast<const std::int32_t*>(upload_bytes(cu.data(), cu.size() * 4));
  problem.document_offset = static_cast<const std::int32_t*>(upload_bytes(offset.data(), offset.size() * 4));
  problem.chunks = static_cast<const Chunk*>(upload_bytes(chunks.data(), chunks.size() * sizeof(Chunk)));
  problem.chunk_count = static_cast<std::int64_t>(chunks.size());

  const auto launch = [&](std::size_t bytes) {
    keep.push_back(std::make_unique<DeviceBuffer>(bytes));
    return Launch{Stream{{DeviceKind::cuda, 0}, nullptr}, keep.back()->raw(), bytes};
  };
  CudaTensors out;
  GatedLinearForward forward{problem};
  forward.o = room(in.v.size(), dtype);
  forward.st = room(static_cast<std::size_t>(c.states()), DType::f32);
  const bool whole_rows = cuda_whole_rows && c.kind != DecayKind::vector && row::serves(problem);
  if (whole_rows) {
    row::forward(forward, launch(row::forward_workspace(forward)));
  } else {
    gated_linear_forward_cuda(forward, launch(gated_linear_forward_cuda_workspace(forward)));
  }
  WEFT_CUDA_CALL(cudaDeviceSynchronize());
  out.o = download(forward.o, in.v.size(), dtype);
  out.st = download(forward.st, static_cast<std::size_t>(c.states()), DType::f32);

  GatedLinearBackward backward{problem};
  backward.d_o = upload(in.d_o, dtype);
  backward.dst = c.final_gradient ? upload(in.dst, DType::f32) : nullptr;
  const auto target = [&](bool wanted, std::size_t elements, DType type) -> void* {
    if (!wanted) return nullptr;
    void* to = room(elements, type);
    if (run.write == Write::accumulate) {
      const std::vector<double> before(elements, run.before);
      keep.push_back(nullptr);
      void* filled = upload(before, type);
      if (elements > 0) {
        WEFT_CUDA_CALL(cudaMemcpy(to, filled, elements * size_of(type), cudaMemcpyDeviceToDevice));
      }
    }
    return to;
  };
  backward.dq = target(run.want_dq, in.q.size(), dtype);
  backward.dk = target(run.want_dk, in.k.size(), dtype);
  backward.dv = target(run.want_dv, in.v.size(), dtype);
  backward.dg = target(run.want_dg && c.kind != DecayKind::constant, in.g.size(), DType::f32);
  backward.ds0 = target(run.want_ds0 && c.initial_state, in.s0.size(), DType::f32);
  backward.write_dq = backward.write_dk = backward.write_dv = backward.write_dg = backward.write_ds0 = run.write;
  if (whole_rows) {
    row::backward(backward, launch(row::backward_workspace(backward)));
  } else {
    gated_linear_backward_cuda(backward, launch(gated_linear_backward_cuda_workspace(backward)));
  }
  WEFT_CUDA_CALL(cudaDeviceSynchronize());
  if (backward.dq != nullptr) out.dq = download(backward.dq, in.q.size(), dtype);
  if (backward.dk != nullptr) out.dk = download(backward.dk, in.k.size(), dtype);
  if (backward.dv != nullptr) out.dv = download(backward.dv, in.v.size(), dtype);
  if (backward.dg != nullptr) out.dg = download(backward.dg, in.g.size(), DType::f32);
  if (backward.ds0 != nullptr) out.ds0 = download(backward.ds0, in.s0.size(), DType::f32);
  return out;
}

}  // namespace weft::testing
