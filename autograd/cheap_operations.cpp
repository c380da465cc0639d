#include "autograd/cheap_operations.h"

#include <algorithm>
#include <unordered_map>

namespace weft {
namespace {

// A storage, as far as the choice is concerned.
struct Stored {
  std::size_t bytes = 0;
  std::int64_t mentions = 0;  // among inputs and outputs of the operations
  bool held = false;          // by a node, a parameter, or whoever goes on with the results
  bool result = false;
  std::size_t cost = 0;        // what having it in backward adds to the memory that is kept in any case
  std::size_t producer = 0;    // operation; only of outputs
  bool cheaper_again = false;  // than keeping it; only of outputs
};

}  // namespace

void CheapOperations::add(std::span<const Tensor> inputs, std::span<const Tensor> outputs, CheapLaunch launch) {
  operations_.push_back({.inputs = {inputs.begin(), inputs.end()},
                         .outputs = {outputs.begin(), outputs.end()},
                         .launch = std::move(launch)});
}

// In the order of execution: an operation runs again if its outputs are larger than what its inputs cost, which are
// free if they are held, or come from operations that run again. Then backwards: what those need that nobody holds.
void CheapOperations::choose(std::span<const Tensor> results) {
  std::unordered_map<const void*, Stored> all;
  struct Use {
    std::vector<Stored*> inputs, outputs;  // defined ones
  };
  std::vector<Use> uses(operations_.size());
  const auto mention = [&](const std::vector<Tensor>& tensors, std::vector<Stored*>& list) {
    for (const Tensor& t : tensors) {
      if (!t.defined()) continue;
      Stored& s = all[t.storage()];
      s.bytes = t.storage_bytes();
      s.held = t.storage_owners() > ++s.mentions;
      list.push_back(&s);
    }
  };
  for (std::size_t i = 0; i < uses.size(); ++i) {
    mention(operations_[i].inputs, uses[i].inputs);
    mention(operations_[i].outputs, uses[i].outputs);
    for (Stored* s : uses[i].outputs) s->producer = i;
  }
  for (const Tensor& t : results) {
    if (t.defined()) all[t.storage()].result = true;
  }
  for (auto& [storage, s] : all) s.cost = s.held ? 0 : s.bytes;

  for (std::size_t i = 0; i < uses.size(); ++i) {
    const auto& [inputs, outputs] = uses[i];
    if (std::ranges::any_of(outputs, &Stored::result)) continue;
    std::size_t gain = 0, price = 0;
    for (const Stored* s : outputs) gain += s->held ? s->bytes : 0;
    for (const Stored* s : inputs) price += s->cost;
    const bool again = operations_[i].again = gain > price;
    for (Stored* s : inputs) s->cost = again ? 0 : s->cost;  // paid
    for (Stored* s : outputs) {
      if (s->held) continue;
      s->cheaper_again = again || price < s->bytes;
      s->cost = again ? 0 : std::min(s->bytes, price);
    }
  }
  for (std::size_t i = uses.size(); i-- > 0;) {
    if (!operations_[i].again) continue;
    for (const Stored* s : uses[i].inputs) {
      if (!s->held && s->cheaper_again) operations_[s->producer].again = true;
    }
  }
}

void CheapOperations::release(std::span<const Tensor> results) {
  choose(results);
  std::erase_if(operations_, [](const Operation& operation) { return !operation.again; });
  for (const Operation& operation : operations_) {
    for (const Tensor& t : operation.outputs) t.drop_memory();
  }
}

void CheapOperations::restore(const Tape& tape) {
  for (const Operation& operation : operations_) {
    for (const Tensor& t : operation.outputs) t.restore_memory();
    operation.launch(tape, operation.inputs, operation.outputs);
  }
  operations_.clear();
}

}  // namespace weft
