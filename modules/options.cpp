#include "modules/options.h"

#include "autograd/check.h"

namespace weft {

OptionSpec integer_option(const char* key, std::int64_t default_value, const char* help, double minimum,
                          double maximum) {
  return {
      .key = key, .default_value = default_value, .help = help, .minimum = minimum, .maximum = maximum, .choices = {}};
}

OptionSpec real_option(const char* key, double default_value, const char* help, double minimum, double maximum) {
  return {
      .key = key, .default_value = default_value, .help = help, .minimum = minimum, .maximum = maximum, .choices = {}};
}

OptionSpec flag_option(const char* key, bool default_value, const char* help) {
  return {.key = key, .default_value = default_value, .help = help, .choices = {}};
}

OptionSpec choice_option(const char* key, const char* default_value, const char* help,
                         std::vector<std::string> choices) {
  return {.key = key, .default_value = std::string(default_value), .help = help, .choices = std::move(choices)};
}

OptionSpec later(OptionSpec spec) {
  spec.later = true;
  return spec;
}

Options::Options(std::span<const OptionSpec> specs) {
  for (const OptionSpec& spec : specs) values_[spec.key] = spec.default_value;
}

template <class T>
const T& Options::get(const std::string& key) const {
  const auto it = values_.find(key);
  WEFT_CHECK(it != values_.end(), "option {} was not declared", key);
  const T* value = std::get_if<T>(&it->second);
  WEFT_CHECK(value != nullptr, "option {} was declared with another type", key);
  return *value;
}
template const bool& Options::get(const std::string&) const;
template const std::int64_t& Options::get(const std::string&) const;
template const double& Options::get(const std::string&) const;
template const std::string& Options::get(const std::string&) const;
template const std::vector<std::string>& Options::get(const std::string&) const;

}  // namespace weft
