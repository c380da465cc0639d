// Passkey retrieval in text: a number stands somewhere among sentences that say nothing, and is asked for at the end.
// The text goes through a tokenizer; the digits are the only labels.
#include <array>
#include <cmath>
#include <fmt/format.h>

#include "autograd/check.h"
#include "data/synthetic/example_builder.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

constexpr std::string_view kInstruction = "One number is hidden in this text. Remember it.\n";
constexpr std::array<std::string_view, 5> kFiller = {
    "The mill stands by the water. ", "Two carts wait at the gate. ",  "Rain falls on the slate roofs. ",
    "A lamp burns in the window. ",   "The road goes over the hill. ",
};
constexpr std::string_view kQuestion = "\nWhich number was hidden in the text? The hidden number is ";

std::string statement(const std::string& number) {
  return "The hidden number is " + number + ". ";
}

class Passkey final : public Task {
 public:
  Passkey(const Options& options, std::uint64_t seed, const std::string& where)
      : seed_(seed),
        length_(options.integer("length")),
        digits_(options.integer("digits")),
        depths_(options.integer("depths")),
        test_lengths_(doubled_lengths(length_, test_length(options, length_, where))),
        tokenizer_(make_tokenizer(options.text("tokenizer"))),
        question_(tokenizer_->encode(kQuestion)) {
    const auto least = static_cast<std::int64_t>(
        tokenizer_->encode(kInstruction).size() + question_.size() +
        tokenizer_->encode(statement(std::string(static_cast<std::size_t>(digits_), '9'))).size() +
        tokenizer_->encode(std::string(static_cast<std::size_t>(digits_), '9')).size());
    if (least > length_) {
      config_error("{}: length = {} is too short for the hidden number and the question; {} tokens are needed", where,
                   length_, least);
    }
  }

  std::int64_t vocabulary() const override { return tokenizer_->vocab_size(); }
  std::int64_t row_length() const override { return length_; }
  std::string tokenizer() const override { return tokenizer_->name(); }

  std::vector<std::string> buckets() const override {
    std::vector<std::string> names;
    for (const std::int64_t length : test_lengths_) {
      for (std::int64_t d = 0; d < depths_; ++d) names.push_back(fmt::format("L={} depth={:.2f}", length, depth(d)));
    }
    return names;
  }

  // Tests go through lengths and depths in turn; otherwise the depth is random, at the length of training.
  Example build(Split split, std::int64_t index) const override {
    RandomWords random = random_words(seed_, split, index);
    const auto cells = static_cast<std::int64_t>(test_lengths_.size()) * depths_;
    const std::int64_t cell = split == Split::test
                                  ? index % cells
                                  : static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(depths_)));
    const std::int64_t length = test_lengths_[static_cast<std::size_t>(cell / depths_)];
    const std::string number = draw_number(random);

    const std::vector<std::int32_t> key = tokenizer_->encode(statement(number));
    const std::vector<std::int32_t> answer = tokenizer_->encode(number);
    std::vector<std::int32_t> tokens = tokenizer_->encode(kInstruction);
    const std::size_t fixed = tokens.size() + key.size() + question_.size() + answer.size();
    const std::vector<std::vector<std::int32_t>> filler = filler_sentences(static_cast<std::size_t>(length) - fixed);
    const auto before =
        static_cast<std::size_t>(std::llround(depth(cell % depths_) * static_cast<double>(filler.size())));
    const auto append = [&](const std::vector<std::int32_t>& more) {
      tokens.insert(tokens.end(), more.begin(), more.end());
    };
    for (std::size_t i = 0; i < before; ++i) append(filler[i]);
    append(key);
    for (std::size_t i = before; i < filler.size(); ++i) append(filler[i]);
    append(question_);

    ExampleBuilder builder(length);
    const std::int32_t last = tokens.back();
    tokens.pop_back();
    for (const std::int32_t token : tokens) builder.add(token);
    for (std::size_t i = 0; i < answer.size(); ++i) {
      builder.add(i == 0 ? last : answer[i - 1], answer[i], static_cast<std::int32_t>(cell));
    }
    return builder.finish(length);
  }

 private:
  double depth(std::int64_t d) const {
    return depths_ == 1 ? 0.5 : static_cast<double>(d) / static_cast<double>(depths_ - 1);
  }

  // Uniform, without a zero in front.
  std::string draw_number(RandomWords& random) const {
    std::string number(1, static_cast<char>('1' + random.below(9)));
    while (static_cast<std::int64_t>(number.size()) < digits_) {
      number += static_cast<char>('0' + random.below(10));
    }
    return number;
  }

  // As many sentences as fit.
  std::vector<std::vector<std::int32_t>> filler_sentences(std::size_t room) const {
    std::vector<std::vector<std::int32_t>> sentences;
    for (std::size_t i = 0;; ++i) {
      std::vector<std::int32_t> sentence = tokenizer_->encode(kFiller[i % kFiller.size()]);
      if (sentence.size() > room) return sentences;
      room -= sentence.size();
      sentences.push_back(std::move(sentence));
    }
  }

  std::uint64_t seed_;
  std::int64_t length_, digits_, depths_;
  std::vector<std::int64_t> test_lengths_;  // training uses the first
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<std::int32_t> question_;
};

std::unique_ptr<Task> create(const Options& options, std::uint64_t seed, const std::string& where) {
  return std::make_unique<Passkey>(options, seed, where);
}

TaskType make_type() {
  TaskType type{.name = "passkey",
                .summary = "a number hidden in a long text, by length and depth",
                .options = {},
                .create = create};
  type.options = {
      integer_option("length", 1024, "tokens of an example, within one sentence", 64, 1 << 24),
      integer_option("digits", 5, "digits of the number", 1, 32),
      integer_option("depths", 11,
                     "different places of the number, evenly from the start to the end of the text; 1: in the middle",
                     1, 1 << 10),
      test_length_option("as many tokens"),
      choice_option("tokenizer", "byte", "of the text", {"byte"}),
  };
  return type;
}

}  // namespace

const TaskType& passkey_task() {
  static const TaskType type = make_type();
  return type;
}

}  // namespace weft
