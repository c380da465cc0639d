// Which source gives the next row: credits instead of draws, so that every prefix of the stream keeps the mixture to
// about one row a source.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/sampler/sampler.h"

namespace weft {

// The schedule at a number of tokens drawn: linear between points, constant outside.
double weight_at(std::span<const WeightPoint> points, std::int64_t tokens);

// Shares in units of 2^-32 that sum to 2^32; all zero if no weight is positive.
std::vector<std::int64_t> share_units(std::span<const double> weights);

// Adds each share to its credit, takes the largest credit with a share (ties: lowest index), subtracts 2^32 from it.
// Returns the source; the shares must not be all zero.
std::int32_t draw_source(std::span<const std::int64_t> shares, std::span<std::int64_t> credits);

}  // namespace weft
