#include "data/synthetic/task.h"

#include <algorithm>
#include <fmt/format.h>

#include "data/storage/sha256.h"
#include "data/synthetic/tasks.h"

namespace weft {
namespace {

RandomStream stream_of(Split split) {
  switch (split) {
    case Split::train:
      return RandomStream::task_train;
    case Split::validation:
      return RandomStream::task_validation;
    case Split::test:
      break;
  }
  return RandomStream::task_test;
}

std::string as_text(const OptionValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return fmt::format("{}", *integer);
  if (const auto* real = std::get_if<double>(&value)) return fmt::format("{}", *real);
  if (const auto* text = std::get_if<std::string>(&value)) return fmt::format("{} {}", text->size(), *text);
  std::string all;
  for (const std::string& item : std::get<std::vector<std::string>>(value)) {
    all += fmt::format("{} {};", item.size(), item);
  }
  return all;
}

}  // namespace

RandomWords random_words(std::uint64_t seed, Split split, std::int64_t index) {
  return {seed, stream_of(split), static_cast<std::uint64_t>(index)};
}

const std::vector<const TaskType*>& task_types() {
  static const std::vector<const TaskType*> types = {&copy_task(),          &induction_task(), &listops_task(),
                                                     &mqar_task(),          &passkey_task(),   &selective_copy_task(),
                                                     &state_tracking_task()};
  return types;
}

const TaskType* find_task(std::string_view name) {
  const auto it = std::ranges::find(task_types(), name, [](const TaskType* type) { return type->name; });
  return it == task_types().end() ? nullptr : *it;
}

std::string task_digest(const TaskType& type, const Options& options, std::uint64_t seed) {
  std::string text = fmt::format("task {}\nseed {}\n", type.name, seed);
  for (const OptionSpec& spec : type.options) {
    text += fmt::format("{} {}\n", spec.key, as_text(options.values().at(spec.key)));
  }
  return hex(sha256(text));
}

}  // namespace weft
