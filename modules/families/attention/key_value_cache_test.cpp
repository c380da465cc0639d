// Attention over cached keys: continuation, decode, constant memory; and merging attention over parts of the keys.
#include "modules/families/attention/key_value_cache.h"

#include <fmt/format.h>
#include <limits>

#include "modules/families/attention/attention_case.h"

namespace weft::testing {
namespace {

// Runs tokens [begin, end) of one sequence against its cache.
Tensor continue_sequence(const AttentionCase& c, const AttentionInputs& in, std::int64_t begin, std::int64_t end,
                         DType dtype, KeyValueCache& cache) {
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const auto documents = Documents::single(end - begin, static_cast<std::int32_t>(begin));
  const auto part = [&](const Tensor& x) { return cast(x.rows(begin, end), dtype); };
  const Tensor o = attention_cached(tape, part(in.q), part(in.k), part(in.v),
                                    c.sink_logit ? cast(in.sink_logit, dtype) : Tensor{}, *documents, c.options, cache);
  return cast(o, dtype);
}

KeyValueCache cache_for(const AttentionCase& c, std::int64_t sequences, DType dtype) {
  return KeyValueCache(sequences, c.H_KV, c.D, c.D_V, c.options, cpu_place(dtype));
}

const std::vector<AttentionOptions> kVariants = {{},
                                                 {.window = 1},
                                                 {.window = 16},
                                                 {.window = 65, .sink_tokens = 4},
                                                 {.window = 128, .sink_tokens = 70, .soft_cap = 2.0}};

// Tiles lie at absolute positions, so a split gives the bits of one run wherever it falls.
TEST(KeyValueCache, SplitEqualsOneRun) {
  for (const AttentionOptions& options : kVariants) {
    for (const std::int64_t D_V : {16, 24}) {
      const AttentionCase c{.documents = documents_of({500}),
                            .options = options,
                            .H_KV = 2,
                            .G = 2,
                            .D = 8,
                            .D_V = D_V,
                            .sink_logit = true};
      const AttentionInputs in = random_inputs(c);
      const Tensor whole = run_tiled(c, in, DType::f32).o;
      for (const std::vector<std::int64_t>& cuts : {std::vector<std::int64_t>{0, 64, 500},
                                                    {0, 1, 2, 500},
                                                    {0, 63, 129, 130, 400, 400, 500},
                                                    {0, 320, 499, 500}}) {
        KeyValueCache cache = cache_for(c, 1, DType::f32);
        for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
          SCOPED_TRACE(fmt::format("window {} sinks {} tokens [{}, {})", options.window, options.sink_tokens, cuts[i],
                                   cuts[i + 1]));
          const Tensor o = continue_sequence(c, in, cuts[i], cuts[i + 1], DType::f32, cache);
          EXPECT_TRUE(bitwise_equal(o, whole.rows(cuts[i], cuts[i + 1])));
        }
      }
    }
  }
}

TEST(KeyValueCache, DecodeEqualsPrefill) {
  for (const AttentionOptions& options : kVariants) {
    const AttentionCase c{.documents = documents_of({300}),
                          .options = options,
                          .H_KV = 2,
                          .G = 4,
                          .D = 16,
                          .D_V = 16,
                          .sink_logit = true};
    const AttentionInputs in = rounded(random_inputs(c), DType::f32);
    const Tensor reference = run_reference(c, in).o;
    KeyValueCache cache = cache_for(c, 1, DType::f32);
    const Tensor o = Tensor::empty({300, 8, 16}, DType::f32);
    for (std::int64_t t = 0; t < 300; ++t) {
      o.rows(t, t + 1).copy_from(continue_sequence(c, in, t, t + 1, DType::f32, cache));
    }
    EXPECT_TRUE(close(o, reference, kFp32.forward, kFp32.max)) << "window " << options.window;
  }
}

// Sequences of unequal length decode side by side as they would alone.
TEST(KeyValueCache, SequencesAreIndependent) {
  const AttentionCase c{.documents = documents_of({150}), .options = {.window = 65, .sink_tokens = 2}, .G = 2};
  const std::vector<std::int64_t> prefix = {0, 70, 148};
  const std::vector<AttentionInputs> in = {random_inputs(c),
                                           random_inputs({.documents = c.documents, .G = 2, .seed = 50}),
                                           random_inputs({.documents = c.documents, .G = 2, .seed = 60})};
  KeyValueCache together = cache_for(c, 3, DType::f32);
  std::vector<KeyValueCache> alone;
  for (std::size_t n = 0; n < 3; ++n) {
    const auto part = [&](const Tensor& x) { return cast(x.rows(0, prefix[n]), DType::f32); };
    together.append(static_cast<std::int64_t>(n), part(in[n].k), part(in[n].v));
    alone.push_back(cache_for(c, 1, DType::f32));
    alone.back().append(0, part(in[n].k), part(in[n].v));
  }
  for (std::int64_t step = 0; step < 2; ++step) {
    const auto stack = [&](Tensor AttentionInputs::*member, std::int64_t heads) {
      const Tensor x = Tensor::empty({3, heads, 8}, DType::f32);
      for (std::int64_t n = 0; n < 3; ++n) {
        const auto i = static_cast<std::size_t>(n);
        x.rows(n, n + 1).copy_from((in[i].*member).rows(prefix[i] + step, prefix[i] + step + 1));
      }
      return x;
    };
    std::vector<std::int32_t> pos0;
    for (std::int64_t n = 0; n < 3; ++n) pos0.push_back(together.length(n));
    const Documents documents({0, 1, 2, 3}, pos0);
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Tensor o = attention_cached(tape, stack(&AttentionInputs::q, 2), stack(&AttentionInputs::k, 1),
                                      stack(&AttentionInputs::v, 1), {}, documents, c.options, together);
    for (std::int64_t n = 0; n < 3; ++n) {
      const auto i = static_cast<std::size_t>(n);
      const Tensor expected = continue_sequence(c, in[i], prefix[i] + step, prefix[i] + step + 1, DType::f32, alone[i]);
      EXPECT_TRUE(bitwise_equal(o.rows(n, n + 1), expected)) << "sequence " << n << " step " << step;
    }
  }
}

// A sequence that starts over leaves the other one alone, sees nothing of its past, and takes no more memory.
TEST(KeyValueCache, ASequenceStartsOver) {
  const AttentionCase c{.documents = documents_of({100})};
  const AttentionInputs in = random_inputs(c), later = random_inputs({.documents = c.documents, .seed = 50});
  KeyValueCache fresh = cache_for(c, 1, DType::f32), cache = cache_for(c, 2, DType::f32);
  const auto k = cast(in.k, DType::f32), v = cast(in.v, DType::f32);
  cache.append(0, k, v);
  cache.append(1, k, v);
  const std::size_t bytes = cache.bytes();
  cache.restart(1);
  EXPECT_EQ(cache.length(0), 100);
  EXPECT_EQ(cache.length(1), 0);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const Documents second({0, 0, 100}, {100, 0});
  const Tensor o = attention_cached(tape, cast(later.q, DType::f32), cast(later.k, DType::f32),
                                    cast(later.v, DType::f32), {}, second, c.options, cache);
  EXPECT_TRUE(bitwise_equal(o, continue_sequence(c, later, 0, 100, DType::f32, fresh)));
  EXPECT_EQ(cache.bytes(), bytes);
}

TEST(KeyValueCache, WindowsHoldConstantMemory) {
  const AttentionOptions options{.window = 100, .sink_tokens = 3};
  KeyValueCache window(1, 2, 8, 4, options, cpu_place(DType::f32));
  KeyValueCache full(1, 2, 8, 4, {}, cpu_place(DType::f32));
  const Tensor k = normal({64, 2, 8}, 1), v = normal({64, 2, 4}, 2);
  const Tensor k32 = cast(k, DType::f32), v32 = cast(v, DType::f32);
  const std::size_t page = 64 * 2 * (8 + 4) * 4;
  for (int i = 1; i <= 12; ++i) {
    window.append(0, k32, v32);
    full.append(0, k32, v32);
    EXPECT_EQ(full.bytes(), static_cast<std::size_t>(i) * page);
    EXPECT_EQ(window.bytes(), static_cast<std::size_t>(std::min(i, 4)) * page);
    EXPECT_EQ(static_cast<double>(window.bytes()), KeyValueCache::bytes_for(64 * i, 2, 8, 4, options, DType::f32));
  }
}

// Values that are the first numbers of their keys, read from where the keys lie: the same bits, without their memory.
TEST(KeyValueCache, ValuesInsideKeysAreNotKeptTwice) {
  for (const std::int64_t D_V : {16, 11}) {  // in the kernels' units of width, and between them
    const AttentionCase c{.documents = documents_of({200}), .H_KV = 2, .G = 3, .D = 19, .D_V = D_V};
    AttentionInputs in = random_inputs(c);
    for (std::int64_t row = 0; row < 200 * 2; ++row) {
      std::copy_n(in.k.data<double>() + row * 19, D_V, in.v.data<double>() + row * D_V);
    }
    KeyValueCache beside = cache_for(c, 1, DType::f32);
    KeyValueCache inside(1, 2, 19, D_V, {}, cpu_place(DType::f32), CachedValues::inside_keys);
    for (const auto& [begin, end] : {std::pair{0, 70}, {70, 71}, {71, 130}, {130, 200}}) {
      EXPECT_TRUE(bitwise_equal(continue_sequence(c, in, begin, end, DType::f32, inside),
                                continue_sequence(c, in, begin, end, DType::f32, beside)));
    }
    EXPECT_EQ(inside.bytes(), std::size_t{4} * 64 * 2 * 19 * 4);
    EXPECT_EQ(static_cast<double>(inside.bytes()),
              KeyValueCache::bytes_for(200, 2, 19, D_V, {}, DType::f32, CachedValues::inside_keys));
  }
  EXPECT_THROW(KeyValueCache(1, 1, 8, 9, {}, cpu_place(DType::f32), CachedValues::inside_keys), Error);
}

TEST(KeyValueCache, ACopyIsDeep) {
  const AttentionCase c{.documents = documents_of({90}), .D_V = 16};
  const AttentionInputs in = random_inputs(c);
  KeyValueCache first = cache_for(c, 1, DType::f32);
  continue_sequence(c, in, 0, 80, DType::f32, first);
  KeyValueCache second = first;
  const Tensor a = continue_sequence(c, in, 80, 90, DType::f32, first);
  EXPECT_EQ(second.length(0), 80);
  EXPECT_TRUE(bitwise_equal(continue_sequence(c, in, 80, 90, DType::f32, second), a));
}

TEST(KeyValueCache, RefusesWhatDoesNotFit) {
  const AttentionCase c{.documents = documents_of({4})};
  const AttentionInputs in = random_inputs(c);
  KeyValueCache cache = cache_for(c, 1, DType::f32);
  EXPECT_THROW(continue_sequence(c, in, 1, 2, DType::f32, cache), Error);  // does not continue the cache
  EXPECT_THROW(continue_sequence(c, in, 0, 2, DType::f64, cache), Error);
  KeyValueCache narrow(1, 1, 4, 8, {}, cpu_place(DType::f32));
  EXPECT_THROW(continue_sequence(c, in, 0, 2, DType::f32, narrow), Error);
  KeyValueCache windowed(1, 1, 8, 8, {.window = 2}, cpu_place(DType::f32));
  EXPECT_THROW(continue_sequence(c, in, 0, 2, DType::f32, windowed), Error);
}

// --- merging ---------------------------------------------------------------------------------------------------------

// Keys of the row are split at random into parts, each attended to alone; one part is empty, and the sink logit is a
// part without keys.
TEST(MergeAttention, PartsOfTheKeysGiveTheWhole) {
  constexpr std::int64_t T = 40, D = 8;
  const AttentionCase c{.documents = documents_of({T}), .D = D, .D_V = D, .sink_logit = true};
  const AttentionInputs in = rounded(random_inputs(c), DType::f32);
  const AttentionOutputs whole = run_reference(c, in);
  for (const DType dtype : {DType::f64, DType::f32}) {
    // The last query against the keys of each part, in a document of its own that ends with that query.
    const double tolerance = dtype == DType::f64 ? 1e-14 : 1e-6;
    const Tensor o = Tensor::zeros({1, 1, D}, dtype);
    const Tensor lse = Tensor::empty({1, 1}, dtype);
    lse.copy_from(Tensor::from<double>({1}, std::vector{-std::numeric_limits<double>::infinity()}));
    const Tensor empty_lse = Tensor::empty({1, 1}, dtype);
    empty_lse.copy_from(lse);
    const Tensor nothing = Tensor::zeros({1, 1, D}, dtype);
    merge_attention(o, lse, nothing, empty_lse);
    EXPECT_EQ(cast(lse, DType::f64).data<double>()[0], -std::numeric_limits<double>::infinity());
    const Tensor membership = uniform({T}, 5, 0.0, 3.0);
    for (int part = 0; part < 4; ++part) {
      std::vector<std::int64_t> keys;
      for (std::int64_t j = 0; j < T; ++j) {
        if (static_cast<int>(membership.data<double>()[j]) == part) keys.push_back(j);
      }
      if (part == 3) {
        merge_attention(o, lse, nothing, empty_lse);
        continue;
      }
      const auto count = static_cast<std::int64_t>(keys.size());
      const Tensor q = Tensor::zeros({count, 1, D}, DType::f64);
      const Tensor k = Tensor::empty({count, 1, D}, DType::f64), v = Tensor::empty({count, 1, D}, DType::f64);
      for (std::int64_t j = 0; j < count; ++j) {
        const std::int64_t key = keys[static_cast<std::size_t>(j)];
        k.rows(j, j + 1).copy_from(in.k.rows(key, key + 1));
        v.rows(j, j + 1).copy_from(in.v.rows(key, key + 1));
      }
      q.rows(count - 1, count).copy_from(in.q.rows(T - 1, T));
      Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
      const auto constant = [&](const Tensor& x) { return Tape::constant(cast(x, dtype)); };
      const auto [part_o, part_lse] =
          attention_with_lse(tape, constant(q), constant(k), constant(v), {}, Documents::single(count), {});
      merge_attention(o, lse, part_o.value.rows(count - 1, count), part_lse.value.rows(count - 1, count));
    }
    merge_attention(o, lse, nothing, cast(in.sink_logit, dtype).reshape({1, 1}));
    EXPECT_TRUE(close(o, whole.o.rows(T - 1, T), tolerance, tolerance));
    EXPECT_TRUE(close(lse, whole.lse.rows(T - 1, T), tolerance, tolerance));
  }
}

}  // namespace
}  // namespace weft::testing
