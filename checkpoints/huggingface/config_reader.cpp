#include "checkpoints/huggingface/config_reader.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "data/storage/text.h"

namespace weft {
namespace {

std::string shown(const nlohmann::json& value) {
  constexpr std::size_t kMost = 60;
  return printable(value.dump(), kMost);
}

}  // namespace

ConfigReader::ConfigReader(const nlohmann::json& object, std::string source)
    : object_(&object), source_(std::move(source)) {
  if (!object.is_object()) config_error("{}: expected an object, found {}", source_, shown(object));
}

const nlohmann::json* ConfigReader::find(const std::string& key) {
  seen_.insert(key);
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json& ConfigReader::need(const std::string& key) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) config_error("{}: the field {} is missing", source_, key);
  return *found;
}

bool ConfigReader::has(const std::string& key) const {
  const auto it = object_->find(key);
  return it != object_->end() && !it->is_null();
}

bool ConfigReader::names(const std::string& key) const {
  return object_->contains(key);
}

void ConfigReader::refuse(const std::string& key, const std::string& why) const {
  const auto found = object_->find(key);
  if (found == object_->end()) config_error("{}: {}, of which there is none: {}", source_, key, why);
  config_error("{}: {} = {}: {}", source_, printable(key), shown(*found), why);
}

std::int64_t ConfigReader::integer(const std::string& key, std::int64_t min, std::int64_t max) {
  const nlohmann::json& found = need(key);
  if (!found.is_number_integer()) refuse(key, "expected an integer");
  const auto value = found.get<std::int64_t>();
  if (value < min || value > max) refuse(key, fmt::format("expected {} to {}", min, max));
  return value;
}

std::int64_t ConfigReader::integer_or(const std::string& key, std::int64_t fallback, std::int64_t min,
                                      std::int64_t max) {
  return find(key) == nullptr ? fallback : integer(key, min, max);
}

double ConfigReader::real(const std::string& key, double min, double max) {
  const nlohmann::json& found = need(key);
  if (!found.is_number()) refuse(key, "expected a number");
  const auto value = found.get<double>();
  if (!(value >= min && value <= max)) refuse(key, fmt::format("expected {} to {}", min, max));
  return value;
}

double ConfigReader::real_or(const std::string& key, double fallback, double min, double max) {
  return find(key) == nullptr ? fallback : real(key, min, max);
}

bool ConfigReader::flag_or(const std::string& key, bool fallback) {
  const nlohmann::json* found = find(key);
  if (found == nullptr) return fallback;
  if (!found->is_boolean()) refuse(key, "expected true or false");
  return found->get<bool>();
}

std::string ConfigReader::text(const std::string& key) {
  const nlohmann::json& found = need(key);
  if (!found.is_string()) refuse(key, "expected a string");
  return found.get<std::string>();
}

std::vector<std::string> ConfigReader::texts(const std::string& key, std::int64_t count) {
  const nlohmann::json& found = need(key);
  if (!found.is_array() || static_cast<std::int64_t>(found.size()) != count) {
    refuse(key, fmt::format("expected {} strings", count));
  }
  std::vector<std::string> all;
  for (const nlohmann::json& entry : found) {
    if (!entry.is_string()) refuse(key, fmt::format("expected {} strings", count));
    all.push_back(entry.get<std::string>());
  }
  return all;
}

std::vector<std::int32_t> ConfigReader::tokens(const std::string& key) {
  constexpr std::int64_t kMost = 64;
  const nlohmann::json* found = find(key);
  if (found == nullptr) return {};
  const nlohmann::json list = found->is_array() ? *found : nlohmann::json::array({*found});
  if (static_cast<std::int64_t>(list.size()) > kMost) refuse(key, fmt::format("more than {} tokens", kMost));
  std::vector<std::int32_t> ids;
  for (const nlohmann::json& id : list) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 ||
        id.get<std::int64_t>() > std::numeric_limits<std::int32_t>::max()) {
      refuse(key, "expected a token id, or several");
    }
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

const nlohmann::json& ConfigReader::value(const std::string& key) {
  return need(key);
}

ConfigReader ConfigReader::object(const std::string& key) {
  return {need(key), source_ + ": " + key};
}

void ConfigReader::expect(const std::string& key, const nlohmann::json& value) {
  const nlohmann::json* found = find(key);
  if (found == nullptr || *found == value) return;
  refuse(key, fmt::format("only {} is understood", value.dump()));
}

void ConfigReader::ignore(std::initializer_list<const char*> keys) {
  for (const char* key : keys) seen_.insert(key);
}

void ConfigReader::finish() const {
  for (const auto& [key, value] : object_->items()) {
    if (seen_.contains(key) || value.is_null()) continue;
    refuse(key, "a field that is not understood; it may change what the model computes");
  }
}

}  // namespace weft
