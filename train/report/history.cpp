// Runs as they were logged.
#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "train/report/report.h"

namespace weft {
namespace {

// Keeps members in the order of the file, and so the phases in theirs.
using Json = nlohmann::ordered_json;

constexpr std::uint64_t kMostBytes = std::uint64_t{512} << 20;
constexpr std::size_t kLongestLine = 1 << 16;
constexpr std::uint64_t kLongestRecipe = 1 << 20;
constexpr std::size_t kMostPhases = 16;
constexpr std::size_t kMostReferences = 8;
constexpr double kMostSteps = 1e15;  // neighbours are distinct doubles
constexpr std::array kCurves = {"loss",   "val_loss", "val_bits_per_byte", "val_accuracy", "lr",     "grad_norm",
                                "tokens", "seconds",  "tokens_per_second", "mfu",          "skipped"};

// Finite numbers only, so that no chart has to think of others; true and false count as 1 and 0.
bool to_finite(const Json& value, double& number) {
  if (value.is_boolean()) {
    number = value.get<bool>() ? 1.0 : 0.0;
    return true;
  }
  if (!value.is_number()) return false;
  number = value.get<double>();
  return std::isfinite(number);
}

void read_run_row(const Json& run, RunHistory& history) {
  if (!run.is_object()) return;
  if (const auto name = run.find("name"); name != run.end() && name->is_string()) history.name = *name;
  const auto references = run.find("references");
  if (references == run.end() || !references->is_object()) return;
  for (const auto& [name, value] : references->items()) {
    double level = 0.0;
    if (history.references.size() < kMostReferences && to_finite(value, level)) {
      history.references.emplace_back(name, level);
    }
  }
}

void read_phases(const Json& phases, double step, RunHistory& history) {
  if (!phases.is_object()) return;
  for (const auto& [phase, value] : phases.items()) {
    double seconds = 0.0;
    if (!to_finite(value, seconds) || seconds < 0.0) continue;
    if (!history.seconds.contains(phase)) {
      if (history.phases.size() == kMostPhases) continue;
      history.phases.push_back(phase);
    }
    history.seconds[phase].add(step, seconds);
  }
}

// Whether the line is a row of metrics.
bool read_line(const std::string& line, RunHistory& history) {
  const auto row = Json::parse(line, nullptr, false);
  if (!row.is_object()) return false;
  if (const auto run = row.find("run"); run != row.end()) {
    read_run_row(*run, history);
    return true;
  }
  const auto step_value = row.find("step");
  double step = 0.0;
  if (step_value == row.end() || !step_value->is_number_integer() || !to_finite(*step_value, step) || step < 0.0 ||
      step > kMostSteps) {
    return false;
  }
  for (const char* key : kCurves) {
    double value = 0.0;
    if (const auto it = row.find(key); it != row.end() && to_finite(*it, value)) {
      history.curves[key].add(step, value);
    }
  }
  if (const auto phases = row.find("phases"); phases != row.end()) read_phases(*phases, step, history);
  return true;
}

}  // namespace

void Series::add(double step, double value) {
  while (!x.empty() && x.back() >= step) {
    x.pop_back();
    y.pop_back();
  }
  x.push_back(step);
  y.push_back(value);
}

const Series& RunHistory::curve(const std::string& key) const {
  static const Series none;
  const auto it = curves.find(key);
  return it == curves.end() ? none : it->second;
}

RunHistory read_run(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder) / "metrics.jsonl";
  if (!std::filesystem::is_regular_file(path)) {
    config_error("{} is no run: it has no metrics.jsonl", folder);
  }
  if (std::filesystem::file_size(path) > kMostBytes) {
    config_error("{} is larger than the {} MiB that a report reads", path.string(), kMostBytes >> 20);
  }
  RunHistory history;
  history.name = std::filesystem::weakly_canonical(folder).filename().string();
  std::ifstream file(path, std::ios::binary);
  std::string line;
  std::int64_t rows = 0;
  while (std::getline(file, line)) {
    if (line.empty()) continue;
    if (line.size() <= kLongestLine && read_line(line, history)) {
      ++rows;
    } else {
      ++history.unreadable_lines;
    }
  }
  if (file.bad()) storage_error("cannot read {}", path.string());
  if (rows == 0) config_error("{} has no row of metrics", path.string());

  const std::filesystem::path recipe = std::filesystem::path(folder) / "recipe.toml";
  if (std::filesystem::is_regular_file(recipe) && std::filesystem::file_size(recipe) <= kLongestRecipe) {
    history.recipe = read_small_file(recipe, kLongestRecipe);
  }
  return history;
}

Series downsample(const Series& series, std::size_t limit) {
  WEFT_CHECK(limit >= 2, "downsample to {} points", limit);
  const std::size_t n = series.x.size();
  if (n <= limit) return series;
  const std::size_t stretches = limit / 2;
  const double first = series.x.front();
  const double width = (series.x.back() - first) / static_cast<double>(stretches);
  Series result;
  std::size_t begin = 0;
  for (std::size_t s = 0; s < stretches && begin < n; ++s) {
    const double bound = first + width * static_cast<double>(s + 1);
    std::size_t end = begin;
    std::size_t low = begin;
    std::size_t high = begin;
    for (; end < n && (series.x[end] < bound || s + 1 == stretches); ++end) {
      if (series.y[end] < series.y[low]) low = end;
      if (series.y[end] > series.y[high]) high = end;
    }
    if (end == begin) continue;
    for (const std::size_t i : {std::min(low, high), std::max(low, high)}) {
      if (result.x.empty() || result.x.back() < series.x[i]) result.add(series.x[i], series.y[i]);
    }
    begin = end;
  }
  return result;
}

}  // namespace weft
