// Forward kernel of compression.h on the CPU:
//   a_i = W1^T vec(X_i) + (b1 + W1^T vec(pe))    y_i = mean(X_i) + W2^T silu(a_i)
#pragma once

#include "modules/families/block_sparse/compression_layers_cpu.h"

namespace weft {

template <class T>
class CompressionForwardCpu {
 public:
  explicit CompressionForwardCpu(const CompressionForward& a) : a_(a), in_(a.in), layers_(a.in) {}

  std::size_t workspace() const {
    Carver<T> carver(nullptr);
    layers_.carve(carver);
    return static_cast<std::size_t>(carver.used() + worker_count() * scratch()) * sizeof(T);
  }

  void run(T* workspace) const {
    if (in_.S == 0) return;
    Carver<T> carver(workspace);
    const auto packed = layers_.carve(carver);
    layers_.pack(packed);
    T* const scratch_begin = workspace + carver.used();
    layers_.for_tiles(
        [&](const CompressionDocument& d, std::int64_t first, std::int64_t count, std::int64_t h, std::int64_t worker) {
          T* y = scratch_begin + worker * scratch();
          T* a = y + kCompressionTile * layers_.D_pad;
          const T share = T(1) / static_cast<T>(layers_.l);
          for (std::int64_t i = 0; i < count; ++i) {
            T* row = y + i * layers_.D_pad;
            std::fill(row, row + layers_.D_pad, T(0));
            for (std::int64_t offset = 0; offset < layers_.l; ++offset) {
              const T* x = layers_.token(d, first + i, offset, h);
#pragma omp simd
              for (std::int64_t c = 0; c < in_.D; ++c) row[c] += x[c];
            }
            for (std::int64_t c = 0; c < in_.D; ++c) row[c] *= share;
          }
          if (!layers_.mean) add_learned(packed, d, first, count, h, a, y);
          T* out = static_cast<T*>(a_.y) + ((d.block + first) * in_.H + h) * in_.D;
          for (std::int64_t i = 0; i < count; ++i) std::copy_n(y + i * layers_.D_pad, in_.D, out + i * in_.H * in_.D);
        });
  }

 private:
  std::int64_t scratch() const {
    return kCompressionTile * (layers_.r_pad + layers_.D_pad);
  }

  void add_learned(const typename CompressionLayers<T>::Packed& packed, const CompressionDocument& d,
                   std::int64_t first, std::int64_t count, std::int64_t h, T* a, T* y) const {
    const std::int64_t r_pad = layers_.r_pad, D_pad = layers_.D_pad;
    layers_.hidden(packed, d, first, count, h, a, r_pad);
    if (!layers_.mlp) {
#pragma omp simd
      for (std::int64_t i = 0; i < count * r_pad; ++i) y[i] += a[i];
      return;
    }
#pragma omp simd
    for (std::int64_t i = 0; i < count * r_pad; ++i) a[i] = SiluFunction{}.value(a[i]);
    tile::product<tile::Left::rows>(count, D_pad, in_.r, a, r_pad, packed.w2 + h * in_.r * D_pad, D_pad, y, D_pad,
                                    true);
  }

  const CompressionForward& a_;
  const CompressionInputs& in_;
  CompressionLayers<T> layers_;
};

}  // namespace weft
