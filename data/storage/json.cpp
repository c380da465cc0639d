#include "data/storage/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/text.h"

namespace weft {

namespace {

using nlohmann::json;

// Passes the parser's events on, except for what strictness refuses.
class StrictParser : public nlohmann::json_sax<json> {
 public:
  StrictParser(JsonEvents& events, int max_depth) : events_(events), max_depth_(max_depth) {}
  // What was wrong, and the byte (1-based) if the parser said so.
  std::string problem;
  std::optional<std::size_t> problem_byte;

  bool null() override {
    return pass([&] { events_.null(); });
  }
  bool boolean(bool b) override {
    return pass([&] { events_.boolean(b); });
  }
  bool number_integer(number_integer_t n) override {
    return pass([&] { events_.integer(n); });
  }
  bool number_unsigned(number_unsigned_t n) override {
    if (n > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) return integer_range();
    return pass([&] { events_.integer(static_cast<std::int64_t>(n)); });
  }
  bool number_float(number_float_t x, const string_t& text) override {
    if (text.find_first_of(".eE") == string_t::npos) return integer_range();
    if (!std::isfinite(x)) return refuse("a number that is no finite double");
    return pass([&] { events_.number(x); });
  }
  bool string(string_t& s) override {
    return pass([&] { events_.string(s); });
  }
  bool binary(binary_t&) override { return refuse("a binary value"); }
  bool key(string_t& name) override {
    return pass([&] { events_.key(name); });
  }

  bool start_object(std::size_t) override {
    return deeper() && pass([&] { events_.begin_object(); });
  }
  bool start_array(std::size_t) override {
    return deeper() && pass([&] { events_.begin_array(); });
  }
  bool end_object() override {
    --depth_;
    return pass([&] { events_.end_object(); });
  }
  bool end_array() override {
    --depth_;
    return pass([&] { events_.end_array(); });
  }

  bool parse_error(std::size_t byte, const std::string&, const json::exception& error) override {
    problem_byte = byte;
    const std::string_view text = error.what();
    // The library's text is "[json.exception...] parse error at line 1, column 2: reason"; the reason is kept.
    const auto colon = text.find(": ");
    return refuse(printable(colon == std::string_view::npos ? text : text.substr(colon + 2)));
  }

 private:
  template <class F>
  bool pass(F&& event) {
    event();
    return true;
  }
  bool refuse(std::string what) {
    if (problem.empty()) problem = std::move(what);
    return false;
  }
  bool integer_range() { return refuse("an integer outside the range of int64"); }
  bool deeper() { return ++depth_ <= max_depth_ || refuse(fmt::format("nesting deeper than {}", max_depth_)); }

  JsonEvents& events_;
  int max_depth_;
  int depth_ = 0;
};

// Builds a value from the events, which is where duplicate keys can still be seen.
class TreeBuilder final : public JsonEvents {
 public:
  explicit TreeBuilder(std::string_view source) : source_(source) {}
  json take() { return std::move(root_); }

  void null() override { place(nullptr); }
  void boolean(bool b) override { place(b); }
  void integer(std::int64_t n) override { place(n); }
  void number(double x) override { place(x); }
  void string(std::string& s) override { place(std::move(s)); }
  void begin_object() override { open_.push_back(place(json::object())); }
  void begin_array() override { open_.push_back(place(json::array())); }
  void end_object() override { open_.pop_back(); }
  void end_array() override { open_.pop_back(); }
  void key(std::string& name) override {
    if (open_.back()->contains(name)) {
      storage_error("{}: invalid JSON: duplicate key \"{}\"", source_, printable(name));
    }
    key_ = std::move(name);
  }

