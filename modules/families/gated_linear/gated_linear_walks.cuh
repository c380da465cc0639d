// The recurrence and its gradients as walks, whichever kernel walks (gated_linear_walk.cuh, gated_linear_row.cuh):
//
//   out_i = s sum_{j <= i} <x_i, y_j> e^{G_i - G_j} z_j  + what the state before i's document holds for x_i,
//
// or j >= i and e^{G_j - G_i}, backwards in time. README.md has the table of which tensors are x, y and z.
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/pieces.h"
#include "autograd/tile/numeric.cuh"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "modules/families/gated_linear/gated_linear_features.cuh"

namespace weft::walks {

using tile::bf16;

// Rows of one head of [T, heads, width]; adjacent heads may share them.
struct HeadRows {
  const bf16* data;
  int heads, width, sharing;

  __device__ const bf16* at(std::int64_t t, int h) const { return data + (t * heads + h / sharing) * width; }
};

inline HeadRows head_rows(const void* data, std::int64_t heads, std::int64_t width, std::int64_t H) {
  return {static_cast<const bf16*>(data), static_cast<int>(heads), static_cast<int>(width),
          static_cast<int>(H / heads)};
}

// The tensors of a problem as walks take them.
struct Rows {
  explicit Rows(const GatedLinearProblem& a)
      : q(head_rows(a.q, a.key_heads(), a.d_k, a.H)),
        k(head_rows(a.k, a.key_heads(), a.d_k, a.H)),
        v(head_rows(a.v, a.H, a.d_v, a.H)) {}
  HeadRows q, k, v;
};

// The states [N, H, d_k, d_v] before and after documents, seen in the walk's direction; null: zero, not wanted.
struct Ends {
  const void* from = nullptr;
  void* to = nullptr;
  Write write = Write::overwrite;
  bool transposed = false;  // rows are columns of z
};

// Which gradient a walk makes.
enum class Gradient { q, k, v };

// What backward needs beside what a kernel keeps of its own; null: not wanted.
struct BackwardRoom {
  float *dq = nullptr, *dk = nullptr;          // [T, H, d_k] for each head, where heads share keys
  float *dots_q = nullptr, *dots_k = nullptr;  // [T, H, blocks of columns], for decays per token
};

// p.out_i = sum_{j <= i} ..., of the output.
template <class Problem>
Problem output_walk(const GatedLinearForward& args) {
  const Rows in(args);
  Problem p{};
  p.x = in.q, p.y = in.k, p.z = in.v;
  p.pair_scale = p.x_scale = static_cast<float>(args.scale);
  p.y_scale = 1.0f;
  p.out = args.o;
  return p;
}

// Calls walk(gradient, problem, ends) for the gradients that are wanted.
template <class Problem, class Walk>
void gradient_walks(const GatedLinearBackward& args, const BackwardRoom& room, const Walk& walk) {
  const Rows in(args);
  const HeadRows d_o = head_rows(args.d_o, args.H, args.d_v, args.H);
  const auto scale = static_cast<float>(args.scale);
  const auto target = [&](Problem& p, void* gradient, Write write, float* staged) {
    p.out = staged != nullptr ? staged : gradient;
    p.out_f32 = staged != nullptr;
    p.write = staged != nullptr ? Write::overwrite : write;
  };

  // dq_i = s sum_{j <= i} <dO_i, v_j> e^{G_i - G_j} k_j
  if (args.dq != nullptr || args.dg != nullptr) {
    Problem p{};
    p.x = d_o, p.y = in.v, p.z = in.k;
    p.pair_scale = p.x_scale = scale;
    p.y_scale = 1.0f;
    target(p, args.dq, args.write_dq, room.dq);
    p.w = in.q, p.dots = room.dots_q;
    walk(Gradient::q, p, Ends{.from = args.s0, .transposed = true});
  }
  // dk_j = s sum_{i >= j} <v_j, dO_i> e^{G_i - G_j} q_i
  if (args.dk != nullptr || args.dg != nullptr) {
    Problem p{};
    p.x = in.v, p.y = d_o, p.z = in.q;
    p.backwards = true;
    p.pair_scale = p.y_scale = scale;
    p.x_scale = 1.0f;
    target(p, args.dk, args.write_dk, room.dk);
    p.w = in.k, p.dots = room.dots_k;
    walk(Gradient::k, p, Ends{.from = args.dst, .transposed = true});
  }
  // dv_j = s sum_{i >= j} <k_j, q_i> e^{G_i - G_j} dO_i, and what it leaves at the start
  if (args.dv != nullptr || args.ds0 != nullptr) {
    Problem p{};
    p.x = in.k, p.y = in.q, p.z = d_o;
    p.backwards = true;
    p.pair_scale = p.y_scale = scale;
    p.x_scale = 1.0f;
    p.out = args.dv, p.write = args.write_dv;
    walk(Gradient::v, p, Ends{.from = args.dst, .to = args.ds0, .write = args.write_ds0});
  }
}

// After the walks: dg_t = <S, dS> at the chunk's end + sum over i >= t in it of (q dq - k dk)_i without the pairs j =
// i. dots are summed over `blocks`, alive [chunk_count, H, parts] over `parts`.
void sum_dots(const GatedLinearBackward& args, const BackwardRoom& room, int blocks, const float* alive, int parts,
              cudaStream_t stream);

// After the walks: gradients of keys and queries that heads share.
void sum_heads(const GatedLinearBackward& args, const BackwardRoom& room, cudaStream_t stream);

}  // namespace weft::walks

namespace weft::walk {

// The walk over documents of more than row::kFewTokens and at most one segment, for the kernel that takes the others.
class ShortDocuments {
 public:
  // `count` of the chunks are such documents; their index is the place in the problem's table.
  struct Table {
    const Chunk* chunks = nullptr;
    const std::int32_t* count = nullptr;
  };

  // any: whether there may be such documents.
  ShortDocuments(const GatedLinearForward& args, bool any, Pieces& pieces);
  ShortDocuments(const GatedLinearBackward& args, bool any, Pieces& pieces);

  void forward(const GatedLinearForward& args, const Table& table, cudaStream_t stream) const;
  // Leaves what sum_dots() reads in the first of `parts` numbers; the others are zero.
  void backward(const GatedLinearBackward& args, const Table& table, const walks::BackwardRoom& room, float* alive,
                int parts, cudaStream_t stream) const;

 private:
  // States of documents; null where there are none.
  float *initial_ = nullptr, *other_initial_ = nullptr, *final_ = nullptr;
};

}  // namespace weft::walk
