#include "train/loop/run_data.h"

#include <algorithm>

#include "data/bigram.h"
#include "data/dataset.h"
#include "data/synthetic/task_stream.h"
#include "train/evaluate/evaluate.h"
#include "train/evaluate/task_score.h"

namespace weft {
namespace {

// The bigram reference reads all of the training data, which must not hold up the first step of a large run.
constexpr std::int64_t kMostBigramTokens = std::int64_t{1} << 28;
constexpr std::int64_t kMostBigramIds = 4096;

class DatasetRun final : public RunData {
 public:
  explicit DatasetRun(const Recipe& recipe) : recipe_(recipe) {
    for (const SourceOptions& source : source_options(recipe)) {
      train_.push_back(std::make_shared<const Dataset>(source.path));
      check_tokenizer(*train_.back());
    }
    if (!recipe.data.validation.empty()) {
      validation_ = std::make_shared<const Dataset>(recipe.data.validation);
      check_tokenizer(*validation_);
      validation_rows_ = make_evaluation_source(validation_, row_options(recipe));
    }
    tokenizer_ = train_.front()->tokenizer();
  }

  std::int64_t vocabulary() const override { return train_.front()->vocab_size(); }
  const TokenizerBundle& tokenizer() const override { return tokenizer_; }

  std::vector<std::string> digests() const override {
    std::vector<std::string> digests;
    for (const auto& dataset : train_) digests.push_back(dataset->digest());
    return digests;
  }

  std::string validation_digest() const override { return validation_ ? validation_->digest() : ""; }

  std::unique_ptr<RowStream> open_stream(const SkippedSteps& skipped) const override {
    SamplerOptions options = sampler_options(recipe_);
    const std::vector<SourceOptions> sources = source_options(recipe_);
    for (std::size_t i = 0; i < sources.size(); ++i) {
      options.sources.push_back(
          {.dataset = train_[i], .weight = sources[i].weight, .max_epochs = sources[i].max_epochs});
    }
    options.skip_steps.insert(options.skip_steps.end(), skipped.begin(), skipped.end());
    return std::make_unique<Sampler>(std::move(options));
  }

  std::optional<ValidationResult> validate(LanguageModel& model, Communicator& group,
                                           const Place& place) const override {
    if (!validation_rows_) return std::nullopt;
    EvaluationOptions options;
    if (recipe_.validation.tokens > 0) {
      options.max_rows = std::max<std::int64_t>(1, recipe_.validation.tokens / recipe_.data.sequence_length);
    }
    const EvaluationResult result = evaluate(model, *validation_rows_, *tokenizer_.tokenizer, group, place, options);
    return ValidationResult{
        .loss = result.loss, .labels = result.labels, .bits_per_byte = result.bits_per_byte, .accuracy = {}};
  }

  std::optional<LossReference> reference() const override {
    const Dataset& train = *train_.front();
    if (!validation_ || validation_->vocab_size() > kMostBigramIds || train.n_tokens() > kMostBigramTokens) {
      return std::nullopt;
    }
    const BigramEntropy bigram = bigram_entropy(train, *validation_);
    return LossReference{.name = "bigram model", .loss = bigram.nats_per_token, .bits_per_byte = bigram.bits_per_byte};
  }

 private:
  // Every dataset of a run must come from one tokenizer.
  void check_tokenizer(const Dataset& dataset) const {
    const TokenizerIdentity first = train_.front()->tokenizer_identity();
    const TokenizerIdentity other = dataset.tokenizer_identity();
    if (other.fingerprint == first.fingerprint) return;
    config_error("{} and {} were prepared with different tokenizers ({} and {}); prepare them with the same one",
                 train_.front()->folder(), dataset.folder(), shown(first), shown(other));
  }

  Recipe recipe_;
  std::vector<std::shared_ptr<const Dataset>> train_;
  std::shared_ptr<const Dataset> validation_;
  std::unique_ptr<RowSource> validation_rows_;
  TokenizerBundle tokenizer_;
};

class TaskRun final : public RunData {
 public:
  explicit TaskRun(const Recipe& recipe)
      : recipe_(recipe),
        task_(make_task(*recipe.task, data_seed(recipe))),
        tokenizer_{task_->tokenizer().empty() ? nullptr : make_tokenizer(task_->tokenizer()), {}},
        digest_(task_digest(*recipe.task->type, recipe.task->options, data_seed(recipe))) {}

  std::int64_t vocabulary() const override { return task_->vocabulary(); }
  const TokenizerBundle& tokenizer() const override { return tokenizer_; }
  std::vector<std::string> digests() const override { return {digest_}; }
  std::string validation_digest() const override { return digest_; }

  std::unique_ptr<RowStream> open_stream(const SkippedSteps& skipped) const override {
    const SamplerOptions options = sampler_options(recipe_);
    TaskStreamOptions stream{.name = recipe_.task->type->name,
                             .digest = digest_,
                             .rows_per_step = options.rows_per_step,
                             .skip_steps = options.skip_steps};
    stream.skip_steps.insert(stream.skip_steps.end(), skipped.begin(), skipped.end());
    return make_task_stream(task_, std::move(stream));
  }

  std::optional<ValidationResult> validate(LanguageModel& model, Communicator& group,
                                           const Place& place) const override {
    const TaskScore score =
        score_task(model, *task_, Split::validation, recipe_.task->validation_examples, group, place);
    return ValidationResult{
        .loss = score.loss, .labels = score.labels.count, .bits_per_byte = {}, .accuracy = score.labels.value()};
  }

  std::optional<LossReference> reference() const override { return std::nullopt; }

 private:
  Recipe recipe_;
  std::shared_ptr<const Task> task_;
  TokenizerBundle tokenizer_;
  std::string digest_;
};

}  // namespace

std::unique_ptr<RunData> open_run_data(const Recipe& recipe) {
  if (recipe.task) return std::make_unique<TaskRun>(recipe);
  return std::make_unique<DatasetRun>(recipe);
}

}  // namespace weft
