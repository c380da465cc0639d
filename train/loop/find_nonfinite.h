// Where the first number that is not finite comes from.
#pragma once

#include <string>
#include <vector>

#include "autograd/place.h"
#include "modules/language_model.h"
#include "train/loop/batch.h"

namespace weft {

// Lines that name parameters with values that are not finite, and the first operation of a forward and backward pass
// over the batches that makes such a number from finite ones. Empty if there is none. Adds to the gradients.
std::vector<std::string> find_nonfinite(LanguageModel& model, const std::vector<Batch>& batches, const Place& place,
                                        double denominator, double z_loss);

}  // namespace weft
