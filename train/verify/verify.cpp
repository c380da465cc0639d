#include "train/verify/verify.h"

#include <algorithm>
#include <chrono>
#include <fmt/ranges.h>

#include "autograd/random_tensor.h"
#include "parallel/launch.h"
#include "train/loop/compute.h"
#include "train/verify/parts.h"

namespace weft {
namespace {

// Around the block lengths of kernels.
constexpr std::int32_t kAwkwardLengths[] = {1, 2, 17, 65, 129, 257};
constexpr std::int64_t kLeastTokens = 64;  // compared, whatever they cost
constexpr std::uint64_t kSeed = 2000;

std::string lengths_of(std::span<const std::int32_t> lengths) {
  constexpr std::size_t kShown = 8;
  return fmt::format("{}{}", fmt::join(lengths.first(std::min(kShown, lengths.size())), ", "),
                     lengths.size() > kShown ? ", ..." : "");
}

std::string describe_row(const Documents& documents) {
  const std::vector<std::int32_t> lengths = ComparedTokens::all(documents).tokens;
  return fmt::format("{} tokens in documents of {}", documents.tokens(), lengths_of(lengths));
}

std::string describe_compared(const Documents& documents, const ComparedTokens& compared) {
  if (compared.total() == documents.tokens()) return "all of them";
  std::vector<std::int32_t> whole;
  std::string beginning;
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    const std::int32_t tokens = compared.tokens[static_cast<std::size_t>(n)];
    if (tokens == documents.length(n)) {
      whole.push_back(tokens);
    } else if (tokens > 0) {
      beginning = fmt::format("{}the first {} tokens of a document of {}", whole.empty() ? "" : " and ", tokens,
                              documents.length(n));
    }
  }
  return (whole.empty() ? "" : fmt::format("the documents of {}", lengths_of(whole))) + beginning;
}

// Tokens of the row whose work in fp64 is affordable: the largest power of two times kLeastTokens, or all.
std::int64_t affordable_tokens(const ModelPart& part, const Documents& documents, std::int64_t sequence_length) {
  std::int64_t tokens = kLeastTokens;
  while (tokens < documents.tokens()) {
    const std::int64_t next = std::min(2 * tokens, documents.tokens());
    if (part.flops(next, std::min(next, sequence_length)) > kVerifyWork) return tokens;
    tokens = next;
  }
  return documents.tokens();
}

PrecisionCase case_of(const ModelPart& part, const DocumentsPtr& documents, const Place& place, std::int64_t width,
                      std::int64_t vocabulary) {
  const std::int64_t T = documents->tokens();
  PrecisionCase c{.declare = part.declare,
                  .tolerance = place.dtype == DType::bf16 ? part.bf16 : kFp32,
                  .inputs = {},
                  .row = {.documents = documents},
                  .seeds = {},
                  .compared = {},
                  .input_names = part.input_names,
                  .output_names = part.output_names};
  std::uint64_t seed = kSeed;
  for (std::size_t i = 0; i < part.input_names.size(); ++i) c.inputs.push_back(normal({T, width}, seed++));
  if (!part.loss) {
    for (std::size_t i = 0; i < part.output_names.size(); ++i) c.seeds.push_back(normal({T, width}, seed++));
    return c;
  }
  c.seeds.push_back(Tensor::from({1}, std::vector<double>{1.0}));
  const Tensor draws = uniform({T}, seed, 0.0, static_cast<double>(vocabulary));
  c.row.labels = Tensor::empty({T}, DType::i32);
  for (std::int64_t t = 0; t < T; ++t) {
    c.row.labels.data<std::int32_t>()[t] = static_cast<std::int32_t>(draws.data<double>()[t]);
  }
  return c;
}

// Value, master and gradient of the part with most parameters.
std::size_t lasting_bytes(const std::vector<ModelPart>& parts) {
  std::int64_t most = 0;
  for (const ModelPart& part : parts) {
    ParameterStore store;
    (void)part.declare(ParameterScope(store));
    most = std::max(most, store.element_count());
  }
  return static_cast<std::size_t>(10 * most);
}

}  // namespace

bool VerifiedPart::ok() const {
  return std::ranges::all_of(results, &PrecisionResult::ok);
}

bool Verification::ok() const {
  return std::ranges::all_of(parts, &VerifiedPart::ok);
}

DocumentsPtr verified_row(std::int64_t tokens, std::int64_t sequence_length, bool packed, bool anchored) {
  std::vector<std::int32_t> cu{0}, pos0;
  const auto add = [&](std::int64_t length) {
    pos0.push_back(anchored && !pos0.empty() ? 1 : 0);
    cu.push_back(cu.back() + static_cast<std::int32_t>(length));
  };
  if (packed) {
    for (const std::int32_t length : kAwkwardLengths) {
      if (length <= sequence_length && cu.back() + length <= tokens / 2) add(length);
    }
  }
  while (cu.back() < tokens) add(std::min(sequence_length, tokens - cu.back()));
  return std::make_shared<const Documents>(std::move(cu), std::move(pos0),
                                           anchored ? Anchor::first_token : Anchor::none);
}

ComparedTokens compared_tokens(const Documents& documents, std::int64_t most) {
  ComparedTokens compared;
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    const auto tokens = static_cast<std::int32_t>(std::min<std::int64_t>(documents.length(n), most));
    compared.tokens.push_back(tokens);
    most -= tokens;
  }
  return compared;
}

Verification verify_recipe(const Recipe& recipe, std::int64_t vocabulary, const VerifyOptions& options,
                           const std::function<void(const VerifiedPart&)>& on_part) {
  Compute compute(recipe.run, World(self_communicator()));
  const std::vector<ModelPart> parts = parts_of(recipe, vocabulary);
  compute.open_arena(lasting_bytes(parts));
  const Place& place = compute.place();
  const std::int64_t T = rows_per_micro_batch(recipe) * recipe.data.sequence_length;

  Verification verification{.device = compute.description(), .parts = {}};
  for (const ModelPart& part : parts) {
    const auto begin = std::chrono::steady_clock::now();
    const DocumentsPtr documents = verified_row(part.documents ? T : recipe.data.sequence_length,
                                                recipe.data.sequence_length, part.documents, recipe.data.anchor);
    PrecisionCase c = case_of(part, documents, place, recipe.model.width, vocabulary);
    c.compared = compared_tokens(*documents, options.tokens > 0
                                                 ? options.tokens
                                                 : affordable_tokens(part, *documents, recipe.data.sequence_length));
    Specimen specimen(part.declare, place);
    VerifiedPart verified{.name = part.name,
                          .row = describe_row(*documents),
                          .compared = describe_compared(*documents, c.compared),
                          .tokens = documents->tokens(),
                          .compared_tokens = c.compared.total(),
                          .results = compare_with_double(c, specimen)};
    verified.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (on_part) on_part(verified);
    verification.parts.push_back(std::move(verified));
  }
  return verification;
}

}  // namespace weft
