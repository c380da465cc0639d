// The training loop of one rank.
#pragma once

#include <array>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/run_lock.h"
#include "data/sampler/loader.h"
#include "modules/language_model.h"
#include "parallel/gradient_reducer.h"
#include "parallel/launch.h"
#include "parallel/mesh.h"
#include "train/loop/compute.h"
#include "train/loop/metrics_log.h"
#include "train/loop/phase_clock.h"
#include "train/loop/run_data.h"
#include "train/loop/run_log.h"
#include "train/loop/signals.h"
#include "train/loop/step_engine.h"
#include "train/loop/training_state.h"
#include "train/optimizers/schedule.h"
#include "train/recipe/recipe.h"

namespace weft {

// auto: the newest valid checkpoint of the run, else from the start; never: from the start, refused if the run has
// checkpoints of its own; otherwise the path of a checkpoint.
struct ResumeChoice {
  std::string text = "auto";
};

class Trainer {
 public:
  // Collective. Prepares everything up to the first step: agreement of all ranks on recipe and data, the run's folder
  // and lock, model, optimizer, and the checkpoint to go on from.
  Trainer(World& world, Recipe recipe, const ResumeChoice& resume);

  // Trains until the last step, the end of the data, or a signal; saves; writes the report. Errors end the run; the
  // last checkpoint stays.
  void run();

 private:
  // The numbers of one step, equal on all ranks.
  struct StepNumbers {
    double loss = 0.0;
    double z_loss = 0.0;
    double norm = 0.0;
    bool skipped = false;
  };
  enum class AfterStep : std::uint8_t { go_on, roll_back };

  void open_loader();
  void resume_from(const ResumeChoice& choice);
  void load(const CheckpointReader& reader);
  void take_validation_of(const CheckpointReader& reader);
  void describe_start();
  void start_metrics();

  AfterStep train_step(const LoadedStep& loaded);
  double loss_denominator(const LoadedStep& loaded);
  // Forward and backward of all micro-batches.
  void accumulate_gradients(const LoadedStep& loaded, double denominator);
  // Of forward and backward over one document.
  double flops_of(std::int64_t length);
  StepAction judge(const StepNumbers& numbers, const LoadedStep& loaded, double denominator);
  void report_nonfinite(const StepNumbers& numbers, const LoadedStep& loaded, double denominator);
  void log_step(const StepNumbers& numbers, const LoadedStep& loaded);
  void roll_back(std::int64_t bad_data_step);
  // Calls `work`; if the GPU's memory does not suffice, says in terms of the recipe what takes it.
  void within_memory(const std::string& where, const std::function<void()>& work);
  // After the first step on a GPU.
  void tell_memory();

  void validate();
  void save(const char* why);
  // Error (storage) if the run is about to end with steps that no checkpoint holds.
  void check_saved() const;
  void check_replicas();
  TrainingParts parts();
  TokenizerIdentity data_tokenizer() const;
  bool due(std::int64_t every) const;
  bool finished() const { return progress_.step >= recipe_.run.steps; }

  World& world_;
  Recipe recipe_;
  std::filesystem::path folder_;
  Mesh mesh_;
  RunLog log_;
  std::optional<RunLock> lock_;
  SignalRequests signals_;

  Compute compute_;
  std::unique_ptr<RunData> data_;
  std::unique_ptr<Loader> loader_;
  std::int64_t accumulation_ = 1;

  LanguageModel model_;
  std::optional<Optimizer> optimizer_;
  std::optional<GradientReducer> reducer_;
  LearningRateSchedule schedule_;
  SpikeGuard guard_;
  NonfinitePolicy policy_;
  TrainingProgress progress_;
  std::optional<StepEngine> engine_;

  std::optional<MetricsLog> metrics_;
  PhaseClock clock_;
  double matrix_rate_ = 0.0;  // of this rank's device
  double step_flops_ = 0.0;   // of this rank's rows in the current step
  std::map<std::int64_t, double> flops_of_length_;
  double seconds_per_step_ = 0.0;
  std::optional<double> last_validation_;  // loss at validated_step_
  std::int64_t validated_step_ = -1;
  std::int64_t saved_step_ = -1;
  std::string origin_ = "{}";  // see initial_parameters.h
  bool warned_of_cuts_ = false;
  bool memory_told_ = false;
  int failed_saves_ = 0;  // in a row
  std::chrono::steady_clock::time_point failed_save_at_{};
};

}  // namespace weft
