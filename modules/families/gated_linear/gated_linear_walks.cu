#include "modules/families/gated_linear/gated_linear_walks.cuh"

namespace weft::walks {
namespace {

// A warp for each chunk and head.
__global__ void sum_dots_kernel(const Chunk* chunks, std::int64_t H, int blocks, const float* dots_q,
                                const float* dots_k, int parts, const float* alive, float* dg, Write write) {
  const Chunk chunk = chunks[blockIdx.x];
  const std::int64_t h = blockIdx.y;
  const int lane = threadIdx.x, n = chunk.end - chunk.begin;
  if (n <= 0) return;
  const auto sum_of = [](const float* parts, int count) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += parts[i];
    return sum;
  };
  double carried = sum_of(alive + (blockIdx.x * H + h) * parts, parts);
  for (int last = (n + 31) / 32 * 32; last > 0; last -= 32) {  // 32 tokens at a time, from the end
    const int i = last - 1 - lane;
    const std::int64_t row = (chunk.begin + i) * H + h;
    double sum = 0.0;
    if (i < n) sum = sum_of(dots_q + row * blocks, blocks) - sum_of(dots_k + row * blocks, blocks);
    for (int step = 1; step < 32; step *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    sum += carried;
    carried = __shfl_sync(0xffffffffu, sum, 31);
    if (i < n) dg[row] = static_cast<float>(write == Write::accumulate ? dg[row] + sum : sum);
  }
}

}  // namespace

void sum_dots(const GatedLinearBackward& args, const BackwardRoom& room, int blocks, const float* alive, int parts,
              cudaStream_t stream) {
  if (args.dg == nullptr || args.chunk_count == 0 || args.H == 0) return;
  sum_dots_kernel<<<dim3(static_cast<unsigned>(args.chunk_count), static_cast<unsigned>(args.H)), 32, 0, stream>>>(
      args.chunks, args.H, blocks, room.dots_q, room.dots_k, parts, alive, static_cast<float*>(args.dg), args.write_dg);
  WEFT_CHECK_LAUNCH();
}

void sum_heads(const GatedLinearBackward& args, const BackwardRoom& room, cudaStream_t stream) {
  const auto add = [&](const float* staged, void* gradient, Write write) {
    if (staged == nullptr || args.T == 0) return;
    const DeviceRows to = device_rows(gradient, args.dtype, args.key_heads(), args.d_k);
    feature_rows_backward_cuda(FeatureMap::identity, args.T * args.key_heads(), args.heads_per_key(), args.d_k, to,
                               nullptr, staged, to, write, stream);
  };
  add(room.dq, args.dq, args.write_dq);
  add(room.dk, args.dk, args.write_dk);
}

}  // namespace weft::walks
