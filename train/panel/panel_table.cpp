#include "train/panel/panel_table.h"

#include <map>
#include <sstream>

#include "autograd/check.h"

namespace weft {
namespace {

std::string line_of(const std::vector<std::string>& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) line += " " + cell + " |";
  return line;
}

// The cells of a line of a table; none if it is no such line.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  if (line.size() < 2 || line.front() != '|') return cells;
  std::istringstream in(line.substr(1));
  for (std::string cell; std::getline(in, cell, '|');) {
    const std::size_t begin = cell.find_first_not_of(' ');
    cells.push_back(begin == std::string::npos ? "" : cell.substr(begin, cell.find_last_not_of(' ') - begin + 1));
  }
  return cells;
}

}  // namespace

std::string update_panel_table(const std::string& text, const std::string& path,
                               const std::vector<std::string>& columns, std::span<const PanelRow> rows) {
  const std::string begin_line = std::string(kPanelBegin) + "\n";
  const std::size_t begin = text.find(begin_line);
  const std::size_t end = text.find(kPanelEnd);
  if (begin == std::string::npos || end == std::string::npos || end < begin) {
    config_error("{}: the table's marker lines {} and {} are not there", path, kPanelBegin, kPanelEnd);
  }
  std::map<std::string, std::vector<std::string>> table;
  std::istringstream old(text.substr(begin + begin_line.size(), end - begin - begin_line.size()));
  int line_number = 0;
  for (std::string line; std::getline(old, line);) {
    std::vector<std::string> cells = cells_of(line);
    if (cells.empty() || ++line_number <= 2) continue;  // the header and the rule below it
    table[cells.front()] = std::move(cells);
  }
  for (const PanelRow& row : rows) {
    std::vector<std::string>& cells = table[row.mixer];
    cells = {row.mixer};
    cells.insert(cells.end(), row.cells.begin(), row.cells.end());
  }

  std::vector<std::string> rule(columns.size(), "---:");
  rule.front() = "---";
  std::string result = text.substr(0, begin) + begin_line + line_of(columns) + "\n|";
  for (const std::string& cell : rule) result += cell + "|";
  result += "\n";
  for (const auto& [mixer, cells] : table) {
    if (cells.size() != columns.size()) {
      config_error("{}: the row of {} has {} cells, but the table has {} columns; run the panel for it, too", path,
                   mixer, cells.size(), columns.size());
    }
    result += line_of(cells) + "\n";
  }
  return result + text.substr(end);
}

}  // namespace weft
