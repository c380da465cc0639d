#include "modules/mixers/ttt_linear/ttt_linear.h"

#include "modules/families/ttt/ttt_layer_test_cases.h"

namespace weft {
namespace {

using namespace testing;

const OptionList kBare{{"conv_width", std::int64_t{0}}, {"rope", false}, {"gate", std::string("none")}};

TEST(TttLinear, IsTheLayerOfItsReadme) {
  LayerUnderTest full(ttt_linear_mixer(), {{"batch", std::int64_t{3}}, {"inner_learning_rate", 0.7}});
  expect_ttt_layer(full, {.hidden = 0, .batch = 3, .conv = 4, .eta = 0.7, .rope = true, .gate = true});
  LayerUnderTest bare(ttt_linear_mixer(), kBare);
  expect_ttt_layer(bare, {.hidden = 0, .batch = 16, .conv = 0, .eta = 1.0, .rope = false, .gate = false});
}

TEST(TttLinear, PlansTheMemoryItKeeps) {
  LayerUnderTest(ttt_linear_mixer(), {}).expect_saved_bytes();
  LayerUnderTest(ttt_linear_mixer(), kBare).expect_saved_bytes();
}

TEST(TttLinear, ItsStateHasConstantBytes) {
  const LayerUnderTest layer(ttt_linear_mixer(), {});
  EXPECT_EQ(layer.mixer->state_bytes(1), layer.mixer->state_bytes(100000));
  EXPECT_EQ(layer.mixer->state_bytes(1), 4.0 * (2 * 2 * 5 * 4 + 2 * 8 * 3 + 1));
}

TEST(TttLinear, RefusesWhatCannotBe) {
  EXPECT_EQ(
      creation_error<LayerUnderTest>(ttt_linear_mixer(), {{"heads", std::int64_t{3}}, {"head_dim", std::int64_t{0}}}),
      "[mixer.test]: heads = 3 does not divide the model's width = 10; set head_dim");
  EXPECT_EQ(creation_error<LayerUnderTest>(ttt_linear_mixer(), {{"head_dim", std::int64_t{1}}}),
            "[mixer.test]: a head of width 1 has nothing to learn, because its memory is normalised over the head; use "
            "at least 2");
  EXPECT_EQ(creation_error<LayerUnderTest>(ttt_linear_mixer(), {{"head_dim", std::int64_t{5}}}),
            "[mixer.test]: head_dim = 5 is odd; rope = true turns channels in pairs and needs an even number");
  EXPECT_EQ(creation_error<LayerUnderTest>(ttt_linear_mixer(), {{"rope", false}, {"rope_base", 500.0}}),
            "[mixer.test]: rope_base = 500 has no effect with rope = false; remove one");
  EXPECT_EQ(creation_error<LayerUnderTest>(ttt_linear_mixer(), {{"inner_learning_rate", 0.0}}),
            "[mixer.test]: inner_learning_rate = 0 must be positive: a memory that does not learn is a fixed network");
  EXPECT_EQ(creation_error<LayerUnderTest>(ttt_linear_mixer(), {{"conv_width", std::int64_t{1}}}),
            "[mixer.test]: conv_width = 1 is no convolution; use 2 to 8 taps, or 0");
}

}  // namespace
}  // namespace weft
