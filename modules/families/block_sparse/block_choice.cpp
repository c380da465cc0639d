#include "modules/families/block_sparse/block_choice.h"

#include <cmath>

#include "autograd/tape_watch.h"
#include "modules/families/block_sparse/block_choice_cpu.h"
#include "modules/families/block_sparse/block_sparse_cached.h"

namespace weft {
namespace {

constexpr Dispatch<BlockChoice> kChoose{
    .op = "block choice",
    .cpu =
        [](const BlockChoice& args, const Launch& launch) {
          dispatch_real(args.dtype, "block choice",
                        [&]<class T>() { BlockChoiceCpu<T>(args).run(static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(block_choice_cuda),
    .cpu_workspace =
        [](const BlockChoice& args) {
          return dispatch_real(args.dtype, "block choice",
                               [&]<class T>() -> std::size_t { return BlockChoiceCpu<T>(args).workspace(); });
        },
    .cuda_workspace = WEFT_ON_CUDA(block_choice_cuda_workspace)};

constexpr Dispatch<CachedBlockChoice> kChooseCached{.op = "block choice from a cache",
                                                    .cuda = WEFT_ON_CUDA(cached_block_choice_cuda),
                                                    .cuda_workspace = WEFT_ON_CUDA(cached_block_choice_cuda_workspace)};

// `row`: the packed row if keys are in one; else `cache` has them.
Tensor choose(Tape& tape, const Tensor& q, const Tensor& k, std::int64_t H_KV, const Tensor& lse, const BlockRule& rule,
              KeySpan span, BlockScore score, const std::vector<BlockSparseDocument>& documents, const Documents& row,
              const KeyValueCache* cache) {
  const std::int64_t T = q.dim(0), H_Q = q.dim(1);
  WEFT_CHECK(H_KV > 0 && H_Q % H_KV == 0 &&
                 (!lse.defined() || (lse.shape() == Shape({T, H_Q}) && lse.dtype() == accumulator_dtype(q.dtype()))),
             "block choice: q {}, {} summary heads, lse {}", q.shape().str(), H_KV, lse.shape().str());
  WEFT_CHECK(rule.block > 0 && rule.first >= 0 && rule.local >= 1 && rule.selected >= rule.first + rule.local,
             "block choice: {} blocks of {} tokens, {} first and {} local", rule.selected, rule.block, rule.first,
             rule.local);
  WEFT_CHECK(span.length % span.stride == 0 && rule.block % span.stride == 0 &&
                 (score != BlockScore::logit || (span.length == rule.block && span.stride == rule.block)),
             "block choice: summaries of {} tokens every {} for blocks of {}", span.length, span.stride, rule.block);
  const std::int64_t heads = score == BlockScore::logit ? H_Q : H_KV;
  const bool on_device = !tape.device().is_cpu();
  std::int64_t longest = on_device && cache == nullptr ? T : 0;
  for (const BlockSparseDocument& d : documents) {
    longest = std::max<std::int64_t>(longest, std::int64_t{d.query_position} + d.query_count);
  }
  const BlockRule within = rule.within(longest);
  const Tensor idx = tape.empty({T, heads, within.slots()}, DType::i32);
  if (on_device && cache != nullptr) {
    kChooseCached.run(tape, {.in = cached_queries(tape.stream(), q, *cache, H_KV, span, row),
                             .rule = within,
                             .score = score,
                             .blocks = (longest + rule.block - 1) / rule.block,
                             .lse = lse.defined() ? lse.raw() : nullptr,
                             .idx = idx.data<std::int32_t>()});
    return idx;
  }
  const BlockChoice args{.dtype = q.dtype(),
                         .T = T,
                         .S = k.defined() ? k.dim(0) : 0,
                         .H_Q = H_Q,
                         .H_KV = H_KV,
                         .D = q.dim(2),
                         .rule = within,
                         .span = span,
                         .score = score,
                         .documents = documents.data(),
                         .document_count = static_cast<std::int64_t>(documents.size()),
                         .cu_seqlens = on_device ? row.cu_seqlens_on(tape.stream()) : nullptr,
                         .N = on_device ? row.count_on(tape.stream()) : 0,
                         .q = q.raw(),
                         .k = k.defined() ? k.raw() : nullptr,
                         .lse = lse.defined() ? lse.raw() : nullptr,
                         .idx = idx.data<std::int32_t>()};
  kChoose.run(tape, args);
  if (TapeWatch* watch = TapeWatch::current(); watch != nullptr && tape.recording()) watch->chosen(kChoose.op, idx);
  return idx;
}

}  // namespace

BlockRule BlockRule::within(std::int64_t length) const {
  const std::int64_t blocks = std::max<std::int64_t>(1, (length + block - 1) / block);
  BlockRule rule = *this;
  rule.selected = std::min(selected, blocks);
  rule.dense = std::min(dense, blocks * block);
  return rule;
}

Tensor choose_blocks(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& lse, const BlockRule& rule,
                     KeySpan span, BlockScore score, const Documents& documents) {
  WEFT_CHECK(q.rank() == 3 && k.rank() == 3 && q.dim(0) == documents.tokens() && q.dim(2) == k.dim(2) &&
                 (k.dim(0) == key_room(tape, documents, span) || k.dim(0) == key_rows(documents, span).back()) &&
                 k.dtype() == q.dtype(),
             "block choice: q {}, summaries {} for documents of {} tokens", q.shape().str(), k.shape().str(),
             documents.tokens());
  return choose(tape, q, k, k.dim(1), lse, rule, span, score, packed_documents(documents, span), documents, nullptr);
}

Tensor choose_blocks_cached(Tape& tape, const Tensor& q, const KeyValueCache& summaries, std::int64_t H_KV,
                            const Tensor& lse, const BlockRule& rule, KeySpan span, BlockScore score,
                            const Documents& documents) {
  return choose(tape, q, {}, H_KV, lse, rule, span, score, cached_documents(documents, span, summaries), documents,
                &summaries);
}

}  // namespace weft
