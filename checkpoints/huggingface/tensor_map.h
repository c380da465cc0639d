// Applies tensor rules: a model's parameters from a foreign checkpoint's tensors, and the tensors from the parameters.
// Neither direction holds more than one of them in memory.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/parameter.h"
#include "checkpoints/huggingface/tensor_rule.h"
#include "checkpoints/tensor_source.h"

namespace weft {

// Elements [begin, begin + out.size()) of a parameter's flat array.
using ReadParameter = std::function<void(std::string_view parameter, std::int64_t begin, std::span<float> out)>;

// Tables of rotary frequencies (*.rotary_emb.inv_freq), which older files hold.
bool follows_from_config(std::string_view name);

class TensorMap {
 public:
  // Rules that do not hold each element of each parameter exactly once, or do not agree with their shapes, are a defect
  // (Error, internal).
  TensorMap(std::vector<TensorRule> rules, const std::vector<Parameter*>& parameters);

  const std::vector<TensorRule>& rules() const { return rules_; }

  // The name under which a source has the tensor of a rule; the rule's own if it has none.
  static const std::string& name_in(const TensorSource& source, const TensorRule& rule);

  // Compares names, shapes and copies with those of a source. Error (config) listing what is missing, superfluous or of
  // another shape; tensors that follow from the config may be there.
  void check(const TensorSource& source) const;

  // All elements of a parameter, from a source that has been checked. Error (config) if a constant or a copy in it is
  // not what it must be.
  void read_parameter(const TensorSource& source, std::string_view parameter, std::span<float> out) const;
  // All elements of the tensor of a rule.
  void read_tensor(const TensorRule& rule, const ReadParameter& read, std::span<float> out) const;

 private:
  // `count` elements of a rule's tensor from `tensor_begin`: those of the parameter from `parameter_begin`.
  struct Part {
    std::size_t rule;
    std::int64_t tensor_begin, parameter_begin, count;
  };

  void check_constant(const TensorSource& source, const TensorRule& rule) const;
  void check_copy(const TensorSource& source, const TensorRule& rule, const std::string& copy) const;

  std::vector<TensorRule> rules_;
  std::map<std::string, std::vector<Part>, std::less<>> parts_;  // of each parameter, by parameter_begin
};

}  // namespace weft
