#include "autograd/ops/cast/cast.h"

#include "autograd/transfer.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::normal;

constexpr DType kTypes[] = {DType::f64, DType::f32, DType::bf16};

TEST(Cast, RoundsForwardAndBackward) {
  for (const std::int64_t n : {0, 1, 17, 1000, 70000}) {
    for (const DType from : kTypes) {
      for (const DType to : kTypes) {
        const Tensor x = testing::cast(normal({n}, 1), from), dy = testing::cast(normal({n}, 2), to);
        Tape tape(heap_allocator(Hygiene::hostile));
        const Var leaf = tape.leaf(x);
        const Var y = cast(tape, leaf, to);
        EXPECT_TRUE(bitwise_equal(y.value, testing::cast(x, to)));
        tape.backward(y, dy);
        EXPECT_TRUE(bitwise_equal(tape.gradient(leaf), testing::cast(dy, from)));
      }
    }
  }
}

TEST(Cast, Accumulates) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var x = tape.leaf(testing::cast(normal({100}, 1), DType::f32));
  const Tensor dy = testing::cast(normal({100}, 2), DType::f64);
  const std::array<Var, 2> y{cast(tape, x, DType::f64), cast(tape, x, DType::f64)};
  const std::array<Tensor, 2> seeds{dy, dy};
  tape.backward(y, seeds);
  const Tensor dx = tape.gradient(x);
  // The first gradient is rounded to fp32 as it arrives, and the sum once more.
  for (int i = 0; i < 100; ++i) {
    const double d = dy.data<double>()[i];
    EXPECT_EQ(dx.data<float>()[i], static_cast<float>(static_cast<double>(static_cast<float>(d)) + d));
  }
}

TEST(CastGpu, RoundsForwardAndBackward) {
  WEFT_NEEDS_GPU();
  const Stream stream = testing::gpu_stream();
  for (const std::int64_t n : {0, 1, 17, 1000, 70000}) {
    for (const DType from : {DType::f32, DType::bf16}) {
      const DType to = from == DType::f32 ? DType::bf16 : DType::f32;
      const Tensor x = testing::cast(normal({n}, 1), from), dy = testing::cast(normal({n}, 2), to);
      Tape tape(testing::gpu_memory(), Tape::Mode::record, stream);
      const Var leaf = tape.leaf(tape.here(x));
      const Var y = cast(tape, leaf, to);
      EXPECT_TRUE(bitwise_equal(to_host(y.value, stream), testing::cast(x, to)));
      tape.backward(y, tape.here(dy));
      EXPECT_TRUE(bitwise_equal(to_host(tape.gradient(leaf), stream), testing::cast(dy, from)));
    }
  }
}

TEST(Cast, ToTheSameTypeIsTheSameValue) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({3}, 1));
  EXPECT_EQ(cast(tape, x, DType::f64).slot, x.slot);
  EXPECT_EQ(tape.node_count(), 0u);
}

TEST(Cast, RefusesIntegers) {
  Tape tape(heap_allocator());
  EXPECT_THROW(cast(tape, Tape::constant(Tensor::zeros({3}, DType::i32)), DType::f32), Error);
  EXPECT_THROW(cast(tape, tape.leaf(normal({3}, 1)), DType::i64), Error);
}

}  // namespace
}  // namespace weft
