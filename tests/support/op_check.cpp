#include "tests/support/op_check.h"

#include <cmath>
#include <omp.h>
#include <utility>

#include "autograd/transfer.h"

namespace weft::testing {
namespace {

constexpr std::uint64_t kWeightSeed = 7001;
constexpr std::int64_t kMaxEntries = 160;  // of one input, checked by finite differences

// Numbers that bf16 holds, so that evaluations in all types differentiate the same loss.
Tensor loss_weight(std::size_t output, const Shape& shape) {
  return cast(cast(normal(shape, kWeightSeed + output), DType::bf16), DType::f64);
}

// The type that an input is stored in beside activations of `dtype`.
DType stored_type(const OpInput& input, DType dtype) {
  return input.role == InputRole::vector ? accumulator_dtype(dtype) : dtype;
}

std::vector<Tensor> rounded_to(const std::vector<OpInput>& inputs, DType dtype) {
  std::vector<Tensor> list;
  for (const OpInput& input : inputs) list.push_back(cast(input.value, stored_type(input, dtype)));
  return list;
}

// Where a case is evaluated.
struct Place {
  Stream stream;
  std::shared_ptr<Allocator> memory;

  static Place cpu() { return {{}, heap_allocator(Hygiene::hostile)}; }
  static Place gpu() { return {gpu_stream(), gpu_memory()}; }
};

Evaluation run(const Place& place, const OpCase& c, const std::vector<Tensor>& inputs, DType dtype, int calls,
               int only_output) {
  Tape tape(place.memory, Tape::Mode::record, place.stream);
  std::vector<Var> leaves;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const OpInput& input = c.inputs[k];
    const DType gradient = input.role == InputRole::activation ? dtype : accumulator_dtype(dtype);
    leaves.push_back(tape.leaf(tape.here(cast(inputs[k], stored_type(input, dtype))), gradient));
  }
  std::vector<Var> outputs, all;
  std::vector<Tensor> seeds;
  for (int call = 0; call < calls; ++call) {
    outputs = c.function(tape, leaves);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (only_output >= 0 && static_cast<std::size_t>(only_output) != i) continue;
      all.push_back(outputs[i]);
      seeds.push_back(tape.here(cast(loss_weight(i, outputs[i].shape()), outputs[i].dtype())));
    }
  }
  tape.backward(all, seeds);
  Evaluation e;
  const auto fetch = [&](const Tensor& t) { return cast(to_host(t, place.stream), t.dtype()); };
  for (const Var& v : outputs) e.outputs.push_back(fetch(v.value));
  for (const Var& v : leaves) {
    const Tensor g = tape.gradient(v);
    e.gradients.push_back(g.defined() ? fetch(g) : Tensor::zeros(v.shape(), dtype));
  }
  return e;
}

// `weights` are drawn by the first call and serve all others.
double loss(const OpCase& c, const std::vector<Tensor>& inputs, std::vector<Tensor>& weights) {
  Tape tape(heap_allocator(), Tape::Mode::inference);
  std::vector<Var> constants;
  for (const Tensor& t : inputs) constants.push_back(Tape::constant(t));
  const std::vector<Var> outputs = c.function(tape, constants);
  double total = 0.0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (weights.size() == i) weights.push_back(loss_weight(i, outputs[i].shape()));
    const Tensor& w = weights[i];
    for (std::int64_t j = 0; j < w.numel(); ++j) total += w.data<double>()[j] * outputs[i].value.data<double>()[j];
  }
  return total;
}

// Hundreds of small evaluations, whose results do not depend on the number of threads, go faster without them.
class OneThread {
 public:
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_ = omp_get_max_threads();
};

void check_finite_differences(const OpCase& c, const Evaluation& analytic) {
  const OneThread one_thread;
  std::vector<Tensor> inputs = rounded_to(c.inputs, DType::f64);
  std::vector<Tensor> weights;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const Tensor& x = inputs[k];
    const Tensor& g = analytic.gradients[k];
    double largest = 0.0;
    for (const double v : g.span<double>()) largest = std::max(largest, std::abs(v));
    const std::int64_t stride = std::max<std::int64_t>(1, x.numel() / kMaxEntries);
    double worst = 0.0;
    std::int64_t worst_at = 0;
    for (std::int64_t i = 0; i < x.numel(); i += stride) {
      double& value = x.data<double>()[i];
      const double original = value;
      const double h = 1e-6 * std::max(1.0, std::abs(original));
      value = original + h;
      const double up = loss(c, inputs, weights);
      value = original - h;
      const double down = loss(c, inputs, weights);
      value = original;
      const double error = std::abs((up - down) / (2.0 * h) - g.data<double>()[i]);
      if (!(error <= worst)) {
        worst = error;
        worst_at = i;
      }
    }
    EXPECT_LE(worst, c.finite_difference * std::max(largest, 1e-3))
        << c.name << ": gradient of input " << k << ", entry " << worst_at << ", largest entry " << largest;
  }
}

