#include "modules/families/attention/key_value_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "autograd/transfer.h"

namespace weft {
namespace {

std::int64_t pages_for(std::int64_t tokens) {
  return (tokens + kKeyTile - 1) / kKeyTile;
}

// A window of W keys touches at most this many pages.
std::int64_t ring_pages(const AttentionOptions& options) {
  return options.window > 0 ? pages_for(options.window) + 1 : std::numeric_limits<std::int32_t>::max();
}

std::int64_t pinned_pages(const AttentionOptions& options) {
  return options.window > 0 ? pages_for(options.sink_tokens) : 0;
}

// That a sequence with so many gets beyond what it needs.
std::int64_t spare_pages(std::int64_t pages) {
  return std::max<std::int64_t>(4, pages / 8);
}

constexpr Dispatch<CacheAppend> kAppend{
    .op = "key-value cache", .cpu = nullptr, .cuda = WEFT_ON_CUDA(append_to_pages_cuda)};

}  // namespace

KeyValueCache::KeyValueCache(std::int64_t sequences, std::int64_t H_KV, std::int64_t D, std::int64_t D_V,
                             const AttentionOptions& options, const Place& place, CachedValues values)
    : H_KV_(H_KV),
      D_(D),
      D_V_(D_V),
      options_(options),
      place_(place),
      values_(values),
      pinned_(pinned_pages(options)),
      ring_(ring_pages(options)),
      sequences_(static_cast<std::size_t>(sequences)) {
  WEFT_CHECK(values == CachedValues::beside_keys || D_V <= D, "key-value cache: values of {} inside keys of {}", D_V,
             D);
}

KeyValueCache::KeyValueCache(const KeyValueCache& other)
    : H_KV_(other.H_KV_),
      D_(other.D_),
      D_V_(other.D_V_),
      options_(other.options_),
      place_(other.place_),
      values_(other.values_),
      pinned_(other.pinned_),
      ring_(other.ring_),
      sequences_(other.sequences_.size()) {
  for (std::size_t n = 0; n < sequences_.size(); ++n) {
    sequences_[n].length = other.sequences_[n].length;
    for (const Tensor& page : other.sequences_[n].pages) {
      const Tensor own = to_memory(page, place_.lasting, place_.stream);
      sequences_[n].pages.push_back(own);
      sequences_[n].addresses.push_back(own.raw());
    }
  }
  upload_table();
}

std::size_t KeyValueCache::slot(std::int64_t page) const {
  return static_cast<std::size_t>(page < pinned_ ? page : pinned_ + (page - pinned_) % ring_);
}

std::size_t KeyValueCache::bytes() const {
  std::size_t total = 0;
  for (const Sequence& s : sequences_) {
    for (const Tensor& page : s.pages) total += page.nbytes();
  }
  return total;
}

double KeyValueCache::bytes_for(std::int64_t length, std::int64_t H_KV, std::int64_t D, std::int64_t D_V,
                                const AttentionOptions& options, DType dtype, CachedValues values) {
  const std::int64_t pages = std::min(pages_for(length), pinned_pages(options) + ring_pages(options));
  return static_cast<double>(pages * page_elements(H_KV, D, D_V, values)) * static_cast<double>(size_of(dtype));
}

std::int64_t KeyValueCache::room_for(std::int64_t length) {
  const std::int64_t pages = pages_for(length);
  return (pages + spare_pages(pages)) * kKeyTile;
}

void KeyValueCache::append(std::int64_t n, const Tensor& k, const Tensor& v) {
  Sequence& sequence = sequences_[static_cast<std::size_t>(n)];
  if (add_pages(sequence, sequence.length + k.dim(0), 0)) upload_table();
  put(n, k, v);
}

void KeyValueCache::append(std::span<const std::int32_t> rows, const Tensor& k, const Tensor& v) {
  WEFT_CHECK(rows.size() == sequences_.size() + 1, "key-value cache: rows of {} sequences for {}", rows.size() - 1,
             sequences());
  bool added = false;
  for (std::size_t n = 0; n < sequences_.size(); ++n) {
    added = add_pages(sequences_[n], sequences_[n].length + std::int64_t{rows[n + 1] - rows[n]}, 0) || added;
  }
  if (added) upload_table();
  for (std::int64_t n = 0; n < sequences(); ++n) {
    const auto i = static_cast<std::size_t>(n);
    if (rows[i + 1] > rows[i]) put(n, k.rows(rows[i], rows[i + 1]), v.rows(rows[i], rows[i + 1]));
  }
}

void KeyValueCache::put(std::int64_t n, const Tensor& k, const Tensor& v) {
  const std::int64_t L = k.dim(0);
  WEFT_CHECK(k.numel() == L * H_KV_ * D_ && v.numel() == L * H_KV_ * D_V_ && v.dim(0) == L,
             "key-value cache: k {}, v {} for {} heads of widths {} and {}", k.shape().str(), v.shape().str(), H_KV_,
             D_, D_V_);
  Sequence& sequence = sequences_[static_cast<std::size_t>(n)];
  WEFT_CHECK(L <= std::numeric_limits<std::int32_t>::max() - sequence.length,
             "key-value cache: {} tokens after {} exceed the range of positions", L, sequence.length);
  const std::int64_t begin = sequence.length;
  const std::int64_t end = begin + L;
  WEFT_CHECK(L == 0 || k.device() == place_.stream.device, "key-value cache: tokens of another device");
  if (!place_.on_cpu()) {
    const CacheAppend args{.dtype = place_.dtype,
                           .tokens = L,
                           .H_KV = H_KV_,
                           .D = D_,
                           .D_V = D_V_,
                           .cache = keys(n),
                           .k = k.raw(),
                           .v = v.raw()};
    kAppend(args, {.stream = place_.stream});
    sequence.length = static_cast<std::int32_t>(end);
    return;
  }
  const std::size_t element = size_of(place_.dtype);
  const auto copy_head = [&](std::byte* page, const Tensor& from, std::int64_t token, std::int64_t width,
                             std::int64_t at) {
    const auto* source = static_cast<const std::byte*>(from.raw());
    for (std::int64_t h = 0; h < H_KV_; ++h) {
      std::memcpy(page + static_cast<std::size_t>((h * kKeyTile + at) * width) * element,
                  source + static_cast<std::size_t>((token * H_KV_ + h) * width) * element,
                  static_cast<std::size_t>(width) * element);
    }
  };
  for (std::int64_t position = begin; position < end; ++position) {
    auto* page = static_cast<std::byte*>(sequence.pages[slot(position / kKeyTile)].raw());
    copy_head(page, k, position - begin, D_, position % kKeyTile);
    if (values_ == CachedValues::inside_keys) continue;
    copy_head(page + static_cast<std::size_t>(H_KV_ * kKeyTile * D_) * element, v, position - begin, D_V_,
              position % kKeyTile);
  }
  sequence.length = static_cast<std::int32_t>(end);
}

bool KeyValueCache::add_pages(Sequence& sequence, std::int64_t tokens, std::int64_t spare) {
  const auto have = static_cast<std::int64_t>(sequence.pages.size());
  const std::int64_t needed = std::min(pages_for(tokens), most_pages());
  if (have >= needed) return false;
  const std::int64_t more = std::min(needed + spare, most_pages()) - have;
  const Tensor slab = place_.zeros({more, page_elements(H_KV_, D_, D_V_, values_)}, place_.dtype);
  for (std::int64_t i = 0; i < more; ++i) {
    sequence.pages.push_back(slab.rows(i, i + 1));
    sequence.addresses.push_back(sequence.pages.back().raw());
  }
  return true;
}

bool KeyValueCache::make_room() {
  const void* const before = table_.defined() ? table_.raw() : nullptr;
  bool added = false;
  for (Sequence& sequence : sequences_) {
    const std::int64_t spare = place_.on_cpu() ? 0 : spare_pages(std::ssize(sequence.pages));
    added = add_pages(sequence, sequence.length + std::int64_t{1}, spare) || added;
  }
  if (added) upload_table();
  return !table_.defined() || table_.raw() == before;
}

void KeyValueCache::count_token() {
  for (Sequence& sequence : sequences_) ++sequence.length;
}

void KeyValueCache::upload_table() {
  if (place_.on_cpu() || place_.stream.device.planned()) return;
  std::int64_t most = 0;
  for (const Sequence& s : sequences_) most = std::max(most, static_cast<std::int64_t>(s.pages.size()));
  if (most == 0) return;
  if (most > capacity_) {
    capacity_ = std::min(std::max<std::int64_t>(2 * most, 16), most_pages());
    table_ = Tensor({sequences() * capacity_}, DType::i64, place_.lasting);
  }
  std::vector<std::int64_t> addresses(static_cast<std::size_t>(table_.numel()), 0);
  for (std::size_t n = 0; n < sequences_.size(); ++n) {
    for (std::size_t i = 0; i < sequences_[n].addresses.size(); ++i) {
      addresses[n * static_cast<std::size_t>(capacity_) + i] =
          static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(sequences_[n].addresses[i]));
    }
  }
  copy(table_, Tensor::from(table_.shape(), addresses), place_.stream);
}

