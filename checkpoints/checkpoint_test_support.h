// Ranks as threads and a small training state, for the tests of this folder.
#pragma once

#include <condition_variable>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

#include "checkpoints/checkpoint_group.h"
#include "checkpoints/checkpoint_state.h"
#include "checkpoints/reader.h"
#include "checkpoints/writer.h"
#include "data/storage/file.h"

namespace weft::checkpoint_tests {

namespace fs = std::filesystem;

// Rank threads meet at gather and broadcast.
class ThreadRanks {
 public:
  explicit ThreadRanks(int size) : texts_(static_cast<std::size_t>(size)) {}

  class Member final : public CheckpointGroup {
   public:
    Member(ThreadRanks& ranks, int rank) : ranks_(ranks), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return static_cast<int>(ranks_.texts_.size()); }
    std::vector<std::string> gather(const std::string& text) override {
      const std::vector<std::string> all = ranks_.exchange(rank_, text);
      return rank_ == 0 ? all : std::vector<std::string>{};
    }
    std::string broadcast(const std::string& text) override { return ranks_.exchange(rank_, text)[0]; }

   private:
    ThreadRanks& ranks_;
    int rank_;
  };

  // Runs `f` as every rank and rethrows the first error.
  void run(const std::function<void(CheckpointGroup&)>& f) {
    std::vector<std::thread> threads;
    std::vector<std::exception_ptr> errors(texts_.size());
    for (int rank = 0; rank < static_cast<int>(texts_.size()); ++rank) {
      threads.emplace_back([&, rank] {
        Member member(*this, rank);
        try {
          f(member);
        } catch (...) {
          errors[static_cast<std::size_t>(rank)] = std::current_exception();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& error : errors) {
      if (error) std::rethrow_exception(error);
    }
  }

 private:
  std::vector<std::string> exchange(int rank, const std::string& text) {
    std::unique_lock lock(mutex_);
    const std::size_t round = round_;
    texts_[static_cast<std::size_t>(rank)] = text;
    if (++arrived_ == texts_.size()) {
      result_ = texts_;
      arrived_ = 0;
      ++round_;
      met_.notify_all();
    } else {
      met_.wait(lock, [&] { return round_ != round; });
    }
    return result_;
  }

  std::mutex mutex_;
  std::condition_variable met_;
  std::vector<std::string> texts_, result_;
  std::size_t arrived_ = 0, round_ = 0;
};

// Arrays of every kind and element type, whole in memory, with contents that depend on `seed`.
class TrainingState {
 public:
  struct Array {
    std::string kind, name;
    Shape shape;
    DType dtype;
    std::vector<std::byte> bytes;
  };

  explicit TrainingState(unsigned seed) {
    add({"embed.weight", Shape{13, 5}, "decay", "adamw", {"master", "m", "v"}}, DType::f32, seed);
    add({"layers.0.wq", Shape{4, 3, 2}, "muon", "muon", {"master", "mom"}}, DType::f32, seed);
    add({"layers.0.norm_w", Shape{1}, "plain", "adamw", {"param", "m", "v"}}, DType::bf16, seed);
    add({"layers.0.nothing", Shape{0, 4}, "plain", "adamw", {"master"}}, DType::f32, seed);
    add({"scale", Shape{}, "plain", "adamw", {"ema"}}, DType::f64, seed);
    add({"counts", Shape{7}, "none", "none", {"buffer"}}, DType::i64, seed);
    add({"head.weight", Shape{1021}, "decay", "adamw", {"master"}}, DType::f32, seed);
    attachments = {{"notes.json", fmt::format("{{\"seed\":{}}}", seed)}, {"empty.txt", ""}};
  }

  // The part of one rank: every array cut into `size` nearly equal intervals.
  CheckpointState part(std::int64_t step, int rank, int size) const {
    CheckpointState state;
    state.step = step;
    state.parameters = parameters;
    state.mesh = fmt::format("{{\"dp\":{}}}", size);
    state.state = fmt::format("{{\"tokens\":{},\"lr\":\"{}\"}}", step * 1000, to_bits(0.1));
    state.provenance = "{\"recipe\":\"abc\"}";
    if (rank == 0) state.attachments = attachments;
    for (const Array& array : arrays) {
      const std::int64_t numel = array.shape.numel();
      const std::int64_t begin = numel * rank / size, end = numel * (rank + 1) / size;
      if (begin == end && !(numel == 0 && rank == 0)) continue;
      const std::size_t width = size_of(array.dtype);
      state.slices.push_back(
          {array.kind, array.name, array.shape, begin, array.dtype,
           std::span(array.bytes)
               .subspan(static_cast<std::size_t>(begin) * width, static_cast<std::size_t>(end - begin) * width)});
    }
    return state;
  }

  // True if every interval that `ranks` ranks would read holds these values.
  bool equals(const CheckpointReader& reader, int ranks = 1) const {
    for (const Attachment& attachment : attachments) {
      if (reader.read_attachment(attachment.name) != attachment.content) return false;
    }
    for (const Array& array : arrays) {
      const std::int64_t numel = array.shape.numel();
      const std::size_t width = size_of(array.dtype);
      if (reader.dtype(array.kind, array.name) != array.dtype) return false;
      for (int rank = 0; rank < ranks; ++rank) {
        const std::int64_t begin = numel * rank / ranks, end = numel * (rank + 1) / ranks;
        std::vector<std::byte> bytes(static_cast<std::size_t>(end - begin) * width);
        reader.read(array.kind, array.name, begin, end, bytes);
        if (!bytes.empty() && std::memcmp(bytes.data(), array.bytes.data() + static_cast<std::size_t>(begin) * width,
                                          bytes.size()) != 0) {
          return false;
        }
      }
    }
    return true;
  }

  std::vector<ParameterRecord> parameters;
  std::vector<Array> arrays;
  std::vector<Attachment> attachments;

 private:
  void add(const ParameterRecord& parameter, DType dtype, unsigned seed) {
    parameters.push_back(parameter);
    for (const std::string& kind : parameter.store) {
      Array array{kind, parameter.name, parameter.shape, dtype, {}};
      array.bytes.resize(static_cast<std::size_t>(parameter.shape.numel()) * size_of(dtype));
      unsigned x = seed * 2654435761u + static_cast<unsigned>(arrays.size());
      for (std::byte& b : array.bytes) b = static_cast<std::byte>((x = x * 1664525u + 1013904223u) >> 24);
      arrays.push_back(std::move(array));
    }
  }
};

// Saving without asking for a GiB to spare, with small checksum blocks.
inline SaveOptions small_options() {
  SaveOptions options;
  options.spare_bytes = 0;
  options.crc_block_bytes = 64;
  return options;
}

inline SaveResult save(const fs::path& run, std::int64_t step, SaveOptions options = small_options()) {
  const TrainingState state(static_cast<unsigned>(step));
  SingleProcess group;
  return save_checkpoint(run, state.part(step, 0, 1), group, options);
}

// A folder that goes away with the test; in memory where possible, because saving waits for the device many times.
class TemporaryRun {
 public:
  TemporaryRun() : path(parent() / ("weft-run-" + random_nonce())) { fs::create_directory(path); }
  ~TemporaryRun() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  TemporaryRun(const TemporaryRun&) = delete;
  TemporaryRun& operator=(const TemporaryRun&) = delete;
  fs::path path;

 private:
  static fs::path parent() {
    const fs::path memory = "/dev/shm";
    return ::access(memory.c_str(), W_OK) == 0 ? memory : fs::temp_directory_path();
  }
};

}  // namespace weft::checkpoint_tests
