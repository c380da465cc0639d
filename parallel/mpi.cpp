// The C interface alone; the C++ bindings are long obsolete.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1

#include "parallel/mpi.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mpi.h>
#include <sched.h>
#include <thread>
#include <unistd.h>

#include "parallel/host_communicator.h"

namespace weft {
namespace {

constexpr int kKinds = 8;

std::string mpi_message(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return {text, static_cast<std::size_t>(length)};
}

// A call that fails in spite of correct arguments has lost its connection.
void check_mpi(int code, const char* call) {
  if (code != MPI_SUCCESS) fail(ExitCode::peer_lost, "{}: {}", call, mpi_message(code));
}

// What two ranks must agree on to talk: kind and sequence number are in the tag, so different operations never match.
class Tags {
 public:
  explicit Tags(int upper_bound) : period_(static_cast<std::uint64_t>(upper_bound / kKinds)) {}
  int of(const Envelope& envelope) const {
    return static_cast<int>(envelope.sequence % period_) * kKinds + static_cast<int>(envelope.kind);
  }
  // Same place in the order of operations, but another operation.
  bool contradict(int a, int b) const { return a != b && a / kKinds == b / kKinds; }
  static OperationKind kind(int tag) { return static_cast<OperationKind>(tag % kKinds); }

 private:
  std::uint64_t period_;
};

class MpiTransfers final : public Transfers {
 public:
  MpiTransfers(MPI_Comm comm, const Envelope& envelope, int tag, std::size_t piece_bytes,
               std::span<const int> world_ranks, int rank)
      : comm_(comm),
        envelope_(envelope),
        tag_(tag),
        piece_bytes_(piece_bytes),
        world_ranks_(world_ranks),
        rank_(rank) {}

  void receive(const Transfer& transfer) {
    for_each_piece(transfer, [&](std::byte* data, int bytes) {
      pieces_.push_back({transfer.peer, bytes, true});
      requests_.emplace_back(MPI_REQUEST_NULL);
      ++open_;
      check_mpi(MPI_Irecv(data, bytes, MPI_BYTE, transfer.peer, tag_, comm_, &requests_.back()), "MPI_Irecv");
    });
  }

  void send(const Transfer& transfer) {
    for_each_piece(transfer, [&](std::byte* data, int bytes) {
      pieces_.push_back({transfer.peer, bytes, false});
      requests_.emplace_back(MPI_REQUEST_NULL);
      ++open_;
      check_mpi(MPI_Isend(data, bytes, MPI_BYTE, transfer.peer, tag_, comm_, &requests_.back()), "MPI_Isend");
    });
  }

  // Each message is judged as it completes: one that is wrong may be the reason why others never do.
  bool poll() override {
    if (complete_) return true;
    completed_.resize(requests_.size());
    statuses_.resize(requests_.size());
    int count = 0;
    const int code =
        MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, completed_.data(), statuses_.data());
    if (code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
    if (count == MPI_UNDEFINED) {  // none is active any more
      complete_ = true;
      return true;
    }
    for (int i = 0; i < count; ++i) {
      const auto k = static_cast<std::size_t>(i);
      check_piece(pieces_[static_cast<std::size_t>(completed_[k])], statuses_[k], code == MPI_ERR_IN_STATUS);
    }
    open_ -= static_cast<std::size_t>(count);
    complete_ = open_ == 0;
    return complete_;
  }

  std::vector<int> waiting_for() override {
    std::vector<int> peers;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      int done = 0;
      MPI_Request_get_status(requests_[i], &done, MPI_STATUS_IGNORE);
      if (done == 0 && std::find(peers.begin(), peers.end(), pieces_[i].peer) == peers.end()) {
        peers.push_back(pieces_[i].peer);
      }
    }
    std::sort(peers.begin(), peers.end());
    return peers;
  }

 private:
  struct Piece {
    int peer;
    int bytes;
    bool incoming;
  };

  template <class F>
  void for_each_piece(const Transfer& transfer, const F& f) {
    std::size_t offset = 0;
    do {
      const std::size_t bytes = std::min(piece_bytes_, transfer.bytes - offset);
      f(transfer.data + offset, static_cast<int>(bytes));
      offset += bytes;
    } while (offset < transfer.bytes);
  }

  void check_piece(const Piece& piece, const MPI_Status& status, bool has_error) const {
    if (has_error && status.MPI_ERROR != MPI_SUCCESS) {
      int error_class = MPI_SUCCESS;
      MPI_Error_class(status.MPI_ERROR, &error_class);
      if (error_class == MPI_ERR_TRUNCATE)
        report_size(piece, fmt::format("a message of more than {} bytes", piece.bytes));
      fail(ExitCode::peer_lost, "rank {}: {} cannot complete: connection with rank {}: {}", world_rank(rank_),
           envelope_.str(), world_rank(piece.peer), mpi_message(status.MPI_ERROR));
    }
    if (!piece.incoming) return;
    int bytes = 0;
    check_mpi(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
    if (bytes != piece.bytes) report_size(piece, fmt::format("a message of {} bytes", bytes));
  }

  [[noreturn]] void report_size(const Piece& piece, const std::string& found) const {
    fail_mismatch(
        envelope_.str(), world_rank(rank_),
        fmt::format("{} #{} with {} where {} are due", name_of(envelope_.kind), envelope_.sequence, found, piece.bytes),
        world_rank(piece.peer));
  }

  int world_rank(int rank) const { return world_ranks_[static_cast<std::size_t>(rank)]; }

  MPI_Comm comm_;
  Envelope envelope_;
  int tag_;
  std::size_t piece_bytes_;
  std::span<const int> world_ranks_;
  int rank_;
  bool complete_ = false;
  std::vector<Piece> pieces_;
  std::vector<MPI_Request> requests_;  // by piece
  std::size_t open_ = 0;               // pieces that are not complete
  std::vector<int> completed_;
  std::vector<MPI_Status> statuses_;
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm comm, const Tags& tags, std::size_t piece_bytes, std::vector<int> world_ranks)
      : comm_(comm), tags_(tags), piece_bytes_(piece_bytes), world_ranks_(std::move(world_ranks)) {
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  }

