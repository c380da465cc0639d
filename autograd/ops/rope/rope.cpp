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
struct Angles {
  RopeRows rows;           // on the CPU
  RopeLevels levels;       // on a GPU, with the positions of `documents`, or `positions`
  DocumentsPtr documents;  // or null
  Tensor positions;        // or undefined
  std::int64_t D_r;
};

template <class Place>
void rotate(const Place& place, const Stream& stream, const Angles& angles, double direction, const Tensor& x,
            const GradTarget& y) {
  Rotation args{.dtype = x.dtype(),
                .T = x.dim(0),
                .H = x.dim(1),
                .D = x.dim(2),
                .D_r = angles.D_r,
                .direction = direction,
                .x = x.raw(),
                .y = y.raw(),
                .write_y = y.write};
  if (stream.device.is_cpu()) {
    args.cos = angles.rows.cos.raw();
    args.sin = angles.rows.sin.raw();
  } else {
    args.positions =
        angles.documents != nullptr ? angles.documents->positions_on(stream) : angles.positions.data<std::int32_t>();
    args.fine = angles.levels.fine.data<float>();
    args.coarse = angles.levels.coarse.data<float>();
  }
  kRotate.run(place, args);
}

struct RopeSaved {
  Angles angles;

  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    rotate(pass, pass.tape().stream(), angles, -1.0, dy, pass.target(0));
  }
};

void check(const Var& x, std::int64_t tokens, const RopeTable& table) {
  WEFT_CHECK(x.shape().rank() == 3 && x.dim(0) == tokens, "rope: x is {}, expected [{}, heads, width]", x.shape().str(),
             tokens);
  WEFT_CHECK(table.rotary_dim() <= x.dim(2), "rope: rotary width {} of heads of width {}", table.rotary_dim(),
             x.dim(2));
}

Var turned(Tape& tape, const Var& x, const Angles& angles) {
  const Tensor y = tape.empty(x.shape(), x.dtype());
  rotate(tape, tape.stream(), angles, 1.0, x.value, {y, Write::overwrite});
  return tape.record("rope", {x}, y, [&] { return RopeSaved{angles}; });
}

void check_reach(std::int64_t position) {
  if (position >= kRopeReach) {
    config_error("rope: position {}; on a GPU positions end at {}", position, kRopeReach - 1);
  }
}

}  // namespace

Var rope(Tape& tape, const Var& x, const DocumentsPtr& documents, const RopeTable& table) {
  check(x, documents->tokens(), table);
  Angles angles{.rows = {}, .levels = {}, .documents = documents, .positions = {}, .D_r = table.rotary_dim()};
  if (tape.device().is_cpu()) {
    angles.rows = table.rows(documents, x.dtype());
  } else {
    check_reach(documents->max_position());
    angles.levels = table.levels_on(tape.stream());
  }
  return turned(tape, x, angles);
}

Var rope(Tape& tape, const Var& x, std::span<const std::int32_t> positions, const RopeTable& table) {
  const auto n = static_cast<std::int64_t>(positions.size());
  check(x, n, table);
  if (!tape.device().is_cpu()) {
    for (const std::int32_t p : positions) {
      WEFT_CHECK(p >= 0, "rope: position {}", p);
      check_reach(p);
    }
    const Tensor here = tape.empty({n}, DType::i32);
    copy(here, Tensor::from({n}, std::vector<std::int32_t>(positions.begin(), positions.end())), tape.stream());
    return rope(tape, x, here, table);
  }
  const Shape shape{x.dim(0), table.rotary_dim() / 2};
  const RopeRows rows{tape.empty(shape, x.dtype()), tape.empty(shape, x.dtype())};
  table.build(positions, rows);
  return turned(tape, x,
                {.rows = rows, .levels = {}, .documents = nullptr, .positions = {}, .D_r = table.rotary_dim()});
}

Var rope(Tape& tape, const Var& x, const Tensor& positions, const RopeTable& table) {
  WEFT_CHECK(positions.rank() == 1 && positions.dtype() == DType::i32 && positions.device() == tape.device(),
             "rope: positions {} {}", positions.shape().str(), name_of(positions.dtype()));
  if (tape.device().is_cpu())
    return rope(
        tape, x,
        std::span<const std::int32_t>(positions.data<std::int32_t>(), static_cast<std::size_t>(positions.numel())),
        table);
  check(x, positions.dim(0), table);
  return turned(tape, x,
                {.rows = {},
                 .levels = table.levels_on(tape.stream()),
                 .documents = nullptr,
                 .positions = positions,
                 .D_r = table.rotary_dim()});
}

}  // namespace weft
