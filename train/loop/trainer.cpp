#include "train/loop/trainer.h"

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "checkpoints/resume.h"
#include "checkpoints/writer.h"
#include "data/storage/crc32c.h"
#include "data/storage/json.h"
#include "data/storage/sha256.h"
#include "train/loop/batch.h"
#include "train/loop/find_nonfinite.h"
#include "train/loop/initial_parameters.h"
#include "train/loop/run_folder.h"
#include "train/optimizers/gradient_norm.h"
#include "train/plan/plan.h"
#include "train/report/report.h"

namespace weft {
namespace {

constexpr int kMostFailedSaves = 3;
constexpr auto kRetrySaveAfter = std::chrono::minutes(10);
constexpr std::int64_t kReplicaCheckEvery = 200;

Digest to_digest(const Sha256::Digest& bytes) {
  Digest digest;
  std::memcpy(digest.data(), bytes.data(), digest.size());
  return digest;
}

ResumeRequest::Verify verification(const Recipe& recipe) {
  switch (recipe.checkpoint.verify_on_load) {
    case VerifyOnLoad::full:
      return ResumeRequest::Verify::files;
    case VerifyOnLoad::none:
      return ResumeRequest::Verify::nothing;
    case VerifyOnLoad::crc:
      break;
  }
  return ResumeRequest::Verify::blocks;
}

Recipe agreed(const World& world, Recipe recipe) {
  agree_digest(world.communicator(), "recipe", to_digest(sha256(resolved_recipe(recipe))));
  return recipe;
}

// All ranks must read the same data, too.
std::unique_ptr<RunData> agreed_data(const World& world, const Recipe& recipe) {
  std::unique_ptr<RunData> data = open_run_data(recipe);
  std::string digests;
  for (const std::string& digest : data->digests()) digests += digest;
  agree_digest(world.communicator(), "data", to_digest(sha256(digests + data->validation_digest())));
  return data;
}

}  // namespace

Trainer::Trainer(World& world, Recipe recipe, const ResumeChoice& resume)
    : world_(world),
      recipe_(agreed(world, std::move(recipe))),
      folder_(run_folder(recipe_)),
      mesh_(world.shared_communicator(),
            resolve_mesh({.pp = 1, .dp = 0, .cp = static_cast<int>(recipe_.parallel.cp), .tp = 1}, world.size())),
      log_(world.is_root() ? RunLog::Voice::speaks : RunLog::Voice::silent),
      compute_(recipe_.run, world),
      data_(agreed_data(world, recipe_)),
      model_(language_model_config(recipe_, data_->vocabulary())),
      schedule_(schedule_of(recipe_)),
      policy_(recipe_.optimizer.on_nonfinite, recipe_.optimizer.max_consecutive_bad) {
  if (world_.is_root()) {
    create_run_folder(folder_);
    lock_.emplace(folder_, [this](const std::string& line) { log_.warn(line); });
    log_.open_file((folder_ / "log.txt").string());
  }
  const Place& place = compute_.place();
  within_memory("the start", [&] {
    model_.initialise(static_cast<std::uint64_t>(recipe_.run.seed), place);
    const OptimizerOptions optimizer = optimizer_options(recipe_);
    std::int64_t state_bytes = 0;
    for (const ParameterPlan& plan : plan_parameters(model_.parameters().all(), optimizer)) {
      state_bytes += plan.state_bytes;
    }
    compute_.open_arena(static_cast<std::size_t>(state_bytes));
    optimizer_.emplace(model_.parameters().all(), optimizer,
                       OptimizerPlace{.stream = place.stream, .memory = place.lasting, .scratch = place.arena});
  });
  reducer_.emplace(mesh_.dpcp(), model_.parameters().all());
  within_memory("the start", [&] { resume_from(resume); });
  open_loader();
  const std::string not_recordable = model_.not_recordable();
  if (!place.on_cpu() && recipe_.run.cuda_graphs && !not_recordable.empty()) {
    log_.info("steps are launched kernel by kernel, not replayed as graphs: " + not_recordable);
  }
  within_memory("the start", [&] {
    engine_.emplace(model_, place,
                    StepEngineOptions{.z_loss = recipe_.model.z_loss,
                                      .graphs = recipe_.run.cuda_graphs && not_recordable.empty(),
                                      .micro_batches = accumulation_});
    matrix_rate_ = compute_.measure_matrix_rate();
  });
  describe_start();
  start_metrics();
}

TrainingParts Trainer::parts() {
  return {compute_.place(), model_, *optimizer_, guard_, policy_, progress_};
}

TokenizerIdentity Trainer::data_tokenizer() const {
  const std::shared_ptr<const Tokenizer>& tokenizer = data_->tokenizer().tokenizer;
  return tokenizer ? identity_of(*tokenizer) : TokenizerIdentity{};
}

bool Trainer::due(std::int64_t every) const {
  return every > 0 && progress_.step % every == 0;
}

// --- start -----------------------------------------------------------------------------------------------------------

void Trainer::open_loader() {
  loader_.reset();
  std::unique_ptr<RowStream> stream = data_->open_stream(progress_.data_skips);
  if (!progress_.sampler.empty()) {
    for (const std::string& message : stream->restore(progress_.sampler)) log_.warn(message);
  }
  const std::int64_t dp = mesh_.shape().dp;
  const std::int64_t rows = recipe_.data.rows_per_step();
  if (rows % dp != 0) {
    config_error(
        "data.batch_tokens makes {} rows a step, which {} ranks cannot share evenly; choose a multiple of {} rows",
        rows, dp, dp);
  }
  const std::int64_t rows_here = rows / dp;
  const std::int64_t together = std::min(rows_here, rows_per_micro_batch(recipe_));
  if (rows_here % together != 0) {
    config_error(
        "parallel.micro_batch_tokens makes micro-batches of {} rows, which do not divide the {} rows a step of "
        "each rank",
        together, rows_here);
  }
  accumulation_ = rows_here / together;
  loader_ = std::make_unique<Loader>(std::move(stream),
                                     LoaderOptions{.dp_rank = mesh_.at().dp,
                                                   .dp_size = dp,
                                                   .accumulation = accumulation_,
                                                   .prefetch_steps = static_cast<int>(recipe_.data.prefetch_steps)});
}

void Trainer::load(const CheckpointReader& reader) {
  const Recipe before = parse_recipe(recipe_of(reader), (reader.directory() / "manifest.json").string());
  std::string incompatible;
  for (const RecipeChange& change : recipe_changes(before, recipe_, reader.step())) {
    const std::string line = fmt::format("{}: {} -> {}", change.key, change.before, change.after);
    if (change.effect == Effect::incompatible) incompatible += "\n  " + line;
    if (change.effect == Effect::run) {
      log_.warn("the recipe changed, so from step " + std::to_string(reader.step()) + " on this is a branch: " + line);
    }
  }
  if (!incompatible.empty()) {
    config_error(
        "{}: the run in this folder has another model or data order; choose another run.name, or change these back:{}",
        folder_.string(), incompatible);
  }
  check_same_tokenizer(reader, data_tokenizer(), "the data");
  load_training_state(reader, parts());
  take_validation_of(reader);
  origin_ = origin_of(reader);
}

// The row of a validation is written before the checkpoint of its step, so it is there already: not again.
void Trainer::take_validation_of(const CheckpointReader& reader) {
  validated_step_ = -1;
  last_validation_.reset();
  const auto& metrics = reader.manifest().metrics;
  if (const auto loss = metrics.find("val_loss"); loss != metrics.end()) {
    validated_step_ = reader.step();
    last_validation_ = loss->second;
  }
}

void Trainer::resume_from(const ResumeChoice& choice) {
  ResumeRequest request;
  request.verify = verification(recipe_);
  if (choice.text == "never") {
    request.mode = ResumeRequest::Mode::never;
  } else if (choice.text != "auto") {
    request.mode = ResumeRequest::Mode::exactly;
    request.checkpoint = choice.text;
  }
  CommunicatorGroup group(world_.communicator());
  if (world_.is_root()) clean_debris(folder_);
  if (request.mode == ResumeRequest::Mode::never && !list_checkpoints(folder_).empty()) {
    config_error("{} already holds checkpoints; to start anew choose another run.name or remove the folder",
                 folder_.string());
  }
  const auto loaded = choose_checkpoint(
      folder_, request, group, [this](const CheckpointReader& reader) { load(reader); },
      [this](const std::string& line) { log_.warn(line); });
  if (loaded) {
    if (const auto checkpoints = list_checkpoints(folder_); !checkpoints.empty() &&
                                                            checkpoints.front().step > loaded->step &&
                                                            request.mode == ResumeRequest::Mode::exactly) {
      config_error(
          "{} holds a later checkpoint, of step {}, from which the run goes on; to branch off at step {} choose "
          "another run.name",
          folder_.string(), checkpoints.front().step, loaded->step);
    }
    saved_step_ = loaded->step;
    log_.info(fmt::format("resumed from {} (step {}, {} tokens)", loaded->directory.string(), progress_.step,
                          short_count(static_cast<double>(progress_.tokens))));
  } else if (!recipe_.model.init_from.empty()) {
    origin_ = load_initial_parameters(recipe_.model.init_from, model_, data_tokenizer(), compute_.place().stream);
    log_.info("the parameters are those of " + recipe_.model.init_from);
  }
}

void Trainer::describe_start() {
  std::string pattern;
  for (const std::string& name : recipe_.model.pattern) pattern += (pattern.empty() ? "" : " ") + name;
  const double parameters = static_cast<double>(model_.parameters().element_count());
  const std::string matrix_rate = matrix_rate_ < 1e12 ? fmt::format("{:.0f} GFLOP/s", matrix_rate_ / 1e9)
                                                      : fmt::format("{:.0f} TFLOP/s", matrix_rate_ / 1e12);
  log_.info(fmt::format(
      "{}: {} parameters, {} layers of width {} ({}), {} tokens a step on {} rank{}{} ({}, "
      "{} matrix rate each)",
      recipe_.run.name, short_count(parameters), recipe_.model.layers, recipe_.model.width, pattern,
      recipe_.data.batch_tokens, world_.size(), world_.size() == 1 ? "" : "s",
      world_.communicator().backend() == Backend::mpi ? " under MPI" : "", compute_.description(), matrix_rate));
}

void Trainer::start_metrics() {
  if (!world_.is_root()) return;
  const std::filesystem::path path = folder_ / "metrics.jsonl";
  write_run_recipe(folder_, recipe_);
  metrics_.emplace(path.string(), progress_.step);
  if (progress_.step > 0) return;
  nlohmann::json run = {{"name", recipe_.run.name}};
  if (const std::optional<LossReference> simple = data_->reference()) {
    run["references"] = {{simple->name, simple->loss}};
    log_.info(fmt::format("a {} of the same text has a validation loss of {:.4f} ({:.3f} bits per byte)", simple->name,
                          simple->loss, simple->bits_per_byte));
  }
  metrics_->append(nlohmann::json{{"run", run}}.dump());
}

// --- one step --------------------------------------------------------------------------------------------------------

double Trainer::loss_denominator(const LoadedStep& loaded) {
  double weight = 0.0;
  for (const auto& rows : loaded.micro_batches) {
    for (const Row& row : rows) {
      if (row.cut_tokens > 0 && !warned_of_cuts_) {
        log_.warn(
            fmt::format("step {}: a row holds more documents than data.max_docs allows, so its last {} tokens are left "
                        "out; raise it "
                        "to train on them (said once)",
                        progress_.step + 1, row.cut_tokens));
        warned_of_cuts_ = true;
      }
      for (std::size_t t = 0; t < row.labels.size(); ++t) {
        if (row.labels[t] != kIgnoredLabel) weight += row.weight.empty() ? 1.0 : row.weight[t];
      }
    }
  }
  return all_reduce(mesh_.dp(), std::span<const double>(&weight, 1), ReduceOp::sum)[0];
}

double Trainer::flops_of(std::int64_t length) {
  const auto [it, inserted] = flops_of_length_.try_emplace(length, 0.0);
  if (inserted) it->second = model_.cost(length, length).total();
  return it->second;
}

void Trainer::accumulate_gradients(const LoadedStep& loaded, double denominator) {
  engine_->begin(denominator);
  step_flops_ = 0.0;
  for (std::size_t a = 0; a < loaded.micro_batches.size(); ++a) {
    clock_.enter(Phase::data);
    const Batch batch = make_batch(loaded.micro_batches[a]);
    for (std::int64_t n = 0; n < batch.documents->count(); ++n) {
      const std::int64_t length = batch.documents->length(n);
      if (length > 0) step_flops_ += flops_of(length);
    }
    const bool last = a + 1 == loaded.micro_batches.size();
    engine_->accumulate(batch, clock_, [this, last](Parameter& parameter) {
      if (last) reducer_->mark_ready(parameter);
    });
  }
}

Trainer::AfterStep Trainer::train_step(const LoadedStep& loaded) {
  const double denominator = loss_denominator(loaded);
  StepNumbers numbers;
  if (denominator > 0.0) {
    const SpikeGuard::Limits limits = spike_guard_on(recipe_) ? guard_.limits(progress_.step) : SpikeGuard::Limits{};
    optimizer_->prepare({.schedule_factor = schedule_.factor(progress_.step),
                         .clip = recipe_.optimizer.clip,
                         .most_loss = limits.loss,
                         .most_norm = limits.norm});
    accumulate_gradients(loaded, denominator);
    clock_.enter(Phase::reduce);
    reducer_->finish();
    const Tensor mean_loss = engine_->mean_loss(mesh_.dp());
    clock_.enter(Phase::optimizer);
    optimizer_->step(mean_loss);
    const StepOutcome outcome = optimizer_->finish();  // the device has done all by then
    const LossSums local = engine_->sums();
    const std::array<double, 2> sums{local.loss, local.log_z_squared};
    const std::vector<double> total = all_reduce(mesh_.dp(), sums, ReduceOp::sum);
    numbers.loss = total[0] / denominator;
    numbers.z_loss = recipe_.model.z_loss * total[1] / denominator;
    numbers.norm = outcome.norm;
    const StepAction action = judge(numbers, loaded, denominator);
    WEFT_CHECK(outcome.applied == (action == StepAction::update), "step {}: an update was {} that should {} have been",
               progress_.step + 1, outcome.applied ? "made" : "left out", outcome.applied ? "not" : "rather");
    if (action == StepAction::rollback) return AfterStep::roll_back;
    numbers.skipped = action != StepAction::update;
  } else {
    log_.warn(fmt::format("step {}: its rows hold no label; nothing to learn from", progress_.step + 1));
    numbers.skipped = true;
  }
  if (!memory_told_) tell_memory();
  progress_.step += 1;
  progress_.tokens += recipe_.data.batch_tokens;
  progress_.data_step = loaded.step;
  progress_.sampler = loaded.stream_state;
  clock_.enter(Phase::other);
  log_step(numbers, loaded);
  return AfterStep::go_on;
}

StepAction Trainer::judge(const StepNumbers& numbers, const LoadedStep& loaded, double denominator) {
  const bool finite = std::isfinite(numbers.norm) && std::isfinite(numbers.loss);
  const StepAction action = policy_.decide(finite);
  if (!finite) {
    report_nonfinite(numbers, loaded, denominator);
    if (!std::isfinite(numbers.norm)) {
      const GradientNorm norm{.norm = numbers.norm, .squares = optimizer_->gradient_squares()};
      log_.warn("  not finite: the gradients of " + nonfinite_parameters(optimizer_->trainable(), norm));
    }
    if (action == StepAction::stop) {
      fail(ExitCode::nonfinite,
           "step {}: loss {} and gradient norm {} after {} bad steps in a row; the last checkpoint is kept. Lower "
           "optimizer.learning_rate, or see the lines above for the layer and tensor",
           progress_.step + 1, numbers.loss, numbers.norm, policy_.state().consecutive_bad);
    }
    return action;
  }
  if (!spike_guard_on(recipe_)) return action;
  const SpikeGuard::Verdict verdict = guard_.judge(progress_.step, numbers.loss, numbers.norm);
  if (verdict.disabled_now) log_.warn("too many loss spikes: they are a real change, so none is skipped any more");
  if (!verdict.skip) return action;
  log_.warn(fmt::format("step {}: skipped as a spike: loss {:.4f} ({:+.1f} deviations), gradient norm {:.3g} ({:+.1f})",
                        progress_.step + 1, numbers.loss, verdict.loss_z, numbers.norm, verdict.norm_z));
  return StepAction::skip;
}

// Each rank looks where the first number that is not finite comes from in its rows; rank 0 tells.
void Trainer::report_nonfinite(const StepNumbers& numbers, const LoadedStep& loaded, double denominator) {
  std::vector<Batch> batches;
  for (const auto& rows : loaded.micro_batches) batches.push_back(make_batch(rows));
  std::string found;
  for (const std::string& line : find_nonfinite(model_, batches, compute_.place(), denominator, recipe_.model.z_loss)) {
    found += (found.empty() ? "" : "\n") + line;
  }
  model_.parameters().zero_gradients(compute_.place().stream);
  const std::vector<std::string> all = gather_strings(world_.communicator(), found, 0);
  log_.warn(
      fmt::format("step {} is not finite: loss {}, gradient norm {}", progress_.step + 1, numbers.loss, numbers.norm));
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    std::istringstream lines(all[rank]);
    for (std::string line; std::getline(lines, line);) log_.warn(fmt::format("  rank {}: {}", rank, line));
  }
}

