#include "autograd/ops/rope/rope.h"

#include "autograd/ops/rope/rope_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<Rotation> kRotate{"rope", [](const Rotation& args, const Launch&) {
                                       dispatch_real(args.dtype, "rope", [&]<class T>() {
                                         args.write_y == Write::overwrite ? rotate_cpu<T, Write::overwrite>(args)
                                                                          : rotate_cpu<T, Write::accumulate>(args);
                                       });
                                     }};

Rotation arguments(const Tensor& x, const RopeRows& rows, double direction, const GradTarget& y) {
  return {.dtype = x.dtype(),
          .T = x.dim(0),
          .H = x.dim(1),
          .D = x.dim(2),
          .D_r = 2 * rows.cos.dim(1),
          .direction = direction,
          .cos = rows.cos.raw(),
          .sin = rows.sin.raw(),
          .x = x.raw(),
          .y = y.raw(),
          .write_y = y.write};
}

struct RopeSaved {
  RopeRows rows;

  void backward(Backward& pass) const { kRotate(arguments(pass.grad(0), rows, -1.0, pass.target(0)), pass.launch()); }
};

void check(const Var& x, std::int64_t tokens, const RopeTable& table) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(0) == tokens, "rope: x is {}, expected [{}, heads, width]", x.shape().str(),
             tokens);
  WEFT_CHECK(table.rotary_dim() <= x.dim(2), "rope: rotary width {} of heads of width {}", table.rotary_dim(),
             x.dim(2));
}

Var rotate(Tape& tape, const Var& x, const RopeRows& rows) {
  const Tensor y = tape.empty(x.shape(), x.dtype());
  kRotate(arguments(x.value, rows, 1.0, {y, Write::overwrite}), tape.launch());
  return tape.record("rope", {x}, y, [&] { return RopeSaved{rows}; });
}

}  // namespace

Var rope(Tape& tape, const Var& x, const DocumentsPtr& documents, const RopeTable& table) {
  check(x, documents->tokens(), table);
  return rotate(tape, x, table.rows(documents, x.dtype()));
}

Var rope(Tape& tape, const Var& x, std::span<const std::int32_t> positions, const RopeTable& table) {
  check(x, static_cast<std::int64_t>(positions.size()), table);
  const Shape shape{x.dim(0), table.rotary_dim() / 2};
  const RopeRows rows{tape.empty(shape, x.dtype()), tape.empty(shape, x.dtype())};
  table.build(positions, rows);
  return rotate(tape, x, rows);
}

}  // namespace weft
