// The oracle against finite differences, and the tiled kernels against the oracle over the shape sweep.
#include <fmt/format.h>

#include "modules/families/attention/attention_case.h"
#include "tests/support/derivative.h"

namespace weft::testing {
namespace {

double loss(const AttentionCase& c, const AttentionInputs& in) {
  const AttentionResult r = attention_reference(problem(c, in));
  double total = 0.0;
  for (std::size_t i = 0; i < r.o.size(); ++i) total += r.o[i] * in.d_o.data<double>()[i];
  for (std::size_t i = 0; i < r.lse.size(); ++i) total += r.lse[i] * in.dlse.data<double>()[i];
  return total;
}

TEST(AttentionReference, BackwardIsTheDerivative) {
  const std::vector<AttentionCase> cases = {
      {.documents = documents_of({7}), .D = 4, .D_V = 3},
      {.documents = documents_of({5, 0, 1, 6}), .options = {.window = 3}, .H_KV = 2, .G = 2, .D = 3, .D_V = 4},
      {.documents = documents_of({9}),
       .options = {.window = 2, .sink_tokens = 2, .soft_cap = 1.5},
       .G = 3,
       .D = 4,
       .D_V = 2,
       .sink_logit = true},
      {.documents = anchored_documents({4, 5}), .options = {.scale = 0.7, .window = 2}, .D = 3, .sink_logit = true},
  };
  for (const AttentionCase& c : cases) {
    const AttentionInputs in = random_inputs(c);
    const AttentionOutputs r = run_reference(c, in);
    const auto at = [&] { return loss(c, in); };
    expect_derivative(in.q, r.dq, at, "dq");
    expect_derivative(in.k, r.dk, at, "dk");
    expect_derivative(in.v, r.dv, at, "dv");
    if (c.sink_logit) expect_derivative(in.sink_logit, r.dsink_logit, at, "dsink_logit");
  }
}

const std::vector<std::int32_t> kLengths = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129};

std::vector<std::int32_t> packed_lengths() {
  std::vector<std::int32_t> lengths = kLengths;
  lengths.push_back(300);
  return lengths;
}

TEST(Attention, EveryLengthAlone) {
  for (const std::int32_t length : kLengths) {
    for (const std::int32_t window : {0, 16}) {
      SCOPED_TRACE(fmt::format("length {} window {}", length, window));
      expect_matches_reference({.documents = documents_of({length}),
                                .options = {.window = window},
                                .H_KV = 2,
                                .G = 2,
                                .D = 16,
                                .D_V = 24,
                                .sink_logit = length % 2 == 1});
    }
  }
}

TEST(Attention, GroupsAndWindows) {
  for (const std::int64_t G : {1, 2, 4, 8}) {
    for (const std::int32_t window : {0, 1, 2, 16, 65}) {
      SCOPED_TRACE(fmt::format("G {} window {}", G, window));
      expect_matches_reference(
          {.documents = documents_of(packed_lengths()), .options = {.window = window}, .G = G, .D = 8, .D_V = 12});
    }
  }
}

TEST(Attention, SinksAndSoftCap) {
  for (const std::int32_t sinks : {1, 4, 64, 70}) {
    for (const std::int32_t window : {1, 16, 65}) {
      SCOPED_TRACE(fmt::format("sinks {} window {}", sinks, window));
      expect_matches_reference({.documents = documents_of(packed_lengths()),
                                .options = {.window = window, .sink_tokens = sinks},
                                .G = 2,
                                .sink_logit = true});
    }
  }
  for (const std::int32_t window : {0, 16}) {
    SCOPED_TRACE(fmt::format("soft cap, window {}", window));
    expect_matches_reference({.documents = documents_of(packed_lengths()),
                              .options = {.window = window, .sink_tokens = 2, .soft_cap = 3.0},
                              .G = 2,
                              .D = 16,
                              .sink_logit = true});
  }
}

TEST(Attention, OddHeadsAndWidths) {
  struct Widths {
    std::int64_t H_KV, G, D, D_V;
  };
  for (const Widths w : {Widths{1, 1, 1, 1}, Widths{2, 3, 7, 5}, Widths{1, 5, 32, 64}, Widths{1, 2, 96, 128},
                         Widths{3, 1, 64, 32}, Widths{1, 100, 4, 4}}) {
    SCOPED_TRACE(fmt::format("H_KV {} G {} D {} D_V {}", w.H_KV, w.G, w.D, w.D_V));
    expect_matches_reference(
        {.documents = documents_of({70, 33}), .H_KV = w.H_KV, .G = w.G, .D = w.D, .D_V = w.D_V, .sink_logit = true});
  }
}

TEST(Attention, LongDocument) {
  for (const std::int32_t window : {0, 100}) {
    SCOPED_TRACE(fmt::format("window {}", window));
    expect_matches_reference(
        {.documents = documents_of({1000}), .options = {.window = window, .sink_tokens = 3}, .D = 16});
  }
}

TEST(Attention, AnchoredRow) {
  for (const std::int32_t window : {0, 2, 65}) {
    for (const std::int32_t sinks : {0, 3}) {
      SCOPED_TRACE(fmt::format("window {} sinks {}", window, sinks));
      expect_matches_reference({.documents = anchored_documents({1, 63, 64, 0, 129, 600}),
                                .options = {.window = window, .sink_tokens = sinks},
                                .H_KV = 2,
                                .G = 2});
    }
  }
}

// Positions only enter by difference: documents that start elsewhere give the same outputs.
TEST(Attention, PositionsAreRelative) {
  const AttentionCase c{.documents = documents_of({150}), .options = {.window = 40}, .G = 2};
  AttentionCase moved = c;
  moved.documents = Documents::single(150, 100003);
  const AttentionInputs in = random_inputs(c);
  expect_near(run_tiled(moved, in, DType::f64), run_tiled(c, in, DType::f64), kFp64Chunked);
}

TEST(Attention, RefusesWhatDoesNotFit) {
  Tape tape(heap_allocator());
  const auto var = [&](const Shape& s) { return tape.leaf(normal(s, 1)); };
  const DocumentsPtr documents = documents_of({4});
  EXPECT_THROW(attention(tape, var({4, 3, 8}), var({4, 2, 8}), var({4, 2, 8}), {}, documents), Error);
  EXPECT_THROW(attention(tape, var({4, 2, 8}), var({4, 2, 7}), var({4, 2, 8}), {}, documents), Error);
  EXPECT_THROW(attention(tape, var({5, 2, 8}), var({5, 2, 8}), var({5, 2, 8}), {}, documents), Error);
  EXPECT_THROW(attention(tape, var({4, 2, 8}), var({4, 2, 8}), var({4, 2, 8}), var({3}), documents), Error);
  EXPECT_THROW(attention(tape, var({4, 2, 8}), var({4, 2, 8}), var({4, 2, 8}), {}, documents, {.window = -1}), Error);
}

}  // namespace
}  // namespace weft::testing
