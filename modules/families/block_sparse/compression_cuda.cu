// CUDA kernels of compression.h: means by a kernel of their own, learned maps as products (compression_product.cuh)
// whose operands are found where they lie; vec(X) is never gathered. Row i of a row of blocks begins at a token that a
// table names.
#include "modules/families/block_sparse/compression_operands.cuh"

namespace weft::block_sparse::compression {
namespace {

bool aligned(std::initializer_list<const void*> bases) {
  bool all = true;
  for (const void* base : bases) all = all && reinterpret_cast<std::uintptr_t>(base) % 16 == 0;
  return all;
}

template <class T>
Shape<T> shape_of(const CompressionInputs& in, const std::int32_t* tokens) {
  return {.S = static_cast<int>(in.S),
          .H = static_cast<int>(in.H),
          .D = static_cast<int>(in.D),
          .r = static_cast<int>(in.r),
          .l = in.span.length,
          .stride = in.span.stride,
          .packs = in.D % 8 == 0 && in.r % 8 == 0 && aligned({in.x, in.w1, in.w2}),
          .x = static_cast<const T*>(in.x),
          .w1 = static_cast<const T*>(in.w1),
          .w2 = static_cast<const T*>(in.w2),
          .pe = static_cast<const float*>(in.pe),
          .b1 = static_cast<const float*>(in.b1),
          .tokens = tokens};
}

struct Arrays {
  std::int32_t *key_row, *first_block, *tokens;
  float *bias, *means, *hidden;
  // backward
  std::int32_t *cell_row, *first_cell;
  Cell* cells;
  float *da, *da_sum;
};
std::int64_t most_cells(const CompressionInputs& in) {
  return most_blocks(in.T, in.N, in.span.stride);
}
Arrays carve(DeviceCarver& carver, const CompressionInputs& in, bool backward) {
  const bool mlp = in.w2 != nullptr, mean = in.w1 == nullptr;
  const std::int64_t rows = in.S * in.H;
  Arrays a{};
  a.key_row = carver.take<std::int32_t>(in.N + 1);
  a.first_block = carver.take<std::int32_t>(in.N + 1);
  a.tokens = carver.take<std::int32_t>(in.S);
  a.bias = carver.take<float>(mlp ? in.H * in.r : 0);
  a.means = carver.take<float>(mean || backward ? 0 : rows * in.D);
  a.hidden = carver.take<float>(mlp ? rows * in.r : 0);
  if (!backward) return a;
  a.cell_row = carver.take<std::int32_t>(in.N + 1);
  a.first_cell = carver.take<std::int32_t>(in.N + 1);
  a.cells = carver.take<Cell>(most_cells(in));
  a.da = carver.take<float>(mlp ? rows * in.r : 0);
  a.da_sum = carver.take<float>(mlp ? in.H * in.r : 0);
  return a;
}

RowTables find_blocks(const CompressionInputs& in, const Arrays& a, const Stream& stream) {
  const RowTables row = lay_out_row(in.cu_seqlens, in.N, in.span, 1, a.key_row, a.first_block, stream);
  if (in.S > 0) {
    find_tokens<<<blocks_for(in.S, kThreads), kThreads, 0, cuda_stream(stream)>>>(row, static_cast<int>(in.S),
                                                                                  a.tokens);
    WEFT_CHECK_LAUNCH();
  }
  return row;
}

template <class T>
void find_hidden(const Shape<T>& s, const Arrays& a, T* y, const Stream& stream) {
  const int rows = s.l * s.D;
  if (s.w2 != nullptr) sum_columns(Bias<T>{s, a.bias, s.r, rows}, s.H, stream);
  multiply<T>(Hidden<T>{s, s.w2 == nullptr ? nullptr : a.bias, a.means, a.hidden, y, s.S, s.r, rows}, s.H, stream);
}

template <class T, class Out>
void means(const Shape<T>& s, Out* y, const Stream& stream) {
  const std::int64_t count = static_cast<std::int64_t>(s.S) * s.H * s.D;
  find_means<T, Out><<<blocks_for(count, kThreads), kThreads, 0, cuda_stream(stream)>>>(s, y);
  WEFT_CHECK_LAUNCH();
}

template <class T>
void forward(const CompressionForward& args, const Launch& launch) {
  DeviceCarver carver(launch.workspace);
  const Arrays a = carve(carver, args.in, false);
  find_blocks(args.in, a, launch.stream);
  const Shape<T> s = shape_of<T>(args.in, a.tokens);
  auto* const y = static_cast<T*>(args.y);
  if (s.w1 == nullptr) return means(s, y, launch.stream);
  means(s, a.means, launch.stream);
  find_hidden(s, a, y, launch.stream);
  if (s.w2 != nullptr) multiply<T>(Output<T>{s, a.hidden, a.means, y, s.S, s.D, s.r}, s.H, launch.stream);
}

// Everything that follows from da, which has the type of floats, or of dy where it is dy.
template <class T, class Da>
void backward_from(const CompressionBackward& args, const Shape<T>& s, const Arrays& a, const RowTables& row,
                   const Da* da, const Launch& launch) {
  const CompressionInputs& in = args.in;
  const auto* dy = static_cast<const T*>(args.dy);
  if (args.dw1 != nullptr) {
    multiply<T>(HiddenWeights<T, Da>{s, da, s.pe == nullptr ? nullptr : a.da_sum, static_cast<float*>(args.dw1),
                                     args.write_dw1, s.l * s.D, s.r, s.S},
                s.H, launch.stream);
  }
  if (args.dx == nullptr) return;
  const RowTables cells = lay_out_row(in.cu_seqlens, in.N, {}, s.stride, a.cell_row, a.first_cell, launch.stream);
  const int count = static_cast<int>(most_cells(in));
  if (count == 0) return;
  find_cells<<<blocks_for(count, kThreads), kThreads, 0, cuda_stream(launch.stream)>>>(row, cells, count, s.stride,
                                                                                       a.cells);
  WEFT_CHECK_LAUNCH();
  const int K = s.w1 == nullptr ? 0 : s.l / s.stride * s.r;
  multiply<T>(TokenGradient<T, Da>{s, a.cells, da, dy, static_cast<T*>(args.dx), args.write_dx, count, s.D, K},
              s.H * s.stride, launch.stream);
}

template <class T>
void backward(const CompressionBackward& args, const Launch& launch) {
  DeviceCarver carver(launch.workspace);
  const Arrays a = carve(carver, args.in, true);
  const RowTables row = find_blocks(args.in, a, launch.stream);
  Shape<T> s = shape_of<T>(args.in, a.tokens);
  s.packs = s.packs && aligned({args.dy});
  const auto* dy = static_cast<const T*>(args.dy);
  if (s.w2 == nullptr) return backward_from<T, T>(args, s, a, row, dy, launch);
  find_hidden<T>(s, a, nullptr, launch.stream);
  multiply<T>(HiddenGradient<T>{s, dy, a.hidden, a.da, s.S, s.r, s.D}, s.H, launch.stream);
  sum_columns(HiddenSums{a.da, a.da_sum, static_cast<float*>(args.db1), args.write_db1, s.H, s.r, s.S}, s.H,
              launch.stream);
  if (args.dpe != nullptr) {
    const std::int64_t rows = static_cast<std::int64_t>(s.H) * s.l * s.D;
    find_position_gradients<T><<<blocks_for(rows, kThreads / kWarp), kThreads, 0, cuda_stream(launch.stream)>>>(
        s, a.da_sum, static_cast<float*>(args.dpe), args.write_dpe);
    WEFT_CHECK_LAUNCH();
  }
  if (args.dw2 != nullptr) {
    multiply<T>(OutputWeights<T>{s, dy, a.hidden, static_cast<float*>(args.dw2), args.write_dw2, s.r, s.D, s.S}, s.H,
                launch.stream);
  }
  backward_from<T, float>(args, s, a, row, a.da, launch);
}

}  // namespace
}  // namespace weft::block_sparse::compression

namespace weft {

std::size_t compression_forward_cuda_workspace(const CompressionForward& args) {
  block_sparse::DeviceCarver carver(nullptr);
  block_sparse::compression::carve(carver, args.in, false);
  return carver.used();
}

std::size_t compression_backward_cuda_workspace(const CompressionBackward& args) {
  block_sparse::DeviceCarver carver(nullptr);
  block_sparse::compression::carve(carver, args.in, true);
  return carver.used();
}

void compression_forward_cuda(const CompressionForward& args, const Launch& launch) {
  if (args.in.S == 0) return;
  dispatch_cuda(args.in.dtype, "compression", [&]<class T>() { block_sparse::compression::forward<T>(args, launch); });
}

void compression_backward_cuda(const CompressionBackward& args, const Launch& launch) {
  dispatch_cuda(args.in.dtype, "compression", [&]<class T>() { block_sparse::compression::backward<T>(args, launch); });
}

}  // namespace weft
