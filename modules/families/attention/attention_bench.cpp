#include "autograd/bench_case.h"
#include "modules/families/attention/attention.h"

namespace weft {

std::vector<BenchCase> attention_bench(const BenchShape& s) {
  const auto heads = [&](const char* name, std::int64_t T, std::int64_t count, std::int64_t kv_heads,
                         std::int32_t window) {
    const DocumentsPtr documents = Documents::from_lengths(
        std::vector<std::int32_t>(static_cast<std::size_t>(count), static_cast<std::int32_t>(T / count)));
    const AttentionOptions options{.window = window};
    // Two products a pair and head, and five in backward, which computes the scores again.
    const double product = 2.0 * static_cast<double>(s.width) * attention_pairs(*documents, options);
    const double q = static_cast<double>(T * s.width), kv = static_cast<double>(T * kv_heads * s.D);
    return BenchCase{.name = fmt::format("attention, {}, {} tokens", name, T),
                     .inputs = {{{T, s.H, s.D}}, {{T, kv_heads, s.D}}, {{T, kv_heads, s.D}}},
                     .function =
                         [documents, options](Tape& tape, std::span<const Var> in) {
                           return std::vector{attention(tape, in[0], in[1], in[2], {}, documents, options)};
                         },
                     .forward = {.elements = 2 * q + 2 * kv, .flops = 2 * product},
                     .backward = {.elements = 4 * q + 4 * kv, .flops = 5 * product}};
  };
  const std::int64_t T = s.T / 4;
  return {heads("full", T / 2, 1, s.H, 0), heads("full", T, 1, s.H, 0), heads("grouped by 8", T, 1, s.H / 8, 0),
          heads("window of 512", T, 1, s.H, 512), heads("16 documents", T, 16, s.H, 0)};
}

}  // namespace weft
