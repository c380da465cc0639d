#include "checkpoints/safetensors/reader.h"

#include <algorithm>
#include <utility>

#include "autograd/check.h"
#include "data/storage/text.h"

namespace weft {

namespace {

constexpr std::uint64_t kLengthBytes = 8;
// "{}" is the shortest header.
constexpr std::uint64_t kMinFileBytes = kLengthBytes + 2;
// Of stored elements at a time on their way to floats.
constexpr std::size_t kStagingBytes = std::size_t{4} << 20;

std::uint64_t little_endian(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  return value;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string source = path.string();
  if (file_.size() < kMinFileBytes) {
    storage_error("{}: {} bytes are too few for a safetensors file, which has at least {}", source, file_.size(),
                  kMinFileBytes);
  }
  std::byte length_bytes[kLengthBytes];
  file_.read_at(0, length_bytes);
  const std::uint64_t length = little_endian(length_bytes);
  if (length > kMaxSafetensorsHeaderBytes) {
    storage_error("{}: its header is said to have {} bytes, at most {} are expected", source, length,
                  kMaxSafetensorsHeaderBytes);
  }
  if (length > file_.size() - kLengthBytes) {
    storage_error("{}: its header is said to have {} bytes, but only {} follow", source, length,
                  file_.size() - kLengthBytes);
  }
  std::string json(static_cast<std::size_t>(length), '\0');
  file_.read_at(kLengthBytes, std::as_writable_bytes(std::span(json)));
  data_begin_ = kLengthBytes + length;
  header_ = parse_safetensors_header(json, file_.size() - data_begin_, source);
  tensors_.reserve(header_.entries.size());
  for (const SafetensorsEntry& entry : header_.entries) {
    tensors_.push_back({entry.name, std::string(name_of(entry.dtype)), entry.shape});
  }
}

const SafetensorsEntry& SafetensorsFile::entry(std::string_view name) const {
  return header_.entries[static_cast<std::size_t>(&require(name) - tensors_.data())];
}

void SafetensorsFile::read_rows(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                                std::span<std::byte> out) const {
  const SourceTensor& tensor = require(name);
  WEFT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= tensor.rows(), "{}: rows [{}, {}) of {}", tensor.name,
             row_begin, row_end, tensor.rows());
  const SafetensorsEntry& stored = entry(name);
  const std::uint64_t row_bits =
      static_cast<std::uint64_t>(tensor.row_elements()) * static_cast<std::uint64_t>(bits_of(stored.dtype));
  const std::uint64_t bytes = static_cast<std::uint64_t>(row_end - row_begin) * row_bits / 8;
  WEFT_CHECK(row_bits % 8 == 0 || row_end - row_begin == tensor.rows(), "{}: its rows are no whole bytes", tensor.name);
  WEFT_CHECK(out.size() == bytes, "{}: room for {} bytes, rows [{}, {}) have {}", tensor.name, out.size(), row_begin,
             row_end, bytes);
  file_.read_at(data_begin_ + stored.begin + static_cast<std::uint64_t>(row_begin) * row_bits / 8, out);
}

void SafetensorsFile::read(std::string_view name, std::span<std::byte> out) const {
  read_rows(name, 0, require(name).rows(), out);
}

void SafetensorsFile::read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                                  std::span<float> out) const {
  const SourceTensor& tensor = require(name);
  const SafetensorsEntry& stored = entry(name);
  if (!holds_reals(stored.dtype)) {
    storage_error("{}: tensor \"{}\" is {}; F32, F16, BF16 and F64 can be read as numbers", path().string(),
                  printable(name), tensor.dtype);
  }
  WEFT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= tensor.rows(), "{}: rows [{}, {}) of {}", tensor.name,
             row_begin, row_end, tensor.rows());
  const auto first = static_cast<std::uint64_t>(row_begin * tensor.row_elements());
  const auto count = static_cast<std::uint64_t>((row_end - row_begin) * tensor.row_elements());
  WEFT_CHECK(out.size() == count, "{}: room for {} elements, rows [{}, {}) have {}", tensor.name, out.size(), row_begin,
             row_end, count);
  const auto width = static_cast<std::size_t>(bits_of(stored.dtype)) / 8;
  const std::uint64_t begin = data_begin_ + stored.begin + first * width;
  if (stored.dtype == SafetensorsDType::f32) {
    file_.read_at(begin, std::as_writable_bytes(out));
    return;
  }
  std::vector<std::byte> staging(std::min<std::size_t>(out.size() * width, kStagingBytes));
  const std::size_t step = kStagingBytes / width;
  for (std::size_t done = 0; done < out.size(); done += step) {
    const auto values = out.subspan(done, std::min(step, out.size() - done));
    const auto bytes = std::span(staging).first(values.size() * width);
    file_.read_at(begin + done * width, bytes);
    if (const auto bad = floats_from_stored(stored.dtype, bytes, values)) {
      storage_error("{}: tensor \"{}\": element {} does not fit a float", path().string(), printable(name),
                    first + done + *bad);
    }
  }
}

}  // namespace weft
