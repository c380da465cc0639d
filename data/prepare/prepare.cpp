#include "data/prepare/prepare.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "autograd/check.h"
#include "data/dataset.h"
#include "data/prepare/collector.h"
#include "data/prepare/emitter.h"
#include "data/prepare/pipeline.h"
#include "data/storage/file.h"
#include "data/storage/json.h"

namespace weft {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMinMemory = std::int64_t{16} << 20;
constexpr std::int64_t kMaxSpills = 1024;
// Batches on their way beyond this do not make anything faster.
constexpr std::int64_t kMaxQueue = std::int64_t{256} << 20;
// Spills of standard input, whose size is not known.
constexpr std::int64_t kSpillsOfUnknown = 64;

void check_options(const PrepareOptions& options, const Tokenizer& tokenizer) {
  if (options.out.empty()) config_error("--out: name the folder of the dataset");
  if (options.memory < kMinMemory) {
    config_error("--memory: {} bytes, at least {} are needed", options.memory, kMinMemory);
  }
  if (options.threads < 0) config_error("--threads: {} is negative", options.threads);
  if (options.text_field.empty()) config_error("--text-field: the name is empty");
  if (options.max_doc_bytes < 1 || options.max_doc_bytes > (std::int64_t{1} << 31)) {
    config_error("--max-doc-bytes: {} is outside [1, 2147483648]", options.max_doc_bytes);
  }
  if (options.validation_every < 0 || options.validation_every == 1) {
    config_error("--hold-out {}: every how many documents one is held out; 0 for none, or 2 and more",
                 options.validation_every);
  }
  if (options.split == TextSplit::delimiter && options.delimiter.empty()) {
    config_error("--split delimiter: name the line between documents with --delimiter");
  }
  if (options.split != TextSplit::delimiter && !options.delimiter.empty()) {
    config_error("--delimiter: it is for --split delimiter");
  }
  if (options.delimiter.find('\n') != std::string::npos) config_error("--delimiter: it has a line break");
  if (options.bos && tokenizer.bos_id() < 0) config_error("--bos doc: the tokenizer {} has no BOS", tokenizer.name());
}

std::string split_name(const PrepareOptions& options) {
  if (options.split == TextSplit::file) return "file";
  return options.split == TextSplit::blank ? "blank" : "delimiter " + options.delimiter;
}

// What decides the content beside the inputs: goes into the manifest, and its digest into every shard.
std::map<std::string, std::string> content_options(const PrepareOptions& options) {
  return {{"bos", options.bos ? "doc" : "none"},
          {"dedup", options.dedup_exact ? "exact" : "none"},
          {"invalid", options.replace_invalid ? "replace" : "skip"},
          {"max_doc_bytes", std::to_string(options.max_doc_bytes)},
          {"max_line_bytes", std::to_string(options.max_line_bytes)},
          {"shard_tokens", std::to_string(options.shard_tokens)},
          {"shuffle", options.shuffle_seed ? std::to_string(*options.shuffle_seed) : "none"},
          {"split", split_name(options)},
          {"text_field", options.text_field},
          {"validation_every", std::to_string(options.validation_every)}};
}

std::string digest_of(const nlohmann::json& value) {
  return hex(sha256(canonical(value)));
}

class Preparation {
 public:
  Preparation(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress)
      : options_(options),
        progress_(progress),
        bundle_(open_tokenizer(options.tokenizer)),
        tokenizer_(bundle_.tokenizer),
        started_(std::chrono::steady_clock::now()) {
    check_options(options_, *tokenizer_);
    while (options_.out.size() > 1 && options_.out.ends_with('/')) options_.out.pop_back();
    inputs_ = expand_inputs(options_);
    const bool all_jsonl = std::all_of(inputs_.begin(), inputs_.end(),
                                       [](const PrepareInput& input) { return input.format == InputFormat::jsonl; });
    if (all_jsonl && options_.split != TextSplit::file) {
      config_error("--split is for text, but {} is taken as jsonl; --format text says otherwise", inputs_.front().path);
    }
    partial_ = options_.out + ".partial";
    folders_ = {options_.out, options_.out + "-validation"};
    for (const PrepareInput& input : inputs_) input_bytes_ += std::max<std::int64_t>(input.bytes, 0);
    unknown_size_ = std::any_of(inputs_.begin(), inputs_.end(), [](const PrepareInput& i) { return i.bytes < 0; });
  }

