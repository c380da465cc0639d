#include "autograd/check.h"
#include "autograd/cuda/driver_function.cuh"
#include "autograd/tile/tensor_map.cuh"

namespace weft::tile {
namespace {

decltype(&cuTensorMapEncodeTiled) encode_function() {
  static const auto function = WEFT_DRIVER_FUNCTION(cuTensorMapEncodeTiled, 12000);
  return function;
}

}  // namespace

CUtensorMap make_tensor_map(const void* base, int rank, const std::int64_t* sizes, const std::int64_t* strides,
                            const std::int32_t* box) {
  cuuint64_t size[5], stride_bytes[5];
  cuuint32_t extent[5], step[5];
  for (int i = 0; i < rank; ++i) {
    size[i] = static_cast<cuuint64_t>(sizes[i]);
    extent[i] = static_cast<cuuint32_t>(box[i]);
    step[i] = 1;
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(strides[i]) * 2;
  }
  // Rows of a box in shared memory are 128 bytes, or 64.
  const CUtensorMapSwizzle swizzle = box[0] == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  CUtensorMap map;
  const CUresult result =
      encode_function()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(rank), const_cast<void*>(base),
                        size, stride_bytes, extent, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  WEFT_CHECK(result == CUDA_SUCCESS, "tensor map of rank {} (innermost sizes {}, {}; box {}, {}) refused: error {}",
             rank, sizes[0], sizes[1], box[0], box[1], static_cast<int>(result));
  return map;
}

}  // namespace weft::tile
