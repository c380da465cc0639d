// The `threads` back end: ranks are threads of this process. It lets everything distributed be tested without mpirun.
#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace weft {

// Runs fn(world) as `ranks` ranks, each on its own thread, and joins them. If a rank throws, the others get
// Error(peer_lost) from their waits, and the exception that came first is thrown again here.
void run_ranks(int ranks, const std::function<void(Communicator& world)>& fn);

}  // namespace weft
