#include "train/verify/precision.h"

#include <algorithm>
#include <numeric>

#include "autograd/random_tensor.h"
#include "autograd/tape_watch.h"
#include "autograd/transfer.h"

namespace weft {
namespace {

constexpr double kRoundings = 4.0;          // that inputs and parameters move by
constexpr std::uint64_t kDisturbance = 30;  // seed

bool is_row(const Tensor& t, std::int64_t T) {
  return t.rank() >= 2 && t.dim(0) == T;
}

// The compared tokens of a row as a row of their own.
class Excerpt {
 public:
  Excerpt(const Documents& documents, const ComparedTokens& compared) : whole_(documents), compared_(compared) {}

  // Copies of tensors of tokens; others as they are.
  Tensor of(const Tensor& t) const {
    if (!t.defined() || t.rank() == 0 || t.dim(0) != whole_.tokens()) return t;
    Shape shape = t.shape();
    shape.set(0, compared_.total());
    const Tensor part = Tensor::empty(shape, t.dtype());
    std::int64_t to = 0;
    for_each_span([&](std::int64_t begin, std::int64_t end) {
      part.rows(to, to + end - begin).copy_from(t.rows(begin, end));
      to += end - begin;
    });
    return part;
  }
  std::vector<Tensor> of(const std::vector<Tensor>& list) const {
    std::vector<Tensor> parts;
    for (const Tensor& t : list) parts.push_back(of(t));
    return parts;
  }
  DocumentsPtr documents() const {
    std::vector<std::int32_t> cu{0}, pos0;
    for (std::int64_t n = 0; n < whole_.count(); ++n) {
      const std::int32_t tokens = compared_.tokens[static_cast<std::size_t>(n)];
      if (tokens == 0) continue;
      cu.push_back(cu.back() + tokens);
      pos0.push_back(whole_.pos0(n));
    }
    return std::make_shared<const Documents>(std::move(cu), std::move(pos0),
                                             whole_.anchored() ? Anchor::first_token : Anchor::none);
  }
  // A copy of a tensor of tokens with zeros at those that are not compared.
  Tensor alone(const Tensor& t) const {
    if (!is_row(t, whole_.tokens())) return t;
    const Tensor result = Tensor::zeros(t.shape(), t.dtype());
    for_each_span([&](std::int64_t begin, std::int64_t end) { result.rows(begin, end).copy_from(t.rows(begin, end)); });
    return result;
  }
  // Labels of which those that are not compared are ignored.
  Tensor labels(const Tensor& labels) const {
    if (!labels.defined()) return labels;
    const Tensor result = Tensor::empty(labels.shape(), DType::i32);
    std::ranges::fill(result.span<std::int32_t>(), -1);
    for_each_span(
        [&](std::int64_t begin, std::int64_t end) { result.rows(begin, end).copy_from(labels.rows(begin, end)); });
    return result;
  }

 private:
  template <class F>
  void for_each_span(F&& f) const {
    for (std::int64_t n = 0; n < whole_.count(); ++n) {
      const std::int64_t begin = whole_.begin(n);
      f(begin, begin + compared_.tokens[static_cast<std::size_t>(n)]);
    }
  }

  const Documents& whole_;
  const ComparedTokens& compared_;
};

// What operations choose, such as the blocks that a query attends to, jumps where rounding decides between two that are
// as good. So fp64 follows what the device chose; how often it would have chosen otherwise is a result of its own.
class Choices final : public TapeWatch {
 public:
  struct Choice {
    std::string op;
    Tensor indices;  // i32 [T, ..., n] in host memory, -1: none
  };

  explicit Choices(const Stream& stream) : stream_(stream) {}
  // On the CPU.
  explicit Choices(const std::vector<Choice>& followed) : followed_(&followed) {}

  // Those of the run itself, not those that it followed.
  const std::vector<Choice>& made() const { return made_; }

  void chosen(const char* op, const Tensor& choice) override {
    made_.push_back({op, to_host(choice, stream_).clone()});
    if (followed_ == nullptr) return;
    WEFT_CHECK(made_.size() <= followed_->size(), "{} chooses once more than it did on the device", op);
    const Tensor& from = (*followed_)[made_.size() - 1].indices;
    const std::int64_t rows = choice.numel() / choice.shape().back();
    const std::int64_t n = choice.shape().back(), given = from.shape().back();
    WEFT_CHECK(from.numel() == rows * given, "{}: {} for {}", op, from.shape().str(), choice.shape().str());
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < n; ++i) {
        choice.data<std::int32_t>()[r * n + i] = i < given ? from.data<std::int32_t>()[r * given + i] : -1;
      }
    }
  }

