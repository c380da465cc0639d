// Which checkpoints are kept, and the deletion of the others.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "checkpoints/layout.h"

namespace weft {

struct RetentionPolicy {
  int keep_last = 3;            // the newest; at least 1
  std::int64_t keep_every = 0;  // steps that are multiples of this; 0: none
  int keep_best = 1;            // those with the lowest value of `metric`
  std::string metric = "val_loss";
};

struct RetentionEntry {
  std::filesystem::path directory;
  std::int64_t step = 0;
  bool pinned = false;
  std::map<std::string, double> metrics;
};

// Those of `entries` that the policy does not keep, oldest first.
std::vector<RetentionEntry> retention_victims(std::vector<RetentionEntry> entries, const RetentionPolicy& policy);

// Deletes what the policy does not keep. Checkpoints that are damaged count for nothing and are left for a person to
// look at. Returns the deleted directories.
std::vector<std::filesystem::path> apply_retention(const std::filesystem::path& run, const RetentionPolicy& policy,
                                                   const ProtocolHook& hook = {});

}  // namespace weft
