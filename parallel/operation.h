// Operations in flight on one rank, and the engine that moves them along.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "parallel/transport.h"

namespace weft {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

class ProgressEngine;

// A collective is a fixed list of stages: exchange, then compute on what came.
struct Stage {
  std::vector<Transfer> sends;
  std::vector<Transfer> receives;
  std::function<void()> then;
};

class Operation final : public PendingOperation {
 public:
  Operation(std::shared_ptr<ProgressEngine> engine, std::shared_ptr<Transport> transport, std::string group,
            const Envelope& envelope);

  // While it is being built.
  std::vector<Stage> stages;
  std::vector<Tensor> keep_alive;
  // Uninitialised memory that lives as long as the operation.
  std::byte* scratch(std::size_t bytes);

  bool done() override;
  void wait() override;

 private:
  friend class ProgressEngine;
  // True if a stage was completed.
  bool advance();
  bool complete() const { return next_stage_ == stages.size() && transfers_ == nullptr; }
  std::string describe() const;

  std::shared_ptr<ProgressEngine> engine_;
  std::shared_ptr<Transport> transport_;
  std::string group_;
  Envelope envelope_;
  Clock::time_point posted_;
  std::vector<std::unique_ptr<std::byte[]>> scratch_;
  std::size_t next_stage_ = 0;  // the stage to start; the one before it is in flight while transfers_ is set
  std::unique_ptr<Transfers> transfers_;
  std::uint64_t record_ = 0;
};

// One for each rank, shared by all its groups, so that waiting in one group keeps the others going.
class ProgressEngine {
 public:
  Event launch(const std::shared_ptr<Operation>& operation);
  // True if any operation completed a stage.
  bool progress();
  void wait(Operation& operation);
  void set_timeout(Seconds timeout) { timeout_ = timeout; }
  std::string recent_operations(std::size_t count) const;

 private:
  // A line of the flight recorder.
  struct Record {
    std::string group;
    Envelope envelope;
    Clock::time_point posted;
    Clock::time_point completed;
    bool complete = false;
  };
  static constexpr std::size_t kRecords = 1024;

  std::optional<std::string> lost(Operation& operation, std::span<const int> peers);
  void rethrow_failure() const;
  // Once broken, a rank stays broken: what is in flight is given up and every later call throws the same error.
  [[noreturn]] void break_down(std::exception_ptr failure);

  std::list<std::shared_ptr<Operation>> pending_;
  std::vector<Record> records_;  // a ring: record k is at k % kRecords
  std::uint64_t recorded_ = 0;
  Seconds timeout_ = kDefaultTimeout;
  std::exception_ptr failure_;
};

}  // namespace weft
