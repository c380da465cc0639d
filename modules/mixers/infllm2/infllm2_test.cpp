#include "modules/mixers/infllm2/infllm2.h"

#include "modules/families/block_sparse/sparse_layer_case.h"
#include "modules/mixers/attention/attention.h"

namespace weft::testing::block_sparse {
namespace {

OptionList small(const OptionList& more) {
  OptionList options{{"heads", integer(4)},           {"kv_heads", integer(2)},        {"head_dim", integer(6)},
                     {"compress_length", integer(6)}, {"compress_stride", integer(3)}, {"block", integer(6)},
                     {"selected", integer(4)},        {"window", integer(12)},         {"dense_length", integer(0)}};
  options.insert(options.end(), more.begin(), more.end());
  return options;
}

TEST(Infllm2, IsTheLayerOfItsReadme) {
  const std::int64_t D = 6, block = 6;
  for (const std::int64_t dense : {0, 40}) {
    SparseLayerCase layer(infllm2_mixer(), small({{"dense_length", dense}}));
    const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{1, 5, 6, 0, 7, 80});
    const Tensor x = normal({documents->tokens(), layer.site.width}, 3);
    const auto choose = [&](std::int64_t t, std::int64_t h, const Tensor& q, const Tensor& k) {
      const std::int64_t own = t / block, head = h / 2;
      std::vector<double> score(static_cast<std::size_t>(own + 1), 0.0), total;
      const KeySpan span{6, 3};
      const Tensor means = span_means(k, head, D, span);
      std::vector<std::int64_t> visible;
      for (std::int64_t i = 0; i < span.count(t + 1); ++i) visible.push_back(i);
      total.resize(visible.size(), 0.0);
      for (std::int64_t g = 2 * head; g < 2 * head + 2; ++g) {
        const std::vector<double> p =
            probabilities(q.data<double>() + t * 4 * D + g * D, means.data<double>(), D, D, visible);
        for (std::size_t i = 0; i < p.size(); ++i) total[i] += p[i];
      }
      for (std::int64_t j = 0; j <= own; ++j) {
        for (std::int64_t i = 0; i < static_cast<std::int64_t>(total.size()); ++i) {
          const bool overlap = i * 3 < (j + 1) * block && i * 3 + 6 > j * block;
          double& s = score[static_cast<std::size_t>(j)];
          if (overlap) s = std::max(s, total[static_cast<std::size_t>(i)]);
        }
      }
      return best_blocks(score, own, t < dense ? own + 1 : 4, 1, 2);
    };
    const Tensor expected = SharedLayerFormula{4, 2, D, block}(layer, x, *documents, choose);
    EXPECT_TRUE(close(layer.forward(x, documents), expected, 1e-12, 1e-10)) << "dense_length " << dense;
  }
}

TEST(Infllm2, BelowItsLengthIsDense) {
  SparseLayerCase full(attention_mixer(), {{"heads", integer(4)}, {"kv_heads", integer(2)}, {"head_dim", integer(6)}});
  SparseLayerCase layer(infllm2_mixer(), small({{"dense_length", integer(60)}}));
  const std::vector<Parameter*> mine = layer.store.all(), theirs = full.store.all();
  ASSERT_EQ(mine.size(), theirs.size());
  for (std::size_t i = 0; i < mine.size(); ++i) EXPECT_EQ(mine[i]->name, theirs[i]->name) << "checkpoints carry over";
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{90, 60});
  const Tensor x = normal({150, layer.site.width}, 3);
  const Tensor sparse = layer.forward(x, documents), dense = full.forward(x, documents);
  EXPECT_TRUE(close(sparse.rows(0, 60), dense.rows(0, 60), 1e-12, 1e-10));
  EXPECT_TRUE(close(sparse.rows(90, 150), dense.rows(90, 150), 1e-12, 1e-10));
  EXPECT_FALSE(close(sparse.rows(60, 90), dense.rows(60, 90), 1e-3, 1e-3)) << "and sparse beyond";
}

TEST(Infllm2, PlansTheMemoryItKeeps) {
  SparseLayerCase(infllm2_mixer(), small({})).expect_saved_bytes();
  SparseLayerCase(infllm2_mixer(), small({{"dense_length", integer(100)}})).expect_saved_bytes();
  SparseLayerCase(infllm2_mixer(), small({{"dense_length", integer(1 << 30)}})).expect_saved_bytes();
}

TEST(Infllm2, ObjectsToImpossibleValues) {
  const auto objection = [](const OptionList& options) {
    return creation_error<SparseLayerCase>(infllm2_mixer(), small(options));
  };
  EXPECT_EQ(objection({}), "");
  EXPECT_EQ(objection({{"window", integer(10)}}),
            "[mixer.test]: window = 10 is not a multiple of block = 6; local tokens are chosen by whole blocks");
  EXPECT_EQ(objection({{"compress_stride", integer(4)}}),
            "[mixer.test]: compress_length = 6 is not a multiple of compress_stride = 4");
  EXPECT_EQ(objection({{"block", integer(4)}}), "[mixer.test]: block = 4 is not a multiple of compress_stride = 3");
  EXPECT_EQ(objection({{"selected", integer(2)}}),
            "[mixer.test]: selected = 2 leaves no room for the 1 first and 2 last blocks, which are always selected; "
            "raise it to at least 3");
}

}  // namespace
}  // namespace weft::testing::block_sparse
