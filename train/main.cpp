// weft: the program.

#include <cstdio>
#include <optional>

#include "train/command_line.h"
#include "train/loop/machine.h"

namespace {

using namespace weft;

int print_error(const std::string& message, ExitCode code, const std::optional<World>& world) {
  const std::string rank = world && world->size() > 1 ? fmt::format(" (rank {})", world->rank()) : "";
  fmt::print(stderr, "weft{}: {}\n", rank, message);
  return static_cast<int>(code);
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line;
  try {
    line.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return line.exit(help);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "weft: {}\nRun `weft --help` for what can be asked.\n", error.what());
    return static_cast<int>(ExitCode::config);
  }
  std::optional<World> world;
  ExitCode code = ExitCode::ok;
  int status = 0;
  try {
    check_processor();
    if (!line.collective()) return static_cast<int>(line.run(nullptr));
    world.emplace(World::launch());
    code = line.run(&*world);
    world->finalise();
    return static_cast<int>(code);
  } catch (const Error& error) {
    code = error.code();
    status = print_error(error.what(), code, world);
  } catch (const std::bad_alloc&) {
    code = ExitCode::internal;
    status = print_error("out of memory", code, world);
  } catch (const std::exception& error) {
    code = ExitCode::internal;
    status = print_error(fmt::format("internal error: {}", error.what()), code, world);
  }
  // The other ranks wait for this one: end them too.
  if (world && world->size() > 1) world->abort(code);
  return status;
}
