#include "data/prepare/pipeline.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace weft {

namespace {

// Text, its tokens at two bytes, and some slack.
std::int64_t footprint(std::size_t text_bytes) {
  return 4 * static_cast<std::int64_t>(text_bytes) + 4096;
}

class Pipeline {
 public:
  Pipeline(const PipelineStages& stages, int encoders, std::int64_t memory) : stages_(stages), memory_(memory) {
    threads_.emplace_back([this] { guarded(&Pipeline::read); });
    for (int i = 0; i < encoders; ++i) threads_.emplace_back([this] { guarded(&Pipeline::encode); });
  }
  ~Pipeline() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void take_all() {
    for (std::int64_t sequence = 0;; ++sequence) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return failure_ || done_.contains(sequence) || (read_all_ && sequence == read_); });
      if (failure_) std::rethrow_exception(failure_);
      const auto found = done_.find(sequence);
      if (found == done_.end()) return;
      EncodedBatch batch = std::move(found->second);
      done_.erase(found);
      lock.unlock();
      const std::int64_t bytes = footprint(static_cast<std::size_t>(batch.text_bytes));
      stages_.take(std::move(batch));
      lock.lock();
      held_ -= bytes;
      lock.unlock();
      changed_.notify_all();
    }
  }

 private:
  void guarded(void (Pipeline::*stage)()) {
    try {
      (this->*stage)();
    } catch (...) {
      {
        const std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        stopping_ = true;
      }
      changed_.notify_all();
    }
  }

  void read() {
    for (;;) {
      std::optional<TextBatch> batch = stages_.read();
      std::unique_lock lock(mutex_);
      if (!batch) {
        read_all_ = true;
        lock.unlock();
        changed_.notify_all();
        return;
      }
      const std::int64_t bytes = footprint(batch->text.size());
      changed_.wait(lock, [&] { return stopping_ || held_ == 0 || held_ + bytes <= memory_; });
      if (stopping_) return;
      held_ += bytes;
      ++read_;
      waiting_.push_back(std::move(*batch));
      lock.unlock();
      changed_.notify_all();
    }
  }

  void encode() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !waiting_.empty() || read_all_; });
      if (stopping_ || waiting_.empty()) return;
      TextBatch batch = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      const std::int64_t sequence = batch.sequence;
      EncodedBatch encoded = stages_.encode(std::move(batch));
      lock.lock();
      done_.emplace(sequence, std::move(encoded));
      lock.unlock();
      changed_.notify_all();
    }
  }

  const PipelineStages& stages_;
  const std::int64_t memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<TextBatch> waiting_;
  std::map<std::int64_t, EncodedBatch> done_;
  std::int64_t read_ = 0;
  std::int64_t held_ = 0;
  bool read_all_ = false;
  bool stopping_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;
};

}  // namespace

void run_pipeline(const PipelineStages& stages, int encoders, std::int64_t memory) {
  Pipeline(stages, encoders, memory).take_all();
}

}  // namespace weft
