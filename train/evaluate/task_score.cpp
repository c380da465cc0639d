#include "train/evaluate/task_score.h"

#include <algorithm>
#include <cmath>

#include "train/generate/decoder.h"
#include "train/loop/batch.h"

namespace weft {
namespace {

constexpr std::int64_t kTokensPerBatch = 4096;
constexpr std::int64_t kGreedySlack = 4;
constexpr double kExactShare = 0.9;

std::int64_t argmax(std::span<const float> logits) {
  return std::ranges::max_element(logits) - logits.begin();
}

double negative_log_probability(std::span<const float> logits, std::int64_t label) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(label)]);
}

// Everything that is counted, as numbers that add up over ranks.
struct Counts {
  double loss = 0.0;
  std::vector<BucketScore> buckets;
  Proportion exact;
  std::vector<std::int64_t> first_errors;  // [labels of an example + 1] examples by the number of labels before it
};

class Scorer {
 public:
  Scorer(LanguageModel& model, const Task& task, Place place) : model_(model), task_(task), place_(std::move(place)) {
    for (const std::string& name : task.buckets()) counts_.buckets.emplace_back().name = name;
  }

  Counts& counts() { return counts_; }

  // The model's first choice at each label, given all tokens before it.
  void score(std::span<const Example> examples) {
    std::vector<Row> rows;
    for (const Example& example : examples) rows.push_back(example.row);
    const Batch batch = make_batch(rows);
    std::vector<std::int64_t> positions;
    const auto labels = batch.labels.span<std::int32_t>();
    for (std::size_t t = 0; t < labels.size(); ++t) {
      if (labels[t] != kIgnoredLabel) positions.push_back(static_cast<std::int64_t>(t));
    }
    Tape tape(place_.arena, Tape::Mode::inference, place_.stream);
    const Tensor logits =
        to_host(model_.logits_at(tape, tape.here(batch.tokens), batch.documents, positions), DType::f32, place_.stream);
    std::int64_t next = 0;
    for (const Example& example : examples) next = count(example, labels, positions, logits, next);
  }

  // Continues the prompts of examples with one answer each.
  void score_greedily(std::span<const Example> examples) {
    std::vector<std::int32_t> prompts;
    std::vector<std::int32_t> cu_seqlens = {0};
    std::vector<std::vector<std::int32_t>> answers;
    std::size_t longest = 0;
    for (const Example& example : examples) {
      const Row& row = example.row;
      std::vector<std::int32_t>& answer = answers.emplace_back();
      std::size_t first = row.labels.size();
      for (std::size_t t = 0; t < row.labels.size(); ++t) {
        if (row.labels[t] == kIgnoredLabel) continue;
        first = std::min(first, t);
        answer.push_back(row.labels[t]);
      }
      prompts.insert(prompts.end(), row.tokens.begin(), row.tokens.begin() + static_cast<std::ptrdiff_t>(first) + 1);
      cu_seqlens.push_back(static_cast<std::int32_t>(prompts.size()));
      longest = std::max(longest, answer.size());
    }
    const std::vector<std::vector<std::int32_t>> texts =
        continuations(prompts, cu_seqlens, static_cast<std::int64_t>(longest) + kGreedySlack);
    for (std::size_t i = 0; i < examples.size(); ++i) {
      const auto end = texts[i].begin() + static_cast<std::ptrdiff_t>(answers[i].size()) + kGreedySlack;
      const bool found = std::search(texts[i].begin(), end, answers[i].begin(), answers[i].end()) != end;
      counts_.buckets[static_cast<std::size_t>(examples[i].buckets.front())].greedy.add(found);
    }
  }

 private:
  // Counts one example, whose first label is number `next`; returns the number of the next example's.
  std::int64_t count(const Example& example, std::span<const std::int32_t> labels,
                     std::span<const std::int64_t> positions, const Tensor& logits, std::int64_t next) {
    std::vector<Proportion> here(counts_.buckets.size());
    std::size_t right_so_far = 0;
    bool all_right = true;
    for (const std::int32_t bucket : example.buckets) {
      const std::span<const float> scores = logits.rows(next, next + 1).span<float>();
      const std::int32_t label = labels[static_cast<std::size_t>(positions[static_cast<std::size_t>(next)])];
      ++next;
      const double loss = negative_log_probability(scores, label);
      // Logits that are no numbers choose nothing, but the largest of them would be the first.
      const bool right = std::isfinite(loss) && argmax(scores) == label;
      here[static_cast<std::size_t>(bucket)].add(right);
      all_right = all_right && right;
      right_so_far += all_right ? 1 : 0;
      counts_.loss += loss;
    }
    for (std::size_t b = 0; b < here.size(); ++b) {
      if (here[b].count == 0) continue;
      counts_.buckets[b].labels.hits += here[b].hits;
      counts_.buckets[b].labels.count += here[b].count;
      counts_.buckets[b].exact.add(here[b].hits == here[b].count);
    }
    counts_.exact.add(all_right);
    counts_.first_errors.resize(std::max(counts_.first_errors.size(), example.buckets.size() + 1));
    ++counts_.first_errors[right_so_far];
    return next;
  }