void Trainer::log_step(const StepNumbers& numbers, const LoadedStep& loaded) {
  StepRow row;
  row.phases = clock_.take();
  for (std::size_t i = 0; i < kPhaseNames.size(); ++i) {
    const auto phase = static_cast<Phase>(i);
    // Those come between steps and would make this one look slow.
    if (phase != Phase::validation && phase != Phase::checkpoint) row.seconds += row.phases[i];
  }
  const double flops_share = row.seconds > 0.0 ? step_flops_ / row.seconds / matrix_rate_ : 0.0;
  seconds_per_step_ = seconds_per_step_ == 0.0 ? row.seconds : 0.95 * seconds_per_step_ + 0.05 * row.seconds;
  // What all ranks trained on, however the rows were dealt to them; the sum wraps.
  const auto content = static_cast<std::int64_t>(loaded.content_digest);
  const auto digest = all_reduce(mesh_.dp(), std::span<const std::int64_t>(&content, 1), ReduceOp::sum)[0];
  if (!metrics_) return;
  row.step = progress_.step;
  row.loss = numbers.loss;
  row.z_loss = numbers.z_loss;
  row.lr = recipe_.optimizer.learning_rate * schedule_.factor(progress_.step - 1);
  row.grad_norm = numbers.norm;
  row.tokens = progress_.tokens;
  row.skipped = numbers.skipped;
  row.digest = fmt::format("{:016x}", static_cast<std::uint64_t>(digest));
  row.tokens_per_second = static_cast<double>(recipe_.data.batch_tokens) / row.seconds;
  row.flops_share = flops_share;
  if (due(recipe_.log.every) || finished()) metrics_->append(to_json(row));
  const double left = static_cast<double>(recipe_.run.steps - progress_.step) * seconds_per_step_;
  log_.progress(fmt::format("step {}/{}  loss {:.4f}  lr {:.2e}  norm {:.2f}  {} tok/s  MFU {:.0f} %  {} left",
                            row.step, recipe_.run.steps, row.loss, row.lr, row.grad_norm,
                            short_count(row.tokens_per_second), 100.0 * flops_share, short_duration(left)),
                finished() || progress_.step == 1);
}

