#include "checkpoints/huggingface/tensor_map.h"

#include <algorithm>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <map>

#include "autograd/check.h"

namespace weft {
namespace {

// Tensors in memory.
class Memory final : public TensorSource {
 public:
  void add(const std::string& name, std::vector<std::int64_t> shape, std::vector<float> values) {
    list_.push_back({name, "F32", std::move(shape)});
    std::ranges::sort(list_, {}, &SourceTensor::name);
    values_[name] = std::move(values);
  }
  const std::vector<SourceTensor>& tensors() const override { return list_; }
  std::string where(std::string_view) const override { return "memory"; }
  void read_floats(std::string_view name, std::int64_t begin, std::int64_t end, std::span<float> out) const override {
    const std::int64_t row = require(name).row_elements();
    ASSERT_EQ(static_cast<std::int64_t>(out.size()), (end - begin) * row);
    std::copy_n(values_.at(std::string(name)).begin() + begin * row, out.size(), out.begin());
  }

 private:
  std::vector<SourceTensor> list_;
  std::map<std::string, std::vector<float>> values_;
};

// A model of two parameters: a [4, 2] and gain [3].
class TensorMapTest : public ::testing::Test {
 protected:
  TensorMapTest() {
    store.declare("a", {4, 2}, ParameterKind::matrix, Init::constant(0.0));
    store.declare("gain", {3}, ParameterKind::vector, Init::constant(0.0));
  }

  // Rows of a in another order with gain in the last row, which holds gain - 1.
  static std::vector<TensorRule> rules() {
    TensorRule first{.name = "first", .shape = {3, 2}, .pieces = {{"a", 4, 4}, {"a", 0, 2}}};
    first.copies = {"again"};
    return {first,
            {.name = "second", .shape = {1, 2, 1}, .pieces = {{"a", 2, 2}}},
            {.name = "third", .shape = {3}, .pieces = {{"gain", 0, 3}}, .shift = -1.0},
            {.name = "zeros", .shape = {2}, .pieces = {}}};
  }
  Memory good() const {
    Memory memory;
    memory.add("first", {3, 2}, {4, 5, 6, 7, 0, 1});
    memory.add("second", {1, 2, 1}, {2, 3});
    memory.add("third", {3}, {0.5F, 0, -1});
    memory.add("zeros", {2}, {0, 0});
    memory.add("model.layers.0.rotary_emb.inv_freq", {1}, {9});
    return memory;
  }
  std::vector<float> parameter(const TensorMap& map, const TensorSource& source, const std::string& name) {
    std::vector<float> values(static_cast<std::size_t>(store.find(name)->shape.numel()));
    map.read_parameter(source, name, values);
    return values;
  }
  std::string refused(const Memory& memory) {
    try {
      TensorMap(rules(), store.all()).check(memory);
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
  }

  ParameterStore store;
};

TEST_F(TensorMapTest, PutsPiecesWhereTheyBelongAndBack) {
  const TensorMap map(rules(), store.all());
  const Memory memory = good();
  map.check(memory);
  const std::vector<float> a = parameter(map, memory, "a"), gain = parameter(map, memory, "gain");
  EXPECT_EQ(a, (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(gain, (std::vector<float>{1.5F, 1, 0}));
  const auto read = [&](std::string_view name, std::int64_t begin, std::span<float> out) {
    std::copy_n((name == "a" ? a : gain).begin() + begin, out.size(), out.begin());
  };
  for (const TensorRule& rule : map.rules()) {
    std::vector<float> before(static_cast<std::size_t>(rule.shape.numel())), after(before.size(), 7.0F);
    memory.read_floats(rule.name, 0, memory.require(rule.name).rows(), before);
    map.read_tensor(rule, read, after);
    EXPECT_EQ(before, after) << rule.name;
  }
}

TEST_F(TensorMapTest, SaysWhatDiffers) {
  Memory memory;
  memory.add("first", {2, 3}, {4, 5, 6, 7, 0, 1});
  memory.add("third", {3}, {0, 0, 0});
  memory.add("fourth.weight", {1}, {0});
  memory.add("zeros", {2}, {0, 0});
  EXPECT_EQ(refused(memory),
            "memory: the tensors are not those of the model that the config describes:\n"
            "  first: its shape is [2, 3], the config makes it [3, 2]\n"
            "  second [1, 2, 1]: missing\n"
            "  fourth.weight [1]: not a tensor of this class; the model would lose what it does");
}

TEST_F(TensorMapTest, CopiesAndConstantsMustBeWhatTheyAre) {
  Memory memory = good();
  memory.add("again", {3, 2}, {4, 5, 6, 7, 0, 1});
  EXPECT_EQ(refused(memory), "");
  memory = good();
  memory.add("again", {3, 2}, {4, 5, 6, 7, 0, 2});
  EXPECT_EQ(refused(memory), "memory: the config says that again is first, but their values differ");
  memory = good();
  memory.add("again", {6}, {4, 5, 6, 7, 0, 1});
  EXPECT_EQ(refused(memory),
            "memory: the tensors are not those of the model that the config describes:\n"
            "  again: its shape is [6], not that of first, [3, 2]");
  memory = Memory();
  memory.add("first", {3, 2}, {4, 5, 6, 7, 0, 1});
  memory.add("second", {1, 2, 1}, {2, 3});
  memory.add("third", {3}, {0.5F, 0, -1});
  memory.add("zeros", {2}, {0, 3});
  EXPECT_EQ(refused(memory), "memory: element 1 of zeros is 3; weft has no parameter for it and can only take 0");
}

TEST_F(TensorMapTest, RulesMustHoldEachElementOnce) {
  const auto broken = [&](std::size_t rule, std::int64_t begin, std::int64_t count) {
    std::vector<TensorRule> bad = rules();
    bad[rule].pieces.back().begin = begin;
    bad[rule].pieces.back().count = count;
    EXPECT_THROW(TensorMap(bad, store.all()), Error);
  };
  broken(1, 3, 2);  // overlaps and leaves a hole
  broken(0, 0, 1);  // fewer elements than the shape
  std::vector<TensorRule> bad = rules();
  bad.pop_back();
  bad.pop_back();
  EXPECT_THROW(TensorMap(bad, store.all()), Error);  // gain is nowhere
  bad = rules();
  bad.push_back(bad.back());
  EXPECT_THROW(TensorMap(bad, store.all()), Error);  // a tensor twice
}

}  // namespace
}  // namespace weft
