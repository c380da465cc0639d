#include "checkpoints/huggingface/tensor_map.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "autograd/check.h"
#include "data/storage/text.h"

namespace weft {
namespace {

constexpr std::size_t kMostLines = 12;
// Elements that comparisons hold at a time, at least one row.
constexpr std::int64_t kBlockElements = std::int64_t{1} << 20;

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

double constant_at(const TensorRule& rule, std::int64_t i) {
  return rule.constant ? rule.constant(i) : rule.shift;
}

// Elements [begin, begin + out.size()) of a tensor's flat array.
void read_elements(const TensorSource& source, const SourceTensor& tensor, std::int64_t begin, std::span<float> out) {
  const std::int64_t row = tensor.row_elements();
  const auto count = static_cast<std::int64_t>(out.size());
  if (count == 0) return;
  const std::int64_t first = begin / row, last = (begin + count + row - 1) / row;
  if (begin % row == 0 && count % row == 0) {
    source.read_floats(tensor.name, first, last, out);
    return;
  }
  std::vector<float> rows(static_cast<std::size_t>((last - first) * row));
  source.read_floats(tensor.name, first, last, rows);
  std::copy_n(rows.begin() + (begin - first * row), count, out.begin());
}

// Calls f(begin, end) for blocks of whole rows.
template <class F>
void for_blocks(const SourceTensor& tensor, const F& f) {
  const std::int64_t rows =
      std::max<std::int64_t>(1, kBlockElements / std::max<std::int64_t>(1, tensor.row_elements()));
  for (std::int64_t begin = 0; begin < tensor.rows(); begin += rows) f(begin, std::min(tensor.rows(), begin + rows));
}

}  // namespace

bool follows_from_config(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

TensorMap::TensorMap(std::vector<TensorRule> rules, const std::vector<Parameter*>& parameters)
    : rules_(std::move(rules)) {
  std::set<std::string> names;
  for (std::size_t r = 0; r < rules_.size(); ++r) {
    const TensorRule& rule = rules_[r];
    WEFT_CHECK(names.insert(rule.name).second, "two rules for the tensor {}", rule.name);
    std::int64_t at = 0;
    for (const Piece& piece : rule.pieces) {
      parts_[piece.parameter].push_back({r, at, piece.begin, piece.count});
      at += piece.count;
    }
    WEFT_CHECK(rule.pieces.empty() || at == rule.shape.numel(), "tensor {} {} of pieces with {} elements", rule.name,
               rule.shape.str(), at);
  }
  for (const Parameter* p : parameters) {
    const auto found = parts_.find(p->name);
    WEFT_CHECK(found != parts_.end(), "no tensor holds the parameter {}", p->name);
    std::vector<Part>& parts = found->second;
    std::ranges::sort(parts, {}, &Part::parameter_begin);
    std::int64_t end = 0;
    for (const Part& part : parts) {
      WEFT_CHECK(part.parameter_begin == end && part.count > 0,
                 "elements of {} from {} are held by no tensor, or by two: the next piece is [{}, {})", p->name, end,
                 part.parameter_begin, part.parameter_begin + part.count);
      end += part.count;
    }
    WEFT_CHECK(end == p->shape.numel(), "tensors hold {} elements of {} {}", end, p->name, p->shape.str());
  }
  WEFT_CHECK(parts_.size() == parameters.size(), "tensors of {} parameters for a model of {}", parts_.size(),
             parameters.size());
}

const std::string& TensorMap::name_in(const TensorSource& source, const TensorRule& rule) {
  if (rule.other_name.empty() || source.find(rule.name) != nullptr) return rule.name;
  return source.find(rule.other_name) != nullptr ? rule.other_name : rule.name;
}

void TensorMap::check(const TensorSource& source) const {
  std::vector<std::string> problems;
  std::set<std::string, std::less<>> known;
  for (const TensorRule& rule : rules_) {
    const std::string& name = name_in(source, rule);
    known.insert(name);
    known.insert(rule.copies.begin(), rule.copies.end());
    const std::vector<std::int64_t> expected(rule.shape.begin(), rule.shape.end());
    const SourceTensor* tensor = source.find(name);
    if (tensor == nullptr) {
      problems.push_back(fmt::format("{} {}: missing", rule.name, shape_text(expected)));
    } else if (tensor->shape != expected) {
      problems.push_back(fmt::format("{}: its shape is {}, the config makes it {}", name, shape_text(tensor->shape),
                                     shape_text(expected)));
    }
    for (const std::string& copy : rule.copies) {
      const SourceTensor* second = source.find(copy);
      if (second != nullptr && second->shape != expected) {
        problems.push_back(fmt::format("{}: its shape is {}, not that of {}, {}", copy, shape_text(second->shape),
                                       rule.name, shape_text(expected)));
      }
    }
  }
  for (const SourceTensor& tensor : source.tensors()) {
    if (known.contains(tensor.name) || follows_from_config(tensor.name)) continue;
    problems.push_back(fmt::format("{} {}: not a tensor of this class; the model would lose what it does",
                                   printable(tensor.name), shape_text(tensor.shape)));
  }
  if (!problems.empty()) {
    std::string lines;
    for (std::size_t i = 0; i < std::min(kMostLines, problems.size()); ++i) lines += "\n  " + problems[i];
    if (problems.size() > kMostLines) lines += fmt::format("\n  and {} more", problems.size() - kMostLines);
    config_error("{}: the tensors are not those of the model that the config describes:{}", source.where(""), lines);
  }
  for (const TensorRule& rule : rules_) {
    if (rule.pieces.empty()) check_constant(source, rule);
    for (const std::string& copy : rule.copies) {
      if (source.find(copy) != nullptr) check_copy(source, rule, copy);
    }
  }
}

void TensorMap::check_constant(const TensorSource& source, const TensorRule& rule) const {
  const SourceTensor& tensor = source.require(rule.name);
  std::vector<float> values;
  for_blocks(tensor, [&](std::int64_t begin, std::int64_t end) {
    values.resize(static_cast<std::size_t>((end - begin) * tensor.row_elements()));
    source.read_floats(rule.name, begin, end, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::int64_t at = begin * tensor.row_elements() + static_cast<std::int64_t>(i);
      const auto expected = static_cast<float>(constant_at(rule, at));
      // Other programs round powers otherwise.
      if (rule.any_value && std::isfinite(values[i])) continue;
      if (std::abs(values[i] - expected) <= 1e-5F * std::abs(expected)) continue;
      config_error("{}: element {} of {} is {}; weft has no parameter for it and can only take {}",
                   source.where(rule.name), at, rule.name, values[i], expected);
    }
  });
}

void TensorMap::check_copy(const TensorSource& source, const TensorRule& rule, const std::string& copy) const {
  const SourceTensor& tensor = source.require(rule.name);
  std::vector<float> first, second;
  for_blocks(tensor, [&](std::int64_t begin, std::int64_t end) {
    first.resize(static_cast<std::size_t>((end - begin) * tensor.row_elements()));
    second.resize(first.size());
    source.read_floats(rule.name, begin, end, first);
    source.read_floats(copy, begin, end, second);
    if (std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0) return;
    config_error("{}: the config says that {} is {}, but their values differ", source.where(copy), copy, rule.name);
  });
}

void TensorMap::read_parameter(const TensorSource& source, std::string_view parameter, std::span<float> out) const {
  const auto parts = parts_.find(parameter);
  WEFT_CHECK(parts != parts_.end(), "the model has no parameter {}", parameter);
  std::int64_t end = 0;
  for (const Part& part : parts->second) {
    const TensorRule& rule = rules_[part.rule];
    const auto into = out.subspan(static_cast<std::size_t>(part.parameter_begin), static_cast<std::size_t>(part.count));
    read_elements(source, source.require(name_in(source, rule)), part.tensor_begin, into);
    if (rule.shift != 0.0) {
      for (float& v : into) v -= static_cast<float>(rule.shift);
    }
    end += part.count;
  }
  WEFT_CHECK(end == static_cast<std::int64_t>(out.size()), "{} elements for {} of {}", out.size(), end, parameter);
}

void TensorMap::read_tensor(const TensorRule& rule, const ReadParameter& read, std::span<float> out) const {
  WEFT_CHECK(rule.shape.numel() == static_cast<std::int64_t>(out.size()), "{} elements for {} {}", out.size(),
             rule.name, rule.shape.str());
  if (rule.pieces.empty()) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = static_cast<float>(constant_at(rule, static_cast<std::int64_t>(i)));
    }
    return;
  }
  std::size_t at = 0;
  for (const Piece& piece : rule.pieces) {
    const auto count = static_cast<std::size_t>(piece.count);
    read(piece.parameter, piece.begin, out.subspan(at, count));
    at += count;
  }
  if (rule.shift != 0.0) {
    for (float& v : out) v += static_cast<float>(rule.shift);
  }
}

}  // namespace weft
