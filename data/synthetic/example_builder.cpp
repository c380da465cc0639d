#include "data/synthetic/example_builder.h"

#include <unordered_map>
#include <utility>

#include "autograd/check.h"

namespace weft {

ExampleBuilder::ExampleBuilder(std::int64_t expected_length) {
  const auto length = static_cast<std::size_t>(expected_length);
  example_.row.tokens.reserve(length);
  example_.row.labels.reserve(length);
  example_.row.positions.reserve(length);
}

void ExampleBuilder::add(std::int64_t token) {
  Row& row = example_.row;
  row.positions.push_back(static_cast<std::int32_t>(row.tokens.size()));
  row.tokens.push_back(static_cast<std::int32_t>(token));
  row.labels.push_back(kIgnoredLabel);
}

void ExampleBuilder::add(std::int64_t token, std::int64_t label, std::int32_t bucket) {
  add(token);
  example_.row.labels.back() = static_cast<std::int32_t>(label);
  example_.buckets.push_back(bucket);
}

Example ExampleBuilder::finish(std::int64_t length) {
  const std::int64_t own = this->length();
  WEFT_CHECK(own > 0 && own <= length, "an example of {} tokens in a row of {}", own, length);
  Row& row = example_.row;
  row.cu_seqlens = {0, static_cast<std::int32_t>(own)};
  if (own < length) {
    for (std::int64_t t = own; t < length; ++t) {
      add(0);
      row.positions.back() = static_cast<std::int32_t>(t - own);
    }
    row.cu_seqlens.push_back(static_cast<std::int32_t>(length));
  }
  return std::move(example_);
}

std::vector<std::int64_t> draw_distinct(RandomWords& random, std::int64_t first, std::int64_t size,
                                        std::int64_t count) {
  WEFT_CHECK(count <= size, "{} distinct elements of {}", count, size);
  // Fisher-Yates, of which only the displaced elements are kept.
  std::unordered_map<std::int64_t, std::int64_t> displaced;
  const auto at = [&](std::int64_t i) {
    const auto it = displaced.find(i);
    return it == displaced.end() ? i : it->second;
  };
  std::vector<std::int64_t> drawn;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t j = i + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(size - i)));
    drawn.push_back(first + at(j));
    displaced[j] = at(i);
  }
  return drawn;
}

std::vector<std::int64_t> doubled_lengths(std::int64_t length, std::int64_t longest) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t l = length; l <= longest; l *= 2) lengths.push_back(l);
  return lengths;
}

OptionSpec test_length_option(std::string of_what) {
  return {.key = "test_length",
          .default_value = std::int64_t{0},
          .help = "tested with " + of_what + " as in training, doubled, ... up to this; 0: as in training only",
          .minimum = 0,
          .maximum = 1 << 24,
          .choices = {}};
}

std::int64_t test_length(const Options& options, std::int64_t length, const std::string& where) {
  const std::int64_t longest = options.integer("test_length");
  if (longest != 0 && longest < length) {
    config_error("{}: test_length = {} is shorter than training, {}; raise it, or leave it out", where, longest,
                 length);
  }
  return longest == 0 ? length : longest;
}

}  // namespace weft
