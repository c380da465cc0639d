// Rotary position embedding (Su et al., arXiv:2104.09864) with YaRN extension (Peng et al., arXiv:2309.00071), and the
// scalings of pretrained models.
//
// T tokens, H heads, D head width, D_r <= D rotary width (even; channels D_r.. pass through). Channel i is paired with
// channel i + D_r/2 and turned by phi = position * theta_i:
//   y_i = x_i cos phi - x_{i+D_r/2} sin phi,   y_{i+D_r/2} = x_i sin phi + x_{i+D_r/2} cos phi.
// The backward is the transpose, a turn by -phi.
//
// Logits depend on relative position alone only as far as the angles are exact in absolute terms, so angles are never
// formed as a product in fp32: a position is split as 4096 u + w, (cos, sin) of both parts are tabulated in fp64 with
// the whole turns removed exactly, combined by angle addition, and rounded once to the element type.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "autograd/documents.h"
#include "autograd/model_constant.h"
#include "autograd/tape.h"

namespace weft {

// How pretrained models stretch their frequencies; n_i = L theta_i / 2 pi are the turns of channel i over the original
// length L, and each law blends theta_i with theta_i / factor:
//   linear  theta_i / factor for all
//   llama3  keeps n_i > high_freq_factor, divides n_i < low_freq_factor, and blends linearly in n_i between
//   yarn    blends linearly in the channel's index i, between the indices that turn beta_fast and beta_slow times
//   (these
//           rounded outwards with `truncate`); cos and sin are multiplied by attention_factor
// YaRN as its paper states it blends linearly in n_i instead: that is RopeConfig::yarn_factor.
struct RopeScaling {
  enum class Law : std::uint8_t { none, linear, llama3, yarn };
  Law law = Law::none;
  double factor = 1.0;               // new length / original length
  std::int64_t original_length = 0;  // L, tokens; llama3 and yarn need it
  double low_freq_factor = 1.0;      // llama3
  double high_freq_factor = 4.0;     // llama3
  double attention_factor = 0.0;     // yarn; 0: 0.1 ln(factor) + 1
  double beta_fast = 32.0;           // yarn
  double beta_slow = 1.0;            // yarn
  bool truncate = true;              // yarn
  bool operator==(const RopeScaling&) const = default;
};

struct RopeConfig {
  std::int64_t rotary_dim = 0;            // D_r, even
  double base = 10000.0;                  // theta_i = base^(-2i / D_r)
  double yarn_factor = 1.0;               // new length / original length; 1 = off
  std::int64_t yarn_original_length = 0;  // tokens; needed when yarn_factor > 1
  RopeScaling scaling = {};               // not together with yarn_factor
  bool operator==(const RopeConfig&) const = default;
};

// theta_i in radians per token, [D_r/2], scaling included. Throws config_error for values without meaning.
std::vector<double> rope_frequencies(const RopeConfig& config);
// YaRN's factor of attention; it multiplies cos and sin, hence rotated queries and keys, but not what passes through.
double rope_magnitude(const RopeConfig& config);

// position = kRopeStride u + w.
inline constexpr std::int64_t kRopeStride = 4096;
// Positions that the tables of a GPU reach. They are built once, so that captured graphs serve any later batch.
inline constexpr std::int64_t kRopeReach = std::int64_t{1} << 22;

// The two levels in f32 for kernels: {cos, sin} of the angles of w and, times the magnitude, of kRopeStride u.
struct RopeLevels {
  Tensor fine;    // [kRopeStride, D_r/2, 2]
  Tensor coarse;  // [kRopeReach / kRopeStride, D_r/2, 2]
};

// Where kernels of a GPU find the angles of T tokens.
struct RopeAngles {
  const std::int32_t* positions = nullptr;  // [T]
  const float* fine = nullptr;              // RopeLevels
  const float* coarse = nullptr;
};

// Cos and sin of one row, [T, D_r/2] each, shared by all heads.
struct RopeRows {
  Tensor cos, sin;
};

// Grows by itself as longer positions appear. Belongs to one thread, like the model that owns it.
class RopeTable final : public ModelConstant {
 public:
  explicit RopeTable(const RopeConfig& config);
  // Any other frequencies (radians per token); `magnitude` multiplies cos and sin.
  explicit RopeTable(std::vector<double> frequencies, double magnitude = 1.0);

  std::int64_t rotary_dim() const { return 2 * static_cast<std::int64_t>(turns_.size()); }

  // Rows of a batch, for the CPU; those of the last batch are kept, so that queries, keys and layers sharing a table
  // build them once.
  RopeRows rows(const DocumentsPtr& documents, DType dtype) const;
  // Rows for positions >= 0, written into `rows` ([N, D_r/2] tensors of one type).
  void build(std::span<const std::int32_t> positions, const RopeRows& rows) const;

  RopeLevels levels() const;
  void move_to(const Place& place) const override;
  // Those in the memory of a GPU, copied there on first use unless a model's table was moved before.
  const RopeLevels& levels_on(const Stream& stream) const;
  // The angles of a row on a GPU. Error (config) if its positions go beyond kRopeReach.
  RopeAngles angles_on(const Stream& stream, const Documents& documents) const;

 private:
  // Cos and sin of the first multiples of a stride, [count, D_r/2].
  struct Level {
    std::vector<double> cos, sin;
  };
  void grow(Level& level, std::int64_t count, std::int64_t stride, double magnitude) const;
  template <class T>
  void build_as(std::span<const std::int32_t> positions, T* cos, T* sin) const;

  std::vector<double> turns_;  // theta_i / 2 pi
  double magnitude_;
  mutable Level fine_, coarse_;
  mutable std::weak_ptr<const Documents> cached_for_;
  mutable RopeRows cached_;
  void copy_levels(const std::shared_ptr<Allocator>& memory, const Stream& stream) const;
  mutable RopeLevels on_device_;
};

// One turn, forward or backward: both directions are the same operation.
struct Rotation {
  DType dtype;
  std::int64_t T, H, D, D_r;
  double direction;           // +1, or -1 for the transpose
  const void* cos = nullptr;  // [T, D_r/2], on the CPU
  const void* sin = nullptr;  // [T, D_r/2]
  RopeAngles angles = {};     // on a GPU
  const void* x;              // [T, H, D]
  void* y;                    // [T, H, D]; may be x
  Write write_y;
};

void rotate_cuda(const Rotation& args, const Launch& launch);

// x [T, H, D] -> [T, H, D]; positions restart with each document and include its pos0.
Var rope(Tape& tape, const Var& x, const DocumentsPtr& documents, const RopeTable& table);
// The same with the tokens' positions [T] given: for decoding.
Var rope(Tape& tape, const Var& x, std::span<const std::int32_t> positions, const RopeTable& table);
// The same with positions i32 [T] where the tape computes; on a GPU they are taken to be in [0, kRopeReach).
Var rope(Tape& tape, const Var& x, const Tensor& positions, const RopeTable& table);

}  // namespace weft