void Trainer::tell_memory() {
  memory_told_ = true;
  const Place& place = compute_.place();
  if (place.on_cpu()) return;
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  log_.info(
      fmt::format("GPU memory: {:.2f} GiB for parameters, gradients and optimizer states, {:.2f} GiB at a step's peak",
                  static_cast<double>(place.lasting->stats().peak_bytes) / kGiB,
                  static_cast<double>(place.arena->stats().extent_bytes) / kGiB));
}

void Trainer::within_memory(const std::string& where, const std::function<void()>& work) {
  try {
    work();
  } catch (const OutOfGpuMemory& error) {
    config_error("{}: the GPU's memory does not suffice: {}. {}", where, error.what(),
                 memory_advice(plan_recipe(recipe_, data_->vocabulary()), recipe_));
  }
}

// --- between steps ---------------------------------------------------------------------------------------------------

void Trainer::roll_back(std::int64_t bad_data_step) {
  CommunicatorGroup group(world_.communicator());
  std::vector<std::pair<std::int64_t, std::int64_t>> skips = progress_.data_skips;
  const NonfinitePolicy::State policy = policy_.state();
  ResumeRequest request;
  request.verify = verification(recipe_);
  const auto loaded = choose_checkpoint(
      folder_, request, group,
      [this](const CheckpointReader& reader) {
        load_training_state(reader, parts());
        take_validation_of(reader);
      },
      [this](const std::string& line) { log_.warn(line); });
  if (!loaded) {
    fail(ExitCode::nonfinite, "step {}: not finite, and there is no checkpoint to roll back to", progress_.step + 1);
  }
  policy_.restore(policy);
  skips.emplace_back(progress_.data_step + 1, bad_data_step);
  progress_.data_skips = skips;
  log_.warn(fmt::format("rolled back to step {}; data steps {} to {} are left out", progress_.step, skips.back().first,
                        skips.back().second));
  model_.parameters().zero_gradients(compute_.place().stream);
  saved_step_ = loaded->step;
  if (metrics_) metrics_.emplace((folder_ / "metrics.jsonl").string(), progress_.step);
  open_loader();
}

