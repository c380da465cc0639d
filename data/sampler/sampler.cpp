#include "data/sampler/sampler.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "autograd/philox.h"
#include "data/sampler/bucket_source.h"
#include "data/sampler/mixture.h"
#include "data/sampler/permutation.h"
#include "data/sampler/row_builder.h"
#include "data/storage/json.h"
#include "data/storage/sha256.h"

namespace weft {

namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 3> kCurriculumNames = {"none", "pow2", "linear"};
constexpr std::int64_t kStateVersion = 1;

void check_weights(const SamplerSource& source) {
  const std::string& folder = source.dataset->folder();
  if (source.weight.empty()) config_error("source {}: the weight has no value", folder);
  double largest = 0;
  for (std::size_t i = 0; i < source.weight.size(); ++i) {
    const WeightPoint& point = source.weight[i];
    if (!(point.weight >= 0 && point.weight <= 1e9)) {
      config_error("source {}: weight {} is outside [0, 1e9]", folder, point.weight);
    }
    if (i > 0 && point.tokens <= source.weight[i - 1].tokens) {
      config_error("source {}: the weight's token counts must increase, {} follows {}", folder, point.tokens,
                   source.weight[i - 1].tokens);
    }
    largest = std::max(largest, point.weight);
  }
  if (largest == 0) config_error("source {}: the weight is never positive", folder);
  if (source.max_epochs < 0) config_error("source {}: max_epochs {} is negative", folder, source.max_epochs);
}

std::string describe_buckets(const BucketSource& source, const BucketSchedule& schedule) {
  const BucketIndex& index = source.index();
  std::string text = fmt::format("{} predictions are in pieces too short for a bucket\n", index.dropped);
  for (std::size_t b = 0; b < index.starts.size(); ++b) {
    const std::int64_t step = schedule.pieces_per_step(b);
    const auto pieces = static_cast<std::int64_t>(index.starts[b].size());
    text +=
        fmt::format("bucket {}: {} pieces, {} a step{}\n", std::int64_t{1} << (index.min_log2 + static_cast<int>(b)),
                    pieces, step, pieces < step ? " (too few, never used)" : "");
  }
  return text;
}

// A source as the stream goes on.
struct SourceState {
  std::int64_t rows = 0;  // drawn since the last restart
  std::int64_t credit = 0;
  std::int64_t restarts = 0;  // because the dataset changed; part of the permutation's key
};

}  // namespace

std::string_view name_of(Curriculum curriculum) {
  return kCurriculumNames[static_cast<std::size_t>(curriculum)];
}

Curriculum curriculum_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kCurriculumNames.size(); ++i) {
    if (kCurriculumNames[i] == name) return static_cast<Curriculum>(i);
  }
  config_error("curriculum \"{}\": expected \"none\", \"pow2\" or \"linear\"", name);
}

struct Sampler::Impl {
  SamplerOptions options;
  std::vector<std::unique_ptr<RowSource>> sources;  // concat and pack
  std::unique_ptr<BucketSource> buckets;
  std::unique_ptr<BucketSchedule> schedule;
  std::vector<SourceState> states;
  std::int64_t step = 0;
  std::int64_t rows_drawn = 0;

  explicit Impl(SamplerOptions given) : options(std::move(given)), states(options.sources.size()) {
    if (options.sources.empty()) config_error("no training dataset");
    if (options.rows_per_step < 1) config_error("rows per step: {} is not positive", options.rows_per_step);
    if (options.cycles < 1) config_error("cycles: {} is not positive", options.cycles);
    check_skipped_steps(options.skip_steps);
    for (const SamplerSource& source : options.sources) {
      check_row_options(options.rows, *source.dataset);
      check_weights(source);
      const DatasetManifest& first = options.sources.front().dataset->manifest();
      if (source.dataset->manifest().tokenizer_fingerprint != first.tokenizer_fingerprint) {
        config_error("datasets {} and {} have different tokenizers: {} and {}",
                     options.sources.front().dataset->folder(), source.dataset->folder(), first.tokenizer_name,
                     source.dataset->manifest().tokenizer_name);
      }
    }
    if (options.rows.packing == Packing::bucket) {
      if (options.sources.size() > 1)
        config_error("bucket packing takes one dataset, {} are given", options.sources.size());
      buckets = std::make_unique<BucketSource>(options.sources.front().dataset, options.rows, options.seed);
      schedule = std::make_unique<BucketSchedule>(options, buckets->pieces());
    } else {
      for (std::size_t s = 0; s < options.sources.size(); ++s) {
        const std::uint64_t seed = permutation_key(options.seed, RandomStream::window_offset, s);
        sources.push_back(make_row_source(options.sources[s].dataset, options.rows, seed));
      }
    }
  }

  std::int64_t tokens_drawn() const { return rows_drawn * options.rows.length; }

