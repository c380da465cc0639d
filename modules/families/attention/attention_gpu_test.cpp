// The CUDA kernels against fp64: bf16 heads that Hopper's kernels take, and everything through the portable ones.
#include <fmt/format.h>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"
#include "modules/families/attention/attention_case.h"
#include "modules/families/attention/key_value_cache.h"
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

// What the sanitizer goes through: each kernel with few tiles.
TEST_F(AttentionGpu, EachWidthOnce) {
  for (const auto& [D, D_V] :
       std::initializer_list<std::pair<std::int64_t, std::int64_t>>{{64, 64}, {128, 128}, {192, 128}}) {
    check({.documents = documents_of({140, 3}), .H_KV = 1, .G = 2, .D = D, .D_V = D_V});
  }
}
TEST_F(AttentionGpu, EachOptionOnce) {
  const AttentionOptions options{.window = 30, .sink_tokens = 2, .soft_cap = 2.0};
  check({.documents = anchored_documents({40, 90}), .options = options, .D = 64, .D_V = 64, .sink_logit = true});
  check({.documents = documents_of({130}), .options = options, .D = 256, .D_V = 256});
  check({.documents = documents_of({70}), .options = options, .D = 72, .D_V = 40});
}

// Documents of many tiles, whose tiles of keys add to dq at once.
TEST_F(AttentionGpu, ManyTiles) {
  check({.documents = documents_of({1500, 700}), .H_KV = 2, .G = 4, .D = 128, .D_V = 128});
  check({.documents = documents_of({1500, 700}),
         .options = {.window = 300, .sink_tokens = 5},
         .H_KV = 2,
         .G = 4,
         .D = 128,
         .D_V = 128});
  check({.documents = anchored_documents({900, 1300}), .options = {.window = 200}, .H_KV = 2, .D = 64, .D_V = 64});
}

AttentionOutputs run_on_gpu(const AttentionCase& c, const AttentionInputs& in, DType dtype) {
  const std::shared_ptr<Allocator> memory = gpu_memory();
  Tape tape(memory, Tape::Mode::record, gpu_stream());
  const auto leaf = [&](const Tensor& t) { return tape.leaf(tape.here(cast(t, dtype))); };
  const Var q = leaf(in.q), k = leaf(in.k), v = leaf(in.v);
  const std::array<Var, 2> out = attention_with_lse(tape, q, k, v, Var{}, c.documents, c.options);
  const std::array<Tensor, 2> seeds{tape.here(cast(in.d_o, dtype)), tape.here(cast(in.dlse, accumulator_dtype(dtype)))};
  tape.backward(out, seeds);
  const auto fetch = [&](const Tensor& t) { return cast(to_host(t, gpu_stream()), t.dtype()); };
  return {fetch(out[0].value),     fetch(out[1].value),     fetch(tape.gradient(q)),
          fetch(tape.gradient(k)), fetch(tape.gradient(v)), {}};
}

AttentionOutputs rows_of(const AttentionOutputs& x, std::int64_t begin, std::int64_t end) {
  const auto part = [&](const Tensor& t) { return cast(t.rows(begin, end), t.dtype()); };
  return {part(x.o), part(x.lse), part(x.dq), part(x.dk), part(x.dv), {}};
}

// The widths of multi-head latent attention.
TEST_F(AttentionGpu, LatentWidths) {
  check({.documents = documents_of({1, 300, 129}), .H_KV = 2, .D = 192, .D_V = 128});
  check({.documents = documents_of({500}),
         .options = {.window = 150, .sink_tokens = 3, .soft_cap = 3.0},
         .G = 2,
         .D = 192,
         .D_V = 128,
         .sink_logit = true});
  check({.documents = documents_of({200}), .H_KV = 2, .D = 160, .D_V = 96});
}

