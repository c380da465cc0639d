#include "train/loop/training_state.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "autograd/transfer.h"
#include "data/storage/json.h"

namespace weft {
namespace {

using nlohmann::json;

std::vector<std::string> to_bits_list(const std::vector<double>& values) {
  std::vector<std::string> list;
  for (const double v : values) list.push_back(to_bits(v));
  return list;
}

std::vector<double> from_bits_list(const json& list, const std::string& source) {
  std::vector<double> values;
  for (const json& v : list) values.push_back(double_from_bits(v.get<std::string>(), source));
  return values;
}

// One stored array of the whole state, in canonical order.
struct StoredArray {
  std::string kind;
  std::string name;
  Tensor tensor;
};

std::vector<StoredArray> stored_arrays(const TrainingParts& parts) {
  std::vector<StoredArray> arrays;
  for (const Parameter* p : parts.model.parameters().all()) arrays.push_back({"master", p->name, p->master});
  for (const OptimizerState& s : parts.optimizer.states()) {
    arrays.push_back({std::string(s.kind), s.parameter, s.tensor});
  }
  return arrays;
}

std::vector<ParameterRecord> parameter_records(const TrainingParts& parts) {
  std::vector<ParameterRecord> records;
  std::map<std::string, std::size_t> index;
  for (const Parameter* p : parts.model.parameters().all()) {
    index[p->name] = records.size();
    records.push_back(
        {.name = p->name, .shape = p->shape, .group = "default", .optimizer = "none", .store = {"master"}});
  }
  for (const ParameterPlan& plan : parts.optimizer.plans()) {
    records[index.at(plan.parameter->name)].optimizer = name_of(plan.rule);
  }
  for (const OptimizerState& s : parts.optimizer.states()) records[index.at(s.parameter)].store.emplace_back(s.kind);
  return records;
}

json scalar_state(const TrainingProgress& progress, std::int64_t updates, const SpikeGuard::State& guard,
                  const NonfinitePolicy::State& policy) {
  return {
      {"tokens", progress.tokens},
      {"data_step", progress.data_step},
      {"data_skips", progress.data_skips},
      {"sampler", progress.sampler},
      {"updates", updates},
      {"spike_guard",
       {{"losses", to_bits_list(guard.losses)},
        {"log_norms", to_bits_list(guard.log_norms)},
        {"skipped_steps", guard.skipped_steps},
        {"disabled", guard.disabled}}},
      {"nonfinite",
       {{"consecutive_bad", policy.consecutive_bad}, {"rollbacks", policy.rollbacks}, {"skipped", policy.skipped}}}};
}

void restore_scalars(const CheckpointReader& reader, const TrainingParts& parts) {
  const std::string source = (reader.directory() / "manifest.json").string();
  const json& state = reader.state();
  try {
    parts.progress = {.step = reader.step(),
                      .tokens = state.at("tokens").get<std::int64_t>(),
                      .data_step = state.at("data_step").get<std::int64_t>(),
                      .sampler = state.at("sampler").get<std::string>(),
                      .data_skips = state.at("data_skips").get<std::vector<std::pair<std::int64_t, std::int64_t>>>()};
    parts.optimizer.set_updates(state.at("updates").get<std::int64_t>());
    const json& guard = state.at("spike_guard");
    parts.guard.restore({.losses = from_bits_list(guard.at("losses"), source),
                         .log_norms = from_bits_list(guard.at("log_norms"), source),
                         .skipped_steps = guard.at("skipped_steps").get<std::vector<std::int64_t>>(),
                         .disabled = guard.at("disabled").get<bool>()});
    const json& policy = state.at("nonfinite");
    parts.policy.restore({.consecutive_bad = policy.at("consecutive_bad").get<std::int64_t>(),
                          .rollbacks = policy.at("rollbacks").get<std::int64_t>(),
                          .skipped = policy.at("skipped").get<std::int64_t>()});
  } catch (const json::exception& error) {
    storage_error("{}: the training state is not weft's: {}", source, error.what());
  }
}

std::span<std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.raw()), tensor.nbytes()};
}

