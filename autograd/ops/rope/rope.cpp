#include "autograd/ops/rope/rope.h"

#include "autograd/ops/rope/rope_cpu.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

constexpr Dispatch<Rotation> kRotate{.op = "rope",
                                     .cpu =
                                         [](const Rotation& args, const Launch&) {
                                           dispatch_real(args.dtype, "rope", [&]<class T>() {
                                             args.write_y == Write::overwrite ? rotate_cpu<T, Write::overwrite>(args)
                                                                              : rotate_cpu<T, Write::accumulate>(args);
                                           });
                                         },
                                     .cuda = WEFT_ON_CUDA(rotate_cuda)};

// What turns the tokens of one row, kept for the backward.
struct Turn {
  std::int64_t D_r;
  RopeRows rows;      // on the CPU
  RopeAngles angles;  // on a GPU, with their owners:
  RopeLevels levels;
  DocumentsPtr documents;  // or null
  Tensor positions;        // or undefined
};

template <class Place>
void rotate(const Place& place, const Turn& turn, double direction, const Tensor& x, const GradTarget& y) {
  const bool on_cpu = place.device().is_cpu();
  kRotate.run(place, {.dtype = x.dtype(),
                      .T = x.dim(0),
                      .H = x.dim(1),
                      .D = x.dim(2),
                      .D_r = turn.D_r,
                      .direction = direction,
                      .cos = on_cpu ? turn.rows.cos.raw() : nullptr,
                      .sin = on_cpu ? turn.rows.sin.raw() : nullptr,
                      .angles = turn.angles,
                      .x = x.raw(),
                      .y = y.raw(),
                      .write_y = y.write});
}

struct RopeSaved {
  Turn turn;

  void backward(Backward& pass) const { rotate(pass, turn, -1.0, pass.grad(0), pass.target(0)); }
};

void check(const Var& x, std::int64_t tokens, const RopeTable& table) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(0) == tokens, "rope: x is {}, expected [{}, heads, width]", x.shape().str(),
             tokens);
  WEFT_CHECK(table.rotary_dim() <= x.dim(2), "rope: rotary width {} of heads of width {}", table.rotary_dim(),
             x.dim(2));
}

Var turned(Tape& tape, const Var& x, const Turn& turn) {
  const Tensor y = tape.empty(x.shape(), x.dtype());
  tape.compute_cheaply({x.value}, {y}, [turn](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
    rotate(on, turn, 1.0, in[0], {out[0], Write::overwrite});
  });
  return tape.record("rope", {x}, y, [&] { return RopeSaved{turn}; });
}

}  // namespace

Var rope(Tape& tape, const Var& x, const DocumentsPtr& documents, const RopeTable& table) {
  check(x, documents->tokens(), table);
  Turn turn{.D_r = table.rotary_dim(), .rows = {}, .angles = {}, .levels = {}, .documents = documents, .positions = {}};
  if (tape.device().is_cpu()) {
    turn.rows = table.rows(documents, x.dtype());
  } else {
    turn.angles = table.angles_on(tape.stream(), *documents);
    turn.levels = table.levels_on(tape.stream());
  }
  return turned(tape, x, turn);
}

Var rope(Tape& tape, const Var& x, std::span<const std::int32_t> positions, const RopeTable& table) {
  const auto n = static_cast<std::int64_t>(positions.size());
  check(x, n, table);
  if (tape.device().is_cpu()) {
    const Shape shape{n, table.rotary_dim() / 2};
    const RopeRows rows{tape.empty(shape, x.dtype()), tape.empty(shape, x.dtype())};
    table.build(positions, rows);
    return turned(
        tape, x,
        {.D_r = table.rotary_dim(), .rows = rows, .angles = {}, .levels = {}, .documents = nullptr, .positions = {}});
  }
  for (const std::int32_t p : positions) {
    WEFT_CHECK(p >= 0 && p < kRopeReach, "rope: position {}; on a GPU they end at {}", p, kRopeReach - 1);
  }
  const Tensor here = tape.empty({n}, DType::i32);
  copy(here, Tensor::from({n}, positions), tape.stream());
  return rope(tape, x, here, table);
}

Var rope(Tape& tape, const Var& x, const Tensor& positions, const RopeTable& table) {
  WEFT_CHECK(positions.rank() == 1 && positions.dtype() == DType::i32 && positions.device() == tape.device(),
             "rope: positions {} {}", positions.shape().str(), name_of(positions.dtype()));
  const auto* data = positions.data<std::int32_t>();
  if (tape.device().is_cpu()) {
    return rope(tape, x, std::span<const std::int32_t>(data, static_cast<std::size_t>(positions.numel())), table);
  }
  check(x, positions.dim(0), table);
  const RopeLevels& levels = table.levels_on(tape.stream());
  return turned(tape, x,
                {.D_r = table.rotary_dim(),
                 .rows = {},
                 .angles = {data, levels.fine.data<float>(), levels.coarse.data<float>()},
                 .levels = levels,
                 .documents = nullptr,
                 .positions = positions});
}

}  // namespace weft
