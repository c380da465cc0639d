#include <cstdlib>
#include <omp.h>

#include "autograd/cuda/cuda_memory.h"
#include "checkpoints/layout.h"
#include "train/loop/run_folder.h"
#include "train/loop/trainer.h"
#include "train/verbs/verbs.h"

namespace weft {

void run_train(World& world, const TrainArguments& arguments) {
  // Ranks of one machine share its cores.
  if (world.local_size() > 1 && std::getenv("OMP_NUM_THREADS") == nullptr) {
    omp_set_num_threads(std::max(1, omp_get_num_procs() / world.local_size()));
  }
  Recipe recipe = load_recipe(arguments.recipe, arguments.overrides);
  const std::filesystem::path folder = run_folder(recipe);
  try {
    Trainer(world, std::move(recipe), {arguments.resume}).run();
  } catch (const GpuFailure& error) {
    if (list_checkpoints(folder).empty()) throw;
    fail(error.code(), "{}. The last checkpoint in {} is whole: the same command goes on from it", error.what(),
         folder.string());
  }
}

}  // namespace weft
