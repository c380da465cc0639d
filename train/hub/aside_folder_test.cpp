#include "train/hub/aside_folder.h"

#include <fstream>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include "data/dataset_test_support.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using data_test::message_of;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}

class AsideFolderTest : public ::testing::Test {
 protected:
  data_test::TemporaryFolder folder_;
};

TEST_F(AsideFolderTest, GetsItsNameWhenAllIsWell) {
  {
    AsideFolder aside(folder_ / "a/b/", "tmp");
    EXPECT_TRUE(aside.path().filename().string().starts_with("b.tmp-"));
    std::ofstream(aside.path() / "file") << "x";
    EXPECT_FALSE(aside.named());
    aside.take_name();
    EXPECT_TRUE(aside.named());
  }
  EXPECT_EQ(names_in(folder_ / "a"), std::vector<std::string>{"b"});
  EXPECT_TRUE(fs::exists(folder_ / "a/b/file"));
  EXPECT_EQ(message_of(ExitCode::config, [&] { AsideFolder(folder_ / "a/b", "tmp"); }),
            folder_ / "a/b" + ": exists already; choose another --out");
}

TEST_F(AsideFolderTest, GoesUnlessKept) {
  { const AsideFolder aside(folder_ / "gone", "tmp"); }
  EXPECT_TRUE(names_in(folder_ / "").empty());
  {
    AsideFolder aside(folder_ / "out", "unverified");
    aside.keep();
  }
  ASSERT_EQ(names_in(folder_ / "").size(), 1u);
  EXPECT_TRUE(names_in(folder_ / "").front().starts_with("out.unverified-"));
}

TEST_F(AsideFolderTest, MakesNothingThatIsNotWatched) {
  const AsideFolder aside(folder_ / "out", "tmp");
  const std::string refused = message_of(ExitCode::internal, [&] { AsideFolder(folder_ / "other", "tmp"); });
  EXPECT_TRUE(refused.find("two folders are written aside at once") != refused.npos) << refused;
  EXPECT_EQ(names_in(folder_ / ""), std::vector<std::string>{aside.path().filename()});
}

TEST_F(AsideFolderTest, NothingIsReplaced) {
  AsideFolder aside(folder_ / "out", "tmp");
  fs::create_directory(folder_ / "out");
  EXPECT_EQ(message_of(ExitCode::config, [&] { aside.take_name(); }),
            folder_ / "out" + ": has appeared meanwhile; nothing was replaced");
}

using AsideFolderDeathTest = AsideFolderTest;

TEST_F(AsideFolderDeathTest, SignalsLeaveNothing) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    EXPECT_EXIT(
        {
          ::signal(signal, SIG_DFL);  // whatever the tests were started with
          AsideFolder aside(folder_ / "out", "unverified");
          aside.keep();
          fs::create_directory(aside.path() / "inner");
          std::ofstream(aside.path() / "inner/file") << "x";
          kill(getpid(), signal);
          while (true) std::ofstream(aside.path() / "more") << "x";
        },
        ::testing::ExitedWithCode(128 + signal), "weft: stopped; .*/out was not made, and nothing is left of it");
    EXPECT_TRUE(names_in(folder_ / "").empty());
  }
}

// The name is given or not, never both.
TEST_F(AsideFolderDeathTest, WhatHasItsNameStays) {
  EXPECT_EXIT(
      {
        AsideFolder aside(folder_ / "out", "tmp");
        aside.take_name();
        kill(getpid(), SIGTERM);
        while (true) pause();
      },
      ::testing::ExitedWithCode(128 + SIGTERM), "weft: stopped; .*/out is complete");
  EXPECT_EQ(names_in(folder_ / ""), std::vector<std::string>{"out"});
}

TEST_F(AsideFolderDeathTest, IgnoredSignalsStayIgnored) {
  EXPECT_EXIT(
      {
        for (const int ignored : {SIGINT, SIGHUP}) signal(ignored, SIG_IGN);
        AsideFolder aside(folder_ / "out", "tmp");
        for (const int ignored : {SIGINT, SIGHUP}) {
          struct sigaction action = {};
          sigaction(ignored, nullptr, &action);
          if (action.sa_handler != SIG_IGN) std::exit(1);
          raise(ignored);
        }
        aside.take_name();
        std::exit(0);
      },
      ::testing::ExitedWithCode(0), "");
  EXPECT_EQ(names_in(folder_ / ""), std::vector<std::string>{"out"});
}

// Afterwards, signals do what they did before.
TEST_F(AsideFolderDeathTest, SignalsAreTheProgramsAgain) {
  EXPECT_EXIT(
      {
        { AsideFolder(folder_ / "out", "tmp").take_name(); }
        raise(SIGTERM);
      },
      ::testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace weft
