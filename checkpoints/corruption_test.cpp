// Damaged, incomplete and hostile checkpoints: found, named, never loaded, never a crash.
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "autograd/philox.h"
#include "checkpoints/checkpoint_test_support.h"
#include "checkpoints/fsck.h"
#include "checkpoints/inspect.h"
#include "checkpoints/resume.h"
#include "data/storage/hdf5_library.h"
#include "data/storage/json.h"
#include "data/storage/sha256.h"

namespace weft::checkpoint_tests {
namespace {

using nlohmann::json;

// Steps 1 and 2 are good; tests damage step 2.
class CorruptionTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(save(run.path, 1).saved);
    ASSERT_TRUE(save(run.path, 2).saved);
  }

  struct Choice {
    std::int64_t step = -1;
    std::vector<std::string> lines;
  };
  // What a restart loads, reading everything.
  Choice choose() const {
    Choice choice;
    SingleProcess group;
    choose_checkpoint(
        run.path, {}, group,
        [&](const CheckpointReader& reader) {
          // Damage shows as an error; values that load are the right ones.
          EXPECT_TRUE(TrainingState(static_cast<unsigned>(reader.step())).equals(reader));
          choice.step = reader.step();
        },
        [&](const std::string& line) { choice.lines.push_back(line); });
    return choice;
  }
  // Expects that step 2 is rejected loudly and step 1 taken; returns the reason.
  std::string reason() const {
    const Choice choice = choose();
    EXPECT_EQ(choice.step, 1);
    EXPECT_EQ(choice.lines.size(), 1u);
    const std::string prefix = "rejected checkpoint " + newest.string() + ": ";
    if (choice.lines.empty() || !choice.lines[0].starts_with(prefix)) return "not rejected";
    return choice.lines[0].substr(prefix.size());
  }
  std::string content(std::string_view name) const { return read_small_file(newest / name, 1 << 24); }
  void replace(std::string_view name, std::string_view text) const { write_file_atomically(newest / name, text); }

  // Changes the manifest and makes its digest right again.
  void edit_manifest(const std::function<void(json&)>& edit) const {
    json root = json::parse(content("manifest.json"));
    edit(root);
    root.erase("digest");
    root["digest"] = hex(sha256(canonical(root)));
    replace("manifest.json", canonical(root));
  }
  void accept_digests() const {
    edit_manifest([&](json& root) {
      root["files"][0]["bytes"] = fs::file_size(shard);
      root["files"][0]["sha256"] = hex(sha256_file(shard));
      root["files"][0]["index_sha256"] = hex(sha256_file(newest / "shard_00000.idx.json"));
    });
  }
  void edit_index(const std::function<void(json&)>& edit) const {
    json root = json::parse(content("shard_00000.idx.json"));
    edit(root);
    replace("shard_00000.idx.json", canonical(root));
    accept_digests();
  }
  std::vector<std::string> fsck_lines(bool expected) const {
    std::vector<std::string> lines;
    EXPECT_EQ(fsck(run.path, [&](const std::string& line) { lines.push_back(line); }), expected);
    return lines;
  }

  TemporaryRun run;
  fs::path newest = run.path / "checkpoints" / "step_0000000002";
  fs::path shard = newest / "shard_00000.h5";
};

TEST_F(CorruptionTest, EveryByteOfManifestAndIndex) {
  for (const char* name : {"manifest.json", "shard_00000.idx.json"}) {
    const std::string good = content(name);
    for (std::size_t i = 0; i < good.size(); ++i) {
      for (const char mask : {'\x20', '\x01', '\xff'}) {
        std::string bad = good;
        bad[i] = static_cast<char>(bad[i] ^ mask);
        std::ofstream(newest / name, std::ios::binary) << bad;
        // Opening alone must refuse it.
        try {
          const CheckpointReader reader(newest);
          ADD_FAILURE() << name << " byte " << i << " mask " << int{mask};
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ExitCode::storage);
          EXPECT_NE(std::string(error.what()).find(name), std::string::npos);
        }
      }
    }
    EXPECT_NE(reason(), "");
    replace(name, good);
  }
  EXPECT_EQ(choose().step, 2);
}

