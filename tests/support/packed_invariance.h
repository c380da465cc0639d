// What must not change a bit in an operation on packed documents: later tokens, other documents, packing, splits
// between chunks, schedules, threads. And decoding, which may round differently.
//
// For a case that has `lengths` of documents, documents(), tokens() and str(), and evaluate(case, inputs) beside it
// that takes and gives bundles of tensors (packed_tensors.h). `other` are inputs of the same shapes with other values.
#pragma once

#include <fmt/format.h>
#include <initializer_list>
#include <numeric>
#include <omp.h>

#include "tests/support/packed_tensors.h"
#include "tests/support/random.h"

namespace weft::testing {

// Tokens before and after the bounds of chunks of 16, in a document of 50.
inline constexpr std::int64_t kTimes[] = {1, 15, 16, 40, 47};

// Steps on lists of fields; each takes those of tokens (documents), values or gradients, and leaves the others.
// Values of tokens [begin, end), and the gradients that arrive at them, become those of `other`.
void overwrite_tokens(const Fields& inputs, const Fields& other, std::int64_t begin, std::int64_t end);
// Gradients that arrive at tokens from t on become zeros.
void clear_gradients_from(std::int64_t t, const Fields& inputs);
void expect_no_gradients_from(std::int64_t t, const Fields& results);
// Same bits before token t, others from t on.
void expect_values_change_from(std::int64_t t, const Fields& after, const Fields& before);
// The values (gradients) of documents in `to` become those in `from`, in their order.
void hand_over_states(const Fields& from, const Fields& to, bool gradients);
// Row n of a tensor of tokens becomes token t of the n-th of N documents of one length.
void keep_token(const Fields& inputs, std::int64_t t, std::int64_t N);

template <TensorBundle Inputs>
Inputs disturbed(const Inputs& in, Inputs other, std::int64_t begin, std::int64_t end) {
  Inputs changed = cloned(in);
  overwrite_tokens(changed.fields(), other.fields(), begin, end);
  return changed;
}

template <class Case, TensorBundle Inputs>
void expect_later_tokens_do_not_reach_earlier_outputs(const Case& c, const Inputs& in, const Inputs& other) {
  auto before = evaluate(c, in);
  for (const std::int64_t t : kTimes) {
    auto after = evaluate(c, disturbed(in, other, t, c.tokens()));
    expect_values_change_from(t, after.fields(), before.fields());
  }
}

// For a case without gradients of its final states.
template <class Case, TensorBundle Inputs>
void expect_tokens_after_the_last_gradient_get_none(const Case& c, const Inputs& in) {
  for (const std::int64_t t : kTimes) {
    Inputs early = cloned(in);
    clear_gradients_from(t, early.fields());
    auto results = evaluate(c, early);
    expect_no_gradients_from(t, results.fields());
  }
}

// Other values in document n change nothing in the others.
template <class Case, TensorBundle Inputs>
void expect_document_is_not_seen(const Case& c, const Inputs& in, const Inputs& other, std::int64_t n) {
  const auto lengths = c.lengths.begin();
  const std::int64_t T = c.tokens(), N = c.documents();
  const std::int64_t begin = std::accumulate(lengths, lengths + n, std::int64_t{0}), end = begin + lengths[n];
  const auto before = evaluate(c, in), after = evaluate(c, disturbed(in, other, begin, end));
  expect_bitwise_equal(slice(after, 0, begin, 0, n), slice(before, 0, begin, 0, n));
  expect_bitwise_equal(slice(after, end, T, n + 1, N), slice(before, end, T, n + 1, N));
}

template <class Case, TensorBundle Inputs>
void expect_packed_documents_equal_each_alone(const Case& c, const Inputs& in) {
  const auto packed = evaluate(c, in);
  std::int64_t begin = 0;
  for (std::int64_t n = 0; n < c.documents(); ++n) {
    const std::int32_t length = c.lengths[static_cast<std::size_t>(n)];
    const std::int64_t end = begin + length;
    Case alone = c;
    alone.lengths = {length};
    SCOPED_TRACE(alone.str());
    const auto result = evaluate(alone, slice(in, begin, end, n, n + 1));
    expect_bitwise_equal(slice(result, 0, length, 0, 1), slice(packed, begin, end, n, n + 1));
    begin = end;
  }
}

template <TensorBundle Results>
struct SplitResults {
  Results whole, head, tail;
};

// One document in one run, and in two: `head` ends at token `split`, hands its state to `tail` and gets back the
// gradient of it. Same bits if a chunk ends there, otherwise equal within the tolerance. The two cases differ from the
// whole in what a state to start from takes; their lengths are set here.
template <class Case, TensorBundle Inputs>
auto expect_split_carries_the_state(const Case& whole, Case head, Case tail, const Inputs& in, std::int64_t split,
                                    std::int64_t chunk, const Tolerance& tolerance) {
  SCOPED_TRACE(fmt::format("split at {}", split));
  const std::int64_t T = whole.tokens();
  head.lengths = {static_cast<std::int32_t>(split)};
  tail.lengths = {static_cast<std::int32_t>(T - split)};
  Inputs head_in = slice(in, 0, split, 0, 1), tail_in = slice(in, split, T, 0, 1);
  SplitResults<decltype(evaluate(whole, in))> r{
      .whole = evaluate(whole, in), .head = evaluate(head, head_in), .tail = {}};
  hand_over_states(r.head.fields(), tail_in.fields(), false);
  r.tail = evaluate(tail, tail_in);
  hand_over_states(r.tail.fields(), head_in.fields(), true);
  r.head = evaluate(head, head_in);

  // The whole run has neither the state in the middle nor its gradient.
  auto expected_head = slice(r.whole, 0, split, 0, 1), expected_tail = slice(r.whole, split, T, 0, 1);
  hand_over_states(r.head.fields(), expected_head.fields(), false);
  hand_over_states(r.tail.fields(), expected_tail.fields(), true);
  const auto own_head = slice(r.head, 0, split, 0, 1), own_tail = slice(r.tail, 0, T - split, 0, 1);
  if (split % chunk == 0) {
    expect_bitwise_equal(own_head, expected_head);
    expect_bitwise_equal(own_tail, expected_tail);
  } else {
    expect_close(own_head, expected_head, tolerance);
    expect_close(own_tail, expected_tail, tolerance);
  }
  return r;
}

template <class F>
auto on_threads(int count, F&& f) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(count);
  auto result = f();
  omp_set_num_threads(before);
  return result;
}

