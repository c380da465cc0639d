#include "checkpoints/run_lock.h"

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <fcntl.h>
#include <fmt/chrono.h>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/json.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr std::chrono::seconds kRenewal{30};
constexpr std::chrono::seconds kStaleAfter{300};
constexpr std::uint64_t kMaxLockBytes = 4096;
constexpr int kAttempts = 10;

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

// Where process numbers are valid: the same number elsewhere is another process.
std::string process_space() {
  std::error_code error;
  const fs::path space = fs::read_symlink("/proc/self/ns/pid", error);
  std::ifstream boot("/proc/sys/kernel/random/boot_id");
  std::string boot_id;
  std::getline(boot, boot_id);
  return fmt::format("{} {} {}", host_name(), boot_id, space.string());
}

// Clock ticks from boot to the process's start; tells a reused number from the process that had it. -1 if unknown.
std::int64_t process_start(std::int64_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  // Field 22, counted after the parenthesised name, which may hold anything.
  const auto name_end = text.rfind(')');
  if (name_end == std::string::npos) return -1;
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  return fields ? std::strtoll(field.c_str(), nullptr, 10) : -1;
}

// Why the lock may be taken over, or nothing if its holder lives.
std::optional<std::string> staleness(const fs::path& path, const json& holder) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  if (holder.is_object() && holder.value("space", "") == process_space()) {
    const std::int64_t pid = holder.value("pid", std::int64_t{0});
    const bool is_gone = ::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH;
    if (is_gone || process_start(pid) != holder.value("process_start", std::int64_t{-1})) {
      return fmt::format("process {} has ended", pid);
    }
    return std::nullopt;
  }
  const auto age = std::chrono::seconds(std::time(nullptr) - info.st_mtime);
  if (age > kStaleAfter) return fmt::format("it was last renewed {} s ago", age.count());
  return std::nullopt;
}

json parse_holder(const std::string& text) {
  const json holder = json::parse(text, nullptr, false);
  const bool ok = holder.is_object() && holder.contains("host") && holder["host"].is_string() &&
                  holder.contains("pid") && holder["pid"].is_number_integer() && holder.contains("since") &&
                  holder["since"].is_string() && holder.contains("space") && holder["space"].is_string() &&
                  holder.contains("process_start") && holder["process_start"].is_number_integer();
  return ok ? holder : json();
}

std::string describe(const json& holder) {
  if (!holder.is_object()) return "an unknown process";
  return fmt::format("process {} on {} since {}", holder["pid"].get<std::int64_t>(), holder["host"].get<std::string>(),
                     holder["since"].get<std::string>());
}

// Creates `path` with its content in one step; false if it exists.
bool create_whole(const fs::path& path, const std::string& content) {
  const fs::path temporary = path.string() + ".tmp-" + random_nonce();
  {
    OutputFile file(temporary);
    file.write(content);
    file.close();
  }
  const int status = ::link(temporary.c_str(), path.c_str());
  const int error_number = errno;
  ::unlink(temporary.c_str());
  if (status == 0) return true;
  if (error_number == EEXIST) return false;
  if (error_number != EPERM && error_number != ENOTSUP && error_number != ENOSYS) {
    fail_with_errno("create", path, error_number);
  }
  // No hard links here: the name first, its content an instant later.
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0 && errno == EEXIST) return false;
  if (descriptor < 0) fail_with_errno("create", path, errno);
  const ssize_t written = ::write(descriptor, content.data(), content.size());
  ::close(descriptor);
  return written == static_cast<ssize_t>(content.size());
}

// Has the takers of one machine judge and replace the lock of a folder one at a time: between moving a file aside and
// putting it back, a third one could take the free name. Where folders cannot be locked, as on some network file
// systems, it does nothing.
class Turn {
 public:
  explicit Turn(const fs::path& folder) : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    while (descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~Turn() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  int descriptor_;
};

// The file's text, or nothing if it is not there.
std::optional<std::string> read_lock(const fs::path& path) {
  if (!fs::exists(path)) return std::nullopt;
  try {
    return read_small_file(path, kMaxLockBytes);
  } catch (const Error&) {
    if (!fs::exists(path)) return std::nullopt;
    throw;
  }
}

}  // namespace

class RunLock::Renewal {
 public:
  explicit Renewal(const fs::path& path) : thread_([this, path] { run(path); }) {}
  ~Renewal() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Renewal(const Renewal&) = delete;
  Renewal& operator=(const Renewal&) = delete;

 private:
  void run(const fs::path& path) {
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, kRenewal, [this] { return stopped_; }))
      ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopped_ = false;
  std::thread thread_;
};

RunLock::RunLock(const fs::path& run, const std::function<void(const std::string&)>& log) : path_(run / "run.lock") {
  const std::int64_t pid = ::getpid();
  content_ = canonical({{"host", host_name()},
                        {"pid", pid},
                        {"process_start", process_start(pid)},
                        {"space", process_space()},
                        {"since", fmt::format("{:%Y-%m-%d %H:%M:%S}", fmt::localtime(std::time(nullptr)))},
                        {"nonce", random_nonce()}});
  const Turn turn(run);
  for (int i = 0; !create_whole(path_, content_); ++i) {
    const std::optional<std::string> text = read_lock(path_);
    if (!text) continue;  // given up in this instant
    const json holder = parse_holder(*text);
    const std::optional<std::string> stale = staleness(path_, holder);
    if (!stale || i >= kAttempts) {
      config_error(
          "run {} is in use by {} ({}). Wait until it has ended, or give this run another name. If that process does "
          "not exist, remove the file.",
          run.string(), describe(holder), path_.string());
    }
    // Moved aside, so that of several takers only one gets it; what was moved must be what was judged.
    const fs::path aside = path_.string() + ".tmp-" + random_nonce();
    if (::rename(path_.c_str(), aside.c_str()) != 0) continue;
    if (read_lock(aside) != text) {
      ::link(aside.c_str(), path_.c_str());
      ::unlink(aside.c_str());
      continue;
    }
    ::unlink(aside.c_str());
    if (log) log(fmt::format("took over the lock of {}: {}", describe(holder), *stale));
  }
  renewal_ = std::make_unique<Renewal>(path_);
}

RunLock::~RunLock() {
  renewal_.reset();
  try {
    if (read_lock(path_) == content_) ::unlink(path_.c_str());
  } catch (const Error&) {
    return;  // unreadable: the next job judges it by its age
  }
}

}  // namespace weft
