// The named tensors of a foreign model, whatever file they lie in: what an importer reads from.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct SourceTensor {
  std::string name;
  // As the format calls it, e.g. "BF16" or "Q8_0".
  std::string dtype;
  std::vector<std::int64_t> shape;

  std::int64_t elements() const;
  // The extent of the first dimension; 1 for a scalar.
  std::int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  // 0 where there are no elements.
  std::int64_t row_elements() const { return rows() == 0 ? 0 : elements() / rows(); }
};

// Row-major tensors, read by rows of the first dimension. Reading is positional: one source may serve several threads.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // Sorted by name.
  virtual const std::vector<SourceTensor>& tensors() const = 0;
  // What messages call the place of a tensor, e.g. the shard's path.
  virtual std::string where(std::string_view name) const = 0;
  // Rows [row_begin, row_end) as floats: F64 is rounded to the nearest, every other type is exact. `out` has exactly
  // their elements. Error (storage): no such tensor, a type that holds no real numbers, or an F64 too large for a
  // float.
  virtual void read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                           std::span<float> out) const = 0;

  // nullptr if there is none of this name.
  const SourceTensor* find(std::string_view name) const;
  // find, or an Error (storage).
  const SourceTensor& require(std::string_view name) const;
};

}  // namespace weft
