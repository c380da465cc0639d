#include "tests/integration/program.h"

#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "autograd/philox.h"
#include "data/prepare/prepare.h"

namespace weft::testing {
namespace fs = std::filesystem;
namespace {

fs::path make_folder() {
  std::string name = (fs::temp_directory_path() / "weft-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  return name;
}

}  // namespace

Workspace::Workspace() : path_(make_folder()) {}
Workspace::~Workspace() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

Program::Program(const std::vector<std::string>& command) : folder_(make_folder()) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const std::string out = (folder_ / "out").string(), err = (folder_ / "err").string();
  pid_ = fork();
  if (pid_ == 0) {
    dup2(open(out.c_str(), O_WRONLY | O_CREAT, 0644), STDOUT_FILENO);
    dup2(open(err.c_str(), O_WRONLY | O_CREAT, 0644), STDERR_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
}

Program::~Program() {
  if (!ended_) {
    kill(SIGKILL);
    waitpid(pid_, &status_, 0);
  }
  fs::remove_all(folder_);
}

void Program::kill(int signal) const {
  ::kill(pid_, signal);
}

bool Program::running() {
  if (!ended_ && waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
  return !ended_;
}

ProgramResult Program::wait(std::chrono::seconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (running()) {
    if (std::chrono::steady_clock::now() > end) {
      ADD_FAILURE() << "the program did not end within " << deadline.count() << " s";
      kill(SIGKILL);
      waitpid(pid_, &status_, 0);
      ended_ = true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ProgramResult result;
  result.exit_code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
  result.out = read_text(folder_ / "out");
  result.err = read_text(folder_ / "err");
  return result;
}

ProgramResult run_program(const std::vector<std::string>& command) {
  return Program(command).wait();
}

ProgramResult weft(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), WEFT_PROGRAM);
  return run_program(arguments);
}

std::vector<std::string> mpirun(int ranks, std::vector<std::string> arguments) {
  std::vector<std::string> command = {"mpirun",
                                      "--allow-run-as-root",
                                      "--oversubscribe",
                                      "-x",
                                      "OMP_NUM_THREADS=1",
                                      "-x",
                                      "ASAN_OPTIONS=detect_leaks=0",
                                      "-np",
                                      std::to_string(ranks),
                                      WEFT_PROGRAM};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

void make_dataset(const Workspace& workspace) {
  // Sentences over a small vocabulary, with structure that a model can learn in a few steps.
  constexpr const char* kSubjects[] = {"the weaver", "a loom", "the shuttle", "one thread", "the pattern"};
  constexpr const char* kVerbs[] = {"crosses", "holds", "follows", "learns", "carries"};
  std::string text;
  for (std::uint64_t d = 0; d < 400; ++d) {
    RandomWords words(5, RandomStream::test, d);
    const std::uint64_t sentences = 1 + words.below(6);
    for (std::uint64_t s = 0; s < sentences; ++s) {
      text += std::string(kSubjects[words.below(5)]) + " " + kVerbs[words.below(5)] + " " + kSubjects[words.below(5)] +
              ". ";
    }
    text += "\n\n";
  }
  write_text(workspace / "text.txt", text);
  PrepareOptions options;
  options.inputs = {workspace / "text.txt"};
  options.out = workspace / "data";
  options.split = TextSplit::blank;
  options.validation_every = 10;
  prepare(options);
}

std::string make_recipe(const Workspace& workspace, const std::string& name, int steps, const std::string& extra) {
  const std::string path = workspace / (name + ".toml");
  write_text(path, "[run]\nname = \"" + name + "\"\nsteps = " + std::to_string(steps) + "\nout = \"" +
                       (workspace / "runs") + R"("
[model]
width = 32
layers = 5
pattern = ["lightning", "retnet", "gla", "window", "full"]
ffn = 64
[mixer.lightning]
heads = 2
head_dim = 16
[mixer.retnet]
heads = 2
head_dim = 16
[mixer.gla]
heads = 2
head_dim = 16
[mixer.window]
type = "attention"
heads = 2
head_dim = 16
window = 32
[mixer.full]
type = "attention"
heads = 2
head_dim = 16
[data]
train = ")" + (workspace / "data") +
                       "\"\nvalidation = \"" + (workspace / "data-validation") + R"("
sequence_length = 128
batch_tokens = 1024
max_epochs = 0
[optimizer]
name = "adamw"
learning_rate = 1e-3
warmup_steps = 5
schedule = "constant"
)" + extra);
  return path;
}

std::vector<std::string> timeless_rows(const fs::path& run) {
  std::vector<std::string> rows;
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    nlohmann::json row = nlohmann::json::parse(line);
    for (const char* key : {"seconds", "tokens_per_second", "mfu", "phases"}) row.erase(key);
    rows.push_back(row.dump());
  }
  return rows;
}

StepHistory step_history(const fs::path& run) {
  StepHistory history;
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json row = nlohmann::json::parse(line);
    if (!row.contains("loss")) continue;
    history.losses.push_back(row.at("loss").get<double>());
    history.digests.push_back(row.at("digest").get<std::string>());
  }
  return history;
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace weft::testing
