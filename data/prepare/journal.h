// The resume journal of prepare: lines of JSON, each with its CRC-32C, appended and made durable one by one. A line
// that is torn or wrong ends the journal; the work after it is done again.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "data/manifest.h"
#include "data/prepare/reader.h"
#include "data/prepare/spill.h"

namespace weft {

// Of one of the two datasets that a run can write.
struct CollectedDataset {
  std::int64_t documents = 0;
  std::int64_t tokens = 0;
  std::int64_t text_bytes = 0;
  std::vector<std::int64_t> skipped;  // by reason
  std::vector<std::int64_t> source_documents;
  std::vector<std::int64_t> source_tokens;
  std::vector<SpillLength> spills;
};

// Everything that reading (the first pass) has to know to go on.
struct CollectState {
  ReadPosition position;
  std::int64_t ordinal = 0;          // of the next document
  std::int64_t input_documents = 0;  // in the current input so far
  std::int64_t input_lines = 0;
  std::int64_t text_bytes = 0;             // read in all
  std::int64_t hashes = 0;                 // in the file of content hashes
  std::vector<std::string> input_digests;  // of finished inputs
  std::vector<std::int64_t> input_bytes;
  std::vector<std::string> first_skipped;  // by reason
  std::array<CollectedDataset, 2> datasets;
};

// Where writing (the second pass) of a dataset stands: shards that are finished, and the next document.
struct EmitState {
  std::vector<DatasetShard> shards;
  std::int64_t spill = 0;
  std::int64_t document = 0;  // in the sorted spill
};

struct JournalContent {
  std::string job;  // digest of options and inputs
  CollectState collect;
  bool collected = false;  // the first pass has ended
  std::array<EmitState, 2> emit;
  bool complete = false;  // both datasets are whole; only renaming may be left
};

class Journal {
 public:
  // Opens or creates the file and reads what it has. Only one process at a time can hold it: error (config) otherwise.
  explicit Journal(const std::string& path);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  bool empty() const { return content_.job.empty(); }
  const JournalContent& content() const { return content_; }
  // True if there is work that a restart need not do again.
  bool has_progress() const { return !content_.collect.datasets[0].spills.empty(); }

  // Forgets everything and begins with a job.
  void start(const std::string& job);
  void record_collect(const CollectState& state, bool collected);
  void record_shard(int dataset, const DatasetShard& shard, std::int64_t next_spill, std::int64_t next_document);
  void record_complete(const CollectState& state);

 private:
  void append(const std::string& json);
  void load(const std::string& text);

  std::string path_;
  int descriptor_ = -1;
  JournalContent content_;
};

}  // namespace weft
