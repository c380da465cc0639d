// A synthetic task as a source of rows: examples 0, 1, 2, ... of its train split.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/sampler/row_stream.h"
#include "data/synthetic/task.h"

namespace weft {

struct TaskStreamOptions {
  std::string name;                // of the task, for people
  std::string digest;              // task_digest
  std::int64_t rows_per_step = 1;  // R
  SkippedSteps skip_steps;
};

// Step k holds examples k R .. k R + R-1. The stream has no end, and its state is the number of the next step.
std::unique_ptr<RowStream> make_task_stream(std::shared_ptr<const Task> task, TaskStreamOptions options);

}  // namespace weft
