// Small host values over any communicator.
#include <cstring>
#include <type_traits>

#include "parallel/communicator.h"

namespace weft {
namespace {

template <class T>
std::vector<T> reduce_values(Communicator& group, std::span<const T> values, ReduceOp op) {
  const Tensor data = Tensor::from<T>({static_cast<std::int64_t>(values.size())}, values);
  group.all_reduce(data, op).wait();
  const auto result = data.span<T>();
  return {result.begin(), result.end()};
}

// Bytes travel as i64 words; the length travels apart.
Tensor pack(std::string_view bytes) {
  const auto words = static_cast<std::int64_t>((bytes.size() + 7) / 8);
  const Tensor packed = Tensor::zeros({words}, DType::i64);
  if (!bytes.empty()) std::memcpy(packed.raw(), bytes.data(), bytes.size());
  return packed;
}

Tensor packed_buffer(std::int64_t length) {
  return Tensor::empty({(length + 7) / 8}, DType::i64);
}

std::string unpack(const Tensor& packed, std::int64_t length) {
  return {static_cast<const char*>(packed.raw()), static_cast<std::size_t>(length)};
}

std::vector<std::int64_t> gather_lengths(Communicator& group, std::string_view local) {
  const Tensor mine = Tensor::from<std::int64_t>({1}, std::vector{static_cast<std::int64_t>(local.size())});
  const Tensor all = Tensor::empty({group.size()}, DType::i64);
  group.all_gather(mine, all).wait();
  const auto lengths = all.span<std::int64_t>();
  return {lengths.begin(), lengths.end()};
}

// Every rank sends its string to each of `targets` (all or one); a target returns all strings.
std::vector<std::string> exchange_strings(Communicator& group, std::string_view local, int first_target,
                                          int last_target) {
  const std::vector<std::int64_t> lengths = gather_lengths(group, local);
  const int me = group.rank();
  const Tensor mine = pack(local);
  std::vector<PeerTensor> sends;
  std::vector<PeerTensor> receives;
  for (int target = first_target; target <= last_target; ++target) {
    if (target != me) sends.push_back({target, mine});
  }
  const bool is_target = first_target <= me && me <= last_target;
  for (int peer = 0; is_target && peer < group.size(); ++peer) {
    if (peer != me) receives.push_back({peer, packed_buffer(lengths[static_cast<std::size_t>(peer)])});
  }
  group.send_receive(sends, receives).wait();
  std::vector<std::string> strings;
  if (!is_target) return strings;
  for (const PeerTensor& half : receives) {
    if (half.peer == me + 1) strings.emplace_back(local);
    strings.push_back(unpack(half.data, lengths[static_cast<std::size_t>(half.peer)]));
  }
  if (me + 1 == group.size()) strings.emplace_back(local);
  return strings;
}

}  // namespace

std::vector<std::int64_t> all_reduce(Communicator& group, std::span<const std::int64_t> values, ReduceOp op) {
  return reduce_values(group, values, op);
}

std::vector<double> all_reduce(Communicator& group, std::span<const double> values, ReduceOp op) {
  return reduce_values(group, values, op);
}

std::vector<std::string> all_gather_strings(Communicator& group, std::string_view local) {
  return exchange_strings(group, local, 0, group.size() - 1);
}

std::vector<std::string> gather_strings(Communicator& group, std::string_view local, int root) {
  WEFT_CHECK(root >= 0 && root < group.size(), "gather to rank {} of {}", root, group.size());
  return exchange_strings(group, local, root, root);
}

std::string broadcast_string(Communicator& group, std::string_view value, int root) {
  const Tensor length = Tensor::from<std::int64_t>({1}, std::vector{static_cast<std::int64_t>(value.size())});
  group.broadcast(length, root).wait();
  const std::int64_t n = length.span<std::int64_t>()[0];
  const Tensor packed = group.rank() == root ? pack(value) : packed_buffer(n);
  group.broadcast(packed, root).wait();
  return unpack(packed, n);
}

}  // namespace weft
