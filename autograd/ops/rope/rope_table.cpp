#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/ops/rope/rope.h"
#include "autograd/parallel_for.h"
#include "autograd/portable_math.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

// YaRN keeps channels that turn at least kBeta times over the original length, divides by the factor the frequency of
// those that turn at most kAlpha times, and blends linearly between.
constexpr double kAlpha = 1.0;
constexpr double kBeta = 32.0;

constexpr double kTwoPi = 2.0 * std::numbers::pi;

void check(const RopeScaling& s, const RopeConfig& config) {
  using Law = RopeScaling::Law;
  if (s.law == Law::none) return;
  if (config.yarn_factor > 1.0) config_error("rope: a YaRN factor of {} and a scaling as well", config.yarn_factor);
  if (!(s.factor >= 1.0) || !std::isfinite(s.factor)) {
    config_error("rope: the scaling factor is {}; expected new length / original length, at least 1", s.factor);
  }
  if (s.law != Law::linear && s.original_length <= 0) {
    config_error("rope: the scaling needs the original length in tokens, got {}", s.original_length);
  }
  if (s.law == Law::llama3 && !(s.low_freq_factor > 0.0 && s.high_freq_factor > s.low_freq_factor)) {
    config_error("rope: frequency factors low = {} and high = {}; expected 0 < low < high", s.low_freq_factor,
                 s.high_freq_factor);
  }
  if (s.law != Law::yarn) return;
  if (!(s.beta_slow > 0.0 && s.beta_fast > s.beta_slow)) {
    config_error("rope: beta_slow = {} and beta_fast = {}; expected 0 < beta_slow < beta_fast", s.beta_slow,
                 s.beta_fast);
  }
  if (!(s.attention_factor >= 0.0) || !std::isfinite(s.attention_factor)) {
    config_error("rope: the attention factor is {}; expected a positive number, or 0 for the usual one",
                 s.attention_factor);
  }
  if (!(config.base > 1.0)) config_error("rope: YaRN needs a base above 1, got {}", config.base);
}

void check(const RopeConfig& config) {
  if (config.rotary_dim <= 0 || config.rotary_dim % 2 != 0) {
    config_error("rope: the rotary width is {}; expected a positive even number", config.rotary_dim);
  }
  if (!(config.base > 0.0) || !std::isfinite(config.base)) {
    config_error("rope: the base is {}; expected a positive number", config.base);
  }
  if (!(config.yarn_factor >= 1.0) || !std::isfinite(config.yarn_factor)) {
    config_error("rope: the YaRN factor is {}; expected new length / original length, at least 1", config.yarn_factor);
  }
  if (config.yarn_factor > 1.0 && config.yarn_original_length <= 0) {
    config_error("rope: a YaRN factor of {} needs the original length in tokens, got {}", config.yarn_factor,
                 config.yarn_original_length);
  }
  check(config.scaling, config);
}

// Channels between `low` and `high` are blended; `low` and those below keep their frequency.
struct YarnRange {
  double low, high;
};

YarnRange yarn_range(const RopeConfig& config) {
  const RopeScaling& s = config.scaling;
  const auto D_r = static_cast<double>(config.rotary_dim);
  // The index, as a real number, of a channel that turns so many times over the original length.
  const auto index_of = [&](double turns) {
    return D_r * portable_log(static_cast<double>(s.original_length) / (turns * kTwoPi)) /
           (2.0 * portable_log(config.base));
  };
  YarnRange range{index_of(s.beta_fast), index_of(s.beta_slow)};
  if (s.truncate) range = {std::floor(range.low), std::ceil(range.high)};
  range = {std::max(range.low, 0.0), std::min(range.high, D_r - 1.0)};
  if (range.low == range.high) range.high += 0.001;
  return range;
}

