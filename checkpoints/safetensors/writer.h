// Writing safetensors. Tensors are declared first and supplied one after the other, so that a model needs no second
// copy in memory. The same declarations and values give the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/safetensors/dtype.h"

namespace weft {

struct TensorDeclaration {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::f32;
  std::vector<std::int64_t> shape;
};

// Takes one tensor's elements in row-major order, in as many pieces as the supplier likes.
class TensorSink {
 public:
  virtual ~TensorSink() = default;
  // Rounded to the declared dtype (F32, BF16, F16 or F64), to nearest even. A finite value outside the range of BF16 or
  // F16 is an Error (config) that names the tensor.
  virtual void write_floats(std::span<const float> values) = 0;
  // Little-endian elements of the declared dtype as they are.
  virtual void write_bytes(std::span<const std::byte> bytes) = 0;
};

// Called once for each declaration; must write exactly its elements. The order is the writer's.
using TensorSupplier = std::function<void(const TensorDeclaration&, TensorSink&)>;

// Loaders of other frameworks ask for this entry.
inline const std::map<std::string, std::string> kPyTorchMetadata = {{"format", "pt"}};
// What published models use: 5 GB.
inline constexpr std::uint64_t kDefaultShardBytes = 5'000'000'000;

// One file: tensors by descending element size, then name; data from a multiple of 64 bytes. Written under another name
// in the same folder, fsynced, and renamed, replacing a file that is there. Names must be unique.
void write_safetensors_file(const std::filesystem::path& path, std::vector<TensorDeclaration> tensors,
                            const TensorSupplier& supply,
                            const std::map<std::string, std::string>& metadata = kPyTorchMetadata);

// A model's weights in `directory`, which exists and holds none yet (Error (storage)): model.safetensors, or, above
// `shard_bytes`, model-00001-of-0000K.safetensors and so on with model.safetensors.index.json, which is written last.
// Shards are filled in the order of declaration; a tensor larger than `shard_bytes` has one for itself. If anything
// fails, nothing stays behind. Returns the names of the files.
std::vector<std::string> write_safetensors_directory(
    const std::filesystem::path& directory, std::vector<TensorDeclaration> tensors, const TensorSupplier& supply,
    std::uint64_t shard_bytes = kDefaultShardBytes,
    const std::map<std::string, std::string>& metadata = kPyTorchMetadata);

}  // namespace weft
