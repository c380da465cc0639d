// Backward kernel of compression.h on the CPU:
//   dW2 = sum_i silu(a_i) dy_i^T    da_i = (W2 dy_i) silu'(a_i)    db1 = sum_i da_i    dpe = W1 db1
//   dW1 = sum_i vec(X_i) da_i^T + vec(pe) db1^T
//   dx_u = sum over the blocks i that hold token u of (W1 da_i)[u - i delta] + dy_i / l
// Sums run in the order of blocks; nothing depends on the number of threads.
#pragma once

#include "modules/families/block_sparse/compression_layers_cpu.h"

namespace weft {

template <class T>
class CompressionBackwardCpu {
 public:
  explicit CompressionBackwardCpu(const CompressionBackward& a) : a_(a), in_(a.in), layers_(a.in) {}

  std::size_t workspace() const {
    Carver<T> carver(nullptr);
    carve(carver);
    return static_cast<std::size_t>(carver.used() + worker_count() * scratch()) * sizeof(T);
  }

  void run(T* workspace) const {
    Carver<T> carver(workspace);
    const Arrays w = carve(carver);
    T* const scratch_begin = workspace + carver.used();
    if (!layers_.mean) {
      layers_.pack(w.packed);
      pack_transposed(w);
      layers_.for_tiles([&](const CompressionDocument& d, std::int64_t first, std::int64_t count, std::int64_t h,
                            std::int64_t) { hidden_gradients(w, d, first, count, h); });
      sum_hidden(w);
      weight_gradients(w, scratch_begin);
    }
    if (a_.dx != nullptr) token_gradients(w, scratch_begin);
  }

 private:
  struct Arrays {
    typename CompressionLayers<T>::Packed packed;
    T* w1_transposed;  // [H][l][r][D_pad]
    T* w2_transposed;  // [H][D][r_pad]
    T* dy;             // [S, H, D_pad]
    T *z, *da;         // [S, H, r_pad]: silu(a), and the gradient of a
    T* da_sum;         // [H][r_pad]
  };

  Arrays carve(Carver<T>& carver) const {
    const std::int64_t r_pad = layers_.r_pad, D_pad = layers_.D_pad, rows = in_.S * in_.H;
    Arrays w;
    w.packed = layers_.carve(carver);
    w.w1_transposed = carver.take(in_.H * layers_.l * in_.r * D_pad);
    w.w2_transposed = carver.take(layers_.mlp ? in_.H * in_.D * r_pad : 0);
    w.dy = carver.take(layers_.mean ? 0 : rows * D_pad);
    w.z = carver.take(layers_.mlp ? rows * r_pad : 0);
    w.da = carver.take(rows * r_pad);
    w.da_sum = carver.take(in_.H * r_pad);
    return w;
  }
  // Room for one block of dW1, of dW2, or for gradients of the tokens at one offset.
  std::int64_t scratch() const {
    return std::max({in_.D * layers_.r_pad, in_.r * layers_.D_pad, kCompressionTile * layers_.D_pad});
  }

  void pack_transposed(const Arrays& w) const {
    const auto* w1 = static_cast<const T*>(in_.w1);
    const auto* w2 = static_cast<const T*>(in_.w2);
    const std::int64_t D = in_.D, r = in_.r;
    const auto transpose = [](const T* from, std::int64_t m, std::int64_t n, T* to, std::int64_t ld) {
      for (std::int64_t j = 0; j < n; ++j) {
        for (std::int64_t i = 0; i < m; ++i) to[j * ld + i] = from[i * n + j];
        std::fill(to + j * ld + m, to + (j + 1) * ld, T(0));
      }
    };
    parallel_for(in_.H * layers_.l, Schedule::fixed, [&](std::int64_t i) {
      transpose(w1 + i * D * r, D, r, w.w1_transposed + i * r * layers_.D_pad, layers_.D_pad);
    });
    for (std::int64_t h = 0; layers_.mlp && h < in_.H; ++h) {
      transpose(w2 + h * r * D, r, D, w.w2_transposed + h * D * layers_.r_pad, layers_.r_pad);
    }
  }