void read_array(const CheckpointReader& reader, const StoredArray& array, const Stream& stream) {
  if (reader.dtype(array.kind, array.name) != array.tensor.dtype()) {
    storage_error("{}: {} of {} is stored as {}, expected {}", reader.directory().string(), array.kind, array.name,
                  name_of(reader.dtype(array.kind, array.name)), name_of(array.tensor.dtype()));
  }
  const bool on_host = array.tensor.device().is_cpu();
  const Tensor host = on_host ? array.tensor : Tensor::empty(array.tensor.shape(), array.tensor.dtype());
  reader.read(array.kind, array.name, 0, host.numel(), bytes_of(host));
  for (const float v : host.span<float>()) {
    if (std::isfinite(v)) continue;
    fail(ExitCode::nonfinite, "{}: {} of {} holds {}; move this checkpoint away to go on from the one before",
         reader.directory().string(), array.kind, array.name, v);
  }
  if (on_host) return;
  copy(array.tensor, host, stream);
  synchronize(stream);  // before the host copy goes
}

std::string provenance_of(const CheckpointReader& reader, const char* key) {
  const json& provenance = reader.provenance();
  const auto value = provenance.find(key);
  if (value == provenance.end() || !value->is_string()) {
    storage_error("{}: the manifest holds no {}", reader.directory().string(), key);
  }
  return value->get<std::string>();
}

void check_same_model(const CheckpointReader& reader, LanguageModel& model) {
  std::vector<ParameterRecord> records;
  for (const Parameter* p : model.parameters().all())
    records.push_back({.name = p->name, .shape = p->shape, .group = {}, .optimizer = {}, .store = {}});
  const std::vector<std::string> differences = parameter_differences(reader.parameters(), records);
  if (differences.empty()) return;
  std::string lines;
  constexpr std::size_t kMost = 8;
  for (std::size_t i = 0; i < std::min(kMost, differences.size()); ++i) lines += "\n  " + differences[i];
  if (differences.size() > kMost) lines += fmt::format("\n  and {} more", differences.size() - kMost);
  config_error("{}: the checkpoint is of another model than the recipe describes:{}", reader.directory().string(),
               lines);
}

}  // namespace

std::string fresh_training_state() {
  return canonical(scalar_state({}, 0, {}, {}));
}

Snapshot take_snapshot(const TrainingParts& parts, int rank, int ranks) {
  Snapshot snapshot;
  CheckpointState& state = snapshot.state;
  state.step = parts.progress.step;
  state.parameters = parameter_records(parts);
  state.state =
      canonical(scalar_state(parts.progress, parts.optimizer.updates(), parts.guard.state(), parts.policy.state()));
  // The writer of an array is the rank whose share of all bytes the array begins in.
  const std::vector<StoredArray> arrays = stored_arrays(parts);
  std::size_t total = 0;
  for (const StoredArray& a : arrays) total += a.tensor.nbytes();
  std::size_t before = 0;
  for (const StoredArray& a : arrays) {
    const auto writer = static_cast<int>(before * static_cast<std::size_t>(ranks) / std::max<std::size_t>(total, 1));
    before += a.tensor.nbytes();
    if (writer != rank) continue;
    const Tensor host = to_host(a.tensor, parts.place.stream);
    snapshot.copies.push_back(host);
    state.slices.push_back({.kind = a.kind,
                            .name = a.name,
                            .shape = a.tensor.shape(),
                            .offset = 0,
                            .dtype = a.tensor.dtype(),
                            .bytes = bytes_of(host)});
  }
  return snapshot;
}

