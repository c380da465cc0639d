#include "checkpoints/huggingface/rule_list.h"

#include "autograd/check.h"

namespace weft {

RuleList::RuleList(const LanguageModelConfig& model) : model_(model) {}

std::vector<std::string> RuleList::parameters() const {
  std::vector<std::string> names;
  for (const Parameter* parameter : model_.parameters().all()) names.push_back(parameter->name);
  return names;
}

const Shape& RuleList::shape(const std::string& parameter) const {
  const Parameter* found = model_.parameters().find(parameter);
  WEFT_CHECK(found != nullptr, "the model has no parameter {}", parameter);
  return found->shape;
}

Piece RuleList::all(const std::string& parameter) const {
  return {.parameter = parameter, .begin = 0, .count = shape(parameter).numel()};
}

Piece RuleList::rows(const std::string& parameter, std::int64_t first, std::int64_t count) const {
  const Shape& of = shape(parameter);
  WEFT_CHECK(first >= 0 && count > 0 && first + count <= of[0], "rows {} to {} of {} with {}", first, first + count,
             parameter, of[0]);
  const std::int64_t row = of.numel() / of[0];
  return {.parameter = parameter, .begin = first * row, .count = count * row};
}

TensorRule& RuleList::add(const std::string& name, const std::string& parameter) {
  return add(name, shape(parameter), {all(parameter)});
}

TensorRule& RuleList::add(const std::string& name, const std::string& parameter, const Shape& shape) {
  return add(name, shape, {all(parameter)});
}

TensorRule& RuleList::add(const std::string& name, const Shape& shape, std::vector<Piece> pieces) {
  std::int64_t count = 0;
  for (const Piece& piece : pieces) count += piece.count;
  WEFT_CHECK(count == shape.numel(), "tensor {} {} of pieces with {} elements", name, shape.str(), count);
  TensorRule& rule = rules_.emplace_back();
  rule.name = name;
  rule.shape = shape;
  rule.pieces = std::move(pieces);
  return rule;
}

TensorRule& RuleList::add_constant(const std::string& name, const Shape& shape,
                                   std::function<double(std::int64_t)> constant) {
  TensorRule& rule = rules_.emplace_back();
  rule.name = name;
  rule.shape = shape;
  rule.constant = std::move(constant);
  return rule;
}

void add_ends(RuleList& rules, const LanguageModelConfig& model, double norm_shift) {
  TensorRule& embedding = rules.add("model.embed_tokens.weight", "embedding");
  if (model.tied) embedding.copies = {"lm_head.weight"};
  rules.add("model.norm.weight", "final_norm_w").shift = norm_shift;
  if (!model.tied) rules.add("lm_head.weight", "head");
}

void add_swiglu(RuleList& rules, const std::string& prefix, std::int64_t layer, const std::string& other_prefix) {
  for (const char* which : {"gate", "up", "down"}) {
    const std::string name = fmt::format(".{}_proj.weight", which);
    TensorRule& rule = rules.add(prefix + name, fmt::format("layers.{}.ffn.w_{}", layer, which));
    if (!other_prefix.empty()) rule.other_name = other_prefix + name;
  }
}

}  // namespace weft
