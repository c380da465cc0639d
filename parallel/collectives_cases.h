// The collectives' test matrix, the same for every back end: each operation x data type x size is compared bit by bit
// with what communicator.h defines, computed by plain loops on every rank. Equal to one reference, the back ends are
// equal to each other. A function throws Error (internal) naming the case, on the rank that sees a difference.
//
// Shape legend: n ranks, N elements.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "parallel/communicator.h"

namespace weft::testing {

inline constexpr std::int64_t kSizes[] = {0, 1, 255, 256, 257, 100003};
inline constexpr DType kDTypes[] = {DType::f64, DType::f32, DType::bf16, DType::i32, DType::i64};

// A hash of (rank, index): the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
inline std::uint64_t case_bits(int rank, std::int64_t i) {
  std::uint64_t z = (static_cast<std::uint64_t>(i) * 64 + static_cast<std::uint64_t>(rank) + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Magnitudes over six decades, so that another order of summation gives other bits; integers over their whole range.
template <class T>
T case_value(int rank, std::int64_t i) {
  const std::uint64_t bits = case_bits(rank, i);
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(bits);
  } else {
    const double magnitude = static_cast<double>(std::uint64_t{1} << (bits % 20));
    const double value = (static_cast<double>(bits >> 11) * 0x1p-53 - 0.5) * magnitude;
    if constexpr (std::is_same_v<T, double>) return value;
    return static_cast<T>(static_cast<float>(value));
  }
}

template <class F>
void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f.template operator()<double>();
    case DType::f32:
      return f.template operator()<float>();
    case DType::bf16:
      return f.template operator()<bfloat16>();
    case DType::i32:
      return f.template operator()<std::int32_t>();
    case DType::i64:
      return f.template operator()<std::int64_t>();
  }
}

// Elements [first, first + N) of what `rank` contributes.
inline Tensor case_tensor(DType dtype, int rank, std::int64_t elements, std::int64_t first = 0) {
  const Tensor tensor = Tensor::empty({elements}, dtype);
  with_type(dtype, [&]<class T>() {
    T* x = tensor.data<T>();
    for (std::int64_t i = 0; i < elements; ++i) x[i] = case_value<T>(rank, first + i);
  });
  return tensor;
}

// Memory that an operation must overwrite.
inline Tensor poisoned(const Shape& shape, DType dtype) {
  const Tensor tensor = Tensor::empty(shape, dtype);
  if (tensor.nbytes() > 0) std::memset(tensor.raw(), 0xff, tensor.nbytes());
  return tensor;
}

inline void expect_same(const Tensor& found, const Tensor& expected, const Communicator& group,
                        const std::string& what) {
  const auto* a = static_cast<const unsigned char*>(found.raw());
  const auto* b = static_cast<const unsigned char*>(expected.raw());
  WEFT_CHECK(found.nbytes() == expected.nbytes(), "{}: {} bytes, expected {}", what, found.nbytes(), expected.nbytes());
  if (std::memcmp(a, b, found.nbytes()) == 0) return;
  for (std::size_t i = 0; i < found.nbytes(); ++i) {
    WEFT_CHECK(a[i] == b[i], "{} of {} elements of {} on rank {} of {}: element {} differs", what, found.numel(),
               name_of(found.dtype()), group.rank(), group.size(), i / size_of(found.dtype()));
  }
}

inline Tensor expected_reduction(DType dtype, ReduceOp op, int ranks, std::int64_t elements, std::int64_t first = 0) {
  const Tensor result = Tensor::empty({elements}, dtype);
  with_type(dtype, [&]<class T>() {
    using A = std::conditional_t<std::is_same_v<T, bfloat16>, float, T>;
    for (std::int64_t i = 0; i < elements; ++i) {
      A total = static_cast<A>(case_value<T>(0, first + i));
      for (int r = 1; r < ranks; ++r) {
        const A x = static_cast<A>(case_value<T>(r, first + i));
        if (op == ReduceOp::max) {
          total = std::max(total, x);
        } else if (op == ReduceOp::min) {
          total = std::min(total, x);
        } else if constexpr (std::is_integral_v<A>) {
          using U = std::make_unsigned_t<A>;
          total = static_cast<A>(static_cast<U>(total) + static_cast<U>(x));
        } else {
          total += x;
        }
      }
      result.data<T>()[i] = static_cast<T>(total);
    }
  });
  return result;
}

