#include "data/tokenizers/bpe.h"

#include <chrono>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "autograd/philox.h"
#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/normalizer.h"

namespace weft {
namespace {

using Ids = std::vector<std::int32_t>;

// A vocabulary over a few letters whose merges are random, so that they compete.
struct RandomVocabulary {
  std::vector<std::string> tokens;
  std::vector<Merge> merges;

  explicit RandomVocabulary(std::uint64_t seed) {
    RandomWords words(seed, RandomStream::test, 3);
    for (const char* letter : {"a", "b", "c", "d"}) tokens.emplace_back(letter);
    while (tokens.size() < 120) {
      const auto left = static_cast<std::int32_t>(words.below(tokens.size()));
      const auto right = static_cast<std::int32_t>(words.below(tokens.size()));
      const std::string joined = tokens[static_cast<std::size_t>(left)] + tokens[static_cast<std::size_t>(right)];
      if (std::find(tokens.begin(), tokens.end(), joined) != tokens.end() || joined.size() > 12) continue;
      merges.push_back({left, right, static_cast<std::int32_t>(tokens.size())});
      tokens.push_back(joined);
    }
  }

  // The definition, step by step.
  Ids encode(std::string_view text) const {
    Ids ids;
    for (const char c : text) ids.push_back(c - 'a');
    for (;;) {
      std::size_t best_rank = merges.size();
      std::size_t best = 0;
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
        for (std::size_t rank = 0; rank < best_rank; ++rank) {
          if (merges[rank].left == ids[i] && merges[rank].right == ids[i + 1]) {
            best_rank = rank;
            best = i;
            break;
          }
        }
      }
      if (best_rank == merges.size()) return ids;
      ids[best] = merges[best_rank].joined;
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
  }
};

TEST(Bpe, JoinsByRankFromTheLeft) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const RandomVocabulary vocabulary(seed);
    BpeRules rules;
    rules.bytes = true;
    const Bpe bpe(vocabulary.tokens, vocabulary.merges, rules);
    BpeScratch scratch;
    RandomWords words(seed, RandomStream::test, 4);
    for (int trial = 0; trial < 400; ++trial) {
      // Of every kind: in the cache and not, by scanning and by the heap.
      std::string text;
      for (std::uint64_t n = words.below(trial % 8 == 0 ? 400 : 60); n > 0; --n) {
        text += static_cast<char>('a' + words.below(4));
      }
      Ids ids = {7};
      bpe.encode(text, scratch, ids);
      Ids expected = vocabulary.encode(text);
      expected.insert(expected.begin(), 7);
      ASSERT_EQ(ids, expected) << text;
      ids.resize(1);
      bpe.encode(text, scratch, ids);
      ASSERT_EQ(ids, expected) << text;
    }
  }
}

TEST(Bpe, TheCacheTellsPiecesApart) {
  // All strings of up to 5 bytes of three values, more than the cache has room for, and with bytes that fill keys up.
  std::vector<std::string> tokens = {std::string(1, '\0'), "a", "b"};
  BpeRules rules;
  rules.bytes = true;
  const Bpe bpe(tokens, {}, rules);
  BpeScratch scratch;
  for (int round = 0; round < 2; ++round) {
    for (int n = 1; n <= 9; ++n) {
      int count = 1;
      for (int i = 0; i < n; ++i) count *= 3;
      for (int number = 0; number < count; ++number) {
        std::string text;
        Ids expected;
        for (int i = 0, rest = number; i < n; ++i, rest /= 3) {
          text += tokens[static_cast<std::size_t>(rest % 3)];
          expected.push_back(rest % 3);
        }
        Ids ids;
        bpe.encode(text, scratch, ids);
        ASSERT_EQ(ids, expected);
      }
    }
  }
}

TEST(Bpe, LongPiecesTakeLittleMoreThanLinearTime) {
  const RandomVocabulary vocabulary(9);
  BpeRules rules;
  rules.bytes = true;
  const Bpe bpe(vocabulary.tokens, vocabulary.merges, rules);
  BpeScratch scratch;
  RandomWords words(1, RandomStream::test, 5);
  std::string text;
  for (int i = 0; i < 1 << 20; ++i) text += static_cast<char>('a' + words.below(4));
  Ids ids;
  const auto start = std::chrono::steady_clock::now();
  bpe.encode(text, scratch, ids);
  // Quadratic work would take minutes.
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 10.0);
  std::string again;
  for (const std::int32_t id : ids) again += bpe.token(id);
  EXPECT_EQ(again, text);
}

