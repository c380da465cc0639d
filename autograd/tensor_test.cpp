#include "autograd/tensor.h"

#include <cmath>
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft {
namespace {

Tensor counting(const Shape& shape) {
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  return Tensor::from(shape, values);
}

TEST(Shape, ExtentsRowsAndText) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(s.rank(), 3);
  EXPECT_EQ(s.numel(), 24);
  EXPECT_EQ(s.rows(), 6);
  EXPECT_EQ(s.back(), 4);
  EXPECT_EQ(s[-3], 2);
  EXPECT_EQ(s.str(), "[2, 3, 4]");
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{0, 7}).numel(), 0);
  EXPECT_THROW(s[3], Error);
  EXPECT_THROW(s[-4], Error);
  EXPECT_THROW((Shape{-1}), Error);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1}), Error);
  EXPECT_NE((Shape{6}), (Shape{6, 1}));
}

TEST(Tensor, ViewsShareStorage) {
  const Tensor t = counting({4, 3});
  EXPECT_FALSE(t.shares_storage());
  const Tensor middle = t.rows(1, 3);
  EXPECT_TRUE(t.shares_storage());
  EXPECT_EQ(middle.shape(), (Shape{2, 3}));
  EXPECT_EQ(middle.data<float>(), t.data<float>() + 3);
  const Tensor last = middle.rows(1, 2).reshape({3, 1});
  EXPECT_EQ(last.data<float>()[2], 8.0f);
  last.data<float>()[2] = -1.0f;
  EXPECT_EQ(t.data<float>()[8], -1.0f);
  EXPECT_EQ(t.rows(4, 4).numel(), 0);
  EXPECT_EQ(t.rows(1, 2).nbytes(), 12u);
}

TEST(Tensor, RefusesImpossibleViews) {
  const Tensor t = counting({4, 3});
  EXPECT_THROW(t.rows(3, 5), Error);
  EXPECT_THROW(t.rows(3, 2), Error);
  EXPECT_THROW(t.rows(-1, 2), Error);
  EXPECT_THROW(t.reshape({11}), Error);
  EXPECT_THROW(t.data<double>(), Error);
  EXPECT_THROW(Tensor{}.raw(), Error);
  EXPECT_THROW(Tensor::from({3}, std::vector<float>{1.0f}), Error);
}

TEST(Tensor, WithoutElements) {
  const Tensor t = Tensor::zeros({0, 5}, DType::f32);
  EXPECT_TRUE(t.defined());
  EXPECT_EQ(t.nbytes(), 0u);
  EXPECT_EQ(t.rows(0, 0).shape(), (Shape{0, 5}));
  t.copy_from(Tensor::zeros({5, 0}, DType::f64));
}

TEST(Tensor, CopiesConvertBetweenFloatingTypes) {
  const std::vector<double> values{0.0, -1.0, 1.0 + 0x1p-8 + 0x1p-40, 1e300, 3.14159265358979};
  const Tensor f64 = Tensor::from({5}, values);
  const Tensor f32 = testing::cast(f64, DType::f32);
  const Tensor bf16 = testing::cast(f64, DType::bf16);
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(f32.data<float>()[i], static_cast<float>(values[i]));
    EXPECT_EQ(bf16.data<bfloat16>()[i].bits, bfloat16(values[i]).bits);
  }
  const Tensor back = testing::cast(bf16, DType::f64);
  EXPECT_EQ(back.data<double>()[2], 1.0 + 0x1p-7);
  EXPECT_THROW(f32.copy_from(counting({4})), Error);
  EXPECT_THROW(f32.copy_from(Tensor::zeros({5}, DType::i32)), Error);
}

TEST(Tensor, ClonesShareNothing) {
  const Tensor t = counting({4}), part = t.rows(1, 3), clone = part.clone();
  EXPECT_TRUE(testing::bitwise_equal(clone, part));
  t.fill_zero();
  EXPECT_FALSE(testing::bitwise_equal(clone, part));
  EXPECT_FALSE(Tensor().clone().defined());
}

TEST(Tensor, CopiesWithinAView) {
  const Tensor t = Tensor::zeros({3, 2}, DType::f32);
  t.rows(1, 2).copy_from(counting({2}));
  EXPECT_TRUE(testing::bitwise_equal(t, Tensor::from({3, 2}, std::vector<float>{0, 0, 0, 1, 0, 0})));
  t.rows(1, 3).fill_zero();
  EXPECT_EQ(t.data<float>()[3], 0.0f);
}

TEST(Tensor, MemoryReturnsWithTheLastOwner) {
  const auto memory = heap_allocator(Hygiene::hostile);
  Tensor view;
  {
    const Tensor t({8, 4}, DType::f32, memory);
    view = t.rows(2, 3);
    EXPECT_TRUE(std::isnan(view.data<float>()[0]));
  }
  EXPECT_GT(memory->stats().current_bytes, 0u);
  view = {};
  EXPECT_EQ(memory->stats().current_bytes, 0u);
}

}  // namespace
}  // namespace weft