inline void check_reductions(Communicator& group) {
  const int n = group.size();
  for (const DType dtype : kDTypes) {
    for (const std::int64_t N : kSizes) {
      for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
        const Tensor data = case_tensor(dtype, group.rank(), N);
        group.all_reduce(data, op).wait();
        expect_same(data, expected_reduction(dtype, op, n, N), group, "all_reduce");

        const Tensor all = case_tensor(dtype, group.rank(), N * n);
        const Tensor part = poisoned({N}, dtype);
        group.reduce_scatter(all, part, op).wait();
        const Tensor expected = expected_reduction(dtype, op, n, N, N * group.rank());
        expect_same(part, expected, group, "reduce_scatter");
        expect_same(all, case_tensor(dtype, group.rank(), N * n), group, "input of reduce_scatter");
        const Tensor own = all.rows(N * group.rank(), N * (group.rank() + 1));
        group.reduce_scatter(all, own, op).wait();
        expect_same(own, expected, group, "reduce_scatter in place");
      }
    }
  }
  // One NaN, on the last rank, is a NaN for everyone.
  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
    const double mine = group.rank() == n - 1 ? std::numeric_limits<double>::quiet_NaN() : 1.0;
    const double result = all_reduce(group, std::span(&mine, 1), op)[0];
    WEFT_CHECK(result != result, "a NaN became {}", result);
  }
}

inline void check_movements(Communicator& group) {
  const int n = group.size();
  const int me = group.rank();
  for (const DType dtype : kDTypes) {
    for (const std::int64_t N : kSizes) {
      const Tensor local = case_tensor(dtype, me, N);
      const Tensor all = poisoned({n, N}, dtype);
      group.all_gather(local, all).wait();
      for (int r = 0; r < n; ++r) expect_same(all.rows(r, r + 1), case_tensor(dtype, r, N), group, "all_gather");
      const Tensor in_place = poisoned({n, N}, dtype);
      in_place.rows(me, me + 1).copy_from(local);
      group.all_gather(in_place.rows(me, me + 1), in_place).wait();
      expect_same(in_place, all, group, "all_gather in place");

      for (int root = 0; root < n; ++root) {
        const Tensor data = me == root ? case_tensor(dtype, root, N) : poisoned({N}, dtype);
        group.broadcast(data, root).wait();
        expect_same(data, case_tensor(dtype, root, N), group, "broadcast");
      }

      // Rank r sends elements [p N, (p + 1) N) to rank p.
      const Tensor received = poisoned({n, N}, dtype);
      group.all_to_all(case_tensor(dtype, me, N * n), received).wait();
      for (int r = 0; r < n; ++r) {
        expect_same(received.rows(r, r + 1), case_tensor(dtype, r, N, N * me), group, "all_to_all");
      }

      // Rank r sends p N / (r + 1) rows of two elements to rank p: nothing to rank 0.
      const auto rows = [&](int from, int to) { return N / 8 * to / (from + 1); };
      std::vector<std::int64_t> send_rows;
      std::vector<std::int64_t> receive_rows;
      std::int64_t sent = 0;
      std::int64_t due = 0;
      for (int p = 0; p < n; ++p) {
        sent += send_rows.emplace_back(rows(me, p));
        due += receive_rows.emplace_back(rows(p, me));
      }
      const Tensor variable = poisoned({due, 2}, dtype);
      group.all_to_all(case_tensor(dtype, me, 2 * sent).reshape({sent, 2}), send_rows, variable, receive_rows).wait();
      for (std::int64_t r = 0, at = 0; r < n; ++r) {
        const int from = static_cast<int>(r);
        std::int64_t first = 0;
        for (int p = 0; p < me; ++p) first += 2 * rows(from, p);
        const std::int64_t count = receive_rows[static_cast<std::size_t>(r)];
        expect_same(variable.rows(at, at + count), case_tensor(dtype, from, 2 * count, first), group,
                    "all_to_all with counts");
        at += count;
      }

      // Two messages of different length from each rank to the next; the last rank passes nothing on.
      std::vector<PeerTensor> sends;
      std::vector<PeerTensor> receives;
      if (me + 1 < n) sends = {{me + 1, case_tensor(dtype, me, N)}, {me + 1, case_tensor(dtype, me, N / 2, N)}};
      if (me > 0) receives = {{me - 1, poisoned({N}, dtype)}, {me - 1, poisoned({N / 2}, dtype)}};
      group.send_receive(sends, receives).wait();
      if (me > 0) {
        expect_same(receives[0].data, case_tensor(dtype, me - 1, N), group, "send_receive, first message");
        expect_same(receives[1].data, case_tensor(dtype, me - 1, N / 2, N), group, "send_receive, second message");
      }
    }
  }
  group.barrier().wait();
}

