// The table of docs/mixers.md: one row a mixer, between two marker lines.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace weft {

inline constexpr const char* kPanelBegin = "<!-- panel: begin -->";
inline constexpr const char* kPanelEnd = "<!-- panel: end -->";

struct PanelRow {
  std::string mixer;
  std::vector<std::string> cells;  // [columns - 1]
};

// `text` with these rows in the table between its marker lines: new ones, or in place of those of the same mixers; by
// name. Other rows and everything outside stay. Error (config) that names `path` if the markers are not there, or if
// the table has other columns and rows that are not replaced.
std::string update_panel_table(const std::string& text, const std::string& path,
                               const std::vector<std::string>& columns, std::span<const PanelRow> rows);

}  // namespace weft