  PrepareResult run() {
    if (!fs::exists(partial_ + "/journal")) {
      check_targets_free();
      check_partial_is_ours();
    }
    make_folder(partial_);
    Journal journal(partial_ + "/journal");
    // Files of a run that got nowhere; shards of other options would end up in the dataset.
    if (!journal.has_progress()) remove_all_but_journal();
    if (journal.empty() || (journal.content().job != job_digest() && !journal.has_progress())) {
      check_targets_free();
      check_free_space();
      journal.start(job_digest());
    } else {
      if (journal.content().job != job_digest()) {
        config_error(
            "{} is from an interrupted run with other options or inputs; remove it, or run the same command again",
            partial_);
      }
      // A complete run may have been interrupted between its renames.
      if (!journal.content().complete) check_targets_free();
      result_.resumed = journal.has_progress();
    }
    try {
      work(journal);
    } catch (...) {
      // Nothing is lost that took long to make.
      if (!journal.has_progress()) remove_partial();
      throw;
    }
    return result_;
  }

 private:
  void work(Journal& journal) {
    const CollectState state = journal.content().collected ? journal.content().collect : collect(journal);
    if (!journal.content().complete) emit(journal, state);
    commit();
    fill_result(state);
    remove_partial();
  }

  // The journal goes last: while it is there, the next run of the same command cleans up.
  void remove_partial() const {
    remove_all_but_journal();
    std::error_code error;
    fs::remove_all(partial_, error);
  }

  void remove_all_but_journal() const {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(partial_, error)) {
      if (entry.path().filename() != "journal") fs::remove_all(entry.path(), error);
    }
  }

  int dataset_count() const { return options_.validation_every > 0 ? 2 : 1; }
  std::string growing_folder(int dataset) const { return partial_ + (dataset == 0 ? "/dataset" : "/validation"); }

  void check_targets_free() const {
    for (int i = 0; i < dataset_count(); ++i) {
      const std::string& folder = folders_[static_cast<std::size_t>(i)];
      std::error_code error;
      if (!fs::exists(folder, error)) continue;
      if (!fs::is_directory(folder, error) || !fs::is_empty(folder, error)) {
        config_error("output {} exists; remove it or choose another --out", folder);
      }
    }
  }

  // The folder is removed in the end, with all that is in it.
  void check_partial_is_ours() const {
    std::error_code error;
    if (!fs::exists(partial_, error) || fs::is_empty(partial_, error)) return;
    config_error("{} exists and has no journal of an interrupted run; remove it or choose another --out", partial_);
  }

