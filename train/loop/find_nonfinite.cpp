#include "train/loop/find_nonfinite.h"

#include <cmath>
#include <optional>
#include <string_view>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/tape_watch.h"
#include "train/loop/nonfinite_tally.h"

namespace weft {
namespace {

template <class T>
void count_nonfinite_cpu(const NonfiniteCount& a) {
  const auto* x = static_cast<const T*>(a.x);
  for (std::int64_t i = 0; i < a.N; ++i) {
    if (std::isfinite(x[i])) continue;
    if (a.tally->count++ == 0) a.tally->behind = static_cast<unsigned long long>(a.N - i);
  }
}

constexpr Dispatch<NonfiniteCount> kCount{.op = "count of what is not finite",
                                          .cpu =
                                              [](const NonfiniteCount& args, const Launch&) {
                                                dispatch_real(args.dtype, "count of what is not finite",
                                                              [&]<class T>() { count_nonfinite_cpu<T>(args); });
                                              },
                                          .cuda = WEFT_ON_CUDA(count_nonfinite_cuda)};

struct Nonfinite {
  float first;
  std::int64_t at, count;
};

// Looks where tensors are: of each a few bytes come to the host.
class Inspection {
 public:
  explicit Inspection(const Place& place)
      : place_(place),
        tally_({2}, DType::i64, place.lasting),
        on_host_({2}, DType::i64, place.on_cpu() ? heap_allocator() : pinned_allocator()) {
    static_assert(sizeof(NonfiniteTally) == 2 * sizeof(std::int64_t));
  }

  std::optional<Nonfinite> of(const Tensor& tensor) const {
    if (!tensor.defined() || tensor.numel() == 0) return {};
    if (tensor.dtype() == DType::i32 || tensor.dtype() == DType::i64) return {};
    // Sums of losses, a few numbers in a type that kernels do not compute in.
    if (!place_.on_cpu() && tensor.dtype() == DType::f64) {
      return Inspection(cpu_place(DType::f64, heap_allocator())).of(to_host(tensor, place_.stream));
    }
    fill_zero(tally_, place_.stream);
    kCount({.dtype = tensor.dtype(),
            .N = tensor.numel(),
            .x = tensor.raw(),
            .tally = static_cast<NonfiniteTally*>(tally_.raw())},
           {.stream = place_.stream});
    copy(on_host_, tally_, place_.stream);
    synchronize(place_.stream);
    const std::int64_t count = on_host_.data<std::int64_t>()[0], behind = on_host_.data<std::int64_t>()[1];
    if (count == 0) return {};
    const std::int64_t at = tensor.numel() - behind;
    const Tensor first = tensor.reshape({tensor.numel()}).rows(at, at + 1);
    return Nonfinite{*to_host(first, DType::f32, place_.stream).data<float>(), at, count};
  }

 private:
  Place place_;
  Tensor tally_, on_host_;
};

std::string describe(const Nonfinite& found, const Tensor& tensor) {
  return fmt::format("{} at element {} of {}, {} of {} values not finite", found.first, found.at, tensor.shape().str(),
                     found.count, tensor.numel());
}

// "layers.3.mixer" of "layers.3.mixer.wq".
std::string module_of(const std::string& parameter) {
  const std::size_t dot = parameter.rfind('.');
  return dot == std::string::npos ? parameter : parameter.substr(0, dot);
}

// Looks at forward passes or at backward ones: where blocks are computed again, the operations of their forward pass
// come while the tape runs backward, with gradients that are not finite already.
class Search final : public TapeWatch {
 public:
  enum class Of : std::uint8_t { forward, backward };
  Search(const Inspection& inspection, Of pass) : inspection_(inspection), pass_(pass) {}
  const std::string& found() const { return found_; }

  void computed(const char* op, std::span<const Value> inputs, std::span<const Value> outputs) override {
    if (pass_ == Of::forward && std::string_view(op) != "recompute") look("forward", op, inputs, outputs, inputs);
  }
  void differentiated(const char* op, std::span<const Value> from, std::span<const Value> to) override {
    if (pass_ == Of::backward) look("backward", op, from, to, to);
  }

 private:
  // The values of an operation's parameters may be what is wrong: they do not count as its inputs.
  void look(const char* pass, const char* op, std::span<const Value> from, std::span<const Value> to,
            std::span<const Value> near) {
    if (!found_.empty()) return;
    std::string parameters;
    for (const Value& value : near) {
      if (value.parameter == nullptr) continue;
      parameters += (parameters.empty() ? " with " : ", ") + value.parameter->name;
      module_ = module_of(value.parameter->name);
    }
    for (const Value& made : to) {
      const std::optional<Nonfinite> bad = inspection_.of(made.tensor);
      if (!bad) continue;
      for (const Value& value : from) {
        if (value.parameter == nullptr && inspection_.of(value.tensor)) return;
      }
      found_ = fmt::format("{}, at {}: {}{} makes {} from finite inputs", pass, module_.empty() ? "the start" : module_,
                           op, parameters, describe(*bad, made.tensor));
      return;
    }
  }

  const Inspection& inspection_;
  Of pass_;
  std::string module_;  // of the parameter that was met last
  std::string found_;
};

}  // namespace

std::vector<std::string> find_nonfinite(LanguageModel& model, const std::vector<Batch>& batches, const Place& place,
                                        double denominator, double z_loss) {
  constexpr std::size_t kMost = 4;
  std::vector<std::string> lines;
  std::size_t more = 0;
  const Inspection inspection(place);
  for (const Parameter* parameter : model.parameters().all()) {
    const std::optional<Nonfinite> bad = inspection.of(parameter->value);
    if (!bad) continue;
    if (lines.size() == kMost) {
      ++more;
      continue;
    }
    lines.push_back(fmt::format("the parameter {} is {}", parameter->name, describe(*bad, parameter->value)));
  }
  if (more > 0) lines.push_back(fmt::format("and {} more parameters", more));

  const Tensor seed = to_memory(Tensor::from({1}, std::vector<float>{1.0F}), place.arena, place.stream);
  for (const Search::Of pass : {Search::Of::forward, Search::Of::backward}) {
    for (const Batch& batch : batches) {
      // What the pass before left in them would be taken for an origin.
      model.parameters().zero_gradients(place.stream);
      Search search(inspection, pass);
      Tape tape(place.arena, Tape::Mode::record, place.stream);
      const LossTerms terms =
          model.loss(tape, tape.here(batch.tokens), batch.documents, tape.here(batch.labels), tape.here(batch.weights),
                     {.denominator = denominator, .z_loss = z_loss, .token_losses = {}, .unit_seed = true});
      tape.backward(terms.loss, seed);
      if (search.found().empty()) continue;
      lines.push_back(search.found());
      return lines;
    }
  }
  return lines;
}

}  // namespace weft
