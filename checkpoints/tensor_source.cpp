#include "checkpoints/tensor_source.h"

#include <algorithm>

#include "autograd/check.h"
#include "data/storage/text.h"

namespace weft {

std::int64_t SourceTensor::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) product *= extent;
  return product;
}

const SourceTensor* TensorSource::find(std::string_view name) const {
  const auto& all = tensors();
  const auto found = std::lower_bound(all.begin(), all.end(), name,
                                      [](const SourceTensor& tensor, std::string_view n) { return tensor.name < n; });
  return found != all.end() && found->name == name ? &*found : nullptr;
}

const SourceTensor& TensorSource::require(std::string_view name) const {
  const SourceTensor* tensor = find(name);
  if (tensor == nullptr) storage_error("{}: there is no tensor \"{}\"", where(name), printable(name));
  return *tensor;
}

}  // namespace weft
