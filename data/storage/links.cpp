#include "data/storage/links.h"

#include <algorithm>
#include <system_error>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/text.h"

namespace weft {
namespace fs = std::filesystem;

fs::path resolve_link(const fs::path& directory, const std::string& name, LinkTargets links, std::string_view source) {
  std::error_code error;
  const fs::path home = fs::canonical(directory.empty() ? "." : directory, error);
  if (error) storage_error("cannot open {}: {}", directory.string(), error.message());
  const fs::path target = fs::canonical(directory / name, error);
  if (error) storage_error("{}: \"{}\" cannot be opened: {}", source, printable(name), error.message());
  const auto is_inside = [&](const fs::path& folder) {
    return std::mismatch(folder.begin(), folder.end(), target.begin(), target.end()).first == folder.end();
  };
  if (is_inside(home)) return target;
  const fs::path blobs = home.parent_path().parent_path() / "blobs";
  const bool in_cache = target.parent_path() == blobs;
  if (in_cache && links == LinkTargets::inside_the_hub_cache) return target;
  storage_error("{}: \"{}\" is a link to {}, outside the model's folder{}", source, printable(name), target.string(),
                in_cache ? "; the hub cache's blobs must be allowed explicitly" : "");
}

std::string read_model_file(const fs::path& path, std::uint64_t max_bytes) {
  const fs::path folder = path.parent_path();
  return read_small_file(
      resolve_link(folder, path.filename().string(), LinkTargets::inside_the_hub_cache, folder.string()), max_bytes);
}

}  // namespace weft
