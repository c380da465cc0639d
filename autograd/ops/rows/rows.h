// Rows taken from several sources in any order: insertion, removal, interleaving, concatenation.
//
// R rows of the result, D width of a row. Row r of y is row map[r] of the sources stacked on one another.
#pragma once

#include <memory>
#include <span>

#include "autograd/tape.h"

namespace weft {

// The tables of a map where kernels read them. Rows of the result made from source row s: users[begin[s]] ..
// users[begin[s + 1] - 1], in order.
struct RowMapView {
  const std::int32_t* index;  // [R]
  const std::int32_t* begin;  // [source rows + 1]
  const std::int32_t* users;  // [R]
};

// Which source row each row of the result is, and for the way back which rows of the result came from a source row.
class RowMap {
 public:
  // index [R], each in [0, source_rows); source rows may be left out or repeated.
  RowMap(std::span<const std::int32_t> index, std::int64_t source_rows);
  // A map of `rows` rows whose tables, written by write_tables(), are where the kernels run and may be written anew.
  RowMap(std::int64_t rows, std::int64_t source_rows, Tensor tables);
  static std::int64_t table_size(std::int64_t rows, std::int64_t source_rows) { return 2 * rows + source_rows + 1; }
  static void write_tables(std::span<const std::int32_t> index, std::int64_t source_rows,
                           std::span<std::int32_t> tables);

  std::int64_t rows() const { return rows_; }
  std::int64_t source_rows() const { return source_rows_; }
  // For kernels of a tape. On a GPU the map keeps a copy, made on first use in the memory of that tape, which costs no
  // call to the driver: most maps are made for one row. Those that serve a captured graph must live as long as it does.
  RowMapView on(const Tape& tape) const;

 private:
  std::int64_t rows_, source_rows_;
  Tensor host_;               // index, begin, users; or undefined
  mutable Tensor on_device_;  // the same
};
using RowMapPtr = std::shared_ptr<const RowMap>;

inline constexpr std::int64_t kMaxRowSources = 4;

struct TakeRowsForward {
  DType dtype;
  std::int64_t R, D;
  const void* sources[kMaxRowSources];  // [n_i, D] or null
  std::int64_t ends[kMaxRowSources];    // rows of the sources up to and including this one
  const std::int32_t* index;            // [R]
  void* y;                              // [R, D]
};

// dsource_s = sum of dy over the rows made from s.
struct TakeRowsBackward {
  DType dtype;
  std::int64_t D;
  const std::int32_t* begin;  // [source rows + 1]
  const std::int32_t* users;  // [R]
  const void* dy;             // [R, D]
  std::int64_t ends[kMaxRowSources];
  void* dsources[kMaxRowSources];  // null: not wanted
  Write write[kMaxRowSources];
};

void take_rows_forward_cuda(const TakeRowsForward& args, const Launch& launch);
void take_rows_backward_cuda(const TakeRowsBackward& args, const Launch& launch);

// Sources [n_i, ...] of one type and one row shape, at most kMaxRowSources -> [R, ...]. The sum of n_i is
// map->source_rows().
Var take_rows(Tape& tape, std::initializer_list<Var> sources, const RowMapPtr& map);

}  // namespace weft
