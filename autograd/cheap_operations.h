// Operations whose outputs backward can compute again at little cost: norms, gates, activations, rotations. Between a
// forward pass and its backward their outputs need no memory, as long as what they are computed from is kept anyway.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "autograd/tensor.h"

namespace weft {

class Tape;

// Computes outputs from inputs, wherever their memory then is. It must not hold tensors that an operation made.
using CheapLaunch = std::function<void(const Tape&, std::span<const Tensor> inputs, std::span<const Tensor> outputs)>;

// Those of one span of a tape, in the order of execution.
class CheapOperations {
 public:
  void add(std::span<const Tensor> inputs, std::span<const Tensor> outputs, CheapLaunch launch);
  // Gives back the memory of outputs that something still needs, but not of `results`, wherever that is more than what
  // would have to be kept in their place. Forgets all other operations.
  void release(std::span<const Tensor> results);
  // Computes the outputs again, and forgets the operations.
  void restore(const Tape& tape);

  bool empty() const { return operations_.empty(); }

 private:
  struct Operation {
    std::vector<Tensor> inputs, outputs;
    CheapLaunch launch;
    bool again = false;
  };
  void choose(std::span<const Tensor> results);

  std::vector<Operation> operations_;
};

}  // namespace weft
