#include "autograd/ops/elementwise/elementwise.h"

#include "autograd/ops/elementwise/elementwise_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<AddForward> kAdd{
    .op = "add",
    .cpu = [](const AddForward& args,
              const Launch&) { dispatch_real(args.dtype, "add", [&]<class T>() { add_forward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(add_cuda)};
constexpr Dispatch<MulForward> kMul{
    .op = "mul forward",
    .cpu = [](const MulForward& args,
              const Launch&) { dispatch_real(args.dtype, "mul", [&]<class T>() { mul_forward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(mul_forward_cuda)};
constexpr Dispatch<MulBackward> kMulBackward{
    .op = "mul backward",
    .cpu = [](const MulBackward& args,
              const Launch&) { dispatch_real(args.dtype, "mul", [&]<class T>() { mul_backward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(mul_backward_cuda)};
constexpr Dispatch<Scale> kScale{
    .op = "scale",
    .cpu = [](const Scale& args,
              const Launch&) { dispatch_real(args.dtype, "scale", [&]<class T>() { scale_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(scale_cuda)};
constexpr Dispatch<RowForward> kRow{
    .op = "row forward",
    .cpu = [](const RowForward& args,
              const Launch&) { dispatch_real(args.dtype, "row", [&]<class T>() { row_forward_cpu<T>(args); }); },
    .cuda = WEFT_ON_CUDA(row_forward_cuda)};
constexpr Dispatch<RowBackward> kRowBackward{
    .op = "row backward",
    .cpu =
        [](const RowBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "row",
                        [&]<class T>() { row_backward_cpu<T>(args, static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(row_backward_cuda),
    .cpu_workspace =
        [](const RowBackward& args) {
          if (args.drow == nullptr) return std::size_t{0};
          return static_cast<std::size_t>(row_blocks(args.R, args.D).count * args.D) * size_of(args.dtype);
        },
    .cuda_workspace = WEFT_ON_CUDA(row_backward_cuda_workspace)};

void check_same(const char* op, const Var& a, const Var& b) {
  WEFT_CHECK(a.shape() == b.shape() && a.dtype() == b.dtype(), "{}: {} {} with {} {}", op, a.shape().str(),
             name_of(a.dtype()), b.shape().str(), name_of(b.dtype()));
}

struct AddSaved {
  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    pass.pass(0, dy);
    pass.pass(1, dy);
  }
};

struct MulSaved {
  Tensor a, b;

  void backward(Backward& pass) const {
    const GradTarget da = pass.target(0);
    const GradTarget db = pass.target(1);
    kMulBackward.run(pass, {.dtype = a.dtype(),
                            .N = a.numel(),
                            .a = a.raw(),
                            .b = b.raw(),
                            .dy = pass.grad(0).raw(),
                            .da = da.raw(),
                            .write_da = da.write,
                            .db = db.raw(),
                            .write_db = db.write});
  }
};

struct ScaleSaved {
  double factor;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget da = pass.target(0);
    kScale.run(
        pass,
        {.dtype = dy.dtype(), .N = dy.numel(), .factor = factor, .a = dy.raw(), .y = da.raw(), .write_y = da.write});
  }
};

struct RowSaved {
  Tensor x, row;  // undefined for add
  RowFunction function;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const bool is_add = function == RowFunction::add;
    const GradTarget dx = is_add ? GradTarget{} : pass.target(0);
    const GradTarget drow = pass.target(1);
    const RowBackward args{.dtype = dy.dtype(),
                           .function = function,
                           .R = dy.shape().rows(),
                           .D = dy.shape().back(),
                           .x = is_add ? nullptr : x.raw(),
                           .row = is_add ? nullptr : row.raw(),
                           .dy = dy.raw(),
                           .dx = dx.raw(),
                           .write_dx = dx.write,
                           .drow = drow.raw(),
                           .write_drow = drow.write};
    kRowBackward.run(pass, args);
    if (is_add) pass.pass(0, dy);
  }
};

Var row_op(Tape& tape, const char* op, RowFunction function, const Var& x, const Var& row) {
  WEFT_CHECK(
      x.shape().rank() >= 1 && row.shape() == Shape{x.shape().back()} && row.dtype() == accumulator_dtype(x.dtype()),
      "{}: x {} {} with row {} {}", op, x.shape().str(), name_of(x.dtype()), row.shape().str(), name_of(row.dtype()));
  const Tensor y = tape.empty(x.shape(), x.dtype());
  tape.compute_cheaply({x.value, row.value}, {y},
                       [function](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kRow.run(on, {.dtype = in[0].dtype(),
                                       .function = function,
                                       .R = in[0].shape().rows(),
                                       .D = in[0].shape().back(),
                                       .x = in[0].raw(),
                                       .row = in[1].raw(),
                                       .y = out[0].raw()});
                       });
  return tape.record(op, {x, row}, y, [&] {
    return function == RowFunction::add ? RowSaved{{}, {}, function} : RowSaved{x.value, row.value, function};
  });
}

}  // namespace

Var add(Tape& tape, const Var& a, const Var& b) {
  check_same("add", a, b);
  const Tensor y = tape.empty(a.shape(), a.dtype());
  tape.compute_cheaply(
      {a.value, b.value}, {y}, [](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
        kAdd.run(on,
                 {.dtype = in[0].dtype(), .N = in[0].numel(), .a = in[0].raw(), .b = in[1].raw(), .y = out[0].raw()});
      });
  return tape.record("add", {a, b}, y, [] { return AddSaved{}; });
}

Var mul(Tape& tape, const Var& a, const Var& b) {
  check_same("mul", a, b);
  const Tensor y = tape.empty(a.shape(), a.dtype());
  tape.compute_cheaply(
      {a.value, b.value}, {y}, [](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
        kMul.run(on,
                 {.dtype = in[0].dtype(), .N = in[0].numel(), .a = in[0].raw(), .b = in[1].raw(), .y = out[0].raw()});
      });
  return tape.record("mul", {a, b}, y, [&] { return MulSaved{a.value, b.value}; });
}

Var scale(Tape& tape, const Var& a, double factor) {
  const Tensor y = tape.empty(a.shape(), a.dtype());
  tape.compute_cheaply({a.value}, {y},
                       [factor](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         kScale.run(on, {.dtype = in[0].dtype(),
                                         .N = in[0].numel(),
                                         .factor = factor,
                                         .a = in[0].raw(),
                                         .y = out[0].raw(),
                                         .write_y = Write::overwrite});
                       });
  return tape.record("scale", {a}, y, [&] { return ScaleSaved{factor}; });
}

Var add_row(Tape& tape, const Var& x, const Var& row) {
  return row_op(tape, "add_row", RowFunction::add, x, row);
}

Var mul_row(Tape& tape, const Var& x, const Var& row) {
  return row_op(tape, "mul_row", RowFunction::mul, x, row);
}

}  // namespace weft
