#include "autograd/ops/rows/rows.h"

#include <limits>

#include "autograd/ops/rows/rows_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<TakeRowsForward> kForward{"take_rows forward", [](const TakeRowsForward& args, const Launch&) {
                                               dispatch_real(args.dtype, "take_rows",
                                                             [&]<class T>() { take_rows_forward_cpu<T>(args); });
                                             }};
constexpr Dispatch<TakeRowsBackward> kBackward{"take_rows backward", [](const TakeRowsBackward& args, const Launch&) {
                                                 dispatch_real(args.dtype, "take_rows",
                                                               [&]<class T>() { take_rows_backward_cpu<T>(args); });
                                               }};

struct TakeRowsSaved {
  RowMapPtr map;
  std::int64_t ends[kMaxRowSources];
  std::int64_t count, D;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    TakeRowsBackward args{.dtype = dy.dtype(),
                          .D = D,
                          .begin = map->begin().data(),
                          .users = map->users().data(),
                          .dy = dy.raw(),
                          .ends = {},
                          .dsources = {},
                          .write = {}};
    Tensor targets[kMaxRowSources];
    for (int i = 0; i < static_cast<int>(kMaxRowSources); ++i) {
      args.ends[i] = ends[i];
      if (i >= count) continue;
      const GradTarget target = pass.target(i);
      targets[i] = target.tensor;
      args.dsources[i] = target.raw();
      args.write[i] = target.write;
    }
    kBackward(args, pass.launch());
  }
};

}  // namespace

RowMap::RowMap(std::vector<std::int32_t> index, std::int64_t source_rows)
    : index_(std::move(index)), begin_(static_cast<std::size_t>(source_rows) + 1, 0), users_(index_.size()) {
  WEFT_CHECK(source_rows <= std::numeric_limits<std::int32_t>::max(), "take_rows: {} source rows", source_rows);
  for (const std::int32_t s : index_) {
    WEFT_CHECK(s >= 0 && s < source_rows, "take_rows: row {} of {}", s, source_rows);
    ++begin_[static_cast<std::size_t>(s) + 1];
  }
  for (std::size_t s = 1; s < begin_.size(); ++s) begin_[s] += begin_[s - 1];
  std::vector<std::int32_t> next(begin_.begin(), begin_.end() - 1);
  for (std::size_t r = 0; r < index_.size(); ++r) {
    users_[static_cast<std::size_t>(next[static_cast<std::size_t>(index_[r])]++)] = static_cast<std::int32_t>(r);
  }
}

Var take_rows(Tape& tape, std::initializer_list<Var> sources, const RowMapPtr& map) {
  WEFT_CHECK(sources.size() > 0 && sources.size() <= static_cast<std::size_t>(kMaxRowSources),
             "take_rows: {} sources; 1 to {} are possible", sources.size(), kMaxRowSources);
  const Var& first = *sources.begin();
  Shape shape = first.shape();
  shape.set(0, map->rows());
  std::int64_t D = 1;
  for (int i = 1; i < shape.rank(); ++i) D *= shape[i];
  const Tensor y = tape.empty(shape, first.dtype());
  TakeRowsForward args{.dtype = first.dtype(),
                       .R = map->rows(),
                       .D = D,
                       .sources = {},
                       .ends = {},
                       .index = map->index().data(),
                       .y = y.raw()};
  std::int64_t i = 0, rows = 0;
  for (const Var& source : sources) {
    Shape expected = shape;
    expected.set(0, source.dim(0));
    WEFT_CHECK(source.shape() == expected && source.dtype() == first.dtype(), "take_rows: source {} {} among {} {}",
               source.shape().str(), name_of(source.dtype()), first.shape().str(), name_of(first.dtype()));
    args.sources[i] = source.value.raw();
    args.ends[i++] = rows += source.dim(0);
  }
  const std::int64_t count = i;
  while (i < kMaxRowSources) args.ends[i++] = rows;
  WEFT_CHECK(rows == map->source_rows(), "take_rows: {} source rows for a map of {}", rows, map->source_rows());
  kForward(args, tape.launch());
  return tape.record("take_rows", sources, y, [&] {
    TakeRowsSaved saved{.map = map, .ends = {}, .count = count, .D = D};
    std::copy_n(args.ends, kMaxRowSources, saved.ends);
    return saved;
  });
}

}  // namespace weft
