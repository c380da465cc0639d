// The second pass of prepare: reads the spills in key order and writes shards.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/manifest.h"
#include "data/prepare/journal.h"

namespace weft {

struct EmitJob {
  std::string spill_folder;
  std::string folder;  // where the dataset grows
  int dataset = 0;
  bool sorted = true;  // by key; otherwise the single spill is in order already
  std::int64_t token_bytes = 2;
  std::int64_t memory = 0;
  std::int64_t shard_tokens = 0;
  std::vector<SpillLength> spills;
};

// Writes the shards that the journal does not have yet. If the journal has the first pass, records each shard there and
// removes spills that are used up. `manifest` has everything but the shards, which are added. `progress` gets the
// tokens written so far.
void emit_shards(const EmitJob& job, DatasetManifest& manifest, Journal& journal,
                 const std::function<void(std::int64_t)>& progress);

}  // namespace weft