 private:
  Stream stream_;
  const std::vector<Choice>* followed_ = nullptr;
  std::vector<Choice> made_;
};

// The share of what the reference chose that the other did not.
double disagreement(const Tensor& choice, const Tensor& reference) {
  const auto chosen = [](const Tensor& list, std::int64_t row) {
    const std::int64_t n = list.shape().back();
    std::vector<std::int32_t> indices(list.data<std::int32_t>() + row * n, list.data<std::int32_t>() + (row + 1) * n);
    std::erase(indices, -1);
    std::ranges::sort(indices);
    return indices;
  };
  std::int64_t all = 0, missing = 0;
  for (std::int64_t row = 0; row < reference.numel() / reference.shape().back(); ++row) {
    const std::vector<std::int32_t> mine = chosen(choice, row);
    for (const std::int32_t index : chosen(reference, row)) {
      ++all;
      if (!std::ranges::binary_search(mine, index)) ++missing;
    }
  }
  return all > 0 ? static_cast<double>(missing) / static_cast<double>(all) : 0.0;
}

std::vector<Distance> disagreements(const std::vector<Choices::Choice>& made,
                                    const std::vector<Choices::Choice>& reference) {
  WEFT_CHECK(made.size() == reference.size(), "{} choices, {} in the reference", made.size(), reference.size());
  std::vector<Distance> list;
  for (std::size_t i = 0; i < made.size(); ++i) {
    const double share = disagreement(made[i].indices, reference[i].indices);
    list.push_back({share, share});
  }
  return list;
}

// Everything a specimen gives, in one list with the names.
std::vector<Tensor> all_of(const SpecimenResult& r) {
  std::vector<Tensor> list = r.outputs;
  list.insert(list.end(), r.inputs.begin(), r.inputs.end());
  list.insert(list.end(), r.parameters.begin(), r.parameters.end());
  return list;
}

std::vector<Distance> distances(const std::vector<Tensor>& values, const std::vector<Tensor>& reference) {
  std::vector<Distance> list;
  for (std::size_t i = 0; i < values.size(); ++i) list.push_back(distance(values[i], reference[i]));
  return list;
}

std::vector<std::string> names_of(const PrecisionCase& c, Specimen& specimen) {
  std::vector<std::string> names = c.output_names;
  for (const std::string& name : c.input_names) names.push_back("d" + name);
  for (const Parameter* p : specimen.parameters().all()) names.push_back("d " + p->name);
  return names;
}

// What fp64 is given: all rounded as on the device.
struct Exact {
  std::vector<Tensor> inputs, seeds;
  SpecimenRow row;
  std::vector<Choices::Choice> followed;
};

// What fp64 makes of it.
struct Reference {
  std::vector<Tensor> values;
  std::vector<Choices::Choice> choices;
};
Reference reference_of(Specimen& fp64, const Exact& exact) {
  Choices choices(exact.followed);
  return {all_of(fp64.backward(exact.inputs, exact.row, exact.seeds)), choices.made()};
}

// How far fp64 moves when what rounding changes moves: inputs in fp32; in bf16, where every projection rounds,
// parameters and seeds as well, the largest of three draws. Of the values, then of the choices.
std::vector<Distance> conditions(const PrecisionCase& c, const Specimen& specimen, const Exact& exact,
                                 const Reference& reference) {
  const bool single = specimen.place().dtype != DType::bf16;
  const double unit = single ? 0x1p-24 : 0x1p-9;
  std::uint64_t seed = kDisturbance;
  const auto moved = [&](const Tensor& t) {
    const Tensor result = normal(t.shape(), seed++, kRoundings * unit);
    const Tensor value = to_host(t, DType::f64, {});
    for (std::int64_t i = 0; i < t.numel(); ++i) {
      result.data<double>()[i] = value.data<double>()[i] * (1.0 + result.data<double>()[i]);
    }
    return result;
  };
  std::vector<Distance> worst(reference.values.size() + reference.choices.size());
  for (int draw = 0; draw < (single ? 1 : 3); ++draw) {
    Specimen other(c.declare, specimen);
    Exact nearby{.inputs = {}, .seeds = {}, .row = exact.row, .followed = exact.followed};
    for (const Tensor& x : exact.inputs) nearby.inputs.push_back(moved(x));
    if (!single) {
      for (const Parameter* p : other.parameters().all()) p->value.copy_from(moved(p->value));
    }
    // The seed of a loss is 1 by definition.
    for (const Tensor& dy : exact.seeds) nearby.seeds.push_back(single || dy.numel() == 1 ? dy : moved(dy));
    const Reference result = reference_of(other, nearby);
    std::vector<Distance> far = distances(result.values, reference.values);
    for (const Distance& d : disagreements(result.choices, reference.choices)) far.push_back(d);
    for (std::size_t i = 0; i < worst.size(); ++i) {
      worst[i] = {std::max(worst[i].rel_f, far[i].rel_f), std::max(worst[i].rel_max, far[i].rel_max)};
    }
  }
  return worst;
}

}  // namespace

