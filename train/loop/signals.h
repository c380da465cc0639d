// Signals become requests that the training loop reads at the end of a step.
#pragma once

namespace weft {

// While it lives, SIGTERM and SIGINT ask for a save and a clean end, SIGUSR1 for a save. A second SIGINT ends the
// process at once.
class SignalRequests {
 public:
  SignalRequests();
  ~SignalRequests();
  SignalRequests(const SignalRequests&) = delete;
  SignalRequests& operator=(const SignalRequests&) = delete;

  bool stop_requested() const;
  // True once for each SIGUSR1 since the last call.
  bool take_save_request();
};

}  // namespace weft
