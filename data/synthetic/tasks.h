// The kinds of tasks, each in a file of its own.
#pragma once

#include "data/synthetic/task.h"

namespace weft {

const TaskType& copy_task();
const TaskType& induction_task();
const TaskType& listops_task();
const TaskType& mqar_task();
const TaskType& passkey_task();
const TaskType& selective_copy_task();
const TaskType& state_tracking_task();

}  // namespace weft
