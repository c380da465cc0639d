// Legend: "plot" is the area inside the axes; px and py are SVG units, y downwards.
#include "train/report/chart.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <iterator>
#include <limits>

#include "data/storage/utf8.h"

namespace weft {
namespace {

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

// Where a chart's plot is, and how values map into it.
class Frame {
 public:
  Frame(bool wide, Range x, Range y, bool log_y)
      : width_(wide ? 1200 : 590), height_(wide ? 360 : 270), x_(x), y_(y), log_y_(log_y) {
    if (log_y_) y_ = {std::log10(y.low), std::log10(y.high)};
    if (x_.high <= x_.low) x_.high = x_.low + 1.0;
    if (y_.high - y_.low < 1e-12 * std::max(1.0, std::abs(y_.high))) {
      const double room = std::max(1e-9, 0.05 * std::abs(y_.high));
      y_ = {y_.low - room, y_.high + room};
    }
  }

  double px(double x) const { return kLeft + (x - x_.low) / (x_.high - x_.low) * (right() - kLeft); }
  // Far values are brought near the frame, where the clip path hides them, so that coordinates stay small.
  double py(double y) const {
    const double value = log_y_ ? std::log10(std::max(y, 1e-300)) : y;
    const double part = std::clamp((value - y_.low) / (y_.high - y_.low), -1.0, 2.0);
    return bottom() - part * (bottom() - kTop);
  }
  double left() const { return kLeft; }
  double right() const { return width_ - kRight; }
  double top() const { return kTop; }
  double bottom() const { return height_ - kBottom; }

  // Opens the element and draws the axes.
  std::string open(const std::string& title) const;
  // An element that cuts what it holds at the plot's edges.
  std::string open_plot() const;

 private:
  static constexpr double kLeft = 56;
  static constexpr double kRight = 14;
  static constexpr double kTop = 12;
  static constexpr double kBottom = 30;

