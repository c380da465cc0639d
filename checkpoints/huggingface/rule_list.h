// Builds the rules of a target, checking every piece against the model's parameters.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoints/huggingface/tensor_rule.h"
#include "modules/language_model.h"

namespace weft {

class RuleList {
 public:
  explicit RuleList(const LanguageModelConfig& model);

  // Names of all parameters, in canonical order.
  std::vector<std::string> parameters() const;
  const Shape& shape(const std::string& parameter) const;
  // All elements, or `count` rows from row `first`.
  Piece all(const std::string& parameter) const;
  Piece rows(const std::string& parameter, std::int64_t first, std::int64_t count) const;

  // A tensor that is one parameter, with its shape or another of as many elements.
  TensorRule& add(const std::string& name, const std::string& parameter);
  TensorRule& add(const std::string& name, const std::string& parameter, const Shape& shape);
  // A tensor of several pieces, one after the other.
  TensorRule& add(const std::string& name, const Shape& shape, std::vector<Piece> pieces);
  // A tensor of numbers that weft has no parameter for.
  TensorRule& add_constant(const std::string& name, const Shape& shape, std::function<double(std::int64_t)> constant);

  std::vector<TensorRule> take() && { return std::move(rules_); }

 private:
  // Declares the parameters; nothing is allocated.
  mutable LanguageModel model_;
  std::vector<TensorRule> rules_;
};

// "model.embed_tokens.weight", "model.norm.weight" and, if the model has its own head, "lm_head.weight"; `norm_shift`
// is that of the norm.
void add_ends(RuleList& rules, const LanguageModelConfig& model, double norm_shift);
// "PREFIX.{gate,up,down}_proj.weight" of a layer's SwiGLU; some files have OTHER_PREFIX in place of PREFIX.
void add_swiglu(RuleList& rules, const std::string& prefix, std::int64_t layer, const std::string& other_prefix = {});

}  // namespace weft
