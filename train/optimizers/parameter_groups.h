// Which update rule, rate and decay each parameter gets: recipe rules over built-in defaults.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/parameter.h"

namespace weft {

enum class UpdateRule : std::uint8_t { adamw, muon, frozen };
std::string_view name_of(UpdateRule rule);

// One rule; the first whose glob matches a parameter's name applies to it. What a rule leaves open is the default.
struct GroupRule {
  std::string match;  // `*` any characters, `?` any one character, over the whole name
  std::optional<UpdateRule> rule = {};
  double lr_mult = 1.0;
  std::optional<double> wd_mult = {};  // of the recipe's weight decay, in place of the built-in 0 or 1
  std::optional<double> beta1 = {};
  std::optional<double> beta2 = {};
  std::int64_t split = 1;  // muon: the rows are this many matrices stacked (heads, fused projections)
};

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-10;
};

// The factor rho on the orthogonalised update of an A x B (out x in) matrix, c = scale_factor:
// rms c sqrt(max(A, B)) (Moonlight, arXiv 2502.16982); original c sqrt(max(1, A / B)); spectral c sqrt(A / B).
enum class MuonScale : std::uint8_t { rms, original, spectral };

struct MuonOptions {
  double momentum = 0.95;
  MuonScale scale = MuonScale::rms;
  double scale_factor = 0.2;
  double learning_rate = 0.0;
  double weight_decay = 0.0;
};

struct OptimizerOptions {
  UpdateRule rule = UpdateRule::adamw;  // of hidden matrices; everything else defaults to adamw
  double learning_rate = 1e-3;          // peak, of adamw parameters
  double weight_decay = 0.1;            // of adamw parameters
  AdamWOptions adamw;
  MuonOptions muon;  // its rate and decay stand beside those of adamw
  std::vector<GroupRule> groups;
};

// beta2 = 0.5^(tokens_per_step / 7e6), kept within [0.9, 0.9995]: a memory of constant length in tokens
// (arXiv 2507.07101).
double automatic_beta2(double tokens_per_step);

// What was decided for one parameter.
struct ParameterPlan {
  Parameter* parameter = nullptr;
  UpdateRule rule = UpdateRule::adamw;
  double learning_rate = 0.0;  // peak
  double weight_decay = 0.0;
  double beta1 = 0.0;  // adamw
  double beta2 = 0.0;
  std::int64_t matrices = 1;     // muon: of dim0 / matrices rows each, or one for each leading index of rank 3
  std::int64_t state_bytes = 0;  // fp32 moments

  // The extents of each of the matrices.
  std::int64_t matrix_rows() const {
    const Shape& shape = parameter->shape;
    return shape.rank() == 3 ? shape[1] : shape[0] / matrices;
  }
  std::int64_t matrix_columns() const { return parameter->shape.back(); }
};

bool glob_matches(std::string_view pattern, std::string_view text);

// Plans in the order of `parameters`. Built-in defaults: hidden matrices with both extents >= 64 take
// `options.rule` and decay; smaller matrices and the head take adamw and decay; embeddings, vectors, convolutions and
// fast weights take adamw without decay. Error (config) naming the rule: one that no parameter is left for, and muon on
// anything but a hidden matrix.
std::vector<ParameterPlan> plan_parameters(std::span<Parameter* const> parameters, const OptimizerOptions& options);

// The plans as an aligned table for people, equal rows of the layers joined: name, shape, rule, rate, decay, bytes.
std::string describe_plans(std::span<const ParameterPlan> plans);

}  // namespace weft
