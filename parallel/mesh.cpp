#include "parallel/mesh.h"

#include <algorithm>
#include <fmt/ranges.h>
#include <map>
#include <set>

namespace weft {

int mesh_rank(const MeshShape& shape, const MeshCoordinate& at) {
  WEFT_CHECK(at.pp >= 0 && at.pp < shape.pp && at.dp >= 0 && at.dp < shape.dp && at.cp >= 0 && at.cp < shape.cp &&
                 at.tp >= 0 && at.tp < shape.tp,
             "coordinate pp {} dp {} cp {} tp {} outside the mesh", at.pp, at.dp, at.cp, at.tp);
  return ((at.pp * shape.dp + at.dp) * shape.cp + at.cp) * shape.tp + at.tp;
}

MeshCoordinate mesh_coordinate(const MeshShape& shape, int rank) {
  WEFT_CHECK(rank >= 0 && rank < shape.size(), "rank {} of a mesh of {}", rank, shape.size());
  MeshCoordinate at;
  at.tp = rank % shape.tp;
  at.cp = rank / shape.tp % shape.cp;
  at.dp = rank / shape.tp / shape.cp % shape.dp;
  at.pp = rank / shape.tp / shape.cp / shape.dp;
  return at;
}

MeshShape resolve_mesh(MeshShape requested, int world_size) {
  WEFT_CHECK(world_size >= 1, "a mesh of {} ranks", world_size);
  if (requested.pp != 1) {
    config_error("parallel.pp = {}: there is no pipeline parallelism; expected 1", requested.pp);
  }
  if (requested.tp != 1) config_error("parallel.tp = {}: there is no tensor parallelism; expected 1", requested.tp);
  if (requested.cp < 1) config_error("parallel.cp = {}: expected at least 1", requested.cp);
  if (requested.dp < 0) {
    config_error("parallel.dp = {}: expected a number of replicas, or 0 for what remains", requested.dp);
  }
  if (requested.cp > world_size || world_size % requested.cp != 0) {
    config_error(
        "parallel.cp = {} does not divide the {} {} of this run; choose a divisor, or start a multiple of {} ranks "
        "with "
        "mpirun -np",
        requested.cp, world_size, world_size == 1 ? "rank" : "ranks", requested.cp);
  }
  const int remaining = world_size / requested.cp;
  if (requested.dp != 0 && requested.dp != remaining) {
    config_error(
        "parallel.dp = {} and parallel.cp = {} need {} ranks, this run has {}; start that many with mpirun -np",
        requested.dp, requested.cp, static_cast<std::int64_t>(requested.dp) * requested.cp, world_size);
  }
  requested.dp = remaining;
  return requested;
}

void check_row_length(const MeshShape& shape, std::int64_t tokens, std::int64_t chunk, std::int64_t halo) {
  WEFT_CHECK(chunk >= 1 && halo >= 0, "chunk {} and halo {}", chunk, halo);
  if (shape.cp == 1) return;
  const std::int64_t granule = shape.cp * chunk;
  if (tokens <= 0 || tokens % granule != 0) {
    config_error(
        "data.sequence_length = {}: a row is cut over parallel.cp = {} ranks in chunks of {} tokens, so its length "
        "must be "
        "a multiple of {}",
        tokens, shape.cp, chunk, granule);
  }
  if (tokens / shape.cp < halo) {
    config_error(
        "data.sequence_length = {}: {} tokens on each of parallel.cp = {} ranks, but a short convolution reaches "
        "back {} tokens; use longer rows or fewer ranks",
        tokens, tokens / shape.cp, shape.cp, halo);
  }
}

std::vector<std::string> placement_warnings(const MeshShape& shape, std::span<const std::string> hosts) {
  WEFT_CHECK(static_cast<int>(hosts.size()) == shape.size(), "{} hosts for a mesh of {}", hosts.size(), shape.size());
  std::map<std::string_view, int> ranks_on;
  for (const std::string& host : hosts) ++ranks_on[host];
  int most = 1;
  for (const auto& [host, ranks] : ranks_on) most = std::max(most, ranks);
  const int needed = (shape.cp + most - 1) / most;

  std::vector<std::string> warnings;
  for (int rank = 0; rank < shape.size(); ++rank) {
    MeshCoordinate at = mesh_coordinate(shape, rank);
    if (at.cp != 0) continue;
    std::set<std::string_view> nodes;
    std::vector<int> members;
    for (; at.cp < shape.cp; ++at.cp) {
      members.push_back(mesh_rank(shape, at));
      nodes.insert(hosts[static_cast<std::size_t>(members.back())]);
    }
    if (static_cast<int>(nodes.size()) <= needed) continue;
    warnings.push_back(
        fmt::format("the context-parallel group of ranks {} spans {} nodes ({}) where {} would do; place "
                    "neighbouring ranks on the same node (mpirun --map-by slot)",
                    fmt::join(members, ", "), nodes.size(), fmt::join(nodes, ", "), needed));
  }
  return warnings;
}

Mesh::Mesh(std::shared_ptr<Communicator> world, const MeshShape& shape) : shape_(shape), world_(std::move(world)) {
  WEFT_CHECK(shape_.size() == world_->size(), "a mesh of {} on {} ranks", shape_.size(), world_->size());
  at_ = mesh_coordinate(shape_, world_->rank());
  // In the same order on every rank, one after the other. A group is colored by the coordinates that its members share;
  // members are ordered by world rank.
  const int key = world_->rank();
  cp_ = world_->split(mesh_rank(shape_, {at_.pp, at_.dp, 0, at_.tp}), key, "cp");
  dp_ = world_->split(mesh_rank(shape_, {at_.pp, 0, at_.cp, at_.tp}), key, "dp");
  dpcp_ = world_->split(mesh_rank(shape_, {at_.pp, 0, 0, at_.tp}), key, "dpcp");
}

}  // namespace weft
