// The report of one or several runs: one HTML page, self-contained, with curves as inline SVG.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace weft {

// A curve: x are steps, strictly increasing; y are finite.
struct Series {
  std::vector<double> x;
  std::vector<double> y;

  bool empty() const { return x.empty(); }
  // A step that is not after the last one replaces it and everything behind it, as the rows of a resumed run do.
  void add(double step, double value);
};

// What a report needs of one run.
struct RunHistory {
  std::string name;
  std::string recipe;                                      // text of recipe.toml; empty if there is none
  std::map<std::string, Series> curves;                    // by key of metrics.jsonl: "loss", "lr", "val_loss", ...
  std::vector<std::string> phases;                         // in order of first appearance
  std::map<std::string, Series> seconds;                   // of each step, by phase
  std::vector<std::pair<std::string, double>> references;  // levels of the loss: name, nats per token
  std::int64_t unreadable_lines = 0;                       // torn, or no metrics row

  // Empty if the run has no such curve.
  const Series& curve(const std::string& key) const;
};

// Reads metrics.jsonl and recipe.toml of a run's folder. The row {"run": {"name": ..., "references": {name: nats}}} is
// optional. Lines that are no metrics row are counted and left out. Error (config) if the folder has no metrics.jsonl,
// one of more than 512 MiB, or one without a usable row.
RunHistory read_run(const std::string& folder);

// At most `limit` points: of each of limit / 2 equal stretches of x the lowest and the highest, in order.
Series downsample(const Series& series, std::size_t limit = 2000);

// The page. Texts that come from files are escaped; nothing is loaded from elsewhere.
std::string report_page(const std::vector<RunHistory>& runs);

// Reads up to 16 runs and writes the page to `path`, replacing it in one rename.
void write_report(const std::vector<std::string>& folders, const std::string& path);

}  // namespace weft
