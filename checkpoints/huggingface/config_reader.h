// Reads a config.json strictly: every field is asked for, known to mean nothing here, or an error.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

namespace weft {

// Each getter is an Error (config) that names the file and the field. A field that is null is as good as absent.
class ConfigReader {
 public:
  // `source` is how errors call the object, e.g. "model/config.json".
  ConfigReader(const nlohmann::json& object, std::string source);

  bool has(const std::string& key) const;
  // Whether the field is there, be it null: classes have defaults only for those that are not.
  bool names(const std::string& key) const;
  std::int64_t integer(const std::string& key, std::int64_t min, std::int64_t max);
  std::int64_t integer_or(const std::string& key, std::int64_t fallback, std::int64_t min, std::int64_t max);
  double real(const std::string& key, double min, double max);
  double real_or(const std::string& key, double fallback, double min, double max);
  bool flag_or(const std::string& key, bool fallback);
  std::string text(const std::string& key);
  // As many strings as `count`.
  std::vector<std::string> texts(const std::string& key, std::int64_t count);
  // A number, or several.
  std::vector<std::int32_t> tokens(const std::string& key);
  // An object, read by a reader of its own.
  ConfigReader object(const std::string& key);
  const nlohmann::json& value(const std::string& key);

  // Absent, null, or this value: another would change the function.
  void expect(const std::string& key, const nlohmann::json& value);
  // Fields that do not change the function.
  void ignore(std::initializer_list<const char*> keys);
  // Error if a field was neither asked for nor ignored.
  void finish() const;

  // The field need not be there: its default may be what is wrong.
  [[noreturn]] void refuse(const std::string& key, const std::string& why) const;
  const std::string& source() const { return source_; }

 private:
  const nlohmann::json* find(const std::string& key);
  const nlohmann::json& need(const std::string& key);

  const nlohmann::json* object_;
  std::string source_;
  std::set<std::string> seen_;
};

}  // namespace weft