TEST_F(CorruptionTest, EveryByteOfTheData) {
  const std::string good = content("shard_00000.h5");
  std::vector<bool> is_data(good.size());
  {
    const CheckpointReader reader(newest);
    for (const SliceRecord& slice : reader.indices()[0].slices) {
      std::fill_n(is_data.begin() + static_cast<std::ptrdiff_t>(slice.byte_offset), slice.byte_length(), true);
    }
  }
  int damaged = 0;
  for (std::size_t i = 0; i < good.size(); i += is_data[i] ? 13 : 101) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    std::ofstream(shard, std::ios::binary) << bad;
    if (is_data[i]) {
      ++damaged;
      EXPECT_NE(reason().find("damaged: block "), std::string::npos) << i;
    } else {
      // Loading never looks there, but the digest of the file does.
      EXPECT_EQ(choose().step, 2);
      EXPECT_TRUE(fsck_lines(false)[0].ends_with("damaged: its SHA-256 is not that of the manifest"));
    }
  }
  EXPECT_GT(damaged, 100);
}

TEST_F(CorruptionTest, Attachments) {
  const std::string path = (newest / "notes.json").string();
  const std::string good = content("notes.json");
  replace("notes.json", "{\"seed\":3}");
  EXPECT_EQ(reason(), path + ": damaged: its SHA-256 is not that of the manifest");
  EXPECT_NE(fsck_lines(false)[0].find(path + ": damaged"), std::string::npos);
  replace("notes.json", good + " ");
  EXPECT_EQ(reason(), fmt::format("{}: {} bytes, its manifest says {}", path, good.size() + 1, good.size()));
  fs::remove(path);
  EXPECT_EQ(reason(), "cannot open " + path + ": No such file or directory");
  replace("notes.json", good);
  EXPECT_EQ(choose().step, 2);

  // Names that would lead elsewhere, or to other files of the checkpoint.
  const std::string source = (newest / "manifest.json").string() + ", attachments[0]: key \"name\": ";
  const auto named = [&](const char* name) {
    edit_manifest([&](json& root) { root["attachments"][0]["name"] = name; });
    return reason();
  };
  EXPECT_EQ(named("../notes.json"), source + "not a bare file name");
  EXPECT_EQ(named("manifest.json"), source + "manifest.json is no attachment's name");
  EXPECT_EQ(named("shard_00000.h5"), source + "shard_00000.h5 is named twice");
  edit_manifest([&](json& root) {
    root["attachments"][0]["name"] = "notes.json";
    root["attachments"][0]["bytes"] = std::int64_t{1} << 40;
  });
  EXPECT_NE(reason().find("attachments[0]: key \"bytes\""), std::string::npos);
}

TEST_F(CorruptionTest, DataIsTrustedOnlyWhenAsked) {
  std::string bytes = content("shard_00000.h5");
  const std::uint64_t at = CheckpointReader(newest).indices()[0].slices[0].byte_offset;
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  std::ofstream(shard, std::ios::binary) << bytes;
  EXPECT_EQ(choose().step, 1);
  SingleProcess group;
  bool right = true;
  const auto load = [&](const CheckpointReader& reader) {
    right = TrainingState(static_cast<unsigned>(reader.step())).equals(reader);
  };
  ResumeRequest request;
  request.verify = ResumeRequest::Verify::nothing;
  EXPECT_EQ(choose_checkpoint(run.path, request, group, load, {})->step, 2);
  EXPECT_FALSE(right) << "the damage goes unseen";
}

TEST_F(CorruptionTest, TruncatedAndExtendedFiles) {
  for (const char* name : {"manifest.json", "shard_00000.idx.json", "shard_00000.h5"}) {
    const std::string good = content(name);
    for (std::size_t length = 0; length < good.size(); length += 1 + good.size() / 23) {
      replace(name, std::string_view(good).substr(0, length));
      EXPECT_NE(reason(), "") << name << " " << length;
    }
    replace(name, good + "\n");
    EXPECT_NE(reason(), "") << name;
    replace(name, good);
  }
  EXPECT_EQ(choose().step, 2);
}

