#include "parallel/launch.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fmt/ranges.h>
#include <map>
#include <mutex>
#include <thread>

#include "parallel/mpi.h"

namespace weft {
namespace {

// Ends the process with exit code `timeout` unless it is destroyed before the deadline.
class ExitGuard {
 public:
  explicit ExitGuard(std::chrono::duration<double> deadline)
      : thread_([this, deadline] {
          std::unique_lock lock(mutex_);
          if (!disarmed_.wait_for(lock, deadline, [this] { return done_; })) {
            fmt::print(stderr, "leaving MPI takes more than {:.0f} s; ending without it\n", deadline.count());
            std::_Exit(static_cast<int>(ExitCode::timeout));
          }
        }) {}
  ~ExitGuard() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    disarmed_.notify_one();
    thread_.join();
  }
  ExitGuard(const ExitGuard&) = delete;
  ExitGuard& operator=(const ExitGuard&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable disarmed_;
  bool done_ = false;
  std::thread thread_;  // last: it uses the others
};

// A known answer, long enough to take the same way as gradients.
void check_wiring(Communicator& world) {
  constexpr std::int64_t kElements = 4096;
  const Tensor data = Tensor::empty({kElements}, DType::i64);
  const std::int64_t n = world.size();
  for (std::int64_t i = 0; i < kElements; ++i)
    data.span<std::int64_t>()[static_cast<std::size_t>(i)] = world.rank() + i;
  world.all_reduce(data, ReduceOp::sum).wait();
  for (std::int64_t i = 0; i < kElements; ++i) {
    const std::int64_t found = data.span<std::int64_t>()[static_cast<std::size_t>(i)];
    const std::int64_t expected = n * (n - 1) / 2 + n * i;
    if (found != expected) {
      fail(ExitCode::internal, "rank {}: the start-up check of {} ranks summed to {} at element {}, expected {}",
           world.rank(), n, found, i, expected);
    }
  }
}

}  // namespace

void agree_digest(Communicator& group, std::string_view what, const Digest& digest) {
  const std::vector<std::string> all =
      all_gather_strings(group, {reinterpret_cast<const char*>(digest.data()), digest.size()});
  std::map<std::string_view, int> votes;
  for (const std::string& one : all) ++votes[one];
  if (votes.size() == 1) return;
  std::string_view reference = all.front();
  for (const std::string& one : all) {
    if (votes[one] > votes[reference]) reference = one;
  }
  std::vector<int> same;
  std::vector<int> differ;
  for (std::size_t r = 0; r < all.size(); ++r) (all[r] == reference ? same : differ).push_back(static_cast<int>(r));
  const auto list = [](const std::vector<int>& ranks) {
    return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
  };
  config_error("the {} is not the same on all ranks: {} {} from {}; start every rank with the same files and arguments",
               what, list(differ), differ.size() == 1 ? "differs" : "differ", list(same));
}

World World::launch(std::chrono::duration<double> startup_timeout) {
  if (!launched_by_mpi()) return World(self_communicator());
  MpiWorld joined = join_mpi();
  Communicator& group = *joined.communicator;
  group.set_timeout(startup_timeout);
  World world(joined.communicator);
  world.local_rank_ = joined.local_rank;
  world.local_size_ = joined.local_size;
  check_wiring(group);
  group.set_timeout(kDefaultTimeout);
  return world;
}

World::World(std::shared_ptr<Communicator> communicator)
    : communicator_(std::move(communicator)), hosts_(all_gather_strings(*communicator_, host_name())) {}

void World::finalise(std::chrono::duration<double> deadline) {
  communicator_->set_timeout(deadline);
  if (communicator_->backend() != Backend::mpi) return communicator_->barrier().wait();
  try {
    communicator_->barrier().wait();
  } catch (const Error& error) {
    fmt::print(stderr, "while leaving: {}\n", error.what());
    abort(error.code());
  }
  const ExitGuard guard(deadline);
  leave_mpi();
}

void World::abort(ExitCode code) {
  if (communicator_->backend() == Backend::mpi) abort_mpi(static_cast<int>(code));
  std::exit(static_cast<int>(code));
}

}  // namespace weft
