#include "data/prepare/emitter.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <tuple>

#include "autograd/check.h"
#include "data/prepare/collector.h"
#include "data/shard_writer.h"
#include "data/storage/file.h"

namespace weft {

namespace {

// Bounds the document tables of a shard in memory.
constexpr std::size_t kMaxShardDocuments = std::size_t{1} << 24;
constexpr std::int64_t kSlice = std::int64_t{1} << 20;
constexpr std::size_t kReadAhead = std::size_t{4} << 20;

struct PlacedDocument {
  std::uint64_t offset = 0;  // of its tokens in the spill's token file
  std::uint32_t tokens = 0;
  std::uint32_t text_bytes = 0;
  std::uint32_t source = 0;
  std::uint32_t spill = 0;
};

// Walks over all documents in output order. In memory is the index of one spill, or a slice of it if it is in order.
class DocumentWalk {
 public:
  DocumentWalk(const EmitJob& job, std::int64_t spill, std::int64_t document) : job_(job), spill_(spill) {
    load();
    while (!done() && document_ < document) advance();
    WEFT_CHECK(document_ == document, "spill {} has no document {}", spill, document);
  }

  bool done() const { return spill_ == static_cast<std::int64_t>(job_.spills.size()); }
  const PlacedDocument& current() const { return documents_[static_cast<std::size_t>(document_ - slice_begin_)]; }
  std::int64_t spill() const { return spill_; }
  std::int64_t document() const { return document_; }

  void advance() {
    ++document_;
    if (document_ < slice_begin_ + static_cast<std::int64_t>(documents_.size())) return;
    if (document_ < documents_in_spill()) {
      load_slice();
    } else {
      ++spill_;
      load();
    }
  }

 private:
  std::int64_t documents_in_spill() const {
    return job_.spills[static_cast<std::size_t>(spill_)].index_bytes /
           static_cast<std::int64_t>(sizeof(SpilledDocument));
  }

  // The first spill from spill_ on that has documents.
  void load() {
    document_ = 0;
    next_offset_ = 0;
    while (!done() && documents_in_spill() == 0) ++spill_;
    if (!done()) load_slice();
  }

  void load_slice() {
    slice_begin_ = document_;
    const std::int64_t all = documents_in_spill();
    const auto count = static_cast<std::size_t>(job_.sorted ? all : std::min(all - document_, kSlice));
    std::vector<SpilledDocument> index(count);
    InputFile(spill_path(job_.spill_folder, spill_name(job_.dataset), spill_, "index"))
        .read_at(static_cast<std::uint64_t>(document_) * sizeof(SpilledDocument),
                 std::as_writable_bytes(std::span(index)));
    std::vector<std::uint64_t> offsets(count);
    const auto width = static_cast<std::uint64_t>(job_.token_bytes);
    for (std::size_t i = 0; i < count; ++i) {
      offsets[i] = next_offset_;
      next_offset_ += index[i].tokens * width;
    }
    std::vector<std::uint32_t> order(count);
    for (std::size_t i = 0; i < count; ++i) order[i] = static_cast<std::uint32_t>(i);
    if (job_.sorted) {
      std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
        return std::tie(index[a].key, index[a].ordinal) < std::tie(index[b].key, index[b].ordinal);
      });
    }
    documents_.clear();
    for (const std::uint32_t i : order) {
      documents_.push_back(
          {offsets[i], index[i].tokens, index[i].text_bytes, index[i].source, static_cast<std::uint32_t>(spill_)});
    }
  }

  const EmitJob& job_;
  std::int64_t spill_;
  std::int64_t document_ = 0;
  std::int64_t slice_begin_ = 0;
  std::uint64_t next_offset_ = 0;
  std::vector<PlacedDocument> documents_;
};

// Tokens of one spill: loaded if they fit, else read ahead (in order) or one by one.
class SpillTokens {
 public:
  SpillTokens(const EmitJob& job, std::int64_t spill)
      : file_(spill_path(job.spill_folder, spill_name(job.dataset), spill, "tokens")), in_order_(!job.sorted) {
    const auto bytes = static_cast<std::uint64_t>(job.spills[static_cast<std::size_t>(spill)].token_bytes);
    if (job.sorted && bytes <= static_cast<std::uint64_t>(job.memory / 2)) fetch(0, bytes);
  }

