// Round trips, resharding, retention: checkpoints as they are meant to work.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint_test_support.h"
#include "checkpoints/resume.h"
#include "checkpoints/shard_writer.h"
#include "data/storage/hdf5.h"
#include "data/storage/json.h"

namespace weft::checkpoint_tests {
namespace {

TEST(SaveLoad, RoundTripOfEveryKindAndType) {
  const TemporaryRun run;
  const TrainingState state(1);
  SingleProcess group;
  CheckpointState part = state.part(12000, 0, 1);
  part.metrics = {{"val_loss", 2.25}, {"bad", std::nan("")}};
  part.info = "{\"loss\":2.5}";
  const SaveResult result = save_checkpoint(run.path, part, group, small_options());
  ASSERT_TRUE(result.saved) << result.failure;
  EXPECT_EQ(result.directory, run.path / "checkpoints" / "step_0000012000");
  EXPECT_TRUE(result.notes.empty());
  EXPECT_EQ(read_small_file(run.path / "checkpoints" / "LATEST", 100), "step_0000012000\n");

  const CheckpointReader reader(result.directory);
  EXPECT_TRUE(state.equals(reader));
  EXPECT_EQ(reader.step(), 12000);
  EXPECT_EQ(reader.digest(), result.digest);
  EXPECT_EQ(reader.parameters(), state.parameters);
  EXPECT_EQ(require_int(reader.state(), "tokens", "state"), 12'000'000);
  EXPECT_EQ(double_from_bits(require_string(reader.state(), "lr", "state"), "lr"), 0.1);
  EXPECT_EQ(canonical(reader.mesh()), "{\"dp\":1}");
  EXPECT_EQ(canonical(reader.provenance()), "{\"recipe\":\"abc\"}");
  EXPECT_EQ(reader.manifest().metrics, (std::map<std::string, double>{{"val_loss", 2.25}}));
  EXPECT_NO_THROW(reader.verify_files());
  EXPECT_NO_THROW(reader.verify_blocks(0));
  EXPECT_TRUE(reader.has("m", "embed.weight"));
  EXPECT_FALSE(reader.has("ema", "embed.weight"));
  std::vector<std::byte> none;
  EXPECT_THROW(reader.read("ema", "embed.weight", 0, 0, none), Error);
}

TEST(SaveLoad, EveryInterval) {
  const TemporaryRun run;
  const TrainingState state(3);
  ThreadRanks ranks(3);
  ranks.run([&](CheckpointGroup& group) {
    ASSERT_TRUE(save_checkpoint(run.path, state.part(7, group.rank(), group.size()), group, small_options()).saved);
  });
  const CheckpointReader reader(run.path / "checkpoints" / "step_0000000007");
  const TrainingState::Array& array = state.arrays[0];  // 65 floats in slices of 21 and 22, blocks of 16
  for (std::int64_t begin = 0; begin <= 65; ++begin) {
    for (std::int64_t end = begin; end <= 65; ++end) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(end - begin) * 4);
      reader.read(array.kind, array.name, begin, end, bytes);
      ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(), array.bytes.begin() + begin * 4)) << begin << " " << end;
    }
  }
}

// Written by 1..4 ranks, read by 1..4 ranks.
TEST(SaveLoad, Resharding) {
  for (int writers = 1; writers <= 4; ++writers) {
    const TemporaryRun run;
    const TrainingState state(static_cast<unsigned>(writers));
    ThreadRanks ranks(writers);
    ranks.run([&](CheckpointGroup& group) {
      const SaveResult result =
          save_checkpoint(run.path, state.part(5, group.rank(), group.size()), group, small_options());
      EXPECT_TRUE(result.saved) << result.failure;
      EXPECT_EQ(result.digest.size(), 64u);
    });
    for (int readers = 1; readers <= 4; ++readers) {
      ThreadRanks reading(readers);
      reading.run([&](CheckpointGroup& group) {
        const auto loaded = choose_checkpoint(
            run.path, {}, group, [&](const CheckpointReader& reader) { EXPECT_TRUE(state.equals(reader, readers)); },
            [](const std::string& line) { ADD_FAILURE() << line; });
        ASSERT_TRUE(loaded);
        EXPECT_EQ(loaded->step, 5);
      });
    }
  }
}

TEST(SaveLoad, RankWithNothingToWrite) {
  const TemporaryRun run;
  const TrainingState state(1);
  ThreadRanks ranks(2);
  ranks.run([&](CheckpointGroup& group) {
    CheckpointState part = state.part(1, 0, 1);
    if (group.rank() == 0) part.slices.clear();
    const SaveResult result = save_checkpoint(run.path, part, group, small_options());
    EXPECT_TRUE(result.saved) << result.failure;
  });
  const CheckpointReader reader(run.path / "checkpoints" / "step_0000000001");
  EXPECT_EQ(reader.manifest().files.size(), 1u);
  EXPECT_TRUE(state.equals(reader));
}