  static void make_folder(const std::string& folder) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) storage_error("cannot create folder {}: {}", folder, error.message());
  }

  void check_free_space() const {
    // Spills and shards of at least the input's size in tokens; compressed input needs more, how much is not known.
    const auto needed = static_cast<std::uint64_t>(2 * token_bytes() * input_bytes_);
    const std::uint64_t free = free_space(partial_).bytes;
    if (free < needed) {
      std::error_code error;
      fs::remove_all(partial_, error);
      throw DiskFull(fmt::format("{}: {} bytes are free, this needs at least {}", options_.out, free, needed));
    }
  }

  std::int64_t token_bytes() const { return tokenizer_->vocab_size() <= 65536 ? 2 : 4; }

  std::string job_digest() const {
    nlohmann::json inputs = nlohmann::json::array();
    for (const PrepareInput& input : inputs_) {
      inputs.push_back(
          {hex(std::as_bytes(std::span(input.path))), static_cast<int>(input.format), input.bytes, input.modified_ns});
    }
    nlohmann::json job = {
        {"inputs", inputs}, {"options", content_options(options_)}, {"tokenizer", hex(tokenizer_->fingerprint())}};
    for (const TokenizerFile& file : bundle_.files) job["files"][file.name] = hex(sha256(file.content));
    return digest_of(job);
  }

  static std::string hex(std::span<const std::byte> bytes) {
    return weft::hex({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
  }
  static std::string hex(const Sha256::Digest& digest) { return weft::hex(digest); }

  std::int64_t spill_count() const {
    if (!options_.shuffle_seed) return 1;
    if (unknown_size_) return kSpillsOfUnknown;
    const std::int64_t estimate = 2 * token_bytes() * input_bytes_;
    return std::clamp<std::int64_t>((estimate + options_.memory - 1) / options_.memory, 1, kMaxSpills);
  }

  void report(const std::string& phase, std::int64_t done, std::int64_t total, std::int64_t documents, bool always) {
    const auto now = std::chrono::steady_clock::now();
    if (!progress_ || (!always && now - last_report_ < std::chrono::milliseconds(200))) return;
    last_report_ = now;
    progress_({phase, done, total, documents});
  }

  CollectState collect(Journal& journal) {
    Collector collector(options_, inputs_, spill_count(), partial_, journal);
    BatchReader reader(options_, inputs_, journal.content().collect.position);
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    PipelineStages stages;
    stages.read = [&] { return reader.next(); };
    stages.encode = [&](TextBatch batch) {
      const RecordRule rule = BatchReader::rule_of(options_, inputs_[static_cast<std::size_t>(batch.input)]);
      return encode_batch(std::move(batch), options_, rule, *tokenizer_);
    };
    stages.take = [&](EncodedBatch&& batch) {
      const std::int64_t raw = batch.source.raw_bytes;
      collector.take(std::move(batch));
      report("reading", raw, unknown_size_ ? 0 : input_bytes_, collector.state().ordinal, false);
    };
    run_pipeline(stages, options_.threads > 0 ? options_.threads : cores, std::min(options_.memory / 4, kMaxQueue));
    check_not_empty(collector.state());
    collector.finish();
    return collector.state();
  }

  void check_not_empty(const CollectState& state) const {
    for (int i = 0; i < dataset_count(); ++i) {
      const CollectedDataset& dataset = state.datasets[static_cast<std::size_t>(i)];
      if (dataset.documents > 0) continue;
      std::string skipped;
      std::string first;
      for (std::size_t reason = 1; reason < kSkipNames.size(); ++reason) {
        const std::int64_t count = state.datasets[0].skipped[reason] + state.datasets[1].skipped[reason];
        if (count == 0) continue;
        skipped += fmt::format("{}{}: {}", skipped.empty() ? "" : ", ", kSkipNames[reason], count);
        if (first.empty()) first = state.first_skipped[reason];
      }
      if (i == 1) {
        config_error("no document is left for {}: {} documents, every {}th is held out", folders_[1], state.ordinal,
                     options_.validation_every);
      }
      if (skipped.empty()) config_error("the input has no documents");
      const bool guessed = options_.format == InputFormat::automatic && unknown_size_;
      config_error("none of the {} documents can be used ({}); {}{}", state.ordinal, skipped, first,
                   guessed ? "; standard input is taken as jsonl unless --format text is given" : "");
    }
  }

  DatasetManifest manifest_of(const CollectState& state, int index) const {
    const CollectedDataset& dataset = state.datasets[static_cast<std::size_t>(index)];
    DatasetManifest manifest;
    manifest.tokenizer_name = tokenizer_->name();
    manifest.tokenizer_fingerprint = hex(tokenizer_->fingerprint());
    manifest.vocab_size = tokenizer_->vocab_size();
    manifest.bos_id = tokenizer_->bos_id();
    manifest.eos_id = tokenizer_->eos_id();
    for (const TokenizerFile& file : bundle_.files) {
      manifest.tokenizer_files.push_back(
          {file.name, static_cast<std::int64_t>(file.content.size()), hex(sha256(file.content))});
    }
    manifest.eos_terminated = tokenizer_->eos_id() >= 0;
    manifest.token_bytes = token_bytes();
    manifest.n_tokens = dataset.tokens;
    manifest.n_docs = dataset.documents;
    manifest.text_bytes = dataset.text_bytes;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      manifest.sources.push_back({inputs_[i].name, state.input_digests[i], state.input_bytes[i],
                                  dataset.source_documents[i], dataset.source_tokens[i]});
    }
    for (std::size_t i = 1; i < kSkipNames.size(); ++i)
      manifest.skipped[std::string(kSkipNames[i])] = dataset.skipped[i];
    manifest.options = content_options(options_);
    manifest.options["part"] = options_.validation_every == 0 ? "all" : index == 0 ? "training" : "validation";
    manifest.prepare_digest = digest_of(nlohmann::json(manifest.options));
    manifest.program = kDatasetWriter;
    return manifest;
  }

  void emit(Journal& journal, const CollectState& state) {
    std::int64_t before = 0;
    const std::int64_t total = state.datasets[0].tokens + state.datasets[1].tokens;
    for (int i = 0; i < dataset_count(); ++i) {
      make_folder(growing_folder(i));
      DatasetManifest manifest = manifest_of(state, i);
      EmitJob job{partial_,
                  growing_folder(i),
                  i,
                  options_.shuffle_seed.has_value(),
                  token_bytes(),
                  options_.memory,
                  options_.shard_tokens,
                  state.datasets[static_cast<std::size_t>(i)].spills};
      emit_shards(job, manifest, journal,
                  [&](std::int64_t done) { report("writing", before + done, total, state.ordinal, false); });
      for (const TokenizerFile& file : bundle_.files) place(file.name, file.content, growing_folder(i));
      place("dataset.json", manifest_to_json(manifest), growing_folder(i));
      before += manifest.n_tokens;
    }
    journal.record_complete(state);
    report("writing", total, total, state.ordinal, true);
  }

  // By way of the working folder: what a crash leaves half written must not stay in the dataset.
  void place(const std::string& name, const std::string& content, const std::string& folder) const {
    write_file_atomically(partial_ + "/" + name, content);
    rename_durably(partial_ + "/" + name, folder + "/" + name);
  }

  // The renaming of OUT is last, so that OUT is there only if everything is.
  void commit() {
    for (int i = dataset_count() - 1; i >= 0; --i) {
      if (fs::exists(growing_folder(i))) rename_durably(growing_folder(i), folders_[static_cast<std::size_t>(i)]);
    }
  }

  void fill_result(const CollectState& state) {
    result_.folder = folders_[0];
    result_.digest = hex(sha256_file(folders_[0] + "/dataset.json"));
    if (dataset_count() == 2) {
      result_.validation_folder = folders_[1];
      result_.validation_digest = hex(sha256_file(folders_[1] + "/dataset.json"));
    }
    for (const CollectedDataset& dataset : state.datasets) {
      result_.documents += dataset.documents;
      result_.tokens += dataset.tokens;
      result_.text_bytes += dataset.text_bytes;
      for (std::size_t i = 1; i < dataset.skipped.size(); ++i) {
        result_.skipped[std::string(kSkipNames[i])] += dataset.skipped[i];
      }
    }
    for (std::size_t i = 1; i < state.first_skipped.size(); ++i) {
      if (!state.first_skipped[i].empty()) {
        result_.first_skipped.push_back(fmt::format("{}: {}", kSkipNames[i], state.first_skipped[i]));
      }
    }
    result_.input_bytes = state.text_bytes;
    result_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  }

  PrepareOptions options_;
  const std::function<void(const PrepareProgress&)>& progress_;
  TokenizerBundle bundle_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point last_report_{};
  std::vector<PrepareInput> inputs_;
  std::int64_t input_bytes_ = 0;
  bool unknown_size_ = false;
  std::string partial_;
  std::vector<std::string> folders_;
  PrepareResult result_;
};

}  // namespace

PrepareResult prepare(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& progress) {
  return Preparation(options, progress).run();
}

std::string describe(const PrepareResult& result) {
  std::string text = fmt::format(
      "{}: {} tokens in {} documents, {} bytes of text ({:.3f} tokens a byte)\n", result.folder, result.tokens,
      result.documents, result.text_bytes,
      static_cast<double>(result.tokens) / static_cast<double>(std::max<std::int64_t>(1, result.text_bytes)));
  if (!result.validation_folder.empty()) text += fmt::format("{}: held out from these\n", result.validation_folder);
  for (const auto& [reason, count] : result.skipped) {
    if (count > 0) text += fmt::format("skipped {}: {}\n", reason, count);
  }
  for (const std::string& line : result.first_skipped) text += fmt::format("first {}\n", line);
  const double seconds = std::max(result.seconds, 1e-9);
  text += fmt::format("{:.1f} s, {:.1f} MB/s, {:.2f} million tokens/s{}", result.seconds,
                      static_cast<double>(result.input_bytes) / 1e6 / seconds,
                      static_cast<double>(result.tokens) / 1e6 / seconds, result.resumed ? " (resumed)" : "");
  return text;
}

}  // namespace weft
