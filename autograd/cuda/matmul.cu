#include <algorithm>
#include <compare>
#include <cublasLt.h>
#include <map>
#include <mutex>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/matmul.h"

namespace weft {
namespace {

void check_cublas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail(ExitCode::internal, "{} failed: {}", call, cublasLtGetStatusString(status));
  }
}
#define WEFT_CUBLAS_CALL(call) check_cublas((call), #call)

cudaDataType_t cuda_type(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

// Largest power of two up to 256 that divides the address of every matrix of a batch.
std::uint32_t alignment(const void* data, std::int64_t stride, DType dtype) {
  std::uintptr_t bits = reinterpret_cast<std::uintptr_t>(data) | 256;
  bits |= static_cast<std::uintptr_t>(stride) * size_of(dtype);
  return static_cast<std::uint32_t>(bits & -bits);
}

// Everything that the choice of an algorithm may depend on.
struct Key {
  int device;
  Op op_a, op_b;
  DType operands, output;
  bool bias;
  std::int64_t m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c;
  std::uint32_t align_a, align_b, align_c, align_addend;
  auto operator<=>(const Key&) const = default;
};

// Descriptors live as long as the process: at its end the driver may be gone before them.
struct Plan {
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
};

cublasLtMatrixLayout_t layout(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t ld, std::int64_t batch,
                              std::int64_t stride) {
  cublasLtMatrixLayout_t result = nullptr;
  WEFT_CUBLAS_CALL(cublasLtMatrixLayoutCreate(&result, cuda_type(dtype), static_cast<std::uint64_t>(rows),
                                              static_cast<std::uint64_t>(columns), ld));
  if (batch > 1) {
    const auto count = static_cast<std::int32_t>(batch);
    WEFT_CUBLAS_CALL(
        cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)));
    WEFT_CUBLAS_CALL(
        cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)));
  }
  return result;
}

// cuBLAS thinks in columns: a row-major product is that of the transposed matrices in the other order, so its first
// operand is our B and its rows are our columns.
Plan make_plan(cublasLtHandle_t handle, const Key& key) {
  Plan plan;
  plan.handle = handle;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
    WEFT_CUBLAS_CALL(cublasLtMatmulDescSetAttribute(plan.product, attribute, &value, sizeof(value)));
  };
  const auto to_cublas = [](Op op) { return op == Op::none ? CUBLAS_OP_N : CUBLAS_OP_T; };
  WEFT_CUBLAS_CALL(cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(CUBLASLT_MATMUL_DESC_TRANSA, to_cublas(key.op_b));
  set(CUBLASLT_MATMUL_DESC_TRANSB, to_cublas(key.op_a));
  if (key.bias) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  const bool b_is_turned = key.op_b == Op::transpose, a_is_turned = key.op_a == Op::transpose;
  plan.a =
      layout(key.operands, b_is_turned ? key.k : key.n, b_is_turned ? key.n : key.k, key.ldb, key.batch, key.stride_b);
  plan.b =
      layout(key.operands, a_is_turned ? key.m : key.k, a_is_turned ? key.k : key.m, key.lda, key.batch, key.stride_a);
  plan.c = layout(key.output, key.n, key.m, key.ldc, key.batch, key.stride_c);

  cublasLtMatmulPreference_t preference = nullptr;
  WEFT_CUBLAS_CALL(cublasLtMatmulPreferenceCreate(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    WEFT_CUBLAS_CALL(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kMatmulWorkspace});
  // Parts of a split contraction are added from fp32 workspace by a pass of its own, never in the order of arrival.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.align_b);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.align_a);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.align_addend);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.align_c);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, plan.product, plan.a, plan.b, plan.c, plan.c,
                                                               preference, 1, &result, &found);
  WEFT_CUBLAS_CALL(cublasLtMatmulPreferenceDestroy(preference));
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
    fail(ExitCode::internal, "cuBLASLt has no algorithm for a product of {} [{}, {}] and [{}, {}] into {} ({})",
         name_of(key.operands), key.m, key.k, key.k, key.n, name_of(key.output), cublasLtGetStatusString(status));
  }
  plan.algorithm = result.algo;
  return plan;
}

// Handles by device and plans by problem. Launching is short, so that one lock for all devices does not hurt.
class Plans {
 public:
  template <class F>
  void use(const Key& key, F&& f) {
    const std::lock_guard lock(mutex_);
    auto it = plans_.find(key);
    if (it == plans_.end()) it = plans_.emplace(key, make_plan(handle(key.device), key)).first;
    f(it->second);
  }

 private:
  cublasLtHandle_t handle(int device) {
    cublasLtHandle_t& handle = handles_[device];
    if (handle == nullptr) {
      WEFT_CUDA_CALL(cudaSetDevice(device));
      WEFT_CUBLAS_CALL(cublasLtCreate(&handle));
    }
    return handle;
  }

  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<Key, Plan> plans_;
};

Plans& plans() {
  static Plans* const instance = new Plans;
  return *instance;
}

// A sum over nothing.
void scale_only(const Matmul& p, const Launch& launch) {
  WEFT_CHECK(p.bias == nullptr && (p.beta == 0.0f || (p.beta == 1.0f && p.addend == nullptr)),
             "a product over an empty dimension, with beta {}", p.beta);
  if (p.beta != 0.0f) return;
  const std::size_t element = size_of(p.output);
  for (std::int64_t i = 0; i < p.batch; ++i) {
    WEFT_CUDA_CALL(cudaMemset2DAsync(static_cast<std::byte*>(p.c) + static_cast<std::size_t>(i * p.stride_c) * element,
                                     static_cast<std::size_t>(p.ldc) * element, 0,
                                     static_cast<std::size_t>(p.n) * element, static_cast<std::size_t>(p.m),
                                     cuda_stream(launch.stream)));
  }
}

}  // namespace

void matmul(const Matmul& p, const Launch& launch) {
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  if (p.k == 0) return scale_only(p, launch);
  WEFT_CHECK(launch.workspace_bytes >= kMatmulWorkspace, "matmul: {} bytes of workspace", launch.workspace_bytes);
  const void* addend = p.addend == nullptr ? p.c : p.addend;
  const bool batched = p.batch > 1;
  const Key key{.device = launch.stream.device.index,
                .op_a = p.op_a,
                .op_b = p.op_b,
                .operands = p.operands,
                .output = p.output,
                .bias = p.bias != nullptr,
                .m = p.m,
                .n = p.n,
                .k = p.k,
                .lda = p.lda,
                .ldb = p.ldb,
                .ldc = p.ldc,
                .batch = p.batch,
                .stride_a = batched ? p.stride_a : 0,
                .stride_b = batched ? p.stride_b : 0,
                .stride_c = batched ? p.stride_c : 0,
                .align_a = alignment(p.a, batched ? p.stride_a : 0, p.operands),
                .align_b = alignment(p.b, batched ? p.stride_b : 0, p.operands),
                .align_c = alignment(p.c, batched ? p.stride_c : 0, p.output),
                .align_addend = alignment(addend, batched ? p.stride_c : 0, p.output)};
  plans().use(key, [&](Plan& plan) {
    if (p.bias != nullptr) {
      WEFT_CUBLAS_CALL(
          cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias, sizeof(p.bias)));
    }
    WEFT_CUBLAS_CALL(cublasLtMatmul(plan.handle, plan.product, &p.alpha, p.b, plan.a, p.a, plan.b, &p.beta, addend,
                                    plan.c, p.c, plan.c, &plan.algorithm, launch.workspace, kMatmulWorkspace,
                                    cuda_stream(launch.stream)));
  });
}

}  // namespace weft
