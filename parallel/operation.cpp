#include "parallel/operation.h"

#include <algorithm>
#include <cstdio>
#include <fmt/ranges.h>

namespace weft {

std::string Envelope::str() const {
  if (kind == OperationKind::barrier) return fmt::format("barrier #{}", sequence);
  return fmt::format("{} #{} ({} bytes of {})", name_of(kind), sequence, bytes, name_of(dtype));
}

bool Envelope::agrees_with(const Envelope& other) const {
  if (kind != other.kind || sequence != other.sequence || uniform != other.uniform) return false;
  return !uniform || (dtype == other.dtype && bytes == other.bytes && argument == other.argument);
}

void fail_mismatch(std::string_view mine, int my_rank, std::string_view other, int other_rank) {
  fail(ExitCode::internal,
       "ranks issue different operations: rank {} called {}, rank {} called {}; all ranks of a group must issue the "
       "same operations in the same order",
       my_rank, mine, other_rank, other);
}

Operation::Operation(std::shared_ptr<ProgressEngine> engine, std::shared_ptr<Transport> transport, std::string group,
                     const Envelope& envelope)
    : engine_(std::move(engine)),
      transport_(std::move(transport)),
      group_(std::move(group)),
      envelope_(envelope),
      posted_(Clock::now()) {}

std::byte* Operation::scratch(std::size_t bytes) {
  scratch_.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
  return scratch_.back().get();
}

bool Operation::done() {
  if (!complete()) engine_->progress();
  return complete();
}

void Operation::wait() {
  engine_->wait(*this);
}

bool Operation::advance() {
  bool moved = false;
  while (!complete()) {
    if (transfers_ == nullptr) {
      const Stage& stage = stages[next_stage_];
      transfers_ = transport_->start(envelope_, stage.sends, stage.receives);
      ++next_stage_;
    }
    if (!transfers_->poll()) return moved;
    transfers_.reset();
    if (const auto& then = stages[next_stage_ - 1].then) then();
    moved = true;
  }
  return moved;
}

std::string Operation::describe() const {
  return fmt::format("rank {}: {} of group '{}'", transport_->world_rank(transport_->rank()), envelope_.str(), group_);
}

Event ProgressEngine::launch(const std::shared_ptr<Operation>& operation) {
  rethrow_failure();
  operation->record_ = recorded_++;
  const Record record{operation->group_, operation->envelope_, operation->posted_, {}, false};
  if (records_.size() < kRecords) {
    records_.push_back(record);
  } else {
    records_[operation->record_ % kRecords] = record;
  }
  pending_.push_back(operation);
  progress();
  return Event(operation);
}

bool ProgressEngine::progress() {
  rethrow_failure();
  bool moved = false;
  for (auto it = pending_.begin(); it != pending_.end();) {
    Operation& operation = **it;
    try {
      moved |= operation.advance();
    } catch (...) {
      break_down(std::current_exception());
    }
    if (!operation.complete()) {
      ++it;
      continue;
    }
    Record& record = records_[operation.record_ % kRecords];
    if (recorded_ - operation.record_ <= kRecords) {
      record.completed = Clock::now();
      record.complete = true;
    }
    it = pending_.erase(it);
  }
  return moved;
}

void ProgressEngine::wait(Operation& operation) {
  if (operation.complete()) return;
  const Clock::time_point begin = Clock::now();
  std::optional<std::string> suspicion;
  for (int rounds = 0;; ++rounds) {
    if (progress()) rounds = 0;
    if (operation.complete()) return;

    const std::vector<int> peers = operation.transfers_->waiting_for();
    // A rank is given up only if it is still awaited after a poll that came later than the news of its end: what it
    // sent before that counts.
    const std::optional<std::string> reason = lost(operation, peers);
    if (reason && reason == suspicion) {
      break_down(std::make_exception_ptr(
          Error(ExitCode::peer_lost, fmt::format("{} cannot complete: {}", operation.describe(), *reason))));
    }
    suspicion = reason;
    if (reason) continue;
    const Clock::time_point now = Clock::now();
    if (now - begin > timeout_) {
      const int rank = operation.transport_->world_rank(operation.transport_->rank());
      fmt::print(stderr, "last operations of rank {}:\n{}", rank, recent_operations(32));
      std::vector<int> waiting;
      for (const int peer : peers) waiting.push_back(operation.transport_->world_rank(peer));
      break_down(std::make_exception_ptr(Error(
          ExitCode::timeout,
          fmt::format("{} timed out after {:.1f} s (issued {:.1f} s ago), waiting for rank {}", operation.describe(),
                      timeout_.count(), Seconds(now - operation.posted_).count(), fmt::join(waiting, ", ")))));
    }
    operation.transport_->pause(rounds);
  }
}

std::optional<std::string> ProgressEngine::lost(Operation& operation, std::span<const int> peers) {
  try {
    return operation.transport_->lost(operation.envelope_, peers);
  } catch (...) {
    break_down(std::current_exception());
  }
}

std::string ProgressEngine::recent_operations(std::size_t count) const {
  const Clock::time_point now = Clock::now();
  const std::uint64_t kept = std::min<std::uint64_t>({recorded_, kRecords, count});
  std::string text;
  for (std::uint64_t k = recorded_ - kept; k < recorded_; ++k) {
    const Record& record = records_[k % kRecords];
    const double age = Seconds(now - record.posted).count();
    text += fmt::format("  {:>9.3f} s ago  {}: {}, ", age, record.group, record.envelope.str());
    text += record.complete ? fmt::format("took {:.3f} s\n", Seconds(record.completed - record.posted).count())
                            : std::string("not complete\n");
  }
  return text;
}

void ProgressEngine::rethrow_failure() const {
  if (failure_ != nullptr) std::rethrow_exception(failure_);
}

void ProgressEngine::break_down(std::exception_ptr failure) {
  failure_ = std::move(failure);
  // Messages of other processes may still arrive in these buffers, so they live until this process ends.
  static auto* const abandoned = new std::vector<std::shared_ptr<Operation>>;
  for (const auto& operation : pending_) {
    if (operation->transport_->backend() == Backend::mpi) abandoned->push_back(operation);
  }
  pending_.clear();
  std::rethrow_exception(failure_);
}

}  // namespace weft
