// A part of a model by itself, with parameters and inputs that no training ever saw: what numerical checks run on.
//
// T tokens of the packed row.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/documents.h"
#include "autograd/place.h"
#include "autograd/tape.h"
#include "modules/language_model.h"

namespace weft {

// What comes with the inputs and has no gradient.
struct SpecimenRow {
  DocumentsPtr documents;
  Tensor labels = {};  // i32 [T] in host memory; for losses only
};

// Declares the part's parameters in a scope, and gives the part: a function of inputs on the tape.
using SpecimenFunction = std::function<std::vector<Var>(Tape&, std::span<const Var>, const SpecimenRow&)>;
using SpecimenDeclaration = std::function<SpecimenFunction(const ParameterScope&)>;

// Host tensors with storage of their own, in the types that the device computed in.
struct SpecimenResult {
  std::vector<Tensor> outputs;
  std::vector<Tensor> inputs;      // gradients of <seed, output>, summed over the outputs
  std::vector<Tensor> parameters;  // likewise, in the order of declaration
};

class Specimen {
 public:
  // Parameters are generic: matrices of unit gain, noise on everything else, so that no gradient is small for want of a
  // signal. The same values in every type, before rounding.
  Specimen(const SpecimenDeclaration& declare, const Place& place);
  // In fp64 on the CPU with the parameters of another specimen of the same declaration, as they were rounded there.
  Specimen(const SpecimenDeclaration& declare, const Specimen& rounded);
  // function_ refers to parameters_.
  Specimen(const Specimen&) = delete;
  Specimen& operator=(const Specimen&) = delete;

  // Inputs and seeds are host tensors of any floating type, rounded to that of activations; seeds to those of the
  // outputs. Unless `recompute` is none, the part is a recomputed span.
  SpecimenResult backward(const std::vector<Tensor>& inputs, const SpecimenRow& row, const std::vector<Tensor>& seeds,
                          Recompute recompute = Recompute::none);

  const Place& place() const { return place_; }
  ParameterStore& parameters() { return parameters_; }
  // On the host, with storage of its own.
  Tensor fetch(const Tensor& tensor) const;

 private:
  Place place_;
  ParameterStore parameters_;
  SpecimenFunction function_;
};

}  // namespace weft
