#include "data/sampler/loader.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "autograd/check.h"

namespace weft {

namespace {

// The finaliser of SplitMix64: binds a row's digest to its place in the step.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

}  // namespace

struct Loader::Impl {
  std::unique_ptr<RowStream> stream;
  LoaderOptions options;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::deque<LoadedStep> ready;
  bool ended = false;
  bool stopping = false;
  std::exception_ptr failure;
  double waited = 0;
  std::thread thread;

  // Rows of one plan for this group.
  LoadedStep build(const StepPlan& plan) const {
    LoadedStep step;
    step.step = plan.step;
    step.order_digest = plan.order_digest;
    const auto rows = static_cast<std::int64_t>(plan.rows.size());
    const std::int64_t each = rows / (options.dp_size * options.accumulation);
    for (std::int64_t a = 0; a < options.accumulation; ++a) {
      const std::int64_t first = (a * options.dp_size + options.dp_rank) * each;
      std::vector<Row>& batch = step.micro_batches.emplace_back();
      for (std::int64_t r = first; r < first + each; ++r) {
        batch.push_back(stream->build(plan.rows[static_cast<std::size_t>(r)]));
        step.valid_labels += batch.back().valid_labels();
        step.content_digest += mix(row_digest(batch.back()) + mix(static_cast<std::uint64_t>(r) + 1));
      }
    }
    return step;
  }

  // Reads that fail may succeed later (a network file system); damaged data will not.
  std::optional<LoadedStep> build_with_retries(const StepPlan& plan) {
    for (std::size_t attempt = 0;; ++attempt) {
      try {
        return build(plan);
      } catch (const Error& error) {
        if (error.code() != ExitCode::storage || attempt == options.retry_waits.size()) throw;
      }
      std::unique_lock lock(mutex);
      if (changed.wait_for(lock, options.retry_waits[attempt], [&] { return stopping; })) return std::nullopt;
    }
  }

  void run() {
    for (;;) {
      const auto plan = stream->next();
      std::optional<LoadedStep> step;
      if (plan) {
        // Taken before the rows are built, so that it belongs to this step whatever building does.
        const std::int64_t tokens = stream->tokens_drawn();
        std::string state = stream->state();
        step = build_with_retries(*plan);
        if (!step) return;
        step->tokens_drawn = tokens;
        step->stream_state = std::move(state);
      }
      std::unique_lock lock(mutex);
      if (!step) {
        ended = true;
        changed.notify_all();
        return;
      }
      changed.wait(lock, [&] { return stopping || ready.size() < static_cast<std::size_t>(options.prefetch_steps); });
      if (stopping) return;
      ready.push_back(std::move(*step));
      changed.notify_all();
    }
  }
};

Loader::Loader(std::unique_ptr<RowStream> stream, LoaderOptions options) : impl_(std::make_unique<Impl>()) {
  WEFT_CHECK(
      options.dp_size >= 1 && options.dp_rank >= 0 && options.dp_rank < options.dp_size && options.prefetch_steps >= 1,
      "loader: group {} of {}, {} steps ahead", options.dp_rank, options.dp_size, options.prefetch_steps);
  const std::int64_t rows = stream->rows_per_step();
  if (options.accumulation < 1 || rows % (options.dp_size * options.accumulation) != 0) {
    config_error("{} rows a step do not divide into {} data-parallel groups times {} accumulation steps", rows,
                 options.dp_size, options.accumulation);
  }
  impl_->stream = std::move(stream);
  impl_->options = std::move(options);
  impl_->thread = std::thread([impl = impl_.get()] {
    try {
      impl->run();
    } catch (...) {
      const std::lock_guard lock(impl->mutex);
      impl->failure = std::current_exception();
      impl->changed.notify_all();
    }
  });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->changed.notify_all();
  impl_->thread.join();
}

std::optional<LoadedStep> Loader::next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [&] { return !impl_->ready.empty() || impl_->ended || impl_->failure; });
  impl_->waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (impl_->ready.empty()) {
    if (impl_->failure) std::rethrow_exception(impl_->failure);
    return std::nullopt;
  }
  LoadedStep step = std::move(impl_->ready.front());
  impl_->ready.pop_front();
  lock.unlock();
  impl_->changed.notify_all();
  return step;
}

double Loader::wait_seconds() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->waited;
}

}  // namespace weft
