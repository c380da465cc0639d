#include "modules/families/attention/attention.h"

#include "modules/families/attention/attention_backward_cpu.h"
#include "modules/families/attention/attention_decode.h"
#include "modules/families/attention/attention_forward_cpu.h"
#include "modules/mixer.h"

namespace weft {
namespace {

constexpr Dispatch<AttentionForward> kForward{
    .op = "attention forward",
    .cpu =
        [](const AttentionForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "attention",
                        [&]<class T>() { AttentionForwardCpu<T>(args).run(static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(attention_forward_cuda),
    .cpu_workspace =
        [](const AttentionForward& args) {
          return dispatch_real(args.dtype, "attention",
                               [&]<class T>() -> std::size_t { return AttentionForwardCpu<T>(args).workspace(); });
        },
    .cuda_workspace = WEFT_ON_CUDA(attention_forward_cuda_workspace)};
constexpr Dispatch<AttentionBackward> kBackward{
    .op = "attention backward",
    .cpu =
        [](const AttentionBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "attention",
                        [&]<class T>() { AttentionBackwardCpu<T>(args).run(static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(attention_backward_cuda),
    .cpu_workspace =
        [](const AttentionBackward& args) {
          return dispatch_real(args.dtype, "attention",
                               [&]<class T>() -> std::size_t { return AttentionBackwardCpu<T>(args).workspace(); });
        },
    .cuda_workspace = WEFT_ON_CUDA(attention_backward_cuda_workspace)};

constexpr Dispatch<AttentionDecode> kDecode{.op = "attention of one token",
                                            .cuda = WEFT_ON_CUDA(attention_decode_cuda),
                                            .cuda_workspace = WEFT_ON_CUDA(attention_decode_cuda_workspace)};

using DocumentList = std::shared_ptr<const std::vector<AttentionDocument>>;

// The documents of a packed row as the kernels see them; empty ones are left out.
DocumentList document_list(const Documents& documents, const AttentionOptions& options) {
  auto list = std::make_shared<std::vector<AttentionDocument>>();
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    if (documents.length(n) == 0) continue;
    const bool anchored = documents.anchored() && n > 0;
    const std::int32_t position = documents.pos0(n);
    WEFT_CHECK(!anchored || (position >= 1 && (position == 1 || position >= options.sink_tokens)),
               "attention: document {} of an anchored row starts at position {} with {} sink tokens", n, position,
               options.sink_tokens);
    list->push_back({.query_row = documents.begin(n),
                     .query_count = documents.length(n),
                     .query_position = position,
                     .key_row = documents.begin(n),
                     .key_count = documents.length(n),
                     .key_position = position,
                     .anchor_row = anchored ? 0 : -1,
                     .cached = {}});
  }
  return list;
}

AttentionShape checked_shape(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sink_logit,
                             const Documents& documents, const AttentionOptions& options) {
  WEFT_CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3, "attention: q {}, k {}, v {}; expected three dimensions",
             q.shape().str(), k.shape().str(), v.shape().str());
  const AttentionShape s{q.dim(0), k.dim(0), q.dim(1), k.dim(1), q.dim(2), v.dim(2)};
  WEFT_CHECK(s.S == s.T && v.dim(0) == s.T && documents.tokens() == s.T,
             "attention: q {}, k {}, v {} for documents of {} tokens", q.shape().str(), k.shape().str(),
             v.shape().str(), documents.tokens());
  WEFT_CHECK(s.H_KV > 0 && v.dim(1) == s.H_KV && s.H_Q % s.H_KV == 0 && s.H_Q > 0,
             "attention: {} query heads, {} key heads, {} value heads", s.H_Q, s.H_KV, v.dim(1));
  WEFT_CHECK(s.D > 0 && k.dim(2) == s.D && s.D_V > 0, "attention: widths of q {}, k {}, v {}", s.D, k.dim(2), s.D_V);
  WEFT_CHECK(k.dtype() == q.dtype() && v.dtype() == q.dtype(), "attention: q {}, k {}, v {}", name_of(q.dtype()),
             name_of(k.dtype()), name_of(v.dtype()));
  WEFT_CHECK(
      !sink_logit.defined() || (sink_logit.numel() == s.H_Q && sink_logit.dtype() == accumulator_dtype(q.dtype())),
      "attention: sink_logit {} {} for {} query heads of {}", sink_logit.shape().str(), name_of(sink_logit.dtype()),
      s.H_Q, name_of(accumulator_dtype(q.dtype())));
  WEFT_CHECK(options.window >= 0 && options.sink_tokens >= 0 && options.soft_cap >= 0.0,
             "attention: window {}, sink_tokens {}, soft_cap {}; none may be negative", options.window,
             options.sink_tokens, options.soft_cap);
  return s;
}

// The documents as the kernels of a device see them.
AttentionRow row_on(const Stream& stream, const Documents& documents) {
  if (stream.device.is_cpu()) return {};
  return {.cu_seqlens = documents.cu_seqlens_on(stream),
          .pos0 = documents.pos0_on(stream),
          .document_count = documents.count_on(stream),
          .anchored = documents.anchored(),
          .long_tiles = documents.chunks_on(stream, kForwardRows),
          .short_tiles = documents.chunks_on(stream, kBackwardRows)};
}

struct Result {
  Tensor o, lse;
};

Result forward(Tape& tape, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& sink_logit, const std::vector<AttentionDocument>& documents,
               const AttentionOptions& options, const AttentionRow& row) {
  const Result result{tape.empty({shape.T, shape.H_Q, shape.D_V}, q.dtype()),
                      tape.empty({shape.T, shape.H_Q}, accumulator_dtype(q.dtype()))};
  const AttentionForward args{.dtype = q.dtype(),
                              .shape = shape,
                              .options = options,
                              .documents = documents.data(),
                              .document_count = static_cast<std::int64_t>(documents.size()),
                              .q = q.raw(),
                              .k = k.raw(),
                              .v = v.raw(),
                              .sink_logit = sink_logit.defined() ? sink_logit.raw() : nullptr,
                              .o = result.o.raw(),
                              .lse = result.lse.raw(),
                              .row = row};
  kForward.run(tape, args);
  return result;
}

struct AttentionSaved {
  Tensor q, k, v, sink_logit, o, lse;
  DocumentsPtr row;
  DocumentList documents;
  AttentionShape shape;
  AttentionOptions options;

  void backward(Backward& pass) const {
    const Tensor d_o = pass.grad_or_zero(0);
    const Tensor dlse = pass.grad(1);
    const GradTarget dq = pass.target(0), dk = pass.target(1), dv = pass.target(2);
    const GradTarget dsink = sink_logit.defined() ? pass.target(3) : GradTarget{};
    const AttentionBackward args{.dtype = q.dtype(),
                                 .shape = shape,
                                 .options = options,
                                 .documents = documents->data(),
                                 .document_count = static_cast<std::int64_t>(documents->size()),
                                 .q = q.raw(),
                                 .k = k.raw(),
                                 .v = v.raw(),
                                 .sink_logit = sink_logit.defined() ? sink_logit.raw() : nullptr,
                                 .o = o.raw(),
                                 .lse = lse.raw(),
                                 .d_o = d_o.raw(),
                                 .dlse = dlse.defined() ? dlse.raw() : nullptr,
                                 .dq = dq.raw(),
                                 .write_dq = dq.write,
                                 .dk = dk.raw(),
                                 .write_dk = dk.write,
                                 .dv = dv.raw(),
                                 .write_dv = dv.write,
                                 .dsink_logit = dsink.raw(),
                                 .write_dsink_logit = dsink.write,
                                 .row = row_on(pass.tape().stream(), *row)};
    kBackward.run(pass, args);
  }
};

}  // namespace

std::array<Var, 2> attention_with_lse(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& sink_logit,
                                      const DocumentsPtr& documents, const AttentionOptions& options) {
  const AttentionShape shape = checked_shape(q.value, k.value, v.value, sink_logit.value, *documents, options);
  const DocumentList list = document_list(*documents, options);
  const Result r = forward(tape, shape, q.value, k.value, v.value, sink_logit.value, *list, options,
                           row_on(tape.stream(), *documents));
  return tape.record("attention", {q, k, v, sink_logit}, std::array{r.o, r.lse}, [&] {
    return AttentionSaved{q.value, k.value, v.value, sink_logit.value, r.o, r.lse, documents, list, shape, options};
  });
}

Var attention(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& sink_logit,
              const DocumentsPtr& documents, const AttentionOptions& options) {
  return attention_with_lse(tape, q, k, v, sink_logit, documents, options)[0];
}

namespace {

// On a device, one token of each sequence.
Tensor decoded(Tape& tape, const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& sink_logit, const Documents& documents, const AttentionOptions& options,
               KeyValueCache& cache) {
  cache.make_room();
  const Tensor o = tape.empty({shape.T, shape.H_Q, shape.D_V}, q.dtype());
  kDecode.run(tape, {.dtype = q.dtype(),
                     .N = shape.T,
                     .H_Q = shape.H_Q,
                     .H_KV = shape.H_KV,
                     .D = shape.D,
                     .D_V = shape.D_V,
                     .options = options,
                     .cache = cache.table(),
                     .most_keys = cache.visible_positions(),
                     .cu_seqlens = documents.cu_seqlens_on(tape.stream()),
                     .positions = documents.positions_on(tape.stream()),
                     .q = q.raw(),
                     .k = k.raw(),
                     .v = v.raw(),
                     .sink_logit = sink_logit.defined() ? sink_logit.raw() : nullptr,
                     .o = o.raw()});
  cache.count_token();
  return o;
}

}  // namespace

Tensor attention_cached(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sink_logit,
                        const Documents& documents, const AttentionOptions& options, KeyValueCache& cache) {
  const AttentionShape shape = checked_shape(q, k, v, sink_logit, documents, options);
  WEFT_CHECK(!documents.anchored(), "attention: a row that continues from a cache has no anchor");
  WEFT_CHECK(documents.count() == cache.sequences(), "attention: {} documents for a cache of {} sequences",
             documents.count(), cache.sequences());
  cache.check_fits(q.dtype(), shape, options);
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    WEFT_CHECK(documents.length(n) == 0 || documents.pos0(n) == cache.length(n),
               "attention: document {} starts at position {}, its cache holds {}", n, documents.pos0(n),
               cache.length(n));
  }
  const bool on_device = !tape.device().is_cpu();
  if (on_device && is_decoding_step(documents)) {
    return decoded(tape, shape, q, k, v, sink_logit, documents, options, cache);
  }
  const auto append = [&] { cache.append(documents.cu_seqlens(), k, v); };
  if (on_device && are_first_tokens(documents)) {
    append();
    return forward(tape, shape, q, k, v, sink_logit, *document_list(documents, options), options,
                   row_on(tape.stream(), documents))
        .o;
  }
  std::vector<AttentionDocument> list;
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    if (documents.length(n) == 0) continue;
    list.push_back({.query_row = documents.begin(n),
                    .query_count = documents.length(n),
                    .query_position = documents.pos0(n),
                    .key_row = documents.begin(n),
                    .key_count = documents.length(n),
                    .key_position = documents.pos0(n),
                    .cached = cache.keys(n)});
  }
  const Result r = forward(tape, shape, q, k, v, sink_logit, list, options, {});
  append();
  return r.o;
}

double attention_pairs(const Documents& documents, const AttentionOptions& options) {
  double pairs = 0.0;
  const DocumentList list = document_list(documents, options);
  for (const AttentionDocument& d : *list) {
    const Visibility see(d, options);
    for (std::int64_t key = see.own_begin; key < see.own_end; ++key) {
      const Visibility::Queries who = see.queries_of(key);
      const std::int64_t last = std::min<std::int64_t>(who.last, d.query_position + d.query_count);
      pairs +=
          static_cast<double>(std::max<std::int64_t>(0, last - std::max<std::int64_t>(who.first, d.query_position)));
    }
    if (d.anchor_row >= 0) pairs += d.query_count;
  }
  return pairs;
}

}  // namespace weft