  double width_;
  double height_;
  Range x_;
  Range y_;
  bool log_y_;
};

// Multiples of 1, 2 or 5 times a power of ten inside [low, high], about `wanted` of them.
std::vector<double> linear_ticks(double low, double high, double wanted) {
  const double raw = (high - low) / wanted;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double lead = raw / power;
  const double step = power * (lead < 1.5 ? 1.0 : lead < 3.5 ? 2.0 : lead < 7.5 ? 5.0 : 10.0);
  std::vector<double> ticks;
  for (double k = std::ceil(low / step); k * step <= high + 1e-9 * step && ticks.size() < 20; ++k) {
    ticks.push_back(k * step);
  }
  return ticks;
}

// Powers of ten, with 2 and 5 between them where there are few; arguments and results are values.
std::vector<double> log_ticks(double low_exponent, double high_exponent) {
  const double span = high_exponent - low_exponent;
  const double stride = std::max(1.0, std::ceil(span / 6.0));
  std::vector<double> ticks;
  for (double e = std::floor(low_exponent); e <= high_exponent; e += stride) {
    for (const double lead : {1.0, 2.0, 5.0}) {
      if (lead > 1.0 && span > 3.0) break;
      const double exponent = e + std::log10(lead);
      if (exponent >= low_exponent && exponent <= high_exponent) ticks.push_back(lead * std::pow(10.0, e));
    }
  }
  return ticks;
}

std::string Frame::open_plot() const {
  const double w = right() - left();
  const double h = bottom() - top();
  return fmt::format(
      "<svg x=\"{0:g}\" y=\"{1:g}\" width=\"{2:g}\" height=\"{3:g}\" viewBox=\"{0:g} {1:g} {2:g} {3:g}\">\n", left(),
      top(), w, h);
}

std::string Frame::open(const std::string& title) const {
  std::string out = fmt::format(
      "<svg class=\"chart\" viewBox=\"0 0 {:g} {:g}\" role=\"img\" aria-label=\"{}\" data-plot=\"{:g} {:g} {:g} {:g}\" "
      "data-x=\"{} {}\" data-y=\"{} {}\" data-log=\"{}\">\n",
      width_, height_, html_escape(title), left(), top(), right(), bottom(), x_.low, x_.high, y_.low, y_.high,
      log_y_ ? 1 : 0);
  const std::vector<double> y_ticks = log_y_ ? log_ticks(y_.low, y_.high) : linear_ticks(y_.low, y_.high, 5);
  out += "<g class=\"axis\">\n";
  for (const double y : y_ticks) {
    out += fmt::format("<path d=\"M{:g},{:.2f}H{:g}\"/><text x=\"{:g}\" y=\"{:.2f}\" text-anchor=\"end\">{}</text>\n",
                       left(), py(y), right(), left() - 7, py(y) + 4, short_number(y));
  }
  for (const double x : linear_ticks(x_.low, x_.high, width_ > 1000 ? 10 : 6)) {
    out += fmt::format("<text x=\"{:.2f}\" y=\"{:g}\" text-anchor=\"middle\">{}</text>\n", px(x), bottom() + 18,
                       short_number(x));
  }
  out += fmt::format("<path class=\"base\" d=\"M{:g},{:g}H{:g}\"/>\n</g>\n", left(), bottom(), right());
  return out;
}

std::string path_data(const Frame& frame, const Series& series) {
  std::string d;
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    fmt::format_to(std::back_inserter(d), "{}{:.2f},{:.2f}", i == 0 ? 'M' : 'L', frame.px(series.x[i]),
                   frame.py(series.y[i]));
  }
  // A single point is drawn as a round line end.
  if (series.x.size() == 1) d += "h0.01";
  return d;
}

// The range without the lowest 1 % and the highest `cut` of the values; of all of them when they are few.
Range robust_range(std::vector<double> values, double cut) {
  std::ranges::sort(values);
  const bool few = values.size() < 50;
  const auto part = [&](double fraction) {
    return few ? 0 : static_cast<std::size_t>(fraction * static_cast<double>(values.size()));
  };
  return {values[part(0.01)], values[values.size() - 1 - part(cut)]};
}

std::string figure(const std::string& title, const std::string& unit, const std::string& legend,
                   const std::string& drawing, bool wide) {
  return fmt::format("<figure{}>\n<figcaption><b>{}</b><i>{}</i>{}</figcaption>\n{}</figure>\n",
                     wide ? " class=\"wide\"" : "", html_escape(title), html_escape(unit), legend, drawing);
}

std::string legend_entry(const Curve& curve) {
  return fmt::format("<span class=\"key{} c{}\">{}</span>", curve.style == CurveStyle::dots ? " dots" : "",
                     curve.colour % kChartColours, html_escape(curve.label));
}

// Means over equal stretches of steps, the same stretches for every layer.
std::vector<double> stretch_means(const Series& series, double first, double width, std::size_t stretches) {
  std::vector<double> sum(stretches);
  std::vector<double> count(stretches);
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    const double place = std::floor((series.x[i] - first) / width);
    const auto s = static_cast<std::size_t>(std::clamp(place, 0.0, static_cast<double>(stretches - 1)));
    sum[s] += series.y[i];
    count[s] += 1.0;
  }
  for (std::size_t s = 0; s < stretches; ++s) sum[s] = count[s] > 0.0 ? sum[s] / count[s] : std::nan("");
  return sum;
}

}  // namespace

std::string html_escape(std::string_view text) {
  std::string escaped;
  for (const char c : repair_utf8(text)) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
          escaped += "\xEF\xBF\xBD";
        } else {
          escaped += c;
        }
    }
  }
  return escaped;
}

std::string short_number(double value) {
  const double size = std::abs(value);
  if (size == 0.0) return "0";
  if (size >= 1e15 || size < 1e-3) return fmt::format("{:.3g}", value);
  for (const auto& [unit, name] : {std::pair(1e12, "T"), {1e9, "G"}, {1e6, "M"}, {1e4, "k"}}) {
    if (size >= unit) return fmt::format("{:.4g}{}", value / (unit == 1e4 ? 1e3 : unit), name);
  }
  return fmt::format("{:.4g}", value);
}

