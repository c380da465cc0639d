#include "data/prepare/input.h"

#include <algorithm>
#include <filesystem>
#include <glob.h>
#include <sys/stat.h>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/utf8.h"

namespace weft {

namespace {

namespace fs = std::filesystem;

// Sources are numbered with 16 bits.
constexpr std::size_t kMaxInputs = 65535;
constexpr std::size_t kMaxName = 255;

bool ends_with_any(const std::string& path, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return path.ends_with(end); });
}

InputFormat format_of(const std::string& path, InputFormat asked) {
  if (ends_with_any(path, {".parquet"})) {
    config_error(
        "{}: this build cannot read parquet; pipe it in as jsonl: python3 -c \"import json, pyarrow.parquet as p; "
        "[print(json.dumps({{'text': t}})) for b in p.ParquetFile('{}').iter_batches(columns=['text']) "
        "for t in b.column(0).to_pylist()]\" | weft prepare --out DIR -",
        path, path);
  }
  if (asked != InputFormat::automatic) return asked;
  const bool jsonl =
      path == "-" || ends_with_any(path, {".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst"});
  return jsonl ? InputFormat::jsonl : InputFormat::text;
}

std::string display_name(const std::string& path) {
  if (path == "-") return "standard input";
  std::string name = repair_utf8(fs::path(path).filename().string());
  if (name.size() > kMaxName) {
    std::size_t cut = kMaxName;
    while ((static_cast<unsigned char>(name[cut]) & 0xC0) == 0x80) --cut;
    name.resize(cut);
  }
  return name;
}

void add_folder(const std::string& folder, std::vector<std::string>& paths) {
  std::error_code error;
  for (fs::recursive_directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    // What cannot be examined is left to the stat of each input, which says why.
    std::error_code unknown;
    if (at->is_regular_file(unknown) || unknown) paths.push_back(at->path().string());
  }
  if (error) storage_error("cannot list {}: {}", folder, error.message());
}

void add_pattern(const std::string& pattern, std::vector<std::string>& paths) {
  glob_t found{};
  const int status = ::glob(pattern.c_str(), 0, nullptr, &found);
  for (std::size_t i = 0; status == 0 && i < found.gl_pathc; ++i) paths.emplace_back(found.gl_pathv[i]);
  ::globfree(&found);
  if (status != 0) config_error("input {}: no such file, and no file matches it as a pattern", pattern);
}

}  // namespace

std::vector<PrepareInput> expand_inputs(const PrepareOptions& options) {
  if (options.inputs.empty()) config_error("no input: name text or jsonl files, or - for standard input");
  std::vector<std::string> paths;
  for (const std::string& input : options.inputs) {
    std::error_code error;
    if (input == "-" || fs::is_regular_file(input, error)) {
      paths.push_back(input);
    } else if (fs::is_directory(input, error)) {
      add_folder(input, paths);
    } else if (fs::exists(input, error)) {
      config_error("input {}: neither a file nor a folder; pipe it in with -", input);
    } else {
      add_pattern(input, paths);
    }
  }
  std::sort(paths.begin(), paths.end());
  if (const auto twice = std::adjacent_find(paths.begin(), paths.end()); twice != paths.end()) {
    config_error("input {} is named twice", *twice);
  }
  if (paths.empty()) config_error("input {}: the folder has no files", options.inputs.front());
  if (paths.size() > kMaxInputs) {
    config_error("{} input files, at most {} are possible; join them into jsonl files", paths.size(), kMaxInputs);
  }
  std::vector<PrepareInput> inputs;
  for (const std::string& path : paths) {
    PrepareInput input{path, display_name(path), format_of(path, options.format), -1, 0};
    if (path != "-") {
      struct stat info {};
      if (::stat(path.c_str(), &info) != 0) fail_with_errno("examine", path, errno);
      if (!S_ISREG(info.st_mode)) config_error("input {}: not a regular file; pipe it in with -", path);
      check_packing(path);
      input.bytes = info.st_size;
      input.modified_ns = std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
    }
    inputs.push_back(std::move(input));
  }
  return inputs;
}

}  // namespace weft
