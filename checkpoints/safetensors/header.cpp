#include "checkpoints/safetensors/header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "autograd/check.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {

namespace {

constexpr int kMaxHeaderDepth = 4;
constexpr std::string_view kMetadataKey = "__metadata__";

// Reads entries as they come; what concerns all of them together is checked afterwards.
class HeaderEvents final : public JsonEvents {
 public:
  explicit HeaderEvents(std::string_view source) : source_(source) {}
  SafetensorsHeader take() { return std::move(header_); }

  void begin_object() override {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::tensor_value || place_ == Place::metadata_value) {
      place_ = place_ == Place::tensor_value ? Place::tensor : Place::metadata;
    } else {
      unexpected("an object");
    }
  }

  void end_object() override {
    if (place_ == Place::tensor) {
      constexpr std::string_view kNames[] = {"dtype", "shape", "data_offsets"};
      for (const Key key : {Key::dtype, Key::shape, Key::data_offsets}) {
        if ((keys_seen_ & bit(key)) == 0) refuse("key \"{}\" is missing", kNames[static_cast<int>(key)]);
      }
    }
    place_ = Place::top;
  }

  void key(std::string& name) override {
    if (place_ == Place::top) {
      if (name == kMetadataKey) {
        if (std::exchange(metadata_seen_, true)) storage_error("{}: duplicate key \"{}\"", source_, kMetadataKey);
        place_ = Place::metadata_value;
      } else {
        begin_tensor(name);
      }
    } else if (place_ == Place::metadata) {
      if (header_.metadata.contains(name)) {
        storage_error("{}: {}: duplicate key \"{}\"", source_, kMetadataKey, printable(name));
      }
      metadata_key_ = std::move(name);
    } else {
      if (name == "dtype") {
        key_ = Key::dtype;
      } else if (name == "shape") {
        key_ = Key::shape;
      } else if (name == "data_offsets") {
        key_ = Key::data_offsets;
      } else {
        refuse("unknown key \"{}\"", printable(name));
      }
      if ((keys_seen_ & bit(key_)) != 0) refuse("duplicate key \"{}\"", name);
      keys_seen_ |= bit(key_);
    }
  }

  void string(std::string& value) override {
    if (place_ == Place::metadata) {
      header_.metadata.emplace(std::move(metadata_key_), std::move(value));
    } else if (place_ == Place::tensor && key_ == Key::dtype) {
      const auto dtype = safetensors_dtype(value);
      if (!dtype) refuse("unknown dtype \"{}\"", printable(value));
      entry().dtype = *dtype;
    } else {
      unexpected("a string");
    }
  }

  void begin_array() override {
    if (place_ != Place::tensor || key_ == Key::dtype) unexpected("an array");
    place_ = Place::numbers;
    offsets_ = 0;
  }

  void end_array() override {
    place_ = Place::tensor;
    if (key_ == Key::data_offsets && offsets_ != 2) refuse("data_offsets has {} numbers, 2 are expected", offsets_);
  }

  void integer(std::int64_t value) override {
    if (place_ != Place::numbers) unexpected("an integer");
    if (value < 0) refuse("{} holds the negative number {}", key_ == Key::shape ? "shape" : "data_offsets", value);
    if (key_ == Key::shape) {
      if (entry().shape.size() == kMaxSafetensorsDims) {
        refuse("more than {} dimensions, the most that are supported", kMaxSafetensorsDims);
      }
      entry().shape.push_back(value);
    } else {
      if (++offsets_ > 2) refuse("data_offsets has more than 2 numbers");
      (offsets_ == 1 ? entry().begin : entry().end) = static_cast<std::uint64_t>(value);
    }
  }

 private:
  enum class Place { outside, top, tensor_value, tensor, numbers, metadata_value, metadata };
  enum class Key { dtype, shape, data_offsets };
  static unsigned bit(Key key) { return 1u << static_cast<int>(key); }

  SafetensorsEntry& entry() { return header_.entries.back(); }

  void begin_tensor(std::string& name) {
    if (const std::string problem = tensor_name_problem(name); !problem.empty()) {
      storage_error("{}: tensor \"{}\": {}", source_, printable(name), problem);
    }
    if (header_.entries.size() == kMaxSafetensorsTensors) {
      storage_error("{}: more than {} tensors", source_, kMaxSafetensorsTensors);
    }
    header_.entries.emplace_back().name = std::move(name);
    keys_seen_ = 0;
    place_ = Place::tensor_value;
  }

  template <class... Args>
  [[noreturn]] void refuse(FormatString<Args...> format, Args&&... args) {
    storage_error("{}: tensor \"{}\": {}", source_, printable(entry().name),
                  format_text<Args...>(format, std::forward<Args>(args)...));
  }

  [[noreturn]] void unexpected(std::string_view found) override {
    switch (place_) {
      case Place::outside:
      case Place::top:
        storage_error("{}: the header is {}, an object is expected", source_, found);
      case Place::metadata_value:
        storage_error("{}: {} is {}, an object of strings is expected", source_, kMetadataKey, found);
      case Place::metadata:
        storage_error("{}: {}: key \"{}\" has {} as its value, a string is expected", source_, kMetadataKey,
                      printable(metadata_key_), found);
      case Place::tensor_value:
        refuse("its entry is {}, an object is expected", found);
      case Place::tensor:
        refuse("{} is {}, {} is expected",
               key_ == Key::dtype   ? "dtype"
               : key_ == Key::shape ? "shape"
                                    : "data_offsets",
               found, key_ == Key::dtype ? "a string" : "an array");
      case Place::numbers:
        refuse("{} holds {}, integers are expected", key_ == Key::shape ? "shape" : "data_offsets", found);
    }
    storage_error("{}: unexpected {}", source_, found);
  }

