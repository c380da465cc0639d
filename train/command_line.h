// The command line: what can be asked of weft, and running what was asked.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <vector>

#include "parallel/launch.h"

namespace weft {

class CommandLine {
 public:
  CommandLine();

  // Throws CLI::ParseError for what cannot be asked.
  void parse(int argc, char** argv) { app_.parse(argc, argv); }
  // Prints what a ParseError asks for (help) and gives the exit status.
  int exit(const CLI::ParseError& error) { return app_.exit(error); }

  // Whether several ranks may take part; only then does run() need a world.
  bool collective() const { return chosen().collective; }
  ExitCode run(World* world) const { return chosen().run(world); }

 private:
  struct Verb {
    CLI::App* options;
    bool collective;
    std::function<ExitCode(World*)> run;
  };
  const Verb& chosen() const;

  CLI::App app_{"weft trains language models whose layers mix linear and sparse attention.", "weft"};
  std::vector<Verb> verbs_;

  friend class VerbList;
};

}  // namespace weft
