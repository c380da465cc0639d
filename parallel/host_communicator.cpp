// Shape legend: n ranks, r this rank, N elements. A "part" is one rank's contiguous share of a tensor.
#include "parallel/host_communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "parallel/reduction.h"

namespace weft {
namespace {

// Below this, everyone sends everything to everyone: one round instead of two, and the same bits.
constexpr std::size_t kSmallBytes = 8192;

std::byte* bytes_of(const Tensor& tensor) {
  return static_cast<std::byte*>(tensor.raw());
}

void check_host(const Tensor& tensor, OperationKind kind) {
  WEFT_CHECK(tensor.defined() && tensor.device().is_cpu(), "{} on host ranks takes host tensors", name_of(kind));
}

void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (to != from && bytes > 0) std::memmove(to, from, bytes);
}

bool overlap(const Tensor& a, const Tensor& b) {
  const std::byte* pa = bytes_of(a);
  const std::byte* pb = bytes_of(b);
  return pa < pb + b.nbytes() && pb < pa + a.nbytes();
}

}  // namespace

std::shared_ptr<Communicator> self_communicator() {
  // No peers, hence no messages: every schedule below is reduced to its local copy.
  class SelfTransport final : public Transport {
    class Nothing final : public Transfers {
      bool poll() override { return true; }
      std::vector<int> waiting_for() override { return {}; }
    };

   public:
    Backend backend() const override { return Backend::self; }
    int rank() const override { return 0; }
    int size() const override { return 1; }
    int world_rank(int) const override { return 0; }
    std::unique_ptr<Transfers> start(const Envelope&, std::span<const Transfer>, std::span<const Transfer>) override {
      return std::make_unique<Nothing>();
    }
    void pause(int) override {}
    std::optional<std::string> lost(const Envelope&, std::span<const int>) override { return std::nullopt; }
    std::shared_ptr<Transport> subgroup(std::span<const int>, int, std::uint64_t) override {
      return std::make_shared<SelfTransport>();
    }
  };
  return std::make_shared<HostCommunicator>(std::make_shared<ProgressEngine>(), std::make_shared<SelfTransport>(),
                                            "world");
}

HostCommunicator::HostCommunicator(std::shared_ptr<ProgressEngine> engine, std::shared_ptr<Transport> transport,
                                   std::string name)
    : engine_(std::move(engine)),
      transport_(std::move(transport)),
      name_(std::move(name)),
      rank_(transport_->rank()),
      size_(transport_->size()) {}

std::shared_ptr<Operation> HostCommunicator::begin(OperationKind kind, const Tensor& data, int argument, bool uniform) {
  const bool has_data = data.defined() || (kind != OperationKind::barrier && kind != OperationKind::send_receive);
  if (has_data) check_host(data, kind);
  Envelope envelope{kind, DType::i64, uniform, argument, sequence_++, 0};
  if (has_data) {
    envelope.dtype = data.dtype();
    envelope.bytes = data.nbytes();
  }
  auto operation = std::make_shared<Operation>(engine_, transport_, name_, envelope);
  if (has_data) operation->keep_alive.push_back(data);
  return operation;
}

// One stage in which part p of `send` goes to rank p, and part p of `receive` comes from rank p; the own part is
// copied.
void HostCommunicator::add_part_exchange(Operation& operation, std::byte* send,
                                         const std::vector<std::size_t>& send_bytes, std::byte* receive,
                                         const std::vector<std::size_t>& receive_bytes) const {
  Stage stage;
  for (int p = 0; p < size_; ++p) {
    const std::size_t out = send_bytes[static_cast<std::size_t>(p)];
    const std::size_t in = receive_bytes[static_cast<std::size_t>(p)];
    if (p == rank_) {
      copy_bytes(receive, send, out);
    } else {
      stage.sends.push_back({p, send, out});
      stage.receives.push_back({p, receive, in});
    }
    send += out;
    receive += in;
  }
  operation.stages.push_back(std::move(stage));
}

