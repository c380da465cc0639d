#include <nlohmann/json.hpp>

#include "data/bigram.h"
#include "train/evaluate/evaluate.h"
#include "train/evaluate/requests.h"
#include "train/hub/hub_model_of.h"
#include "train/loop/run_folder.h"
#include "train/verbs/inference_device.h"
#include "train/verbs/task_eval.h"

namespace weft {
namespace {

void print_result(const EvalArguments& arguments, const LoadedModel& loaded, const Dataset& dataset,
                  std::int64_t row_length, const EvaluationResult& result, const std::string& device) {
  std::optional<BigramEntropy> bigram;
  if (arguments.bigram) bigram = bigram_entropy(Dataset(source_options(loaded.recipe).front().path), dataset);
  if (arguments.form == OutputForm::json) {
    nlohmann::json json = {{"checkpoint", loaded.checkpoint.string()},
                           {"step", loaded.step},
                           {"data", dataset.folder()},
                           {"device", device},
                           {"sequence_length", row_length},
                           {"loss", result.loss},
                           {"perplexity", result.perplexity},
                           {"bits_per_byte", result.bits_per_byte},
                           {"labels", result.labels}};
    if (bigram) json["bigram"] = {{"loss", bigram->nats_per_token}, {"bits_per_byte", bigram->bits_per_byte}};
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{} on {}: {} labels in rows of {}; {}\n", loaded.checkpoint.string(), dataset.folder(), result.labels,
             row_length, device);
  fmt::print("  model   loss {:.4f}  perplexity {:.2f}  bits per byte {:.3f}\n", result.loss, result.perplexity,
             result.bits_per_byte);
  if (bigram) {
    fmt::print("  bigram  loss {:.4f}  perplexity {:.2f}  bits per byte {:.3f}\n", bigram->nats_per_token,
               std::exp(bigram->nats_per_token), bigram->bits_per_byte);
  }
}

// One line of JSON for each request, in their order.
void run_requests(World& world, const EvalArguments& arguments) {
  if (world.is_root()) {
    const std::vector<ScoreRequest> requests = read_requests(arguments.requests);
    InferenceDevice device(arguments.device, world);
    LoadedModel loaded = load_text_model(arguments.path, device.place_of());
    device.open_arena(*loaded.model, 0, 0);
    fmt::print(stderr, "[{}]\n", device.description());
    score_requests(*loaded.model, device.place(), *loaded.tokenizer, requests, hub_model_of(loaded).max_positions,
                   [](const ContinuationScore& score) {
                     fmt::print("{}\n", nlohmann::json{{"loglikelihood", score.log_likelihood},
                                                       {"is_greedy", score.is_greedy},
                                                       {"tokens", score.tokens}}
                                            .dump());
                   });
  }
  world.communicator().barrier().wait();
}

void run_on_dataset(World& world, const EvalArguments& arguments) {
  InferenceDevice device(arguments.device, world);
  LoadedModel loaded = load_text_model(arguments.path, device.place_of());
  device.open_arena(*loaded.model, 0, 0);
  if (arguments.bigram && loaded.recipe.task) {
    config_error("{}: --bigram counts the training data, but the model was trained on the task {}; leave it out",
                 arguments.path, loaded.recipe.task->type->name);
  }
  const std::string folder = arguments.data.empty() ? loaded.recipe.data.validation : arguments.data;
  if (folder.empty()) {
    config_error("{}: the recipe names no data.validation; say what to score with --data DATASET{}", arguments.path,
                 loaded.recipe.task ? ", or its task with --task" : "");
  }
  const auto dataset = std::make_shared<const Dataset>(folder);
  if (const TokenizerIdentity own = identity_of(*loaded.tokenizer), other = dataset->tokenizer_identity();
      own.fingerprint != other.fingerprint) {
    config_error("{}: prepared with the tokenizer {}, but the model was trained with {}", folder, shown(other),
                 shown(own));
  }
  RowOptions rows = row_options(loaded.recipe);
  if (arguments.sequence_length > 0) rows.length = arguments.sequence_length;
  const std::unique_ptr<RowSource> source = make_evaluation_source(dataset, rows);
  EvaluationOptions options;
  if (arguments.tokens > 0) options.max_rows = std::max<std::int64_t>(1, arguments.tokens / rows.length);
  const EvaluationResult result =
      evaluate(*loaded.model, *source, *loaded.tokenizer, world.communicator(), device.place(), options);
  if (world.is_root()) print_result(arguments, loaded, *dataset, rows.length, result, device.description());
  world.communicator().barrier().wait();  // leaving has a short deadline, and rank 0 may count bigrams for longer
}

}  // namespace

void run_eval(World& world, const EvalArguments& arguments) {
  if (arguments.task) {
    within_gpu_memory("Use --device cpu, or end what else is on the GPU", [&] { run_task_eval(world, arguments); });
  } else if (!arguments.requests.empty()) {
    within_gpu_memory("Use --device cpu, shorter requests, or end what else is on the GPU",
                      [&] { run_requests(world, arguments); });
  } else {
    within_gpu_memory("Use a shorter --sequence-length, --device cpu, or end what else is on the GPU",
                      [&] { run_on_dataset(world, arguments); });
  }
}

}  // namespace weft
