// Tensor-core products of a warpgroup (wgmma, sm_90a): c[64 x N] += a[64 x K] b[K x N], bf16 operands, fp32 sums.
//
// Products run beside the issuing threads. Around a batch of them:
//   wgmma_fence(c, a);         registers that products read or add to are as the program says
//   multiply(c, a, b);         any number; multiply_add adds to c
//   wgmma_commit();            they form a group
//   wgmma_wait<Pending>(c);    at most that many of the latest groups are still running; c is finished
// Until the wait nobody may touch the accumulators, the registers of a left operand, or the tiles.
#pragma once

#include "autograd/tile/mma.cuh"
#include "autograd/tile/shared_tile.cuh"

namespace weft::tile {

// c[64 x N] of a warpgroup. Element i of thread t: row(t, i), column(t, i).
template <int N>
struct Accumulator {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is a multiple of 8 up to 256");
  static constexpr int kN = N;
  static constexpr int kSize = N / 2;
  float x[kSize];

  __device__ static int row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
  __device__ static int column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }
  __device__ void fill(float value) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) x[i] = value;
  }
};

// A left operand [64 x K] in registers.
template <int K>
struct RegisterOperand {
  static_assert(K % 16 == 0, "contraction steps are 16 wide");
  static constexpr int kK = K;
  std::uint32_t x[K / 16][4];
};

// An accumulator [64 x K] rounded to bf16 as the left operand of the next product.
template <int K>
__device__ inline void round_to_operand(RegisterOperand<K>& a, const Accumulator<K>& c) {
#pragma unroll
  for (int s = 0; s < K / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.x[s][i] = pack(c.x[8 * s + 2 * i], c.x[8 * s + 2 * i + 1]);
  }
}

namespace detail {
// Keeps the compiler from moving the writes of these registers past this point.
template <int Size>
__device__ inline void pin(float (&x)[Size]) {
#pragma unroll
  for (int i = 0; i < Size; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N>
__device__ inline void pin(Accumulator<N>& c) {
  pin(c.x);
}
template <int K>
__device__ inline void pin(RegisterOperand<K>& a) {
#pragma unroll
  for (int s = 0; s < K / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a.x[s][i])::"memory");
  }
}
}  // namespace detail

