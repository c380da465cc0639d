#include "autograd/tape_profile.h"

#include <algorithm>
#include <map>

#include "autograd/check.h"

namespace weft {
namespace {

thread_local TapeProfile* current = nullptr;

}  // namespace

TapeProfile::TapeProfile(const Stream& stream) : stopwatch_(stream) {
  WEFT_CHECK(current == nullptr, "two profiles at a time");
  current = this;
  skip();
}

TapeProfile::~TapeProfile() {
  current = nullptr;
}

void TapeProfile::skip() {
  stopwatch_.mark();
  points_.push_back({nullptr, false});
}

void TapeProfile::note(const char* op, bool backward) {
  if (current == nullptr) return;
  current->stopwatch_.mark();
  current->points_.push_back({op, backward});
}

std::vector<TapeProfile::Entry> TapeProfile::entries() {
  const std::vector<double> seconds = stopwatch_.take();
  std::map<std::pair<std::string, bool>, Entry> by_op;
  for (std::size_t i = 0; i < seconds.size(); ++i) {
    const Point& point = points_[i + 1];  // the end of the i-th interval
    if (point.op == nullptr) continue;
    Entry& entry = by_op[{point.op, point.backward}];
    entry.op = point.op;
    entry.backward = point.backward;
    entry.calls += 1;
    entry.seconds += seconds[i];
  }
  points_.clear();
  skip();
  std::vector<Entry> list;
  for (const auto& [key, entry] : by_op) list.push_back(entry);
  std::ranges::stable_sort(list, std::greater(), &Entry::seconds);
  return list;
}

}  // namespace weft
