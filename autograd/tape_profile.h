// Where the time of a tape goes, operation by operation.
#pragma once

#include <string>
#include <vector>

#include "autograd/stopwatch.h"

namespace weft {

// While one of these lives, the tapes of this thread report every operation to it, forward as it is recorded and
// backward as it runs. An operation gets the time since the one before, with what happened between the two. In a span
// that is recomputed the operations of its backward are listed as those of both directions; "recompute" is what is left
// of it.
class TapeProfile {
 public:
  explicit TapeProfile(const Stream& stream);
  ~TapeProfile();
  TapeProfile(const TapeProfile&) = delete;
  TapeProfile& operator=(const TapeProfile&) = delete;

  // The time up to here belongs to no operation.
  void skip();

  struct Entry {
    std::string op;
    bool backward = false;
    std::int64_t calls = 0;
    double seconds = 0.0;  // of all calls
  };
  // By operation and direction, most seconds first. Waits for the stream.
  std::vector<Entry> entries();

  // For the tape: `op` is done.
  static void note(const char* op, bool backward);

 private:
  struct Point {
    const char* op;  // null: skipped
    bool backward;
  };
  Stopwatch stopwatch_;
  std::vector<Point> points_;
};

}  // namespace weft
