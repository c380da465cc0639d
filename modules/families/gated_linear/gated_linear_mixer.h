// What every mixer on the gated linear recurrence shares, whatever its projections: a state of constant size, one path
// for training, prefill and decoding, and costs.
//
// T tokens, N sequences, d model width, H heads, d_k and d_v head widths of the recurrence.
#pragma once

#include "modules/families/gated_linear/gated_linear.h"
#include "modules/mixer.h"

namespace weft {

// A mixer as costs and states see it.
struct GatedLinearSizes {
  std::int64_t width;            // d
  std::int64_t heads, d_k, d_v;  // d_k counts features where a map is used
  DecayKind decay;
  std::int64_t weights;  // multiply-adds of all its projections for one token
  std::int64_t saved;    // elements that the tape keeps for one token
  // What sequences carry besides their matrices: the shapes of one sequence, of accumulator_dtype unless they are
  // activations.
  struct Carried {
    Shape shape;
    bool activations = false;
  };
  std::vector<Carried> carried = {};
};

// The keys that the mixers of the family have in common: heads, head_dim, value_dim.
std::vector<OptionSpec> gated_linear_head_options();

// What N sequences carry: the matrices [N, H, d_k, d_v] first, then what else the mixer needs.
class GatedLinearState final : public MixerState {
 public:
  GatedLinearState(std::vector<Tensor> parts_, const Place& place) : parts(std::move(parts_)), place_(place) {}
  std::unique_ptr<MixerState> clone() const override;
  std::size_t bytes() const override;
  bool replayable() const override { return true; }

  std::vector<Tensor> parts;

 private:
  Place place_;
};

// Numbers that are not trained, such as the log decays of heads.
class ConstantVector final : public ModelConstant {
 public:
  explicit ConstantVector(const std::vector<double>& values);
  // Where the tape computes, in the type of statistics beside activations of `dtype`: [values.size()]. Copied to a GPU
  // on first use unless it was moved there before.
  Var on(const Tape& tape, DType dtype) const;
  void move_to(const Place& place) const override;

 private:
  Tensor f64_, f32_;
  void copy_to(const std::shared_ptr<Allocator>& memory, const Stream& stream) const;
  mutable Tensor device_;  // f32
};

// Queries, keys and values of all heads as linear maps of x.
struct Heads {
  Var q, k, v;  // [T, H, D_k] twice and [T, H, D_v]
};
class HeadProjections {
 public:
  // Declares wq, wk [H D_k, d] and wv [H D_v, d].
  HeadProjections(const ParameterScope& scope, std::int64_t width, std::int64_t heads, std::int64_t D_k,
                  std::int64_t D_v);
  Heads operator()(Tape& tape, const Var& x) const;

 private:
  std::int64_t heads_, D_k_, D_v_;
  Parameter *wq_, *wk_, *wv_;
};
// Declares wo [d, values], which writes into the residual stream.
Parameter& declare_output(const ParameterScope& scope, const MixerSite& site, std::int64_t values);

class GatedLinearMixer : public Mixer {
 public:
  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MixerState* state) override;
  std::unique_ptr<MixerState> initial_state(std::int64_t sequences, const Place& place) const override;
  MixerCost cost(std::int64_t tokens, std::int64_t document_length) const override;
  double state_bytes(std::int64_t length) const override;

 protected:
  explicit GatedLinearMixer(GatedLinearSizes sizes) : sizes_(std::move(sizes)) {}

  // x [T, d] -> [T, d]. Documents continue from `state` unless it is null, and leave it advanced.
  virtual Var mix(Tape& tape, const Var& x, const DocumentsPtr& documents, GatedLinearState* state) = 0;

  // What gated_linear() takes: q, k [T, H or fewer, d_k] (or what `map` makes features of), v [T, H, d_v], and a log
  // decay [H], [T, H] or [T, H, d_k].
  struct Inputs {
    Var q, k, v, decay;
    double scale = 1.0;
    FeatureMap map = FeatureMap::identity;
  };
  // o [T, H, d_v]. Advances `matrices` [N, H, d_k, d_v] in place if defined; documents of one token each take a
  // decoding step.
  static Var recurrence(Tape& tape, const Inputs& in, const DocumentsPtr& documents, const Tensor& matrices);

 private:
  std::vector<Shape> state_shapes(std::int64_t sequences) const;

  GatedLinearSizes sizes_;
};

}  // namespace weft
