// Runs the weft program as a person would, and makes small datasets and recipes for it.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <sys/types.h>
#include <vector>

namespace weft::testing {

// A folder of its own for one test, deleted afterwards.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

struct ProgramResult {
  int exit_code = -1;  // 128 + signal if one ended it
  std::string out;     // standard output
  std::string err;     // standard error
};

// A running program. Its output goes to files that result() reads.
class Program {
 public:
  // `command` is looked up on the PATH; WEFT_PROGRAM is the program under test.
  explicit Program(const std::vector<std::string>& command);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void kill(int signal) const;
  bool running();
  // Waits for its end; a program that takes longer than the deadline is killed and fails the test.
  ProgramResult wait(std::chrono::seconds deadline = std::chrono::seconds(120));

 private:
  std::filesystem::path folder_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

ProgramResult run_program(const std::vector<std::string>& command);
// weft with these arguments.
ProgramResult weft(std::vector<std::string> arguments);
// The same on several ranks.
std::vector<std::string> mpirun(int ranks, std::vector<std::string> arguments);

// A dataset of English-like byte text in `workspace`/data and data-validation.
void make_dataset(const Workspace& workspace);
// A recipe for a model of a few thousand parameters on that dataset, with every kind of mixer; `extra` is appended.
// Returns its path. Runs go to `workspace`/runs/NAME.
std::string make_recipe(const Workspace& workspace, const std::string& name, int steps, const std::string& extra = {});

// The rows of a run's metrics.jsonl without what measures time: one text a row.
std::vector<std::string> timeless_rows(const std::filesystem::path& run);
// The losses of the steps, in order, and the digests of what they were trained on.
struct StepHistory {
  std::vector<double> losses;
  std::vector<std::string> digests;
};
StepHistory step_history(const std::filesystem::path& run);

void write_text(const std::filesystem::path& path, const std::string& text);
std::string read_text(const std::filesystem::path& path);

}  // namespace weft::testing
