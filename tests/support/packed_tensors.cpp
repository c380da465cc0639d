#include "tests/support/packed_tensors.h"

#include "autograd/transfer.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft::testing {
namespace {

bool evaluates_on_gpu = false;

}  // namespace

OnGpu::OnGpu() {
  evaluates_on_gpu = true;
}
OnGpu::~OnGpu() {
  evaluates_on_gpu = false;
}
bool on_gpu() {
  return evaluates_on_gpu;
}

Tensor slice(const Tensor& t, std::int64_t begin, std::int64_t end) {
  return t.defined() ? cast(t.rows(begin, end), t.dtype()) : t;
}

void keep_rows(const Fields& fields, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  for (const Field& field : fields) {
    Tensor& t = *field.tensor;
    switch (field.rows) {
      case RowsOf::tokens:
        t = slice(t, begin, end);
        break;
      case RowsOf::documents:
        t = slice(t, first, last);
        break;
      case RowsOf::parameters:
        if (field.role == Role::gradient) t = {};
        break;
    }
  }
}

void convert(const Fields& fields, DType dtype) {
  for (const Field& field : fields) {
    if (field.tensor->defined()) *field.tensor = cast(*field.tensor, dtype);
  }
}

void for_each_pair(const Fields& x, const Fields& y, const std::function<void(const Field&, const Field&)>& f) {
  ASSERT_EQ(x.size(), y.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(x[i].tensor->defined(), y[i].tensor->defined()) << x[i].name;
    if (x[i].tensor->defined()) f(x[i], y[i]);
  }
}

void expect_close(const Fields& x, const Fields& reference, const Tolerance& tolerance) {
  for_each_pair(x, reference, [&](const Field& a, const Field& b) {
    const double rel_f = a.role == Role::gradient ? tolerance.backward : tolerance.forward;
    EXPECT_TRUE(close(*a.tensor, *b.tensor, rel_f, tolerance.max)) << a.name;
  });
}

void expect_bitwise_equal(const Fields& x, const Fields& y) {
  for_each_pair(x, y,
                [](const Field& a, const Field& b) { EXPECT_TRUE(bitwise_equal(*a.tensor, *b.tensor)) << a.name; });
}

void run_on_tape(const Fields& inputs, const PackedOperation& operation, const Fields& results) {
  const Stream stream = on_gpu() ? gpu_stream() : Stream{};
  Tape tape(on_gpu() ? gpu_memory() : heap_allocator(Hygiene::hostile), Tape::Mode::record, stream);
  std::vector<Var> x;
  std::vector<Tensor> arriving;
  for (const Field& field : inputs) {
    const Tensor& t = *field.tensor;
    if (field.role == Role::gradient) {
      arriving.push_back(t);
    } else if (field.role == Role::constant) {
      x.push_back(Tape::constant(t.defined() ? tape.here(t) : t));
    } else if (t.defined()) {
      const DType gradient = field.rows == RowsOf::parameters ? accumulator_dtype(t.dtype()) : t.dtype();
      x.push_back(tape.leaf(tape.here(t), gradient));
    } else {
      x.emplace_back();
    }
  }
  const std::vector<Var> all = operation(tape, x);
  ASSERT_EQ(all.size(), arriving.size());
  ASSERT_EQ(all.size() + x.size(), results.size());
  std::vector<Var> outputs;
  std::vector<Tensor> seeds;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (arriving[i].defined()) outputs.push_back(all[i]), seeds.push_back(tape.here(arriving[i]));
  }
  tape.backward(outputs, seeds);
  const auto keep = [&](const Tensor& t) { return cast(to_host(t, stream), t.dtype()); };
  for (std::size_t i = 0; i < all.size(); ++i) *results[i].tensor = keep(all[i].value);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!x[i].requires_grad()) continue;
    const Field& result = results[all.size() + i];
    const Tensor gradient = tape.gradient(x[i]);
    ASSERT_TRUE(gradient.defined()) << result.name;
    *result.tensor = keep(gradient);
  }
}

}  // namespace weft::testing
