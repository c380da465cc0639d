// The contract of a sequence mixer, and the registry that CMake generates from the folders of modules/mixers/.
//
// T tokens of the packed row, N documents (sequences), d model width.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "autograd/documents.h"
#include "autograd/model_constant.h"
#include "autograd/place.h"
#include "autograd/tape.h"
#include "modules/options.h"

namespace weft {

// Where a mixer sits in a model.
struct MixerSite {
  std::int64_t width;   // d
  std::int64_t layers;  // blocks in the model
  std::int64_t layer;   // index of this one
  std::int64_t
      max_tokens;  // longest document the model is trained on (tables may be sized by it; longer ones still work)
  double norm_eps = 1e-6;  // of the model's RMS norms
};

// Whether a row has one token for each document: a decoding step, if documents continue from a state.
bool is_decoding_step(const Documents& documents);
// Whether no document continues one that a state has seen.
bool are_first_tokens(const Documents& documents);

// What a mixer remembers of N sequences between calls: recurrent states, cached keys and values, convolution tails.
class MixerState {
 public:
  virtual ~MixerState() = default;
  // A deep copy, so that a prefix can be continued in several ways.
  virtual std::unique_ptr<MixerState> clone() const = 0;
  virtual std::size_t bytes() const = 0;

  // Whether the kernels of a decoding step read nothing but memory that stays where it is, and the host does nothing
  // that count_token() does not: then a step can be recorded once and replayed.
  virtual bool replayable() const { return false; }
  // Before a step: room for one more token of each sequence. False if that moved what recorded kernels read.
  virtual bool make_room() { return true; }
  // After a replay: one more token of each sequence has been seen.
  virtual void count_token() {}
};

// What crosses ranks when a row is split over a context-parallel group.
enum class ContextParallel : std::uint8_t { state, halo, keys_values };

// Costs of one layer's mixer, projections included, for T tokens in documents of equal length L.
struct MixerCost {
  double forward_flops;  // multiply-add = 2; backward of these families is 2x (2.5x where scores are recomputed)
  double backward_flops;
  double forward_bytes;  // memory that must move, fp32 on the CPU
  double saved_bytes;    // kept on the tape between forward and backward
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // x [T, d], already normalised -> [T, d], before the residual addition. With a state (inference only), documents
  // continue from it: document n of the row is sequence n of the state, `documents.pos0(n)` tokens long so far, and the
  // state is advanced in place. Documents of one token each are a decoding step.
  virtual Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) = 0;

  // Why the kernels of one row cannot be replayed for another of as many tokens and documents, as recorded steps do:
  // shapes or tables that the host makes from the documents. Empty: they can.
  virtual std::string not_recordable() const { return {}; }

  // Of sequences that have seen nothing, in the memory of `place`, for activations of its type.
  virtual std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const = 0;

  virtual MixerCost cost(std::int64_t tokens, std::int64_t document_length) const = 0;
  // Bytes of state for one sequence of `length` tokens, fp32.
  virtual double state_bytes(std::int64_t length) const = 0;

  // Copies what the layer computes with and does not train to a place on a GPU, where its first step else does so.
  void move_constants(const Place& place) const {
    for (const auto& constant : constants_) constant->move_to(place);
  }

 protected:
  void keep(std::shared_ptr<const ModelConstant> constant) { constants_.push_back(std::move(constant)); }
  template <class Constant, class... Arguments>
  std::shared_ptr<const Constant> constant(Arguments&&... arguments) {
    auto made = std::make_shared<const Constant>(std::forward<Arguments>(arguments)...);
    keep(made);
    return made;
  }

 private:
  std::vector<std::shared_ptr<const ModelConstant>> constants_;
};

// What a mixer cannot do, with the reason; empty = it can.
struct MixerLimits {
  std::string documents;  // packed documents
  std::string state;      // continuing from a state
  std::string decode;     // token by token
};

// Everything the rest of weft knows about a mixer.
struct MixerType {
  std::string name;
  std::string summary;  // one line, for `weft mixers`
  std::vector<OptionSpec> options;
  ContextParallel context_parallel;
  MixerLimits limits;
  // Declares the layer's parameters in `scope`. Throws config_error naming the option for values that do not fit
  // together; `where` names the recipe table.
  std::unique_ptr<Mixer> (*create)(const ParameterScope& scope, const MixerSite& site, const Options& options,
                                   const std::string& where);
};

// All mixers, in the order of their names. Generated.
const std::vector<const MixerType*>& mixer_types();
// nullptr if there is none of that name.
const MixerType* find_mixer(const std::string& name);

}  // namespace weft