TEST(SaveLoad, IncompleteStateIsNotCommitted) {
  const TemporaryRun run;
  const TrainingState state(1);
  SingleProcess group;
  CheckpointState part = state.part(1, 0, 1);
  part.slices.erase(part.slices.begin());
  const SaveResult result = save_checkpoint(run.path, part, group, small_options());
  EXPECT_FALSE(result.saved);
  EXPECT_NE(result.failure.find("master of embed.weight: 0 of 65 elements are stored"), std::string::npos)
      << result.failure;
  EXPECT_TRUE(list_checkpoints(run.path).empty());
  EXPECT_TRUE(list_debris(run.path).empty());

  CheckpointState twice = state.part(1, 0, 1);
  twice.slices.push_back(twice.slices[0]);
  EXPECT_FALSE(save_checkpoint(run.path, twice, group, small_options()).saved);
  CheckpointState decimal = state.part(1, 0, 1);
  decimal.state = "{\"loss\":0.5}";
  EXPECT_THROW(save_checkpoint(run.path, decimal, group, small_options()), Error);
}

TEST(SaveLoad, AnyHdf5ReaderFindsEverything) {
  const TemporaryRun run;
  ASSERT_TRUE(save(run.path, 4).saved);
  const CheckpointReader reader(run.path / "checkpoints" / "step_0000000004");
  const Hdf5Reader file(reader.directory() / "shard_00000.h5");
  EXPECT_EQ(file.text_attribute("/", "format"), "weft-checkpoint");
  EXPECT_EQ(file.int64_attribute("/", "step"), 4);
  EXPECT_EQ(file.dataset("/master/layers.0.wq/0", Hdf5Type::f32).bytes, 96u);
  EXPECT_EQ(file.dataset("/param/layers.0.norm_w/0", Hdf5Type::u16).bytes, 2u);
  EXPECT_EQ(file.text_attribute("/param/layers.0.norm_w/0", "dtype"), "bf16");
  EXPECT_EQ(file.int64s_attribute("/master/layers.0.wq/0", "global_shape"), (std::vector<std::int64_t>{4, 3, 2}));
  EXPECT_EQ(file.datasets().size(), reader.indices()[0].slices.size());
}

TEST(SaveLoad, ManySmallSlicesStayWithinTheSpaceAskedFor) {
  const TemporaryRun run;
  CheckpointState state;
  const std::vector<std::byte> bytes(8);
  for (int i = 0; i < 500; ++i) {
    const std::string name = fmt::format("layers.{}.{}", i, std::string(60, 'n'));
    state.parameters.push_back({name, Shape{2}, "decay", "adamw", {"master", "m", "v"}});
    for (const char* kind : {"master", "m", "v"}) state.slices.push_back({kind, name, Shape{2}, 0, DType::f32, bytes});
  }
  SingleProcess group;
  const SaveResult result = save_checkpoint(run.path, state, group, small_options());
  ASSERT_TRUE(result.saved) << result.failure;
  EXPECT_LT(result.bytes + fs::file_size(result.directory / "shard_00000.idx.json"), shard_bytes_bound(state.slices));
}

// What was written before there were attachments has to be read, and is written as it was.
TEST(SaveLoad, WithoutAttachmentsTheFormatIsTheOldOne) {
  const TemporaryRun run;
  TrainingState state(3);
  state.attachments.clear();
  SingleProcess group;
  const SaveResult result = save_checkpoint(run.path, state.part(1, 0, 1), group, small_options());
  ASSERT_TRUE(result.saved) << result.failure;
  const std::string text = read_small_file(result.directory / "manifest.json", 1 << 20);
  EXPECT_EQ(text.find("attachments"), std::string::npos);
  EXPECT_NE(text.find(R"("version":{"major":1,"minor":0})"), std::string::npos);
  const CheckpointReader reader(result.directory);
  EXPECT_TRUE(reader.attachments().empty());
  EXPECT_TRUE(state.equals(reader));
  EXPECT_THROW(reader.read_attachment("notes.json"), Error);
}

TEST(SaveLoad, AttachmentsHaveNamesOfTheirOwn) {
  for (const char* name : {"manifest.json", "PINNED", "shard_00000.h5", "../escape", "a/b", ".hidden", ""}) {
    const TemporaryRun run;
    TrainingState state(3);
    state.attachments = {{name, "x"}};
    SingleProcess group;
    EXPECT_THROW(save_checkpoint(run.path, state.part(1, 0, 1), group, small_options()), Error) << name;
  }
}

