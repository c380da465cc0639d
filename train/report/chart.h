// Charts as SVG elements whose colours come from the page's style sheet: classes c0 ... c7, var(--c0) ... var(--c7).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "train/report/report.h"

namespace weft {

inline constexpr std::size_t kChartColours = 8;

enum class CurveStyle { line, faint, dots };

struct Curve {
  std::string label;  // empty: not in the legend
  Series series;
  std::size_t colour = 0;
  CurveStyle style = CurveStyle::line;
};

struct Level {
  std::string label;
  double y = 0.0;
};

// Lines over steps. The range of y leaves out the highest `cut` and the lowest 1 % of the points, which end at the
// frame.
struct LineChart {
  std::string title;
  std::string unit;
  bool log_y = false;
  bool from_zero = false;
  bool wide = false;
  double cut = 0.01;
  std::vector<Curve> curves;
  std::vector<Level> levels;  // horizontal lines, always in range
};
// Empty if no curve has a point.
std::string svg(const LineChart& chart);

// Layers on top of each other, bottom first, all over the same steps; means over at most 240 stretches of steps.
struct StackedChart {
  std::string title;
  std::string unit;
  std::vector<Curve> layers;
};
std::string svg(const StackedChart& chart);

// For text and attributes: &, <, >, quotes; control characters and ill-formed UTF-8 become U+FFFD.
std::string html_escape(std::string_view text);

// 1234 -> "1,234"; 25600 -> "25.6k"; 0.00012 -> "1.2e-4": few digits, for axes and tables.
std::string short_number(double value);

}  // namespace weft