std::string svg(const LineChart& chart) {
  Range x;
  std::vector<double> values;
  for (const Curve& curve : chart.curves) {
    for (std::size_t i = 0; i < curve.series.x.size(); ++i) {
      if (chart.log_y && curve.series.y[i] <= 0.0) continue;
      x.include(curve.series.x[i]);
      values.push_back(curve.series.y[i]);
    }
  }
  if (values.empty()) return {};
  Range y = robust_range(std::move(values), chart.cut);
  for (const Level& level : chart.levels) {
    if (!chart.log_y || level.y > 0.0) y.include(level.y);
  }
  if (chart.from_zero) y.low = std::min(0.0, y.low);
  const double room = chart.log_y ? 0.0 : 0.04 * (y.high - y.low);
  y = {chart.from_zero ? y.low : y.low - room, y.high + room};

  const Frame frame(chart.wide, x, y, chart.log_y);
  std::string out = frame.open(chart.title);
  std::string legend;
  for (const Level& level : chart.levels) {
    const double py = frame.py(level.y);
    out += fmt::format(
        "<path class=\"level\" d=\"M{:g},{:.2f}H{:g}\"/><text class=\"level\" x=\"{:g}\" y=\"{:.2f}\" "
        "text-anchor=\"end\">{}</text>\n",
        frame.left(), py, frame.right(), frame.right() - 4, py - 5, html_escape(level.label));
  }
  out += frame.open_plot();
  for (const Curve& curve : chart.curves) {
    if (curve.series.empty()) continue;
    const Series points = downsample(curve.series);
    const std::size_t colour = curve.colour % kChartColours;
    if (curve.style == CurveStyle::faint) {
      out += fmt::format("<path class=\"faint c{}\" d=\"{}\"/>\n", colour, path_data(frame, points));
      continue;
    }
    if (!curve.label.empty()) legend += legend_entry(curve);
    out += fmt::format("<path class=\"curve c{}{}\" data-label=\"{}\" d=\"{}\"/>\n", colour,
                       curve.style == CurveStyle::dots ? " dashed" : "", html_escape(curve.label),
                       path_data(frame, points));
    if (curve.style == CurveStyle::dots && points.x.size() <= 100) {
      for (std::size_t i = 0; i < points.x.size(); ++i) {
        out += fmt::format("<circle class=\"c{}\" cx=\"{:.2f}\" cy=\"{:.2f}\" r=\"3\"/>", colour, frame.px(points.x[i]),
                           frame.py(points.y[i]));
      }
      out += "\n";
    }
  }
  return figure(chart.title, chart.unit, legend, out + "</svg>\n</svg>\n", chart.wide);
}

std::string svg(const StackedChart& chart) {
  Range x;
  for (const Curve& layer : chart.layers) {
    for (const double step : layer.series.x) x.include(step);
  }
  if (x.high < x.low) return {};
  const std::size_t stretches = static_cast<std::size_t>(std::clamp(x.high - x.low + 1.0, 1.0, 240.0));
  const double width = std::max(1.0, x.high - x.low + 1.0) / static_cast<double>(stretches);

  // Heights of the boundaries between layers: boundary[0] = 0.
  std::vector<std::vector<double>> boundary(1, std::vector<double>(stretches, 0.0));
  double total = 0.0;
  std::vector<double> layer_total;
  for (const Curve& layer : chart.layers) {
    std::vector<double> means = stretch_means(layer.series, x.low, width, stretches);
    double sum = 0.0;
    for (const double value : layer.series.y) sum += value;
    layer_total.push_back(sum);
    total += sum;
    for (std::size_t s = 0; s < stretches; ++s) {
      means[s] = boundary.back()[s] + (std::isnan(means[s]) ? 0.0 : means[s]);
    }
    boundary.push_back(std::move(means));
  }
  Range y = robust_range(boundary.back(), 0.01);
  y = {0.0, 1.05 * std::max(y.high, 1e-9)};
  const Frame frame(false, x, y, false);
  std::string out = frame.open(chart.title);
  out += frame.open_plot();
  std::string legend;
  for (std::size_t l = 0; l < chart.layers.size(); ++l) {
    Curve entry = chart.layers[l];
    entry.label += fmt::format(" {:.0f}%", total > 0.0 ? 100.0 * layer_total[l] / total : 0.0);
    legend += legend_entry(entry);
    std::string d;
    // Along the upper boundary in steps, and back along the lower one.
    for (std::size_t s = 0; s < stretches; ++s) {
      const double from = frame.px(x.low + width * static_cast<double>(s));
      const double to = frame.px(std::min(x.high, x.low + width * static_cast<double>(s + 1)));
      const double top = frame.py(boundary[l + 1][s]);
      fmt::format_to(std::back_inserter(d), "{}{:.2f},{:.2f}H{:.2f}", s == 0 ? 'M' : 'L', from, top, to);
    }
    for (std::size_t s = stretches; s-- > 0;) {
      const double from = frame.px(x.low + width * static_cast<double>(s));
      const double to = frame.px(std::min(x.high, x.low + width * static_cast<double>(s + 1)));
      fmt::format_to(std::back_inserter(d), "L{:.2f},{:.2f}H{:.2f}", to, frame.py(boundary[l][s]), from);
    }
    out += fmt::format("<path class=\"layer c{}\" d=\"{}Z\"/>\n", entry.colour % kChartColours, d);
  }
  return figure(chart.title, chart.unit, legend, out + "</svg>\n</svg>\n", false);
}

}  // namespace weft
