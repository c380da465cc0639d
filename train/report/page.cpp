// The report's page: what is shown, and how it looks.
#include <algorithm>
#include <cmath>
#include <set>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "train/report/chart.h"

namespace weft {
namespace {

constexpr std::size_t kMostRuns = 16;

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --back: #fbfbfa; --card: #ffffff; --ink: #1c2024; --soft: #667079; --line: #e3e6e8;
  --c0: #2a6fb0; --c1: #d9682b; --c2: #2f8f5b; --c3: #a8479c; --c4: #b8901c; --c5: #3a9ca6; --c6: #c2404d; --c7: #7a6bc4; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1c2024; --ink: #e6e9ec; --soft: #98a2ab;
  --line: #30363c; --c0: #6aaef0; --c1: #f29a62; --c2: #66c795; --c3: #d98ace; --c4: #dcb955; --c5: #70cad2; --c6: #ef8089;
  --c7: #ab9ff0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 18px; font-weight: 650; }
h2 { font-size: 17px; margin: 34px 0 10px; font-weight: 650; }
.scroll, figure, details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: 13px; border-top: 0; }
th:first-child, td:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; margin-top: 16px; }
figure { margin: 0; padding: 12px 12px 4px; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline; padding: 0 4px 6px; font-size: 14px; }
figcaption b { font-weight: 600; } figcaption i { font-style: normal; font-size: 13px; color: var(--soft); margin: 0 auto 0 -8px; }
.key { font-size: 13px; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--c); }
.key.dots::before { width: 8px; height: 8px; border-radius: 50%; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
svg.chart { display: block; width: 100%; height: auto; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--soft); }
.axis path { stroke: var(--line); fill: none; } .axis .base { stroke: var(--soft); }
.curve, .faint { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.faint { stroke-width: 1; opacity: .3; } .dashed { stroke-dasharray: 1 5; }
circle { fill: var(--card); stroke: var(--c); stroke-width: 1.8; }
.layer { fill: var(--c); fill-opacity: .82; }
path.level { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 6 4; opacity: .65; } text.level { fill: var(--ink); }
.cursor { stroke: var(--soft); stroke-width: 1; }
#tip { position: fixed; pointer-events: none; display: none; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 6px 10px; font-size: 12.5px; box-shadow: 0 2px 10px #0003; font-variant-numeric: tabular-nums; }
details { margin-top: 10px; padding: 8px 14px; } summary { cursor: pointer; }
pre { overflow-x: auto; font: 12.5px/1.5 ui-monospace, monospace; margin: 8px 0; }
.note { color: var(--soft); font-size: 13px; }
@media (max-width: 800px) { .charts { grid-template-columns: minmax(0, 1fr); } }
)";

// The value under the pointer: points are read back from the paths, so the page carries its data once.
constexpr const char* kScript = R"(
const tip = document.getElementById('tip');
const three = v => Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(3) : +v.toPrecision(5) + '';
for (const svg of document.querySelectorAll('svg.chart')) {
  const nums = name => svg.dataset[name].split(' ').map(Number);
  const [left, top, right, bottom] = nums('plot'), [x0, x1] = nums('x'), [y0, y1] = nums('y');
  const curves = [...svg.querySelectorAll('path.curve')].map(path => ({ label: path.dataset.label, points:
    path.getAttribute('d').replace('h0.01', '').slice(1).split('L').map(p => p.split(',').map(Number)) }));
  if (!curves.length) continue;
  const cursor = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  cursor.setAttribute('class', 'cursor');
  svg.append(cursor);
  svg.addEventListener('pointerleave', () => { tip.style.display = 'none'; cursor.removeAttribute('d'); });
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const px = Math.min(right, Math.max(left, (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width));
    cursor.setAttribute('d', `M${px},${top}V${bottom}`);
    tip.replaceChildren('step ' + Math.round(x0 + (px - left) / (right - left) * (x1 - x0)));
    for (const curve of curves) {
      const near = curve.points.reduce((a, b) => Math.abs(b[0] - px) < Math.abs(a[0] - px) ? b : a);
      const y = y0 + (bottom - near[1]) / (bottom - top) * (y1 - y0);
      const row = document.createElement('div');
      row.textContent = `${curve.label}: ${three(svg.dataset.log === '1' ? 10 ** y : y)}`;
      tip.append(row);
    }
    tip.style.display = 'block';
    tip.style.left = Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8) + 'px';
    tip.style.top = event.clientY + 16 + 'px';
  });
}
)";