void Trainer::validate() {
  if (validated_step_ == progress_.step) return;
  clock_.enter(Phase::validation);
  if (const std::optional<ValidationResult> result = data_->validate(model_, world_.communicator(), compute_.place())) {
    validated_step_ = progress_.step;
    last_validation_ = result->loss;
    std::string more;
    if (result->bits_per_byte) more = fmt::format(" ({:.3f} bits per byte)", *result->bits_per_byte);
    if (result->accuracy) more = fmt::format(", accuracy {:.2f} %", 100.0 * *result->accuracy);
    log_.info(fmt::format("step {}: validation loss {:.4f}{}", progress_.step, result->loss, more));
    if (metrics_) metrics_->append(to_json(progress_.step, *result));
  }
  clock_.enter(Phase::other);
}

void Trainer::check_replicas() {
  std::uint32_t crc = 0;
  for (const Parameter* p : model_.parameters().all()) {
    const Tensor host = to_host(p->value, compute_.place().stream);
    crc = crc32c({static_cast<const std::byte*>(host.raw()), host.nbytes()}, crc);
  }
  const auto local = static_cast<std::int64_t>(crc);
  const std::span<const std::int64_t> value(&local, 1);
  if (all_reduce(mesh_.dpcp(), value, ReduceOp::min) != all_reduce(mesh_.dpcp(), value, ReduceOp::max)) {
    fail(
        ExitCode::replica,
        "step {}: the ranks' parameters differ, though they must be equal: a machine computes wrongly or the ranks run "
        "different programs. The last checkpoint is kept",
        progress_.step);
  }
}

