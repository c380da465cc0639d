#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/matmul.h"
#include "autograd/transfer.h"
#include "train/optimizers/adamw.h"
#include "train/optimizers/cuda_update.h"
#include "train/optimizers/muon.h"
#include "train/optimizers/update_kernels.cuh"

namespace weft {
namespace {

// Matrices of one shape go through the iterations together, as many as this holds.
constexpr std::size_t kMuonScratch = std::size_t{1} << 30;

// A host array in device memory.
template <class T>
Tensor table(std::span<const T> rows, const OptimizerPlace& place) {
  static_assert(sizeof(T) % 4 == 0);
  const Tensor host = Tensor::empty({static_cast<std::int64_t>(rows.size() * sizeof(T) / 4)}, DType::i32);
  if (!rows.empty()) std::memcpy(host.raw(), rows.data(), rows.size_bytes());
  return to_memory(host, place.memory, place.stream);
}
template <class T>
const T* rows_of(const Tensor& table) {
  return static_cast<const T*>(table.raw());
}

// Matrices of one shape [A, B] that are updated together.
struct MuonBatch {
  std::int64_t A, B;
  std::int64_t count = 0;
  Tensor matrices;  // MuonMatrix [count]

  std::int64_t elements() const { return A * B; }
  std::int64_t side() const { return std::min(A, B); }
  std::int64_t chunks() const { return (elements() + kChunk - 1) / kChunk; }  // of one matrix
};

// Pieces of the scratch memory of a batch; with a null base only `bytes` counts.
struct MuonScratch {
  std::byte* products = nullptr;
  bfloat16* x = nullptr;           // [count, A, B]
  bfloat16* next_x = nullptr;      // [count, A, B]
  bfloat16* gram = nullptr;        // [count, r, r]
  bfloat16* polynomial = nullptr;  // [count, r, r]
  double* squares = nullptr;       // [count, chunks]
  std::size_t bytes = 0;

  MuonScratch(std::int64_t A, std::int64_t B, std::int64_t count, std::byte* base) {
    const std::int64_t r = std::min(A, B);
    const auto take = [&]<class E>(E*& block, std::int64_t elements) {
      if (base != nullptr) block = reinterpret_cast<E*>(base + bytes);
      bytes += padded_block(static_cast<std::size_t>(elements) * sizeof(E), Hygiene::trusting);
    };
    take(products, static_cast<std::int64_t>(kMatmulWorkspace));
    take(x, count * A * B);
    take(next_x, count * A * B);
    take(gram, count * r * r);
    take(polynomial, count * r * r);
    take(squares, count * ((A * B + kChunk - 1) / kChunk));
  }
};

// X <- a X + (b S + c S^2) X with S the Gram matrix of the shorter side, five times, all matrices at once.
void newton_schulz(const MuonBatch& batch, MuonScratch& s, const Stream& stream) {
  const std::int64_t A = batch.A, B = batch.B, r = batch.side(), n = batch.elements();
  const bool wide = A <= B;
  const Launch launch{.stream = stream, .workspace = s.products, .workspace_bytes = kMatmulWorkspace};
  for (int iteration = 0; iteration < NewtonSchulz::kIterations; ++iteration) {
    matmul({.op_a = wide ? Op::none : Op::transpose,
            .op_b = wide ? Op::transpose : Op::none,
            .m = r,
            .n = r,
            .k = std::max(A, B),
            .a = s.x,
            .b = s.x,
            .c = s.gram,
            .lda = B,
            .ldb = B,
            .ldc = r,
            .batch = batch.count,
            .stride_a = n,
            .stride_b = n,
            .stride_c = r * r},
           launch);
    matmul({.m = r,
            .n = r,
            .k = r,
            .a = s.gram,
            .b = s.gram,
            .c = s.polynomial,
            .lda = r,
            .ldb = r,
            .ldc = r,
            .alpha = static_cast<float>(NewtonSchulz::c),
            .beta = static_cast<float>(NewtonSchulz::b),
            .addend = s.gram,
            .batch = batch.count,
            .stride_a = r * r,
            .stride_b = r * r,
            .stride_c = r * r},
           launch);
    matmul({.m = A,
            .n = B,
            .k = r,
            .a = wide ? s.polynomial : s.x,
            .b = wide ? s.x : s.polynomial,
            .c = s.next_x,
            .lda = wide ? r : B,
            .ldb = B,
            .ldc = B,
            .beta = static_cast<float>(NewtonSchulz::a),
            .addend = s.x,
            .batch = batch.count,
            .stride_a = wide ? r * r : n,
            .stride_b = wide ? n : r * r,
            .stride_c = n},
           launch);
    std::swap(s.x, s.next_x);
  }
}

}  // namespace

struct CudaUpdate::Impl {
  OptimizerPlace place;
  OptimizerOptions options;
  std::vector<ParameterPlan> plans;
  std::vector<Tensor> frozen;  // gradients

