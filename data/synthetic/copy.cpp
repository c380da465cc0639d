// Copying: symbols, a separator, and the same symbols again. Rows hold s_1 .. s_n, SEP, s_1 .. s_(n-1); from SEP on the
// output is to be the next symbol.
#include <fmt/format.h>

#include "data/synthetic/example_builder.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

class Copy final : public Task {
 public:
  Copy(const Options& options, std::uint64_t seed, const std::string& where)
      : seed_(seed),
        alphabet_(options.integer("alphabet")),
        n_(options.integer("symbols")),
        test_symbols_(doubled_lengths(n_, test_length(options, n_, where))) {}

  std::int64_t vocabulary() const override { return alphabet_ + 1; }
  std::int64_t row_length() const override { return 2 * n_; }

  std::vector<std::string> buckets() const override {
    std::vector<std::string> names;
    for (const std::int64_t n : test_symbols_) names.push_back(fmt::format("n={}", n));
    return names;
  }

  Example build(Split split, std::int64_t index) const override {
    const std::size_t bucket =
        split == Split::test ? static_cast<std::size_t>(index) % test_symbols_.size() : std::size_t{0};
    const auto n = static_cast<std::size_t>(test_symbols_[bucket]);
    RandomWords random = random_words(seed_, split, index);
    std::vector<std::int64_t> symbols(n);
    for (std::int64_t& symbol : symbols) {
      symbol = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(alphabet_)));
    }
    const auto length = static_cast<std::int64_t>(2 * n);
    ExampleBuilder builder(length);
    for (const std::int64_t symbol : symbols) builder.add(symbol);
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t separator = alphabet_;
      builder.add(i == 0 ? separator : symbols[i - 1], symbols[i], static_cast<std::int32_t>(bucket));
    }
    return builder.finish(length);
  }

 private:
  std::uint64_t seed_;
  std::int64_t alphabet_, n_;
  std::vector<std::int64_t> test_symbols_;  // training uses the first
};

std::unique_ptr<Task> create(const Options& options, std::uint64_t seed, const std::string& where) {
  return std::make_unique<Copy>(options, seed, where);
}

TaskType make_type() {
  TaskType type{.name = "copy", .summary = "symbols, a separator, the same symbols", .options = {}, .create = create};
  type.options = {
      integer_option("symbols", 32, "symbols of an example; it has twice as many tokens", 1, 1 << 20),
      integer_option("alphabet", 26, "different symbols", 2, 1 << 20),
      test_length_option("as many symbols"),
  };
  return type;
}

}  // namespace

const TaskType& copy_task() {
  static const TaskType type = make_type();
  return type;
}

}  // namespace weft