Event HostCommunicator::all_reduce(const Tensor& data, ReduceOp op) {
  auto operation = begin(OperationKind::all_reduce, data, static_cast<int>(op));
  if (size_ == 1) return engine_->launch(operation);
  const auto n = static_cast<std::size_t>(size_);
  const DType dtype = data.dtype();
  const std::int64_t elements = data.numel();
  std::byte* const base = bytes_of(data);

  // contributions[p]: what rank p adds to the part [begin, end) that this rank folds.
  std::vector<const void*> contributions(n);
  Stage exchange;
  const bool small = data.nbytes() <= kSmallBytes;
  const auto part = [&](int p) { return small ? 0 : elements * p / size_; };
  const auto part_end = [&](int p) { return small ? elements : elements * (p + 1) / size_; };
  const auto at = [&](std::int64_t element) { return base + static_cast<std::size_t>(element) * size_of(dtype); };
  const std::int64_t begin = part(rank_);
  const std::int64_t own = part_end(rank_) - begin;
  const std::size_t own_bytes = static_cast<std::size_t>(own) * size_of(dtype);
  std::byte* scratch = operation->scratch((n - 1) * own_bytes);
  for (int p = 0; p < size_; ++p) {
    if (p == rank_) {
      contributions[static_cast<std::size_t>(p)] = at(begin);
      continue;
    }
    contributions[static_cast<std::size_t>(p)] = scratch;
    exchange.receives.push_back({p, scratch, own_bytes});
    exchange.sends.push_back({p, at(part(p)), static_cast<std::size_t>(part_end(p) - part(p)) * size_of(dtype)});
    scratch += own_bytes;
  }
  exchange.then = [=, contributions = std::move(contributions), out = at(begin)] {
    ordered_fold(dtype, op, contributions, out, own);
  };
  operation->stages.push_back(std::move(exchange));
  if (!small) {
    Stage gather;
    for (int p = 0; p < size_; ++p) {
      if (p == rank_) continue;
      gather.sends.push_back({p, at(begin), own_bytes});
      gather.receives.push_back({p, at(part(p)), static_cast<std::size_t>(part_end(p) - part(p)) * size_of(dtype)});
    }
    operation->stages.push_back(std::move(gather));
  }
  return engine_->launch(operation);
}

Event HostCommunicator::all_gather(const Tensor& local, const Tensor& all) {
  auto operation = begin(OperationKind::all_gather, local, 0);
  check_host(all, OperationKind::all_gather);
  WEFT_CHECK(all.dtype() == local.dtype() && all.numel() == local.numel() * size_,
             "all_gather of {} {} from {} ranks into {} {}", name_of(local.dtype()), local.shape().str(), size_,
             name_of(all.dtype()), all.shape().str());
  operation->keep_alive.push_back(all);
  const std::size_t bytes = local.nbytes();
  Stage stage;
  for (int p = 0; p < size_; ++p) {
    std::byte* const slot = bytes_of(all) + static_cast<std::size_t>(p) * bytes;
    if (p == rank_) {
      copy_bytes(slot, bytes_of(local), bytes);
    } else {
      stage.sends.push_back({p, bytes_of(local), bytes});
      stage.receives.push_back({p, slot, bytes});
    }
  }
  operation->stages.push_back(std::move(stage));
  return engine_->launch(operation);
}

Event HostCommunicator::reduce_scatter(const Tensor& all, const Tensor& part, ReduceOp op) {
  auto operation = begin(OperationKind::reduce_scatter, all, static_cast<int>(op));
  check_host(part, OperationKind::reduce_scatter);
  WEFT_CHECK(all.dtype() == part.dtype() && all.numel() == part.numel() * size_,
             "reduce_scatter of {} {} over {} ranks into {} {}", name_of(all.dtype()), all.shape().str(), size_,
             name_of(part.dtype()), part.shape().str());
  operation->keep_alive.push_back(part);
  const auto n = static_cast<std::size_t>(size_);
  const std::size_t bytes = part.nbytes();
  std::byte* scratch = operation->scratch((n - 1) * bytes);
  std::vector<const void*> contributions(n);
  Stage stage;
  for (int p = 0; p < size_; ++p) {
    std::byte* const share = bytes_of(all) + static_cast<std::size_t>(p) * bytes;
    if (p == rank_) {
      contributions[static_cast<std::size_t>(p)] = share;
      continue;
    }
    contributions[static_cast<std::size_t>(p)] = scratch;
    stage.sends.push_back({p, share, bytes});
    stage.receives.push_back({p, scratch, bytes});
    scratch += bytes;
  }
  stage.then = [op, contributions = std::move(contributions), part] {
    ordered_fold(part.dtype(), op, contributions, part.raw(), part.numel());
  };
  operation->stages.push_back(std::move(stage));
  return engine_->launch(operation);
}

