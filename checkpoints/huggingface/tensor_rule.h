// How a tensor of a Hugging Face checkpoint is made of weft's parameters: one declaration for import and export.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "autograd/tensor.h"

namespace weft {

// `count` elements of a parameter from `begin`, both counted in its flat array: rows of a matrix [out, in] are
// `in` elements each.
struct Piece {
  std::string parameter;
  std::int64_t begin = 0;
  std::int64_t count = 0;
};

// The file's tensor is the pieces one after the other, plus `shift`. A rule without pieces is a constant that the other
// library wants and weft has no parameter for: every element is `shift`.
struct TensorRule {
  std::string name;  // in the file
  Shape shape;       // in the file; its elements are those of the pieces
  std::vector<Piece> pieces;
  double shift = 0.0;      // -1: the file holds gain - 1
  bool keep_fp32 = false;  // stays fp32 in a bf16 export (a_log, dt_bias)
  // Element i of a constant whose elements differ, in place of `shift`.
  std::function<double(std::int64_t)> constant = {};
  bool any_value = false;       // of a constant that changes nothing: files may hold any finite numbers
  std::string other_name = {};  // under which some files hold it in place of `name`; never written
  // Names under which files may hold the same tensor once more (a tied head): it must be equal. Never written.
  std::vector<std::string> copies = {};
};

}  // namespace weft