void Trainer::save(const char* why) {
  if (saved_step_ == progress_.step) return;
  clock_.enter(Phase::checkpoint);
  check_replicas();
  if (metrics_) metrics_->sync();
  CommunicatorGroup group(world_.communicator());
  Snapshot snapshot = take_snapshot(parts(), world_.rank(), world_.size());
  CheckpointState& state = snapshot.state;
  state.mesh = canonical(nlohmann::json{{"dp", mesh_.shape().dp}, {"cp", mesh_.shape().cp}});
  nlohmann::json provenance = {
      {"recipe", resolved_recipe(recipe_)}, {"recipe_digest", recipe_digest(recipe_)}, {"datasets", data_->digests()}};
  attach_tokenizer(data_->tokenizer(), state, provenance);
  provenance.update(nlohmann::json::parse(origin_));
  state.provenance = canonical(provenance);
  if (validated_step_ == progress_.step && last_validation_ && std::isfinite(*last_validation_)) {
    state.metrics["val_loss"] = *last_validation_;
  }
  SaveOptions options;
  options.retention = {.keep_last = static_cast<int>(recipe_.checkpoint.keep),
                       .keep_every = recipe_.checkpoint.keep_every,
                       .keep_best = recipe_.checkpoint.keep_best ? 1 : 0,
                       .metric = "val_loss"};
  const SaveResult result = save_checkpoint(folder_, state, group, options);
  for (const std::string& note : result.notes) log_.info(note);
  if (result.saved) {
    saved_step_ = progress_.step;
    failed_saves_ = 0;
    log_.info(fmt::format("step {}: saved {} ({}, {}B in {:.2f} s)", progress_.step, result.directory.string(), why,
                          short_count(static_cast<double>(result.bytes)), result.seconds));
  } else {
    ++failed_saves_;
    failed_save_at_ = std::chrono::steady_clock::now();
    log_.warn(
        fmt::format("step {}: the checkpoint was not saved: {}; training goes on ({} of at most {} failures in a "
                    "row)",
                    progress_.step, result.failure, failed_saves_, kMostFailedSaves));
    if (failed_saves_ >= kMostFailedSaves) {
      storage_error("{} checkpoints in a row could not be saved: {}", failed_saves_, result.failure);
    }
  }
  if (metrics_ && metrics_->dropped() > 0) {
    log_.warn(fmt::format("{} rows of metrics.jsonl were lost because the disk was full", metrics_->dropped()));
  }
  clock_.enter(Phase::other);
}