 private:
  [[noreturn]] void unexpected(std::string_view found) override { storage_error("{}: unexpected {}", source_, found); }
  json* place(json&& v) {
    if (open_.empty()) {
      root_ = std::move(v);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    return &(parent[key_] = std::move(v));
  }

  std::string_view source_;
  json root_;
  // Pointers into root_: a container grows only at its own end while it is the innermost open one.
  std::vector<json*> open_;
  std::string key_;
};

void check_finite(const json& value) {
  if (value.is_number_float()) {
    const auto x = value.get<double>();
    WEFT_CHECK(std::isfinite(x), "JSON cannot hold the number {}", x);
  } else if (value.is_structured()) {
    for (const json& member : value) check_finite(member);
  }
}

}  // namespace

void parse_strict_events(std::string_view text, std::string_view source, JsonEvents& events, int max_depth) {
  const auto refuse_at = [&](std::size_t at, std::string_view problem) {
    const std::string_view before = text.substr(0, at);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const auto last_break = before.rfind('\n');
    const std::size_t column = at - (last_break == std::string_view::npos ? 0 : last_break + 1) + 1;
    storage_error("{}: line {}, column {}: {}", source, line, column, problem);
  };
  // The parser would skip a byte order mark, and would take a NUL for the end; RFC 8259 has neither.
  if (text.starts_with("\xEF\xBB\xBF")) refuse_at(0, "JSON begins with a byte order mark");
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) refuse_at(nul, "invalid JSON: a NUL byte");
  StrictParser parser(events, max_depth);
  if (json::sax_parse(text.begin(), text.end(), &parser)) return;
  if (!parser.problem_byte) storage_error("{}: invalid JSON: {}", source, parser.problem);
  refuse_at(std::min(text.size(), *parser.problem_byte > 0 ? *parser.problem_byte - 1 : 0),
            "invalid JSON: " + parser.problem);
}

json parse_strict(std::string_view text, std::string_view source, std::uint64_t max_bytes) {
  if (text.size() > max_bytes) {
    storage_error("{}: {} bytes of JSON, at most {} are expected", source, text.size(), max_bytes);
  }
  TreeBuilder builder(source);
  parse_strict_events(text, source, builder, kMaxJsonDepth);
  return builder.take();
}

json read_json_file(const std::string& path, std::uint64_t max_bytes) {
  return parse_strict(read_small_file(path, max_bytes), path, max_bytes);
}

std::string canonical(const json& value) {
  check_finite(value);
  return value.dump(-1, ' ', false, json::error_handler_t::strict);
}

const json& require_key(const json& object, std::string_view key, std::string_view source) {
  if (!object.is_object()) storage_error("{}: expected an object, found {}", source, object.type_name());
  const auto found = object.find(key);
  if (found == object.end()) storage_error("{}: key \"{}\" is missing", source, key);
  return *found;
}

std::int64_t require_int(const json& object, std::string_view key, std::string_view source, std::int64_t min,
                         std::int64_t max) {
  const json& value = require_key(object, key, source);
  if (!value.is_number_integer()) {
    storage_error("{}: key \"{}\": expected an integer, found {}", source, key, value.type_name());
  }
  const bool too_large =
      value.is_number_unsigned() &&
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (too_large || value.get<std::int64_t>() < min || value.get<std::int64_t>() > max) {
    storage_error("{}: key \"{}\": {} is outside [{}, {}]", source, key, value.dump(), min, max);
  }
  return value.get<std::int64_t>();
}

bool require_bool(const json& object, std::string_view key, std::string_view source) {
  const json& value = require_key(object, key, source);
  if (!value.is_boolean()) {
    storage_error("{}: key \"{}\": expected true or false, found {}", source, key, value.type_name());
  }
  return value.get<bool>();
}

const std::string& require_string(const json& object, std::string_view key, std::string_view source) {
  const json& value = require_key(object, key, source);
  if (!value.is_string()) storage_error("{}: key \"{}\": expected a string, found {}", source, key, value.type_name());
  return value.get_ref<const std::string&>();
}

const json& require_object(const json& object, std::string_view key, std::string_view source) {
  const json& value = require_key(object, key, source);
  if (!value.is_object()) storage_error("{}: key \"{}\": expected an object, found {}", source, key, value.type_name());
  return value;
}

const json& require_array(const json& object, std::string_view key, std::string_view source) {
  const json& value = require_key(object, key, source);
  if (!value.is_array()) storage_error("{}: key \"{}\": expected an array, found {}", source, key, value.type_name());
  return value;
}

void check_keys(const json& object, std::initializer_list<std::string_view> allowed, std::string_view source) {
  if (!object.is_object()) storage_error("{}: expected an object, found {}", source, object.type_name());
  for (const auto& [key, value] : object.items()) {
    if (key.starts_with("x_")) continue;
    if (std::find(allowed.begin(), allowed.end(), key) == allowed.end()) {
      storage_error("{}: unknown key \"{}\"", source, printable(key));
    }
  }
}

}  // namespace weft
