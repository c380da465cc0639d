#include "train/evaluate/evaluate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "train/loop/batch.h"

namespace weft {
namespace {

struct Totals {
  double loss = 0.0;
  double text_loss = 0.0;
  std::int64_t labels = 0;
  std::int64_t bytes = 0;
};

void add_batch(LanguageModel& model, const Batch& batch, const Tokenizer& tokenizer, const Place& place,
               Totals& totals) {
  Tape tape(place.arena, Tape::Mode::inference, place.stream);
  const Tensor token_losses = tape.empty(batch.tokens.shape(), DType::f32);
  model.loss(tape, tape.here(batch.tokens), batch.documents, tape.here(batch.labels), {},
             {.denominator = 1.0, .token_losses = token_losses});
  const auto labels = batch.labels.span<std::int32_t>();
  const Tensor host_losses = to_host(token_losses, place.stream);
  const auto losses = host_losses.span<float>();
  for (std::size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] == kIgnoredLabel) continue;
    const int bytes = tokenizer.text_bytes(labels[t]);
    totals.loss += losses[t];
    totals.text_loss += bytes > 0 ? losses[t] : 0.0F;
    totals.labels += 1;
    totals.bytes += bytes;
  }
}

}  // namespace

EvaluationResult evaluate(LanguageModel& model, const RowSource& rows, const Tokenizer& tokenizer, Communicator& group,
                          const Place& place, const EvaluationOptions& options) {
  const std::int64_t count = options.max_rows > 0 ? std::min(options.max_rows, rows.rows()) : rows.rows();
  Totals totals;
  std::int64_t next = 0;  // batches are dealt to the ranks in turn
  for (std::int64_t batch_index = 0; next < count; ++batch_index) {
    std::vector<Row> joined;
    std::int64_t tokens = 0;
    const bool mine = batch_index % group.size() == group.rank();
    do {
      Row row = rows.build(0, next++);
      tokens += row.length();
      const bool alone = row.anchor;
      if (mine) joined.push_back(std::move(row));
      if (alone) break;
    } while (next < count && tokens < options.tokens_per_batch);
    if (!mine) continue;
    add_batch(model, make_batch(joined), tokenizer, place, totals);
  }
  const std::array<double, 2> losses{totals.loss, totals.text_loss};
  const std::array<std::int64_t, 2> counts{totals.labels, totals.bytes};
  const std::vector<double> all_losses = all_reduce(group, losses, ReduceOp::sum);
  const std::vector<std::int64_t> all_counts = all_reduce(group, counts, ReduceOp::sum);
  if (all_counts[0] == 0) config_error("the evaluation rows hold no label: every document has only one token");
  EvaluationResult result;
  result.labels = all_counts[0];
  result.bytes = all_counts[1];
  result.loss = all_losses[0] / static_cast<double>(result.labels);
  result.perplexity = std::exp(result.loss);
  result.bits_per_byte =
      result.bytes == 0 ? 0.0 : all_losses[1] / (std::numbers::ln2 * static_cast<double>(result.bytes));
  return result;
}

}  // namespace weft