TEST(SaveLoad, SameStepAgain) {
  const TemporaryRun run;
  ASSERT_TRUE(save(run.path, 10).saved);
  const fs::path directory = run.path / "checkpoints" / "step_0000000010";
  const std::string first = read_manifest(directory).digest;

  // The same state: the first stays.
  const SaveResult same = save(run.path, 10);
  EXPECT_TRUE(same.saved);
  EXPECT_EQ(same.digest, first);
  ASSERT_EQ(same.notes.size(), 1u);
  EXPECT_EQ(same.notes[0], directory.string() + " held the same state already");

  // Another state: it replaces the first, the mark that protects it stays.
  write_file_atomically(directory / "PINNED", std::string_view());
  const TrainingState other(99);
  SingleProcess group;
  const SaveResult replaced = save_checkpoint(run.path, other.part(10, 0, 1), group, small_options());
  EXPECT_TRUE(replaced.saved) << replaced.failure;
  EXPECT_NE(replaced.digest, first);
  EXPECT_TRUE(fs::exists(directory / "PINNED"));
  EXPECT_TRUE(other.equals(CheckpointReader(directory)));

  // A damaged one is replaced, with a note.
  write_file_atomically(directory / "manifest.json", std::string_view("{}"));
  const SaveResult repaired = save(run.path, 10);
  EXPECT_TRUE(repaired.saved) << repaired.failure;
  ASSERT_EQ(repaired.notes.size(), 1u);
  EXPECT_TRUE(repaired.notes[0].starts_with("replaced the damaged " + directory.string() + ": "));
  EXPECT_TRUE(TrainingState(10).equals(CheckpointReader(directory)));
  EXPECT_TRUE(list_debris(run.path).empty());
}

std::vector<std::int64_t> kept(std::vector<RetentionEntry> entries, const RetentionPolicy& policy) {
  std::vector<std::int64_t> steps;
  const std::vector<RetentionEntry> victims = retention_victims(entries, policy);
  for (const RetentionEntry& entry : entries) {
    const auto is_victim = [&](const RetentionEntry& victim) { return victim.step == entry.step; };
    if (std::none_of(victims.begin(), victims.end(), is_victim)) steps.push_back(entry.step);
  }
  return steps;
}

TEST(Retention, PolicyTable) {
  const auto entry = [](std::int64_t step, double loss = -1, bool pinned = false) {
    return RetentionEntry{
        "", step, pinned,
        loss < 0 ? std::map<std::string, double>{} : std::map<std::string, double>{{"val_loss", loss}}};
  };
  using Steps = std::vector<std::int64_t>;
  const std::vector<RetentionEntry> plain{entry(0), entry(100), entry(200), entry(300), entry(400)};
  EXPECT_EQ(kept(plain, {1, 0, 0, "val_loss"}), (Steps{400}));
  EXPECT_EQ(kept(plain, {3, 0, 1, "val_loss"}), (Steps{200, 300, 400}));
  EXPECT_EQ(kept(plain, {9, 0, 1, "val_loss"}), (Steps{0, 100, 200, 300, 400}));
  EXPECT_EQ(kept(plain, {1, 200, 0, "val_loss"}), (Steps{0, 200, 400}));
  const std::vector<RetentionEntry> rated{entry(0, 5),   entry(100, 1), entry(200, 0.5, true),
                                          entry(300, 1), entry(400, 2), entry(500)};
  EXPECT_EQ(kept(rated, {1, 0, 1, "val_loss"}), (Steps{200, 500}));
  // Of two equal values the later one.
  EXPECT_EQ(kept(rated, {1, 0, 2, "val_loss"}), (Steps{200, 300, 500}));
  EXPECT_EQ(kept(rated, {1, 0, 2, "other"}), (Steps{200, 500}));
  EXPECT_EQ(kept({}, {1, 0, 2, "other"}), (Steps{}));
  // Order of listing does not matter.
  EXPECT_EQ(kept({entry(300), entry(100), entry(200)}, {1, 0, 0, ""}), (Steps{300}));
}

TEST(Retention, DeletesAfterTheSaveAndSparesPinned) {
  const TemporaryRun run;
  SaveOptions options = small_options();
  options.retention = {2, 0, 0, ""};
  for (const int step : {1, 2, 3, 4}) {
    ASSERT_TRUE(save(run.path, step, options).saved);
    if (step == 1) write_file_atomically(run.path / "checkpoints" / "step_0000000001" / "PINNED", std::string_view());
  }
  std::vector<std::int64_t> steps;
  for (const CheckpointEntry& entry : list_checkpoints(run.path)) steps.push_back(entry.step);
  EXPECT_EQ(steps, (std::vector<std::int64_t>{4, 3, 1}));
  EXPECT_TRUE(list_debris(run.path).empty());
}

