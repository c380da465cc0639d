#include <cstdlib>
#include <omp.h>

#include "train/loop/trainer.h"
#include "train/verbs/verbs.h"

namespace weft {

void run_train(World& world, const TrainArguments& arguments) {
  // Ranks of one machine share its cores.
  if (world.local_size() > 1 && std::getenv("OMP_NUM_THREADS") == nullptr) {
    omp_set_num_threads(std::max(1, omp_get_num_procs() / world.local_size()));
  }
  Recipe recipe = load_recipe(arguments.recipe, arguments.overrides);
  Trainer(world, std::move(recipe), {arguments.resume}).run();
}

}  // namespace weft