Tensor part_of(const Tensor& x, std::int64_t a0, std::int64_t a1, std::int64_t b0, std::int64_t b1) {
  const Tensor both = Tensor::empty({a1 - a0 + b1 - b0, x.dim(1), x.dim(2)}, DType::f64);
  both.rows(0, a1 - a0).copy_from(x.rows(a0, a1));
  both.rows(a1 - a0, both.dim(0)).copy_from(x.rows(b0, b1));
  return both;
}

// Packing changes no bit, and a document of NaNs stays alone with them.
TEST_F(AttentionGpu, DocumentsKeepToThemselves) {
  const std::vector<std::int32_t> lengths = {130, 77, 200, 1, 64};
  constexpr std::int64_t kBad = 2;
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const std::int64_t D : {64, 128}) {
      for (const std::int32_t window : {0, 50}) {
        const AttentionCase c{
            .documents = documents_of(lengths), .options = {.window = window}, .H_KV = 2, .G = 2, .D = D, .D_V = D};
        const AttentionInputs in = random_inputs(c);
        const AttentionOutputs packed = run_on_gpu(c, in, dtype);
        for (const Tensor& t : {in.q, in.k, in.v, in.d_o}) {
          const Tensor bad = t.rows(c.documents->begin(kBad), c.documents->end(kBad));
          for (double& x : bad.span<double>()) x = std::nan("");
        }
        const AttentionOutputs beside = run_on_gpu(c, in, dtype);
        for (std::int64_t n = 0; n < c.documents->count(); ++n) {
          if (n == kBad) continue;
          SCOPED_TRACE(fmt::format("{} D {} window {} document {}", name_of(dtype), D, window, n));
          const std::int64_t begin = c.documents->begin(n), end = c.documents->end(n);
          AttentionCase alone = c;
          alone.documents = documents_of({lengths[static_cast<std::size_t>(n)]});
          expect_equal_bits(rows_of(packed, begin, end), run_on_gpu(alone, tokens_of(in, begin, end), dtype));
          expect_equal_bits(rows_of(beside, begin, end), rows_of(packed, begin, end));
        }
      }
    }
  }
}

// Prefill in pieces and decoding over the cache against the definition, two sequences of different lengths at once.
TEST_F(AttentionGpu, CachedPrefillAndDecode) {
  for (const AttentionOptions& options :
       {AttentionOptions{}, AttentionOptions{.window = 16}, AttentionOptions{.window = 65, .sink_tokens = 4},
        AttentionOptions{.window = 128, .sink_tokens = 70, .soft_cap = 2.0}}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("{} window {} sinks {}", name_of(dtype), options.window, options.sink_tokens));
      constexpr std::int32_t kFirst = 1200, kSecond = 150, kDecoded = 4;
      const AttentionCase c{.documents = documents_of({kFirst, kSecond}),
                            .options = options,
                            .H_KV = 2,
                            .G = 4,
                            .D = 64,
                            .D_V = 32,
                            .sink_logit = true};
      AttentionInputs in = rounded(random_inputs(c), dtype);
      const Tensor reference = run_reference(c, in).o;
      const std::shared_ptr<Allocator> memory = gpu_memory();
      const Place place{.stream = gpu_stream(), .lasting = cuda_allocator(0), .arena = memory, .dtype = dtype};
      KeyValueCache cache(2, c.H_KV, c.D, c.D_V, c.options, place);
      const auto run = [&](std::int32_t a0, std::int32_t a1, std::int32_t b0, std::int32_t b1) {
        Tape tape(memory, Tape::Mode::inference, gpu_stream());
        const Documents documents({0, a1 - a0, a1 - a0 + b1 - b0}, {a0, b0});
        const auto part = [&](const Tensor& x) {
          return tape.here(cast(part_of(x, a0, a1, kFirst + b0, kFirst + b1), dtype));
        };
        const Tensor o = attention_cached(tape, part(in.q), part(in.k), part(in.v),
                                          tape.here(cast(in.sink_logit, DType::f32)), documents, options, cache);
        const Tensor got = to_host(o, gpu_stream());
        const Tensor expected = part_of(reference, a0, a1, kFirst + b0, kFirst + b1);
        const Tolerance t = dtype == DType::f32 ? kFp32 : kBf16;
        EXPECT_TRUE(close(got, expected, t.forward, t.max)) << "tokens from " << a0 << " and " << b0;
      };
      run(0, 700, 0, 0);
      run(700, kFirst - kDecoded, 0, kSecond - kDecoded);
      for (std::int32_t i = kDecoded; i > 0; --i) run(kFirst - i, kFirst - i + 1, kSecond - i, kSecond - i + 1);
    }
  }
}