CachedKeys KeyValueCache::keys(std::int64_t n) const {
  const Sequence& sequence = sequences_[static_cast<std::size_t>(n)];
  const void* const* const pages = table_.defined() ? table().pages + n * capacity_ : sequence.addresses.data();
  return {.pages = pages,
          .pinned = static_cast<std::int32_t>(pinned_),
          .ring = static_cast<std::int32_t>(ring_),
          .length = sequence.length,
          .values = values_};
}

CachedTable KeyValueCache::table() const {
  return {.pages = table_.defined() ? static_cast<const void* const*>(table_.raw()) : nullptr,
          .capacity = capacity_,
          .pinned = static_cast<std::int32_t>(pinned_),
          .ring = static_cast<std::int32_t>(ring_),
          .values = values_};
}

std::int64_t KeyValueCache::visible_positions() const {
  const std::int64_t kept = capacity_ * kKeyTile;
  return options_.window > 0 ? std::min<std::int64_t>(kept, options_.window + options_.sink_tokens) : kept;
}

void KeyValueCache::check_fits(DType dtype, const AttentionShape& shape, const AttentionOptions& options) const {
  WEFT_CHECK(dtype == place_.dtype && shape.H_KV == H_KV_ && shape.D == D_ && shape.D_V == D_V_,
             "attention: a cache of {} heads, widths {} and {}, {} for {} heads, widths {} and {}, {}", H_KV_, D_, D_V_,
             name_of(place_.dtype), shape.H_KV, shape.D, shape.D_V, name_of(dtype));
  const bool same = options.window == options_.window && options.sink_tokens <= options_.sink_tokens;
  WEFT_CHECK(options_.window == 0 || same, "attention: a cache for window {} and {} sinks used with window {} and {}",
             options_.window, options_.sink_tokens, options.window, options.sink_tokens);
}

}  // namespace weft
