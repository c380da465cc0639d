#include "autograd/ops/rows/rows.h"

#include <limits>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/ops/rows/rows_cpu.h"
#include "autograd/transfer.h"

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
    const RowMapView view = map->on(pass.tape().stream());
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

RowMapView RowMap::on(const Stream& stream) const {
  if (stream.device.is_cpu()) return {index_.data(), begin_.data(), users_.data()};
  const std::int64_t R = rows(), S = source_rows() + 1;
  if (!on_device_.defined() || on_device_.device() != stream.device) {
    std::vector<std::int32_t> all(index_);
    all.insert(all.end(), begin_.begin(), begin_.end());
    all.insert(all.end(), users_.begin(), users_.end());
    const Tensor host = Tensor::from({2 * R + S}, all);
    on_device_ = to_memory(host, lasting_memory(stream.device), stream);
  }
  const auto* tables = on_device_.data<std::int32_t>();
  return {tables, tables + R, tables + R + S};
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
                       .index = map->on(tape.stream()).index,
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