// Name the registers that the coming products use and that were written since the last wait.
template <class... Registers>
__device__ inline void wgmma_fence(Registers&... registers) {
#ifdef WEFT_HOPPER
  (detail::pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  unavailable();
#endif
}
__device__ inline void wgmma_commit() {
#ifdef WEFT_HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  unavailable();
#endif
}
// Name the accumulators that are finished by then and that something else than a product will read.
template <int Pending, class... Registers>
__device__ inline void wgmma_wait(Registers&... registers) {
#ifdef WEFT_HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
  (detail::pin(registers), ...);
#else
  unavailable();
#endif
}

namespace detail {

// One instruction: c += or c = a b, both operands in shared memory or the left one in registers.
template <int N>
struct WgmmaStep;

// clang-format off
#define WEFT_REGS_8(k, i) k(c[i]), k(c[i + 1]), k(c[i + 2]), k(c[i + 3]), k(c[i + 4]), k(c[i + 5]), k(c[i + 6]), k(c[i + 7])
#define WEFT_REGS_16(k, i) WEFT_REGS_8(k, i), WEFT_REGS_8(k, i + 8)
#define WEFT_REGS_32(k, i) WEFT_REGS_16(k, i), WEFT_REGS_16(k, i + 16)
#define WEFT_REGS_48(k, i) WEFT_REGS_32(k, i), WEFT_REGS_16(k, i + 32)
#define WEFT_REGS_64(k, i) WEFT_REGS_32(k, i), WEFT_REGS_32(k, i + 32)
#define WEFT_REGS_96(k, i) WEFT_REGS_64(k, i), WEFT_REGS_32(k, i + 64)
#define WEFT_REGS_128(k, i) WEFT_REGS_64(k, i), WEFT_REGS_64(k, i + 64)
#define WEFT_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WEFT_NAMES_16 WEFT_NAMES_8 ", " "%8, %9, %10, %11, %12, %13, %14, %15"
#define WEFT_NAMES_32 WEFT_NAMES_16 ", " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WEFT_NAMES_48 WEFT_NAMES_32 ", " "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WEFT_NAMES_64 WEFT_NAMES_48 ", " "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WEFT_NAMES_96 WEFT_NAMES_64 ", " "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WEFT_NAMES_128 WEFT_NAMES_96 ", " "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// R registers of c; then the operands: their numbers follow R. Sums read c; fresh products only write it, so that its
// registers are free until then.
#define WEFT_WGMMA_SHARED(name, k, scale, N, R, O0, O1, O2, O3)                                                    \
  template <int TransposeA, int TransposeB>                                                                        \
  __device__ static void name(float (&c)[R], std::uint64_t a, std::uint64_t b) {                                   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " scale ", 0;\n"                                                \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WEFT_NAMES_##R "}, %" #O0            \
                 ", %" #O1 ", p, 1, 1, %" #O2 ", %" #O3 ";\n}\n"                                                   \
                 : WEFT_REGS_##R(k, 0)                                                                             \
                 : "l"(a), "l"(b), "n"(TransposeA), "n"(TransposeB));                                              \
  }
#define WEFT_WGMMA_REGISTERS(name, k, scale, N, R, O0, O1, O2, O3, O4, O5)                                         \
  template <int TransposeB>                                                                                        \
  __device__ static void name(float (&c)[R], const std::uint32_t (&a)[4], std::uint64_t b) {                       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " scale ", 0;\n"                                                \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WEFT_NAMES_##R "}, {%" #O0           \
                 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4 ", p, 1, 1, %" #O5 ";\n}\n"                              \
                 : WEFT_REGS_##R(k, 0)                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TransposeB));                           \
  }
#define WEFT_IN_OUT(x) "+f"(x)
#define WEFT_OUT(x) "=f"(x)
#define WEFT_WGMMA_STEP(N, R, O0, O1, O2, O3, O4, O5)                                                              \
  template <>                                                                                                      \
  struct WgmmaStep<N> {                                                                                            \
    WEFT_WGMMA_SHARED(add_shared, WEFT_IN_OUT, "1", N, R, O0, O1, O2, O3)                                          \
    WEFT_WGMMA_SHARED(set_shared, WEFT_OUT, "0", N, R, O0, O1, O2, O3)                                             \
    WEFT_WGMMA_REGISTERS(add_registers, WEFT_IN_OUT, "1", N, R, O0, O1, O2, O3, O4, O5)                            \
    WEFT_WGMMA_REGISTERS(set_registers, WEFT_OUT, "0", N, R, O0, O1, O2, O3, O4, O5)                               \
  };

#ifdef WEFT_HOPPER
WEFT_WGMMA_STEP(16, 8, 8, 9, 10, 11, 12, 13)
WEFT_WGMMA_STEP(32, 16, 16, 17, 18, 19, 20, 21)
WEFT_WGMMA_STEP(64, 32, 32, 33, 34, 35, 36, 37)
WEFT_WGMMA_STEP(96, 48, 48, 49, 50, 51, 52, 53)
WEFT_WGMMA_STEP(128, 64, 64, 65, 66, 67, 68, 69)
WEFT_WGMMA_STEP(192, 96, 96, 97, 98, 99, 100, 101)
WEFT_WGMMA_STEP(256, 128, 128, 129, 130, 131, 132, 133)
#endif
#undef WEFT_WGMMA_STEP
// clang-format on

}  // namespace detail

// c += a b; a [64 x K] and b [K x N] are parts of shared tiles.
template <int N, class A, class B>
__device__ inline void multiply_add(Accumulator<N>& c, const A& a, const B& b) {
  static_assert(A::kMN == 64, "a warpgroup's left operand has 64 rows");
  static_assert(B::kMN == N, "the right operand has as many columns as the accumulator");
  static_assert(A::kK == B::kK, "both operands are contracted over the same K");
#ifdef WEFT_HOPPER
#pragma unroll
  for (int s = 0; s < A::kK / 16; ++s) {
    detail::WgmmaStep<N>::template add_shared<A::kMajor == Major::mn, B::kMajor == Major::mn>(c.x, a.step(s),
                                                                                              b.step(s));
  }
#else
  unavailable();
#endif
}
// c = a b; what c holds is not read, so it need not be named in the fence.
template <int N, class A, class B>
__device__ inline void multiply(Accumulator<N>& c, const A& a, const B& b) {
  static_assert(A::kMN == 64, "a warpgroup's left operand has 64 rows");
  static_assert(B::kMN == N, "the right operand has as many columns as the accumulator");
  static_assert(A::kK == B::kK, "both operands are contracted over the same K");
#ifdef WEFT_HOPPER
  using Step = detail::WgmmaStep<N>;
  Step::template set_shared<A::kMajor == Major::mn, B::kMajor == Major::mn>(c.x, a.step(0), b.step(0));
#pragma unroll
  for (int s = 1; s < A::kK / 16; ++s) {
    Step::template add_shared<A::kMajor == Major::mn, B::kMajor == Major::mn>(c.x, a.step(s), b.step(s));
  }
#else
  unavailable();
#endif
}

