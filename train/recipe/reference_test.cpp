#include <cstdlib>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>

#include "train/recipe/recipe.h"

namespace weft {
namespace {

// Runs from the repository root. With WEFT_UPDATE_DOCS set, writes the page first.
TEST(RecipeReference, DocsAreUpToDate) {
  const char* const path = "docs/recipes.md";
  if (std::getenv("WEFT_UPDATE_DOCS") != nullptr) std::ofstream(path) << recipe_reference();
  std::ifstream file(path);
  ASSERT_TRUE(file) << path;
  const std::string text(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(text, recipe_reference()) << "run WEFT_UPDATE_DOCS=1 train_tests --gtest_filter=RecipeReference.*";
}

}  // namespace
}  // namespace weft
