#include "modules/families/block_sparse/block_sparse_attention.h"

#include <cmath>

#include "modules/families/block_sparse/block_sparse_backward_cpu.h"
#include "modules/families/block_sparse/block_sparse_cached.h"
#include "modules/families/block_sparse/block_sparse_forward_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<CachedBlockAttention> kCached{.op = "block-sparse attention from a cache",
                                                 .cuda = WEFT_ON_CUDA(cached_block_attention_cuda),
                                                 .cuda_workspace = WEFT_ON_CUDA(cached_block_attention_cuda_workspace)};

// Keys of a block where every block is attended to: large enough that partial results are few.
constexpr std::int64_t kDenseBlock = 128;

constexpr Dispatch<BlockSparseForward> kForward{
    .op = "block-sparse attention forward",
    .cpu =
        [](const BlockSparseForward& args, const Launch& launch) {
          dispatch_real(args.in.dtype, "block-sparse attention",
                        [&]<class T>() { block_sparse::ForwardCpu<T>(args).run(static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(block_sparse_forward_cuda),
    .cpu_workspace =
        [](const BlockSparseForward& args) {
          return dispatch_real(args.in.dtype, "block-sparse attention",
                               [&]<class T>() -> std::size_t { return block_sparse::ForwardCpu<T>(args).workspace(); });
        },
    .cuda_workspace = WEFT_ON_CUDA(block_sparse_forward_cuda_workspace)};
constexpr Dispatch<BlockSparseBackward> kBackward{
    .op = "block-sparse attention backward",
    .cpu =
        [](const BlockSparseBackward& args, const Launch& launch) {
          dispatch_real(args.in.dtype, "block-sparse attention",
                        [&]<class T>() { block_sparse::BackwardCpu<T>(args).run(static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(block_sparse_backward_cuda),
    .cpu_workspace =
        [](const BlockSparseBackward& args) {
          return dispatch_real(args.in.dtype, "block-sparse attention", [&]<class T>() -> std::size_t {
            return block_sparse::BackwardCpu<T>(args).workspace();
          });
        },
    .cuda_workspace = WEFT_ON_CUDA(block_sparse_backward_cuda_workspace)};

// Widest heads that the CUDA kernels take.
constexpr std::int64_t kWidestOnDevice = 256;

using DocumentList = std::shared_ptr<const std::vector<BlockSparseDocument>>;

struct Call {
  BlockSparseShape shape;
  std::int64_t block;
  KeySpan span;
  DocumentList documents;
  DocumentsPtr row{};  // of a packed row: what kernels of a device read

  BlockSparseInputs inputs(const Stream& stream, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& idx) const {
    return {.dtype = q.dtype(),
            .shape = shape,
            .block = block,
            .span = span,
            .scale = 1.0 / std::sqrt(static_cast<double>(shape.D)),
            .documents = documents->data(),
            .document_count = static_cast<std::int64_t>(documents->size()),
            .cu_seqlens = row == nullptr ? nullptr : row->cu_seqlens_on(stream),
            .N = row == nullptr ? 0 : row->count_on(stream),
            .idx = idx.defined() ? idx.data<std::int32_t>() : nullptr,
            .q = q.raw(),
            .k = k.defined() ? k.raw() : nullptr,
            .v = v.defined() ? v.raw() : nullptr};
  }
};

void check_selection(BlockSparseShape& s, const Tensor& idx, std::int64_t block) {
  if (idx.defined()) {
    WEFT_CHECK(idx.rank() == 3 && idx.dtype() == DType::i32 && idx.dim(0) == s.T && idx.dim(2) > 0 &&
                   (idx.dim(1) == 1 || idx.dim(1) == s.H_KV || idx.dim(1) == s.H_Q),
               "block-sparse attention: idx {} {} for {} queries of {} heads and {} key heads", idx.shape().str(),
               name_of(idx.dtype()), s.T, s.H_Q, s.H_KV);
    s.H_sel = idx.dim(1);
    s.n = idx.dim(2);
  }
  WEFT_CHECK(block > 0, "block-sparse attention: blocks of {} keys", block);
}

BlockSparseShape checked_shape(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& idx,
                               std::int64_t block) {
  WEFT_CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3,
             "block-sparse attention: q {}, k {}, v {}; expected three dimensions", q.shape().str(), k.shape().str(),
             v.shape().str());
  BlockSparseShape s{.T = q.dim(0),
                     .S = k.dim(0),
                     .H_Q = q.dim(1),
                     .H_KV = k.dim(1),
                     .D = q.dim(2),
                     .D_V = v.dim(2),
                     .H_sel = 0,
                     .n = 0};
  WEFT_CHECK(s.H_KV > 0 && v.dim(0) == s.S && v.dim(1) == s.H_KV && s.H_Q > 0 && s.H_Q % s.H_KV == 0 && s.D > 0 &&
                 k.dim(2) == s.D && s.D_V > 0 && k.dtype() == q.dtype() && v.dtype() == q.dtype(),
             "block-sparse attention: q {} {}, k {} {}, v {} {}", q.shape().str(), name_of(q.dtype()), k.shape().str(),
             name_of(k.dtype()), v.shape().str(), name_of(v.dtype()));
  check_selection(s, idx, block);
  return s;
}

CachedAttention forward(Tape& tape, const Call& call, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& idx) {
  const BlockSparseShape& s = call.shape;
  if (!tape.device().is_cpu()) {
    if (std::max(s.D, s.D_V) > kWidestOnDevice) {
      config_error("block-sparse attention: heads of widths {} and {}; a GPU takes up to {}", s.D, s.D_V,
                   kWidestOnDevice);
    }
  }
  const CachedAttention result{tape.empty({s.T, s.H_Q, s.D_V}, q.dtype()),
                               tape.empty({s.T, s.H_Q}, accumulator_dtype(q.dtype()))};
  kForward.run(tape, {call.inputs(tape.stream(), q, k, v, idx), result.o.raw(), result.lse.raw()});
  return result;
}

struct BlockSparseSaved {
  Tensor q, k, v, idx, o, lse;
  Call call;

  void backward(Backward& pass) const {
    const Tensor d_o = pass.grad(0);
    const GradTarget dq = pass.target(0), dk = pass.target(1), dv = pass.target(2);
    kBackward.run(pass, {.in = call.inputs(pass.tape().stream(), q, k, v, idx),
                         .o = o.raw(),
                         .lse = lse.raw(),
                         .d_o = d_o.raw(),
                         .dq = dq.raw(),
                         .write_dq = dq.write,
                         .dk = dk.raw(),
                         .write_dk = dk.write,
                         .dv = dv.raw(),
                         .write_dv = dv.write});
  }
};

AttentionWithStatistics differentiable(Tape& tape, const Var& q, const Var& k, const Var& v, const Tensor& idx,
                                       std::int64_t block, KeySpan span, const DocumentsPtr& documents) {
  const Call call{checked_shape(q.value, k.value, v.value, idx, block), block, span,
                  std::make_shared<std::vector<BlockSparseDocument>>(packed_documents(*documents, span)), documents};
  const std::int64_t S = call.shape.S;
  WEFT_CHECK(documents->tokens() == call.shape.T &&
                 (S == key_room(tape, *documents, span) || S == key_rows(*documents, span).back()),
             "block-sparse attention: q {}, k {} for documents of {} tokens and {} keys", q.shape().str(),
             k.shape().str(), documents->tokens(), key_rows(*documents, span).back());
  const CachedAttention r = forward(tape, call, q.value, k.value, v.value, idx);
  const Var o = tape.record("block_sparse_attention", {q, k, v}, r.o,
                            [&] { return BlockSparseSaved{q.value, k.value, v.value, idx, r.o, r.lse, call}; });
  return {o, r.lse};
}

CachedAttention cached(Tape& tape, const Tensor& q, const KeyValueCache& cache, std::int64_t H_KV, std::int64_t D_V,
                       const Tensor& idx, std::int64_t block, KeySpan span, const Documents& documents) {
  WEFT_CHECK(!tape.recording(), "block-sparse attention: a cache is for inference only");
  WEFT_CHECK(q.rank() == 3 && q.dim(0) == documents.tokens(), "block-sparse attention: q {} for documents of {} tokens",
             q.shape().str(), documents.tokens());
  BlockSparseShape shape{
      .T = q.dim(0), .S = 0, .H_Q = q.dim(1), .H_KV = H_KV, .D = q.dim(2), .D_V = D_V, .H_sel = 0, .n = 0};
  cache.check_fits(q.dtype(), {shape.T, 0, shape.H_Q, H_KV, shape.D, D_V}, {});
  check_selection(shape, idx, block);
  const auto list = std::make_shared<std::vector<BlockSparseDocument>>(cached_documents(documents, span, cache));
  if (tape.device().is_cpu()) return forward(tape, {shape, block, span, list}, q, {}, {}, idx);
  const CachedAttention result{tape.empty({shape.T, shape.H_Q, D_V}, q.dtype()),
                               tape.empty({shape.T, shape.H_Q}, accumulator_dtype(q.dtype()))};
  kCached.run(tape, {.in = cached_queries(tape.stream(), q, cache, H_KV, span, documents),
                     .D_V = D_V,
                     .block = block,
                     .H_sel = shape.H_sel,
                     .n = shape.n,
                     .idx = idx.defined() ? idx.data<std::int32_t>() : nullptr,
                     .o = result.o.raw(),
                     .lse = result.lse.raw()});
  return result;
}

}  // namespace

CachedQueries cached_queries(const Stream& stream, const Tensor& q, const KeyValueCache& cache, std::int64_t H_KV,
                             KeySpan span, const Documents& documents) {
  std::int64_t most = 0;
  for (std::int64_t n = 0; n < documents.count(); ++n) most = std::max<std::int64_t>(most, cache.length(n));
  return {.dtype = q.dtype(),
          .T = q.dim(0),
          .N = documents.count(),
          .H_Q = q.dim(1),
          .H_KV = H_KV,
          .D = q.dim(2),
          .cu_seqlens = documents.cu_seqlens_on(stream),
          .positions = documents.positions_on(stream),
          .q = q.raw(),
          .keys = cache.table(),
          .most_keys = most,
          .span = span};
}

std::vector<std::int32_t> key_rows(const Documents& documents, KeySpan span) {
  std::vector<std::int32_t> rows{0};
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    rows.push_back(rows.back() + static_cast<std::int32_t>(span.count(documents.length(n))));
  }
  return rows;
}

std::int64_t key_room(const Tape& tape, const Documents& documents, KeySpan span) {
  return tape.device().is_cpu() ? key_rows(documents, span).back() : span.count(documents.tokens());
}

AttentionWithStatistics block_sparse_attention(Tape& tape, const Var& q, const Var& k, const Var& v, const Tensor& idx,
                                               std::int64_t block, const DocumentsPtr& documents) {
  WEFT_CHECK(idx.defined(), "block-sparse attention: no indices");
  return differentiable(tape, q, k, v, idx, block, {}, documents);
}

AttentionWithStatistics span_attention(Tape& tape, const Var& q, const Var& k, const Var& v, KeySpan span,
                                       const DocumentsPtr& documents) {
  return differentiable(tape, q, k, v, {}, kDenseBlock, span, documents);
}

std::vector<BlockSparseDocument> packed_documents(const Documents& documents, KeySpan span) {
  std::vector<BlockSparseDocument> list;
  const std::vector<std::int32_t> rows = key_rows(documents, span);
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    const auto i = static_cast<std::size_t>(n);
    if (documents.length(n) == 0) continue;
    list.push_back({.query_row = documents.begin(n),
                    .query_count = documents.length(n),
                    .query_position = 0,
                    .key_row = rows[i],
                    .key_count = rows[i + 1] - rows[i],
                    .cached = {}});
  }
  return list;
}

std::vector<BlockSparseDocument> cached_documents(const Documents& documents, KeySpan span,
                                                  const KeyValueCache& cache) {
  WEFT_CHECK(documents.count() == cache.sequences(), "block-sparse attention: {} documents for a cache of {} sequences",
             documents.count(), cache.sequences());
  std::vector<BlockSparseDocument> list;
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    if (documents.length(n) == 0) continue;
    const std::int64_t keys = span.count(documents.pos0(n) + documents.length(n));
    WEFT_CHECK(keys == cache.length(n), "block-sparse attention: sequence {} has {} keys in its cache, expected {}", n,
               cache.length(n), keys);
    list.push_back({.query_row = documents.begin(n),
                    .query_count = documents.length(n),
                    .query_position = documents.pos0(n),
                    .key_row = 0,
                    .key_count = cache.length(n),
                    .cached = cache.keys(n)});
  }
  return list;
}

CachedAttention block_sparse_attention_cached(Tape& tape, const Tensor& q, const KeyValueCache& cache,
                                              std::int64_t H_KV, std::int64_t D_V, const Tensor& idx,
                                              std::int64_t block, const Documents& documents) {
  WEFT_CHECK(idx.defined(), "block-sparse attention: no indices");
  return cached(tape, q, cache, H_KV, D_V, idx, block, {}, documents);
}

CachedAttention span_attention_cached(Tape& tape, const Tensor& q, const KeyValueCache& cache, std::int64_t H_KV,
                                      std::int64_t D_V, KeySpan span, const Documents& documents) {
  return cached(tape, q, cache, H_KV, D_V, {}, kDenseBlock, span, documents);
}

}  // namespace weft
