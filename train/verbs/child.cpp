#include "train/verbs/child.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <set>
#include <signal.h>
#include <spawn.h>
#include <string_view>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "autograd/check.h"

namespace weft {
namespace {

constexpr int kNoSuchProgram = 127;  // as shells have it

// This process's environment with some variables, "NAME=value", set otherwise.
std::vector<std::string> environment_with(const std::vector<std::string>& set) {
  std::vector<std::string> variables = set;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    const auto replaces = [&](const std::string& other) {
      return other.starts_with(text.substr(0, text.find('=') + 1));
    };
    if (std::ranges::none_of(set, replaces)) variables.emplace_back(text);
  }
  return variables;
}

// The null-terminated array of pointers that C functions take; valid as long as `texts`.
std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

double seconds_of(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

// Programs that run. Who holds the lock knows that none ends unseen: their ids are theirs.
std::mutex children_lock;
std::set<pid_t> children;

// What posix_spawn and posix_spawnp are.
using Spawn = decltype(posix_spawn);

ChildResult run(Spawn* spawn, const char* path, std::vector<std::string> command, std::vector<std::string> environment,
                const std::filesystem::path& out, const std::filesystem::path& err) {
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  constexpr int kNewFile = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out.c_str(), kNewFile, 0644);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, err.c_str(), kNewFile, 0644);
  pid_t pid = -1;
  std::unique_lock lock(children_lock);
  const int error = spawn(&pid, path, &files, nullptr, pointers_to(command).data(), pointers_to(environment).data());
  if (error == 0) children.insert(pid);
  lock.unlock();
  posix_spawn_file_actions_destroy(&files);
  if (error == ENOENT) return {.status = kNoSuchProgram, .cpu_seconds = 0.0};
  if (error != 0) storage_error("cannot start {}: {}", command.front(), std::strerror(error));
  siginfo_t ended{};
  while (waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
  }
  lock.lock();
  children.erase(pid);
  int status = 0;
  rusage used{};
  while (wait4(pid, &status, 0, &used) < 0) {
    if (errno != EINTR) storage_error("cannot wait for {}: {}", command.front(), std::strerror(errno));
  }
  return {.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .cpu_seconds = seconds_of(used.ru_utime) + seconds_of(used.ru_stime)};
}

}  // namespace

void end_children() {
  children_lock.lock();
  for (const pid_t pid : children) {
    kill(pid, SIGKILL);
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

ChildResult run_self(const std::vector<std::string>& arguments, const std::filesystem::path& out,
                     const std::filesystem::path& err) {
  std::vector<std::string> command = {"weft"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return run(posix_spawn, "/proc/self/exe", std::move(command),
             environment_with({"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"}), out, err);
}

ChildResult run_program(std::vector<std::string> command, const std::vector<std::string>& variables,
                        const std::filesystem::path& out, const std::filesystem::path& err) {
  const std::string name = command.front();
  return run(posix_spawnp, name.c_str(), std::move(command), environment_with(variables), out, err);
}

}  // namespace weft
