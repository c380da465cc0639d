// Puts an example together token by token, and the draws that several tasks need.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/synthetic/task.h"

namespace weft {

class ExampleBuilder {
 public:
  explicit ExampleBuilder(std::int64_t expected_length);

  std::int64_t length() const { return example_.row.length(); }
  // A position without an answer.
  void add(std::int64_t token);
  // A position whose output is to be `label`.
  void add(std::int64_t token, std::int64_t label, std::int32_t bucket);
  // Pads to `length` positions with id 0 in a piece of its own, which nothing of the example can see.
  Example finish(std::int64_t length);

 private:
  Example example_;
};

// The first `count` elements of a random order of first .. first + size - 1.
std::vector<std::int64_t> draw_distinct(RandomWords& random, std::int64_t first, std::int64_t size, std::int64_t count);

// length, 2 length, 4 length ... up to `longest`: the lengths that a task is tested at.
std::vector<std::int64_t> doubled_lengths(std::int64_t length, std::int64_t longest);

// The option "test_length" of tasks that are tested at doubled lengths, and its value (0 in the recipe: `length`).
// Error (config) if it is shorter than `length`.
OptionSpec test_length_option(std::string of_what);
std::int64_t test_length(const Options& options, std::int64_t length, const std::string& where);

}  // namespace weft
