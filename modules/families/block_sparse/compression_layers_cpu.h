// What the CPU kernels of compression.h share. The blocks of a document overlap, but their rows at one offset lie a
// stride apart, so every product takes its operand where it lies: vec(X) is never gathered.
#pragma once

#include "autograd/carver.h"
#include "autograd/ops/activation/activation_cpu.h"
#include "modules/families/block_sparse/block_sparse_tiles.h"
#include "modules/families/block_sparse/compression.h"

namespace weft {

// Blocks that a work item handles.
inline constexpr std::int64_t kCompressionTile = 64;

// What both directions share: padded weights, and the hidden layer.
template <class T>
class CompressionLayers {
 public:
  const CompressionInputs& in;
  const std::int64_t l, stride, r_pad, D_pad;
  const bool mlp, mean;

  explicit CompressionLayers(const CompressionInputs& inputs)
      : in(inputs),
        l(in.span.length),
        stride(in.span.stride),
        r_pad(tile::padded(in.r)),
        D_pad(tile::padded(in.D)),
        mlp(in.w2 != nullptr),
        mean(in.w1 == nullptr) {}

  struct Packed {
    T* w1;    // [H][l][D][r_pad]
    T* w2;    // [H][r][D_pad]
    T* bias;  // [H][r_pad]: b1 + W1^T vec(pe)
  };
  Packed carve(Carver<T>& carver) const {
    Packed p;
    p.w1 = carver.take(in.H * l * in.D * r_pad);
    p.w2 = carver.take(mlp ? in.H * in.r * D_pad : 0);
    p.bias = carver.take(in.H * r_pad);
    return p;
  }

  void pack(const Packed& p) const {
    if (mean) return;
    const auto* w1 = static_cast<const T*>(in.w1);
    const auto* w2 = static_cast<const T*>(in.w2);
    const std::int64_t rows = l * in.D;
    parallel_blocks(in.H * rows, rows_per_block(in.r), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) pack_row(w1 + i * in.r, in.r, p.w1 + i * r_pad, r_pad);
    });
    for (std::int64_t i = 0; mlp && i < in.H * in.r; ++i) {
      pack_row(w2 + i * in.D, in.D, p.w2 + i * D_pad, D_pad);
    }
    for (std::int64_t h = 0; h < in.H; ++h) {
      T* bias = p.bias + h * r_pad;
      std::fill(bias, bias + r_pad, T(0));
      if (!mlp) continue;
      std::copy_n(static_cast<const T*>(in.b1) + h * in.r, in.r, bias);
      tile::product<tile::Left::rows>(1, r_pad, rows, static_cast<const T*>(in.pe) + h * rows, rows,
                                      p.w1 + h * rows * r_pad, r_pad, bias, r_pad, true);
    }
  }

  // Where row `offset` of block i of a document lies; consecutive blocks are block_step() apart.
  const T* token(const CompressionDocument& d, std::int64_t i, std::int64_t offset, std::int64_t h) const {
    return static_cast<const T*>(in.x) + ((d.token + i * stride + offset) * in.H + h) * in.D;
  }
  std::int64_t block_step() const { return stride * in.H * in.D; }

  // a [count][r_pad] of the document's blocks from `first` on, rows `step` apart.
  void hidden(const Packed& p, const CompressionDocument& d, std::int64_t first, std::int64_t count, std::int64_t h,
              T* a, std::int64_t step) const {
    for (std::int64_t i = 0; i < count; ++i) std::copy_n(p.bias + h * r_pad, r_pad, a + i * step);
    for (std::int64_t offset = 0; offset < l; ++offset) {
      tile::product<tile::Left::rows>(count, r_pad, in.D, token(d, first, offset, h), block_step(),
                                      p.w1 + (h * l + offset) * in.D * r_pad, r_pad, a, step, true);
    }
  }

  // Calls f(document, first block, count, head, worker) for tiles of blocks.
  template <class F>
  void for_tiles(F&& f) const {
    struct Tile {
      const CompressionDocument* document;
      std::int64_t first, count;
    };
    std::vector<Tile> tiles;
    for (std::int64_t n = 0; n < in.document_count; ++n) {
      const CompressionDocument& d = in.documents[n];
      for (std::int64_t i = 0; i < d.blocks; i += kCompressionTile) {
        tiles.push_back({&d, i, std::min<std::int64_t>(kCompressionTile, d.blocks - i)});
      }
    }
    block_sparse::parallel_items(static_cast<std::int64_t>(tiles.size()) * in.H,
                                 [&](std::int64_t i, std::int64_t worker) {
                                   const Tile& t = tiles[static_cast<std::size_t>(i / in.H)];
                                   f(*t.document, t.first, t.count, i % in.H, worker);
                                 });
  }
};

}  // namespace weft
