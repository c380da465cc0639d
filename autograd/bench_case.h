// What `weft bench` times: operations on the tape, described once for every device. The cases of an operation stand in
// its folder, in <op>_bench.cpp, as a function `std::vector<BenchCase> <op>_bench(const BenchShape&)`, which CMake
// registers.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace weft {

// The sizes that cases are made for, which a device keeps busy: H heads of D channels make up the width.
struct BenchShape {
  std::int64_t T;           // tokens
  std::int64_t width;       // H * D
  std::int64_t H, D;        // heads and their width
  std::int64_t vocabulary;  // rows of a table
  std::int64_t classes;     // of a loss

  double row() const { return static_cast<double>(T * width); }  // elements of [T, width]
};

struct BenchInput {
  enum class Kind : std::uint8_t {
    activation,
    weight,  // a parameter: its gradient is of accumulator_dtype and is added to
    vector   // a parameter of accumulator_dtype itself
  };
  Shape shape;
  Kind kind = Kind::activation;
  double deviation = 1.0;  // normal numbers
  double mean = 0.0;
};
inline BenchInput bench_weight(const Shape& shape, double deviation) {
  return {shape, BenchInput::Kind::weight, deviation};
}
inline BenchInput bench_vector(const Shape& shape, double deviation = 1.0, double mean = 0.0) {
  return {shape, BenchInput::Kind::vector, deviation, mean};
}

// What a pass must do at least. Bytes come as numbers of elements, since their size depends on the device.
struct BenchWork {
  double elements = 0.0;  // of the type of activations, read or written
  double wide = 0.0;      // of accumulator_dtype
  double flops = 0.0;     // of matrix products; multiply-add = 2
};

// A tensor without a gradient, copied to where the tapes compute on first use.
class BenchConstant {
 public:
  explicit BenchConstant(Tensor host) : host_(std::move(host)), placed_(std::make_shared<Tensor>()) {}
  const Tensor& on(const Tape& tape) const {
    if (!placed_->defined()) *placed_ = tape.here(host_);
    return *placed_;
  }

 private:
  Tensor host_;
  std::shared_ptr<Tensor> placed_;
};

struct BenchCase {
  std::string name;  // begins with the operation's
  std::vector<BenchInput> inputs;
  std::function<std::vector<Var>(Tape&, std::span<const Var>)> function;
  BenchWork forward, backward;
};

}  // namespace weft
