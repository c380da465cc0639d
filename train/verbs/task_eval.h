// weft eval --task.
#pragma once

#include "train/verbs/verbs.h"

namespace weft {

// Scores the test split of the task that the arguments name.
void run_task_eval(World& world, const EvalArguments& arguments);

}  // namespace weft
