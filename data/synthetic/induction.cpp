// Induction heads: random symbols, in whose first half a special token stands before some symbol; at the special token
// at the end the output is to be that symbol.
#include <fmt/format.h>

#include "data/synthetic/example_builder.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

class Induction final : public Task {
 public:
  Induction(const Options& options, std::uint64_t seed, const std::string& where)
      : seed_(seed),
        length_(options.integer("length")),
        alphabet_(options.integer("alphabet")),
        test_lengths_(doubled_lengths(length_, test_length(options, length_, where))) {}

  std::int64_t vocabulary() const override { return alphabet_ + 1; }
  std::int64_t row_length() const override { return length_; }

  std::vector<std::string> buckets() const override {
    std::vector<std::string> names;
    for (const std::int64_t length : test_lengths_) names.push_back(fmt::format("L={}", length));
    return names;
  }

  Example build(Split split, std::int64_t index) const override {
    const std::size_t bucket =
        split == Split::test ? static_cast<std::size_t>(index) % test_lengths_.size() : std::size_t{0};
    const std::int64_t length = test_lengths_[bucket];
    const std::int64_t special = alphabet_;
    RandomWords random = random_words(seed_, split, index);
    const auto draw = [&](std::int64_t n) {
      return static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(n)));
    };
    const std::int64_t place = draw(length / 2);
    std::int64_t answer = 0;
    ExampleBuilder builder(length);
    for (std::int64_t t = 0; t + 1 < length; ++t) {
      const std::int64_t symbol = draw(alphabet_);
      if (t == place + 1) answer = symbol;
      builder.add(t == place ? special : symbol);
    }
    builder.add(special, answer, static_cast<std::int32_t>(bucket));
    return builder.finish(length);
  }

 private:
  std::uint64_t seed_;
  std::int64_t length_, alphabet_;
  std::vector<std::int64_t> test_lengths_;  // training uses the first
};

std::unique_ptr<Task> create(const Options& options, std::uint64_t seed, const std::string& where) {
  return std::make_unique<Induction>(options, seed, where);
}

TaskType make_type() {
  TaskType type{.name = "induction",
                .summary = "the symbol that followed a special token in the first half",
                .options = {},
                .create = create};
  type.options = {
      integer_option("length", 256, "tokens of an example", 4, 1 << 24),
      integer_option("alphabet", 16, "different symbols", 2, 1 << 20),
      test_length_option("as many tokens"),
  };
  return type;
}

}  // namespace

const TaskType& induction_task() {
  static const TaskType type = make_type();
  return type;
}

}  // namespace weft