ComparedTokens ComparedTokens::all(const Documents& documents) {
  ComparedTokens compared;
  for (std::int64_t n = 0; n < documents.count(); ++n) compared.tokens.push_back(documents.length(n));
  return compared;
}

std::int64_t ComparedTokens::total() const {
  return std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0});
}

std::vector<PrecisionResult> compare_with_double(const PrecisionCase& c, Specimen& specimen) {
  const DType dtype = specimen.place().dtype;
  const Excerpt excerpt(*c.row.documents, c.compared);
  std::vector<Tensor> inputs, seeds;
  for (const Tensor& x : c.inputs) inputs.push_back(to_host(x, dtype, {}));
  for (const Tensor& dy : c.seeds) seeds.push_back(excerpt.alone(to_host(dy, dtype, {})));
  SpecimenResult device;
  std::vector<Choices::Choice> choices;
  {
    Choices noted(specimen.place().stream);
    device = specimen.backward(inputs, {.documents = c.row.documents, .labels = excerpt.labels(c.row.labels)}, seeds);
    for (const Choices::Choice& choice : noted.made()) choices.push_back({choice.op, excerpt.of(choice.indices)});
  }
  device.outputs = excerpt.of(device.outputs);
  device.inputs = excerpt.of(device.inputs);

  const Exact exact{.inputs = excerpt.of(inputs),
                    .seeds = excerpt.of(seeds),
                    .row = {.documents = excerpt.documents(), .labels = excerpt.of(c.row.labels)},
                    .followed = choices};
  Specimen fp64(c.declare, specimen);
  const Reference reference = reference_of(fp64, exact);
  std::vector<Distance> errors = distances(all_of(device), reference.values);
  std::vector<std::string> names = names_of(c, specimen);
  const std::size_t outputs = device.outputs.size(), parameters = outputs + device.inputs.size();
  const std::size_t values = errors.size();
  for (const Distance& d : disagreements(choices, reference.choices)) errors.push_back(d);
  for (const Choices::Choice& choice : choices) names.push_back(choice.op);
  WEFT_CHECK(names.size() == errors.size(), "{} names for {} results", names.size(), errors.size());

  std::vector<PrecisionResult> results;
  for (std::size_t i = 0; i < errors.size(); ++i) {
    const bool forward = i < outputs || i >= values;
    // Gradients of parameters are sums over tokens.
    const bool sums = i >= parameters && i < values && dtype == DType::bf16;
    const double backward = std::max(c.tolerance.backward, sums ? kBf16TokenSums.backward : 0.0);
    const double max = std::max(c.tolerance.max, sums ? kBf16TokenSums.max : 0.0);
    results.push_back(
        {.quantity = names[i], .error = errors[i], .limit = {forward ? c.tolerance.forward : backward, max}});
  }
  if (std::ranges::all_of(results, &PrecisionResult::ok)) return results;

  // A specimen that magnifies more than this would test nothing.
  const double most = dtype == DType::bf16 ? 32.0 : 1e3;
  const std::vector<Distance> condition = conditions(c, specimen, exact, reference);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto raised = [&](double least, double by) { return std::clamp(by, least, most * least); };
    Distance& limit = results[i].limit;
    limit = {raised(limit.rel_f, condition[i].rel_f), raised(limit.rel_max, condition[i].rel_max)};
  }
  return results;
}

}  // namespace weft
