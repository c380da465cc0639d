// State tracking: the inputs are elements of a group, and the output at every position is to be their product so far,
// g_t o ... o g_0 (the right factor acts first). Parity and counters are cyclic groups; of permutations, elements are
// numbered by their lexicographic rank among the group's.
#include <algorithm>
#include <fmt/format.h>
#include <numeric>

#include "autograd/check.h"
#include "data/synthetic/example_builder.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

using Permutation = std::vector<int>;

struct Group {
  std::vector<std::int64_t> inputs;                // the elements that occur as inputs
  std::vector<std::vector<std::int32_t>> product;  // [a][b] = a o b
};

Group cyclic(std::int64_t m) {
  Group group;
  group.product.assign(static_cast<std::size_t>(m), std::vector<std::int32_t>(static_cast<std::size_t>(m)));
  for (std::int64_t a = 0; a < m; ++a) {
    group.inputs.push_back(a);
    for (std::int64_t b = 0; b < m; ++b) {
      group.product[static_cast<std::size_t>(a)][static_cast<std::size_t>(b)] = static_cast<std::int32_t>((a + b) % m);
    }
  }
  return group;
}

int inversions(const Permutation& p) {
  int count = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    for (std::size_t j = i + 1; j < p.size(); ++j) count += p[i] > p[j] ? 1 : 0;
  }
  return count;
}

bool is_transposition(const Permutation& p) {
  int moved = 0;
  for (std::size_t i = 0; i < p.size(); ++i) moved += p[i] != static_cast<int>(i) ? 1 : 0;
  return moved == 2;
}

enum class Elements : std::uint8_t { all, even };
enum class Inputs : std::uint8_t { all, transpositions };

Group permutations(int points, Elements which, Inputs inputs) {
  std::vector<Permutation> elements;
  Permutation p(static_cast<std::size_t>(points));
  std::iota(p.begin(), p.end(), 0);
  do {
    if (which == Elements::all || inversions(p) % 2 == 0) elements.push_back(p);
  } while (std::ranges::next_permutation(p).found);
  Group group;
  for (const Permutation& a : elements) {
    if (inputs == Inputs::all || is_transposition(a)) {
      group.inputs.push_back(static_cast<std::int64_t>(group.product.size()));
    }
    std::vector<std::int32_t>& row = group.product.emplace_back();
    for (const Permutation& b : elements) {
      Permutation ab;
      for (const int image : b) ab.push_back(a[static_cast<std::size_t>(image)]);
      row.push_back(static_cast<std::int32_t>(std::ranges::lower_bound(elements, ab) - elements.begin()));
    }
  }
  return group;
}

Group group_of(const std::string& name, std::int64_t modulus) {
  if (name == "parity") return cyclic(2);
  if (name == "counter") return cyclic(modulus);
  if (name == "s3") return permutations(3, Elements::all, Inputs::all);
  if (name == "a5") return permutations(5, Elements::even, Inputs::all);
  return permutations(5, Elements::all, name == "s5_swaps" ? Inputs::transpositions : Inputs::all);
}

class StateTracking final : public Task {
 public:
  StateTracking(const Options& options, std::uint64_t seed, const std::string& where)
      : seed_(seed),
        min_length_(options.integer("min_length")),
        max_length_(options.integer("max_length")),
        test_length_(options.integer("test_length")),
        group_(group_of(options.text("group"), options.integer("modulus"))) {
    if (min_length_ > max_length_) {
      config_error("{}: min_length = {} is more than max_length = {}", where, min_length_, max_length_);
    }
    if (test_length_ < max_length_) {
      config_error("{}: test_length = {} is less than max_length = {}; tests begin with the lengths of training", where,
                   test_length_, max_length_);
    }
  }

  std::int64_t vocabulary() const override { return static_cast<std::int64_t>(group_.product.size()); }
  std::int64_t row_length() const override { return max_length_; }
  bool runs_along() const override { return true; }

  // The lengths of training, then doubled ones: "1-40", "41-80", ...
  std::vector<std::string> buckets() const override {
    std::vector<std::string> names;
    for (std::int64_t first = 1, last = max_length_; first <= test_length_; first = last + 1, last *= 2) {
      names.push_back(fmt::format("{}-{}", first, std::min(last, test_length_)));
    }
    return names;
  }

  Example build(Split split, std::int64_t index) const override {
    RandomWords random = random_words(seed_, split, index);
    std::int64_t length = test_length_;
    if (split != Split::test) {
      length = min_length_ +
               static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(max_length_ - min_length_ + 1)));
    }
    ExampleBuilder builder(std::max(length, max_length_));
    std::int64_t state = 0;  // the identity is first of all elements
    std::int32_t bucket = 0;
    std::int64_t bucket_end = max_length_;
    for (std::int64_t t = 0; t < length; ++t) {
      if (t == bucket_end) {
        bucket_end *= 2;
        ++bucket;
      }
      const std::int64_t input = group_.inputs[random.below(group_.inputs.size())];
      state = group_.product[static_cast<std::size_t>(input)][static_cast<std::size_t>(state)];
      builder.add(input, state, bucket);
    }
    return builder.finish(split == Split::test ? length : max_length_);
  }

 private:
  std::uint64_t seed_;
  std::int64_t min_length_, max_length_, test_length_;
  Group group_;
};

std::unique_ptr<Task> create(const Options& options, std::uint64_t seed, const std::string& where) {
  return std::make_unique<StateTracking>(options, seed, where);
}

TaskType make_type() {
  TaskType type{.name = "state_tracking",
                .summary = "the running product of elements of a group: parity, counters, words of permutations",
                .options = {},
                .create = create};
  type.options = {
      choice_option("group", "parity",
                    "bits, a counter, words over S3 (6 elements), A5 (60) or S5 (120), or transpositions of S5",
                    {"parity", "counter", "s3", "a5", "s5", "s5_swaps"}),
      integer_option("modulus", 5, "counter: counts up to this", 2, 1 << 10),
      integer_option("min_length", 3, "shortest examples of training; lengths are uniform", 1, 1 << 20),
      integer_option("max_length", 40, "longest examples of training", 2, 1 << 20),
      integer_option("test_length", 500,
                     "length of the tests, which are scored position by position; at least max_length", 2, 1 << 24),
  };
  return type;
}

}  // namespace

const TaskType& state_tracking_task() {
  static const TaskType type = make_type();
  return type;
}

}  // namespace weft
