#include "modules/families/block_sparse/compression.h"

#include "modules/families/block_sparse/compression_backward_cpu.h"
#include "modules/families/block_sparse/compression_forward_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<CompressionForward> kForward{
    .op = "compression forward",
    .cpu =
        [](const CompressionForward& args, const Launch& launch) {
          dispatch_real(args.in.dtype, "compression",
                        [&]<class T>() { CompressionForwardCpu<T>(args).run(static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(compression_forward_cuda),
    .cpu_workspace =
        [](const CompressionForward& args) {
          return dispatch_real(args.in.dtype, "compression",
                               [&]<class T>() -> std::size_t { return CompressionForwardCpu<T>(args).workspace(); });
        },
    .cuda_workspace = WEFT_ON_CUDA(compression_forward_cuda_workspace)};
constexpr Dispatch<CompressionBackward> kBackward{
    .op = "compression backward",
    .cpu =
        [](const CompressionBackward& args, const Launch& launch) {
          dispatch_real(args.in.dtype, "compression",
                        [&]<class T>() { CompressionBackwardCpu<T>(args).run(static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(compression_backward_cuda),
    .cpu_workspace =
        [](const CompressionBackward& args) {
          return dispatch_real(args.in.dtype, "compression",
                               [&]<class T>() -> std::size_t { return CompressionBackwardCpu<T>(args).workspace(); });
        },
    .cuda_workspace = WEFT_ON_CUDA(compression_backward_cuda_workspace)};

using DocumentList = std::shared_ptr<const std::vector<CompressionDocument>>;

const void* raw(const Tensor& t) {
  return t.defined() ? t.raw() : nullptr;
}

struct CompressionSaved {
  Tensor x, pe, w1, b1, w2;  // x for maps that are learned, the others for the MLP
  Shape shape;               // of x
  DType dtype;
  KeySpan span;
  std::int64_t S;
  DocumentList documents;
  DocumentsPtr row;

  CompressionInputs inputs(const Stream& stream) const {
    return {.dtype = dtype,
            .T = shape[0],
            .S = S,
            .H = shape[1],
            .D = shape[2],
            .r = w1.defined() ? w1.dim(2) : 0,
            .span = span,
            .documents = documents->data(),
            .document_count = static_cast<std::int64_t>(documents->size()),
            .cu_seqlens = row->cu_seqlens_on(stream),
            .N = row->count_on(stream),
            .x = raw(x),
            .pe = raw(pe),
            .w1 = raw(w1),
            .b1 = raw(b1),
            .w2 = raw(w2)};
  }

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0);
    const auto target = [&](int i, const Tensor& weight) { return weight.defined() ? pass.target(i) : GradTarget{}; };
    const GradTarget dpe = target(1, pe), dw1 = target(2, w1), db1 = target(3, b1), dw2 = target(4, w2);
    const CompressionBackward args{.in = inputs(pass.tape().stream()),
                                   .dy = pass.grad(0).raw(),
                                   .dx = dx.raw(),
                                   .write_dx = dx.write,
                                   .dpe = dpe.raw(),
                                   .dw1 = dw1.raw(),
                                   .db1 = db1.raw(),
                                   .dw2 = dw2.raw(),
                                   .write_dpe = dpe.write,
                                   .write_dw1 = dw1.write,
                                   .write_db1 = db1.write,
                                   .write_dw2 = dw2.write};
    kBackward.run(pass, args);
  }
};

void check(const Var& x, const CompressionWeights& w, KeySpan span, const Documents& documents) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(0) == documents.tokens() && x.dim(1) > 0 && x.dim(2) > 0,
             "compression: x {} for documents of {} tokens", x.shape().str(), documents.tokens());
  WEFT_CHECK(span.stride > 0 && span.length > 0 && span.length % span.stride == 0,
             "compression: blocks of {} tokens every {}", span.length, span.stride);
  const bool mean = !w.w1.value.defined();
  const bool mlp = w.w2.value.defined();
  WEFT_CHECK(w.pe.value.defined() == mlp && w.b1.value.defined() == mlp && !(mean && mlp),
             "compression: weights of no form");
  if (mean) return;
  WEFT_CHECK(w.w1.dtype() == x.dtype() &&
                 (!mlp || (w.w2.dtype() == x.dtype() && w.pe.dtype() == accumulator_dtype(x.dtype()) &&
                           w.b1.dtype() == accumulator_dtype(x.dtype()))),
             "compression: weights {} for x {}", name_of(w.w1.dtype()), name_of(x.dtype()));
  const std::int64_t H = x.dim(1), D = x.dim(2), l = span.length;
  const std::int64_t r = w.w1.value.numel() / (H * l * D);
  WEFT_CHECK(w.w1.shape() == Shape({H, l * D, r}) && (mlp || r == D), "compression: w1 {} for x {} and blocks of {}",
             w.w1.shape().str(), x.shape().str(), l);
  WEFT_CHECK(
      !mlp || (w.pe.shape() == Shape({H, l, D}) && w.b1.shape() == Shape({H, r}) && w.w2.shape() == Shape({H, r, D})),
      "compression: pe {}, b1 {}, w2 {} for w1 {}", w.pe.shape().str(), w.b1.shape().str(), w.w2.shape().str(),
      w.w1.shape().str());
}

}  // namespace

Var compress(Tape& tape, const Var& x, const CompressionWeights& weights, KeySpan span, const DocumentsPtr& documents) {
  return compress(tape, x, weights, span, documents, key_rows(*documents, span).back());
}

Var compress(Tape& tape, const Var& x, const CompressionWeights& weights, KeySpan span, const DocumentsPtr& documents,
             std::int64_t count) {
  check(x, weights, span, *documents);
  const std::vector<std::int32_t> rows = key_rows(*documents, span);
  WEFT_CHECK(count == rows.back() || count == key_room(tape, *documents, span), "compression: {} rows for {} blocks",
             count, rows.back());
  auto list = std::make_shared<std::vector<CompressionDocument>>();
  for (std::int64_t n = 0; n < documents->count(); ++n) {
    const auto i = static_cast<std::size_t>(n);
    if (documents->length(n) == 0) continue;
    list->push_back({documents->begin(n), documents->length(n), rows[i], rows[i + 1] - rows[i]});
  }
  CompressionSaved saved{.x = x.value,
                         .pe = weights.pe.value,
                         .w1 = weights.w1.value,
                         .b1 = weights.b1.value,
                         .w2 = weights.w2.value,
                         .shape = x.shape(),
                         .dtype = x.dtype(),
                         .span = span,
                         .S = count,
                         .documents = list,
                         .row = documents};
  const Tensor y = tape.empty({count, x.dim(1), x.dim(2)}, x.dtype());
  kForward.run(tape, {saved.inputs(tape.stream()), y.raw()});
  if (!saved.w1.defined()) saved.x = {};
  return tape.record("compression", {x, weights.pe, weights.w1, weights.b1, weights.w2}, y, [&] { return saved; });
}

}  // namespace weft
