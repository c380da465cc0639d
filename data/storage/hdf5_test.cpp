#include "data/storage/hdf5.h"

#include <cstring>
#include <fstream>
#include <gtest/gtest.h>

#include "data/storage/file.h"
#include "data/storage/hdf5_library.h"
#include "tests/support/small_filesystem.h"

#if defined(__SANITIZE_ADDRESS__)
// A damaged file makes the library ask for terabytes, and leak when it gives up; neither must end the test.
extern "C" __attribute__((weak)) const char* __asan_default_options() {
  return "allocator_may_return_null=1";
}
extern "C" __attribute__((weak)) const char* __lsan_default_suppressions() {
  return "leak:libhdf5\n";
}
#endif

namespace weft {
namespace {

namespace fs = std::filesystem;
using hdf5::Id;

class Hdf5Test : public testing::Test {
 protected:
  void SetUp() override {
    directory = fs::temp_directory_path() / ("weft-hdf5-" + random_nonce());
    fs::create_directory(directory);
    path = directory / "f.h5";
  }
  void TearDown() override { fs::remove_all(directory); }

  // What opening says of a file made by `make` with the bare library.
  template <class F>
  std::string refusal(F&& make) {
    fs::remove(path);
    {
      const auto lock = hdf5::lock_library();
      const Id file(H5Fcreate(path.c_str(), H5F_ACC_EXCL, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
      make(file.get());
    }
    return refusal();
  }
  std::string refusal() {
    try {
      Hdf5Reader reader(path);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::storage);
      std::string text = error.what();
      const std::string name = path.string() + ": ";
      return text.starts_with(name) ? text.substr(name.size()) : text;
    }
    return "accepted";
  }

  fs::path directory, path;
};

template <class T>
std::vector<T> read_all(const Hdf5Reader& reader, const std::string& object, Hdf5Type type) {
  std::vector<T> values(reader.dataset(object, type).bytes / sizeof(T));
  reader.read(object, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

TEST_F(Hdf5Test, RoundTrip) {
  std::vector<float> large(40'000);
  for (std::size_t i = 0; i < large.size(); ++i) large[i] = static_cast<float>(i) * 0.5f;
  const std::vector<std::uint16_t> small{1, 2, 65535};
  std::uint64_t offset = 0;
  {
    Hdf5Writer writer(path, 1 << 20);
    const std::uint64_t n = large.size(), three = 3, none = 0;
    writer.write_dataset("/param/layers.0.wq/0", Hdf5Type::f32, std::span(&n, 1), std::as_bytes(std::span(large)));
    writer.write_dataset("/param/b/0", Hdf5Type::u16, std::span(&three, 1), std::as_bytes(std::span(small)));
    writer.write_dataset("/param/empty/0", Hdf5Type::f64, std::span(&none, 1), {});
    const std::array<std::uint64_t, 2> dims{3, 1};
    writer.write_dataset("/two", Hdf5Type::u16, dims, std::as_bytes(std::span(small)));
    writer.create_dataset("/stream", Hdf5Type::u16, 6);
    writer.write_range("/stream", 3, std::as_bytes(std::span(small)));
    writer.write_range("/stream", 0, std::as_bytes(std::span(small)));
    const std::vector<std::string> texts{"a", "", "été", "12345678"};
    writer.write_texts("/texts", 8, texts);
    writer.set_attribute("/", "format", "weft-test");
    writer.set_attribute("/", "empty", "");
    writer.set_attribute("/", "version", std::uint32_t{7});
    writer.set_attribute("/", "step", std::int64_t{-1});
    writer.set_attribute("/", "tokens", ~std::uint64_t{0});
    const std::vector<std::int64_t> shape{200, 200};
    const std::vector<std::uint8_t> digest(32, 9);
    writer.set_attribute("/param/layers.0.wq/0", "global_shape", shape);
    writer.set_attribute("/", "digest", digest);
    offset = writer.dataset_offset("/param/layers.0.wq/0");
    EXPECT_EQ(offset % 4096, 0u);
    EXPECT_EQ(writer.dataset_offset("/param/empty/0"), 0u);
    writer.close();
  }
  // The promise that positional reads build on.
  std::vector<float> direct(large.size());
  InputFile(path).read_at(offset, std::as_writable_bytes(std::span(direct)));
  EXPECT_EQ(direct, large);

  const Hdf5Reader reader(path);
  EXPECT_EQ(reader.datasets().size(), 6u);
  EXPECT_EQ(reader.datasets().at("/param/layers.0.wq/0").offset, offset);
  EXPECT_EQ(read_all<float>(reader, "/param/layers.0.wq/0", Hdf5Type::f32), large);
  EXPECT_EQ(read_all<std::uint16_t>(reader, "/two", Hdf5Type::u16), small);
  EXPECT_EQ(reader.dataset("/two", Hdf5Type::u16).dims, (std::vector<std::uint64_t>{3, 1}));
  EXPECT_EQ(read_all<std::uint16_t>(reader, "/stream", Hdf5Type::u16),
            (std::vector<std::uint16_t>{1, 2, 65535, 1, 2, 65535}));
  EXPECT_TRUE(read_all<double>(reader, "/param/empty/0", Hdf5Type::f64).empty());
  EXPECT_EQ(reader.read_texts("/texts"), (std::vector<std::string>{"a", "", "été", "12345678"}));
  EXPECT_EQ(reader.text_attribute("/", "format"), "weft-test");
  EXPECT_EQ(reader.text_attribute("/", "empty"), "");
  EXPECT_EQ(reader.uint32_attribute("/", "version"), 7u);
  EXPECT_EQ(reader.int64_attribute("/", "step"), -1);
  EXPECT_EQ(reader.uint64_attribute("/", "tokens"), ~std::uint64_t{0});
  EXPECT_EQ(reader.int64s_attribute("/param/layers.0.wq/0", "global_shape"), (std::vector<std::int64_t>{200, 200}));
  EXPECT_EQ(reader.bytes_attribute("/", "digest"), std::vector<std::uint8_t>(32, 9));
  EXPECT_FALSE(reader.has_attribute("/", "other"));

  EXPECT_THROW(reader.dataset("/none", Hdf5Type::u8), Error);
  EXPECT_THROW(reader.dataset("/two", Hdf5Type::u32), Error);
  EXPECT_THROW(reader.uint64_attribute("/", "step"), Error);
  EXPECT_THROW(reader.text_attribute("/", "none"), Error);
  std::uint16_t value = 0;
  EXPECT_THROW(reader.read("/two", 3, std::as_writable_bytes(std::span(&value, 1))), Error);
}

TEST_F(Hdf5Test, WriterIsExclusiveAndLeavesNothingUnfinished) {
  {
    Hdf5Writer writer(path);
    EXPECT_TRUE(fs::exists(path));
  }
  EXPECT_FALSE(fs::exists(path));
  write_file_atomically(path, std::string_view("mine"));
  EXPECT_THROW(Hdf5Writer writer(path), Error);
  EXPECT_EQ(read_small_file(path, 10), "mine");
}

TEST_F(Hdf5Test, RefusesForeignFiles) {
  write_file_atomically(path, std::string_view("some text"));
  EXPECT_EQ(refusal(), "not an HDF5 file (no signature at its start)");
  write_file_atomically(path, std::string_view(""));
  EXPECT_EQ(refusal(), "not an HDF5 file (no signature at its start)");
  write_file_atomically(path, std::string_view("\x89HDF\r\n\x1a\nrubbish"));
  EXPECT_TRUE(refusal().starts_with("cannot open"));
}

hid_t make_dataset(hid_t file, hid_t type, hid_t creation, std::vector<hsize_t> dims) {
  const Id space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
  const hid_t dataset = H5Dcreate2(file, "d", type, space.get(), H5P_DEFAULT, creation, H5P_DEFAULT);
  EXPECT_GE(dataset, 0);
  H5Dclose(dataset);
  return dataset;
}

Id dataset_properties() {
  return Id(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
}

TEST_F(Hdf5Test, RefusesLinksThatAreNotHard) {
  EXPECT_EQ(refusal([](hid_t f) { H5Lcreate_soft("/nowhere", f, "s", H5P_DEFAULT, H5P_DEFAULT); }),
            "object /s: only hard links are allowed");
  EXPECT_EQ(refusal([](hid_t f) { H5Lcreate_external("/etc/passwd", "/", f, "e", H5P_DEFAULT, H5P_DEFAULT); }),
            "object /e: only hard links are allowed");
  EXPECT_EQ(refusal([](hid_t f) {
              const Id group(H5Gcreate2(f, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
              H5Lcreate_hard(f, "/", group.get(), "back", H5P_DEFAULT, H5P_DEFAULT);
            }),
            "object /g/back: it is linked more than once");
  EXPECT_EQ(refusal([](hid_t f) {
              const Id group(H5Gcreate2(f, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
              H5Lcreate_hard(f, "g", f, "again", H5P_DEFAULT, H5P_DEFAULT);
            }),
            "object /again: it is linked more than once");
}

TEST_F(Hdf5Test, RefusesUnusualStorage) {
  EXPECT_EQ(refusal([](hid_t f) {
              const Id p = dataset_properties();
              const hsize_t chunk = 4;
              H5Pset_chunk(p.get(), 1, &chunk);
              make_dataset(f, H5T_STD_U8LE, p.get(), {16});
            }),
            "object /d: storage is not contiguous");
  EXPECT_EQ(refusal([](hid_t f) {
              const Id p = dataset_properties();
              const hsize_t chunk = 4;
              H5Pset_chunk(p.get(), 1, &chunk);
              H5Pset_deflate(p.get(), 1);
              make_dataset(f, H5T_STD_U8LE, p.get(), {16});
            }),
            "object /d: storage is not contiguous");
  EXPECT_EQ(refusal([](hid_t f) {
              const Id p = dataset_properties();
              H5Pset_layout(p.get(), H5D_COMPACT);
              make_dataset(f, H5T_STD_U8LE, p.get(), {16});
            }),
            "object /d: storage is not contiguous");
  EXPECT_EQ(refusal([](hid_t f) {
              const Id p = dataset_properties();
              H5Pset_external(p.get(), "/etc/passwd", 0, 16);
              make_dataset(f, H5T_STD_U8LE, p.get(), {16});
            }),
            "object /d: external storage is not allowed");
  EXPECT_EQ(refusal([](hid_t f) {
              const Id p = dataset_properties();
              const hsize_t n = 16;
              const Id space(H5Screate_simple(1, &n, nullptr), H5Sclose);
              H5Pset_virtual(p.get(), space.get(), "other.h5", "/d", space.get());
              make_dataset(f, H5T_STD_U8LE, p.get(), {16});
            }),
            "object /d: storage is not contiguous");
  EXPECT_EQ(refusal([](hid_t f) { make_dataset(f, H5T_STD_U8LE, H5P_DEFAULT, {16}); }),
            "object /d: its storage was never allocated");
  EXPECT_EQ(refusal([](hid_t f) { make_dataset(f, H5T_STD_U8LE, H5P_DEFAULT, {1ull << 40}); }),
            "object /d: 1099511627776 bytes in a file of " + std::to_string(fs::file_size(path)));
  EXPECT_EQ(refusal([](hid_t f) {
              make_dataset(f, H5T_STD_U64LE, H5P_DEFAULT, {1ull << 30, 1ull << 30});
            }),
            "object /d: " + std::to_string(1ull << 63) + " bytes in a file of " + std::to_string(fs::file_size(path)));
  EXPECT_EQ(refusal([](hid_t f) {
              make_dataset(f, H5T_STD_U8LE, H5P_DEFAULT, {1, 1, 1});
            }),
            "object /d: rank 3, at most 2 is allowed");
}

TEST_F(Hdf5Test, RefusesUnusualTypes) {
  const std::string refused =
      "object /d: element type is neither a little-endian number of weft's list nor a fixed-length string";
  EXPECT_EQ(refusal([](hid_t f) { make_dataset(f, H5T_STD_U16BE, H5P_DEFAULT, {1}); }), refused);
  EXPECT_EQ(refusal([](hid_t f) { make_dataset(f, H5T_STD_REF_OBJ, H5P_DEFAULT, {1}); }), refused);
  EXPECT_EQ(refusal([](hid_t f) {
              const Id type(H5Tcreate(H5T_COMPOUND, 8), H5Tclose);
              H5Tinsert(type.get(), "x", 0, H5T_STD_U64LE);
              make_dataset(f, type.get(), H5P_DEFAULT, {1});
            }),
            refused);
  EXPECT_EQ(refusal([](hid_t f) {
              const Id type(H5Tcopy(H5T_C_S1), H5Tclose);
              H5Tset_size(type.get(), H5T_VARIABLE);
              make_dataset(f, type.get(), H5P_DEFAULT, {1});
            }),
            refused);
  EXPECT_EQ(refusal([](hid_t f) {
              const Id type(H5Tvlen_create(H5T_STD_U8LE), H5Tclose);
              make_dataset(f, type.get(), H5P_DEFAULT, {1});
            }),
            refused);
  EXPECT_EQ(refusal([](hid_t f) {
              const Id type(H5Tcopy(H5T_STD_U8LE), H5Tclose);
              H5Tcommit2(f, "t", type.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
            }),
            "object /t: it is neither group nor dataset");
}

TEST_F(Hdf5Test, RefusesManyOrLargeAttributes) {
  const auto attributes = [](int n, hsize_t extent) {
    return [n, extent](hid_t f) {
      const Id space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
      for (int i = 0; i < n; ++i) {
        const Id a(H5Acreate2(f, fmt::format("a{}", i).c_str(), H5T_STD_U8LE, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                   H5Aclose);
      }
    };
  };
  EXPECT_EQ(refusal(attributes(64, 1)), "accepted");
  EXPECT_EQ(refusal(attributes(65, 1)), "object /: 65 attributes, at most 64 are allowed");
}

// A full disk is a DiskFull at whichever call it shows, and the file goes away.
TEST_F(Hdf5Test, FullDisk) {
  const testing_support::SmallFilesystem small(directory / "small", 1 << 20);
  if (!small.mounted()) GTEST_SKIP() << "cannot mount a tmpfs: " << small.reason();
  path = small.directory() / "f.h5";
  const std::vector<std::byte> block(16 * 1024);
  const std::uint64_t n = block.size();
  EXPECT_THROW(Hdf5Writer writer(path, 2 << 20), DiskFull);
  EXPECT_FALSE(fs::exists(path));
  {
    Hdf5Writer writer(path, 512 << 10);
    EXPECT_LE(free_space(small.directory()).bytes, std::uint64_t{1} << 19);
    writer.write_dataset("/d", Hdf5Type::u8, std::span(&n, 1), block);
    writer.close();
    EXPECT_LT(free_space(small.directory()).bytes, std::uint64_t{1} << 20);
    EXPECT_GT(free_space(small.directory()).bytes, std::uint64_t{1} << 19);
  }
  fs::remove(path);
  for (const std::size_t left : {0, 4096, 8192, 20000, 100000, 300000}) {
    const fs::path filler = small.directory() / "filler";
    std::size_t fill = (free_space(small.directory()).bytes - left) / 4096 * 4096;
    write_file_atomically(filler, std::string(fill, 'x'));
    try {
      Hdf5Writer writer(path);
      for (int i = 0; i < 100; ++i) {
        writer.write_dataset(fmt::format("/d{}", i), Hdf5Type::u8, std::span(&n, 1), block);
      }
      writer.close();
      ADD_FAILURE() << "no error with " << left << " bytes left";
    } catch (const DiskFull& error) {
      EXPECT_NE(std::string(error.what()).find("No space left on device"), std::string::npos) << error.what();
    }
    EXPECT_FALSE(fs::exists(path));
    fs::remove(filler);
  }
}

// Any damage is either harmless or an error of ours: never a crash, never a read outside the file.
TEST_F(Hdf5Test, SurvivesTruncationAndFlippedBytes) {
  {
    Hdf5Writer writer(path);
    const std::vector<std::uint16_t> values(100, 3);
    const std::uint64_t n = values.size();
    writer.write_dataset("/a/b", Hdf5Type::u16, std::span(&n, 1), std::as_bytes(std::span(values)));
    writer.set_attribute("/", "format", "weft-test");
    writer.close();
  }
  const std::string good = read_small_file(path, 1 << 20);
  int refused = 0;
  for (std::size_t n = 0; n < good.size(); n += 61) {
    std::ofstream(path, std::ios::binary) << good.substr(0, n);
    refused += refusal() != "accepted";
  }
  EXPECT_GT(refused, static_cast<int>(good.size() / 61) - 2);
  for (std::size_t at = 0; at < good.size(); at += 7) {
    std::string bad = good;
    bad[at] = static_cast<char>(~bad[at]);
    std::ofstream(path, std::ios::binary) << bad;
    refusal();
  }
}

}  // namespace
}  // namespace weft
