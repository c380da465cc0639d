// What stands between a model and a target: collected line by line, so that a user hears of all of it at once.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "autograd/check.h"
#include "modules/language_model.h"

namespace weft {

class Obstacles {
 public:
  // Adds the line unless `possible`; a line that is there already is not repeated.
  template <class... Args>
  void require(bool possible, FormatString<Args...> format, Args&&... args) {
    if (possible) return;
    std::string line = format_text<Args...>(format, std::forward<Args>(args)...);
    if (std::ranges::find(lines_, line) == lines_.end()) lines_.push_back(std::move(line));
  }

  // Every entry of the pattern is one of `mixers`, and the entries of one mixer have the same options: classes with one
  // set of numbers for each kind of layer. `layers` says what the class has, e.g. "layers of gdn and attention".
  void require_mixers(const LanguageModelConfig& model, const std::vector<std::string>& mixers,
                      const std::string& layers);

  // Blocks have a feed-forward branch without biases, and branches are added as `residual` says.
  void require_blocks(const LanguageModelConfig& model, Residual residual);
  // Rotary positions without scaling; no sinks, soft cap or biases.
  void require_plain_attention(const MixerChoice& attention);

  std::vector<std::string> lines() && { return std::move(lines_); }

 private:
  std::vector<std::string> lines_;
};

// The first entry of a pattern that is this mixer; nullptr if none is.
const MixerChoice* find_choice(const LanguageModelConfig& model, const std::string& mixer);
// The shortest pattern that gives these layers.
std::vector<MixerChoice> shortest_pattern(const std::vector<MixerChoice>& layers);

}  // namespace weft