TEST(AddedTokens, MatchLeftmostLongest) {
  const auto matcher = [](std::vector<AddedToken> tokens) {
    std::vector<AddedTokenMatcher::Pattern> patterns;
    for (AddedToken& token : tokens) patterns.push_back({token.content, token});
    return AddedTokenMatcher(std::move(patterns));
  };
  const auto split = [](const AddedTokenMatcher& m, std::string_view text, bool special) {
    std::vector<TokenOrText> parts;
    m.split(text, special, parts);
    std::string shown;
    for (const TokenOrText& part : parts) {
      shown += part.id < 0 ? fmt::format("[{}]", part.text) : fmt::format("{}[{}]", part.id, part.text);
    }
    return shown;
  };
  const AddedTokenMatcher tokens = matcher({{.id = 1, .content = "<a>", .special = true},
                                            {.id = 2, .content = "<a>b"},
                                            {.id = 3, .content = "cat", .single_word = true},
                                            {.id = 4, .content = "<l>", .lstrip = true},
                                            {.id = 5, .content = "<r>", .rstrip = true},
                                            {.id = 6, .content = "><"}});
  EXPECT_EQ(split(tokens, "x<a>y", true), "[x]1[<a>][y]");
  EXPECT_EQ(split(tokens, "x<a>y", false), "[x<a>y]");
  EXPECT_EQ(split(tokens, "x<a>b<a>", true), "[x]2[<a>b]1[<a>]");
  EXPECT_EQ(split(tokens, "<a><a>", false), "[<a><a>]");
  EXPECT_EQ(split(tokens, "<a<a>", true), "[<a]1[<a>]");
  EXPECT_EQ(split(tokens, "cat cats \u00e9cat cat", true), "3[cat][ cats \u00e9cat ]3[cat]");
  EXPECT_EQ(split(tokens, "a \u3000<l> b <r> \n c", true), "[a]4[ \u3000<l>][ b ]5[<r> \n ][c]");
  EXPECT_EQ(split(tokens, "<r>  <l>", true), "5[<r>  ]4[<l>]");
  EXPECT_EQ(split(tokens, "", true), "");
  EXPECT_EQ(split(matcher({}), "<a>", true), "[<a>]");
}

TEST(Normalizer, ComposesOnlyWhatChanges) {
  const auto apply = [](std::vector<NormalizerStep> steps, std::string_view text) {
    std::string buffer;
    std::string spare;
    return std::string(normalize(steps, text, buffer, spare));
  };
  const NormalizeUnicode nfc{UnicodeForm::nfc};
  const NormalizeUnicode nfkc{UnicodeForm::nfkc};
  EXPECT_EQ(apply({nfc}, "cafe\u0301, e\u0301\u0323x A\u030a"), "caf\u00e9, \u1eb9\u0301x \u00c5");
  EXPECT_EQ(apply({nfc}, "\u1112\u1161\u11ab\uac00\u11a8 \u212b\ufb01"), "\ud55c\uac01 \u00c5\ufb01");
  EXPECT_EQ(apply({nfc}, "\u0301\u0301a\u0344"), "\u0301\u0301\u00e4\u0301");
  EXPECT_EQ(apply({nfkc}, "\ufb01\u00b2 \uff21"), "fi2 A");
  EXPECT_EQ(apply({nfc, NormalizePrepend{"_"}, NormalizeReplace{" ", "__"}}, "a  e\u0301"), "_a____\u00e9");
  EXPECT_EQ(apply({NormalizePrepend{"_"}}, ""), "");
  const NormalizeReplaceMatches runs{Regex("(?<= ) +|y", "f"), ""};
  EXPECT_EQ(apply({nfc, runs, NormalizeReplace{" ", "_"}}, "  a   e\u0301 yx"), "_a_\u00e9_x");
  // Marks and characters that are newer than Unicode 9 stay as and where they are.
  EXPECT_EQ(apply({nfc}, "x\u0eb8\u0eba\u0345\u0334 \u0eba\u0eb8"), "x\u0eb8\u0eba\u0334\u0345 \u0eba\u0eb8");
  EXPECT_EQ(apply({nfkc}, "\u32ff\u0345\u0334"), "\u32ff\u0334\u0345");
  const std::string same = "nothing \u00e9 to \u4f60 do";
  std::string buffer;
  std::string spare;
  EXPECT_EQ(normalize({nfc}, same, buffer, spare).data(), same.data());
}

}  // namespace
}  // namespace weft
