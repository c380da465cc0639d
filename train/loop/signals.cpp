#include "train/loop/signals.h"

#include <array>
#include <signal.h>
#include <unistd.h>

namespace weft {
namespace {

// Handlers may touch only these.
volatile sig_atomic_t stop_signals = 0;
volatile sig_atomic_t interrupts = 0;
volatile sig_atomic_t save_signals = 0;
constexpr std::array kSignals = {SIGTERM, SIGINT, SIGUSR1};
std::array<struct sigaction, kSignals.size()> previous;

void on_signal(int signal) {
  if (signal == SIGUSR1) {
    save_signals = save_signals + 1;
    return;
  }
  if (signal == SIGINT) {
    if (interrupts > 0) _exit(128 + SIGINT);
    interrupts = interrupts + 1;
  }
  stop_signals = stop_signals + 1;
}

}  // namespace

SignalRequests::SignalRequests() {
  stop_signals = 0;
  interrupts = 0;
  save_signals = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous[i]);
}

SignalRequests::~SignalRequests() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

bool SignalRequests::stop_requested() const {
  return stop_signals > 0;
}

bool SignalRequests::take_save_request() {
  const bool requested = save_signals > 0;
  save_signals = 0;
  return requested;
}

}  // namespace weft
