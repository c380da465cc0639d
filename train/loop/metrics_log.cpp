#include "train/loop/metrics_log.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "autograd/check.h"
#include "data/storage/file.h"

namespace weft {
namespace {

std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

// Whether a line is a row of a step up to `last_step`, or the row that describes the run.
bool keeps(const std::string& line, std::int64_t last_step) {
  const auto row = nlohmann::json::parse(line, nullptr, false);
  if (!row.is_object()) return false;
  if (row.contains("run")) return true;
  const auto step = row.find("step");
  return step != row.end() && step->is_number_integer() && step->get<std::int64_t>() <= last_step;
}

// The rows that a run which continues after `last_step` keeps, each with its line end.
std::string rows_to_keep(const std::string& path, std::int64_t last_step) {
  std::ifstream in(path, std::ios::binary);
  std::string kept, line;
  while (std::getline(in, line)) {
    if (in.eof()) break;  // no line end: the writer was stopped inside this row
    if (keeps(line, last_step)) kept += line + "\n";
  }
  return kept;
}

}  // namespace

std::string to_json(const StepRow& row) {
  std::string phases;
  for (std::size_t i = 0; i < kPhaseNames.size(); ++i) {
    phases += fmt::format("{}\"{}\": {:.6f}", i ? ", " : "", kPhaseNames[i], row.phases[i]);
  }
  return fmt::format(
      "{{\"step\": {}, \"loss\": {}, \"z_loss\": {}, \"lr\": {}, \"grad_norm\": {}, \"tokens\": {}, \"skipped\": {}, "
      "\"digest\": \"{}\", \"tokens_per_second\": {:.1f}, \"seconds\": {:.6f}, \"mfu\": {:.4f}, \"phases\": {{{}}}}}",
      row.step, number(row.loss), number(row.z_loss), number(row.lr), number(row.grad_norm), row.tokens, row.skipped,
      row.digest, row.tokens_per_second, row.seconds, row.flops_share, phases);
}

std::string to_json(std::int64_t step, const ValidationResult& result) {
  std::string text = fmt::format("{{\"step\": {}, \"val_loss\": {}", step, number(result.loss));
  if (result.bits_per_byte) text += fmt::format(", \"val_bits_per_byte\": {}", number(*result.bits_per_byte));
  if (result.accuracy) text += fmt::format(", \"val_accuracy\": {}", number(*result.accuracy));
  return text + fmt::format(", \"val_labels\": {}}}", result.labels);
}

MetricsLog::MetricsLog(const std::string& path, std::int64_t last_step) {
  if (std::filesystem::exists(path)) {
    const std::string kept = last_step > 0 ? rows_to_keep(path, last_step) : std::string();
    write_file_atomically(path, kept);
  }
  fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) storage_error("{}: cannot be opened for writing: {}", path, std::strerror(errno));
  size_ = static_cast<std::int64_t>(std::filesystem::file_size(path));
}

MetricsLog::~MetricsLog() {
  if (fd_ >= 0) close(fd_);
}

void MetricsLog::append(const std::string& row) {
  const std::string line = (torn_ ? "\n" : "") + row + "\n";
  std::size_t written = 0;
  while (written < line.size()) {
    const ssize_t n = write(fd_, line.data() + written, line.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      // A row half written would spoil the next one.
      ++dropped_;
      torn_ = written > 0 && ftruncate(fd_, size_) != 0;
      return;
    }
    written += static_cast<std::size_t>(n);
  }
  torn_ = false;
  size_ += static_cast<std::int64_t>(line.size());
}

void MetricsLog::sync() {
  fdatasync(fd_);
}

}  // namespace weft