  std::int64_t parameter_count = 0;  // not frozen
  std::int64_t norm_chunk_count = 0;
  std::int64_t adamw_chunk_count = 0;
  Tensor norm_chunks, first_chunk, partial, squares;
  Tensor adamw_chunks;
  std::vector<MuonBatch> batches;
  std::size_t scratch_bytes = 0;

  Tensor numbers;  // StepLimits, then UpdateScalars by plan
  Tensor verdict;  // StepVerdict

  const StepLimits* limits() const { return rows_of<StepLimits>(numbers); }
  const UpdateScalars* scalars() const { return reinterpret_cast<const UpdateScalars*>(limits() + 1); }
  StepVerdict* decided() const { return static_cast<StepVerdict*>(verdict.raw()); }

  void make_tables(std::span<const OptimizerMoments> moments);
  void make_batches(std::span<const OptimizerMoments> moments);
  void update_muon(const MuonBatch& batch, std::byte* scratch) const;
};

// Chunks of all parameters that are not frozen, in order, and of those that AdamW updates.
void CudaUpdate::Impl::make_tables(std::span<const OptimizerMoments> moments) {
  std::vector<NormChunk> norms;
  std::vector<std::int32_t> first{0};
  std::vector<AdamWChunk> adamw;
  for (std::size_t p = 0; p < plans.size(); ++p) {
    const Parameter& parameter = *plans[p].parameter;
    if (plans[p].rule == UpdateRule::frozen) {
      frozen.push_back(parameter.grad);
      continue;
    }
    const bool rounded = parameter.value.dtype() == DType::bf16;
    for (std::int64_t begin = 0; begin < parameter.grad.numel(); begin += kChunk) {
      const auto n = static_cast<std::int32_t>(std::min<std::int64_t>(kChunk, parameter.grad.numel() - begin));
      norms.push_back({parameter.grad.data<float>() + begin, n, 0});
      if (plans[p].rule != UpdateRule::adamw) continue;
      adamw.push_back({.p = parameter.master.data<float>() + begin,
                       .grad = parameter.grad.data<float>() + begin,
                       .m = moments[p].first.data<float>() + begin,
                       .v = moments[p].second.data<float>() + begin,
                       .value = rounded ? parameter.value.data<bfloat16>() + begin : nullptr,
                       .n = n,
                       .plan = static_cast<std::int32_t>(p)});
    }
    first.push_back(static_cast<std::int32_t>(norms.size()));
  }
  parameter_count = static_cast<std::int64_t>(first.size()) - 1;
  norm_chunk_count = static_cast<std::int64_t>(norms.size());
  adamw_chunk_count = static_cast<std::int64_t>(adamw.size());
  norm_chunks = table<NormChunk>(norms, place);
  first_chunk = table<std::int32_t>(first, place);
  adamw_chunks = table<AdamWChunk>(adamw, place);
  partial = Tensor({norm_chunk_count}, DType::f64, place.memory);
  squares = Tensor({parameter_count}, DType::f64, place.memory);
}

void CudaUpdate::Impl::make_batches(std::span<const OptimizerMoments> moments) {
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<MuonMatrix>> by_shape;
  for (std::size_t p = 0; p < plans.size(); ++p) {
    const ParameterPlan& plan = plans[p];
    if (plan.rule != UpdateRule::muon) continue;
    const std::int64_t elements = plan.matrix_rows() * plan.matrix_columns();
    const bool rounded = plan.parameter->value.dtype() == DType::bf16;
    for (std::int64_t i = 0; i < plan.matrices; ++i) {
      by_shape[{plan.matrix_rows(), plan.matrix_columns()}].push_back(
          {.p = plan.parameter->master.data<float>() + i * elements,
           .grad = plan.parameter->grad.data<float>() + i * elements,
           .momentum = moments[p].first.data<float>() + i * elements,
           .value = rounded ? plan.parameter->value.data<bfloat16>() + i * elements : nullptr,
           .plan = static_cast<std::int32_t>(p),
           .unused = 0});
    }
  }
  for (const auto& [shape, matrices] : by_shape) {
    const auto [A, B] = shape;
    const std::size_t fixed = MuonScratch(A, B, 0, nullptr).bytes;
    const std::size_t each = MuonScratch(A, B, 1, nullptr).bytes - fixed;
    const std::size_t together = std::max<std::size_t>(1, kMuonScratch / each);
    for (std::size_t begin = 0; begin < matrices.size(); begin += together) {
      const std::size_t count = std::min(together, matrices.size() - begin);
      batches.push_back({.A = A,
                         .B = B,
                         .count = static_cast<std::int64_t>(count),
                         .matrices = table(std::span<const MuonMatrix>(matrices).subspan(begin, count), place)});
      scratch_bytes = std::max(scratch_bytes, MuonScratch(A, B, batches.back().count, nullptr).bytes);
    }
  }
}

void CudaUpdate::Impl::update_muon(const MuonBatch& batch, std::byte* scratch) const {
  const cudaStream_t stream = cuda_stream(place.stream);
  MuonScratch s(batch.A, batch.B, batch.count, scratch);
  const MuonPass pass{.matrices = rows_of<MuonMatrix>(batch.matrices),
                      .elements = batch.elements(),
                      .chunks = static_cast<std::int32_t>(batch.chunks()),
                      .scalars = scalars(),
                      .verdict = decided(),
                      .squares = s.squares};
  const auto blocks = static_cast<unsigned>(batch.count * batch.chunks());
  const auto run = [&]<int kN>() {
    muon_momentum<kN><<<blocks, kUpdateThreads, 0, stream>>>(pass);
    WEFT_CHECK_LAUNCH();
    muon_direction<kN><<<blocks, kUpdateThreads, 0, stream>>>(pass, s.x);
    WEFT_CHECK_LAUNCH();
    newton_schulz(batch, s, place.stream);
    muon_apply<kN><<<blocks, kUpdateThreads, 0, stream>>>(pass, s.x);
    WEFT_CHECK_LAUNCH();
  };
  // Slices of a parameter start on 16 bytes if every matrix has a multiple of 4 elements.
  if (batch.elements() % 4 == 0) {
    run.template operator()<4>();
  } else {
    run.template operator()<1>();
  }
}

CudaUpdate::CudaUpdate(std::span<const ParameterPlan> plans, std::span<const OptimizerMoments> moments,
                       const OptimizerOptions& options, const OptimizerPlace& place)
    : impl_(std::make_unique<Impl>()) {
  impl_->place = place;
  impl_->options = options;
  impl_->plans.assign(plans.begin(), plans.end());
  impl_->make_tables(moments);
  impl_->make_batches(moments);
  const std::size_t bytes = sizeof(StepLimits) + plans.size() * sizeof(UpdateScalars);
  impl_->numbers = Tensor({static_cast<std::int64_t>(bytes / 4)}, DType::i32, place.memory);
  impl_->verdict = Tensor({sizeof(StepVerdict) / 4}, DType::i32, place.memory);
  synchronize(place.stream);  // before the host copies of the tables go
}

CudaUpdate::~CudaUpdate() = default;

void CudaUpdate::prepare(const StepSettings& settings, std::int64_t t) {
  Impl& u = *impl_;
  const Tensor host = Tensor::empty(u.numbers.shape(), DType::i32);
  auto* limits = static_cast<StepLimits*>(host.raw());
  *limits = {.clip = settings.clip, .most_loss = settings.most_loss, .most_norm = settings.most_norm, .unused = 0.0};
  auto* scalars = reinterpret_cast<UpdateScalars*>(limits + 1);
  for (std::size_t p = 0; p < u.plans.size(); ++p) {
    const ParameterPlan& plan = u.plans[p];
    const double rate = plan.learning_rate * settings.schedule_factor;
    UpdateScalars& s = scalars[p];
    s = {};
    if (plan.rule == UpdateRule::adamw) {
      s.adamw = adamw_scalars(plan.beta1, plan.beta2, u.options.adamw.eps, rate, plan.weight_decay, 1.0, t);
    } else if (plan.rule == UpdateRule::muon) {
      s.muon = muon_scalars(u.options.muon, rate, plan.weight_decay, 1.0, plan.matrix_rows(), plan.matrix_columns());
    }
  }
  copy(u.numbers, host, u.place.stream);
}

void CudaUpdate::launch(const Tensor& loss) {
  const Impl& u = *impl_;
  const cudaStream_t stream = cuda_stream(u.place.stream);
  if (u.norm_chunk_count > 0) {
    sum_squares<<<static_cast<unsigned>(u.norm_chunk_count), kUpdateThreads, 0, stream>>>(
        rows_of<NormChunk>(u.norm_chunks), u.partial.data<double>());
    WEFT_CHECK_LAUNCH();
  }
  decide_step<<<1, kDecideThreads, 0, stream>>>(
      u.partial.data<double>(), rows_of<std::int32_t>(u.first_chunk), static_cast<std::int32_t>(u.parameter_count),
      loss.defined() ? loss.data<double>() : nullptr, u.limits(), u.squares.data<double>(), u.decided());
  WEFT_CHECK_LAUNCH();
  if (u.adamw_chunk_count > 0) {
    adamw_chunk<<<static_cast<unsigned>(u.adamw_chunk_count), kUpdateThreads, 0, stream>>>(
        rows_of<AdamWChunk>(u.adamw_chunks), u.scalars(), u.decided());
    WEFT_CHECK_LAUNCH();
  }
  if (!u.batches.empty()) {
    WEFT_CHECK(u.place.scratch != nullptr, "Muon on a GPU without scratch memory");
    const Tensor scratch({static_cast<std::int64_t>(u.scratch_bytes / 4)}, DType::i32, u.place.scratch);
    for (const MuonBatch& batch : u.batches) u.update_muon(batch, static_cast<std::byte*>(scratch.raw()));
  }
  for (const Tensor& grad : u.frozen) fill_zero(grad, u.place.stream);
}

StepOutcome CudaUpdate::outcome() const {
  const Tensor host = to_host(impl_->verdict, impl_->place.stream);
  const auto* verdict = static_cast<const StepVerdict*>(host.raw());
  return {.norm = verdict->norm, .gradient_scale = verdict->clip_factor, .applied = verdict->apply != 0};
}

std::vector<double> CudaUpdate::squares() const {
  const Tensor host = to_host(impl_->squares, impl_->place.stream);
  const auto values = host.span<double>();
  return {values.begin(), values.end()};
}

}  // namespace weft