TEST_F(CorruptionTest, MissingFiles) {
  for (const char* name : {"manifest.json", "shard_00000.idx.json", "shard_00000.h5"}) {
    fs::rename(newest / name, run.path / "aside");
    EXPECT_EQ(reason(), "cannot open " + (newest / name).string() + ": No such file or directory");
    fs::create_directory(newest / name);
    EXPECT_EQ(reason(), "cannot read " + (newest / name).string() + ": it is not a regular file");
    fs::remove(newest / name);
    fs::rename(run.path / "aside", newest / name);
  }
}

TEST_F(CorruptionTest, ForeignFiles) {
  replace("manifest.json", "{\"format\":\"weft-tokens\"}");
  EXPECT_EQ(reason(), (newest / "manifest.json").string() + ": not the manifest of a checkpoint");
  replace("manifest.json", "[]");
  EXPECT_EQ(reason(), (newest / "manifest.json").string() + ": not the manifest of a checkpoint");
  // A good manifest in the wrong directory.
  const fs::path other = run.path / "checkpoints" / "step_0000000001";
  fs::copy_file(other / "manifest.json", newest / "manifest.json", fs::copy_options::overwrite_existing);
  EXPECT_EQ(reason(), newest.string() + ": its manifest is that of step 1");
  // Whatever else lies in the folder is nobody's business.
  write_file_atomically(run.path / "checkpoints" / "notes.txt", std::string_view("mine"));
  fs::create_directory(run.path / "checkpoints" / "step_12");
  fs::create_directory(run.path / "checkpoints" / "my.tmp-1");
  EXPECT_TRUE(clean_debris(run.path).empty());
  EXPECT_EQ(choose().step, 1);
}

TEST_F(CorruptionTest, AllInvalidIsAnErrorNotAFreshStart) {
  for (const CheckpointEntry& entry : list_checkpoints(run.path)) fs::remove(entry.directory / "manifest.json");
  SingleProcess group;
  std::vector<std::string> lines;
  const auto log = [&](const std::string& line) { lines.push_back(line); };
  try {
    choose_checkpoint(
        run.path, {}, group, [](const CheckpointReader&) {}, log);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::storage);
    EXPECT_EQ(std::string(error.what()), "no valid checkpoint among the 2 in " + (run.path / "checkpoints").string() +
                                             "; repair them, or move them away to start from scratch");
  }
  EXPECT_EQ(lines.size(), 2u);
  EXPECT_FALSE(choose_checkpoint(run.path, {ResumeRequest::Mode::never, {}, {}}, group, {}, log));
}

TEST_F(CorruptionTest, RequestedCheckpointHasNoSubstitute) {
  fs::remove(newest / "shard_00000.h5");
  SingleProcess group;
  try {
    choose_checkpoint(run.path, {ResumeRequest::Mode::exactly, newest, {}}, group, [](const CheckpointReader&) {}, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::storage);
    EXPECT_EQ(std::string(error.what()), "cannot load checkpoint " + newest.string() + ": cannot open " +
                                             shard.string() + ": No such file or directory");
  }
}

