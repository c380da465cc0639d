// The first pass of prepare: takes encoded batches in order, decides what is kept, and spills it.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "data/prepare/encoder.h"
#include "data/prepare/journal.h"

namespace weft {

// Content hashes of kept documents: an open-addressing set, and a file of the same hashes in order for resuming.
class SeenTexts {
 public:
  // Reads `count` hashes back from `path` and cuts the file there. `max_bytes` bounds the set.
  SeenTexts(std::string path, std::int64_t count, std::int64_t max_bytes);

  // False if the text was seen before. Error (config) beyond the memory bound.
  bool insert(const std::array<std::uint64_t, 2>& hash);
  std::int64_t size() const { return count_; }
  void sync();

 private:
  using Hash = std::array<std::uint64_t, 2>;
  bool place(std::vector<Hash>& table, const Hash& hash) const;
  void grow();

  std::string path_;
  std::int64_t max_bytes_;
  std::int64_t count_ = 0;
  bool has_zero_ = false;  // the hash that marks free slots
  std::vector<Hash> table_;
  std::vector<Hash> unwritten_;
};

class Collector {
 public:
  // `folder` is OUT.partial; goes on from the journal's state.
  Collector(const PrepareOptions& options, const std::vector<PrepareInput>& inputs, std::int64_t spill_count,
            const std::string& folder, Journal& journal);

  void take(EncodedBatch&& batch);
  // Ends the pass. A run that is shorter than the interval between journal entries is not journalled: it needs no waits
  // for the disk, and is done again if it is interrupted.
  void finish();
  const CollectState& state() const { return state_; }

 private:
  void checkpoint(bool end);
  void note_skips(const EncodedBatch& batch);

  const PrepareOptions& options_;
  const std::vector<PrepareInput>& inputs_;
  Journal& journal_;
  CollectState state_;
  std::vector<SpillWriter> spills_;  // one a dataset
  std::unique_ptr<SeenTexts> seen_;
  std::int64_t since_checkpoint_ = 0;
};

std::string spill_name(int dataset);

}  // namespace weft
