#include "checkpoints/writer.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sys/stat.h>
#include <tuple>
#include <unistd.h>

#include "autograd/check.h"
#include "checkpoints/manifest.h"
#include "checkpoints/reader.h"
#include "checkpoints/shard_writer.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "data/storage/sha256.h"
#include "data/storage/text.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr std::size_t kMaxMessage = 10'000;

std::string format_bytes(std::uint64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1024.0 * 1024.0));
}

void check_no_decimals(const json& value, std::string_view what) {
  WEFT_CHECK(!value.is_number_float(), "{} holds the decimal {}; store its bits (to_bits)", what, value.dump());
  if (value.is_structured()) {
    for (const json& member : value) check_no_decimals(member, what);
  }
}

std::shared_ptr<const json> parse_object(const std::string& text, std::string_view what, bool decimals) {
  auto value = std::make_shared<json>(parse_strict(text, what));
  WEFT_CHECK(value->is_object(), "{} is no JSON object", what);
  if (!decimals) check_no_decimals(*value, what);
  return value;
}

void check_state(const CheckpointState& state) {
  WEFT_CHECK(state.step >= 0 && state.step <= kMaxStep, "step {}", state.step);
  for (const Attachment& attachment : state.attachments) {
    WEFT_CHECK(is_bare_name(attachment.name) && !is_reserved_name(attachment.name), "attachment \"{}\"",
               attachment.name);
    WEFT_CHECK(attachment.content.size() <= kMaxAttachmentBytes, "attachment {}: {} bytes", attachment.name,
               attachment.content.size());
  }
  for (const Slice& slice : state.slices) {
    WEFT_CHECK(is_slice_kind(slice.kind) && is_bare_name(slice.name), "slice {} of \"{}\"", slice.kind, slice.name);
    WEFT_CHECK(slice.bytes.size() % size_of(slice.dtype) == 0, "slice {} of {}: {} bytes of {}", slice.kind, slice.name,
               slice.bytes.size(), name_of(slice.dtype));
    WEFT_CHECK(!slice.produce || (slice.bytes.empty() && slice.offset == 0), "slice {} of {}: made and given",
               slice.kind, slice.name);
    const std::int64_t numel = slice.shape.numel();
    WEFT_CHECK(slice.offset >= 0 && slice.offset <= numel && slice.length() <= numel - slice.offset,
               "slice {} of {}: elements [{}, {}) of {}", slice.kind, slice.name, slice.offset,
               slice.offset + slice.length(), numel);
    WEFT_CHECK(slice.length() > 0 || numel == 0, "slice {} of {}: no elements", slice.kind, slice.name);
  }
}

Manifest describe(const CheckpointState& state) {
  Manifest manifest;
  manifest.step = state.step;
  manifest.zero_stage = state.zero_stage;
  manifest.parameters = state.parameters;
  for (const auto& [name, value] : state.metrics) {
    if (std::isfinite(value)) manifest.metrics[name] = value;
  }
  manifest.mesh = parse_object(state.mesh, "mesh", false);
  manifest.state = parse_object(state.state, "state", false);
  manifest.provenance = parse_object(state.provenance, "provenance", false);
  manifest.info = parse_object(state.info, "info", true);
  return manifest;
}

// Rank 0: makes sure that there is room, by the means that cost nobody a checkpoint first.
void make_room(const fs::path& run, std::uint64_t bytes, std::uint64_t files, const SaveOptions& options,
               std::vector<std::string>& notes) {
  const fs::path parent = checkpoints_directory(run);
  const std::uint64_t needed_bytes = bytes + bytes / 10 + options.spare_bytes;
  const std::uint64_t needed_inodes = 2 * files + 8;
  const auto is_enough = [&](const FreeSpace& space) {
    return space.bytes >= needed_bytes && space.inodes >= needed_inodes;
  };
  if (is_enough(free_space(parent))) return;
  for (const fs::path& path : clean_debris(run)) notes.push_back(fmt::format("made room: removed {}", path.string()));
  if (is_enough(free_space(parent))) return;
  for (const fs::path& path : apply_retention(run, options.retention, options.hook)) {
    notes.push_back(fmt::format("made room: deleted {}", path.string()));
  }
  const FreeSpace space = free_space(parent);
  if (space.bytes < needed_bytes) {
    storage_error("{} has {} free, {} are needed ({} of data, 10 % and {} to spare)", parent.string(),
                  format_bytes(space.bytes), format_bytes(needed_bytes), format_bytes(bytes),
                  format_bytes(options.spare_bytes));
  }
  if (space.inodes < needed_inodes) {
    storage_error("{} has {} inodes free, {} are needed", parent.string(), space.inodes, needed_inodes);
  }
}

