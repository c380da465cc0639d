// A layer of any mixer, to compare with its formula in fp64: what the tests of all mixers share.
#pragma once

#include <functional>

#include "modules/mixer.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {

using OptionList = std::vector<std::pair<std::string, OptionValue>>;

// The defaults of a mixer with some changed.
Options options_with(const MixerType& type, const OptionList& changes);

// Element of a matrix of doubles.
inline double& at(const Tensor& matrix, std::int64_t row, std::int64_t column) {
  return matrix.data<double>()[row * matrix.dim(1) + column];
}

// x w^T: x [T, in], w [out, in] -> [T, out], in plain loops.
Tensor product(const Tensor& x, const Tensor& w);

class LayerCase {
 public:
  // Parameters have their first values. Errors name the table [mixer.test].
  LayerCase(const MixerType& type, const OptionList& changes, const MixerSite& site, DType dtype = DType::f64);

  // Normal numbers of these standard deviations: in place of the parameters, or added to their first values.
  void randomise(double matrices, double vectors);
  void perturb(double matrices, double vectors);

  bool has(const std::string& name) { return store.find(name) != nullptr; }
  const Tensor& value(const std::string& name);
  Tensor product(const Tensor& x, const std::string& name) { return testing::product(x, value(name)); }

  // Without a gradient, on hostile memory.
  Tensor forward(const Tensor& x, const DocumentsPtr& documents, MixerState* state = nullptr);

  // The planned bytes are those that a recording tape holds in fp32. Leaves the layer with first values in fp32.
  void expect_saved_bytes();

  MixerSite site;
  ParameterStore store;
  std::unique_ptr<Mixer> mixer;
};

// The message of the configuration error that `make` throws; empty if it throws none.
std::string refusal(const std::function<void()>& make);

// ... with which a Layer of these options is refused.
template <class Layer>
std::string creation_error(const MixerType& type, const OptionList& changes) {
  return refusal([&] { Layer layer(type, changes); });
}

}  // namespace weft::testing
