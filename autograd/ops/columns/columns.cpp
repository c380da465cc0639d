#include "autograd/ops/columns/columns.h"

#include "autograd/ops/columns/columns_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<SplitColumns> kSplit{
    .op = "split_columns",
    .cpu = [](const SplitColumns& args,
              const Launch&) { dispatch_real(args.dtype, "columns", [&]<class T>() { split_columns_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(split_columns_cuda)};
constexpr Dispatch<JoinColumns> kJoin{
    .op = "join_columns",
    .cpu = [](const JoinColumns& args,
              const Launch&) { dispatch_real(args.dtype, "columns", [&]<class T>() { join_columns_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(join_columns_cuda)};

struct Extents {
  std::int64_t T, H, A, B;
};

struct SplitSaved {
  Extents e;
  DType dtype;

  void backward(Backward& pass) const {
    const Tensor da = pass.grad(0);
    const Tensor db = pass.grad(1);
    const GradTarget dx = pass.target(0);
    kJoin.run(pass, {.dtype = dtype,
                     .T = e.T,
                     .H = e.H,
                     .A = e.A,
                     .B = e.B,
                     .a = da.defined() ? da.raw() : nullptr,
                     .b = db.defined() ? db.raw() : nullptr,
                     .y = dx.raw(),
                     .write_y = dx.write});
  }
};

struct JoinSaved {
  Extents e;
  DType dtype;

  void backward(Backward& pass) const {
    const GradTarget da = pass.target(0);
    const GradTarget db = pass.target(1);
    kSplit.run(pass, {.dtype = dtype,
                      .T = e.T,
                      .H = e.H,
                      .A = e.A,
                      .B = e.B,
                      .x = pass.grad(0).raw(),
                      .a = da.raw(),
                      .write_a = da.write,
                      .b = db.raw(),
                      .write_b = db.write});
  }
};

Shape with_width(Shape shape, std::int64_t width) {
  shape.set(shape.rank() - 1, width);
  return shape;
}

}  // namespace

std::array<Var, 2> split_columns(Tape& tape, const Var& x, std::int64_t at) {
  WEFT_CHECK(x.shape().rank() >= 1 && at > 0 && at < x.shape().back(), "split_columns: x {} at {}", x.shape().str(),
             at);
  const Extents e{.T = x.shape().rows(), .H = 1, .A = at, .B = x.shape().back() - at};
  const std::array<Tensor, 2> parts{tape.empty(with_width(x.shape(), e.A), x.dtype()),
                                    tape.empty(with_width(x.shape(), e.B), x.dtype())};
  tape.compute_cheaply({x.value}, {parts[0], parts[1]},
                       [e](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kSplit.run(on, {.dtype = in[0].dtype(),
                                         .T = e.T,
                                         .H = e.H,
                                         .A = e.A,
                                         .B = e.B,
                                         .x = in[0].raw(),
                                         .a = out[0].raw(),
                                         .write_a = Write::overwrite,
                                         .b = out[1].raw(),
                                         .write_b = Write::overwrite});
                       });
  return tape.record("split_columns", {x}, parts, [&] { return SplitSaved{e, x.dtype()}; });
}

Var join_columns(Tape& tape, const Var& a, const Var& b) {
  const int rank = a.shape().rank();
  WEFT_CHECK(rank >= 1 && b.shape().rank() == rank && a.dtype() == b.dtype(), "join_columns: a {} {}, b {} {}",
             a.shape().str(), name_of(a.dtype()), b.shape().str(), name_of(b.dtype()));
  const bool shared = rank == 3 && b.dim(0) == a.dim(0) && b.dim(1) == 1;
  WEFT_CHECK(shared || with_width(b.shape(), a.shape().back()) == a.shape(), "join_columns: a {}, b {}",
             a.shape().str(), b.shape().str());
  const Extents e{.T = shared ? a.dim(0) : a.shape().rows(),
                  .H = shared ? a.dim(1) : 1,
                  .A = a.shape().back(),
                  .B = b.shape().back()};
  const Tensor y = tape.empty(with_width(a.shape(), e.A + e.B), a.dtype());
  tape.compute_cheaply({a.value, b.value}, {y},
                       [e](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kJoin.run(on, {.dtype = in[0].dtype(),
                                        .T = e.T,
                                        .H = e.H,
                                        .A = e.A,
                                        .B = e.B,
                                        .a = in[0].raw(),
                                        .b = in[1].raw(),
                                        .y = out[0].raw(),
                                        .write_y = Write::overwrite});
                       });
  return tape.record("join_columns", {a, b}, y, [&] { return JoinSaved{e, a.dtype()}; });
}

}  // namespace weft