// Exchanges two directories in one step, where the file system can.
bool exchange(const fs::path& a, const fs::path& b) {
  return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

bool has_nonce(const fs::path& directory, const std::string& nonce) {
  try {
    return read_manifest(directory).nonce == nonce;
  } catch (const Error&) {
    return false;
  }
}

// True if both hold the same logical content, whatever files it is in.
bool same_state(const CheckpointReader& a, const CheckpointReader& b) {
  const auto slices = [](const CheckpointReader& reader) {
    std::set<std::tuple<std::string, std::int64_t, std::int64_t, std::uint64_t, std::vector<std::uint32_t>>> all;
    for (const ShardIndex& index : reader.indices()) {
      for (const SliceRecord& s : index.slices) {
        all.insert({s.kind + "/" + s.name, s.offset, s.length, index.crc_block_bytes, s.crc32c});
      }
    }
    return all;
  };
  const auto attachments = [](const CheckpointReader& reader) {
    std::set<std::pair<std::string, std::string>> all;
    for (const AttachedFile& file : reader.attachments()) all.insert({file.name, file.sha256});
    return all;
  };
  return a.step() == b.step() && attachments(a) == attachments(b) && a.parameters() == b.parameters() &&
         a.state() == b.state() && a.mesh() == b.mesh() && slices(a) == slices(b);
}

// The commit of rank 0, from complete shards to a checkpoint under its final name.
class Commit {
 public:
  Commit(const fs::path& run, const SaveOptions& options, Manifest manifest)
      : parent_(checkpoints_directory(run)), options_(options), manifest_(std::move(manifest)) {}

  // Where the shards go; throws if there is no room.
  const fs::path& begin(const fs::path& run, std::uint64_t bytes, std::uint64_t files) {
    std::error_code error;
    fs::create_directories(parent_, error);
    if (error) fail_with_errno("create", parent_, error.value());
    make_room(run, bytes, files, options_, notes);
    hook("save: room checked");
    manifest_.nonce = random_nonce();
    temporary_ = parent_ / fmt::format("{}.tmp-{}", step_directory_name(manifest_.step), manifest_.nonce);
    if (!fs::create_directory(temporary_, error)) fail_with_errno("create", temporary_, error ? error.value() : EEXIST);
    hook("save: directory created");
    return temporary_;
  }

  const std::string& nonce() const { return manifest_.nonce; }

  void attach(const std::vector<Attachment>& attachments) {
    for (const Attachment& attachment : attachments) {
      OutputFile file(temporary_ / attachment.name);
      file.write(attachment.content);
      file.fsync();
      file.close();
      manifest_.attachments.push_back({attachment.name, attachment.content.size(), hex(sha256(attachment.content))});
      hook("attachment: written");
    }
  }

  // Returns the checkpoint's directory and digest.
  std::pair<fs::path, std::string> commit(std::vector<ShardFile> files) {
    manifest_.files = std::move(files);
    const fs::path part = temporary_ / (std::string(kManifestName) + ".part");
    OutputFile file(part);
    file.write(format_manifest(manifest_));
    hook("manifest: written");
    file.fsync();
    file.close();
    hook("manifest: synced");
    rename_durably(part, temporary_ / kManifestName);
    hook("manifest: renamed");
    // Nothing is committed that loading would refuse.
    const CheckpointReader reader(temporary_);
    for (const AttachedFile& attached : reader.attachments()) reader.read_attachment(attached.name);
    hook("save: validated");
    const fs::path final = parent_ / step_directory_name(manifest_.step);
    publish(reader, final);
    fsync_directory(parent_);
    hook("save: parent synced");
    try {
      write_file_atomically(parent_ / "LATEST", final.filename().string() + "\n");
    } catch (const Error& error) {
      notes.push_back(fmt::format("LATEST not updated: {}", error.what()));
    }
    hook("save: LATEST written");
    return {final, digest_};
  }

  // Removes what this save has written, if it has not been committed.
  void abandon() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  }

  std::vector<std::string> notes;

 private:
  void hook(std::string_view point) const {
    if (options_.hook) options_.hook(point);
  }

  // The commit point: the directory gets its final name.
  void publish(const CheckpointReader& reader, const fs::path& final) {
    digest_ = reader.digest();
    if (fs::exists(final)) {
      replace(reader, final);
      return;
    }
    if (::rename(temporary_.c_str(), final.c_str()) != 0) {
      // A network file system may report failure for a repeated request whose first copy succeeded.
      const int error_number = errno;
      if (!has_nonce(final, manifest_.nonce)) {
        fail_with_errno(fmt::format("rename {} to", temporary_.string()), final, error_number);
      }
    }
    temporary_.clear();
    hook("save: directory renamed");
  }

  // The step was saved before: the process died between commit and announcement, or training went back.
  void replace(const CheckpointReader& reader, const fs::path& final) {
    try {
      const CheckpointReader old(final);
      old.verify_files();
      if (same_state(old, reader)) {
        digest_ = old.digest();
        notes.push_back(fmt::format("{} held the same state already", final.string()));
        abandon();
        return;
      }
    } catch (const Error& error) {
      notes.push_back(fmt::format("replaced the damaged {}: {}", final.string(), error.what()));
    }
    if (fs::exists(final / kPinnedName)) write_file_atomically(temporary_ / kPinnedName, std::string_view());
    if (exchange(temporary_, final)) {
      hook("save: directories exchanged");
      fsync_directory(parent_);
      remove_trash(move_to_trash(temporary_, options_.hook), options_.hook);
    } else {
      // Without an atomic exchange the step is missing for an instant; older checkpoints remain throughout.
      const fs::path trash = move_to_trash(final, options_.hook);
      rename_durably(temporary_, final);
      hook("save: directory renamed");
      remove_trash(trash, options_.hook);
    }
    temporary_.clear();
  }

  fs::path parent_;
  const SaveOptions& options_;
  Manifest manifest_;
  fs::path temporary_;
  std::string digest_;
};

