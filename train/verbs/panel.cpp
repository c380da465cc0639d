// weft panel: every recipe of a folder on a few synthetic tasks, as a table.
#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/storage/file.h"
#include "data/storage/json.h"
#include "train/panel/panel_table.h"
#include "train/recipe/recipe.h"
#include "train/verbs/child.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The recipes themselves are for MQAR; the other tasks replace their [task] table, and nothing else.
struct PanelTask {
  const char* name;
  const char* override;
};
constexpr std::array<PanelTask, 3> kTasks = {
    {{"mqar", ""},
     {"parity", "task={name = \"state_tracking\", group = \"parity\", test_length = 160, test_examples = 250}"},
     {"s3", "task={name = \"state_tracking\", group = \"s3\", test_length = 160, test_examples = 250}"}}};

constexpr std::int64_t kShortContext = 64;
constexpr std::int64_t kLongContext = 4096;

const std::vector<std::string> kColumns = {"mixer",       "parameters",      "state at 64",    "state at 4096",
                                           "MQAR % kept", "MQAR % replaced", "parity % to 40", "parity % 81-160",
                                           "S3 % to 40",  "S3 % 81-160",     "core seconds"};

// One recipe on one task.
struct Job {
  std::string mixer;
  fs::path recipe;
  const PanelTask* task;
  std::int64_t steps = 0;
  bool done = false;
  json score = {};       // null: failed
  double seconds = 0.0;  // of processor time, for training
};

class Panel {
 public:
  explicit Panel(const PanelArguments& arguments) : arguments_(arguments) {
    for (const fs::path& recipe : recipes()) {
      for (const PanelTask& task : kTasks) jobs_.push_back({recipe.stem().string(), recipe, &task});
    }
    // What is wrong with recipes or the table should be known before anything is trained.
    for (Job& job : jobs_) job.steps = load_recipe(job.recipe.string(), overrides_of(job)).run.steps;
    updated_table(jobs_);
  }

  // False if a run failed.
  bool run() {
    fs::create_directories(arguments_.out);
    std::vector<std::thread> workers;
    for (std::int64_t i = 0; i < arguments_.jobs; ++i) workers.emplace_back([this] { work(); });
    for (std::thread& worker : workers) worker.join();
    if (write_error_) std::rethrow_exception(write_error_);
    fmt::print("the rows are in {}\n", arguments_.table);
    return std::ranges::none_of(jobs_, [](const Job& job) { return job.score.is_null(); });
  }

 private:
  // Those that were asked for, or all.
  std::vector<fs::path> recipes() const {
    if (!fs::is_directory(arguments_.recipes)) config_error("{} is no folder of recipes", arguments_.recipes);
    std::vector<fs::path> all;
    for (const auto& entry : fs::directory_iterator(arguments_.recipes)) {
      if (entry.path().extension() == ".toml") all.push_back(entry.path());
    }
    std::ranges::sort(all);
    if (arguments_.mixers.empty()) {
      if (all.empty()) config_error("{} holds no recipe", arguments_.recipes);
      return all;
    }
    std::vector<fs::path> chosen;
    for (const std::string& name : arguments_.mixers) {
      const auto found = std::ranges::find(all, name, [](const fs::path& path) { return path.stem().string(); });
      if (found == all.end()) config_error("{}: there is no recipe {}.toml", arguments_.recipes, name);
      if (std::ranges::find(chosen, *found) == chosen.end()) chosen.push_back(*found);
    }
    return chosen;
  }

  std::vector<std::string> overrides_of(const Job& job) const {
    std::vector<std::string> overrides = arguments_.overrides;
    if (*job.task->override != '\0') overrides.emplace_back(job.task->override);
    overrides.push_back("run.out=" + arguments_.out);
    overrides.push_back("run.name=" + run_name(job));
    return overrides;
  }

  static std::string run_name(const Job& job) { return job.mixer + "-" + job.task->name; }

  void work() {
    for (std::size_t i = next_++; i < jobs_.size(); i = next_++) {
      std::string failure;
      try {
        failure = train_and_score(jobs_[i]);
      } catch (const std::exception& error) {
        failure = error.what();
      }
      const std::lock_guard lock(mutex_);
      finish(jobs_[i], failure);
      // A row is written as soon as it is complete, so that a panel that is stopped has not run for nothing.
      const auto row = std::span(jobs_).subspan(i / kTasks.size() * kTasks.size(), kTasks.size());
      if (!std::ranges::all_of(row, &Job::done)) continue;
      try {
        write_file_atomically(arguments_.table, updated_table(row));
      } catch (const Error&) {
        write_error_ = std::current_exception();
      }
    }
  }

