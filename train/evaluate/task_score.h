// How well a model solves a synthetic task.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autograd/place.h"
#include "data/synthetic/task.h"
#include "modules/language_model.h"
#include "parallel/communicator.h"
#include "train/evaluate/proportion.h"

namespace weft {

// Scores of one kind of question.
struct BucketScore {
  std::string name;
  Proportion labels;  // that are the model's first choice of the whole vocabulary, given all tokens before them
  Proportion exact;   // examples whose labels in this bucket are all so
  Proportion greedy;  // tasks of text, greedy scoring: examples whose answer stands in the model's own continuation
};

struct TaskScore {
  double loss = 0.0;  // mean over the labels, nats
  Proportion labels;
  Proportion exact;
  Proportion greedy;
  std::vector<BucketScore> buckets;  // those that examples fell into
  // Tasks that run along: the longest length up to which at least 9 of 10 examples are right at every position.
  std::optional<std::int64_t> longest_exact;
};

enum class GreedyScoring : std::uint8_t { off, on };

// Scores the first `examples` examples of a split, spread over the group, where the model lives; every rank gets the
// result. With greedy
// scoring, a model also answers tasks of text itself: a greedy continuation of the prompt, up to 4 tokens longer than
// the answer.
TaskScore score_task(LanguageModel& model, const Task& task, Split split, std::int64_t examples, Communicator& group,
                     const Place& place, GreedyScoring greedy = GreedyScoring::off);

}  // namespace weft
