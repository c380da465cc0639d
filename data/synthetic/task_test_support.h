// What every task's tests need: options by name, solvers' scores, a hash of examples.
#pragma once

#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "autograd/check.h"
#include "data/synthetic/task.h"

namespace weft::data_test {

using TaskOptions = std::vector<std::pair<std::string, OptionValue>>;

inline std::unique_ptr<Task> make_task(const std::string& name, const TaskOptions& changes = {},
                                       std::uint64_t seed = 1) {
  const TaskType& type = *find_task(name);
  Options options(type.options);
  for (const auto& [key, value] : changes) options.set(key, value);
  return type.create(options, seed, "test.toml:3: [task]");
}

// The message of the config error that creating the task throws.
inline std::string task_error(const std::string& name, const TaskOptions& changes) {
  try {
    make_task(name, changes);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

// A 64-bit FNV-1a hash of the first examples of a split: tokens, labels, pieces, buckets.
inline std::uint64_t hash_of(const Task& task, Split split, std::int64_t examples) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  const auto add = [&](const std::vector<std::int32_t>& values) {
    for (const std::int32_t value : values) {
      for (int byte = 0; byte < 4; ++byte) {
        hash = (hash ^ (static_cast<std::uint32_t>(value) >> (8 * byte) & 0xff)) * 0x100000001b3ull;
      }
    }
  };
  for (std::int64_t i = 0; i < examples; ++i) {
    const Example example = task.build(split, i);
    add(example.row.tokens);
    add(example.row.labels);
    add(example.row.cu_seqlens);
    add(example.buckets);
  }
  return hash;
}

// The labels of a row from its first piece's tokens: [T], kIgnoredLabel where there is none.
using Solver = std::function<std::vector<std::int32_t>(std::vector<std::int32_t> tokens)>;

// What holds for all examples, and that `solve` gets every label right.
inline void expect_solved(const Task& task, Split split, std::int64_t examples, const Solver& solve) {
  const auto buckets = static_cast<std::int32_t>(task.buckets().size());
  for (std::int64_t i = 0; i < examples; ++i) {
    const auto [row, counted] = task.build(split, i);
    if (split != Split::test) {
      ASSERT_EQ(row.length(), task.row_length());
    }
    ASSERT_EQ(row.labels.size(), row.tokens.size());
    ASSERT_EQ(row.positions.size(), row.tokens.size());
    ASSERT_EQ(row.cu_seqlens.front(), 0);
    ASSERT_EQ(row.cu_seqlens.back(), row.length());
    ASSERT_LE(row.cu_seqlens.size(), 3u);
    const auto own = static_cast<std::size_t>(row.cu_seqlens[1]);
    for (std::size_t t = 0; t < row.tokens.size(); ++t) {
      ASSERT_EQ(row.positions[t], static_cast<std::int32_t>(t < own ? t : t - own));
      ASSERT_GE(row.tokens[t], 0);
      ASSERT_LT(row.tokens[t], task.vocabulary());
      ASSERT_LT(row.labels[t], task.vocabulary());
    }
    ASSERT_EQ(static_cast<std::int64_t>(counted.size()), row.valid_labels());
    for (const std::int32_t bucket : counted) {
      ASSERT_GE(bucket, 0);
      ASSERT_LT(bucket, buckets);
    }
    std::vector<std::int32_t> solved = solve({row.tokens.begin(), row.tokens.begin() + row.cu_seqlens[1]});
    solved.resize(row.tokens.size(), kIgnoredLabel);
    for (std::size_t t = 0; t < row.tokens.size(); ++t) {
      if (row.labels[t] != kIgnoredLabel) {
        ASSERT_EQ(solved[t], row.labels[t]) << "example " << i << ", position " << t;
      }
    }
  }
}

}  // namespace weft::data_test