  std::span<const std::byte> read(std::uint64_t offset, std::size_t bytes) {
    if (offset < begin_ || offset + bytes > begin_ + held_.size()) {
      const std::uint64_t ahead = in_order_ ? std::min<std::uint64_t>(kReadAhead, file_.size() - offset) : 0;
      fetch(offset, std::max<std::uint64_t>(bytes, ahead));
    }
    return std::span(held_).subspan(static_cast<std::size_t>(offset - begin_), bytes);
  }

 private:
  void fetch(std::uint64_t offset, std::uint64_t bytes) {
    held_.resize(static_cast<std::size_t>(bytes));
    begin_ = offset;
    file_.read_at(offset, held_);
  }

  InputFile file_;
  bool in_order_;
  std::uint64_t begin_ = 0;
  std::vector<std::byte> held_;
};

class Emitter {
 public:
  Emitter(const EmitJob& job, DatasetManifest& manifest, Journal& journal,
          const std::function<void(std::int64_t)>& progress)
      : job_(job), manifest_(manifest), journal_(journal), progress_(progress) {}

  void run() {
    const EmitState state = journal_.content().emit[static_cast<std::size_t>(job_.dataset)];
    manifest_.shards = state.shards;
    for (const DatasetShard& shard : state.shards) written_ += shard.n_tokens;
    DocumentWalk walk(job_, state.spill, state.document);
    while (!walk.done()) {
      const DatasetShard shard = write_shard(plan(walk));
      manifest_.shards.push_back(shard);
      fsync_directory(job_.folder);
      if (!journal_.has_progress()) continue;
      journal_.record_shard(job_.dataset, shard, walk.spill(), walk.document());
      remove_spills_before(walk.spill());
    }
  }

 private:
  std::vector<PlacedDocument> plan(DocumentWalk& walk) const {
    std::vector<PlacedDocument> documents;
    std::int64_t tokens = 0;
    while (!walk.done() && documents.size() < kMaxShardDocuments) {
      const PlacedDocument& next = walk.current();
      if (!documents.empty() && tokens + next.tokens > job_.shard_tokens) break;
      tokens += next.tokens;
      documents.push_back(next);
      walk.advance();
    }
    return documents;
  }

  DatasetShard write_shard(const std::vector<PlacedDocument>& documents) {
    ShardDocuments tables;
    tables.offsets.push_back(0);
    for (const PlacedDocument& document : documents) {
      tables.offsets.push_back(tables.offsets.back() + document.tokens);
      tables.sources.push_back(static_cast<std::uint16_t>(document.source));
      tables.bytes.push_back(document.text_bytes);
    }
    const std::string name = fmt::format("tokens-{:05}.h5", manifest_.shards.size());
    // What an interrupted run has left of this shard.
    std::error_code error;
    std::filesystem::remove(std::filesystem::path(job_.folder) / name, error);
    ShardWriter writer(job_.folder, name, manifest_, std::move(tables));
    for (const PlacedDocument& document : documents) {
      if (tokens_ == nullptr || tokens_spill_ != document.spill) {
        tokens_.reset();
        tokens_ = std::make_unique<SpillTokens>(job_, document.spill);
        tokens_spill_ = document.spill;
      }
      writer.append(tokens_->read(document.offset, document.tokens * static_cast<std::size_t>(job_.token_bytes)));
      written_ += document.tokens;
      if (written_ - reported_ >= (std::int64_t{1} << 22)) progress_(reported_ = written_);
    }
    return writer.finish();
  }

  void remove_spills_before(std::int64_t end) {
    for (; removed_ < end; ++removed_) {
      for (const char* kind : {"index", "tokens"}) {
        std::error_code error;
        std::filesystem::remove(spill_path(job_.spill_folder, spill_name(job_.dataset), removed_, kind), error);
      }
    }
  }

  const EmitJob& job_;
  DatasetManifest& manifest_;
  Journal& journal_;
  const std::function<void(std::int64_t)>& progress_;
  std::unique_ptr<SpillTokens> tokens_;
  std::uint32_t tokens_spill_ = 0;
  std::int64_t written_ = 0;
  std::int64_t reported_ = 0;
  std::int64_t removed_ = 0;
};

}  // namespace

void emit_shards(const EmitJob& job, DatasetManifest& manifest, Journal& journal,
                 const std::function<void(std::int64_t)>& progress) {
  Emitter(job, manifest, journal, progress).run();
}

}  // namespace weft
