// Strict JSON for files that may come from elsewhere: RFC 8259 and nothing more, and getters whose errors name the file
// and the key. Include <nlohmann/json.hpp> in the .cpp that builds or walks values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace weft {

inline constexpr int kMaxJsonDepth = 64;

// What a text holds, in its order, for readers of large texts that build no tree. A handler that does not override an
// event refuses it. Handlers may throw; strings may be moved from. Duplicate keys are the handler's to refuse.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void begin_object() { unexpected("an object"); }
  virtual void end_object() {}
  virtual void key(std::string&) {}
  virtual void begin_array() { unexpected("an array"); }
  virtual void end_array() {}
  virtual void string(std::string&) { unexpected("a string"); }
  virtual void integer(std::int64_t) { unexpected("an integer"); }
  virtual void number(double) { unexpected("a number with a fraction or an exponent"); }
  virtual void boolean(bool) { unexpected("true or false"); }
  virtual void null() { unexpected("null"); }

 protected:
  // Throws: this value has no place here.
  [[noreturn]] virtual void unexpected(std::string_view found) = 0;
};

// Reports one value that fills the whole text. Refused, as an Error (storage) that names `source`, line and column:
// syntax errors, invalid UTF-8, NUL bytes, nesting deeper than `max_depth`, integers outside int64, and numbers that
// are no finite double. Recursion and memory do not depend on the text.
void parse_strict_events(std::string_view text, std::string_view source, JsonEvents& events, int max_depth);

// Parses one value that fills the whole text. Refused, as an Error (storage): what parse_strict_events refuses with
// kMaxJsonDepth, duplicate keys, and texts longer than `max_bytes`.
nlohmann::json parse_strict(std::string_view text, std::string_view source,
                            std::uint64_t max_bytes = std::uint64_t{64} << 20);

// read_small_file and parse_strict.
nlohmann::json read_json_file(const std::string& path, std::uint64_t max_bytes = std::uint64_t{64} << 20);

// Sorted keys, no insignificant white space, UTF-8. Equal values give equal text.
std::string canonical(const nlohmann::json& value);

// Getters of an object's members. `source` is how errors call the object, e.g. "run/manifest.json" or
// "run/manifest.json, files[3]". A missing key, another type or a value out of range is an Error (storage).
std::int64_t require_int(const nlohmann::json& object, std::string_view key, std::string_view source,
                         std::int64_t min = std::numeric_limits<std::int64_t>::min(),
                         std::int64_t max = std::numeric_limits<std::int64_t>::max());
bool require_bool(const nlohmann::json& object, std::string_view key, std::string_view source);
const std::string& require_string(const nlohmann::json& object, std::string_view key, std::string_view source);
const nlohmann::json& require_object(const nlohmann::json& object, std::string_view key, std::string_view source);
const nlohmann::json& require_array(const nlohmann::json& object, std::string_view key, std::string_view source);
const nlohmann::json& require_key(const nlohmann::json& object, std::string_view key, std::string_view source);

// Error (storage) if `object` is no object or has a key that is not allowed; keys that begin with "x_" always are.
void check_keys(const nlohmann::json& object, std::initializer_list<std::string_view> allowed, std::string_view source);

}  // namespace weft
