// The `mpi` back end: ranks are processes; all traffic is non-blocking messages with a deadline.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace weft {

struct MpiWorld {
  std::shared_ptr<Communicator> communicator;
  int local_rank;  // among the ranks that share memory with this one
  int local_size;
};

// Whether a launcher started this process as one of several, judged by the launcher's environment variables alone.
bool launched_by_mpi();

// Initialises MPI and joins; once in a process, on the thread that will communicate. Messages are cut into pieces of at
// most `piece_bytes` (MPI counts are 32-bit), the same number on all ranks.
MpiWorld join_mpi(std::size_t piece_bytes = std::size_t{1} << 30);

// MPI_Finalize; may hang if another rank is gone.
void leave_mpi();

// Ends all ranks with this exit code.
[[noreturn]] void abort_mpi(int exit_code);

// The name of this node.
std::string host_name();

}  // namespace weft
