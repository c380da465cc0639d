#include "train/loop/run_log.h"

#include <cmath>
#include <cstdio>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "autograd/check.h"

namespace weft {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(200);
constexpr auto kPlain = std::chrono::seconds(10);

}  // namespace

struct RunLog::Sinks {
  bool speaks = false;
  std::shared_ptr<spdlog::logger> file;
};

RunLog::RunLog(Voice voice) : sinks_(std::make_unique<Sinks>()), terminal_(isatty(STDOUT_FILENO) == 1) {
  sinks_->speaks = voice == Voice::speaks;
}

RunLog::~RunLog() {
  if (line_open_) std::fputc('\n', stdout);
}

void RunLog::open_file(const std::string& path) {
  if (!sinks_->speaks) return;
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    sinks_->file = std::make_shared<spdlog::logger>("run", std::move(sink));
  } catch (const spdlog::spdlog_ex& error) {
    storage_error("{}: cannot be opened for writing: {}", path, error.what());
  }
  sinks_->file->set_pattern("%Y-%m-%d %H:%M:%S %L %v");
  sinks_->file->set_error_handler([](const std::string&) {});  // a full disk must not stop or flood the run
  sinks_->file->flush_on(spdlog::level::info);
}

void RunLog::print(const std::string& line, bool warning) {
  if (!sinks_->speaks) return;
  if (line_open_) std::fputs("\r\033[K", stdout);
  line_open_ = false;
  std::fflush(stdout);
  std::FILE* const out = warning ? stderr : stdout;
  std::fputs((warning ? "warning: " + line + "\n" : line + "\n").c_str(), out);
  std::fflush(out);
}

void RunLog::info(const std::string& line) {
  print(line, false);
  if (sinks_->file) sinks_->file->info(line);
}

void RunLog::warn(const std::string& line) {
  print(line, true);
  if (sinks_->file) sinks_->file->warn(line);
}

void RunLog::progress(const std::string& line, bool must_show) {
  if (!sinks_->speaks) return;
  const auto now = Clock::now();
  if (must_show || now - last_plain_ >= kPlain) {
    last_plain_ = now;
    if (!terminal_) print(line, false);
    if (sinks_->file) sinks_->file->info(line);
  }
  if (terminal_ && (must_show || now - last_redraw_ >= kRedraw)) {
    last_redraw_ = now;
    std::fputs(("\r\033[K" + line).c_str(), stdout);
    std::fflush(stdout);
    line_open_ = true;
  }
}

std::string short_count(double value) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  while (value >= 1000.0 && unit + 1 < std::size(kUnits)) {
    value /= 1000.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f}", value) : fmt::format("{:.1f}{}", value, kUnits[unit]);
}

std::string short_duration(double seconds) {
  const auto total = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
  const std::int64_t hours = total / 3600, minutes = total / 60 % 60, rest = total % 60;
  return hours > 0 ? fmt::format("{}:{:02}:{:02}", hours, minutes, rest) : fmt::format("{}:{:02}", minutes, rest);
}

}  // namespace weft
