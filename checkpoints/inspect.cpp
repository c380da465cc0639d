#include "checkpoints/inspect.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/fsck.h"
#include "checkpoints/layout.h"
#include "data/storage/hdf5.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

std::vector<std::int64_t> extents(const Shape& shape) {
  return {shape.begin(), shape.end()};
}

json describe_run(const fs::path& run) {
  json checkpoints = json::array();
  for (const CheckpointEntry& entry : list_checkpoints(run)) {
    json one = {{"directory", entry.directory.string()}, {"step", entry.step}};
    try {
      const CheckpointReader reader(entry.directory);
      std::uint64_t bytes = 0;
      for (const ShardFile& file : reader.manifest().files) bytes += file.bytes;
      for (const AttachedFile& file : reader.attachments()) bytes += file.bytes;
      one["digest"] = reader.digest();
      one["bytes"] = bytes;
      one["metrics"] = reader.manifest().metrics;
      one["pinned"] = fs::exists(entry.directory / kPinnedName);
    } catch (const Error& error) {
      one["problem"] = error.what();
    }
    checkpoints.push_back(std::move(one));
  }
  return {{"what", "run"}, {"directory", run.string()}, {"checkpoints", std::move(checkpoints)}};
}

json describe_checkpoint(const fs::path& directory) {
  const CheckpointReader reader(directory);
  const Manifest& manifest = reader.manifest();
  json parameters = json::array();
  for (const ParameterRecord& parameter : reader.parameters()) {
    json kinds = json::object();
    for (const std::string& kind : parameter.store) kinds[kind] = name_of(reader.dtype(kind, parameter.name));
    parameters.push_back({{"name", parameter.name},
                          {"shape", extents(parameter.shape)},
                          {"group", parameter.group},
                          {"optimizer", parameter.optimizer},
                          {"kinds", std::move(kinds)}});
  }
  json bytes_by_kind = json::object();
  for (const ShardIndex& index : reader.indices()) {
    for (const SliceRecord& slice : index.slices) {
      bytes_by_kind[slice.kind] = bytes_by_kind.value(slice.kind, std::uint64_t{0}) + slice.byte_length();
    }
  }
  json files = json::array();
  for (const ShardFile& file : manifest.files) {
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  json attachments = json::array();
  for (const AttachedFile& file : manifest.attachments) {
    attachments.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  return {{"what", "checkpoint"},
          {"directory", directory.string()},
          {"step", reader.step()},
          {"digest", reader.digest()},
          {"mesh", reader.mesh()},
          {"zero_stage", manifest.zero_stage},
          {"files", std::move(files)},
          {"attachments", std::move(attachments)},
          {"parameters", std::move(parameters)},
          {"bytes_by_kind", std::move(bytes_by_kind)},
          {"state", reader.state()},
          {"provenance", reader.provenance()},
          {"info", *manifest.info}};
}

json describe_shard(const fs::path& path) {
  const Hdf5Reader file(path);
  json slices = json::array();
  for (const auto& [object, dataset] : file.datasets()) {
    slices.push_back({{"object", object},
                      {"dtype", file.text_attribute(object, "dtype")},
                      {"global_shape", file.int64s_attribute(object, "global_shape")},
                      {"bytes", dataset.bytes},
                      {"offset", dataset.offset}});
  }
  return {{"what", "shard"},
          {"file", path.string()},
          {"bytes", file.file_bytes()},
          {"step", file.int64_attribute("/", "step")},
          {"writer", file.int64_attribute("/", "writer")},
          {"slices", std::move(slices)}};
}

std::string shape_text(const json& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + shape[i].dump();
  return text + "]";
}

// The longest value of a column, for alignment.
std::size_t widest(const json& rows, const char* key) {
  std::size_t width = 0;
  for (const json& row : rows) width = std::max(width, row[key].get_ref<const std::string&>().size());
  return width;
}

std::string run_text(const json& run) {
  std::string text =
      fmt::format("run {}: {} checkpoints\n", run["directory"].get<std::string>(), run["checkpoints"].size());
  for (const json& one : run["checkpoints"]) {
    if (one.contains("problem")) {
      text += fmt::format("  step {}  BAD: {}\n", one["step"].dump(), one["problem"].get<std::string>());
      continue;
    }
    text += fmt::format("  step {}  {} bytes  {}{}", one["step"].dump(), one["bytes"].dump(),
                        one["digest"].get<std::string>().substr(0, 12), one["pinned"].get<bool>() ? "  pinned" : "");
    for (const auto& [name, value] : one["metrics"].items()) text += fmt::format("  {} {}", name, value.dump());
    text += "\n";
  }
  return text;
}

std::string checkpoint_text(const json& c) {
  std::string text =
      fmt::format("checkpoint {}\nstep {}\ndigest {}\nmesh {}\nzero_stage {}\n", c["directory"].get<std::string>(),
                  c["step"].dump(), c["digest"].get<std::string>(), c["mesh"].dump(), c["zero_stage"].dump());
  std::int64_t elements = 0;
  const std::size_t width = widest(c["parameters"], "name");
  std::string rows;
  for (const json& p : c["parameters"]) {
    std::int64_t numel = 1;
    for (const json& extent : p["shape"]) numel *= extent.get<std::int64_t>();
    elements += numel;
    std::string kinds;
    for (const auto& [kind, dtype] : p["kinds"].items()) kinds += fmt::format(" {}:{}", kind, dtype.get<std::string>());
    rows += fmt::format("  {:<{}}  {:<16} {} {}{}\n", p["name"].get<std::string>(), width, shape_text(p["shape"]),
                        p["optimizer"].get<std::string>(), p["group"].get<std::string>(), kinds);
  }
  text += fmt::format("{} parameters, {} elements\n{}", c["parameters"].size(), elements, rows);
  text += "bytes";
  for (const auto& [kind, bytes] : c["bytes_by_kind"].items()) text += fmt::format("  {} {}", kind, bytes.dump());
  text += "\n";
  for (const char* key : {"files", "attachments"}) {
    for (const json& file : c[key]) {
      text += fmt::format("file {}  {} bytes  sha256 {}\n", file["name"].get<std::string>(), file["bytes"].dump(),
                          file["sha256"].get<std::string>());
    }
  }
  for (const char* key : {"state", "provenance", "info"}) {
    if (c[key].empty()) continue;
    text += fmt::format("{}\n", key);
    for (const auto& [name, value] : c[key].items()) text += fmt::format("  {} = {}\n", name, value.dump());
  }
  return text;
}

std::string shard_text(const json& shard) {
  std::string text = fmt::format("shard {} of step {}, writer {}: {} bytes\n", shard["file"].get<std::string>(),
                                 shard["step"].dump(), shard["writer"].dump(), shard["bytes"].dump());
  const std::size_t width = widest(shard["slices"], "object");
  for (const json& slice : shard["slices"]) {
    text += fmt::format("  {:<{}}  {:<5} of {:<16} {} bytes at {}\n", slice["object"].get<std::string>(), width,
                        slice["dtype"].get<std::string>(), shape_text(slice["global_shape"]), slice["bytes"].dump(),
                        slice["offset"].dump());
  }
  return text;
}

}  // namespace

json inspect_checkpoint_json(const fs::path& path) {
  switch (classify_checkpoint_path(path)) {
    case CheckpointPath::run:
      return describe_run(run_of(path));
    case CheckpointPath::checkpoint:
      return describe_checkpoint(fs::is_directory(path) ? path : path.parent_path());
    case CheckpointPath::shard:
      return describe_shard(path);
    case CheckpointPath::none:
      break;
  }
  storage_error("{} is neither a run, a checkpoint nor a shard of one", path.string());
}

std::string inspect_checkpoint_text(const fs::path& path) {
  const json description = inspect_checkpoint_json(path);
  const std::string& what = description["what"].get_ref<const std::string&>();
  return what == "run"          ? run_text(description)
         : what == "checkpoint" ? checkpoint_text(description)
                                : shard_text(description);
}

}  // namespace weft
