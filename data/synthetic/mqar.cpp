// Multi-query associative recall (Zoology, arXiv 2312.04927): n keys, each followed by its value; later some positions
// repeat a key, and the output there is to be its value. With `updates`, keys come again with another value before they
// are asked for, which separates memories that add from memories that overwrite.
#include <algorithm>
#include <cmath>
#include <fmt/format.h>

#include "autograd/check.h"
#include "data/synthetic/example_builder.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

constexpr std::int32_t kUntouched = 0;
constexpr std::int32_t kUpdated = 1;

// Weights of the slots for queries, proportional to (j+1)^(a-1), as integers so that draws have the same bits
// everywhere. The largest is 2^20, whichever end of the row it is at.
std::vector<std::uint64_t> slot_weights(std::int64_t slots, double power) {
  constexpr double kOne = 1 << 20;
  const double largest = power > 1.0 ? std::pow(static_cast<double>(slots), power - 1.0) : 1.0;
  std::vector<std::uint64_t> weights;
  for (std::int64_t j = 0; j < slots; ++j) {
    const double weight = kOne * std::pow(static_cast<double>(j + 1), power - 1.0) / largest;
    weights.push_back(std::max<std::uint64_t>(1, static_cast<std::uint64_t>(std::llround(weight))));
  }
  return weights;
}

class Mqar final : public Task {
 public:
  Mqar(const Options& options, std::uint64_t seed, const std::string& where)
      : seed_(seed),
        V_(options.integer("vocabulary")),
        L_(options.integer("length")),
        n_(options.integer("pairs")),
        passes_(options.integer("passes")),
        updates_(options.integer("updates")),
        random_filler_(options.text("filler") == "random") {
    if (L_ % 2 != 0) config_error("{}: length = {} is odd; pairs take two positions each, make it even", where, L_);
    if (V_ <= L_) {
      config_error("{}: vocabulary = {} must be larger than length = {}; use at least {}", where, V_, L_, L_ + 1);
    }
    if (updates_ > n_) {
      config_error("{}: updates = {} is more than pairs = {}; at most every key can be updated", where, updates_, n_);
    }
    if (const std::int64_t needed = 2 * n_ * passes_ + 2 * updates_ + 2 * n_; needed > L_) {
      config_error(
          "{}: pairs = {} need 2 pairs (passes + 1) + 2 updates = {} positions, but length = {}; lower pairs or raise "
          "length",
          where, n_, needed, L_);
    }
    if (n_ > keys()) {
      config_error("{}: pairs = {} need as many distinct keys, but vocabulary = {} has {}; raise it to {}", where, n_,
                   V_, keys(), 2 * (n_ + 1));
    }
    slot_weights_ = slot_weights((L_ - asked_from()) / 2, options.real("power"));
  }

  std::int64_t vocabulary() const override { return V_; }
  std::int64_t row_length() const override { return L_; }

  std::vector<std::string> buckets() const override {
    const std::string name = fmt::format("L={} n={}", L_, n_);
    if (updates_ == 0) return {name};
    return {name + " untouched", name + " updated"};
  }

  Example build(Split split, std::int64_t index) const override {
    RandomWords random = random_words(seed_, split, index);
    const std::vector<std::int64_t> keys = draw_distinct(random, 1, this->keys(), n_);
    std::vector<std::int64_t> values = draw_distinct(random, V_ / 2, V_ - V_ / 2, n_);
    std::vector<std::int64_t> tokens;
    for (std::int64_t pass = 0; pass < passes_; ++pass) {
      for (std::size_t i = 0; i < keys.size(); ++i) tokens.insert(tokens.end(), {keys[i], values[i]});
    }
    std::vector<std::int32_t> buckets(keys.size(), kUntouched);
    for (const std::int64_t pair : draw_distinct(random, 0, n_, updates_)) {
      const auto i = static_cast<std::size_t>(pair);
      values[i] = other_value(random, values[i]);
      buckets[i] = kUpdated;
      tokens.insert(tokens.end(), {keys[i], values[i]});
    }

    // The pair that each slot asks for, or -1.
    std::vector<std::int64_t> asked(slot_weights_.size(), -1);
    for (std::int64_t i = 0; i < n_; ++i) asked[draw_slot(random, asked)] = i;
    ExampleBuilder builder(L_);
    for (const std::int64_t token : tokens) builder.add(token);
    for (const std::int64_t pair : asked) {
      if (pair < 0) {
        builder.add(filler(random));
      } else {
        const auto i = static_cast<std::size_t>(pair);
        builder.add(keys[i], values[i], buckets[i]);
      }
      builder.add(filler(random));
    }
    return builder.finish(L_);
  }

 private:
  // Keys are 1 .. V/2 - 1, values V/2 .. V - 1.
  std::int64_t keys() const { return V_ / 2 - 1; }
  // The position of the first slot.
  std::int64_t asked_from() const { return 2 * n_ * passes_ + 2 * updates_; }

  std::int64_t filler(RandomWords& random) const {
    return random_filler_ ? static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(V_))) : 0;
  }

  std::int64_t other_value(RandomWords& random, std::int64_t value) const {
    const std::int64_t first = V_ / 2;
    const auto other = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(V_ - first - 1)));
    return first + other + (first + other >= value ? 1 : 0);
  }

  // One of the slots that are still free, by weight.
  std::size_t draw_slot(RandomWords& random, const std::vector<std::int64_t>& asked) const {
    std::uint64_t total = 0;
    for (std::size_t j = 0; j < asked.size(); ++j) total += asked[j] < 0 ? slot_weights_[j] : 0;
    std::uint64_t left = random.below(total);
    for (std::size_t j = 0;; ++j) {
      if (asked[j] >= 0) continue;
      if (left < slot_weights_[j]) return j;
      left -= slot_weights_[j];
    }
  }

  std::uint64_t seed_;
  std::int64_t V_, L_, n_, passes_, updates_;
  bool random_filler_;
  std::vector<std::uint64_t> slot_weights_;  // [slots]
};

std::unique_ptr<Task> create(const Options& options, std::uint64_t seed, const std::string& where) {
  return std::make_unique<Mqar>(options, seed, where);
}

TaskType make_type() {
  TaskType type{.name = "mqar",
                .summary = "multi-query associative recall: the values of keys seen before",
                .options = {},
                .create = create};
  type.options = {
      integer_option("vocabulary", 8192, "token ids; the lower half are keys, the upper half values; more than length",
                     4, 1 << 24),
      integer_option("length", 64, "tokens of an example, even", 4, 1 << 14),
      integer_option("pairs", 8, "keys with their values; 2 pairs (passes + 1) + 2 updates <= length", 1, 1 << 12),
      real_option("power", 0.01, "the j-th slot for a query, from 1, has weight j^(power - 1): small values ask early",
                  0.0, 8.0),
      choice_option("filler", "random", "what stands between queries: random tokens, or token 0", {"random", "zero"}),
      integer_option("passes", 1, "times that the block of pairs is shown", 1, 1 << 10),
      integer_option("updates", 0, "keys that come again with another value, which is the one to recall", 0, 1 << 12),
  };
  return type;
}

}  // namespace

const TaskType& mqar_task() {
  static const TaskType type = make_type();
  return type;
}

}  // namespace weft
