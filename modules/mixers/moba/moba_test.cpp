#include "modules/mixers/moba/moba.h"

#include "modules/families/block_sparse/sparse_layer_case.h"
#include "modules/mixers/attention/attention.h"

namespace weft::testing::block_sparse {
namespace {

OptionList heads(const OptionList& more) {
  OptionList options{{"heads", integer(4)}, {"kv_heads", integer(2)}, {"head_dim", integer(6)}};
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

TEST(Moba, IsTheLayerOfItsReadme) {
  const std::int64_t B = 7, n = 3, D = 6;
  SparseLayerCase layer(moba_mixer(), heads({{"block", B}, {"selected", n}}));
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{1, 6, 7, 0, 8, 70});
  const Tensor x = normal({documents->tokens(), layer.site.width}, 3);
  const auto choose = [&](std::int64_t t, std::int64_t h, const Tensor& q, const Tensor& k) {
    const Tensor means = span_means(k, h / 2, D, {static_cast<std::int32_t>(B), static_cast<std::int32_t>(B)});
    std::vector<double> score(static_cast<std::size_t>(t / B + 1), 0.0);
    for (std::int64_t j = 0; j < t / B; ++j) {
      for (std::int64_t c = 0; c < D; ++c) {
        score[static_cast<std::size_t>(j)] += q.data<double>()[t * 4 * D + h * D + c] * means.data<double>()[j * D + c];
      }
    }
    return best_blocks(score, t / B, n, 0, 1);
  };
  const Tensor expected = SharedLayerFormula{4, 2, D, B}(layer, x, *documents, choose);
  EXPECT_TRUE(close(layer.forward(x, documents), expected, 1e-12, 1e-10));
}

// Both with room for every block, and switched over.
TEST(Moba, OfEverythingIsFullAttention) {
  SparseLayerCase full(attention_mixer(), heads({}));
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{50, 23});
  const Tensor x = normal({documents->tokens(), full.site.width}, 3);
  const Tensor expected = full.forward(x, documents);
  for (const OptionList& options :
       {OptionList{{"block", integer(8)}, {"selected", integer(7)}}, OptionList{{"full", true}}}) {
    SparseLayerCase layer(moba_mixer(), heads(options));
    const std::vector<Parameter*> mine = layer.store.all(), theirs = full.store.all();
    ASSERT_EQ(mine.size(), theirs.size());
    for (std::size_t i = 0; i < mine.size(); ++i) EXPECT_EQ(mine[i]->name, theirs[i]->name) << "checkpoints carry over";
    EXPECT_TRUE(close(layer.forward(x, documents), expected, 1e-12, 1e-10));
  }
}

TEST(Moba, PlansTheMemoryItKeeps) {
  SparseLayerCase(moba_mixer(), heads({{"block", integer(64)}})).expect_saved_bytes();
  SparseLayerCase(moba_mixer(), heads({{"full", true}})).expect_saved_bytes();
}

TEST(Moba, ObjectsToImpossibleValues) {
  EXPECT_EQ(creation_error<SparseLayerCase>(moba_mixer(), {{"heads", integer(6)}, {"kv_heads", integer(4)}}),
            "[mixer.test]: heads = 6 is not a multiple of kv_heads = 4");
  EXPECT_EQ(creation_error<SparseLayerCase>(moba_mixer(), {{"head_dim", integer(5)}}),
            "[mixer.test]: head_dim = 5 is odd; rope = true turns channels in pairs and needs an even number");
  EXPECT_EQ(creation_error<SparseLayerCase>(moba_mixer(), {{"heads", integer(5)}}),
            "[mixer.test]: heads = 5 does not divide the model's width = 12; set head_dim");
}

}  // namespace
}  // namespace weft::testing::block_sparse
