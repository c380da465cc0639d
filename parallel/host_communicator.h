// The collectives of the host back ends, written once as schedules of messages over a Transport.
#pragma once

#include "parallel/operation.h"

namespace weft {

class HostCommunicator final : public Communicator {
 public:
  HostCommunicator(std::shared_ptr<ProgressEngine> engine, std::shared_ptr<Transport> transport, std::string name);

  Backend backend() const override { return transport_->backend(); }
  const std::string& name() const override { return name_; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Event all_reduce(const Tensor& data, ReduceOp op) override;
  Event all_gather(const Tensor& local, const Tensor& all) override;
  Event reduce_scatter(const Tensor& all, const Tensor& part, ReduceOp op) override;
  Event broadcast(const Tensor& data, int root) override;
  Event all_to_all(const Tensor& send, const Tensor& receive) override;
  Event all_to_all(const Tensor& send, std::span<const std::int64_t> send_rows, const Tensor& receive,
                   std::span<const std::int64_t> receive_rows) override;
  Event send_receive(std::span<const PeerTensor> sends, std::span<const PeerTensor> receives) override;
  Event exclusive_scan(const Tensor& local, const Tensor& out, const Combine& combine, bool reverse) override;
  Event barrier() override;

  std::shared_ptr<Communicator> split(int color, int key, const std::string& name) override;
  void progress() override { engine_->progress(); }
  void set_timeout(std::chrono::duration<double> timeout) override { engine_->set_timeout(timeout); }
  std::string recent_operations() const override { return engine_->recent_operations(kAllRecords); }

 private:
  static constexpr std::size_t kAllRecords = ~std::size_t{0};

  std::shared_ptr<Operation> begin(OperationKind kind, const Tensor& data, int argument, bool uniform = true);
  void add_part_exchange(Operation& operation, std::byte* send, const std::vector<std::size_t>& send_bytes,
                         std::byte* receive, const std::vector<std::size_t>& receive_bytes) const;

  std::shared_ptr<ProgressEngine> engine_;
  std::shared_ptr<Transport> transport_;
  std::string name_;
  int rank_;
  int size_;
  std::uint64_t sequence_ = 0;
};

}  // namespace weft
