#include "train/verbs/task_eval.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train/evaluate/task_score.h"
#include "train/verbs/inference_device.h"

namespace weft {
namespace {

// What greedy scoring of a batch has room for: its examples together are of about as many tokens.
constexpr std::int64_t kGreedySequences = 64, kGreedyTokens = 128;

// Error (config) if the model cannot take the task's tokens.
void check_fit(const std::string& path, const LoadedModel& loaded, const std::string& name, const Task& task) {
  const std::string has = loaded.tokenizer ? loaded.tokenizer->name() : "";
  if (!task.tokenizer().empty() && task.tokenizer() != has) {
    config_error("{}: the task {} needs a model of the tokenizer {}, but this one was trained on {}", path, name,
                 task.tokenizer(), has.empty() ? "symbols of a task" : "text of the tokenizer " + has);
  }
  if (const std::int64_t ids = loaded.model->config().vocabulary; task.vocabulary() > ids) {
    config_error("{}: the task {} has {} token ids, but the model only {}; use the options that it was trained with",
                 path, name, task.vocabulary(), ids);
  }
}

nlohmann::json to_json(const Proportion& p) {
  const Interval interval = p.wilson();
  return {{"value", p.value()}, {"hits", p.hits}, {"count", p.count}, {"low", interval.low}, {"high", interval.high}};
}

nlohmann::json to_json(const TaskScore& score) {
  nlohmann::json buckets = nlohmann::json::array();
  for (const BucketScore& bucket : score.buckets) {
    nlohmann::json one = {
        {"name", bucket.name}, {"accuracy", to_json(bucket.labels)}, {"exact", to_json(bucket.exact)}};
    if (bucket.greedy.count > 0) one["greedy"] = to_json(bucket.greedy);
    buckets.push_back(std::move(one));
  }
  nlohmann::json json = {
      {"loss", score.loss}, {"accuracy", to_json(score.labels)}, {"exact", to_json(score.exact)}, {"buckets", buckets}};
  if (score.greedy.count > 0) json["greedy"] = to_json(score.greedy);
  if (score.longest_exact) json["longest_exact"] = *score.longest_exact;
  return json;
}

std::string shown(const Proportion& p) {
  const Interval interval = p.wilson();
  return fmt::format("{:6.2f} % [{:6.2f}, {:6.2f}]", 100.0 * p.value(), 100.0 * interval.low, 100.0 * interval.high);
}

void print_scores(const TaskScore& score) {
  std::size_t width = 6;
  for (const BucketScore& bucket : score.buckets) width = std::max(width, bucket.name.size());
  const bool greedy = score.greedy.count > 0;
  const auto row = [&](const std::string& name, const Proportion& labels, const Proportion& exact,
                       const Proportion& free_running) {
    fmt::print("  {:{}}  {}  {}{}\n", name, width, shown(labels), shown(exact),
               greedy ? "  " + shown(free_running) : "");
  };
  fmt::print("  {:{}}  {:<26}  {:<26}{}\n", "", width, "answers right", "examples all right",
             greedy ? "  found by greedy decoding" : "");
  for (const BucketScore& bucket : score.buckets) row(bucket.name, bucket.labels, bucket.exact, bucket.greedy);
  if (score.buckets.size() > 1) row("all", score.labels, score.exact, score.greedy);
  if (score.longest_exact) {
    fmt::print("  9 of 10 examples are right at every position up to length {}\n", *score.longest_exact);
  }
}

}  // namespace

void run_task_eval(World& world, const EvalArguments& arguments) {
  InferenceDevice device(arguments.device, world);
  LoadedModel loaded = load_model(arguments.path, device.place_of());
  if (arguments.task->empty() && !loaded.recipe.task) {
    config_error("{}: the model was not trained on a task; say which one to score with --task NAME", arguments.path);
  }
  const TaskTable table = task_table(loaded.recipe, *arguments.task, arguments.overrides);
  const std::uint64_t seed = data_seed(loaded.recipe);
  const std::unique_ptr<Task> task = make_task(table, seed);
  check_fit(arguments.path, loaded, table.type->name, *task);
  const bool greedy = !task->tokenizer().empty();
  device.open_arena(*loaded.model, greedy ? kGreedySequences : 0, kGreedyTokens);
  const TaskScore score = score_task(*loaded.model, *task, Split::test, table.test_examples, world.communicator(),
                                     device.place(), greedy ? GreedyScoring::on : GreedyScoring::off);
  if (!world.is_root()) return;
  if (arguments.form == OutputForm::json) {
    nlohmann::json json = to_json(score);
    json["checkpoint"] = loaded.checkpoint.string();
    json["step"] = loaded.step;
    json["device"] = device.description();
    json["task"] = table.type->name;
    json["task_digest"] = task_digest(*table.type, table.options, seed);
    json["examples"] = table.test_examples;
    json["seed"] = seed;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{} on the test split of {}: {} examples, loss {:.4f}; in brackets 95 % intervals; {}\n",
             loaded.checkpoint.string(), table.type->name, table.test_examples, score.loss, device.description());
  print_scores(score);
  if (const std::size_t all = task->buckets().size(); all > score.buckets.size()) {
    fmt::print("  {} of {} buckets got no example: set test_examples to {} or more\n", all - score.buckets.size(), all,
               all);
  }
}

}  // namespace weft
