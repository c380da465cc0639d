// Programs that this one runs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace weft {

struct ChildResult {
  int status = 0;            // exit status, 128 + signal if one ended it
  double cpu_seconds = 0.0;  // of its threads together
};

// Runs this program with `arguments` on one thread, with standard output and error in files, and waits for its end.
// Error (storage) if it cannot be started.
ChildResult run_self(const std::vector<std::string>& arguments, const std::filesystem::path& out,
                     const std::filesystem::path& err);

// The same for a program that PATH finds, with this process's environment and `variables`, "NAME=value". A program that
// cannot be started has status 127.
ChildResult run_program(std::vector<std::string> command, const std::vector<std::string>& variables,
                        const std::filesystem::path& out, const std::filesystem::path& err);

// For a process that is about to end: kills the programs that run, and returns when they are gone. Who waits for one,
// or starts another, waits forever.
void end_children();

}  // namespace weft