Event HostCommunicator::broadcast(const Tensor& data, int root) {
  WEFT_CHECK(root >= 0 && root < size_, "broadcast from rank {} of {}", root, size_);
  auto operation = begin(OperationKind::broadcast, data, root);
  Stage stage;
  if (rank_ != root) {
    stage.receives.push_back({root, bytes_of(data), data.nbytes()});
  } else {
    for (int p = 0; p < size_; ++p) {
      if (p != rank_) stage.sends.push_back({p, bytes_of(data), data.nbytes()});
    }
  }
  operation->stages.push_back(std::move(stage));
  return engine_->launch(operation);
}

Event HostCommunicator::all_to_all(const Tensor& send, const Tensor& receive) {
  check_host(receive, OperationKind::all_to_all);
  WEFT_CHECK(send.dtype() == receive.dtype() && send.numel() == receive.numel() && send.numel() % size_ == 0,
             "all_to_all of {} {} over {} ranks into {} {}", name_of(send.dtype()), send.shape().str(), size_,
             name_of(receive.dtype()), receive.shape().str());
  WEFT_CHECK(!overlap(send, receive), "all_to_all in place");
  auto operation = begin(OperationKind::all_to_all, send, 0);
  operation->keep_alive.push_back(receive);
  const std::vector<std::size_t> parts(static_cast<std::size_t>(size_),
                                       send.nbytes() / static_cast<std::size_t>(size_));
  add_part_exchange(*operation, bytes_of(send), parts, bytes_of(receive), parts);
  return engine_->launch(operation);
}

Event HostCommunicator::all_to_all(const Tensor& send, std::span<const std::int64_t> send_rows, const Tensor& receive,
                                   std::span<const std::int64_t> receive_rows) {
  check_host(receive, OperationKind::all_to_all);
  const auto part_bytes = [&](const Tensor& tensor, std::span<const std::int64_t> rows, const char* what) {
    WEFT_CHECK(tensor.rank() >= 1 && rows.size() == static_cast<std::size_t>(size_),
               "all_to_all over {} ranks: {} {} counts for {}", size_, rows.size(), what, tensor.shape().str());
    std::int64_t total = 0;
    std::vector<std::size_t> bytes;
    const std::size_t row = tensor.dim(0) == 0 ? 0 : tensor.nbytes() / static_cast<std::size_t>(tensor.dim(0));
    for (const std::int64_t count : rows) {
      WEFT_CHECK(count >= 0, "all_to_all: a {} count is {}", what, count);
      bytes.push_back(static_cast<std::size_t>(count) * row);
      total += count;
    }
    WEFT_CHECK(total == tensor.dim(0), "all_to_all: the {} counts add up to {} rows of {}", what, total,
               tensor.shape().str());
    return bytes;
  };
  const std::vector<std::size_t> send_bytes = part_bytes(send, send_rows, "send");
  const std::vector<std::size_t> receive_bytes = part_bytes(receive, receive_rows, "receive");
  const auto own = static_cast<std::size_t>(rank_);
  WEFT_CHECK(send.dtype() == receive.dtype() && send_bytes[own] == receive_bytes[own],
             "all_to_all: rank {} sends itself {} bytes of {} and expects {} of {}", rank_, send_bytes[own],
             name_of(send.dtype()), receive_bytes[own], name_of(receive.dtype()));
  WEFT_CHECK(!overlap(send, receive), "all_to_all in place");
  auto operation = begin(OperationKind::all_to_all, send, 0, /*uniform=*/false);
  operation->keep_alive.push_back(receive);
  add_part_exchange(*operation, bytes_of(send), send_bytes, bytes_of(receive), receive_bytes);
  return engine_->launch(operation);
}

