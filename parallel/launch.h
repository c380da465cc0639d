// How a process becomes a rank: start-up, agreement between ranks, shutdown.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/communicator.h"

namespace weft {

using Digest = std::array<std::byte, 32>;

// Throws Error (config) on every rank if the digest is not the same on all; the message lists the ranks that differ
// from the majority (from the lowest rank's where there is none). `what` names the thing compared, e.g. "recipe".
void agree_digest(Communicator& group, std::string_view what, const Digest& digest);

// All ranks of the run. There is one World in a process, made by its main thread, which alone communicates.
class World {
 public:
  // Joins the ranks if a launcher (mpirun, srun) started more than one; otherwise MPI is not touched at all.
  // Checks every rank with a warm-up reduction of a known answer.
  static World launch(std::chrono::duration<double> startup_timeout = std::chrono::seconds(120));
  // A world over ranks that exist already, e.g. threads of a test: each is alone on its "node".
  explicit World(std::shared_ptr<Communicator> communicator);

  World(World&&) noexcept = default;
  World& operator=(World&&) noexcept = default;

  Communicator& communicator() const { return *communicator_; }
  std::shared_ptr<Communicator> shared_communicator() const { return communicator_; }
  int rank() const { return communicator_->rank(); }
  int size() const { return communicator_->size(); }
  bool is_root() const { return rank() == 0; }
  // Among the ranks that share memory with this one; also the index of its device.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  // Node names by rank.
  const std::vector<std::string>& hosts() const { return hosts_; }
  const std::string& host() const { return hosts_[static_cast<std::size_t>(rank())]; }

  // Waits for the other ranks and leaves. If they do not come, or leaving hangs, the process ends within about
  // `deadline` with exit code `timeout`.
  void finalise(std::chrono::duration<double> deadline = std::chrono::seconds(10));

  // After an error: ends this process, and with it the whole run, with this exit code. Prints nothing.
  [[noreturn]] void abort(ExitCode code);

 private:
  std::shared_ptr<Communicator> communicator_;
  int local_rank_ = 0;
  int local_size_ = 1;
  std::vector<std::string> hosts_;
};

}  // namespace weft