  // [N][tokens] greedy continuations.
  std::vector<std::vector<std::int32_t>> continuations(const std::vector<std::int32_t>& prompts,
                                                       const std::vector<std::int32_t>& cu_seqlens,
                                                       std::int64_t tokens) {
    const std::size_t N = cu_seqlens.size() - 1;
    Decoder decoder(model_, place_, static_cast<std::int64_t>(N));
    std::vector<std::vector<std::int32_t>> texts(N);
    std::vector<std::int32_t> last(N);
    const auto take = [&](const Tensor& logits) {
      for (std::size_t n = 0; n < N; ++n) {
        const auto row = static_cast<std::int64_t>(n);
        last[n] = static_cast<std::int32_t>(argmax(logits.rows(row, row + 1).span<float>()));
        texts[n].push_back(last[n]);
      }
    };
    take(decoder.prefill(prompts, std::make_shared<const Documents>(cu_seqlens)));
    for (std::int64_t i = 1; i < tokens; ++i) take(decoder.step(last));
    return texts;
  }

  LanguageModel& model_;
  const Task& task_;
  Place place_;
  Counts counts_;
};

// Sums over the ranks.
void add_up(Counts& counts, Communicator& group) {
  counts.loss = all_reduce(group, std::span<const double>(&counts.loss, 1), ReduceOp::sum)[0];
  const auto length = static_cast<std::int64_t>(counts.first_errors.size());
  counts.first_errors.resize(
      static_cast<std::size_t>(all_reduce(group, std::span<const std::int64_t>(&length, 1), ReduceOp::max)[0]));
  std::vector<std::int64_t*> all = {&counts.exact.hits, &counts.exact.count};
  for (BucketScore& bucket : counts.buckets) {
    for (Proportion* p : {&bucket.labels, &bucket.exact, &bucket.greedy}) all.insert(all.end(), {&p->hits, &p->count});
  }
  for (std::int64_t& examples : counts.first_errors) all.push_back(&examples);
  std::vector<std::int64_t> values;
  for (const std::int64_t* value : all) values.push_back(*value);
  values = all_reduce(group, std::span<const std::int64_t>(values), ReduceOp::sum);
  for (std::size_t i = 0; i < all.size(); ++i) *all[i] = values[i];
}

// The largest number of labels that at least kExactShare of the examples have right from the start.
std::int64_t longest_exact(const Counts& counts) {
  std::int64_t alive = counts.exact.count;
  std::int64_t length = 0;
  for (; length + 1 < static_cast<std::int64_t>(counts.first_errors.size()); ++length) {
    alive -= counts.first_errors[static_cast<std::size_t>(length)];
    if (static_cast<double>(alive) < kExactShare * static_cast<double>(counts.exact.count)) break;
  }
  return length;
}

}  // namespace

TaskScore score_task(LanguageModel& model, const Task& task, Split split, std::int64_t examples, Communicator& group,
                     const Place& place, GreedyScoring greedy) {
  Scorer scorer(model, task, place);
  std::int64_t next = 0;
  for (std::int64_t batch = 0; next < examples; ++batch) {  // batches are dealt to the ranks in turn
    const bool mine = batch % group.size() == group.rank();
    std::vector<Example> together;
    std::int64_t tokens = 0;
    do {
      Example example = task.build(split, next++);
      tokens += example.row.length();
      if (mine) together.push_back(std::move(example));
    } while (next < examples && tokens < kTokensPerBatch);
    if (!mine) continue;
    scorer.score(together);
    if (greedy == GreedyScoring::on) scorer.score_greedily(together);
  }
  Counts& counts = scorer.counts();
  add_up(counts, group);

  TaskScore score;
  score.exact = counts.exact;
  for (const BucketScore& bucket : counts.buckets) {
    if (bucket.labels.count == 0) continue;
    score.buckets.push_back(bucket);
    score.labels.hits += bucket.labels.hits;
    score.labels.count += bucket.labels.count;
    score.greedy.hits += bucket.greedy.hits;
    score.greedy.count += bucket.greedy.count;
  }
  WEFT_CHECK(score.labels.count > 0, "a task without labels");
  score.loss = counts.loss / static_cast<double>(score.labels.count);
  if (task.runs_along()) score.longest_exact = longest_exact(counts);
  return score;
}

}  // namespace weft