double scaled(const RopeConfig& config, std::size_t i, double theta) {
  const RopeScaling& s = config.scaling;
  double keep = 0.0;  // the part that stays as it is
  switch (s.law) {
    case RopeScaling::Law::none:
      return theta;
    case RopeScaling::Law::linear:
      break;
    case RopeScaling::Law::llama3: {
      const double turns = static_cast<double>(s.original_length) * theta / kTwoPi;
      keep = std::clamp((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
      break;
    }
    case RopeScaling::Law::yarn: {
      const YarnRange range = yarn_range(config);
      keep = 1.0 - std::clamp((static_cast<double>(i) - range.low) / (range.high - range.low), 0.0, 1.0);
      break;
    }
  }
  return (1.0 - keep) * theta / s.factor + keep * theta;
}

}  // namespace

std::vector<double> rope_frequencies(const RopeConfig& config) {
  check(config);
  std::vector<double> theta(static_cast<std::size_t>(config.rotary_dim / 2));
  for (std::size_t i = 0; i < theta.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim);
    theta[i] = portable_exp(-exponent * portable_log(config.base));
    if (config.yarn_factor > 1.0) {
      const double rotations = static_cast<double>(config.yarn_original_length) * theta[i] / kTwoPi;
      const double keep = std::clamp((rotations - kAlpha) / (kBeta - kAlpha), 0.0, 1.0);
      theta[i] = (1.0 - keep) * theta[i] / config.yarn_factor + keep * theta[i];
    }
    theta[i] = scaled(config, i, theta[i]);
  }
  return theta;
}

double rope_magnitude(const RopeConfig& config) {
  check(config);
  const auto usual = [](double factor) { return factor > 1.0 ? 0.1 * portable_log(factor) + 1.0 : 1.0; };
  const RopeScaling& s = config.scaling;
  if (s.law == RopeScaling::Law::yarn) return s.attention_factor > 0.0 ? s.attention_factor : usual(s.factor);
  return usual(config.yarn_factor);
}

RopeTable::RopeTable(const RopeConfig& config) : RopeTable(rope_frequencies(config), rope_magnitude(config)) {}

RopeTable::RopeTable(std::vector<double> frequencies, double magnitude)
    : turns_(std::move(frequencies)), magnitude_(magnitude) {
  WEFT_CHECK(!turns_.empty(), "rope: no frequencies");
  for (double& f : turns_) f /= kTwoPi;
}

void RopeTable::grow(Level& level, std::int64_t count, std::int64_t stride, double magnitude) const {
  const auto half = static_cast<std::int64_t>(turns_.size());
  const auto old = static_cast<std::int64_t>(level.cos.size()) / half;
  if (count <= old) return;
  level.cos.resize(static_cast<std::size_t>(count * half));
  level.sin.resize(static_cast<std::size_t>(count * half));
  parallel_blocks(count - old, 64, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = old + begin; k < old + end; ++k) {
      const double position = static_cast<double>(k * stride);
      for (std::int64_t i = 0; i < half; ++i) {
        // The fraction of a turn in [-1/2, 1/2], rounded once: the fused product is exact before the subtraction.
        const double f = turns_[static_cast<std::size_t>(i)];
        const double turn = std::fma(position, f, -std::nearbyint(position * f));
        const double a = std::abs(turn);
        const auto at = static_cast<std::size_t>(k * half + i);
        level.cos[at] = magnitude * portable_cos_2pi(a);
        level.sin[at] = std::copysign(magnitude, turn) * portable_cos_2pi(std::abs(a - 0.25));
      }
    }
  });
}