// Mean over `radius` values on both sides, so that it does not lag behind; fewer of them near the ends.
Series smoothed(const Series& series, std::size_t radius) {
  Series result;
  result.x = series.x;
  result.y.reserve(series.y.size());
  const std::size_t n = series.y.size();
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t reach = std::min(radius, i);
    const std::size_t end = std::min(n, i + reach + 1);
    double sum = 0.0;
    for (std::size_t j = i - reach; j < end; ++j) sum += series.y[j];
    result.y.push_back(sum / static_cast<double>(end - (i - reach)));
  }
  return result;
}

// Noisy curves: all values faintly, and their mean over about a fiftieth of the run. `name` is empty for a lone run.
void add_noisy(LineChart& chart, const std::string& name, const Series& series, std::size_t colour) {
  const std::size_t radius = std::min<std::size_t>(100, series.x.size() / 100);
  if (radius == 0) {
    chart.curves.push_back({name, series, colour});
    return;
  }
  chart.curves.push_back({name, series, colour, CurveStyle::faint});
  chart.curves.push_back(
      {name.empty() ? fmt::format("mean of {} rows", 2 * radius + 1) : name, smoothed(series, radius), colour});
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::min(seconds, 1e12));
  if (whole < 60) return fmt::format("{:.1f} s", seconds);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string last_of(const Series& series, const char* format) {
  return series.empty() ? "–" : fmt::format(fmt::runtime(format), series.y.back());
}

std::string summary_row(const RunHistory& run, std::size_t colour) {
  const Series& val = run.curve("val_loss");
  std::string best = "–";
  if (!val.empty()) {
    const auto at = static_cast<std::size_t>(std::ranges::min_element(val.y) - val.y.begin());
    best = fmt::format("{:.4f} at {:.0f}", val.y[at], val.x[at]);
  }
  const Series& steps = run.curve("loss");
  const Series& speed = run.curve("tokens_per_second");
  const Series& mfu = run.curve("mfu");
  double seconds = 0.0;
  for (const double s : run.curve("seconds").y) seconds += s;
  double skipped = 0.0;
  for (const double s : run.curve("skipped").y) skipped += s;
  const std::string cells[] = {steps.empty() ? "–" : fmt::format("{:.0f}", steps.x.back()),
                               run.curve("tokens").empty() ? "–" : short_number(run.curve("tokens").y.back()),
                               last_of(steps, "{:.4f}"),
                               last_of(val, "{:.4f}"),
                               best,
                               last_of(run.curve("val_bits_per_byte"), "{:.4f}"),
                               last_of(run.curve("val_accuracy"), "{:.4f}"),
                               speed.empty() ? "–" : short_number(median(speed.y)),
                               mfu.empty() ? "–" : fmt::format("{:.0f}%", 100.0 * median(mfu.y)),
                               run.curve("seconds").empty() ? "–" : duration(seconds),
                               run.curve("skipped").empty() ? "–" : fmt::format("{:.0f}", skipped)};
  std::string row = fmt::format("<tr><td><span class=\"key c{}\">{}</span></td>", colour, html_escape(run.name));
  for (const std::string& cell : cells) row += "<td>" + cell + "</td>";
  return row + "</tr>\n";
}

