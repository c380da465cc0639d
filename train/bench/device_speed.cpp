#include "train/bench/device_speed.h"

#include <cstring>

#include "autograd/parallel_for.h"
#include "autograd/stopwatch.h"

namespace weft {
namespace {

constexpr int kRepeats = 21;

// Bytes a second, read and written, of a copy that no cache holds.
double measure_bandwidth(const Place& place) {
  const std::int64_t n = place.on_cpu() ? std::int64_t{1} << 24 : std::int64_t{1} << 28;  // of 4 bytes
  const Tensor from({n}, DType::f32, place.arena), to({n}, DType::f32, place.arena);
  fill(from, 1.0, place.stream);
  fill(to, 2.0, place.stream);
  Stopwatch stopwatch(place.stream);
  for (int i = 0; i < kRepeats; ++i) {
    stopwatch.mark();
    if (place.on_cpu()) {
      parallel_blocks(n, 65536, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        std::memcpy(to.data<float>() + begin, from.data<float>() + begin, static_cast<std::size_t>(end - begin) * 4);
      });
    } else {
      copy(to, from, place.stream);
    }
  }
  stopwatch.mark();
  return 2.0 * static_cast<double>(from.nbytes()) / median(stopwatch.take());
}

}  // namespace

DeviceSpeed measure_speed(const Compute& compute) {
  return {.device = compute.description(),
          .matrix_rate = compute.measure_matrix_rate(),
          .bandwidth = measure_bandwidth(compute.place())};
}

}  // namespace weft
