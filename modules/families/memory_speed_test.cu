// How long the memories that train while they read take on a GPU: T = 8192 tokens, 16 heads of 64, bf16.
#include <algorithm>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "modules/families/fast_weights/fast_weights.h"
#include "modules/families/titans_memory/titans_memory.h"
#include "modules/families/ttt/ttt_memory.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft {
namespace {

using namespace testing;

constexpr std::int64_t kTokens = 8192;

struct Shapes {
  std::int64_t H = 16, d = 64;
};

// Runs an operation on `x` (forward, then forward and backward) and prints the medians of the times in ms.
class MemorySpeedGpu : public ::testing::Test {
 protected:
  void SetUp() override { WEFT_NEEDS_GPU(); }

  using Operation = std::function<Var(Tape&, std::span<const Var>, const DocumentsPtr&)>;
  static void time(const std::string& name, const std::vector<Tensor>& x, const Operation& operation) {
    const Stream stream = gpu_stream();
    const auto memory = std::make_shared<CudaArena>(stream, std::size_t{12} << 30);
    std::vector<Tensor> here;
    const Tape place(memory, Tape::Mode::inference, stream);
    for (const Tensor& t : x) here.push_back(t.defined() ? place.here(t) : t);
    for (const std::int64_t documents : {1, 8}) {
      const DocumentsPtr row = Documents::from_lengths(std::vector<std::int32_t>(
          static_cast<std::size_t>(documents), static_cast<std::int32_t>(kTokens / documents)));
      const double forward = median(stream, [&] {
        Tape tape(memory, Tape::Mode::inference, stream);
        std::vector<Var> v;
        for (const Tensor& t : here) v.push_back(t.defined() ? Tape::constant(t) : Var{});
        operation(tape, v, row);
      });
      const double both = median(stream, [&] {
        Tape tape(memory, Tape::Mode::record, stream);
        std::vector<Var> v;
        for (std::size_t i = 0; i < here.size(); ++i) {
          const bool parameter = i >= kFirstParameter;
          v.push_back(here[i].defined() ? tape.leaf(here[i], parameter ? DType::f32 : here[i].dtype()) : Var{});
        }
        const Var o = operation(tape, v, row);
        tape.backward(o, o.value);
      });
      fmt::print("SPEED {:<44} documents {} forward {:8.3f} ms backward {:8.3f} ms\n", name, documents, forward,
                 both - forward);
    }
  }
  static constexpr std::size_t kFirstParameter = 6;

 private:
  template <class F>
  static double median(const Stream& stream, F&& f) {
    cudaEvent_t begin, end;
    WEFT_CUDA_CALL(cudaEventCreate(&begin));
    WEFT_CUDA_CALL(cudaEventCreate(&end));
    std::vector<float> times;
    for (int i = 0; i < 9; ++i) {
      WEFT_CUDA_CALL(cudaEventRecord(begin, cuda_stream(stream)));
      f();
      WEFT_CUDA_CALL(cudaEventRecord(end, cuda_stream(stream)));
      WEFT_CUDA_CALL(cudaEventSynchronize(end));
      float ms = 0.0F;
      WEFT_CUDA_CALL(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 2) times.push_back(ms);
    }
    WEFT_CUDA_CALL(cudaEventDestroy(begin));
    WEFT_CUDA_CALL(cudaEventDestroy(end));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

Tensor rows(const Shapes& s, std::uint64_t seed) {
  return cast(normal({kTokens, s.H, s.d}, seed, 0.125), DType::bf16);
}
Tensor rates(const Shape& shape, std::uint64_t seed, double low, double high) {
  return cast(uniform(shape, seed, low, high), DType::f32);
}
Tensor weights(const Shape& shape, std::uint64_t seed) {
  return cast(normal(shape, seed, 0.02), DType::bf16);
}

TEST_F(MemorySpeedGpu, Ttt) {
  const Shapes s;
  for (const std::int64_t m : {0, 256}) {
    const std::vector<Tensor> x{rows(s, 1),
                                rows(s, 2),
                                rows(s, 3),
                                rates({kTokens, s.H}, 4, 0.0, 0.015),
                                {},
                                {},
                                rates({16}, 5, 0.0, 0.0),
                                rates({s.H, s.d}, 6, 1.0, 1.0),
                                rates({s.H, s.d}, 7, 0.0, 0.0),
                                m > 0 ? weights({s.H, s.d, m}, 8) : Tensor{},
                                m > 0 ? weights({s.H, m}, 9) : Tensor{},
                                weights({s.H, m > 0 ? m : s.d, s.d}, 10),
                                weights({s.H, s.d}, 11)};
    time(m > 0 ? "ttt_mlp, hidden 256, batch 16" : "ttt_linear, batch 16", x,
         [](Tape& tape, std::span<const Var> v, const DocumentsPtr& row) {
           return ttt_memory(tape, {v[0], v[1], v[2], v[3], v[6], v[7], v[8]}, {v[9], v[10], v[11], v[12]}, row,
                             FinalState::skip)
               .o;
         });
  }
}

TEST_F(MemorySpeedGpu, Titans) {
  const Shapes s;
  for (const std::int64_t chunk : {16, 64}) {
    for (const std::int64_t m : {0, 128}) {
      const std::vector<Tensor> x{rows(s, 1),
                                  rows(s, 2),
                                  rows(s, 3),
                                  rates({kTokens, s.H}, 4, 0.9, 1.0),
                                  rates({kTokens, s.H}, 5, 0.0, 0.9),
                                  rates({kTokens, s.H}, 6, 0.0, 0.002),
                                  m > 0 ? weights({s.H, s.d, m}, 8) : Tensor{},
                                  weights({s.H, m > 0 ? m : s.d, s.d}, 10)};
      time(fmt::format("titans, hidden {}, chunk {}", m, chunk), x,
           [chunk](Tape& tape, std::span<const Var> v, const DocumentsPtr& row) {
             return titans_memory(tape, {v[0], v[1], v[2], v[3], v[4], v[5]}, {v[6], v[7]}, chunk, row,
                                  FinalState::skip)
                 .o;
           });
    }
  }
}

TEST_F(MemorySpeedGpu, FastWeights) {
  const FastWeightConfig allmem{.chunk = 1024},
      lact{.chunk = 2048, .loss = InnerLoss::dot, .norm = NormMode::post, .residual = false, .orthogonalise = true};
  for (const Shapes& s : {Shapes{16, 64}, Shapes{4, 256}}) {
    const std::vector<Tensor> x{rows(s, 1),
                                rows(s, 2),
                                rows(s, 3),
                                rates({kTokens, s.H, 3}, 4, 0.0, 0.002),
                                rates({kTokens, s.H}, 5, 0.0, 1.0),
                                rates({kTokens, s.H}, 6, 0.0, 0.01),
                                weights({s.H, s.d, s.d}, 8),
                                weights({s.H, s.d, s.d}, 9),
                                weights({s.H, s.d, s.d}, 10)};
    for (const FastWeightConfig& config : {allmem, lact}) {
      if (config.orthogonalise && s.d > 64) continue;
      time(fmt::format("fast weights, {} heads of {}, {}", s.H, s.d, config.orthogonalise ? "lact" : "allmem"), x,
           [&](Tape& tape, std::span<const Var> v, const DocumentsPtr& row) {
             return fast_weight_memory(tape, {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]}, row, config);
           });
    }
  }
}

}  // namespace
}  // namespace weft
