#include "modules/mixers/lightning/slopes.h"

#include <bit>
#include <cmath>

#include "autograd/check.h"

namespace weft {
namespace {

std::vector<double> geometric_slopes(std::int64_t heads) {
  std::vector<double> slopes;
  for (std::int64_t h = 0; h < heads; ++h) {
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
  }
  return slopes;
}

std::vector<double> alibi_slopes(std::int64_t heads) {
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(heads)));
  std::vector<double> slopes = geometric_slopes(power);
  const std::vector<double> finer = geometric_slopes(2 * power);
  for (std::int64_t i = 0; static_cast<std::int64_t>(slopes.size()) < heads; i += 2) {
    slopes.push_back(finer[static_cast<std::size_t>(i)]);
  }
  return slopes;
}

}  // namespace

std::vector<double> lightning_log_decays(const std::string& convention, std::int64_t heads, std::int64_t layer,
                                         std::int64_t layers) {
  WEFT_CHECK(heads > 0 && layer >= 0 && layer < layers, "{} heads, layer {} of {}", heads, layer, layers);
  const auto l = static_cast<double>(layer);
  const auto L = static_cast<double>(layers);
  std::vector<double> decays;
  if (convention == "linear") {
    for (std::int64_t h = 0; h < heads; ++h) {
      decays.push_back(-8.0 * static_cast<double>(h) / static_cast<double>(heads) * (1.0 - l / L));
    }
    return decays;
  }
  WEFT_CHECK(convention == "geometric" || convention == "alibi", "decay convention {}", convention);
  const double factor = 1.0 - l / (L - 1.0 + 1e-5) + 1e-5;
  for (const double slope : convention == "alibi" ? alibi_slopes(heads) : geometric_slopes(heads)) {
    decays.push_back(-slope * factor);
  }
  return decays;
}

}  // namespace weft
