// Times between points of the work on a stream: by events of the device where that is a GPU, so that neither the host's
// lead nor its lag counts as long as the device has work; by the clock on the CPU.
#pragma once

#include <chrono>
#include <vector>

#include "autograd/device.h"

namespace weft {

class Stopwatch {
 public:
  explicit Stopwatch(const Stream& stream) : stream_(stream) {}
  ~Stopwatch();
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  void mark();
  // Seconds from each mark to the next. Waits for the last one, and forgets all.
  std::vector<double> take();

 private:
  Stream stream_;
  std::size_t marks_ = 0;
  std::vector<std::chrono::steady_clock::time_point> times_;
  std::vector<void*> events_;  // cudaEvent_t, used again after take()
};

double median(std::vector<double> values);

}  // namespace weft
