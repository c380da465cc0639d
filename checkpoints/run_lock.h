// One live job per run: a file in the run's folder that names its holder.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

namespace weft {

// Held by rank 0 from start to end; a thread renews the file's time every 30 s. It keeps two jobs from deleting each
// other's checkpoints; that commits are whole does not depend on it.
class RunLock {
 public:
  // Takes run/run.lock. A lock whose process is dead (same machine), or that has not been renewed for 5 minutes
  // (another machine), is taken over with a line to `log`. Otherwise Error (config) that names the holder.
  RunLock(const std::filesystem::path& run, const std::function<void(const std::string&)>& log);
  // Gives the lock up, if it is still ours.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  class Renewal;
  std::filesystem::path path_;
  std::string content_;
  std::unique_ptr<Renewal> renewal_;
};

}  // namespace weft
