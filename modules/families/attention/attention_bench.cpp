#include "autograd/bench_case.h"
#include "modules/families/attention/attention.h"

namespace weft {
namespace {

// Documents of lengths from `shortest` to `longest`, each twice the one before, again and again until T tokens are
// full.
DocumentsPtr mixed_documents(std::int64_t T, std::int64_t shortest, std::int64_t longest) {
  std::vector<std::int32_t> lengths;
  for (std::int64_t left = T, length = shortest; left > 0; length = length == longest ? shortest : 2 * length) {
    lengths.push_back(static_cast<std::int32_t>(std::min(left, length)));
    left -= lengths.back();
  }
  return Documents::from_lengths(lengths);
}

}  // namespace

std::vector<BenchCase> attention_bench(const BenchShape& s) {
  const std::int64_t H = 2 * s.H;
  const auto heads = [&](const std::string& name, DocumentsPtr documents, std::int64_t kv_heads, std::int64_t window) {
    const std::int64_t T = documents->tokens();
    const AttentionOptions options{.window = static_cast<std::int32_t>(window)};
    // Two products a pair and head, and five in backward, which computes the scores again.
    const double product = 2.0 * static_cast<double>(H * s.D) * attention_pairs(*documents, options);
    const double q = static_cast<double>(T * H * s.D), kv = static_cast<double>(T * kv_heads * s.D);
    return BenchCase{.name = fmt::format("attention, {}, {} tokens", name, T),
                     .inputs = {{{T, H, s.D}}, {{T, kv_heads, s.D}}, {{T, kv_heads, s.D}}},
                     .function =
                         [documents = std::move(documents), options](Tape& tape, std::span<const Var> in) {
                           return std::vector{attention(tape, in[0], in[1], in[2], {}, documents, options)};
                         },
                     .forward = {.elements = 2 * q + 2 * kv, .flops = 2 * product},
                     .backward = {.elements = 4 * q + 4 * kv, .flops = 5 * product}};
  };
  const std::int64_t T = s.T / 2, grouped = H / 4;
  const std::int64_t shortest = std::max<std::int64_t>(T / 512, 1), longest = T / 4;
  const auto one = [](std::int64_t tokens) { return Documents::single(static_cast<std::int32_t>(tokens)); };
  return {heads("a key head for each", one(T / 4), H, 0),
          heads("full", one(T / 4), grouped, 0),
          heads("full", one(T), grouped, 0),
          heads(fmt::format("window of {}", T / 64), one(T), grouped, T / 64),
          heads(fmt::format("window of {}", T / 8), one(T), grouped, T / 8),
          heads(fmt::format("documents of {} to {}", shortest, longest), mixed_documents(T, shortest, longest), grouped,
                0)};
}

}  // namespace weft