  // z and da of some blocks, and their dy padded.
  void hidden_gradients(const Arrays& w, const CompressionDocument& d, std::int64_t first, std::int64_t count,
                        std::int64_t h) const {
    const std::int64_t r_pad = layers_.r_pad, D_pad = layers_.D_pad, H = in_.H;
    const std::int64_t row = (d.block + first) * H + h;  // of the first block; H apart
    T* dy = w.dy + row * D_pad;
    T* da = w.da + row * r_pad;
    for (std::int64_t i = 0; i < count; ++i) {
      pack_row(static_cast<const T*>(a_.dy) + (row + i * H) * in_.D, in_.D, dy + i * H * D_pad, D_pad);
      if (!layers_.mlp) std::copy_n(dy + i * H * D_pad, r_pad, da + i * H * r_pad);
    }
    if (!layers_.mlp) return;
    T* z = w.z + row * r_pad;
    layers_.hidden(w.packed, d, first, count, h, z, H * r_pad);
    tile::product<tile::Left::rows>(count, r_pad, in_.D, dy, H * D_pad, w.w2_transposed + h * in_.D * r_pad, r_pad, da,
                                    H * r_pad, false);
    for (std::int64_t i = 0; i < count; ++i) {
      T* z_row = z + i * H * r_pad;
      T* da_row = da + i * H * r_pad;
#pragma omp simd
      for (std::int64_t c = 0; c < r_pad; ++c) {
        const T a = z_row[c];
        da_row[c] *= SiluFunction{}.slope(a);
        z_row[c] = SiluFunction{}.value(a);
      }
    }
  }

  void sum_hidden(const Arrays& w) const {
    const std::int64_t r_pad = layers_.r_pad;
    for (std::int64_t h = 0; h < in_.H; ++h) {
      T* sum = w.da_sum + h * r_pad;
      std::fill(sum, sum + r_pad, T(0));
      for (std::int64_t i = 0; i < in_.S; ++i) {
        const T* da = w.da + (i * in_.H + h) * r_pad;
#pragma omp simd
        for (std::int64_t c = 0; c < r_pad; ++c) sum[c] += da[c];
      }
      if (a_.db1 == nullptr) continue;
      for (std::int64_t c = 0; c < in_.r; ++c) store(static_cast<T*>(a_.db1)[h * in_.r + c], sum[c], a_.write_db1);
    }
  }

  void weight_gradients(const Arrays& w, T* scratch_begin) const {
    const std::int64_t r_pad = layers_.r_pad, D_pad = layers_.D_pad, D = in_.D, r = in_.r, H = in_.H;
    const auto* pe = static_cast<const T*>(in_.pe);
    block_sparse::parallel_items(H * layers_.l, [&](std::int64_t item, std::int64_t worker) {
      T* dw = scratch_begin + worker * scratch();
      const std::int64_t h = item / layers_.l, offset = item % layers_.l;
      const T* sum = w.da_sum + h * r_pad;
      if (a_.dw1 != nullptr) {
        for (std::int64_t c = 0; c < D; ++c) {
          for (std::int64_t x = 0; x < r_pad; ++x) dw[c * r_pad + x] = pe == nullptr ? T(0) : pe[item * D + c] * sum[x];
        }
        for (std::int64_t n = 0; n < in_.document_count; ++n) {
          const CompressionDocument& d = in_.documents[n];
          if (d.blocks == 0) continue;
          tile::product<tile::Left::columns>(D, r_pad, d.blocks, layers_.token(d, 0, offset, h), layers_.block_step(),
                                             w.da + (d.block * H + h) * r_pad, H * r_pad, dw, r_pad, true);
        }
        add_rows(dw, D, r, r_pad, static_cast<T*>(a_.dw1) + item * D * r, a_.write_dw1);
      }
      for (std::int64_t c = 0; a_.dpe != nullptr && c < D; ++c) {
        const T* row = w.packed.w1 + (item * D + c) * r_pad;
        T dot = 0;
        for (std::int64_t x = 0; x < r; ++x) dot += row[x] * sum[x];
        store(static_cast<T*>(a_.dpe)[item * D + c], dot, a_.write_dpe);
      }
    });
    if (a_.dw2 == nullptr) return;
    block_sparse::parallel_items(H, [&](std::int64_t h, std::int64_t worker) {
      T* dw = scratch_begin + worker * scratch();
      tile::product<tile::Left::columns>(r, D_pad, in_.S, w.z + h * r_pad, H * r_pad, w.dy + h * D_pad, H * D_pad, dw,
                                         D_pad, false);
      add_rows(dw, r, D, D_pad, static_cast<T*>(a_.dw2) + h * r * D, a_.write_dw2);
    });
  }