  bool exhausted(std::size_t s) const {
    const std::int64_t epochs = options.sources[s].max_epochs;
    return epochs > 0 && states[s].rows >= epochs * sources[s]->rows();
  }

  // One row more; nothing if no source that has a weight now has rows left.
  std::optional<RowRef> draw() {
    std::vector<double> weights;
    for (std::size_t s = 0; s < sources.size(); ++s) {
      weights.push_back(exhausted(s) ? 0.0 : weight_at(options.sources[s].weight, tokens_drawn()));
    }
    const std::vector<std::int64_t> shares = share_units(weights);
    if (std::all_of(shares.begin(), shares.end(), [](std::int64_t share) { return share == 0; })) return std::nullopt;
    std::vector<std::int64_t> credits;
    for (const SourceState& state : states) credits.push_back(state.credit);
    const std::int32_t chosen = draw_source(shares, credits);
    for (std::size_t s = 0; s < states.size(); ++s) states[s].credit = credits[s];

    const auto s = static_cast<std::size_t>(chosen);
    const std::int64_t rows = sources[s]->rows();
    const std::int64_t epoch = states[s].rows / rows;
    // Sources, and restarts of one, have keys of their own.
    const std::uint64_t purpose = s | static_cast<std::uint64_t>(states[s].restarts) << 32;
    const KeyedPermutation order(permutation_key(options.seed, RandomStream::window_permutation, purpose),
                                 static_cast<std::uint32_t>(epoch), static_cast<std::uint64_t>(rows));
    const auto index = order(static_cast<std::uint64_t>(states[s].rows % rows));
    ++states[s].rows;
    ++rows_drawn;
    return RowRef{chosen, epoch, static_cast<std::int64_t>(index), -1};
  }

  std::optional<std::vector<RowRef>> draw_step() {
    std::vector<RowRef> rows;
    if (schedule != nullptr) {
      const auto drawn = schedule->next(options.sources.front().max_epochs);
      if (!drawn) return std::nullopt;
      const std::int64_t each = buckets->pieces_per_row(static_cast<std::size_t>(drawn->bucket));
      for (std::int64_t r = 0; r < options.rows_per_step; ++r) {
        rows.push_back({0, drawn->epoch, drawn->position + r * each, drawn->bucket});
      }
      rows_drawn += options.rows_per_step;
      states[0].rows += options.rows_per_step;
      return rows;
    }
    while (static_cast<std::int64_t>(rows.size()) < options.rows_per_step) {
      const auto row = draw();
      if (!row) return std::nullopt;
      rows.push_back(*row);
    }
    return rows;
  }

  std::string order_digest(std::int64_t at, const std::vector<RowRef>& rows) const {
    std::string text = fmt::format("{} {} {}", at, name_of(options.rows.packing), options.rows.length);
    for (const SamplerSource& source : options.sources) text += " " + source.dataset->digest();
    for (const RowRef& row : rows) text += fmt::format(";{} {} {} {}", row.source, row.epoch, row.index, row.bucket);
    return hex(sha256(text)).substr(0, 16);
  }
};