// The same with a in registers.
template <int N, int K, class B>
__device__ inline void multiply_add(Accumulator<N>& c, const RegisterOperand<K>& a, const B& b) {
  static_assert(B::kMN == N, "the right operand has as many columns as the accumulator");
  static_assert(B::kK == K, "both operands are contracted over the same K");
#ifdef WEFT_HOPPER
#pragma unroll
  for (int s = 0; s < K / 16; ++s) {
    detail::WgmmaStep<N>::template add_registers<B::kMajor == Major::mn>(c.x, a.x[s], b.step(s));
  }
#else
  unavailable();
#endif
}
template <int N, int K, class B>
__device__ inline void multiply(Accumulator<N>& c, const RegisterOperand<K>& a, const B& b) {
  static_assert(B::kMN == N, "the right operand has as many columns as the accumulator");
  static_assert(B::kK == K, "both operands are contracted over the same K");
#ifdef WEFT_HOPPER
  using Step = detail::WgmmaStep<N>;
  Step::template set_registers<B::kMajor == Major::mn>(c.x, a.x[0], b.step(0));
#pragma unroll
  for (int s = 1; s < K / 16; ++s) Step::template add_registers<B::kMajor == Major::mn>(c.x, a.x[s], b.step(s));
#else
  unavailable();
#endif
}

// The same with the choice at run time.
template <int N, class A, class B>
__device__ inline void multiply(Accumulator<N>& c, const A& a, const B& b, bool accumulate) {
  if (!accumulate) c.fill(0.0f);
  wgmma_fence(c);
  multiply_add(c, a, b);
}

// c rounded to bf16 into rows [row, row + 64) and columns [column, column + N) of a tile, with stmatrix.
// fence_async_shared() and a barrier must follow if wgmma or the copy engine reads it.
template <int N, int Rows, int Cols>
__device__ inline void store_rounded(const Accumulator<N>& c, SharedTile<Rows, Cols>& tile, int row, int column,
                                     int thread) {
  static_assert(N % 16 == 0 && N <= Cols && Rows >= 64, "the accumulator fits into the tile");
#ifdef WEFT_HOPPER
  const unsigned lane = static_cast<unsigned>(thread) % kWarp;
  const int own_row = row + static_cast<int>(static_cast<unsigned>(thread) / kWarp * 16 + lane % 16);
#pragma unroll
  for (int n = 0; n < N; n += 16) {
    const float* x = c.x + n / 2;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     tile.address(own_row, column + n + static_cast<int>(lane / 16 * 8))),
                 "r"(pack(x[0], x[1])), "r"(pack(x[2], x[3])), "r"(pack(x[4], x[5])), "r"(pack(x[6], x[7]))
                 : "memory");
  }
#else
  unavailable();
#endif
}
// The same of what has been rounded already.
template <int K, int Rows, int Cols>
__device__ inline void store_operand(const RegisterOperand<K>& a, SharedTile<Rows, Cols>& tile, int row, int column,
                                     int thread) {
  static_assert(K <= Cols && Rows >= 64, "the operand fits into the tile");
#ifdef WEFT_HOPPER
  const unsigned lane = static_cast<unsigned>(thread) % kWarp;
  const int own_row = row + static_cast<int>(static_cast<unsigned>(thread) / kWarp * 16 + lane % 16);
#pragma unroll
  for (int s = 0; s < K / 16; ++s) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     tile.address(own_row, column + 16 * s + static_cast<int>(lane / 16 * 8))),
                 "r"(a.x[s][0]), "r"(a.x[s][1]), "r"(a.x[s][2]), "r"(a.x[s][3])
                 : "memory");
  }
#else
  unavailable();
#endif
}
// Rows [row, row + 64) and columns [column, column + K) of a tile as a left operand, with ldmatrix.
template <int K, int Rows, int Cols>
__device__ inline void load_operand(RegisterOperand<K>& a, const SharedTile<Rows, Cols>& tile, int row, int column,
                                    int thread) {
  static_assert(K <= Cols && Rows >= 64, "the operand lies in the tile");
  const unsigned lane = static_cast<unsigned>(thread) % kWarp;
  const int own_row = row + static_cast<int>(static_cast<unsigned>(thread) / kWarp * 16 + lane % 16);
#pragma unroll
  for (int s = 0; s < K / 16; ++s) {
    ldmatrix4(a.x[s], tile.address(own_row, column + 16 * s + static_cast<int>(lane / 16 * 8)));
  }
}

}  // namespace weft::tile