  std::string_view source_;
  SafetensorsHeader header_;
  Place place_ = Place::outside;
  Key key_ = Key::dtype;
  unsigned keys_seen_ = 0;
  int offsets_ = 0;
  bool metadata_seen_ = false;
  std::string metadata_key_;
};

void check_sizes(const SafetensorsEntry& entry, std::string_view source) {
  const auto refuse = [&]<class... Args>(FormatString<Args...> format, Args&&... args) {
    storage_error("{}: tensor \"{}\": {}", source, printable(entry.name),
                  format_text<Args...>(format, std::forward<Args>(args)...));
  };
  const auto bytes = tensor_bytes(entry.dtype, entry.shape);
  const std::string what = fmt::format("{} of shape [{}]", name_of(entry.dtype), fmt::join(entry.shape, ", "));
  if (!bytes) refuse("the size of {} overflows or is no whole number of bytes", what);
  if (entry.end < entry.begin) refuse("data_offsets end at {}, before their begin {}", entry.end, entry.begin);
  if (entry.end - entry.begin != *bytes) {
    refuse("data_offsets span {} bytes, {} needs {}", entry.end - entry.begin, what, *bytes);
  }
}

// The data is covered from its first byte to its last.
void check_coverage(const std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes, std::string_view source) {
  std::vector<std::uint32_t> order(entries.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return std::pair(entries[a].begin, entries[a].end) < std::pair(entries[b].begin, entries[b].end);
  });
  std::uint64_t covered = 0;
  for (const std::uint32_t index : order) {
    const SafetensorsEntry& entry = entries[index];
    if (entry.begin != covered) {
      storage_error("{}: tensor \"{}\": begins at byte {} of the data, {} the byte {} where the tensors before it end",
                    source, printable(entry.name), entry.begin,
                    entry.begin > covered ? "leaving a hole after" : "overlapping", covered);
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    storage_error("{}: its tensors end at byte {} of the data, of which there are {}", source, covered, data_bytes);
  }
}

}  // namespace

std::string tensor_name_problem(std::string_view name) {
  if (name.empty()) return "the name is empty";
  if (name.size() > kMaxTensorNameBytes) {
    return fmt::format("the name has {} bytes, at most {} are expected", name.size(), kMaxTensorNameBytes);
  }
  for (std::size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<unsigned char>(name[i]);
    // U+0080 to U+009F are control characters, too.
    const bool is_c1 = byte == 0xc2 && i + 1 < name.size() && static_cast<unsigned char>(name[i + 1]) < 0xa0;
    if (byte < 0x20 || byte == 0x7f || is_c1) return "the name has a control character";
  }
  return "";
}

std::optional<std::uint64_t> tensor_bytes(SafetensorsDType dtype, std::span<const std::int64_t> shape) {
  std::int64_t bits = 1;
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(bits, extent, &bits)) return std::nullopt;
  }
  if (__builtin_mul_overflow(bits, static_cast<std::int64_t>(bits_of(dtype)), &bits) || bits % 8 != 0) {
    return std::nullopt;
  }
  return static_cast<std::uint64_t>(bits / 8);
}

SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes, std::string_view source) {
  if (!json.starts_with('{')) storage_error("{}: the header does not begin with \"{{\"", source);
  HeaderEvents events(source);
  parse_strict_events(json, source, events, kMaxHeaderDepth);
  SafetensorsHeader header = events.take();
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(header.entries.begin(), header.entries.end(),
                         [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name == b.name; });
  if (twice != header.entries.end()) {
    storage_error("{}: duplicate key \"{}\": two tensors of one name", source, printable(twice->name));
  }
  for (const SafetensorsEntry& entry : header.entries) check_sizes(entry, source);
  check_coverage(header.entries, data_bytes, source);
  return header;
}

std::string format_safetensors_header(std::span<const SafetensorsEntry> entries,
                                      const std::map<std::string, std::string>& metadata) {
  const auto quoted = [](const std::string& text) { return nlohmann::json(text).dump(); };
  std::string text = "{";
  if (!metadata.empty()) text += quoted(std::string(kMetadataKey)) + ":" + nlohmann::json(metadata).dump();
  for (const SafetensorsEntry& entry : entries) {
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", text.size() > 1 ? "," : "",
                        quoted(entry.name), name_of(entry.dtype), fmt::join(entry.shape, ","), entry.begin, entry.end);
  }
  text += "}";
  const std::uint64_t unpadded = sizeof(std::uint64_t) + text.size();
  text.append((kSafetensorsAlignment - unpadded % kSafetensorsAlignment) % kSafetensorsAlignment, ' ');
  std::string length(sizeof(std::uint64_t), '\0');
  for (std::size_t i = 0; i < length.size(); ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  return length + text;
}

}  // namespace weft