// A manifest whose digest is right but whose content is not to be believed.
TEST_F(CorruptionTest, HostileManifest) {
  const std::string good = content("manifest.json");
  const std::string source = (newest / "manifest.json").string();
  const auto refused = [&](const std::function<void(json&)>& edit) {
    edit_manifest(edit);
    std::string text = reason();
    replace("manifest.json", good);
    return text.starts_with(source) ? text.substr(source.size()) : text;
  };
  EXPECT_EQ(refused([](json& m) { m["version"]["major"] = 2; }), ": checkpoint version 2, this weft reads version 1");
  EXPECT_EQ(refused([](json& m) { m["more"] = 1; }), ": unknown key \"more\"");
  EXPECT_EQ(refused([](json& m) { m.erase("step"); }), ": key \"step\" is missing");
  EXPECT_EQ(refused([](json& m) { m["step"] = -1; }), ": key \"step\": -1 is outside [0, 9999999999]");
  EXPECT_EQ(refused([](json& m) { m["state"] = 3; }), ": key \"state\": expected an object, found number");
  EXPECT_EQ(refused([](json& m) { m["files"][0]["name"] = "../shard_00000.h5"; }),
            ", files[0]: key \"name\": not a bare file name");
  EXPECT_EQ(refused([](json& m) { m["files"][0]["name"] = "/etc/passwd"; }),
            ", files[0]: key \"name\": not a bare file name");
  EXPECT_EQ(refused([](json& m) { m["files"][0]["name"] = ".."; }), ", files[0]: key \"name\": not a bare file name");
  EXPECT_EQ(refused([](json& m) { m["files"].push_back(m["files"][0]); }),
            ", files[1]: key \"name\": shard_00000.h5 is named twice");
  EXPECT_EQ(refused([](json& m) { m["files"][0]["sha256"] = "xyz"; }),
            ", files[0]: key \"sha256\": expected 64 hexadecimal digits");
  EXPECT_EQ(refused([](json& m) {
              m["parameters"][0]["shape"] = {1ll << 40, 1ll << 40};
            }),
            ", parameters[0]: a shape has more than 2^56 elements");
  EXPECT_EQ(refused([](json& m) {
              m["parameters"][0]["shape"] = {0, 1ll << 62, 1ll << 62};
            }),
            ", parameters[0]: a shape has more than 2^56 elements");
  EXPECT_EQ(refused([](json& m) { m["parameters"][0]["shape"] = {-1}; }), ", parameters[0]: a shape has the extent -1");
  EXPECT_EQ(refused([](json& m) { m["parameters"][0]["shape"] = {1, 1, 1, 1, 1, 1}; }),
            ", parameters[0]: a shape of 6 extents, at most 5 are allowed");
  EXPECT_EQ(refused([](json& m) { m["parameters"][0]["name"] = "a/b"; }),
            ", parameters[0]: key \"name\": not a parameter name");
  EXPECT_EQ(refused([](json& m) { m["parameters"][0]["store"] = {"gradient"}; }),
            ", parameters[0]: key \"store\" holds \"gradient\"");
  EXPECT_EQ(refused([](json& m) { m["parameters"].push_back(m["parameters"][0]); }),
            ", parameters[7]: embed.weight is named twice");
  EXPECT_EQ(refused([](json& m) {
              m["parameters"][0]["shape"] = {13, 6};
            }),
            (newest / "shard_00000.idx.json").string() +
                ": /master/embed.weight/0 has shape [13, 5], the manifest says [13, 6]");
  EXPECT_EQ(refused([](json& m) { m["parameters"][0]["store"].push_back("ema"); }),
            newest.string() + ": ema of embed.weight: 0 of 65 elements are stored");
  EXPECT_EQ(refused([](json& m) { m["files"] = json::array(); }),
            newest.string() + ": buffer of counts: 0 of 7 elements are stored");
  // Keys for private use are let through.
  edit_manifest([](json& m) { m["x_note"] = "hello"; });
  EXPECT_EQ(choose().step, 2);
}