inline void check_exclusive_scan(Communicator& group) {
  const int n = group.size();
  const int me = group.rank();
  for (const bool reverse : {false, true}) {
    // "The latest non-zero value": associative, not commutative, exact in every type. An element is zero on two ranks
    // of three.
    for (const DType dtype : kDTypes) {
      const std::size_t width = size_of(dtype);
      const auto contribution = [&](int rank, std::int64_t N) {
        const Tensor tensor = case_tensor(dtype, rank, N);
        for (std::int64_t i = 0; i < N; ++i) {
          if ((i + rank) % 3 != 0)
            std::memset(static_cast<std::byte*>(tensor.raw()) + i * static_cast<std::int64_t>(width), 0, width);
        }
        return tensor;
      };
      const Combine latest = [width](const Tensor& earlier, const Tensor& later, const Tensor& out) {
        const auto* a = static_cast<const std::byte*>(earlier.raw());
        const auto* b = static_cast<const std::byte*>(later.raw());
        auto* c = static_cast<std::byte*>(out.raw());
        for (std::size_t i = 0; i < out.nbytes(); i += width) {
          const bool zero = std::all_of(b + i, b + i + width, [](std::byte byte) { return byte == std::byte{0}; });
          std::memcpy(c + i, (zero ? a : b) + i, width);
        }
      };
      for (const std::int64_t N : kSizes) {
        const Tensor out = Tensor::zeros({N}, dtype);
        group.exclusive_scan(contribution(me, N), out, latest, reverse).wait();
        Tensor expected = Tensor::zeros({N}, dtype);
        for (int r = reverse ? n - 1 : 0; r != me; r += reverse ? -1 : 1) {
          const Tensor next = Tensor::empty({N}, dtype);
          latest(expected, contribution(r, N), next);
          expected = next;
        }
        expect_same(out, expected, group, "exclusive_scan of latest values");
      }
    }
    // Affine maps x -> a x + b over the integers modulo 2^64, as the states of linear mixers compose.
    const auto map_of = [](int rank) { return case_tensor(DType::i64, rank, 20).reshape({10, 2}); };
    const Combine compose = [](const Tensor& earlier, const Tensor& later, const Tensor& out) {
      const auto* f = reinterpret_cast<const std::uint64_t*>(earlier.data<std::int64_t>());
      const auto* g = reinterpret_cast<const std::uint64_t*>(later.data<std::int64_t>());
      auto* h = reinterpret_cast<std::uint64_t*>(out.data<std::int64_t>());
      for (std::int64_t i = 0; i < out.numel(); i += 2) {
        h[i] = g[i] * f[i];
        h[i + 1] = g[i] * f[i + 1] + g[i + 1];
      }
    };
    Tensor expected = Tensor::empty({10, 2}, DType::i64);
    for (std::int64_t i = 0; i < 20; ++i) expected.data<std::int64_t>()[i] = i % 2 == 0 ? 1 : 0;
    const Tensor out = Tensor::empty({10, 2}, DType::i64);
    out.copy_from(expected);
    group.exclusive_scan(map_of(me), out, compose, reverse).wait();
    for (int r = reverse ? n - 1 : 0; r != me; r += reverse ? -1 : 1) {
      const Tensor next = Tensor::empty({10, 2}, DType::i64);
      compose(expected, map_of(r), next);
      expected = next;
    }
    expect_same(out, expected, group, "exclusive_scan of affine maps");
  }
}

