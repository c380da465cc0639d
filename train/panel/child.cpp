#include "train/panel/child.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <spawn.h>
#include <string_view>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "autograd/check.h"

namespace weft {
namespace {

// This process's environment, but one thread for each of OpenMP and BLAS.
std::vector<std::string> single_threaded_environment() {
  std::vector<std::string> variables = {"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    if (!text.starts_with("OMP_NUM_THREADS=") && !text.starts_with("OPENBLAS_NUM_THREADS=")) {
      variables.emplace_back(text);
    }
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

}  // namespace

ChildResult run_self(const std::vector<std::string>& arguments, const std::filesystem::path& out,
                     const std::filesystem::path& err) {
  std::vector<std::string> command = {"weft"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<std::string> environment = single_threaded_environment();
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  constexpr int kNewFile = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out.c_str(), kNewFile, 0644);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, err.c_str(), kNewFile, 0644);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, "/proc/self/exe", &files, nullptr, pointers_to(command).data(),
                                pointers_to(environment).data());
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) storage_error("cannot start weft {}: {}", arguments.front(), std::strerror(error));
  int status = 0;
  rusage used{};
  while (wait4(pid, &status, 0, &used) < 0) {
    if (errno != EINTR) storage_error("cannot wait for weft {}: {}", arguments.front(), std::strerror(errno));
  }
  return {.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .cpu_seconds = seconds_of(used.ru_utime) + seconds_of(used.ru_stime)};
}

}  // namespace weft