Sampler::Sampler(SamplerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Sampler::~Sampler() = default;

const SamplerOptions& Sampler::options() const {
  return impl_->options;
}
std::int64_t Sampler::rows_per_step() const {
  return impl_->options.rows_per_step;
}
std::int64_t Sampler::rows_drawn() const {
  return impl_->rows_drawn;
}
std::int64_t Sampler::tokens_drawn() const {
  return impl_->tokens_drawn();
}

std::optional<StepPlan> Sampler::next() {
  for (;;) {
    auto rows = impl_->draw_step();
    if (!rows) {
      if (impl_->options.error_when_exhausted) {
        config_error("the data is exhausted after {} rows: every dataset has reached max_epochs", impl_->rows_drawn);
      }
      return std::nullopt;
    }
    StepPlan plan;
    plan.step = impl_->step++;
    if (contains(impl_->options.skip_steps, plan.step)) continue;
    // Else the sources of a mixture would line up with ranks.
    const KeyedPermutation order(
        permutation_key(impl_->options.seed, RandomStream::row_order, static_cast<std::uint64_t>(plan.step)), 0,
        rows->size());
    for (std::size_t i = 0; i < rows->size(); ++i) plan.rows.push_back((*rows)[order(i)]);
    plan.order_digest = impl_->order_digest(plan.step, plan.rows);
    return plan;
  }
}

Row Sampler::build(const RowRef& row) const {
  if (row.bucket >= 0) return impl_->buckets->build(row.epoch, row.bucket, row.index);
  return impl_->sources[static_cast<std::size_t>(row.source)]->build(row.epoch, row.index);
}

std::int64_t Sampler::rows_per_epoch(std::int32_t source) const {
  if (impl_->schedule != nullptr) return impl_->schedule->steps_per_epoch() * impl_->options.rows_per_step;
  return impl_->sources[static_cast<std::size_t>(source)]->rows();
}

std::string Sampler::describe() const {
  const SamplerOptions& options = impl_->options;
  std::string text;
  for (std::size_t s = 0; s < options.sources.size(); ++s) {
    const Dataset& dataset = *options.sources[s].dataset;
    const std::string losses = impl_->buckets == nullptr ? impl_->sources[s]->losses() : "";
    text += fmt::format("{}: {} tokens, {} rows of {} an epoch ({}){}{}\n", dataset.folder(), dataset.n_tokens(),
                        rows_per_epoch(static_cast<std::int32_t>(s)), options.rows.length,
                        name_of(options.rows.packing), losses.empty() ? "" : ", ", losses);
  }
  if (impl_->buckets != nullptr) text += describe_buckets(*impl_->buckets, *impl_->schedule);
  text.pop_back();
  return text;
}

std::string Sampler::state() const {
  const SamplerOptions& options = impl_->options;
  json sources = json::array();
  for (std::size_t s = 0; s < options.sources.size(); ++s) {
    const SourceState& state = impl_->states[s];
    sources.push_back({{"credit", state.credit},
                       {"digest", options.sources[s].dataset->digest()},
                       {"restarts", state.restarts},
                       {"rows", state.rows}});
  }
  json object = {{"length", options.rows.length},
                 {"packing", name_of(options.rows.packing)},
                 {"rows_drawn", impl_->rows_drawn},
                 {"rows_per_step", options.rows_per_step},
                 {"seed", std::to_string(options.seed)},
                 {"sources", sources},
                 {"step", impl_->step},
                 {"version", kStateVersion}};
  if (impl_->schedule != nullptr) {
    const BucketState& state = impl_->schedule->state();
    object["bucket"] = {{"cycle", state.cycle}, {"draw", state.draw}, {"epoch", state.epoch}, {"taken", state.taken}};
  }
  return canonical(object);
}

std::vector<std::string> Sampler::restore(std::string_view text, bool allow_change) {
  constexpr std::string_view kSource = "sampler state";
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  const SamplerOptions& options = impl_->options;
  const json object = parse_strict(text, kSource);
  require_unchanged("the sampler state's version", require_int(object, "version", kSource), kStateVersion);
  require_unchanged("the seed", require_string(object, "seed", kSource), std::to_string(options.seed));
  require_unchanged("the packing", require_string(object, "packing", kSource),
                    std::string(name_of(options.rows.packing)));
  require_unchanged("the sequence length", require_int(object, "length", kSource), options.rows.length);
  require_unchanged("the number of rows a step", require_int(object, "rows_per_step", kSource), options.rows_per_step);
  const json& sources = require_array(object, "sources", kSource);
  require_unchanged("the number of datasets", sources.size(), options.sources.size());

  std::vector<std::string> messages;
  std::vector<SourceState> states;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    SourceState state;
    state.rows = require_int(sources[s], "rows", kSource, 0, kMax);
    state.credit = require_int(sources[s], "credit", kSource);
    state.restarts = require_int(sources[s], "restarts", kSource, 0, std::numeric_limits<std::int32_t>::max());
    const Dataset& dataset = *options.sources[s].dataset;
    if (const std::string& saved = require_string(sources[s], "digest", kSource); saved != dataset.digest()) {
      if (!allow_change) {
        config_error(
            "dataset {}: its digest was {} when the run was saved and is now {}; a run keeps its data: choose another "
            "run.name",
            dataset.folder(), saved, dataset.digest());
      }
      state.rows = 0;
      ++state.restarts;
      messages.push_back(fmt::format("dataset {} has changed; its rows start anew in another order", dataset.folder()));
    }
    states.push_back(state);
  }
  if (impl_->schedule != nullptr) {
    const json& bucket = require_object(object, "bucket", kSource);
    BucketState state;
    state.epoch = require_int(bucket, "epoch", kSource, 0, kMax);
    state.cycle = require_int(bucket, "cycle", kSource, 0, options.cycles - 1);
    state.draw = require_int(bucket, "draw", kSource, 0, kMax);
    for (const json& taken : require_array(bucket, "taken", kSource)) {
      if (!taken.is_number_integer()) config_error("{}: \"taken\" has {}, no integer", kSource, taken.dump());
      state.taken.push_back(taken.get<std::int64_t>());
    }
    if (messages.empty()) {
      impl_->schedule->set_state(std::move(state));
    } else {
      impl_->schedule->set_state({state.epoch + 1, 0, 0, std::vector<std::int64_t>(state.taken.size(), 0)});
    }
  }
  impl_->states = std::move(states);
  impl_->rows_drawn = require_int(object, "rows_drawn", kSource, 0, kMax);
  impl_->step = require_int(object, "step", kSource, 0, kMax);
  return messages;
}

}  // namespace weft
