// What holds for all tasks: fixed examples, splits of their own, the stream that training draws from.
#include "data/synthetic/task.h"

#include <gmock/gmock.h>
#include <set>

#include "data/sampler/loader.h"
#include "data/synthetic/task_stream.h"
#include "data/synthetic/task_test_support.h"

namespace weft {
namespace {

using data_test::hash_of;
using data_test::make_task;
using data_test::TaskOptions;
using ::testing::HasSubstr;

// A configuration of each task that is not its default.
TaskOptions small_options(const std::string& name) {
  if (name == "mqar") {
    return {{"vocabulary", std::int64_t{128}}, {"length", std::int64_t{64}}, {"updates", std::int64_t{2}}};
  }
  if (name == "listops") return {{"min_length", std::int64_t{20}}, {"max_length", std::int64_t{200}}};
  if (name == "state_tracking") return {{"group", std::string("a5")}};
  if (name == "passkey") return {{"length", std::int64_t{256}}};
  if (name == "selective_copy") return {{"length", std::int64_t{100}}, {"test_length", std::int64_t{200}}};
  return {{"test_length", std::int64_t{1024}}};
}

// Examples are part of what a run is: a change of them needs a new task or option.
TEST(Tasks, ExamplesNeverChange) {
  const std::vector<std::tuple<std::string, std::uint64_t, std::uint64_t>> golden = {
      {"copy", 1, 0x500a1a59b55f0ac6ull},           {"copy", 7, 0xa2f254f99d5736aeull},
      {"induction", 1, 0x4b63a065cafd28b2ull},      {"induction", 7, 0xdf0661c3831314d4ull},
      {"listops", 1, 0xd0d6ee542c4b3b60ull},        {"listops", 7, 0x4447548cd980d206ull},
      {"mqar", 1, 0xa1919c8b6dbe1ad3ull},           {"mqar", 7, 0xe534b40b4f21e7ccull},
      {"passkey", 1, 0xcd8fccd89f8947b9ull},        {"passkey", 7, 0x23e2fd9e6a5cd661ull},
      {"selective_copy", 1, 0x247291e4568218e0ull}, {"selective_copy", 7, 0x64955020ad22ca20ull},
      {"state_tracking", 1, 0x85eb89b93ce31372ull}, {"state_tracking", 7, 0x8c698211d7b4d637ull},
  };
  ASSERT_EQ(golden.size(), 2 * task_types().size());
  for (const auto& [name, seed, hash] : golden) {
    const auto task = make_task(name, small_options(name), seed);
    const std::uint64_t all = hash_of(*task, Split::train, 20) ^ hash_of(*task, Split::test, 20);
    EXPECT_EQ(all, hash) << fmt::format("{{\"{}\", {}, {:#x}ull}},", name, seed, all);
  }
}

TEST(Tasks, AreListedByName) {
  std::vector<std::string> names;
  for (const TaskType* type : task_types()) {
    names.push_back(type->name);
    EXPECT_EQ(find_task(type->name), type);
  }
  EXPECT_TRUE(std::ranges::is_sorted(names));
  EXPECT_EQ(find_task("nonesuch"), nullptr);
}

// No example of one split is among the first ones of another; of small sets, like short bit strings, some must be.
TEST(Tasks, SplitsAndSeedsShareNoExample) {
  for (const TaskType* type : task_types()) {
    std::set<std::vector<std::int32_t>> seen;
    std::size_t drawn = 0;
    for (const std::uint64_t seed : {1, 2}) {
      const auto task = make_task(type->name, small_options(type->name), seed);
      for (const Split split : {Split::train, Split::validation, Split::test}) {
        for (std::int64_t i = 0; i < 100; ++i) {
          Row row = task->build(split, i).row;
          if (row.cu_seqlens[1] < 12) continue;
          seen.insert(std::move(row.tokens));
          ++drawn;
        }
      }
    }
    EXPECT_EQ(seen.size(), drawn) << type->name;
  }
}

TEST(Tasks, DigestsTellConfigurationsApart) {
  const TaskType& type = *find_task("mqar");
  Options options(type.options);
  const std::string digest = task_digest(type, options, 1);
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(task_digest(type, options, 1), digest);
  EXPECT_NE(task_digest(type, options, 2), digest);
  options.set("pairs", std::int64_t{9});
  EXPECT_NE(task_digest(type, options, 1), digest);
  EXPECT_NE(task_digest(*find_task("copy"), Options(find_task("copy")->options), 1),
            task_digest(*find_task("induction"), Options(find_task("induction")->options), 1));
}

TaskStreamOptions stream_options() {
  return {.name = "copy", .digest = "d1", .rows_per_step = 8, .skip_steps = {}};
}

std::unique_ptr<RowStream> open_stream(TaskStreamOptions options = stream_options()) {
  return make_task_stream(make_task("copy"), std::move(options));
}

TEST(TaskStream, DrawsExamplesInOrderForAnyNumberOfRanks) {
  std::uint64_t content = 0;
  std::string order;
  for (const std::int64_t ranks : {1, 2, 4}) {
    std::uint64_t sum = 0;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      Loader loader(open_stream(), {.dp_rank = rank, .dp_size = ranks, .accumulation = 2, .prefetch_steps = 1});
      const LoadedStep first = loader.next().value();
      const LoadedStep second = loader.next().value();
      EXPECT_EQ(second.step, 1);
      EXPECT_EQ(second.tokens_drawn, 16 * 64);
      if (ranks == 1) {
        EXPECT_EQ(second.micro_batches[1][3].tokens, make_task("copy")->build(Split::train, 15).row.tokens);
        EXPECT_NE(first.order_digest, second.order_digest);
      }
      if (order.empty()) order = second.order_digest;
      EXPECT_EQ(second.order_digest, order);
      sum += second.content_digest;
    }
    if (ranks == 1) content = sum;
    EXPECT_EQ(sum, content);
  }
}

TEST(TaskStream, GoesOnWhereItsStateSays) {
  const auto whole = open_stream();
  for (int step = 0; step < 5; ++step) whole->next();
  const auto resumed = open_stream();
  EXPECT_TRUE(resumed->restore(whole->state()).empty());
  EXPECT_EQ(resumed->tokens_drawn(), whole->tokens_drawn());
  const StepPlan a = whole->next().value();
  const StepPlan b = resumed->next().value();
  EXPECT_EQ(a.step, 5);
  EXPECT_EQ(b.step, 5);
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.order_digest, b.order_digest);
  EXPECT_EQ(a.rows.front().index, 40);
}

TEST(TaskStream, SkipsSteps) {
  TaskStreamOptions options = stream_options();
  options.skip_steps = {{1, 2}};
  const auto stream = open_stream(options);
  EXPECT_EQ(stream->next()->step, 0);
  const StepPlan plan = stream->next().value();
  EXPECT_EQ(plan.step, 3);
  EXPECT_EQ(plan.rows.front().index, 24);
}

TEST(TaskStream, RefusesTheStateOfAnother) {
  const std::string state = open_stream()->state();
  const auto error_of = [&](const TaskStreamOptions& options) -> std::string {
    try {
      open_stream(options)->restore(state);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  TaskStreamOptions other = stream_options();
  other.digest = "d2";
  EXPECT_EQ(error_of(other), "resuming data: the task's digest was d1 and is now d2");
  other = stream_options();
  other.rows_per_step = 4;
  EXPECT_THAT(error_of(other), HasSubstr("rows a step was 8 and is now 4"));
  EXPECT_THROW(open_stream()->restore("{}"), Error);
}

}  // namespace
}  // namespace weft
