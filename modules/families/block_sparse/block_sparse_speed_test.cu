// Times of the family's kernels on one GPU beside their floors, at the size of the peers' figures: 32768 tokens, 64
// query and 4 key/value heads of width 128, 16 blocks of 64 tokens, summaries of 32 tokens every 16.
#include <cstdio>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/pack.cuh"
#include "autograd/transfer.h"
#include "modules/families/block_sparse/block_choice.h"
#include "modules/families/block_sparse/compression.h"
#include "tests/support/gpu.h"

namespace weft::testing::block_sparse {
namespace {

constexpr std::int64_t T = 32768, H_Q = 64, H_KV = 4, D = 128;
constexpr double kMatrixRate = 989e12;  // floating-point operations a second

__global__ void fill(bfloat16* x, std::int64_t n, std::uint32_t seed, float scale) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float sum = -2.0f;
  auto h = static_cast<std::uint32_t>(i) * 2654435761u + seed * 40503u;
  for (int k = 0; k < 4; ++k) {
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    sum += static_cast<float>(h >> 8) * 0x1p-24f;
  }
  x[i] = from_float<bfloat16>(sum * 1.7320508f * scale);
}

class Timer {
 public:
  Timer() {
    cudaEventCreate(&begin_);
    cudaEventCreate(&end_);
  }
  ~Timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Median milliseconds.
  template <class F>
  double time(F&& f) const {
    constexpr int kRuns = 9;
    const auto stream = static_cast<cudaStream_t>(gpu_stream().handle);
    f();
    std::vector<double> times;
    for (int i = 0; i < kRuns; ++i) {
      cudaEventRecord(begin_, stream);
      f();
      cudaEventRecord(end_, stream);
      cudaEventSynchronize(end_);
      float ms = 0.0f;
      cudaEventElapsedTime(&ms, begin_, end_);
      times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

void print(const char* what, double ms, double floor, const char* peer) {
  std::printf("%-44s %9.3f ms  floor %7.3f  ratio %5.2f  %s\n", what, ms, floor, floor / ms, peer);
  std::fflush(stdout);
}

TEST(BlockSparseSpeedGpu, AtTheSizeOfThePeers) {
  WEFT_NEEDS_GPU();
  const auto memory = std::make_shared<CudaArena>(gpu_stream(), std::size_t{10} << 30);
  const auto random = [&](const Shape& shape, std::uint32_t seed, float scale = 1.0f) {
    const Tensor t(shape, DType::bf16, memory);
    fill<<<static_cast<unsigned>((t.numel() + 255) / 256), 256, 0, static_cast<cudaStream_t>(gpu_stream().handle)>>>(
        t.data<bfloat16>(), t.numel(), seed, scale);
    return t;
  };
  const DocumentsPtr documents = Documents::single(T);
  const KeySpan span{32, 16};
  const BlockRule rule{.block = 64, .selected = 16, .first = 1, .local = 2};
  const std::int64_t S = span.count(T);
  const Tensor q = random({T, H_Q, D}, 1), k = random({T, H_KV, D}, 2), v = random({T, H_KV, D}, 3);
  const Tensor k_c = random({S, H_KV, D}, 4), v_c = random({S, H_KV, D}, 5), d_o = random({T, H_Q, D}, 6);
  const Timer timer;

  const double pairs_c = static_cast<double>(H_Q) * T * static_cast<double>(S) / 2.0;
  const double pairs_s = static_cast<double>(H_Q) * T * 1024.0 * (1.0 - 32.0 / 1024.0);
  const auto floor = [](double pairs, double products) { return products * 2.0 * D * pairs / kMatrixRate * 1e3; };

  const auto forward = [&](auto&& f) {
    return timer.time([&] {
      Tape tape(memory, Tape::Mode::inference, gpu_stream());
      f(tape);
    });
  };
  const auto both = [&](const Tensor& keys, const Tensor& values, auto&& f) {
    return timer.time([&] {
      Tape tape(memory, Tape::Mode::record, gpu_stream());
      const Var o = f(tape, tape.leaf(q), tape.leaf(keys), tape.leaf(values));
      tape.backward(o, d_o);
    });
  };
  const auto constant = [](const Tensor& t) { return Tape::constant(t); };

  print("compressed branch, forward",
        forward([&](Tape& t) { span_attention(t, constant(q), constant(k_c), constant(v_c), span, documents); }),
        floor(pairs_c, 2), "");
  Tensor lse, idx;
  {
    Tape tape(memory, Tape::Mode::inference, gpu_stream());
    lse = span_attention(tape, constant(q), constant(k_c), constant(v_c), span, documents).lse;
    idx = choose_blocks(tape, q, k_c, lse, rule, span, BlockScore::overlap_sum, *documents);
  }
  print("choice, denominators given",
        forward([&](Tape& t) { choose_blocks(t, q, k_c, lse, rule, span, BlockScore::overlap_sum, *documents); }),
        floor(pairs_c, 1), "");
  print("choice, denominators found",
        forward([&](Tape& t) { choose_blocks(t, q, k_c, {}, rule, span, BlockScore::overlap_sum, *documents); }),
        floor(pairs_c, 2), "");
  print("selected branch, forward",
        forward([&](Tape& t) { block_sparse_attention(t, constant(q), constant(k), constant(v), idx, 64, documents); }),
        floor(pairs_s, 2), "fla 10.7");
  print("compressed + choice + selected, forward", forward([&](Tape& t) {
          const auto o = span_attention(t, constant(q), constant(k_c), constant(v_c), span, documents);
          const Tensor chosen = choose_blocks(t, q, k_c, o.lse, rule, span, BlockScore::overlap_sum, *documents);
          block_sparse_attention(t, constant(q), constant(k), constant(v), chosen, 64, documents);
        }),
        floor(pairs_c, 3) + floor(pairs_s, 2), "fla 20.4");
  const double selected = both(k, v, [&](Tape& t, const Var& a, const Var& b, const Var& c) {
    return block_sparse_attention(t, a, b, c, idx, 64, documents).o;
  });
  print("selected branch, forward and backward", selected, floor(pairs_s, 7), "fla 64.2");
  print("  of which forward, plan and dq",
        both(k, v,
             [&](Tape& t, const Var& a, const Var&, const Var&) {
               return block_sparse_attention(t, a, constant(k), constant(v), idx, 64, documents).o;
             }),
        floor(pairs_s, 5), "");
  print("compressed branch, forward and dq",
        both(k_c, v_c,
             [&](Tape& t, const Var& a, const Var&, const Var&) {
               return span_attention(t, a, constant(k_c), constant(v_c), span, documents).o;
             }),
        floor(pairs_c, 5), "");
  const double compressed = both(k_c, v_c, [&](Tape& t, const Var& a, const Var& b, const Var& c) {
    const auto o = span_attention(t, a, b, c, span, documents);
    choose_blocks(t, q, k_c, o.lse, rule, span, BlockScore::overlap_sum, *documents);
    return o.o;
  });
  print("compressed branch and choice, both ways", compressed, floor(pairs_c, 8), "");
  print("compressed + choice + selected, both ways", compressed + selected, floor(pairs_c, 8) + floor(pairs_s, 7),
        "fla 102.8");

  const std::int64_t r = 256, l = span.length;
  const Tensor w1 = random({H_KV, l * D, r}, 7, 0.02f), w2 = random({H_KV, r, D}, 8, 0.06f);
  const Tensor pe(Shape{H_KV, l, D}, DType::f32, memory), b1(Shape{H_KV, r}, DType::f32, memory);
  fill_zero(pe, gpu_stream());
  fill_zero(b1, gpu_stream());
  const Tensor dy = random({S, H_KV, D}, 9);
  const double products = 2.0 * static_cast<double>(S * H_KV * r * (l * D + D)) / kMatrixRate * 1e3;
  const auto map = [&](Tape& t, bool learn) {
    const auto var = [&](const Tensor& x) { return learn ? t.leaf(x, DType::f32) : Tape::constant(x); };
    return compress(t, learn ? t.leaf(k) : Tape::constant(k), {var(pe), var(w1), var(b1), var(w2)}, span, documents);
  };
  print("compression by an MLP, forward", forward([&](Tape& t) { map(t, false); }), products, "");
  print("compression by an MLP, forward and backward", timer.time([&] {
    Tape tape(memory, Tape::Mode::record, gpu_stream());
    tape.backward(map(tape, true), dy);
  }),
        4.0 * products, "");
  synchronize(gpu_stream());
}

// A selector with lists of its own for each head: blocks of 512 tokens, 3 of them.
TEST(BlockSparseSpeedGpu, ListsOfEachHead) {
  WEFT_NEEDS_GPU();
  constexpr std::int64_t kTokens = 16384, kHeads = 16;
  const auto memory = std::make_shared<CudaArena>(gpu_stream(), std::size_t{4} << 30);
  const auto random = [&](std::uint32_t seed) {
    const Tensor t(Shape{kTokens, kHeads, D}, DType::bf16, memory);
    fill<<<static_cast<unsigned>((t.numel() + 255) / 256), 256, 0, static_cast<cudaStream_t>(gpu_stream().handle)>>>(
        t.data<bfloat16>(), t.numel(), seed, 1.0f);
    return t;
  };
  const DocumentsPtr documents = Documents::single(kTokens);
  const Tensor q = random(1), k = random(2), v = random(3), d_o = random(4);
  const Timer timer;
  const BlockRule rule{.block = 512, .selected = 3, .first = 0, .local = 1};
  Tensor idx;
  const auto choose = [&](Tape& tape) {
    const Var means = compress(tape, Tape::constant(k), {}, {512, 512}, documents);
    return choose_blocks(tape, q, means.value, {}, rule, {512, 512}, BlockScore::logit, *documents);
  };
  print("means and logits, 16 K tokens, 16 heads", timer.time([&] {
    Tape tape(memory, Tape::Mode::inference, gpu_stream());
    idx = choose(tape);
  }),
        0.0, "");
  const double pairs = static_cast<double>(kHeads * kTokens) * (3 * 512 - 256);
  print("attention to 3 blocks of 512, forward", timer.time([&] {
    Tape tape(memory, Tape::Mode::inference, gpu_stream());
    block_sparse_attention(tape, Tape::constant(q), Tape::constant(k), Tape::constant(v), idx, 512, documents);
  }),
        4.0 * D * pairs / kMatrixRate * 1e3, "");
  print("attention to 3 blocks of 512, both ways", timer.time([&] {
    Tape tape(memory, Tape::Mode::record, gpu_stream());
    const Var a = tape.leaf(q), b = tape.leaf(k), c = tape.leaf(v);
    tape.backward(block_sparse_attention(tape, a, b, c, idx, 512, documents).o, d_o);
  }),
        14.0 * D * pairs / kMatrixRate * 1e3, "");
}

}  // namespace
}  // namespace weft::testing::block_sparse
