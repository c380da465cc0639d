// Values and names as text: TOML literals, near misses, step ranges and points.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "train/recipe/schema.h"

namespace weft {
namespace {

// Edits between two words (insert, delete, replace, swap neighbours), case-insensitive.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  std::vector<std::size_t> before_last(b.size() + 1);
  std::vector<std::size_t> last(b.size() + 1);
  std::vector<std::size_t> current(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool same = lower(a[i - 1]) == lower(b[j - 1]);
      current[j] = std::min({last[j] + 1, current[j - 1] + 1, last[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) && lower(a[i - 2]) == lower(b[j - 1])) {
        current[j] = std::min(current[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, current);
  }
  return last[b.size()];
}

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  constexpr std::size_t kLongest = 64;
  if (word.size() > kLongest) return {};
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string toml_string(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (code < 0x20 || code == 0x7f) {
      quoted += fmt::format("\\u{:04X}", code);
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string toml_value(const OptionValue& value, std::optional<double> automatic) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* integer = std::get_if<std::int64_t>(&value)) {
    return automatic == static_cast<double>(*integer) ? "\"auto\"" : std::to_string(*integer);
  }
  if (const auto* real = std::get_if<double>(&value)) {
    if (automatic == *real) return "\"auto\"";
    std::string text = fmt::format("{}", *real);
    if (text.find_first_of(".e") == std::string::npos) text += ".0";
    return text;
  }
  if (const auto* text = std::get_if<std::string>(&value)) return toml_string(*text);
  std::string list;
  for (const std::string& item : std::get<std::vector<std::string>>(value)) {
    list += (list.empty() ? "" : ", ") + toml_string(item);
  }
  return "[" + list + "]";
}

std::optional<std::pair<std::int64_t, std::int64_t>> parse_step_range(const std::string& text) {
  const std::size_t dash = text.find('-');
  const auto first = parse_number<std::int64_t>(std::string_view(text).substr(0, dash));
  const auto last =
      dash == std::string::npos ? first : parse_number<std::int64_t>(std::string_view(text).substr(dash + 1));
  if (!first || !last || *first < 0 || *last < *first) return std::nullopt;
  return std::pair(*first, *last);
}

std::optional<std::vector<std::pair<std::int64_t, double>>> parse_points(const std::vector<std::string>& texts) {
  std::vector<std::pair<std::int64_t, double>> points;
  for (const std::string& text : texts) {
    const std::size_t colon = text.find(':');
    if (colon == std::string::npos) return std::nullopt;
    const auto place = parse_number<std::int64_t>(std::string_view(text).substr(0, colon));
    const auto value = parse_number<double>(std::string_view(text).substr(colon + 1));
    if (!place || !value || *place < 0 || !std::isfinite(*value) || *value < 0) return std::nullopt;
    if (!points.empty() && *place <= points.back().first) return std::nullopt;
    points.emplace_back(*place, *value);
  }
  return points;
}

void RecipePlaces::add_override(const std::string& key, const std::string& text, std::int64_t index) {
  std::erase_if(places_, [&](const auto& entry) {
    return entry.first.starts_with(key + ".") || entry.first.starts_with(key + "[");
  });
  places_[key] = of_override(text, index);
}

RecipePlaces::Place RecipePlaces::find(std::string key) const {
  // The key itself, or the nearest table around it.
  for (;;) {
    if (const auto it = places_.find(key); it != places_.end()) return it->second;
    const std::size_t dot = key.find_last_of(".[");
    if (dot == std::string::npos) return {source_, 0};
    key.resize(dot);
  }
}

void RecipeProblems::raise() const {
  if (problems_.empty()) return;
  constexpr std::size_t kMost = 20;
  std::vector<Problem> sorted = problems_;
  std::ranges::stable_sort(sorted, {}, &Problem::order);
  std::string text;
  for (std::size_t i = 0; i < std::min(kMost, sorted.size()); ++i) text += (i ? "\n" : "") + sorted[i].message;
  if (sorted.size() > kMost) text += fmt::format("\n... and {} more", sorted.size() - kMost);
  config_error("{}", text);
}

}  // namespace weft
