// Synthetic tasks: rows that are made up on the fly, with answers that are known.
//
// Example i of a split is a pure function of (task, options, seed, split, i), so that there is nothing to store and
// nothing to keep for going on with a run. T positions of a row, V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/philox.h"
#include "data/sampler/row.h"
#include "data/tokenizers/tokenizer.h"
#include "modules/options.h"

namespace weft {

enum class Split : std::uint8_t { train, validation, test };

// Where an example's random numbers come from: splits never share one.
RandomWords random_words(std::uint64_t seed, Split split, std::int64_t index);

// A row whose labels are compared with the output at their own position, and what each answer counts for.
struct Example {
  Row row;
  std::vector<std::int32_t> buckets;  // [number of labels that are not ignored], in their order: index into buckets()
};

class Task {
 public:
  virtual ~Task() = default;

  // V: ids are 0 .. V-1.
  virtual std::int64_t vocabulary() const = 0;
  // T of the rows that are trained on and validated with. Rows of the test split may have other lengths.
  virtual std::int64_t row_length() const = 0;
  // What the scores of the test split are reported by, e.g. "L=64 n=8". The other splits stay within them.
  virtual std::vector<std::string> buckets() const = 0;
  // Thread-safe; index >= 0.
  virtual Example build(Split split, std::int64_t index) const = 0;

  // The name of the tokenizer whose ids the rows hold; empty: ids are symbols of the task. An example of a task of text
  // has one answer, at the end of its prompt.
  virtual std::string tokenizer() const { return {}; }
  // Whether every position is labelled with the result so far, so that an example is a test of all lengths.
  virtual bool runs_along() const { return false; }
};

// Everything the rest of weft knows about a kind of task.
struct TaskType {
  std::string name;
  std::string summary;              // one line, for people
  std::vector<OptionSpec> options;  // of its recipe table
  // Error (config) that begins with `where` for options that do not fit together.
  std::unique_ptr<Task> (*create)(const Options& options, std::uint64_t seed, const std::string& where);
};

// All kinds, in the order of their names.
const std::vector<const TaskType*>& task_types();
// nullptr if there is none of that name.
const TaskType* find_task(std::string_view name);

// Hexadecimal SHA-256 of everything that decides a task's examples.
std::string task_digest(const TaskType& type, const Options& options, std::uint64_t seed);

}  // namespace weft
