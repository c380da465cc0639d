#include "checkpoints/retention.h"

#include <algorithm>
#include <set>

#include "autograd/check.h"
#include "checkpoints/reader.h"

namespace weft {

namespace fs = std::filesystem;

std::vector<RetentionEntry> retention_victims(std::vector<RetentionEntry> entries, const RetentionPolicy& policy) {
  WEFT_CHECK(policy.keep_last >= 1 && policy.keep_every >= 0 && policy.keep_best >= 0,
             "keep_last {}, keep_every {}, keep_best {}", policy.keep_last, policy.keep_every, policy.keep_best);
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  std::set<std::int64_t> kept;
  for (std::size_t i = entries.size() - std::min(entries.size(), static_cast<std::size_t>(policy.keep_last));
       i < entries.size(); ++i) {
    kept.insert(entries[i].step);
  }
  std::vector<std::pair<double, std::int64_t>> by_metric;
  for (const RetentionEntry& entry : entries) {
    if (entry.pinned || (policy.keep_every > 0 && entry.step % policy.keep_every == 0)) kept.insert(entry.step);
    const auto value = entry.metrics.find(policy.metric);
    // Of equal values the later one: the step is negated.
    if (value != entry.metrics.end()) by_metric.emplace_back(value->second, -entry.step);
  }
  std::sort(by_metric.begin(), by_metric.end());
  by_metric.resize(std::min(by_metric.size(), static_cast<std::size_t>(policy.keep_best)));
  for (const auto& [value, negated_step] : by_metric) kept.insert(-negated_step);
  std::erase_if(entries, [&](const RetentionEntry& entry) { return kept.contains(entry.step); });
  return entries;
}

std::vector<fs::path> apply_retention(const fs::path& run, const RetentionPolicy& policy, const ProtocolHook& hook) {
  std::vector<RetentionEntry> entries;
  for (const CheckpointEntry& found : list_checkpoints(run)) {
    try {
      const CheckpointReader reader(found.directory);
      entries.push_back(
          {found.directory, found.step, fs::exists(found.directory / kPinnedName), reader.manifest().metrics});
    } catch (const Error&) {
      continue;  // damaged: it keeps no place among the newest, and is not ours to delete
    }
  }
  std::vector<fs::path> deleted;
  for (const RetentionEntry& victim : retention_victims(std::move(entries), policy)) {
    remove_trash(move_to_trash(victim.directory, hook), hook);
    deleted.push_back(victim.directory);
  }
  return deleted;
}

}  // namespace weft
