// A recipe's layers against fp64, where and as the recipe would train them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "train/recipe/recipe.h"
#include "train/verify/precision.h"

namespace weft {

struct VerifyOptions {
  std::int64_t tokens = 0;  // of the row that are compared, at most; 0: by kVerifyWork
};
// Floating-point operations that fp64 may spend on one part, if nobody says how many tokens to compare.
inline constexpr double kVerifyWork = 5e10;

struct VerifiedPart {
  std::string name;
  std::string row;          // "4096 tokens in documents of 1, 2, 17, 65, 129, 1024, ..."
  std::string compared;     // "all", or which of them
  std::int64_t tokens = 0;  // of the row
  std::int64_t compared_tokens = 0;
  std::vector<PrecisionResult> results;
  double seconds = 0.0;

  bool ok() const;
};

struct Verification {
  std::string device;  // "NVIDIA H100 80GB HBM3, bf16"
  std::vector<VerifiedPart> parts;

  bool ok() const;
};

// Each part of the model on a row of the recipe's micro-batch: as many tokens, in documents of awkward lengths and then
// of the recipe's sequence length. The device computes the whole row; fp64 computes the documents that it can afford,
// and of the first that it cannot its beginning. Error (config) if the recipe asks for a device that is not there.
// `on_part` hears of each part as it is done.
Verification verify_recipe(const Recipe& recipe, std::int64_t vocabulary, const VerifyOptions& options,
                           const std::function<void(const VerifiedPart&)>& on_part = {});

// What verify_recipe compares of a row, from the floating-point operations of T tokens in documents of length L.
DocumentsPtr verified_row(std::int64_t tokens, std::int64_t sequence_length, bool packed, bool anchored);
ComparedTokens compared_tokens(const Documents& documents, std::int64_t most);

}  // namespace weft