// What a rank tells rank 0 about its shard.
std::string shard_report(const CheckpointState& state, const ShardPlan& plan) {
  try {
    if (state.slices.empty()) return "{}";
    const ShardFile file = write_shard(plan, state.slices);
    return canonical({{"name", file.name},
                      {"bytes", file.bytes},
                      {"sha256", file.sha256},
                      {"index_name", file.index_name},
                      {"index_sha256", file.index_sha256}});
  } catch (const std::exception& error) {
    return canonical({{"failure", fmt::format("rank {}: {}", plan.writer, printable(error.what(), kMaxMessage))}});
  }
}

std::vector<ShardFile> parse_reports(const std::vector<std::string>& reports) {
  std::vector<ShardFile> files;
  std::string failures;
  for (const std::string& report : reports) {
    const json value = parse_strict(report, "shard report");
    if (value.contains("failure")) {
      failures += (failures.empty() ? "" : "; ") + require_string(value, "failure", "shard report");
    } else if (value.contains("name")) {
      files.push_back({value["name"], value["bytes"], value["sha256"], value["index_name"], value["index_sha256"]});
    }
  }
  if (!failures.empty()) storage_error("{}", failures);
  return files;
}

}  // namespace

SaveResult save_checkpoint(const fs::path& run, const CheckpointState& state, CheckpointGroup& group,
                           const SaveOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const bool is_root = group.rank() == 0;
  check_state(state);
  std::optional<Commit> commit;
  if (is_root) commit.emplace(run, options, describe(state));

  // Room and directory. Everybody learns of the directory or of the failure.
  const json need = {{"bytes", state.slices.empty() ? 0 : shard_bytes_bound(state.slices)},
                     {"files", state.slices.empty() ? 0 : 2}};
  const std::vector<std::string> needs = group.gather(canonical(need));
  json plan_message;
  if (is_root) {
    try {
      std::uint64_t bytes = 0, files = 1 + state.attachments.size();
      for (const Attachment& attachment : state.attachments) bytes += attachment.content.size();
      for (const std::string& text : needs) {
        const json value = parse_strict(text, "space report");
        bytes += value["bytes"].get<std::uint64_t>();
        files += value["files"].get<std::uint64_t>();
      }
      const fs::path& directory = commit->begin(run, bytes, files);
      plan_message = {{"directory", directory.string()}, {"nonce", commit->nonce()}};
    } catch (const std::exception& error) {
      plan_message = {{"failure", printable(error.what(), kMaxMessage)}};
    }
  }
  const json plan = parse_strict(group.broadcast(is_root ? canonical(plan_message) : std::string()), "save plan");

  SaveResult result;
  json outcome;
  if (plan.contains("failure")) {
    outcome = plan;
  } else {
    const std::vector<std::string> reports =
        group.gather(shard_report(state, {plan["directory"].get<std::string>(), group.rank(), state.step, plan["nonce"],
                                          options.crc_block_bytes, options.hook}));
    if (is_root) {
      try {
        std::vector<ShardFile> files = parse_reports(reports);
        std::uint64_t bytes = 0;
        for (const ShardFile& file : files) bytes += file.bytes;
        commit->attach(state.attachments);
        for (const Attachment& attachment : state.attachments) bytes += attachment.content.size();
        const auto [directory, digest] = commit->commit(std::move(files));
        outcome = {{"directory", directory.string()}, {"digest", digest}, {"bytes", bytes}};
      } catch (const std::exception& error) {
        outcome = {{"failure", printable(error.what(), kMaxMessage)}};
      }
    }
    outcome = parse_strict(group.broadcast(is_root ? canonical(outcome) : std::string()), "save outcome");
  }

  if (outcome.contains("failure")) {
    result.failure =
        fmt::format("checkpoint of step {} not saved: {}", state.step, outcome["failure"].get<std::string>());
    if (is_root) commit->abandon();
  } else {
    result.saved = true;
    result.directory = outcome["directory"].get<std::string>();
    result.digest = outcome["digest"];
    result.bytes = outcome["bytes"];
  }
  if (is_root) {
    result.notes = std::move(commit->notes);
    if (result.saved) {
      // Only now that the new checkpoint is announced may older ones go.
      try {
        for (const fs::path& path : apply_retention(run, options.retention, options.hook)) {
          result.notes.push_back(fmt::format("deleted {}", path.string()));
        }
      } catch (const Error& error) {
        result.notes.push_back(fmt::format("old checkpoints not deleted: {}", error.what()));
      }
    }
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace weft
