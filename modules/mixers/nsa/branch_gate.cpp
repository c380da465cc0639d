#include "modules/mixers/nsa/branch_gate.h"

#include "autograd/parallel_for.h"
#include "autograd/vec_math.h"

namespace weft {
namespace {

template <class T>
void forward_cpu(const BranchGateForward& a) {
  const auto* g = static_cast<const T*>(a.g);
  auto* y = static_cast<T*>(a.y);
  parallel_blocks(a.R, rows_per_block(a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      T gate[kBranches];
      const T* o[kBranches];
      for (int b = 0; b < kBranches; ++b) {
        gate[b] = sigmoid(g[i * kBranches + b]);
        o[b] = static_cast<const T*>(a.o[static_cast<std::size_t>(b)]) + i * a.D;
      }
#pragma omp simd
      for (std::int64_t c = 0; c < a.D; ++c) y[i * a.D + c] = gate[0] * o[0][c] + gate[1] * o[1][c] + gate[2] * o[2][c];
    }
  });
}

template <class T>
void backward_cpu(const BranchGateBackward& a) {
  const auto* g = static_cast<const T*>(a.g);
  const auto* dy_all = static_cast<const T*>(a.dy);
  parallel_blocks(a.R, rows_per_block(a.D), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* dy = dy_all + i * a.D;
      for (int b = 0; b < kBranches; ++b) {
        const auto branch = static_cast<std::size_t>(b);
        const T gate = sigmoid(g[i * kBranches + b]);
        if (a.d_o[branch] != nullptr) {
          T* d_o = static_cast<T*>(a.d_o[branch]) + i * a.D;
          for (std::int64_t c = 0; c < a.D; ++c) store(d_o[c], gate * dy[c], a.write_d_o[branch]);
        }
        if (a.dg == nullptr) continue;
        const T* o = static_cast<const T*>(a.o[branch]) + i * a.D;
        T dot = 0;
#pragma omp simd reduction(+ : dot)
        for (std::int64_t c = 0; c < a.D; ++c) dot += dy[c] * o[c];
        store(static_cast<T*>(a.dg)[i * kBranches + b], dot * gate * (T(1) - gate), a.write_dg);
      }
    }
  });
}

constexpr Dispatch<BranchGateForward> kForward{
    .op = "branch gate forward",
    .cpu = [](const BranchGateForward& args,
              const Launch&) { dispatch_real(args.dtype, "branch gate", [&]<class T>() { forward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(branch_gate_forward_cuda)};
constexpr Dispatch<BranchGateBackward> kBackward{
    .op = "branch gate backward",
    .cpu = [](const BranchGateBackward& args,
              const Launch&) { dispatch_real(args.dtype, "branch gate", [&]<class T>() { backward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(branch_gate_backward_cuda)};

struct BranchGateSaved {
  std::array<Tensor, kBranches> o;
  Tensor g;

  void backward(Backward& pass) const {
    BranchGateBackward args{.dtype = g.dtype(),
                            .R = o[0].shape().rows(),
                            .D = o[0].shape().back(),
                            .o = {o[0].raw(), o[1].raw(), o[2].raw()},
                            .g = g.raw(),
                            .dy = pass.grad(0).raw(),
                            .d_o = {},
                            .write_d_o = {},
                            .dg = nullptr,
                            .write_dg = {}};
    std::array<GradTarget, kBranches> d_o;  // keeps the tensors while the kernel writes them
    for (std::size_t b = 0; b < kBranches; ++b) {
      d_o[b] = pass.target(static_cast<int>(b));
      args.d_o[b] = d_o[b].raw();
      args.write_d_o[b] = d_o[b].write;
    }
    const GradTarget dg = pass.target(kBranches);
    args.dg = dg.raw();
    args.write_dg = dg.write;
    kBackward(args, pass.launch());
  }
};

}  // namespace

Var branch_gate(Tape& tape, const std::array<Var, kBranches>& o, const Var& g) {
  for (const Var& branch : o) {
    WEFT_CHECK(branch.shape().rank() == 3 && branch.shape() == o[0].shape() && branch.dtype() == g.dtype() &&
                   g.value.numel() == branch.shape().rows() * kBranches,
               "branch gate: o {} {} and {}, gates {}", branch.shape().str(), name_of(branch.dtype()),
               o[0].shape().str(), g.shape().str());
  }
  const Tensor y = tape.empty(o[0].shape(), g.dtype());
  kForward({.dtype = g.dtype(),
            .R = y.shape().rows(),
            .D = y.shape().back(),
            .o = {o[0].value.raw(), o[1].value.raw(), o[2].value.raw()},
            .g = g.value.raw(),
            .y = y.raw()},
           tape.launch());
  return tape.record("branch_gate", {o[0], o[1], o[2], g}, y, [&] {
    return BranchGateSaved{{o[0].value, o[1].value, o[2].value}, g.value};
  });
}

}  // namespace weft
