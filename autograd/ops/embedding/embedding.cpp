#include "autograd/ops/embedding/embedding.h"

#include "autograd/ops/embedding/embedding_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<EmbeddingForward> kForward{.op = "embedding forward",
                                              .cpu =
                                                  [](const EmbeddingForward& args, const Launch&) {
                                                    dispatch_real(args.dtype, "embedding",
                                                                  [&]<class T>() { embedding_forward_cpu<T>(args); });
                                                  },
                                              .cuda = WEFT_ON_CUDA(embedding_forward_cuda)};
constexpr Dispatch<EmbeddingBackward> kBackward{
    .op = "embedding backward",
    .cpu =
        [](const EmbeddingBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "embedding", [&]<class T>() {
            embedding_backward_cpu<T>(args, static_cast<std::int32_t*>(launch.workspace));
          });
        },
    .cuda = WEFT_ON_CUDA(embedding_backward_cuda),
    .cpu_workspace =
        [](const EmbeddingBackward& args) {
          return static_cast<std::size_t>(args.T + args.V + 1 + std::min(args.T, args.V)) * sizeof(std::int32_t);
        },
    .cuda_workspace = WEFT_ON_CUDA(embedding_backward_cuda_workspace)};

struct EmbeddingSaved {
  Tensor tokens;
  std::int64_t V, D;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget dtable = pass.target(0);
    const EmbeddingBackward args{.dtype = dy.dtype(),
                                 .T = tokens.numel(),
                                 .V = V,
                                 .D = D,
                                 .tokens = tokens.data<std::int32_t>(),
                                 .dy = dy.raw(),
                                 .dtable = dtable.raw(),
                                 .write_dtable = dtable.write};
    kBackward.run(pass, args);
  }
};

}  // namespace

Var embedding(Tape& tape, const Tensor& tokens, const Var& table) {
  WEFT_CHECK(tokens.rank() == 1 && table.shape().rank() == 2, "embedding: tokens {} in a table {}",
             tokens.shape().str(), table.shape().str());
  const std::int64_t T = tokens.dim(0), V = table.dim(0), D = table.dim(1);
  WEFT_CHECK(T <= INT32_MAX, "embedding: {} tokens in one row", T);
  const Tensor y = tape.empty({T, D}, table.dtype());
  kForward.run(tape, {.dtype = table.dtype(),
                      .T = T,
                      .V = V,
                      .D = D,
                      .tokens = tokens.data<std::int32_t>(),
                      .table = table.value.raw(),
                      .y = y.raw()});
  return tape.record("embedding", {table}, y, [&] { return EmbeddingSaved{tokens, V, D}; });
}

}  // namespace weft
