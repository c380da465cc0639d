#include "data/synthetic/task_stream.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "data/storage/json.h"
#include "data/storage/sha256.h"

namespace weft {
namespace {

constexpr std::int64_t kStateVersion = 1;
constexpr std::int64_t kMostTokens = 1'000'000'000'000'000;  // of a run; a state beyond is damaged

class TaskStream final : public RowStream {
 public:
  TaskStream(std::shared_ptr<const Task> task, TaskStreamOptions options)
      : task_(std::move(task)), options_(std::move(options)) {
    if (options_.rows_per_step < 1) config_error("rows per step: {} is not positive", options_.rows_per_step);
    check_skipped_steps(options_.skip_steps);
  }

  std::int64_t rows_per_step() const override { return options_.rows_per_step; }

  std::optional<StepPlan> next() override {
    while (contains(options_.skip_steps, step_)) ++step_;
    StepPlan plan{.step = step_++, .rows = {}, .order_digest = {}};
    const std::int64_t first = plan.step * options_.rows_per_step;
    for (std::int64_t r = 0; r < options_.rows_per_step; ++r) plan.rows.push_back({.index = first + r});
    const std::string text = fmt::format("{} {} {}", plan.step, options_.rows_per_step, options_.digest);
    plan.order_digest = hex(sha256(text)).substr(0, 16);
    return plan;
  }

  Row build(const RowRef& row) const override { return task_->build(Split::train, row.index).row; }
  std::int64_t tokens_drawn() const override { return step_ * options_.rows_per_step * task_->row_length(); }
  std::string describe() const override {
    return fmt::format("the task {}: rows of {}, made up as they are needed", options_.name, task_->row_length());
  }

  std::string state() const override {
    return canonical(nlohmann::json{{"digest", options_.digest},
                                    {"rows_per_step", options_.rows_per_step},
                                    {"step", step_},
                                    {"task", options_.name},
                                    {"version", kStateVersion}});
  }

  // Another task is another run: there is nothing that could begin anew.
  std::vector<std::string> restore(std::string_view text, bool) override {
    constexpr std::string_view kSource = "task state";
    const nlohmann::json object = parse_strict(text, kSource);
    require_unchanged("the task state's version", require_int(object, "version", kSource), kStateVersion);
    require_unchanged("the task", require_string(object, "task", kSource), options_.name);
    require_unchanged("the task's digest", require_string(object, "digest", kSource), options_.digest);
    require_unchanged("the number of rows a step", require_int(object, "rows_per_step", kSource),
                      options_.rows_per_step);
    step_ = require_int(object, "step", kSource, 0, kMostTokens / options_.rows_per_step / task_->row_length());
    return {};
  }

 private:
  std::shared_ptr<const Task> task_;
  TaskStreamOptions options_;
  std::int64_t step_ = 0;
};

}  // namespace

std::unique_ptr<RowStream> make_task_stream(std::shared_ptr<const Task> task, TaskStreamOptions options) {
  return std::make_unique<TaskStream>(std::move(task), std::move(options));
}

}  // namespace weft
