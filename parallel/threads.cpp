#include "parallel/threads.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "parallel/host_communicator.h"

namespace weft {
namespace {

struct Message {
  Envelope envelope;
  std::size_t bytes;
  std::unique_ptr<std::byte[]> payload;
};

// From, to, sequence number; messages of one operation between two ranks are in order.
using Mailboxes = std::map<std::tuple<int, int, std::uint64_t>, std::deque<Message>>;

// What all threads of one run share; a single lock, since this back end is for tests.
struct Run {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t version = 0;            // counts changes, so that none is slept through
  std::vector<std::string> departures;  // by world rank: why it will not communicate any more; empty while it may
  std::exception_ptr first_error;
  std::map<std::tuple<const void*, std::uint64_t, int>, std::shared_ptr<Mailboxes>> groups;  // parent, sequence, color

  void depart(int rank, std::string reason) {
    const std::lock_guard lock(mutex);
    departures[static_cast<std::size_t>(rank)] = std::move(reason);
    ++version;
    changed.notify_all();
  }
};

// What all transports of one rank share.
struct Rank {
  std::shared_ptr<Run> run;
  std::uint64_t seen = 0;
};

class ThreadTransfers final : public Transfers {
 public:
  ThreadTransfers(std::shared_ptr<Run> run, std::shared_ptr<Mailboxes> mailboxes, std::span<const int> world_ranks,
                  int rank, const Envelope& envelope, std::span<const Transfer> receives)
      : run_(std::move(run)),
        mailboxes_(std::move(mailboxes)),
        world_ranks_(world_ranks),
        rank_(rank),
        envelope_(envelope),
        receives_(receives.begin(), receives.end()),
        received_(receives.size(), false) {}

  bool poll() override {
    // A later message of a rank is not taken for an earlier one that has not come yet.
    std::vector<bool> silent(world_ranks_.size(), false);
    bool all = true;
    for (std::size_t i = 0; i < receives_.size(); ++i) {
      const auto peer = static_cast<std::size_t>(receives_[i].peer);
      if (!received_[i] && !silent[peer]) received_[i] = receive(receives_[i]);
      if (!received_[i]) silent[peer] = true;
      all &= received_[i];
    }
    return all;
  }

  std::vector<int> waiting_for() override {
    std::vector<int> peers;
    for (std::size_t i = 0; i < receives_.size(); ++i) {
      if (!received_[i]) peers.push_back(receives_[i].peer);
    }
    return peers;
  }

 private:
  bool receive(const Transfer& transfer) {
    Message message;
    {
      const std::lock_guard lock(run_->mutex);
      const auto box = mailboxes_->find({transfer.peer, rank_, envelope_.sequence});
      if (box == mailboxes_->end()) return false;
      message = std::move(box->second.front());
      box->second.pop_front();
      if (box->second.empty()) mailboxes_->erase(box);
    }
    if (!envelope_.agrees_with(message.envelope) || message.bytes != transfer.bytes) {
      fail_mismatch(envelope_.str(), world_rank(rank_), message.envelope.str(), world_rank(transfer.peer));
    }
    if (message.bytes > 0) std::memcpy(transfer.data, message.payload.get(), message.bytes);
    return true;
  }
  int world_rank(int rank) const { return world_ranks_[static_cast<std::size_t>(rank)]; }

  std::shared_ptr<Run> run_;
  std::shared_ptr<Mailboxes> mailboxes_;
  std::span<const int> world_ranks_;
  int rank_;
  Envelope envelope_;
  std::vector<Transfer> receives_;
  std::vector<bool> received_;
};

// A send copies the message into the receiver's mailbox and is complete at once.
class ThreadTransport final : public Transport {
 public:
  ThreadTransport(std::shared_ptr<Rank> me, std::shared_ptr<Mailboxes> mailboxes, std::vector<int> world_ranks,
                  int rank)
      : me_(std::move(me)), mailboxes_(std::move(mailboxes)), world_ranks_(std::move(world_ranks)), rank_(rank) {}

  Backend backend() const override { return Backend::threads; }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }
  int world_rank(int rank) const override { return world_ranks_[static_cast<std::size_t>(rank)]; }

