// Communicator: the collective operations of one group of ranks. Back ends: `self` (one rank), `threads` (ranks are
// threads of one process), `mpi` (ranks are processes). NCCL joins as a further implementation of the same interface.
//
// Ordering: all members of a group issue the same operations in the same program order, also those whose own share is
// empty. Operations start when they are issued, and make progress in every call and wait of the same rank.
//
// Determinism: a sum is folded in rank order, element by element, ((x_0 + x_1) + x_2) + ..., whatever the size, the
// timing or the back end; f32, f64 and integers in their own type, bf16 in f32 with one rounding at the end. Integer
// sums wrap. The maximum or minimum of floating numbers is NaN if any contribution is.
//
// n is the size of the group and b the bytes of the tensor passed in; "moves" is what each rank sends.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/tensor.h"

namespace weft {

enum class Backend : std::uint8_t { self, threads, mpi };
enum class ReduceOp : std::uint8_t { sum, max, min };

constexpr std::string_view name_of(Backend backend) {
  constexpr std::string_view names[] = {"self", "threads", "mpi"};
  return names[static_cast<int>(backend)];
}

inline constexpr std::chrono::duration<double> kDefaultTimeout = std::chrono::seconds(600);

// An operation in flight, as the back end sees it.
class PendingOperation {
 public:
  virtual ~PendingOperation() = default;
  virtual bool done() = 0;
  virtual void wait() = 0;
};

// The completion of one operation. The tensors it was given are kept alive; their content must not be touched (inputs
// not written, outputs not read) until wait() has returned. An operation goes on if its event is dropped, but its
// errors are then seen by a later wait.
class [[nodiscard]] Event {
 public:
  Event() = default;
  explicit Event(std::shared_ptr<PendingOperation> operation) : operation_(std::move(operation)) {}

  // Makes progress, without waiting.
  bool done() const { return operation_ == nullptr || operation_->done(); }
  // Throws Error: timeout if the operation has not ended by the deadline, peer_lost if another rank is gone, internal
  // if another rank issued a different operation.
  void wait() const {
    if (operation_ != nullptr) operation_->wait();
  }

 private:
  std::shared_ptr<PendingOperation> operation_;
};

// One half of a point-to-point exchange: a tensor and the other rank of the group.
struct PeerTensor {
  int peer;
  Tensor data;
};

// out = later after earlier, for an associative composition; the three tensors have one shape and never overlap.
using Combine = std::function<void(const Tensor& earlier, const Tensor& later, const Tensor& out)>;

// All tensors are contiguous; the data types are f64, f32, bf16, i32 and i64.
class Communicator : public std::enable_shared_from_this<Communicator> {
 public:
  virtual ~Communicator() = default;

  virtual Backend backend() const = 0;
  virtual const std::string& name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // In place. Pairwise exchange of n parts, ordered fold of the own part, all-gather: moves 2b(n-1)/n in two rounds and
  // needs b(n-1)/n bytes of scratch.
  virtual Event all_reduce(const Tensor& data, ReduceOp op) = 0;

  // all[r] = local of rank r: all holds n times as many elements as local. Moves b(n-1) in one round.
  virtual Event all_gather(const Tensor& local, const Tensor& all) = 0;

  // part = the rank-th of n equal parts of the reduction of all. `all` is left as it was; part may be that part of it.
  // Moves b(n-1)/n in one round and needs as much scratch.
  virtual Event reduce_scatter(const Tensor& all, const Tensor& part, ReduceOp op) = 0;

  // The root sends to everyone: moves b(n-1) from the root.
  virtual Event broadcast(const Tensor& data, int root) = 0;

  // The p-th of n equal parts of send goes to rank p; the p-th part of receive comes from rank p.
  virtual Event all_to_all(const Tensor& send, const Tensor& receive) = 0;
  // The same with counts [n] in rows (extents of the first dimension); rows lie in rank order without gaps.
  virtual Event all_to_all(const Tensor& send, std::span<const std::int64_t> send_rows, const Tensor& receive,
                           std::span<const std::int64_t> receive_rows) = 0;

  // Posts everything at once. Sends and receives between two ranks match in the order of the lists. Every member of the
  // group calls it, with empty lists if it has nothing to say.
  virtual Event send_receive(std::span<const PeerTensor> sends, std::span<const PeerTensor> receives) = 0;

  // Rank r gets x_{r-1} after ... after x_0 in `out` by recursive doubling: ceil(log2 n) rounds of b bytes. Where
  // nothing precedes (rank 0), out is not written: it holds the identity on entry. `reverse` runs from the last rank to
  // the first.
  virtual Event exclusive_scan(const Tensor& local, const Tensor& out, const Combine& combine,
                               bool reverse = false) = 0;

  virtual Event barrier() = 0;

  // Members with the same color form a group, ordered by (key, rank). Collective; returns when the group exists.
  virtual std::shared_ptr<Communicator> split(int color, int key, const std::string& name) = 0;

  // Moves operations in flight along, for computing code that wants them to overlap.
  virtual void progress() = 0;
  // How long a wait may last before it becomes an error; for all groups of this rank. kDefaultTimeout at first.
  virtual void set_timeout(std::chrono::duration<double> timeout) = 0;
  // The last operations of this rank, oldest first, a line each; printed on standard error before a timeout is thrown.
  virtual std::string recent_operations() const = 0;
};

// One rank that never waits for anybody.
std::shared_ptr<Communicator> self_communicator();

// ---- Small host values; blocking. --------------------------------------------------------------------------------

// Element-wise over all ranks.
std::vector<std::int64_t> all_reduce(Communicator& group, std::span<const std::int64_t> values, ReduceOp op);
std::vector<double> all_reduce(Communicator& group, std::span<const double> values, ReduceOp op);

// Byte strings of any length (also zeros), indexed by rank.
std::vector<std::string> all_gather_strings(Communicator& group, std::string_view local);
// Only the root gets them; the others get an empty vector.
std::vector<std::string> gather_strings(Communicator& group, std::string_view local, int root);
std::string broadcast_string(Communicator& group, std::string_view value, int root);

}  // namespace weft
