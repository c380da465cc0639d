#include "train/loop/find_nonfinite.h"

#include <cmath>
#include <optional>
#include <string_view>

#include "autograd/tape_watch.h"

namespace weft {
namespace {

struct Nonfinite {
  float first = 0.0F;
  std::int64_t at = 0, count = 0;
};

std::optional<Nonfinite> nonfinite_in(const Tensor& tensor, const Stream& stream) {
  if (!tensor.defined() || tensor.numel() == 0) return {};
  if (tensor.dtype() == DType::i32 || tensor.dtype() == DType::i64) return {};
  const Tensor host = to_host(tensor, DType::f32, stream);
  const std::span<const float> values = host.span<float>();
  std::optional<Nonfinite> found;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    if (!found) found = {.first = values[i], .at = static_cast<std::int64_t>(i)};
    ++found->count;
  }
  return found;
}

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
  Search(const Stream& stream, Of pass) : stream_(stream), pass_(pass) {}
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
      const std::optional<Nonfinite> bad = nonfinite_in(made.tensor, stream_);
      if (!bad) continue;
      for (const Value& value : from) {
        if (value.parameter == nullptr && nonfinite_in(value.tensor, stream_)) return;
      }
      found_ = fmt::format("{}, at {}: {}{} makes {} from finite inputs", pass, module_.empty() ? "the start" : module_,
                           op, parameters, describe(*bad, made.tensor));
      return;
    }
  }

  Stream stream_;
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
  for (const Parameter* parameter : model.parameters().all()) {
    const std::optional<Nonfinite> bad = nonfinite_in(parameter->value, place.stream);
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
      Search search(place.stream, pass);
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
