// metrics.jsonl: one JSON object a line, appended as training goes.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "train/evaluate/validation.h"
#include "train/loop/phase_clock.h"

namespace weft {

// A row a step. Everything down to `digest` is a function of the run alone: a resumed run writes the same bytes.
struct StepRow {
  std::int64_t step = 0;  // steps completed, this one included
  double loss = 0.0;      // mean cross-entropy in nats over the step's labels
  double z_loss = 0.0;    // lambda_z * mean (log Z)^2
  double lr = 0.0;
  double grad_norm = 0.0;   // before clipping
  std::int64_t tokens = 0;  // since the start of the run
  bool skipped = false;     // the update was not applied
  std::string digest;       // of the rows and their order
  // Timing: differs from run to run.
  double tokens_per_second = 0.0;
  double seconds = 0.0;      // of this step
  double flops_share = 0.0;  // model FLOPs over the matrix-product rate of this machine
  std::array<double, kPhaseNames.size()> phases{};
};

// The text of a row, without the line end. Doubles are written so that they read back to the same bits; what is not
// finite becomes null.
std::string to_json(const StepRow& row);
std::string to_json(std::int64_t step, const ValidationResult& result);

// Never throws once open: when the disk is full, rows are dropped and counted, and training goes on.
class MetricsLog {
 public:
  // Opens RUN/metrics.jsonl for a run that continues after `last_step` (0: from the start): rows of later steps, and a
  // torn last line, are removed first. The file is replaced in one rename.
  MetricsLog(const std::string& path, std::int64_t last_step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  void append(const std::string& row);
  // Before a checkpoint refers to the rows so far.
  void sync();
  std::int64_t dropped() const { return dropped_; }

 private:
  int fd_ = -1;
  std::int64_t size_ = 0;  // bytes of complete rows
  bool torn_ = false;      // part of a row follows them and could not be cut off
  std::int64_t dropped_ = 0;
};

}  // namespace weft
