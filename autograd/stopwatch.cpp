#include "autograd/stopwatch.h"

#include <algorithm>

#include "autograd/check.h"
#include "autograd/cuda/cuda_events.h"

namespace weft {

Stopwatch::~Stopwatch() {
  for (void* event : events_) destroy_cuda_event(event);
}

void Stopwatch::mark() {
  if (stream_.device.is_cpu()) {
    times_.push_back(std::chrono::steady_clock::now());
  } else {
    if (marks_ == events_.size()) events_.push_back(create_cuda_event());
    record_cuda_event(events_[marks_], stream_);
  }
  ++marks_;
}

std::vector<double> Stopwatch::take() {
  std::vector<double> seconds;
  for (std::size_t i = 0; i + 1 < marks_; ++i) {
    seconds.push_back(stream_.device.is_cpu() ? std::chrono::duration<double>(times_[i + 1] - times_[i]).count()
                                              : seconds_between_cuda_events(events_[i], events_[i + 1]));
  }
  times_.clear();
  marks_ = 0;
  return seconds;
}

double median(std::vector<double> values) {
  WEFT_CHECK(!values.empty(), "the median of nothing");
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace weft