template <class T>
void RopeTable::build_as(std::span<const std::int32_t> positions, T* cos, T* sin) const {
  if (positions.empty()) return;
  const auto [low, high] = std::minmax_element(positions.begin(), positions.end());
  WEFT_CHECK(*low >= 0, "rope: position {} of token {}", *low, low - positions.begin());
  const auto half = static_cast<std::int64_t>(turns_.size());
  // Doubling keeps growth cheap when positions advance one by one.
  std::int64_t fine = 64;
  while (fine < std::min<std::int64_t>(kRopeStride, *high + std::int64_t{1})) fine *= 2;
  grow(fine_, fine, 1, 1.0);
  grow(coarse_, *high / kRopeStride + 1, kRopeStride, magnitude_);
  const auto n = static_cast<std::int64_t>(positions.size());
  parallel_blocks(n, rows_per_block(half), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t position = positions[static_cast<std::size_t>(t)];
      const std::int64_t u = position / kRopeStride * half;
      const std::int64_t w = position % kRopeStride * half;
      const double* coarse_cos = coarse_.cos.data() + u;
      const double* coarse_sin = coarse_.sin.data() + u;
      const double* fine_cos = fine_.cos.data() + w;
      const double* fine_sin = fine_.sin.data() + w;
      T* cos_row = cos + t * half;
      T* sin_row = sin + t * half;
#pragma omp simd
      for (std::int64_t i = 0; i < half; ++i) {
        cos_row[i] = static_cast<T>(coarse_cos[i] * fine_cos[i] - coarse_sin[i] * fine_sin[i]);
        sin_row[i] = static_cast<T>(coarse_sin[i] * fine_cos[i] + coarse_cos[i] * fine_sin[i]);
      }
    }
  });
}

void RopeTable::build(std::span<const std::int32_t> positions, const RopeRows& rows) const {
  const auto n = static_cast<std::int64_t>(positions.size()) * static_cast<std::int64_t>(turns_.size());
  WEFT_CHECK(rows.cos.numel() == n && rows.sin.numel() == n, "rope: rows {} and {} for {} positions",
             rows.cos.shape().str(), rows.sin.shape().str(), positions.size());
  dispatch_real(rows.cos.dtype(), "rope",
                [&]<class T>() { build_as<T>(positions, rows.cos.data<T>(), rows.sin.data<T>()); });
}

RopeLevels RopeTable::levels() const {
  const auto half = static_cast<std::int64_t>(turns_.size());
  const auto interleaved = [&](std::int64_t count, std::int64_t stride, double magnitude) {
    Level level;
    grow(level, count, stride, magnitude);
    Tensor pairs = Tensor::empty({count, half, 2}, DType::f32);
    for (std::int64_t i = 0; i < count * half; ++i) {
      pairs.data<float>()[2 * i] = static_cast<float>(level.cos[static_cast<std::size_t>(i)]);
      pairs.data<float>()[2 * i + 1] = static_cast<float>(level.sin[static_cast<std::size_t>(i)]);
    }
    return pairs;
  };
  return {.fine = interleaved(kRopeStride, 1, 1.0),
          .coarse = interleaved(kRopeReach / kRopeStride, kRopeStride, magnitude_)};
}

void RopeTable::copy_levels(const std::shared_ptr<Allocator>& memory, const Stream& stream) const {
  if (on_device_.fine.defined() && on_device_.fine.device() == stream.device) return;
  const RopeLevels host = levels();
  on_device_ = {.fine = to_memory(host.fine, memory, stream), .coarse = to_memory(host.coarse, memory, stream)};
  synchronize(stream);  // before the host copies go
}

void RopeTable::move_to(const Place& place) const {
  if (!place.on_cpu()) copy_levels(place.lasting, place.stream);
}

const RopeLevels& RopeTable::levels_on(const Stream& stream) const {
  copy_levels(lasting_memory(stream.device), stream);
  return on_device_;
}

RopeAngles RopeTable::angles_on(const Stream& stream, const Documents& documents) const {
  if (documents.max_position() >= kRopeReach) {
    config_error("rope: position {}; on a GPU positions end at {}", documents.max_position(), kRopeReach - 1);
  }
  const RopeLevels& there = levels_on(stream);
  return {.positions = documents.positions_on(stream),
          .fine = there.fine.data<float>(),
          .coarse = there.coarse.data<float>()};
}

RopeRows RopeTable::rows(const DocumentsPtr& documents, DType dtype) const {
  if (cached_for_.lock() != documents || cached_.cos.dtype() != dtype) {
    const Shape shape{documents->tokens(), static_cast<std::int64_t>(turns_.size())};
    const RopeRows rows{Tensor::empty(shape, dtype), Tensor::empty(shape, dtype)};
    build(documents->positions(), rows);
    cached_ = rows;
    cached_for_ = documents;
  }
  return cached_;
}

}  // namespace weft