TEST_F(CorruptionTest, HostileIndex) {
  const std::string good = content("shard_00000.idx.json");
  const std::string source = (newest / "shard_00000.idx.json").string();
  const auto refused = [&](const std::function<void(json&)>& edit) {
    edit_index(edit);
    std::string text = reason();
    replace("shard_00000.idx.json", good);
    return text.starts_with(source) ? text.substr(source.size()) : text;
  };
  const std::uint64_t bytes = fs::file_size(shard);
  EXPECT_EQ(refused([](json& i) { i["format"] = "other"; }), ": not a checkpoint index");
  EXPECT_EQ(refused([](json& i) { i["version"]["major"] = 9; }), ": index version 9, this weft reads version 1");
  EXPECT_EQ(refused([](json& i) { i["step"] = 1; }),
            ": it belongs to another checkpoint (step 1, nonce " + json::parse(good)["nonce"].get<std::string>() + ")");
  EXPECT_EQ(refused([](json& i) { i["crc_block_bytes"] = 1ll << 40; }),
            ": key \"crc_block_bytes\": 1099511627776 is outside [8, 67108864]");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["more"] = 1; }), ", slices[0]: unknown key \"more\"");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["kind"] = "grad"; }), ", slices[0]: unknown kind \"grad\"");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["dtype"] = "f16"; }), ", slices[0]: unknown element type \"f16\"");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["length"] = 66; }),
            ", slices[0]: key \"length\": 66 is outside [1, 65]");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["length"] = 0; }),
            ", slices[0]: key \"length\": 0 is outside [1, 65]");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["flat_offset"] = 1; }),
            ", slices[0]: key \"length\": 65 is outside [1, 64]");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["byte_offset"] = std::numeric_limits<std::int64_t>::max(); }),
            ", slices[0]: 260 bytes at offset 9223372036854775807 lie outside the shard of " + std::to_string(bytes) +
                " bytes");
  EXPECT_EQ(refused([&](json& i) { i["slices"][0]["byte_offset"] = bytes - 259; }),
            ", slices[0]: 260 bytes at offset " + std::to_string(bytes - 259) + " lie outside the shard of " +
                std::to_string(bytes) + " bytes");
  EXPECT_EQ(refused([](json& i) {
              i["slices"][0]["global_shape"] = {1ll << 50};
              i["slices"][0]["length"] = 1ll << 50;
            }),
            ", slices[0]: 4503599627370496 bytes at offset " + json::parse(good)["slices"][0]["byte_offset"].dump() +
                " lie outside the shard of " + std::to_string(bytes) + " bytes");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["crc32c"].push_back(1); }), ", slices[0]: 6 checksums for 5 blocks");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["crc32c"][0] = -1; }), ", slices[0]: key \"crc32c\" holds -1");
  EXPECT_EQ(refused([](json& i) { i["slices"][0]["name"] = "stranger"; }),
            ": /master/stranger/0 is not in the manifest");
  EXPECT_EQ(refused([](json& i) { i["slices"].erase(0); }),
            newest.string() + ": master of embed.weight: 0 of 65 elements are stored");
  EXPECT_EQ(refused([](json& i) { i["slices"].push_back(i["slices"][0]); }),
            newest.string() + ": master of embed.weight: elements [0, 65) are stored twice");
  EXPECT_EQ(refused([](json& i) {
              i["slices"][0]["length"] = 16;
              i["slices"][0]["crc32c"] = json::array({i["slices"][0]["crc32c"][0]});
            }),
            newest.string() + ": master of embed.weight: 16 of 65 elements are stored");
}

// Random damage that keeps the digests right reaches the parsers; they refuse or accept, nothing else.
TEST_F(CorruptionTest, ParsersSurviveRandomEdits) {
  const std::string manifest = content("manifest.json"), index = content("shard_00000.idx.json");
  RandomWords words(1, RandomStream::test, 0);
  int refused = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string text = i % 2 == 0 ? manifest : index;
    for (std::uint64_t edits = 1 + words.below(3); edits > 0; --edits) {
      const std::size_t at = words.below(text.size());
      const std::size_t n = words.below(12);
      switch (words.below(4)) {
        case 0:
          text[at] = static_cast<char>(words.below(256));
          break;
        case 1:
          text.erase(at, n);
          break;
        case 2:
          text.insert(at, text.substr(words.below(text.size()), n));
          break;
        default:
          text.insert(at, std::string(n, "[{\"9-e.,:\x80"[words.below(10)]));
      }
    }
    try {
      if (i % 2 == 0) {
        parse_manifest(text, "m");
      } else {
        parse_index(text, "i", 1 << 16);
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::storage) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 3000);
}

