#include "modules/families/block_sparse/summary_cache.h"

#include "autograd/transfer.h"

namespace weft {
namespace {

void copy_rows(const Tensor& from, std::int64_t from_row, std::int64_t rows, const Tensor& to, std::int64_t to_row,
               const Stream& stream) {
  if (rows == 0 || to.numel() == 0) return;
  copy(to.rows(to_row, to_row + rows), from.rows(from_row, from_row + rows), stream);
}

}  // namespace

SummaryCache::SummaryCache(std::int64_t sequences, std::int64_t H, std::int64_t D, std::int64_t D_V, KeySpan span,
                           const Place& place)
    : H_(H),
      D_(D),
      D_V_(D_V),
      span_(span),
      place_(place),
      summaries_(sequences, H, D, D_V, {}, place),
      k_tail_(place.zeros({sequences * (span.length - 1), H, D}, place.dtype)),
      v_tail_(place.zeros({sequences * (span.length - 1), H, D_V}, place.dtype)),
      lengths_(static_cast<std::size_t>(sequences), 0) {}

SummaryCache::SummaryCache(const SummaryCache& other)
    : H_(other.H_),
      D_(other.D_),
      D_V_(other.D_V_),
      span_(other.span_),
      place_(other.place_),
      summaries_(other.summaries_),
      k_tail_(to_memory(other.k_tail_, place_.lasting, place_.stream)),
      v_tail_(to_memory(other.v_tail_, place_.lasting, place_.stream)),
      lengths_(other.lengths_) {}

std::size_t SummaryCache::bytes() const {
  return summaries_.bytes() + k_tail_.nbytes() + v_tail_.nbytes();
}

double SummaryCache::bytes_for(std::int64_t length, std::int64_t H, std::int64_t D, std::int64_t D_V, KeySpan span,
                               DType dtype) {
  return KeyValueCache::bytes_for(span.count(length), H, D, D_V, {}, dtype) +
         static_cast<double>((span.length - 1) * H * (D + D_V)) * static_cast<double>(size_of(dtype));
}

SummaryCache::Pending SummaryCache::extend(Tape& tape, const Tensor& k, const Tensor& v, const Documents& documents) {
  const std::int64_t N = documents.count();
  WEFT_CHECK(N == summaries_.sequences() && k.dim(0) == documents.tokens() && v.dim(0) == documents.tokens(),
             "summary cache: {} documents, k {}, v {} for {} sequences", N, k.shape().str(), v.shape().str(),
             summaries_.sequences());
  // Sequences in which no block becomes whole have nothing pending: their tokens only join the tail.
  std::vector<std::int32_t> cu{0}, starts;
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int32_t length = lengths_[static_cast<std::size_t>(n)], more = documents.length(n);
    WEFT_CHECK(more == 0 || documents.pos0(n) == length,
               "summary cache: document {} starts at position {}, its cache holds {}", n, documents.pos0(n), length);
    starts.push_back(static_cast<std::int32_t>(span_.count(length)) * span_.stride);
    const bool completes = span_.count(length + more) > span_.count(length);
    cu.push_back(cu.back() + (completes ? length - starts.back() + more : 0));
  }
  Pending pending{.k = tape.empty({cu.back(), H_, D_}, k.dtype()),
                  .v = tape.empty({cu.back(), H_, D_V_}, k.dtype()),
                  .documents = std::make_shared<const Documents>(cu, starts),
                  .positions = {}};
  const std::int64_t room = span_.length - 1;
  for (std::int64_t n = 0; n < N; ++n) {
    const auto i = static_cast<std::size_t>(n);
    const std::int64_t kept = lengths_[i] - starts[i], more = documents.length(n);
    const std::int64_t tokens = cu[i + 1] - cu[i];
    const std::int64_t blocks = span_.count(tokens);
    const std::int64_t left = tokens - blocks * span_.stride;
    const auto move = [&](const Tensor& tail, const Tensor& fresh, const Tensor& all) {
      if (tokens == 0) return copy_rows(fresh, documents.begin(n), more, tail, n * room + kept, tape.stream());
      copy_rows(tail, n * room, kept, all, cu[i], tape.stream());
      copy_rows(fresh, documents.begin(n), more, all, cu[i] + kept, tape.stream());
      copy_rows(all, cu[i + 1] - left, left, tail, n * room, tape.stream());
    };
    move(k_tail_, k, pending.k);
    move(v_tail_, v, pending.v);
    for (std::int64_t b = 0; b < blocks; ++b) {
      pending.positions.push_back(starts[i] + static_cast<std::int32_t>(b) * span_.stride);
    }
    lengths_[i] += static_cast<std::int32_t>(more);
  }
  return pending;
}

void SummaryCache::append(const Pending& pending, const Tensor& k, const Tensor& v) {
  summaries_.append(key_rows(*pending.documents, span_), k, v);
}

}  // namespace weft
