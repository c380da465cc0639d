// Transport: what a host back end provides. It moves bytes between ranks without blocking; the collectives above it
// (host_communicator.cpp) are the same for all back ends, and so are their bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/dtype.h"
#include "parallel/communicator.h"

namespace weft {

enum class OperationKind : std::uint8_t {
  all_reduce,
  all_gather,
  reduce_scatter,
  broadcast,
  all_to_all,
  send_receive,
  exclusive_scan,
  barrier,
};

constexpr std::string_view name_of(OperationKind kind) {
  constexpr std::string_view names[] = {"all_reduce", "all_gather",   "reduce_scatter", "broadcast",
                                        "all_to_all", "send_receive", "exclusive_scan", "barrier"};
  return names[static_cast<int>(kind)];
}

// What a rank says it is doing. All ranks of a group must say the same at the same sequence number; where shares may
// differ (variable counts, point to point) only the kind is compared.
struct Envelope {
  OperationKind kind = OperationKind::barrier;
  DType dtype = DType::f32;
  bool uniform = true;         // dtype, bytes and argument are the same on all ranks
  int argument = 0;            // reduction, root or direction
  std::uint64_t sequence = 0;  // of the group, from 0
  std::uint64_t bytes = 0;     // of the tensor passed in

  // "all_reduce #12 (4096 bytes of f32)"
  std::string str() const;
  bool agrees_with(const Envelope& other) const;
};

// One message: to or from another rank of the group. Zero bytes are sent, too: silence is a fault.
struct Transfer {
  int peer;
  std::byte* data;
  std::size_t bytes;
};

// Messages in flight. Their memory stays valid until poll() has returned true.
class Transfers {
 public:
  virtual ~Transfers() = default;
  // Makes progress; true when everything has been sent and received. Throws Error (internal) if another rank is found
  // in a different operation.
  virtual bool poll() = 0;
  // The ranks (of the group) with which something is outstanding.
  virtual std::vector<int> waiting_for() = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual Backend backend() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Of a rank of this group, for messages.
  virtual int world_rank(int rank) const = 0;

  // Messages of one operation between two ranks arrive in the order in which they were started.
  virtual std::unique_ptr<Transfers> start(const Envelope& envelope, std::span<const Transfer> sends,
                                           std::span<const Transfer> receives) = 0;
  // Between two fruitless polls: gives the processor away, longer as `rounds` grows.
  virtual void pause(int rounds) = 0;
  // Why one of these ranks, awaited in this operation, will never answer, if that is known. Throws like poll().
  virtual std::optional<std::string> lost(const Envelope& awaited, std::span<const int> ranks) = 0;
  // The group of these members (ranks of this group, this rank included); all of them call it at the same `sequence`.
  virtual std::shared_ptr<Transport> subgroup(std::span<const int> members, int color, std::uint64_t sequence) = 0;
};

// "this rank called A, rank r called B": the message about ranks that issue different operations.
[[noreturn]] void fail_mismatch(std::string_view mine, int my_rank, std::string_view other, int other_rank);

}  // namespace weft
