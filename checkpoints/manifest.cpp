#include "checkpoints/manifest.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "autograd/check.h"
#include "checkpoints/layout.h"
#include "checkpoints/shard_index.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "data/storage/sha256.h"
#include "data/storage/text.h"

namespace weft {

namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "weft-checkpoint";
constexpr std::size_t kMaxFiles = 1'000'000;
constexpr std::size_t kMaxAttachments = 100;

std::string require_digest(const json& object, std::string_view key, const std::string& source) {
  const std::string& text = require_string(object, key, source);
  if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    storage_error("{}: key \"{}\": expected 64 hexadecimal digits", source, key);
  }
  return text;
}

std::string require_file_name(const json& object, std::string_view key, const std::string& source,
                              std::set<std::string>& names) {
  const std::string& name = require_string(object, key, source);
  if (!is_bare_name(name)) storage_error("{}: key \"{}\": not a bare file name", source, key);
  if (!names.insert(name).second) storage_error("{}: key \"{}\": {} is named twice", source, key, name);
  return name;
}

ShardFile parse_file(const json& entry, const std::string& source, std::set<std::string>& names) {
  check_keys(entry, {"bytes", "index_name", "index_sha256", "name", "sha256"}, source);
  ShardFile file;
  file.name = require_file_name(entry, "name", source, names);
  file.index_name = require_file_name(entry, "index_name", source, names);
  file.bytes = static_cast<std::uint64_t>(require_int(entry, "bytes", source, 1));
  file.sha256 = require_digest(entry, "sha256", source);
  file.index_sha256 = require_digest(entry, "index_sha256", source);
  return file;
}

AttachedFile parse_attachment(const json& entry, const std::string& source, std::set<std::string>& names) {
  check_keys(entry, {"bytes", "name", "sha256"}, source);
  AttachedFile file;
  file.name = require_file_name(entry, "name", source, names);
  if (is_reserved_name(file.name)) storage_error("{}: key \"name\": {} is no attachment's name", source, file.name);
  file.bytes = static_cast<std::uint64_t>(require_int(entry, "bytes", source, 0, kMaxAttachmentBytes));
  file.sha256 = require_digest(entry, "sha256", source);
  return file;
}

ParameterRecord parse_parameter(const json& entry, const std::string& source, std::set<std::string>& names) {
  check_keys(entry, {"group", "name", "optimizer", "shape", "store"}, source);
  ParameterRecord parameter;
  parameter.name = require_string(entry, "name", source);
  if (!is_bare_name(parameter.name)) storage_error("{}: key \"name\": not a parameter name", source);
  if (!names.insert(parameter.name).second) storage_error("{}: {} is named twice", source, parameter.name);
  std::vector<std::int64_t> extents;
  for (const json& extent : require_array(entry, "shape", source)) {
    if (!extent.is_number_integer()) storage_error("{}: key \"shape\" holds {}", source, printable(extent.dump()));
    extents.push_back(extent.get<std::int64_t>());
  }
  parameter.shape = parse_shape(extents, source);
  parameter.group = require_string(entry, "group", source);
  parameter.optimizer = require_string(entry, "optimizer", source);
  std::set<std::string> kinds;
  for (const json& kind : require_array(entry, "store", source)) {
    if (!kind.is_string() || !is_slice_kind(kind.get_ref<const std::string&>()) || !kinds.insert(kind).second) {
      storage_error("{}: key \"store\" holds {}", source, printable(kind.dump()));
    }
    parameter.store.push_back(kind);
  }
  return parameter;
}

std::string digest_of(const json& without_digest) {
  return hex(sha256(canonical(without_digest)));
}

std::shared_ptr<const json> require_shared_object(const json& root, std::string_view key, std::string_view source) {
  return std::make_shared<const json>(require_object(root, key, source));
}

}  // namespace