void Trainer::check_saved() const {
  if (saved_step_ == progress_.step) return;
  storage_error(
      "the run ends at step {}, which could not be saved; make room, and the same command goes on from the "
      "newest checkpoint",
      progress_.step);
}

void Trainer::run() {
  clock_.take();
  const char* ending = "the last step";
  while (!finished()) {
    clock_.enter(Phase::data);
    const std::optional<LoadedStep> loaded = loader_->next();
    if (!loaded) {
      ending = "the end of the data";
      break;
    }
    AfterStep after = AfterStep::go_on;
    within_memory(fmt::format("step {}", progress_.step + 1), [&] { after = train_step(*loaded); });
    if (after == AfterStep::roll_back) {
      within_memory("rolling back", [&] { roll_back(loaded->step); });
      continue;
    }
    // One agreement of all ranks a step: what any of them was asked for, all do.
    const bool save_now = signals_.take_save_request() ||
                          (failed_saves_ > 0 && std::chrono::steady_clock::now() - failed_save_at_ >= kRetrySaveAfter);
    const std::array<std::int64_t, 2> asked{signals_.stop_requested() ? 1 : 0, save_now ? 1 : 0};
    const std::vector<std::int64_t> agreed_on = all_reduce(world_.communicator(), asked, ReduceOp::max);
    if (due(recipe_.validation.every)) within_memory("validation", [this] { validate(); });
    if (progress_.step % kReplicaCheckEvery == 0) check_replicas();
    if (finished()) break;  // saved below, after its validation
    if (due(recipe_.checkpoint.every) || agreed_on[1] != 0) save(agreed_on[1] != 0 ? "asked for" : "interval");
    if (agreed_on[0] != 0) {
      save("stop requested");
      check_saved();
      log_.info(fmt::format("stopped after step {}; the same command goes on from here", progress_.step));
      return;
    }
  }
  validate();
  save(ending);
  check_saved();
  if (world_.is_root()) {
    try {
      write_report({folder_.string()}, (folder_ / "report.html").string());
    } catch (const Error& error) {
      log_.warn(fmt::format("no report: {}", error.what()));  // the run itself is saved
    }
  }
  log_.info(fmt::format("done: {} steps, {} tokens; {}", progress_.step,
                        short_count(static_cast<double>(progress_.tokens)), (folder_ / "report.html").string()));
  world_.communicator().barrier().wait();  // leaving has a short deadline, and rank 0 may write for longer than that
}

}  // namespace weft