// Attention over two halves of the keys is that over all: queries of the second half, on the CPU and merged on the GPU.
TEST_F(AttentionGpu, MergesParts) {
  constexpr std::int64_t T = 40, H = 3, D = 24;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const DType stats = accumulator_dtype(dtype);
    const auto rounded_to = [](const Tensor& t, DType type) { return cast(cast(t, type), DType::f64); };
    const Tensor o_a = rounded_to(normal({T, H, D}, 1), dtype), o_b = rounded_to(normal({T, H, D}, 2), dtype);
    const Tensor lse_a = rounded_to(normal({T, H}, 3), stats), lse_b = rounded_to(normal({T, H}, 4), stats);
    lse_a.data<double>()[0] = lse_b.data<double>()[1] = -std::numeric_limits<double>::infinity();
    const std::shared_ptr<Allocator> memory = gpu_memory();
    const auto there = [&](const Tensor& t, DType type) { return to_memory(cast(t, type), memory, gpu_stream()); };
    const Tensor o = there(o_a, dtype), lse = there(lse_a, stats);
    merge_attention(o, lse, there(o_b, dtype), there(lse_b, stats), gpu_stream());
    merge_attention(o_a, lse_a, o_b, lse_b);
    const Tolerance t = dtype == DType::f32 ? kFp32 : kBf16;
    EXPECT_TRUE(close(to_host(o, gpu_stream()), o_a, t.forward, t.max));
    EXPECT_TRUE(close(to_host(lse, gpu_stream()), lse_a, kFp32.forward, kFp32.max));
  }
}

TEST_F(AttentionGpu, LaterTokensDoNotReachEarlierOnes) {
  for (const std::int64_t D : {64, 128}) {
    AttentionCase c{.documents = documents_of({300}), .H_KV = 1, .G = 2, .D = D, .D_V = D};
    const AttentionInputs in = random_inputs(c);
    const AttentionOutputs before = run_on_gpu(c, in, DType::bf16);
    c.seed = 77;
    const AttentionInputs other = random_inputs(c);
    for (const std::int64_t t : {1, 63, 64, 127, 200}) {
      AttentionInputs changed{cast(in.q, DType::f64),   cast(in.k, DType::f64),
                              cast(in.v, DType::f64),   {},
                              cast(in.d_o, DType::f64), in.dlse};
      changed.q.rows(t, 300).copy_from(other.q.rows(t, 300));
      changed.k.rows(t, 300).copy_from(other.k.rows(t, 300));
      changed.v.rows(t, 300).copy_from(other.v.rows(t, 300));
      const AttentionOutputs after = run_on_gpu(c, changed, DType::bf16);
      EXPECT_TRUE(bitwise_equal(rows_of(after, 0, t).o, rows_of(before, 0, t).o)) << "D " << D << " t " << t;
      changed.d_o.rows(t, 300).fill_zero();
      changed.dlse = cast(in.dlse, DType::f64);
      changed.dlse.rows(t, 300).fill_zero();
      const AttentionOutputs late = rows_of(run_on_gpu(c, changed, DType::bf16), t, 300);
      for (const Tensor& g : {late.dq, late.dk, late.dv}) {
        const Tensor values = cast(g, DType::f64);
        for (const double x : values.span<double>()) ASSERT_EQ(x, 0.0) << "D " << D << " t " << t;
      }
    }
  }
}

}  // namespace
}  // namespace weft::testing