  std::unique_ptr<Transfers> start(const Envelope& envelope, std::span<const Transfer> sends,
                                   std::span<const Transfer> receives) override {
    Run& run = *me_->run;
    for (const Transfer& send : sends) {
      Message message{envelope, send.bytes, std::make_unique_for_overwrite<std::byte[]>(send.bytes)};
      if (send.bytes > 0) std::memcpy(message.payload.get(), send.data, send.bytes);
      const std::lock_guard lock(run.mutex);
      (*mailboxes_)[{rank_, send.peer, envelope.sequence}].push_back(std::move(message));
      ++run.version;
      run.changed.notify_all();
    }
    return std::make_unique<ThreadTransfers>(me_->run, mailboxes_, world_ranks_, rank_, envelope, receives);
  }

  void pause(int) override {
    std::unique_lock lock(me_->run->mutex);
    // Wakes up now and then to look at the deadline.
    me_->run->changed.wait_for(lock, std::chrono::milliseconds(20), [&] { return me_->run->version != me_->seen; });
    me_->seen = me_->run->version;
  }

  std::optional<std::string> lost(const Envelope&, std::span<const int> ranks) override {
    const std::lock_guard lock(me_->run->mutex);
    for (const int rank : ranks) {
      const std::string& reason = me_->run->departures[static_cast<std::size_t>(world_rank(rank))];
      if (!reason.empty()) return fmt::format("rank {} {}", world_rank(rank), reason);
    }
    return std::nullopt;
  }

  std::shared_ptr<Transport> subgroup(std::span<const int> members, int color, std::uint64_t sequence) override {
    std::shared_ptr<Mailboxes> mailboxes;
    {
      const std::lock_guard lock(me_->run->mutex);
      auto& entry = me_->run->groups[{mailboxes_.get(), sequence, color}];
      if (entry == nullptr) entry = std::make_shared<Mailboxes>();
      mailboxes = entry;
    }
    std::vector<int> world_ranks;
    int rank = -1;
    for (const int member : members) {
      if (member == rank_) rank = static_cast<int>(world_ranks.size());
      world_ranks.push_back(world_rank(member));
    }
    return std::make_shared<ThreadTransport>(me_, std::move(mailboxes), std::move(world_ranks), rank);
  }

 private:
  std::shared_ptr<Rank> me_;
  std::shared_ptr<Mailboxes> mailboxes_;
  std::vector<int> world_ranks_;
  int rank_;
};

void run_rank(const std::shared_ptr<Run>& run, const std::shared_ptr<Mailboxes>& mailboxes, int ranks, int rank,
              const std::function<void(Communicator&)>& fn) {
  std::vector<int> world_ranks;
  for (int r = 0; r < ranks; ++r) world_ranks.push_back(r);
  std::string reason = "has returned";
  try {
    const auto me = std::make_shared<Rank>(Rank{run});
    const auto transport = std::make_shared<ThreadTransport>(me, mailboxes, std::move(world_ranks), rank);
    const auto world = std::make_shared<HostCommunicator>(std::make_shared<ProgressEngine>(), transport, "world");
    fn(*world);
  } catch (...) {
    reason = "failed";
    try {
      throw;
    } catch (const std::exception& error) {
      reason = fmt::format("failed: {}", error.what());
    } catch (...) {
    }
    const std::lock_guard lock(run->mutex);
    if (run->first_error == nullptr) run->first_error = std::current_exception();
  }
  run->depart(rank, std::move(reason));
}

}  // namespace

void run_ranks(int ranks, const std::function<void(Communicator& world)>& fn) {
  WEFT_CHECK(ranks >= 1, "{} ranks", ranks);
  const auto run = std::make_shared<Run>();
  run->departures.resize(static_cast<std::size_t>(ranks));
  const auto mailboxes = std::make_shared<Mailboxes>();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] { run_rank(run, mailboxes, ranks, rank, fn); });
  }
  for (std::thread& thread : threads) thread.join();
  if (run->first_error != nullptr) std::rethrow_exception(run->first_error);
}

}  // namespace weft
