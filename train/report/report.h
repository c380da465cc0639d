// The report of one or several runs: one HTML page, self-contained, with curves as inline SVG.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace weft {

// A curve: x are steps, ascending; y are finite.
struct Series {
  std::vector<double> x;
  std::vector<double> y;
};

// What report pages need of one run's folder.
struct RunHistory {
  std::string name;
  std::string folder;
  std::string recipe;                                      // text of recipe.toml; empty if there is none
  std::map<std::string, Series> curves;                    // by key of metrics.jsonl: "loss", "lr", "val_loss", ...
  std::vector<std::string> phases;                         // names, in order of first appearance
  std::map<std::string, Series> phase_seconds;             // by phase
  std::vector<std::pair<std::string, double>> references;  // horizontal lines on the loss: name, nats per token
  std::int64_t rows = 0;
  std::int64_t skipped_lines = 0;  // torn or not a metrics row
};

// Reads metrics.jsonl and recipe.toml of a run's folder. A row of a step that occurs again later (a resumed run)
// replaces the earlier one. Lines that are no JSON object are counted and left out; the first row {"run": {...}} may
// carry "name" and "references": {name: nats}. Error (config) if there is no metrics.jsonl or no usable row in it.
RunHistory read_run(const std::string& folder);

// At most `limit` points: in each of limit/2 equal stretches of x the lowest and the highest, in order.
Series downsample(const Series& series, std::size_t limit = 2000);

// The page. All texts that come from files are escaped.
std::string report_page(const std::vector<RunHistory>& runs);

// Reads the runs and writes the page to `path`, atomically.
void write_report(const std::vector<std::string>& folders, const std::string& path);

}  // namespace weft
