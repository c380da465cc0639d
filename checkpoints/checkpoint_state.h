// What a checkpoint holds, as plain data: the caller describes each rank's part of the training state, the writer saves
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/dtype.h"
#include "autograd/shape.h"

namespace weft {

// What a stored array is to its parameter. The list is closed.
//   param   the weights, when there is no fp32 master        m, v   Adam's first and second moment
//   master  fp32 master weights                              mom    momentum of a whole matrix (Muon)
//   ema     averaged weights                                 buffer persistent state that is not trained
inline constexpr std::string_view kSliceKinds[] = {"param", "master", "m", "v", "mom", "ema", "buffer"};
bool is_slice_kind(std::string_view kind);

// One flat interval [offset, offset + length) of the row-major elements of one array. An array without elements is one
// slice of length 0.
struct Slice {
  std::string kind;
  std::string name;  // the parameter's canonical name: dots, never slashes
  Shape shape;       // of the whole parameter
  std::int64_t offset = 0;
  DType dtype = DType::f32;
  std::span<const std::byte> bytes;  // host memory, unchanged until the save has returned; or none, and
  // what fills the whole array in memory that lasts while it is written: for models larger than memory. Called once.
  std::function<void(std::span<std::byte>)> produce = {};

  std::uint64_t byte_count() const {
    return produce ? static_cast<std::uint64_t>(shape.numel()) * size_of(dtype) : bytes.size();
  }
  std::int64_t length() const { return static_cast<std::int64_t>(byte_count() / size_of(dtype)); }
};

// A parameter (or buffer) of the model, and which kinds of it are stored.
struct ParameterRecord {
  std::string name;
  Shape shape;
  std::string group;               // optimizer group
  std::string optimizer;           // "adamw", "muon", "none"
  std::vector<std::string> store;  // kinds; together the ranks' slices of each tile [0, numel)
  bool operator==(const ParameterRecord&) const = default;
};

// A file that the arrays mean nothing without, e.g. the tokenizer. It lies in the checkpoint's directory as it is, so
// that the checkpoint can be copied alone.
struct Attachment {
  std::string name;  // bare; not one that a checkpoint's own files have
  std::string content;
};
inline constexpr std::uint64_t kMaxAttachmentBytes = std::uint64_t{256} << 20;

struct CheckpointState {
  std::int64_t step = 0;
  std::vector<Slice> slices;  // this rank's part; every element is in exactly one rank's slices

  // The rest is saved as rank 0 gives it.
  std::vector<ParameterRecord> parameters;  // canonical order
  int zero_stage = 0;
  // JSON objects, as text. Numbers are integers: a double that matters is stored by to_bits. Only `info`, which nobody
  // computes with, may hold decimals.
  std::string mesh = "{}";
  std::string state = "{}";
  std::string provenance = "{}";
  std::string info = "{}";
  // Finite values by name, e.g. {"val_loss", 2.31}; retention keeps the checkpoint with the lowest.
  std::map<std::string, double> metrics;
  std::vector<Attachment> attachments;
};

// The bits of a number as "0x" and 16 (double) or 8 (float) hexadecimal digits, which survive any JSON tool.
std::string to_bits(double value);
std::string to_bits(float value);
// Error (storage) naming `source` if the text is not of that form.
double double_from_bits(std::string_view text, std::string_view source);
float float_from_bits(std::string_view text, std::string_view source);

}  // namespace weft
