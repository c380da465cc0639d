// ListOps as in the Long Range Arena (arXiv 2011.04006), in causal form: a nested expression of MIN, MAX, MED and SM
// (sum modulo 10) over digits, and at a query token behind it its value.
//
// At a node of depth < 10 (the root has depth 1) an operator stands with probability 1/4, else a digit; an operator has
// 2 to 10 arguments. Expressions whose length is not between the bounds are drawn again. The root is always an
// operator, which changes nothing, as a digit is too short, and saves three quarters of the attempts.
#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <numeric>

#include "autograd/check.h"
#include "data/synthetic/example_builder.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

// Digits are tokens 0 .. 9.
enum Token : std::int8_t { kMin = 10, kMax, kMed, kSum, kClose, kQuery, kVocabulary };

constexpr int kMostDepth = 10;
constexpr std::uint64_t kOperators = 4;
constexpr std::uint64_t kFewestArguments = 2;
constexpr std::uint64_t kMostArguments = 10;

int apply(Token op, std::vector<int>& arguments) {
  if (op == kSum) return std::reduce(arguments.begin(), arguments.end()) % 10;
  std::ranges::sort(arguments);
  if (op == kMin) return arguments.front();
  if (op == kMax) return arguments.back();
  const std::size_t middle = arguments.size() / 2;
  if (arguments.size() % 2 == 1) return arguments[middle];
  return (arguments[middle - 1] + arguments[middle]) / 2;  // the median without its fraction
}

// One attempt at an expression.
class Expression {
 public:
  Expression(RandomWords& random, std::size_t most) : random_(random), most_(most) { value_ = operation(1); }

  const std::vector<Token>& tokens() const { return tokens_; }
  bool too_long() const { return tokens_.size() > most_; }
  int value() const { return value_; }

 private:
  int node(int depth) {
    if (too_long()) return 0;  // it will be thrown away
    if (depth < kMostDepth && random_.below(4) == 0) return operation(depth);
    const auto digit = static_cast<int>(random_.below(10));
    tokens_.push_back(static_cast<Token>(digit));
    return digit;
  }

  int operation(int depth) {
    const auto op = static_cast<Token>(kMin + static_cast<int>(random_.below(kOperators)));
    const std::uint64_t count = kFewestArguments + random_.below(kMostArguments - kFewestArguments + 1);
    tokens_.push_back(op);
    std::vector<int> arguments;
    for (std::uint64_t i = 0; i < count; ++i) arguments.push_back(node(depth + 1));
    tokens_.push_back(kClose);
    return apply(op, arguments);
  }

  RandomWords& random_;
  std::size_t most_;
  std::vector<Token> tokens_;
  int value_ = 0;
};

class ListOps final : public Task {
 public:
  ListOps(const Options& options, std::uint64_t seed, const std::string& where)
      : seed_(seed), min_length_(options.integer("min_length")), max_length_(options.integer("max_length")) {
    // In a narrower band an attempt would hardly ever succeed.
    if (max_length_ < min_length_ + 10) {
      config_error("{}: max_length = {} must be at least 10 more than min_length = {}", where, max_length_,
                   min_length_);
    }
  }

  std::int64_t vocabulary() const override { return kVocabulary; }
  std::int64_t row_length() const override { return max_length_; }

  std::vector<std::string> buckets() const override {
    return {fmt::format("{}-{} tokens", min_length_ + 1, max_length_ - 1)};
  }

  Example build(Split split, std::int64_t index) const override {
    RandomWords random = random_words(seed_, split, index);
    for (;;) {
      const Expression expression(random, static_cast<std::size_t>(max_length_ - 1));
      const auto length = static_cast<std::int64_t>(expression.tokens().size());
      if (expression.too_long() || length <= min_length_) continue;
      ExampleBuilder builder(max_length_);
      for (const Token token : expression.tokens()) builder.add(token);
      builder.add(kQuery, expression.value(), 0);
      return builder.finish(max_length_);
    }
  }

 private:
  std::uint64_t seed_;
  std::int64_t min_length_, max_length_;
};

std::unique_ptr<Task> create(const Options& options, std::uint64_t seed, const std::string& where) {
  return std::make_unique<ListOps>(options, seed, where);
}

TaskType make_type() {
  TaskType type{.name = "listops",
                .summary = "the value of a nested expression of minimum, maximum, median and sum (causal form)",
                .options = {},
                .create = create};
  type.options = {
      integer_option("min_length", 500, "expressions have more tokens than this", 0, 4000),
      integer_option("max_length", 2000, "and fewer than this; the query token comes on top", 10, 1 << 16),
  };
  return type;
}

}  // namespace

const TaskType& listops_task() {
  static const TaskType type = make_type();
  return type;
}

}  // namespace weft
