#include "modules/mixers/ttt_mlp/ttt_mlp.h"

#include "modules/families/ttt/ttt_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

TEST(TttMlp, IsTheLayerOfItsReadme) {
  LayerUnderTest layer(ttt_mlp_mixer(), {{"batch", std::int64_t{3}}, {"hidden_factor", std::int64_t{2}}});
  expect_ttt_layer(layer, {.hidden = 8, .batch = 3, .conv = 4, .eta = 0.1, .rope = true, .gate = true});
}

TEST(TttMlp, PlansTheMemoryItKeeps) {
  LayerUnderTest(ttt_mlp_mixer(), {}).expect_saved_bytes();
}

TEST(TttMlp, ItsStateHasConstantBytes) {
  const LayerUnderTest layer(ttt_mlp_mixer(), {});
  EXPECT_EQ(layer.mixer->state_bytes(1), layer.mixer->state_bytes(100000));
  EXPECT_EQ(layer.mixer->state_bytes(1), 4.0 * (2 * 2 * (5 * 16 + 17 * 4) + 2 * 8 * 3 + 1));
}

}  // namespace
}  // namespace weft
