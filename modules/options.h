// Options: what a recipe table may contain, declared as data so that one reader checks every table strictly.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace weft {

using OptionValue = std::variant<bool, std::int64_t, double, std::string, std::vector<std::string>>;

// One key: its type is that of its default. An integer is accepted where a real number is expected.
struct OptionSpec {
  std::string key;
  OptionValue default_value;
  std::string help;                                           // one line, for people
  double minimum = -std::numeric_limits<double>::infinity();  // inclusive, numbers only
  double maximum = std::numeric_limits<double>::infinity();   // inclusive
  std::vector<std::string> choices;                           // strings only; empty = any
  bool required = false;
  // Came after recipes had digests: at its default it is no part of them, so that they stay what they were.
  bool later = false;
};

OptionSpec integer_option(const char* key, std::int64_t default_value, const char* help, double minimum,
                          double maximum);
OptionSpec real_option(const char* key, double default_value, const char* help, double minimum, double maximum);
OptionSpec flag_option(const char* key, bool default_value, const char* help);
OptionSpec choice_option(const char* key, const char* default_value, const char* help,
                         std::vector<std::string> choices);

// The same key as one that came later.
OptionSpec later(OptionSpec spec);

// Values of one table after checking: every key of the specs is present. Asking for a key or type that was not declared
// is a defect (Error, internal).
class Options {
 public:
  Options() = default;
  explicit Options(std::span<const OptionSpec> specs);  // the defaults

  void set(const std::string& key, OptionValue value) { values_[key] = std::move(value); }
  bool flag(const std::string& key) const { return get<bool>(key); }
  std::int64_t integer(const std::string& key) const { return get<std::int64_t>(key); }
  double real(const std::string& key) const { return get<double>(key); }
  const std::string& text(const std::string& key) const { return get<std::string>(key); }
  const std::vector<std::string>& list(const std::string& key) const { return get<std::vector<std::string>>(key); }
  const std::map<std::string, OptionValue>& values() const { return values_; }

 private:
  template <class T>
  const T& get(const std::string& key) const;
  std::map<std::string, OptionValue> values_;
};

}  // namespace weft
