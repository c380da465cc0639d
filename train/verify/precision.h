// How near a part of a model comes, on some device in some type, to the same part in fp64 on the CPU.
//
// A part is a chain of kernels, each of which has its own tolerance. The whole must agree with fp64, evaluated with the
// same rounded parameters and inputs, as closely as the table of tolerances asks or, where the chain magnifies
// rounding, as closely as fp64 agrees with itself when inputs and parameters move by a few units of that rounding.
// Where the part chooses, fp64 follows the device's choice, and the share of it that fp64 would not have made is a
// result as well.
#pragma once

#include <optional>

#include "autograd/distance.h"
#include "train/verify/specimen.h"

namespace weft {

// The tokens of a row that are compared: of each document the first `tokens[n]`. The others get no gradient, so that
// what parameters get comes from these alone; and by causality no later token reaches them.
struct ComparedTokens {
  std::vector<std::int32_t> tokens;  // [N]

  static ComparedTokens all(const Documents& documents);
  std::int64_t total() const;
};

struct PrecisionCase {
  SpecimenDeclaration declare;
  Tolerance tolerance;         // the row of the table for the type
  std::vector<Tensor> inputs;  // fp64, [T, ...]
  SpecimenRow row;
  std::vector<Tensor> seeds;  // fp64: [T, ...], or [1] for a loss, whose seed is 1
  ComparedTokens compared;
  std::vector<std::string> input_names, output_names;
};

struct PrecisionResult {
  std::string quantity;  // "output", "dx", "d wq"; an operation's name: its choices, both errors the share that differs
  Distance error;
  Distance limit;  // above the table's where the chain magnifies rounding
  bool ok() const { return error.rel_f <= limit.rel_f && error.rel_max <= limit.rel_max; }
};

// `specimen` is one of the case's declaration.
std::vector<PrecisionResult> compare_with_double(const PrecisionCase& c, Specimen& specimen);

}  // namespace weft
