// The device mesh: how ranks are arranged along pipeline, data, context and tensor parallel axes.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace weft {

// Slowest to fastest: rank = ((pp * DP + dp) * CP + cp) * TP + tp, so the groups with the most traffic (tp, cp) are
// neighbours and stay within a node under block placement.
struct MeshShape {
  int pp = 1;
  int dp = 1;
  int cp = 1;
  int tp = 1;

  int size() const { return pp * dp * cp * tp; }
  bool operator==(const MeshShape&) const = default;
};

struct MeshCoordinate {
  int pp = 0;
  int dp = 0;
  int cp = 0;
  int tp = 0;
  bool operator==(const MeshCoordinate&) const = default;
};

int mesh_rank(const MeshShape& shape, const MeshCoordinate& at);
MeshCoordinate mesh_coordinate(const MeshShape& shape, int rank);

// A mesh for `world_size` ranks; dp = 0 means "what remains". Throws Error (config) that names the recipe keys.
MeshShape resolve_mesh(MeshShape requested, int world_size);

// What a row must satisfy to be cut over cp ranks: tokens divisible by cp * chunk, where chunk is the coarsest block of
// any mixer in the model, and at least halo tokens on each rank, where halo is the longest short-convolution reach.
void check_row_length(const MeshShape& shape, std::int64_t tokens, std::int64_t chunk, std::int64_t halo);

// One line for each cp group that spans more nodes than its size needs; hosts [world size] are node names by rank.
std::vector<std::string> placement_warnings(const MeshShape& shape, std::span<const std::string> hosts);

// The groups of one rank. Creating it is collective over the world.
class Mesh {
 public:
  Mesh(std::shared_ptr<Communicator> world, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  const MeshCoordinate& at() const { return at_; }

  Communicator& world() const { return *world_; }
  Communicator& cp() const { return *cp_; }      // the ranks that share one set of rows
  Communicator& dp() const { return *dp_; }      // the ranks with the same share of different rows
  Communicator& dpcp() const { return *dpcp_; }  // all that hold the same parameters: gradients are summed here

 private:
  MeshShape shape_;
  MeshCoordinate at_;
  std::shared_ptr<Communicator> world_;
  std::shared_ptr<Communicator> cp_;
  std::shared_ptr<Communicator> dp_;
  std::shared_ptr<Communicator> dpcp_;
};

}  // namespace weft
