#include "parallel/gradient_reducer.h"

#include <algorithm>

namespace weft {
namespace {

std::int64_t padded(std::int64_t elements) {
  return (elements + FlatLayout::kPadding - 1) / FlatLayout::kPadding * FlatLayout::kPadding;
}

std::vector<std::int64_t> element_counts(const std::vector<Parameter*>& parameters) {
  std::vector<std::int64_t> counts;
  for (const Parameter* parameter : parameters) counts.push_back(parameter->shape.numel());
  return counts;
}

std::int64_t bucket_elements(const std::vector<Parameter*>& parameters, std::int64_t bucket_bytes) {
  const DType dtype = parameters.empty() ? DType::f32 : parameters.front()->grad.dtype();
  return bucket_bytes / static_cast<std::int64_t>(size_of(dtype));
}

}  // namespace

FlatLayout::FlatLayout(std::span<const std::int64_t> element_counts, std::int64_t bucket_elements)
    : bucket_of(element_counts.size()) {
  for (const std::int64_t count : element_counts) {
    offsets.push_back(elements);
    elements += padded(count);
  }
  std::int64_t end = elements;
  for (std::size_t p = element_counts.size(); p-- > 0;) {
    const bool fits = !buckets.empty() && buckets.back().end - offsets[p] <= bucket_elements;
    if (!fits) buckets.push_back({p, p + 1, 0, end});
    Bucket& bucket = buckets.back();
    bucket.first_parameter = p;
    bucket.begin = end = offsets[p];
    bucket_of[p] = buckets.size() - 1;
  }
}

GradientReducer::GradientReducer(Communicator& group, std::vector<Parameter*> parameters, std::int64_t bucket_bytes)
    : group_(&group), layout_(element_counts(parameters), bucket_elements(parameters, bucket_bytes)) {
  if (group_->size() == 1 || parameters.empty()) return;
  const DType dtype = parameters.front()->grad.dtype();
  WEFT_CHECK(dtype == DType::f32 || dtype == DType::f64, "gradients of {}", name_of(dtype));
  flat_ = Tensor::zeros({layout_.elements}, dtype);
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    Parameter& parameter = *parameters[p];
    WEFT_CHECK(parameter.grad.dtype() == dtype && parameter.grad.shape() == parameter.shape,
               "gradient of {}: {} {}, expected {} {}", parameter.name, name_of(parameter.grad.dtype()),
               parameter.grad.shape().str(), name_of(dtype), parameter.shape.str());
    const std::int64_t begin = layout_.offsets[p];
    const Tensor view = flat_.rows(begin, begin + parameter.shape.numel()).reshape(parameter.shape);
    view.copy_from(parameter.grad);
    parameter.grad = view;
    WEFT_CHECK(index_of_.emplace(&parameter, p).second, "parameter {} appears twice", parameter.name);
  }
  ready_.assign(parameters.size(), false);
  for (const FlatLayout::Bucket& bucket : layout_.buckets) {
    outstanding_.push_back(bucket.last_parameter - bucket.first_parameter);
  }
}

void GradientReducer::mark_ready(const Parameter& parameter) {
  if (!flat_.defined()) return;
  const auto found = index_of_.find(&parameter);
  WEFT_CHECK(found != index_of_.end(), "parameter {} is not reduced here", parameter.name);
  const std::size_t p = found->second;
  WEFT_CHECK(!ready_[p], "the gradient of {} was final before", parameter.name);
  ready_[p] = true;
  --outstanding_[layout_.bucket_of[p]];
  while (posted_ < layout_.buckets.size() && outstanding_[posted_] == 0) post_next_bucket();
  group_->progress();
}

void GradientReducer::finish() {
  if (!flat_.defined()) return;
  while (posted_ < layout_.buckets.size()) post_next_bucket();
  for (const Event& event : events_) event.wait();
  events_.clear();
  posted_ = 0;
  ready_.assign(ready_.size(), false);
  for (std::size_t b = 0; b < layout_.buckets.size(); ++b) {
    outstanding_[b] = layout_.buckets[b].last_parameter - layout_.buckets[b].first_parameter;
  }
}

void GradientReducer::post_next_bucket() {
  const FlatLayout::Bucket& bucket = layout_.buckets[posted_++];
  events_.push_back(group_->all_reduce(flat_.rows(bucket.begin, bucket.end), ReduceOp::sum));
}

}  // namespace weft