  static void finish(Job& job, const std::string& failure) {
    job.done = true;
    if (failure.empty()) {
      fmt::print("{:24} {:6.2f} % right, trained in {:.0f} core seconds\n", run_name(job),
                 100.0 * job.score.at("accuracy").at("value").get<double>(), job.seconds);
      std::fflush(stdout);
    } else {
      job.score = {};
      fmt::print(stderr, "{}: failed: {}\n", run_name(job), failure);
    }
  }

  // What went wrong, or nothing.
  std::string train_and_score(Job& job) const {
    const fs::path run = fs::path(arguments_.out) / run_name(job);
    const auto file = [&](const char* ending) { return fs::path(run.string() + ending); };
    fs::remove_all(run);  // a result must be of the program as it is now
    std::vector<std::string> train = {"train", job.recipe.string()};
    for (const std::string& text : overrides_of(job)) train.insert(train.end(), {"--set", text});
    const ChildResult trained = run_self(train, file(".out"), file(".err"));
    if (trained.status != 0) {
      return fmt::format("training ended with status {}; see {}", trained.status, file(".err").string());
    }
    job.seconds = trained.cpu_seconds;
    const ChildResult scored = run_self({"eval", run.string(), "--task", "--json"}, file(".json"), file(".err"));
    if (scored.status != 0) {
      return fmt::format("scoring ended with status {}; see {}", scored.status, file(".err").string());
    }
    job.score = read_json_file(file(".json").string());
    // A run that was asked to stop ends well, too.
    if (const std::int64_t step = require_int(job.score, "step", file(".json").string()); step != job.steps) {
      return fmt::format("training was stopped at step {} of {}", step, job.steps);
    }
    return {};
  }

  // Accuracy in a bucket, the last one with a negative number.
  static std::string percent(const json& score, int bucket) {
    if (score.is_null()) return "failed";
    const json& buckets = score.at("buckets");
    const json& chosen = bucket < 0 ? buckets.back() : buckets.at(static_cast<std::size_t>(bucket));
    return fmt::format("{:.1f}", 100.0 * chosen.at("accuracy").at("value").get<double>());
  }

  static std::string bytes(double count) {
    return count < 1 << 20 ? fmt::format("{:.1f} KiB", count / (1 << 10))
                           : fmt::format("{:.1f} MiB", count / (1 << 20));
  }

  PanelRow row_of(std::span<const Job> jobs) const {
    const Job& first = jobs.front();
    const Recipe recipe = load_recipe(first.recipe.string(), overrides_of(first));
    const std::int64_t vocabulary = make_task(*recipe.task, data_seed(recipe))->vocabulary();
    LanguageModel model(language_model_config(recipe, vocabulary));
    const Mixer& mixer = model.block(recipe.model.layers - 1).mixer();  // the layers before it are the same for all
    double seconds = 0.0;
    for (const Job& job : jobs) seconds += job.seconds;
    return {first.mixer,
            {fmt::format("{}", model.parameters().element_count()), bytes(mixer.state_bytes(kShortContext)),
             bytes(mixer.state_bytes(kLongContext)), percent(jobs[0].score, 0), percent(jobs[0].score, -1),
             percent(jobs[1].score, 0), percent(jobs[1].score, -1), percent(jobs[2].score, 0),
             percent(jobs[2].score, -1), fmt::format("{:.0f}", seconds)}};
  }

  // The table's file with the rows of these jobs.
  std::string updated_table(std::span<const Job> jobs) const {
    std::vector<PanelRow> rows;
    for (std::size_t i = 0; i < jobs.size(); i += kTasks.size()) rows.push_back(row_of(jobs.subspan(i, kTasks.size())));
    constexpr std::uint64_t kMostBytes = 1 << 20;
    return update_panel_table(read_small_file(arguments_.table, kMostBytes), arguments_.table, kColumns, rows);
  }

  PanelArguments arguments_;
  std::vector<Job> jobs_;  // those of one recipe together, in the order of kTasks
  std::atomic<std::size_t> next_ = 0;
  std::mutex mutex_;  // of what is done, the output and the table
  std::exception_ptr write_error_;
};

}  // namespace

bool run_panel(const PanelArguments& arguments) {
  return Panel(arguments).run();
}

}  // namespace weft
