#include "tests/support/packed_invariance.h"

#include <algorithm>

namespace weft::testing {
namespace {

bool all_zero(const Tensor& t) {
  const Tensor values = cast(t, DType::f64);
  return std::ranges::all_of(values.span<double>(), [](double x) { return x == 0.0; });
}

// The fields of documents, values or gradients.
Fields states(const Fields& fields, bool gradients) {
  Fields chosen;
  std::ranges::copy_if(fields, std::back_inserter(chosen),
                       [&](const Field& field) { return field.is(RowsOf::documents, gradients); });
  return chosen;
}

}  // namespace

void overwrite_tokens(const Fields& inputs, const Fields& other, std::int64_t begin, std::int64_t end) {
  for_each_pair(inputs, other, [&](const Field& field, const Field& by) {
    if (field.rows == RowsOf::tokens) field.tensor->rows(begin, end).copy_from(by.tensor->rows(begin, end));
  });
}

void clear_gradients_from(std::int64_t t, const Fields& inputs) {
  for (const Field& field : inputs) {
    if (field.is(RowsOf::tokens, true)) field.tensor->rows(t, field.tensor->dim(0)).fill_zero();
  }
}

void expect_no_gradients_from(std::int64_t t, const Fields& results) {
  for (const Field& field : results) {
    if (!field.is(RowsOf::tokens, true) || !field.tensor->defined()) continue;
    EXPECT_TRUE(all_zero(field.tensor->rows(t, field.tensor->dim(0)))) << field.name << " t " << t;
  }
}

void expect_values_change_from(std::int64_t t, const Fields& after, const Fields& before) {
  for_each_pair(after, before, [&](const Field& a, const Field& b) {
    if (!a.is(RowsOf::tokens, false)) return;
    const std::int64_t T = a.tensor->dim(0);
    EXPECT_TRUE(bitwise_equal(a.tensor->rows(0, t), b.tensor->rows(0, t))) << a.name << " t " << t;
    EXPECT_FALSE(bitwise_equal(a.tensor->rows(t, T), b.tensor->rows(t, T))) << a.name << " t " << t;
  });
}

void hand_over_states(const Fields& from, const Fields& to, bool gradients) {
  const Fields source = states(from, gradients), target = states(to, gradients);
  ASSERT_EQ(source.size(), target.size());
  for (std::size_t i = 0; i < source.size(); ++i) *target[i].tensor = *source[i].tensor;
}

void keep_token(const Fields& inputs, std::int64_t t, std::int64_t N) {
  for (const Field& field : inputs) {
    const Tensor all = *field.tensor;
    if (field.rows != RowsOf::tokens || !all.defined()) continue;
    const std::int64_t length = all.dim(0) / N;
    Shape shape = all.shape();
    shape.set(0, N);
    const Tensor row = Tensor::empty(shape, all.dtype());
    for (std::int64_t n = 0; n < N; ++n) {
      row.rows(n, n + 1).copy_from(all.rows(n * length + t, n * length + t + 1));
    }
    *field.tensor = row;
  }
}

}  // namespace weft::testing
