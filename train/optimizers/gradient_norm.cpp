#include "train/optimizers/gradient_norm.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "autograd/parallel_for.h"

namespace weft {
namespace {

constexpr std::int64_t kBlock = 65536;
constexpr std::size_t kLanes = 16;

// Lane l sums the elements l, l + 16, ...; then the lanes fold in halves.
double sum_of_squares(const float* x, std::int64_t n) {
  std::array<double, kLanes> lane{};
  std::int64_t i = 0;
  for (; i + static_cast<std::int64_t>(kLanes) <= n; i += kLanes) {
    for (std::size_t l = 0; l < kLanes; ++l) {
      const float value = x[i + static_cast<std::int64_t>(l)];
      const float square = value * value;
      lane[l] += static_cast<double>(square);
    }
  }
  for (std::size_t l = 0; i < n; ++i, ++l) {
    const float square = x[i] * x[i];
    lane[l] += static_cast<double>(square);
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

}  // namespace

bool GradientNorm::finite() const {
  return std::isfinite(norm);
}

GradientNorm gradient_norm(std::span<Parameter* const> parameters) {
  struct Block {
    const float* data;
    std::int64_t elements;
    std::size_t parameter;
  };
  std::vector<Block> blocks;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const Tensor& grad = parameters[p]->grad;
    for (std::int64_t begin = 0; begin < grad.numel(); begin += kBlock) {
      blocks.push_back({grad.data<float>() + begin, std::min(kBlock, grad.numel() - begin), p});
    }
  }
  std::vector<double> partial(blocks.size());
  parallel_for(static_cast<std::int64_t>(blocks.size()), Schedule::fixed, [&](std::int64_t b) {
    const auto index = static_cast<std::size_t>(b);
    partial[index] = sum_of_squares(blocks[index].data, blocks[index].elements);
  });

  GradientNorm result;
  result.squares.assign(parameters.size(), 0.0);
  for (std::size_t b = 0; b < blocks.size(); ++b) result.squares[blocks[b].parameter] += partial[b];
  double total = 0.0;
  for (const double square : result.squares) total += square;
  result.norm = std::sqrt(total);
  return result;
}

double clip_factor(double norm, double clip) {
  return clip == 0.0 ? 1.0 : std::min(1.0, clip / (norm + 1e-6));
}

std::string nonfinite_parameters(std::span<Parameter* const> parameters, const GradientNorm& norm, std::size_t most) {
  WEFT_CHECK(parameters.size() == norm.squares.size(), "{} parameters, {} sums", parameters.size(),
             norm.squares.size());
  std::string names;
  std::size_t found = 0;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    if (std::isfinite(norm.squares[p])) continue;
    if (found++ < most) names += (names.empty() ? "" : ", ") + parameters[p]->name;
  }
  if (found > most) names += fmt::format(" and {} more", found - most);
  return names;
}

}  // namespace weft
