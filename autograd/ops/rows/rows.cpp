#include "autograd/ops/rows/rows.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "autograd/ops/rows/rows_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<TakeRowsForward> kForward{.op = "take_rows forward",
                                             .cpu =
                                                 [](const TakeRowsForward& args, const Launch&) {
                                                   dispatch_real(args.dtype, "take_rows",
                                                                 [&]<class T>() { take_rows_forward_cpu<T>(args); });
                                                 },
                                             .cuda = WEFT_ON_CUDA(take_rows_forward_cuda)};
constexpr Dispatch<TakeRowsBackward> kBackward{.op = "take_rows backward",
                                               .cpu =
                                                   [](const TakeRowsBackward& args, const Launch&) {
                                                     dispatch_real(args.dtype, "take_rows",
                                                                   [&]<class T>() { take_rows_backward_cpu<T>(args); });
                                                   },
                                               .cuda = WEFT_ON_CUDA(take_rows_backward_cuda)};

struct TakeRowsSaved {
  RowMapPtr map;
  std::int64_t ends[kMaxRowSources];
  std::int64_t count, D;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const RowMapView view = map->on(pass.tape());
    TakeRowsBackward args{.dtype = dy.dtype(),
                          .D = D,
                          .begin = view.begin,
                          .users = view.users,
                          .dy = dy.raw(),
                          .ends = {},
                          .dsources = {},
                          .write = {}};
    Tensor targets[kMaxRowSources];
    for (int i = 0; i < static_cast<int>(kMaxRowSources); ++i) {
      args.ends[i] = ends[i];
      if (i >= count) continue;
      const GradTarget target = pass.target(i);
      WEFT_CHECK(!target.wanted() || target.tensor.dtype() == dy.dtype(), "take_rows: a source with a gradient of {}",
                 name_of(target.tensor.dtype()));
      targets[i] = target.tensor;
      args.dsources[i] = target.raw();
      args.write[i] = target.write;
    }
    kBackward.run(pass, args);
  }
};

}  // namespace

RowMap::RowMap(std::span<const std::int32_t> index, std::int64_t source_rows)
    : rows_(static_cast<std::int64_t>(index.size())),
      source_rows_(source_rows),
      host_(Tensor::empty({table_size(rows_, source_rows)}, DType::i32)) {
  write_tables(index, source_rows, host_.span<std::int32_t>());
}

RowMap::RowMap(std::int64_t rows, std::int64_t source_rows, Tensor tables)
    : rows_(rows), source_rows_(source_rows), on_device_(std::move(tables)) {
  WEFT_CHECK(on_device_.numel() == table_size(rows, source_rows), "take_rows: tables of {} numbers for {} of {} rows",
             on_device_.numel(), rows, source_rows);
}

void RowMap::write_tables(std::span<const std::int32_t> index, std::int64_t source_rows,
                          std::span<std::int32_t> tables) {
  const auto rows = static_cast<std::int64_t>(index.size());
  WEFT_CHECK(source_rows <= std::numeric_limits<std::int32_t>::max(), "take_rows: {} source rows", source_rows);
  WEFT_CHECK(static_cast<std::int64_t>(tables.size()) == table_size(rows, source_rows),
             "take_rows: room for {} numbers for {} of {} rows", tables.size(), rows, source_rows);
  std::int32_t* const begin = std::copy(index.begin(), index.end(), tables.data());
  std::int32_t* const users = begin + source_rows + 1;
  std::fill(begin, users, 0);
  for (const std::int32_t s : index) {
    WEFT_CHECK(s >= 0 && s < source_rows, "take_rows: row {} of {}", s, source_rows);
    ++begin[s + 1];
  }
  for (std::int64_t s = 1; s <= source_rows; ++s) begin[s] += begin[s - 1];
  std::vector<std::int32_t> next(begin, begin + source_rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto s = static_cast<std::size_t>(index[static_cast<std::size_t>(r)]);
    users[next[s]++] = static_cast<std::int32_t>(r);
  }
}

RowMapView RowMap::on(const Tape& tape) const {
  if (host_.defined() && !tape.device().is_cpu() && (!on_device_.defined() || on_device_.device() != tape.device())) {
    on_device_ = tape.here(host_);
  }
  const Tensor& here = tape.device().is_cpu() ? host_ : on_device_;
  WEFT_CHECK(here.defined(), "take_rows: a map of another device");
  const auto* tables = here.data<std::int32_t>();
  return {tables, tables + rows_, tables + rows_ + source_rows_ + 1};
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
                       .index = map->on(tape).index,
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
  kForward.run(tape, args);
  return tape.record("take_rows", sources, y, [&] {
    TakeRowsSaved saved{.map = map, .ends = {}, .count = count, .D = D};
    std::copy_n(args.ends, kMaxRowSources, saved.ends);
    return saved;
  });
}

}  // namespace weft