TEST_F(CorruptionTest, FsckSaysWhichAreGood) {
  const fs::path older = run.path / "checkpoints" / "step_0000000001";
  const std::string size =
      std::to_string(fs::file_size(older / "shard_00000.h5") + fs::file_size(older / "notes.json"));
  std::vector<std::string> lines = fsck_lines(true);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1], "ok   " + older.string() + ": step 1, 7 parameters, 1 shard, " + size + " bytes");
  // One checkpoint, and the checkpoints folder with a slash.
  EXPECT_TRUE(fsck(older, [](const std::string&) {}));
  EXPECT_TRUE(fsck(fs::path(run.path / "checkpoints" / ""), [](const std::string&) {}));

  fs::create_directory(run.path / "checkpoints" / "step_0000000003.tmp-ab");
  fs::remove(shard);
  lines = fsck_lines(false);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0], "BAD  " + newest.string() + ": cannot open " + shard.string() + ": No such file or directory");
  EXPECT_TRUE(lines[1].starts_with("ok   "));
  EXPECT_NE(lines[2].find("step_0000000003.tmp-ab: left by an interrupted save"), std::string::npos);
  EXPECT_FALSE(fsck(newest, [](const std::string&) {}));

  const TemporaryRun empty;
  EXPECT_THROW(fsck(empty.path, [](const std::string&) {}), Error);
  fs::create_directory(empty.path / "checkpoints");
  EXPECT_FALSE(fsck(empty.path, [](const std::string&) {}));
}

