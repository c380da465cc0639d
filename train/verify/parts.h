// The parts of a recipe's model, each as a specimen: every distinct mixer table of the pattern, the feed-forward
// network, the norms, and the head with its loss.
#pragma once

#include "autograd/distance.h"
#include "train/recipe/recipe.h"
#include "train/verify/specimen.h"

namespace weft {

struct ModelPart {
  std::string name;  // "mixer.kda", "feed-forward", "norm", "head and loss"
  SpecimenDeclaration declare;
  Tolerance bf16;                                           // its row of the table of tolerances
  std::vector<std::string> input_names, output_names;       // inputs are [T, width]
  bool loss = false;                                        // the first output is a loss, which takes a seed of 1
  bool documents = true;                                    // it takes rows of several
  std::function<double(std::int64_t, std::int64_t)> flops;  // of both directions, for T tokens in documents of length L
};

std::vector<ModelPart> parts_of(const Recipe& recipe, std::int64_t vocabulary);

}  // namespace weft
