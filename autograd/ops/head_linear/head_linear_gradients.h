// Both gradients of head_linear.h from one reading of dy and x (sm_90a).
#pragma once

#include "autograd/ops/head_linear/head_linear.h"

namespace weft {

// Whether they can be made so; the launcher then is the one to call.
bool head_linear_gradients_fit(const HeadLinearBackward& args);
std::size_t head_linear_gradients_workspace(const HeadLinearBackward& args);
void head_linear_gradients(const HeadLinearBackward& args, const Launch& launch);

}  // namespace weft