  Backend backend() const override { return Backend::mpi; }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }
  int world_rank(int rank) const override { return world_ranks_[static_cast<std::size_t>(rank)]; }

  std::unique_ptr<Transfers> start(const Envelope& envelope, std::span<const Transfer> sends,
                                   std::span<const Transfer> receives) override {
    auto transfers =
        std::make_unique<MpiTransfers>(comm_, envelope, tags_.of(envelope), piece_bytes_, world_ranks_, rank_);
    for (const Transfer& transfer : receives) transfers->receive(transfer);
    for (const Transfer& transfer : sends) transfers->send(transfer);
    return transfers;
  }

  void pause(int rounds) override {
    // Yielding serves ranks that outnumber the cores; sleeping serves long waits.
    if (rounds < 2000) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  std::optional<std::string> lost(const Envelope& awaited, std::span<const int> ranks) override {
    // A rank in another operation shows by a message that nobody here receives. That is looked for now and then.
    if (++questions_ % 256 != 0) return std::nullopt;
    const int tag = tags_.of(awaited);
    for (const int rank : ranks) {
      int found = 0;
      MPI_Status status;
      check_mpi(MPI_Iprobe(rank, MPI_ANY_TAG, comm_, &found, &status), "MPI_Iprobe");
      if (found != 0 && tags_.contradict(tag, status.MPI_TAG)) {
        fail_mismatch(awaited.str(), world_rank(rank_),
                      fmt::format("{} #{}", name_of(Tags::kind(status.MPI_TAG)), awaited.sequence), world_rank(rank));
      }
    }
    return std::nullopt;
  }

  // Blocks inside MPI, but only after all members have met in the all-gather of split(), so only for as long as they
  // live. Communicators are few and last as long as the process; MPI_Finalize frees them.
  std::shared_ptr<Transport> subgroup(std::span<const int> members, int color, std::uint64_t) override {
    std::vector<int> world_ranks;
    for (const int member : members) world_ranks.push_back(world_rank(member));
    const auto me = std::find(members.begin(), members.end(), rank_);
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_, color, static_cast<int>(me - members.begin()), &comm), "MPI_Comm_split");
    check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    return std::make_shared<MpiTransport>(comm, tags_, piece_bytes_, std::move(world_ranks));
  }

 private:
  MPI_Comm comm_;
  Tags tags_;
  std::size_t piece_bytes_;
  std::vector<int> world_ranks_;
  int rank_ = 0;
  std::uint32_t questions_ = 0;
};

int environment_number(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

}  // namespace

bool launched_by_mpi() {
  // Open MPI's mpirun; launchers that speak PMI; Slurm with PMIx, whose own variables do not tell the number of ranks.
  if (environment_number("OMPI_COMM_WORLD_SIZE") > 1 || environment_number("PMI_SIZE") > 1) return true;
  return std::getenv("PMIX_RANK") != nullptr && environment_number("SLURM_NTASKS") > 1;
}

MpiWorld join_mpi(std::size_t piece_bytes) {
  int initialised = 0;
  MPI_Initialized(&initialised);
  WEFT_CHECK(initialised == 0, "join_mpi called twice");
  WEFT_CHECK(piece_bytes >= 1 && piece_bytes <= std::size_t{0x7fffffff}, "MPI pieces of {} bytes", piece_bytes);
  int level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level), "MPI_Init_thread");
  if (level < MPI_THREAD_SERIALIZED) {
    config_error(
        "this MPI library offers thread level {} only; weft needs MPI_THREAD_SERIALIZED ({}) at least: use an MPI "
        "built with thread support",
        level, static_cast<int>(MPI_THREAD_SERIALIZED));
  }
  // weft's messages stay apart from those of any other user of MPI in this process.
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  void* upper_bound = nullptr;
  int found = 0;
  check_mpi(MPI_Comm_get_attr(comm, MPI_TAG_UB, &upper_bound, &found), "MPI_Comm_get_attr");
  const int tag_bound = found != 0 ? *static_cast<int*>(upper_bound) : 32767;  // the standard's minimum
  int size = 0;
  check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  std::vector<int> world_ranks;
  for (int r = 0; r < size; ++r) world_ranks.push_back(r);

  MpiWorld world{};
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  check_mpi(MPI_Comm_rank(node, &world.local_rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(node, &world.local_size), "MPI_Comm_size");
  MPI_Comm_free(&node);
  world.communicator = std::make_shared<HostCommunicator>(
      std::make_shared<ProgressEngine>(),
      std::make_shared<MpiTransport>(comm, Tags(tag_bound), piece_bytes, std::move(world_ranks)), "world");
  return world;
}

void leave_mpi() {
  MPI_Finalize();
}

void abort_mpi(int exit_code) {
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

std::string host_name() {
  char name[256] = {};
  if (gethostname(name, sizeof name - 1) != 0) return "unknown";
  return name;
}

}  // namespace weft
