#include "train/hub/aside_folder.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <mutex>
#include <signal.h>
#include <string>
#include <thread>
#include <unistd.h>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "train/verbs/child.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP};
constexpr char kEnd = 0;  // in place of a signal's number

// The handler hands the signal to a thread, which may do what handlers must not. Of the process and never closed: a
// handler that another thread is in may write after a watch has ended, and must not find another file there.
std::atomic<int> read_end = -1, write_end = -1;
static_assert(std::atomic<int>::is_always_lock_free, "for handlers");

void on_signal(int signal) {
  const int saved = errno;
  const auto number = static_cast<char>(signal);
  [[maybe_unused]] const ssize_t written = write(write_end, &number, 1);
  errno = saved;
}

void open_pipe(const fs::path& folder) {
  if (write_end >= 0) return;
  std::array<int, 2> ends = {-1, -1};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) storage_error("{}: no pipe can be made", folder.string());
  read_end = ends[0];
  write_end = ends[1];
}

std::atomic<bool> watching = false;

}  // namespace

// Removes the folder and ends the process when a signal comes.
class AsideFolder::Watch {
 public:
  Watch(fs::path folder, fs::path out) : folder_(std::move(folder)), out_(std::move(out)) {
    WEFT_CHECK(!watching, "two folders are written aside at once");
    open_pipe(folder_);
    thread_ = std::thread([this] { run(); });
    watching = true;
    struct sigaction action = {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], nullptr, &previous_[i]);
      // As nohup and scripts want of what they start.
      if (previous_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
    }
  }
  // Does not return if a signal came before.
  ~Watch() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous_[i], nullptr);
    [[maybe_unused]] const ssize_t written = write(write_end, &kEnd, 1);
    thread_.join();
    watching = false;
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Or not at all, if a signal came before.
  void make_folder() {
    const std::scoped_lock lock(deciding_);
    std::error_code error;
    fs::create_directories(folder_, error);
    if (error) storage_error("{}: cannot be created: {}", folder_.string(), error.message());
  }

  // Either the name is given, or the folder removed.
  void take_name() {
    const std::scoped_lock lock(deciding_);
    if (rename(folder_.c_str(), out_.c_str()) != 0) {
      fail_with_errno(fmt::format("rename {} to", folder_.string()), out_, errno);
    }
    named_ = true;
    fsync_directory(out_.parent_path());
  }
  bool named() const { return named_; }

 private:
  void run() {
    char number = kEnd;
    while (read(read_end, &number, 1) < 0) {
    }
    if (number == kEnd) return;
    const std::scoped_lock lock(deciding_);
    end_children();  // they write there too
    if (named_) {
      fmt::print(stderr, "\nweft: stopped; {} is complete\n", out_.string());
      std::fflush(stderr);
    } else {
      remove();
    }
    _exit(128 + number);
  }

  void remove() const {
    // Another thread may still be writing.
    constexpr int kAttempts = 100;
    std::error_code error;
    for (int i = 0; i < kAttempts && fs::exists(folder_, error); ++i) fs::remove_all(folder_, error);
    const std::string left = fs::exists(folder_, error) ? fmt::format("{} is left and can be removed", folder_.string())
                                                        : std::string("nothing is left of it");
    fmt::print(stderr, "\nweft: stopped; {} was not made, and {}\n", out_.string(), left);
    std::fflush(stderr);
  }

  fs::path folder_, out_;
  std::array<struct sigaction, kSignals.size()> previous_ = {};
  std::mutex deciding_;
  bool named_ = false;
  std::thread thread_;
};

AsideFolder::AsideFolder(const fs::path& out, std::string_view label) : out_(fs::absolute(out).lexically_normal()) {
  if (!out_.has_filename()) out_ = out_.parent_path();  // "runs/x/"
  if (fs::exists(out_)) config_error("{}: exists already; choose another --out", out.string());
  aside_ = fmt::format("{}.{}-{}", out_.string(), label, random_nonce());
  // First, so that nothing is made that is not watched.
  watch_ = std::make_unique<Watch>(aside_, out_);
  watch_->make_folder();
}

AsideFolder::~AsideFolder() {
  watch_.reset();
  std::error_code ignored;
  if (!kept_) fs::remove_all(aside_, ignored);
}

void AsideFolder::take_name() {
  if (fs::exists(out_)) config_error("{}: has appeared meanwhile; nothing was replaced", out_.string());
  watch_->take_name();
}

bool AsideFolder::named() const {
  return watch_->named();
}

}  // namespace weft
