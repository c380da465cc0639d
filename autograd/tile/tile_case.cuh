// For the tests of this folder: device arrays, and matrices of small integers, of which products are exact.
#pragma once

#include <cstring>
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <random>
#include <vector>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_target.h"
#include "autograd/tile/numeric.cuh"

namespace weft::tile {

// Elements of the device's memory that start as NaN bytes.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    WEFT_CUDA_CALL(cudaMalloc(&data_, bytes()));
    WEFT_CUDA_CALL(cudaMemset(data_, 0xff, bytes()));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    WEFT_CUDA_CALL(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    WEFT_CUDA_CALL(cudaDeviceSynchronize());
    WEFT_CUDA_CALL(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::size_t bytes() const { return (size_ > 0 ? size_ : 1) * sizeof(T); }
  T* data_ = nullptr;
  std::size_t size_;
};

inline int device_major() {
  int count = 0, major = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  return major;
}

class TileGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device_major() < 8) GTEST_SKIP() << "needs a GPU of compute capability 8.0 or later";
  }
};
class TileGpuHopper : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device_major() != 9 || !hopper_kernels()) GTEST_SKIP() << "needs a Hopper GPU and a build for it";
  }
};

// Row-major [rows, cols] of integers in [-3, 3].
struct HostMatrix {
  int rows, cols;
  std::vector<bf16> x;

  HostMatrix(int r, int c, unsigned seed) : rows(r), cols(c), x(static_cast<std::size_t>(r) * c) {
    std::mt19937 random(seed);
    for (bf16& v : x) v = __float2bfloat16(static_cast<float>(static_cast<int>(random() % 7) - 3));
  }
  float at(int r, int c) const { return __bfloat162float(x[static_cast<std::size_t>(r) * cols + c]); }
};

// First mismatch of [rows, cols] against expected(row, column).
template <class Expected>
::testing::AssertionResult equals(const std::vector<float>& got, int rows, int cols, Expected&& expected) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      const float value = got[static_cast<std::size_t>(r) * cols + c];
      if (value != expected(r, c)) {
        return ::testing::AssertionFailure()
               << "at (" << r << ", " << c << "): " << value << ", expected " << expected(r, c);
      }
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace weft::tile
