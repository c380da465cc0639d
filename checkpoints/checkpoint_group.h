// The ranks that save or load one checkpoint, and the two exchanges they need: small texts to and from rank 0.
#pragma once

#include <string>
#include <vector>

namespace weft {

class CheckpointGroup {
 public:
  virtual ~CheckpointGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Collective. Rank 0 gets everybody's text in rank order, the others nothing.
  virtual std::vector<std::string> gather(const std::string& text) = 0;
  // Collective. Everybody gets rank 0's text.
  virtual std::string broadcast(const std::string& text) = 0;
};

// One process without peers.
class SingleProcess final : public CheckpointGroup {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::vector<std::string> gather(const std::string& text) override { return {text}; }
  std::string broadcast(const std::string& text) override { return text; }
};

}  // namespace weft
