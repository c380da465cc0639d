// Selective copying: a few symbols at random places among noise; then as many markers, at which the symbols are to be
// put out in order.
#include <algorithm>
#include <fmt/format.h>

#include "autograd/check.h"
#include "data/synthetic/example_builder.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

class SelectiveCopy final : public Task {
 public:
  SelectiveCopy(const Options& options, std::uint64_t seed, const std::string& where)
      : seed_(seed),
        length_(options.integer("length")),
        alphabet_(options.integer("alphabet")),
        symbols_(options.integer("symbols")),
        test_lengths_(doubled_lengths(length_, test_length(options, length_, where))) {
    if (symbols_ > length_) {
      config_error("{}: symbols = {} do not fit into length = {}; lower symbols or raise length", where, symbols_,
                   length_);
    }
  }

  std::int64_t vocabulary() const override { return alphabet_ + 2; }
  std::int64_t row_length() const override { return length_ + symbols_; }

  std::vector<std::string> buckets() const override {
    std::vector<std::string> names;
    for (const std::int64_t length : test_lengths_) names.push_back(fmt::format("L={} n={}", length, symbols_));
    return names;
  }

  Example build(Split split, std::int64_t index) const override {
    const std::int64_t noise = alphabet_;
    const std::int64_t marker = alphabet_ + 1;
    const std::size_t bucket =
        split == Split::test ? static_cast<std::size_t>(index) % test_lengths_.size() : std::size_t{0};
    const std::int64_t length = test_lengths_[bucket];
    RandomWords random = random_words(seed_, split, index);
    std::vector<std::int64_t> places = draw_distinct(random, 0, length, symbols_);
    std::ranges::sort(places);
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(length), noise);
    std::vector<std::int64_t> answer;
    for (const std::int64_t place : places) {
      answer.push_back(static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(alphabet_))));
      tokens[static_cast<std::size_t>(place)] = answer.back();
    }
    ExampleBuilder builder(length + symbols_);
    for (const std::int64_t token : tokens) builder.add(token);
    for (const std::int64_t symbol : answer) builder.add(marker, symbol, static_cast<std::int32_t>(bucket));
    return builder.finish(length + symbols_);
  }

 private:
  std::uint64_t seed_;
  std::int64_t length_, alphabet_, symbols_;
  std::vector<std::int64_t> test_lengths_;  // training uses the first
};

std::unique_ptr<Task> create(const Options& options, std::uint64_t seed, const std::string& where) {
  return std::make_unique<SelectiveCopy>(options, seed, where);
}

TaskType make_type() {
  TaskType type{.name = "selective_copy",
                .summary = "a few symbols among noise, to be put out in order",
                .options = {},
                .create = create};
  type.options = {
      integer_option("length", 4096, "tokens before the markers", 1, 1 << 24),
      integer_option("symbols", 16, "symbols among them, and markers behind them; at most length", 1, 1 << 20),
      integer_option("alphabet", 16, "different symbols", 2, 1 << 20),
      test_length_option("as many tokens"),
  };
  return type;
}

}  // namespace

const TaskType& selective_copy_task() {
  static const TaskType type = make_type();
  return type;
}

}  // namespace weft