void load_training_state(const CheckpointReader& reader, const TrainingParts& parts) {
  check_same_model(reader, parts.model);
  for (const StoredArray& a : stored_arrays(parts)) {
    if (a.kind == "master" || reader.has(a.kind, a.name)) {
      read_array(reader, a, parts.place.stream);
    } else {
      fill_zero(a.tensor, parts.place.stream);  // a moment of an optimizer that the checkpoint was not trained with
    }
  }
  parts.model.parameters().take_masters(parts.place.stream);
  restore_scalars(reader, parts);
}

void load_parameters(const CheckpointReader& reader, LanguageModel& model, const Stream& stream) {
  check_same_model(reader, model);
  for (const Parameter* p : model.parameters().all()) read_array(reader, {"master", p->name, p->master}, stream);
  model.parameters().take_masters(stream);
}

void load_values(const CheckpointReader& reader, LanguageModel& model, const Place& place) {
  check_same_model(reader, model);
  const DType exact = accumulator_dtype(place.dtype);
  for (Parameter* p : model.parameters().all()) {
    p->grad = {};
    p->master = Tensor(p->shape, exact, place.lasting);
    read_array(reader, {"master", p->name, p->master}, place.stream);
    p->value = p->master;
    if (place.dtype != DType::bf16 || p->kind == ParameterKind::vector) continue;
    p->value = Tensor(p->shape, DType::bf16, place.lasting);
    convert(p->value, p->master, place.stream);
    synchronize(place.stream);
    p->master = {};
  }
}

std::string recipe_of(const CheckpointReader& reader) {
  return provenance_of(reader, "recipe");
}

void attach_tokenizer(const TokenizerBundle& bundle, CheckpointState& state, json& provenance) {
  provenance["tokenizer"] = "";
  if (bundle.tokenizer == nullptr) return;
  const TokenizerIdentity identity = identity_of(*bundle.tokenizer);
  provenance["tokenizer"] = identity.name;
  provenance["tokenizer_fingerprint"] = identity.fingerprint;
  provenance["tokenizer_bos_id"] = identity.bos_id;
  provenance["tokenizer_eos_id"] = identity.eos_id;
  for (const TokenizerFile& file : bundle.files) state.attachments.push_back({file.name, file.content});
}

TokenizerIdentity tokenizer_identity_of(const CheckpointReader& reader) {
  TokenizerIdentity identity{.name = provenance_of(reader, "tokenizer"), .fingerprint = {}};
  // Checkpoints from before there were tokenizer files say no more.
  const json& provenance = reader.provenance();
  if (identity.name.empty() || !provenance.contains("tokenizer_fingerprint")) return identity;
  const std::string source = (reader.directory() / "manifest.json").string() + ", provenance";
  identity.fingerprint = provenance_of(reader, "tokenizer_fingerprint");
  identity.bos_id = require_int(provenance, "tokenizer_bos_id", source, -1);
  identity.eos_id = require_int(provenance, "tokenizer_eos_id", source, -1);
  return identity;
}

TokenizerBundle tokenizer_of(const CheckpointReader& reader) {
  const TokenizerIdentity identity = tokenizer_identity_of(reader);
  if (identity.name.empty()) return {};
  std::vector<TokenizerFile> files;
  for (const AttachedFile& file : reader.attachments()) {
    if (is_tokenizer_file(file.name)) files.push_back({file.name, reader.read_attachment(file.name)});
  }
  return restore_tokenizer(identity, std::move(files), reader.directory().string());
}

void check_same_tokenizer(const CheckpointReader& reader, const TokenizerIdentity& data, const std::string& source) {
  const TokenizerIdentity own = tokenizer_identity_of(reader);
  if (own.name == data.name && (own.fingerprint.empty() || own.fingerprint == data.fingerprint)) return;
  const auto named = [](const TokenizerIdentity& identity) {
    return identity.name.empty() ? "symbols of a task" : "the tokenizer " + shown(identity);
  };
  config_error("{}: its ids are of {}, but those of {} are of {}", reader.directory().string(), named(own), source,
               named(data));
}

}  // namespace weft