std::string charts(const std::vector<RunHistory>& runs) {
  const bool several = runs.size() > 1;
  const auto label = [&](const RunHistory& run, const std::string& what) {
    return several ? run.name + " " + what : what;
  };
  LineChart loss{
      .title = "Loss", .unit = "nats per token, by step", .wide = true, .cut = 0.03, .curves = {}, .levels = {}};
  LineChart rate{.title = "Learning rate", .unit = "by step", .from_zero = true, .curves = {}, .levels = {}};
  LineChart norm{.title = "Gradient norm", .unit = "before clipping", .log_y = true, .curves = {}, .levels = {}};
  LineChart speed{.title = "Throughput", .unit = "tokens per second", .from_zero = true, .curves = {}, .levels = {}};
  std::set<std::pair<std::string, double>> levels;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const RunHistory& run = runs[r];
    add_noisy(loss, label(run, "training"), run.curve("loss"), several ? r : 0);
    loss.curves.push_back({label(run, "validation"), run.curve("val_loss"), several ? r : 1, CurveStyle::dots});
    rate.curves.push_back({several ? run.name : "", run.curve("lr"), r});
    add_noisy(norm, several ? run.name : "", run.curve("grad_norm"), r);
    add_noisy(speed, several ? run.name : "", run.curve("tokens_per_second"), r);
    for (const auto& [name, level] : run.references) {
      if (levels.emplace(name, level).second) loss.levels.push_back({fmt::format("{} {:.3f}", name, level), level});
    }
  }
  std::string out = svg(loss) + svg(rate) + svg(norm) + svg(speed);
  for (const RunHistory& run : runs) {
    StackedChart time{several ? "Time by phase: " + run.name : "Time by phase", "seconds per step", {}};
    for (std::size_t p = 0; p < run.phases.size(); ++p) {
      const Series& seconds = run.seconds.at(run.phases[p]);
      if (std::ranges::any_of(seconds.y, [](double s) { return s > 0.0; })) {
        time.layers.push_back({run.phases[p], seconds, p, CurveStyle::line});
      }
    }
    out += svg(time);
  }
  return out;
}

}  // namespace

std::string report_page(const std::vector<RunHistory>& runs) {
  std::string title = runs.size() == 1 ? runs[0].name : fmt::format("{} runs", runs.size());
  std::string page = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{} · weft</title>\n"
      "<style>{}</style>\n</head>\n<body>\n<main>\n<h1>{}</h1>\n",
      html_escape(title), kStyle, html_escape(title));
  page +=
      "<div class=\"scroll\"><table>\n<tr><th>run</th><th>steps</th><th>tokens</th><th>training loss</th>"
      "<th>validation loss</th><th>best</th><th>bits per byte</th><th>accuracy</th><th>tokens/s</th><th>FLOP "
      "share</th><th>time</th>"
      "<th>skipped</th></tr>\n";
  for (std::size_t r = 0; r < runs.size(); ++r) page += summary_row(runs[r], r % kChartColours);
  page += "</table></div>\n<div class=\"charts\">\n" + charts(runs) + "</div>\n";
  page +=
      "<p class=\"note\">Thin lines are single steps, thick ones a mean over neighbouring steps. The most extreme "
      "values "
      "may lie outside a chart. Of long runs, thin lines show the lowest and the highest of each stretch.</p>\n";
  for (const RunHistory& run : runs) {
    if (run.unreadable_lines == 0) continue;
    page += fmt::format("<p class=\"note\">{}: {} lines of metrics.jsonl could not be read.</p>\n",
                        html_escape(run.name), run.unreadable_lines);
  }
  if (std::ranges::any_of(runs, [](const RunHistory& run) { return !run.recipe.empty(); }))
    page += "<h2>Recipes</h2>\n";
  for (const RunHistory& run : runs) {
    if (run.recipe.empty()) continue;
    page += fmt::format("<details><summary>{}</summary>\n<pre>{}</pre></details>\n", html_escape(run.name),
                        html_escape(run.recipe));
  }
  return page + "</main>\n<div id=\"tip\"></div>\n<script>" + kScript + "</script>\n</body>\n</html>\n";
}

void write_report(const std::vector<std::string>& folders, const std::string& path) {
  if (folders.empty() || folders.size() > kMostRuns) {
    config_error("a report takes 1 to {} runs, not {}", kMostRuns, folders.size());
  }
  std::vector<RunHistory> runs;
  std::set<std::string> names;
  for (const std::string& folder : folders) {
    runs.push_back(read_run(folder));
    const std::string name = runs.back().name;
    for (int copy = 2; !names.insert(runs.back().name).second; ++copy) {
      runs.back().name = fmt::format("{} ({})", name, copy);
    }
  }
  write_file_atomically(path, report_page(runs));
}

}  // namespace weft