template <class Case, TensorBundle Inputs>
void expect_threads_give_the_same_bits(const Case& c, const Inputs& in, std::initializer_list<int> counts) {
  const auto run = [&] { return evaluate(c, in); };
  const auto expected = on_threads(1, run);
  for (const int count : counts) {
    SCOPED_TRACE(fmt::format("{} threads {}", c.str(), count));
    expect_bitwise_equal(on_threads(count, run), expected);
  }
}

// For a case with a plan that has a schedule: automatic, fused or two_level.
template <class Case, TensorBundle Inputs>
void expect_schedules_and_threads_give_the_same_bits(Case c, const Inputs& in) {
  using Schedule = decltype(c.plan.schedule);
  const auto run = [&] { return evaluate(c, in); };
  c.plan.schedule = Schedule::fused;
  const auto expected = on_threads(1, run);
  for (const Schedule schedule : {Schedule::automatic, Schedule::fused, Schedule::two_level}) {
    for (const int count : {1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{} schedule {} threads {}", c.str(), static_cast<int>(schedule), count));
      c.plan.schedule = schedule;
      expect_bitwise_equal(on_threads(count, run), expected);
    }
  }
}

// step(tape, inputs, state) gives o of one token of every document and advances the state; against the oracle's o and
// st, for documents of one length that start from s0.
template <class Case, class Step>
void expect_decoding_equals_one_run(const Case& c, Step&& step) {
  const std::int64_t N = c.documents(), length = c.tokens() / N;
  for (const DType dtype : {DType::f64, DType::f32}) {
    const auto in = rounded(make_inputs(c), dtype);
    const auto reference = evaluate_reference(c, rounded(in, DType::f64));
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Tensor state = cast(in.s0, dtype);
    const Tensor o = Tensor::empty(reference.o.shape(), dtype);
    for (std::int64_t t = 0; t < length; ++t) {
      auto token = in;
      keep_token(token.fields(), t, N);
      const Tensor out = step(tape, token, state);
      for (std::int64_t n = 0; n < N; ++n) o.rows(n * length + t, n * length + t + 1).copy_from(out.rows(n, n + 1));
    }
    const Tolerance& tolerance = dtype == DType::f64 ? kFp64Chunked : kFp32;
    EXPECT_TRUE(close(o, reference.o, tolerance.forward, tolerance.max));
    EXPECT_TRUE(close(state, reference.st, tolerance.forward, tolerance.max));
  }
}

}  // namespace weft::testing