Event HostCommunicator::send_receive(std::span<const PeerTensor> sends, std::span<const PeerTensor> receives) {
  auto operation = begin(OperationKind::send_receive, sends.empty() ? Tensor() : sends.front().data, 0, false);
  Stage stage;
  const auto add = [&](const PeerTensor& half, std::vector<Transfer>& list) {
    check_host(half.data, OperationKind::send_receive);
    WEFT_CHECK(half.peer >= 0 && half.peer < size_ && half.peer != rank_, "rank {} of {} sends to or receives from {}",
               rank_, size_, half.peer);
    operation->keep_alive.push_back(half.data);
    list.push_back({half.peer, bytes_of(half.data), half.data.nbytes()});
  };
  for (const PeerTensor& half : sends) add(half, stage.sends);
  for (const PeerTensor& half : receives) add(half, stage.receives);
  operation->stages.push_back(std::move(stage));
  return engine_->launch(operation);
}

// Round d = 1, 2, 4, ...: everyone passes its inclusive prefix d ranks on. At the start of round d the inclusive prefix
// of v covers ranks (v - d, v] and the exclusive one (v - d, v); what comes from v - d covers (v - 2d, v - d].
Event HostCommunicator::exclusive_scan(const Tensor& local, const Tensor& out, const Combine& combine, bool reverse) {
  auto operation = begin(OperationKind::exclusive_scan, local, reverse ? 1 : 0);
  check_host(out, OperationKind::exclusive_scan);
  WEFT_CHECK(local.dtype() == out.dtype() && local.shape() == out.shape() && !overlap(local, out),
             "exclusive_scan of {} {} into {} {}", name_of(local.dtype()), local.shape().str(), name_of(out.dtype()),
             out.shape().str());
  operation->keep_alive.push_back(out);
  const int v = reverse ? size_ - 1 - rank_ : rank_;
  const auto rank_of = [&](int position) { return reverse ? size_ - 1 - position : position; };
  const auto make = [&] {
    operation->keep_alive.push_back(Tensor::empty(local.shape(), local.dtype()));
    return operation->keep_alive.back();
  };
  Tensor inclusive = local;
  for (int d = 1; d < size_; d *= 2) {
    Stage stage;
    if (v + d < size_) stage.sends.push_back({rank_of(v + d), bytes_of(inclusive), inclusive.nbytes()});
    if (v >= d) {
      const Tensor incoming = make();
      stage.receives.push_back({rank_of(v - d), bytes_of(incoming), incoming.nbytes()});
      // The longer prefix is needed only if it will be passed on.
      const Tensor longer = v + 2 * d < size_ ? make() : Tensor();
      const Tensor joined = d > 1 ? make() : Tensor();
      stage.then = [=] {
        if (longer.defined()) combine(incoming, inclusive, longer);
        if (joined.defined()) combine(incoming, out, joined);
        out.copy_from(joined.defined() ? joined : incoming);
      };
      if (longer.defined()) inclusive = longer;
    }
    operation->stages.push_back(std::move(stage));
  }
  return engine_->launch(operation);
}

// Dissemination: after round d everyone has heard, directly or not, from the 2d ranks before it.
Event HostCommunicator::barrier() {
  auto operation = begin(OperationKind::barrier, Tensor(), 0);
  for (int d = 1; d < size_; d *= 2) {
    Stage stage;
    stage.sends.push_back({(rank_ + d) % size_, nullptr, 0});
    stage.receives.push_back({(rank_ - d + size_) % size_, nullptr, 0});
    operation->stages.push_back(std::move(stage));
  }
  return engine_->launch(operation);
}

std::shared_ptr<Communicator> HostCommunicator::split(int color, int key, const std::string& name) {
  WEFT_CHECK(color >= 0, "split with color {}", color);
  const Tensor mine = Tensor::from<std::int64_t>({2}, std::vector<std::int64_t>{color, key});
  const Tensor all = Tensor::empty({size_, 2}, DType::i64);
  const std::uint64_t sequence = sequence_;
  all_gather(mine, all).wait();
  const auto pairs = all.span<std::int64_t>();
  std::vector<int> members;
  for (int p = 0; p < size_; ++p) {
    if (pairs[static_cast<std::size_t>(2 * p)] == color) members.push_back(p);
  }
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return pairs[static_cast<std::size_t>(2 * a + 1)] < pairs[static_cast<std::size_t>(2 * b + 1)];
  });
  return std::make_shared<HostCommunicator>(engine_, transport_->subgroup(members, color, sequence), name);
}

}  // namespace weft