// The library finds what index and digests cannot show: the HDF5 side of a shard was made by somebody else.
TEST_F(CorruptionTest, FsckRefusesHostileHdf5) {
  const std::string good = content("shard_00000.h5"), manifest = content("manifest.json");
  const auto refused = [&](const std::function<void(hid_t)>& edit) {
    {
      const auto lock = hdf5::lock_library();
      const hdf5::Id file(H5Fopen(shard.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
      edit(file.get());
    }
    accept_digests();
    // Loading does not depend on the library, so it is not impressed.
    EXPECT_EQ(choose().step, 2);
    std::string line = fsck_lines(false)[0];
    replace("shard_00000.h5", good);
    replace("manifest.json", manifest);
    const std::string prefix = "BAD  " + newest.string() + ": " + shard.string() + ": ";
    return line.starts_with(prefix) ? line.substr(prefix.size()) : line;
  };
  EXPECT_EQ(refused([](hid_t f) { H5Lcreate_soft("/nowhere", f, "s", H5P_DEFAULT, H5P_DEFAULT); }),
            "object /s: only hard links are allowed");
  EXPECT_EQ(refused([](hid_t f) { H5Lcreate_external("/etc/passwd", "/", f, "e", H5P_DEFAULT, H5P_DEFAULT); }),
            "object /e: only hard links are allowed");
  EXPECT_EQ(refused([](hid_t f) { H5Lcreate_hard(f, "/", f, "cycle", H5P_DEFAULT, H5P_DEFAULT); }),
            "object /cycle: it is linked more than once");
  const auto add_dataset = [](hid_t f, const hdf5::Id& creation, hsize_t extent, hid_t type) {
    const hdf5::Id space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
    const hdf5::Id dataset(H5Dcreate2(f, "extra", type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
                           H5Dclose);
    EXPECT_TRUE(dataset.valid());
  };
  const auto properties = [] { return hdf5::Id(H5Pcreate(H5P_DATASET_CREATE), H5Pclose); };
  EXPECT_EQ(refused([&](hid_t f) {
              const hdf5::Id p = properties();
              const hsize_t n = 4;
              const hdf5::Id space(H5Screate_simple(1, &n, nullptr), H5Sclose);
              H5Pset_virtual(p.get(), space.get(), "/etc/passwd", "/d", space.get());
              add_dataset(f, p, 4, H5T_STD_U8LE);
            }),
            "object /extra: storage is not contiguous");
  EXPECT_EQ(refused([&](hid_t f) {
              const hdf5::Id p = properties();
              const hsize_t chunk = 4;
              H5Pset_chunk(p.get(), 1, &chunk);
              // An optional filter that no library knows.
              H5Pset_filter(p.get(), 32099, H5Z_FLAG_OPTIONAL, 0, nullptr);
              add_dataset(f, p, 4, H5T_STD_U8LE);
            }),
            "object /extra: storage is not contiguous");
  EXPECT_EQ(refused([&](hid_t f) { add_dataset(f, properties(), hsize_t{1} << 60, H5T_STD_U64LE); }).substr(0, 53),
            "object /extra: 9223372036854775808 bytes in a file of");
  EXPECT_EQ(refused([&](hid_t f) {
              const hdf5::Id p = properties();
              H5Pset_alloc_time(p.get(), H5D_ALLOC_TIME_EARLY);
              add_dataset(f, p, 4, H5T_STD_U8LE);
            }),
            "the number of datasets is 13 in the HDF5 file, 12 in the index");
  EXPECT_EQ(refused([](hid_t f) {
              const hdf5::Id slice(H5Dopen2(f, "/m/embed.weight/0", H5P_DEFAULT), H5Dclose);
              const hdf5::Id scalar(H5Screate(H5S_SCALAR), H5Sclose);
              H5Adelete(slice.get(), "crc32c");
              const hdf5::Id a(H5Acreate2(slice.get(), "crc32c", H5T_STD_U32LE, scalar.get(), H5P_DEFAULT, H5P_DEFAULT),
                               H5Aclose);
              const std::uint32_t wrong = 1;
              EXPECT_GE(H5Awrite(a.get(), H5T_STD_U32LE, &wrong), 0);
            }).substr(0, 34),
            "/m/embed.weight/0: crc32c is 1 in ");
  EXPECT_EQ(refused([](hid_t f) { H5Adelete(f, "format"); }), "object /: attribute format is missing");
  EXPECT_EQ(refused([](hid_t f) {
              H5Ldelete(f, "/m/embed.weight/0", H5P_DEFAULT);
              H5Lmove(f, "/v/embed.weight/0", f, "/m/embed.weight/0", H5P_DEFAULT, H5P_DEFAULT);
            }),
            "the number of datasets is 11 in the HDF5 file, 12 in the index");
  // A file that is no HDF5 at all but has the right digest.
  replace("shard_00000.h5", "\x89HDF\r\n\x1a\n" + good.substr(8, 8) + std::string(good.size() - 16, '\xff'));
  accept_digests();
  EXPECT_NE(fsck_lines(false)[0], "");
}

TEST_F(CorruptionTest, InspectDescribes) {
  const json checkpoint = inspect_checkpoint_json(newest);
  EXPECT_EQ(checkpoint["what"], "checkpoint");
  EXPECT_EQ(checkpoint["step"], 2);
  EXPECT_EQ(checkpoint["parameters"].size(), 7u);
  EXPECT_EQ(checkpoint["parameters"][0]["kinds"], (json{{"m", "f32"}, {"master", "f32"}, {"v", "f32"}}));
  EXPECT_EQ(checkpoint["bytes_by_kind"]["mom"], 96);
  EXPECT_EQ(checkpoint["state"]["tokens"], 2000);
  EXPECT_EQ(inspect_checkpoint_json(newest / "manifest.json"), checkpoint);
  EXPECT_EQ(checkpoint["attachments"][0]["name"], "notes.json");
  const std::string text = inspect_checkpoint_text(newest);
  EXPECT_NE(text.find("step 2\n"), std::string::npos) << text;
  EXPECT_NE(text.find("7 parameters, 1119 elements\n"), std::string::npos) << text;
  EXPECT_NE(text.find("layers.0.norm_w   [1]              adamw plain m:bf16 param:bf16 v:bf16\n"), std::string::npos)
      << text;
  EXPECT_NE(text.find("  tokens = 2000\n"), std::string::npos) << text;

  EXPECT_EQ(inspect_checkpoint_json(shard)["slices"].size(), 12u);
  EXPECT_NE(inspect_checkpoint_text(shard).find("/param/layers.0.norm_w/0"), std::string::npos);

  fs::remove(shard);
  const json described = inspect_checkpoint_json(run.path);
  ASSERT_EQ(described["checkpoints"].size(), 2u);
  EXPECT_TRUE(described["checkpoints"][0].contains("problem"));
  EXPECT_NE(inspect_checkpoint_text(run.path).find("step 2  BAD: cannot open"), std::string::npos);
  EXPECT_THROW(inspect_checkpoint_json(newest), Error);
  EXPECT_THROW(inspect_checkpoint_json(run.path / "nothing"), Error);
  EXPECT_EQ(classify_checkpoint_path(run.path / "nothing"), CheckpointPath::none);
}

}  // namespace
}  // namespace weft::checkpoint_tests