// Operations of two groups are in flight together; ranks wait for them in different orders.
inline void check_overlapping_operations(Communicator& group) {
  const std::shared_ptr<Communicator> twin = group.split(0, group.rank(), "twin");
  std::vector<Tensor> data;
  std::vector<Event> events;
  for (int k = 0; k < 12; ++k) {
    data.push_back(case_tensor(DType::f32, group.rank(), 5000 * k, k));
    Communicator& target = k % 2 == 0 ? group : *twin;
    events.push_back(target.all_reduce(data.back(), ReduceOp::sum));
  }
  if (group.rank() % 2 == 1) std::reverse(events.begin(), events.end());
  for (const Event& event : events) event.wait();
  for (int k = 0; k < 12; ++k) {
    expect_same(data[static_cast<std::size_t>(k)],
                expected_reduction(DType::f32, ReduceOp::sum, group.size(), 5000 * k, k), group,
                "overlapping all_reduce");
  }
}

// Odd and even ranks, in reverse order; then each of those alone.
inline void check_split(Communicator& group) {
  const int parity = group.rank() % 2;
  const std::shared_ptr<Communicator> half = group.split(parity, -group.rank(), "half");
  std::vector<int> members;
  for (int r = group.size() - 1; r >= 0; --r) {
    if (r % 2 == parity) members.push_back(r);
  }
  WEFT_CHECK(half->size() == static_cast<int>(members.size()), "group of {}", half->size());
  WEFT_CHECK(members[static_cast<std::size_t>(half->rank())] == group.rank(), "rank {} in its half", half->rank());
  WEFT_CHECK(half->name() == "half" && half->backend() == group.backend(), "group {}", half->name());
  const std::vector<std::string> names = all_gather_strings(*half, std::to_string(group.rank()));
  for (std::size_t i = 0; i < names.size(); ++i)
    WEFT_CHECK(names[i] == std::to_string(members[i]), "member {}", names[i]);

  const std::shared_ptr<Communicator> alone = half->split(half->rank(), 0, "alone");
  WEFT_CHECK(alone->size() == 1 && alone->rank() == 0, "group of {}", alone->size());
  const std::int64_t mine = group.rank();
  WEFT_CHECK(all_reduce(*alone, std::span(&mine, 1), ReduceOp::sum)[0] == mine, "a sum of one");
}

inline void check_host_values(Communicator& group) {
  const int n = group.size();
  const auto text_of = [](int rank) {
    std::string text(static_cast<std::size_t>(rank) * 1001, static_cast<char>('a' + rank));
    if (rank > 1) text[5] = '\0';
    return text;
  };
  const std::string mine = text_of(group.rank());
  const auto check = [&](const std::vector<std::string>& all) {
    WEFT_CHECK(all.size() == static_cast<std::size_t>(n), "{} strings", all.size());
    for (int r = 0; r < n; ++r) WEFT_CHECK(all[static_cast<std::size_t>(r)] == text_of(r), "string of rank {}", r);
  };
  check(all_gather_strings(group, mine));
  for (int root = 0; root < n; ++root) {
    const std::vector<std::string> gathered = gather_strings(group, mine, root);
    if (group.rank() == root) {
      check(gathered);
    } else {
      WEFT_CHECK(gathered.empty(), "{} strings on a rank that is not the root", gathered.size());
    }
    WEFT_CHECK(broadcast_string(group, mine, root) == text_of(root), "broadcast from {}", root);
  }
  const std::vector<std::int64_t> values{group.rank(), -group.rank(), 1};
  const std::int64_t last = n - 1;
  WEFT_CHECK((all_reduce(group, std::span(values), ReduceOp::max) == std::vector<std::int64_t>{last, 0, 1}), "max");
  WEFT_CHECK((all_reduce(group, std::span(values), ReduceOp::min) == std::vector<std::int64_t>{0, -last, 1}), "min");
  WEFT_CHECK((all_reduce(group, std::span(values), ReduceOp::sum) ==
              std::vector<std::int64_t>{n * last / 2, -n * last / 2, n}),
             "sum");
}

inline void check_all_collectives(Communicator& group) {
  check_reductions(group);
  check_movements(group);
  check_exclusive_scan(group);
  check_overlapping_operations(group);
  check_split(group);
  check_host_values(group);
}

}  // namespace weft::testing