// `again` has the same bits as `once`; of two calls each gradient is twice that of one.
void check_repeats(const Evaluation& once, const Evaluation& again, const Evaluation& twice) {
  for (std::size_t i = 0; i < once.outputs.size(); ++i) EXPECT_TRUE(bitwise_equal(again.outputs[i], once.outputs[i]));
  for (std::size_t k = 0; k < once.gradients.size(); ++k) {
    EXPECT_TRUE(bitwise_equal(again.gradients[k], once.gradients[k])) << "input " << k;
    const Tensor doubled = cast(once.gradients[k], DType::f64);
    for (double& v : doubled.span<double>()) v *= 2.0;
    EXPECT_TRUE(bitwise_equal(twice.gradients[k], cast(doubled, once.gradients[k].dtype())))
        << "accumulation into input " << k;
  }
}

// Of the cases of a test, the sanitizer sees the first few.
bool sanitized_enough() {
  const int most = sanitize() == Sanitize::races ? 3 : 6;
  static const ::testing::TestInfo* test = nullptr;
  static int cases = 0;
  const ::testing::TestInfo* current = ::testing::UnitTest::GetInstance()->current_test_info();
  if (std::exchange(test, current) != current) cases = 0;
  return sanitize() != Sanitize::no && cases++ >= most;
}

}  // namespace

Evaluation evaluate(const OpCase& c, DType dtype, int calls) {
  return run(Place::cpu(), c, rounded_to(c.inputs, DType::f64), dtype, calls, -1);
}

void check_op(const OpCase& c) {
  SCOPED_TRACE(c.name);
  const Evaluation fp64 = evaluate(c, DType::f64);
  check_finite_differences(c, fp64);

  check_repeats(fp64, evaluate(c, DType::f64), evaluate(c, DType::f64, 2));

  const std::vector<Tensor> rounded = rounded_to(c.inputs, DType::f32);
  const Evaluation fp32 = run(Place::cpu(), c, rounded, DType::f32, 1, -1);
  const Evaluation reference = run(Place::cpu(), c, rounded, DType::f64, 1, -1);
  for (std::size_t i = 0; i < fp32.outputs.size(); ++i) {
    EXPECT_TRUE(close(fp32.outputs[i], reference.outputs[i], c.fp32.forward, c.fp32.max)) << "fp32 output " << i;
  }
  for (std::size_t k = 0; k < fp32.gradients.size(); ++k) {
    EXPECT_TRUE(close(fp32.gradients[k], reference.gradients[k], c.fp32.backward, c.fp32.max)) << "fp32 input " << k;
  }

  if (fp64.outputs.size() < 2) return;
  std::vector<Tensor> sums;
  for (const Tensor& g : fp64.gradients) sums.push_back(Tensor::zeros(g.shape(), DType::f64));
  for (std::size_t i = 0; i < fp64.outputs.size(); ++i) {
    const Evaluation part = run(Place::cpu(), c, rounded_to(c.inputs, DType::f64), DType::f64, 1, static_cast<int>(i));
    for (std::size_t k = 0; k < sums.size(); ++k) {
      for (std::int64_t j = 0; j < sums[k].numel(); ++j)
        sums[k].data<double>()[j] += part.gradients[k].data<double>()[j];
    }
  }
  for (std::size_t k = 0; k < sums.size(); ++k) {
    EXPECT_TRUE(close(sums[k], fp64.gradients[k], 1e-11, 1e-10)) << "sum over single outputs, input " << k;
  }
}

void check_op_on_gpu(const OpCase& c) {
  if (sanitized_enough()) return;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    if (dtype == DType::bf16 && sanitize() == Sanitize::unwritten_f32) continue;
    SCOPED_TRACE(fmt::format("{} {}", c.name, name_of(dtype)));
    const Tolerance tolerance = dtype == DType::f32 ? c.fp32 : c.bf16;
    const std::vector<Tensor> inputs = rounded_to(c.inputs, dtype);
    std::vector<Tensor> exact;
    for (const Tensor& t : inputs) exact.push_back(cast(t, DType::f64));
    const auto on_gpu = [&](int calls) { return run(Place::gpu(), c, inputs, dtype, calls, -1); };
    const Evaluation gpu = on_gpu(1);
    if (sanitize() != Sanitize::no) continue;
    const Evaluation reference = run(Place::cpu(), c, exact, DType::f64, 1, -1);
    for (std::size_t i = 0; i < gpu.outputs.size(); ++i) {
      EXPECT_TRUE(close(gpu.outputs[i], reference.outputs[i], tolerance.forward, tolerance.max)) << "output " << i;
    }
    for (std::size_t k = 0; k < gpu.gradients.size(); ++k) {
      const bool sums = dtype == DType::bf16 && c.inputs[k].role != InputRole::activation;
      EXPECT_TRUE(close(gpu.gradients[k], reference.gradients[k],
                        std::max(tolerance.backward, sums ? kBf16TokenSums.backward : 0.0),
                        std::max(tolerance.max, sums ? kBf16TokenSums.max : 0.0)))
          << "gradient of input " << k;
    }
    check_repeats(gpu, on_gpu(1), on_gpu(2));
  }
}

}  // namespace weft::testing