TEST(Retention, DamagedCheckpointsTakeNobodysPlace) {
  const TemporaryRun run;
  SaveOptions options = small_options();
  options.retention = {2, 0, 0, ""};
  ASSERT_TRUE(save(run.path, 1, options).saved);
  ASSERT_TRUE(save(run.path, 2, options).saved);
  fs::remove(run.path / "checkpoints" / "step_0000000002" / "manifest.json");
  ASSERT_TRUE(save(run.path, 3, options).saved);
  EXPECT_EQ(list_checkpoints(run.path).size(), 3u);
}

TEST(Resume, Modes) {
  const TemporaryRun run;
  SingleProcess group;
  std::vector<std::string> lines;
  std::int64_t loaded_step = -1;
  const auto load = [&](const CheckpointReader& reader) { loaded_step = reader.step(); };
  const auto log = [&](const std::string& line) { lines.push_back(line); };
  EXPECT_FALSE(choose_checkpoint(run.path, {}, group, load, log));
  ASSERT_TRUE(save(run.path, 1).saved);
  ASSERT_TRUE(save(run.path, 2).saved);
  EXPECT_EQ(choose_checkpoint(run.path, {}, group, load, log)->step, 2);
  EXPECT_EQ(loaded_step, 2);
  EXPECT_FALSE(choose_checkpoint(run.path, {ResumeRequest::Mode::never, {}, {}}, group, load, log));
  const fs::path first = run.path / "checkpoints" / "step_0000000001";
  EXPECT_EQ(
      choose_checkpoint(run.path, {ResumeRequest::Mode::exactly, first, ResumeRequest::Verify::files}, group, load, log)
          ->step,
      1);
  EXPECT_TRUE(lines.empty());

  // What the caller finds wrong with the contents is not a reason to look for older ones.
  const auto incompatible = [](const CheckpointReader&) { config_error("another architecture"); };
  try {
    choose_checkpoint(run.path, {}, group, incompatible, log);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_STREQ(error.what(), "another architecture");
  }
  EXPECT_TRUE(lines.empty());
}

// One rank cannot read: all go back to the older checkpoint, together.
TEST(Resume, RanksAgree) {
  const TemporaryRun run;
  ASSERT_TRUE(save(run.path, 1).saved);
  ASSERT_TRUE(save(run.path, 2).saved);
  ThreadRanks ranks(3);
  std::vector<std::string> lines;
  ranks.run([&](CheckpointGroup& group) {
    const auto loaded = choose_checkpoint(
        run.path, {}, group,
        [&](const CheckpointReader& reader) {
          if (group.rank() == 1 && reader.step() == 2) storage_error("I/O error");
        },
        [&](const std::string& line) { lines.push_back(line); });
    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->step, 1);
  });
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0],
            "rejected checkpoint " + (run.path / "checkpoints/step_0000000002").string() + ": rank 1: I/O error");
  // An error of another code ends the search on every rank.
  ranks.run([&](CheckpointGroup& group) {
    try {
      choose_checkpoint(
          run.path, {}, group,
          [&](const CheckpointReader&) {
            if (group.rank() == 1) storage_error("I/O error");
            if (group.rank() == 2) config_error("another architecture");
          },
          [](const std::string&) {});
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
    }
  });
}

TEST(Resume, ParameterDifferences) {
  const ParameterRecord a{"a", Shape{2}, "", "", {}}, a3{"a", Shape{3}, "", "", {}}, b{"b", Shape{1}, "", "", {}},
      c{"c", Shape{1, 2}, "", "", {}};
  EXPECT_TRUE(parameter_differences({a, b}, {b, a}).empty());
  EXPECT_EQ(
      parameter_differences({a, b}, {a3, c}),
      (std::vector<std::string>{"a: the model has shape [3], the checkpoint [2]",
                                "c [1, 2]: the checkpoint does not have it", "b [1]: the model does not have it"}));
}

TEST(State, BitsOfNumbers) {
  for (const double x : {0.0, -0.0, 0.1, 1e300, -5e-324, std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(std::bit_cast<std::uint64_t>(double_from_bits(to_bits(x), "x")), std::bit_cast<std::uint64_t>(x));
  }
  EXPECT_EQ(to_bits(1.0), "0x3ff0000000000000");
  EXPECT_EQ(to_bits(1.0f), "0x3f800000");
  EXPECT_EQ(float_from_bits("0x3f800000", "x"), 1.0f);
  for (const char* text : {"", "0x", "3f800000", "0x3f80000", "0x3f8000000", "0x3f80000g", "0x-1800000"}) {
    EXPECT_THROW(float_from_bits(text, "x"), Error) << text;
  }
}

}  // namespace
}  // namespace weft::checkpoint_tests
