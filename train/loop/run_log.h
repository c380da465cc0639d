// What a person sees of a run: lines on the terminal and in log.txt, and the progress line.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace weft {

// On ranks other than 0 nothing is printed. Never throws once open; lines that do not fit on a full disk are dropped.
class RunLog {
 public:
  enum class Voice : std::uint8_t { speaks, silent };

  explicit RunLog(Voice voice);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  // From here on lines go to this file too, appended.
  void open_file(const std::string& path);

  void info(const std::string& line);
  void warn(const std::string& line);
  // The state of the run in one line: on a terminal it replaces the last one, a few times a second at most; elsewhere,
  // and in the file, it is a plain line every ten seconds. `must_show` for a line that may not be left out.
  void progress(const std::string& line, bool must_show);

 private:
  void print(const std::string& line, bool warning);

  using Clock = std::chrono::steady_clock;
  struct Sinks;
  std::unique_ptr<Sinks> sinks_;
  bool terminal_ = false;
  bool line_open_ = false;
  Clock::time_point last_redraw_{};
  Clock::time_point last_plain_{};
};

// 1234567 -> "1.2M".
std::string short_count(double value);
// Seconds -> "2:05" or "3:07:09".
std::string short_duration(double seconds);

}  // namespace weft