std::string format_manifest(const Manifest& manifest) {
  WEFT_CHECK(manifest.mesh && manifest.state && manifest.provenance && manifest.info, "a manifest without its objects");
  json files = json::array();
  for (const ShardFile& file : manifest.files) {
    files.push_back({{"name", file.name},
                     {"bytes", file.bytes},
                     {"sha256", file.sha256},
                     {"index_name", file.index_name},
                     {"index_sha256", file.index_sha256}});
  }
  json parameters = json::array();
  for (const ParameterRecord& parameter : manifest.parameters) {
    parameters.push_back({{"name", parameter.name},
                          {"shape", std::vector<std::int64_t>(parameter.shape.begin(), parameter.shape.end())},
                          {"group", parameter.group},
                          {"optimizer", parameter.optimizer},
                          {"store", parameter.store}});
  }
  json info = *manifest.info;
  if (!manifest.metrics.empty()) info["metrics"] = manifest.metrics;
  const int minor = manifest.attachments.empty() ? 0 : 1;
  json root = {{"format", kFormat},         {"version", {{"major", 1}, {"minor", minor}}},
               {"step", manifest.step},     {"nonce", manifest.nonce},
               {"mesh", *manifest.mesh},    {"zero_stage", manifest.zero_stage},
               {"files", std::move(files)}, {"parameters", std::move(parameters)},
               {"state", *manifest.state},  {"provenance", *manifest.provenance},
               {"info", std::move(info)}};
  if (!manifest.attachments.empty()) {
    json& attachments = root["attachments"] = json::array();
    for (const AttachedFile& file : manifest.attachments) {
      attachments.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
    }
  }
  root["digest"] = digest_of(root);
  return canonical(root);
}

Manifest parse_manifest(std::string_view text, std::string_view source_view) {
  const std::string source(source_view);
  json root = parse_strict(text, source, kMaxManifestBytes);
  if (!root.is_object() || !root.contains("format") || root["format"] != kFormat) {
    storage_error("{}: not the manifest of a checkpoint", source);
  }
  // Before all else, so that a manifest of a later weft is called that and not damaged.
  const json& version = require_object(root, "version", source);
  if (const auto major = require_int(version, "major", source); major != 1) {
    storage_error("{}: checkpoint version {}, this weft reads version 1", source, major);
  }
  require_int(version, "minor", source, 0);
  check_keys(version, {"major", "minor"}, source);

  Manifest manifest;
  manifest.digest = require_digest(root, "digest", source);
  root.erase("digest");
  // Compared as text, so that a byte that parsing ignores counts as damage too.
  json complete = root;
  complete["digest"] = manifest.digest;
  if (digest_of(root) != manifest.digest || canonical(complete) != text) {
    storage_error("{}: damaged: its content does not match its digest", source);
  }

  check_keys(root,
             {"attachments", "files", "format", "info", "mesh", "nonce", "parameters", "provenance", "state", "step",
              "version", "zero_stage"},
             source);
  manifest.step = require_int(root, "step", source, 0, kMaxStep);
  manifest.nonce = require_string(root, "nonce", source);
  manifest.zero_stage = static_cast<int>(require_int(root, "zero_stage", source, 0, 3));
  const json& files = require_array(root, "files", source);
  if (files.size() > kMaxFiles) storage_error("{}: {} files", source, files.size());
  std::set<std::string> names;
  for (std::size_t i = 0; i < files.size(); ++i) {
    manifest.files.push_back(parse_file(files[i], fmt::format("{}, files[{}]", source, i), names));
  }
  if (root.contains("attachments")) {
    const json& attachments = require_array(root, "attachments", source);
    if (attachments.size() > kMaxAttachments) storage_error("{}: {} attachments", source, attachments.size());
    for (std::size_t i = 0; i < attachments.size(); ++i) {
      manifest.attachments.push_back(
          parse_attachment(attachments[i], fmt::format("{}, attachments[{}]", source, i), names));
    }
  }
  const json& parameters = require_array(root, "parameters", source);
  std::set<std::string> parameter_names;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    manifest.parameters.push_back(
        parse_parameter(parameters[i], fmt::format("{}, parameters[{}]", source, i), parameter_names));
  }
  manifest.mesh = require_shared_object(root, "mesh", source);
  manifest.state = require_shared_object(root, "state", source);
  manifest.provenance = require_shared_object(root, "provenance", source);
  manifest.info = require_shared_object(root, "info", source);
  if (const auto metrics = manifest.info->find("metrics"); metrics != manifest.info->end()) {
    if (!metrics->is_object()) storage_error("{}: key \"info.metrics\": expected an object", source);
    for (const auto& [name, value] : metrics->items()) {
      if (!value.is_number()) storage_error("{}: key \"info.metrics.{}\": expected a number", source, name);
      manifest.metrics[name] = value.get<double>();
    }
  }
  return manifest;
}

Manifest read_manifest(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kManifestName;
  return parse_manifest(read_small_file(path, kMaxManifestBytes), path.string());
}

}  // namespace weft
