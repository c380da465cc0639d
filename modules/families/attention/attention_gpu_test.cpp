// The CUDA kernels against fp64: bf16 heads that Hopper's kernels take, and everything through the portable ones.
#include <fmt/format.h>

#include "modules/families/attention/attention_case.h"
#include "tests/support/op_check.h"

namespace weft::testing {
namespace {

OpCase op_case(const AttentionCase& c) {
  const AttentionInputs in = random_inputs(c);
  OpCase op{.name = "attention", .inputs = activations({in.q, in.k, in.v}), .function = {}};
  if (c.sink_logit) op.inputs.push_back(vector_input(in.sink_logit));
  op.function = [c](Tape& tape, std::span<const Var> x) {
    const auto out = attention_with_lse(tape, x[0], x[1], x[2], c.sink_logit ? x[3] : Var{}, c.documents, c.options);
    return std::vector<Var>(out.begin(), out.end());
  };
  return op;
}

void check(const AttentionCase& c) {
  SCOPED_TRACE(fmt::format("T {} documents {} window {} sinks {} cap {} H_KV {} G {} D {} D_V {} sink_logit {}",
                           c.documents->tokens(), c.documents->count(), c.options.window, c.options.sink_tokens,
                           c.options.soft_cap, c.H_KV, c.G, c.D, c.D_V, c.sink_logit));
  check_op_on_gpu(op_case(c));
}

class AttentionGpu : public ::testing::Test {
 protected:
  void SetUp() override { WEFT_NEEDS_GPU(); }
};

const std::vector<std::int32_t> kLengths = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300};

TEST_F(AttentionGpu, OneDocument) {
  for (const std::int64_t D : {64, 128}) {
    for (const std::int32_t T : {1, 64, 128, 129, 500}) {
      check({.documents = documents_of({T}), .H_KV = 2, .G = 2, .D = D, .D_V = D});
    }
  }
}

TEST_F(AttentionGpu, Options) {
  for (const std::int64_t D : {64, 128}) {
    for (const AttentionOptions& o :
         {AttentionOptions{.window = 1}, AttentionOptions{.window = 65}, AttentionOptions{.window = 128},
          AttentionOptions{.window = 200, .sink_tokens = 3}, AttentionOptions{.window = 40, .sink_tokens = 150},
          AttentionOptions{.soft_cap = 2.0}, AttentionOptions{.scale = 0.3, .window = 129, .soft_cap = 1.5}}) {
      check({.documents = documents_of({700}), .options = o, .H_KV = 1, .G = 2, .D = D, .D_V = D, .sink_logit = true});
    }
  }
}

TEST_F(AttentionGpu, PackedDocuments) {
  for (const std::int64_t D : {64, 128}) {
    for (const std::int32_t window : {0, 16, 100}) {
      for (const std::int64_t G : {1, 4}) {
        check(
            {.documents = documents_of(kLengths), .options = {.window = window}, .H_KV = 2, .G = G, .D = D, .D_V = D});
      }
    }
    check({.documents = anchored_documents({40, 0, 200, 129}), .options = {.window = 70}, .D = D, .D_V = D});
  }
}

TEST_F(AttentionGpu, OtherWidths) {
  for (const auto& [D, D_V] : std::initializer_list<std::pair<std::int64_t, std::int64_t>>{
           {32, 32}, {96, 96}, {8, 24}, {192, 128}, {256, 256}, {72, 40}, {3, 5}}) {
    check({.documents = documents_of({1, 70, 200}),
           .options = {.window = 90, .sink_tokens = 2},
           .G = 3,
           .D = D,
           .D_V = D_V,
           .sink_logit = true});
  }
}

}  // namespace
}  // namespace weft::testing