  static void add_rows(const T* from, std::int64_t rows, std::int64_t width, std::int64_t pad, T* to, Write write) {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t c = 0; c < width; ++c) store(to[i * width + c], from[i * pad + c], write);
    }
  }

  // A cell is the `stride` tokens from one block's beginning to the next one's: tokens of cell e lie in the blocks
  // e - l/delta + 1 ... e.
  void token_gradients(const Arrays& w, T* scratch_begin) const {
    struct Cells {
      const CompressionDocument* document;
      std::int64_t first, last;
    };
    std::vector<Cells> items;
    for (std::int64_t n = 0; n < in_.document_count; ++n) {
      const CompressionDocument& d = in_.documents[n];
      const std::int64_t cells = block_count(d.tokens, layers_.stride);
      for (std::int64_t e = 0; e < cells; e += kCompressionTile) {
        items.push_back({&d, e, std::min(e + kCompressionTile, cells)});
      }
    }
    const auto per_item = in_.H * layers_.stride;
    block_sparse::parallel_items(static_cast<std::int64_t>(items.size()) * per_item,
                                 [&](std::int64_t i, std::int64_t worker) {
                                   const Cells& c = items[static_cast<std::size_t>(i / per_item)];
                                   tokens_at(w, *c.document, c.first, c.last, i % per_item / layers_.stride,
                                             i % layers_.stride, scratch_begin + worker * scratch());
                                 });
  }

  // The tokens at `place` in the cells [first, last).
  void tokens_at(const Arrays& w, const CompressionDocument& d, std::int64_t first, std::int64_t last, std::int64_t h,
                 std::int64_t place, T* dx) const {
    const std::int64_t r_pad = layers_.r_pad, D_pad = layers_.D_pad, D = in_.D;
    const auto* dy = static_cast<const T*>(a_.dy);
    const T share = T(1) / static_cast<T>(layers_.l);
    std::fill(dx, dx + (last - first) * D_pad, T(0));
    for (std::int64_t back = layers_.l / layers_.stride - 1; back >= 0; --back) {
      const std::int64_t begin = std::max(first, back);
      const std::int64_t end = std::min(last, d.blocks + back);
      if (begin >= end) continue;
      const std::int64_t row = (d.block + begin - back) * in_.H + h;  // of the first block
      T* to = dx + (begin - first) * D_pad;
      if (!layers_.mean) {
        const std::int64_t offset = place + back * layers_.stride;
        tile::product<tile::Left::rows>(end - begin, D_pad, in_.r, w.da + row * r_pad, in_.H * r_pad,
                                        w.w1_transposed + (h * layers_.l + offset) * in_.r * D_pad, D_pad, to, D_pad,
                                        true);
      }
      for (std::int64_t i = 0; i < end - begin; ++i) {
        const T* from = dy + (row + i * in_.H) * D;
#pragma omp simd
        for (std::int64_t c = 0; c < D; ++c) to[i * D_pad + c] += share * from[c];
      }
    }
    for (std::int64_t e = first; e < last; ++e) {
      const std::int64_t token = e * layers_.stride + place;
      if (token >= d.tokens) continue;
      T* target = static_cast<T*>(a_.dx) + ((d.token + token) * in_.H + h) * D;
      for (std::int64_t c = 0; c < D; ++c) store(target[c], dx[(e - first) * D_pad + c], a_.write_dx);
    }
  }

  const CompressionBackward& a_;
  const CompressionInputs& in_;
  CompressionLayers<T> layers_;
};

}  // namespace weft
