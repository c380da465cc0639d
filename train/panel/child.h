// Runs of the program by itself.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace weft {

// Runs this program with `arguments` on one thread, with standard output and error in files, and waits for its end.
// Returns the exit status, 128 + signal if one ended it. Error (storage) if it cannot be started.
int run_self(const std::vector<std::string>& arguments, const std::filesystem::path& out,
             const std::filesystem::path& err);

}  // namespace weft
