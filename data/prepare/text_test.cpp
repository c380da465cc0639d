// UTF-8, jsonl lines, and where documents begin and end.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "autograd/check.h"
#include "autograd/philox.h"
#include "data/prepare/documents.h"
#include "data/prepare/jsonl.h"
#include "data/storage/json.h"
#include "data/storage/utf8.h"

namespace weft {
namespace {

TEST(Utf8, AcceptsWhatTheStandardAccepts) {
  for (const std::string& text :
       {std::string("plain"), std::string("\0nul", 4), std::string("\u00e4\u20ac\U0001F600"),
        std::string("\xED\x9F\xBF"), std::string("\xEE\x80\x80"), std::string("\xF4\x8F\xBF\xBF")}) {
    EXPECT_EQ(valid_utf8_prefix(text), text.size());
    EXPECT_EQ(valid_utf8_prefix(std::string(100, 'a') + text), 100 + text.size());
  }
}

TEST(Utf8, FindsTheFirstBadByte) {
  const std::string bad[] = {"\x80",
                             "\xC0\x80",
                             "\xC1\xBF",
                             "\xC3",
                             "\xE0\x9F\xBF",
                             "\xED\xA0\x80",
                             "\xE2\x82",
                             "\xF0\x8F\xBF\xBF",
                             "\xF4\x90\x80\x80",
                             "\xF5\x80\x80\x80",
                             "\xFF"};
  for (const std::string& sequence : bad) {
    for (const std::size_t before :
         {std::size_t{0}, std::size_t{1}, std::size_t{31}, std::size_t{32}, std::size_t{33}}) {
      const std::string text = std::string(before, 'a') + sequence + std::string(40, 'b');
      EXPECT_EQ(valid_utf8_prefix(text), before);
    }
  }
}

TEST(Utf8, RepairsMaximalParts) {
  EXPECT_EQ(repair_utf8("a\xE2\x82z"), "a\uFFFDz");
  EXPECT_EQ(repair_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(repair_utf8("\xF0\x9F\x98"), "\uFFFD");
  EXPECT_EQ(repair_utf8("ok"), "ok");
}

TEST(Utf8, ValidationAgreesWithTheJsonLibrary) {
  RandomWords words(1, RandomStream::test, 1);
  for (int trial = 0; trial < 20000; ++trial) {
    std::string text;
    const std::uint64_t n = 1 + words.below(8);
    for (std::uint64_t i = 0; i < n; ++i) {
      static constexpr unsigned char kBytes[] = {'a',  0x80, 0x9F, 0xA0, 0xBF, 0xC2, 0xC3,
                                                 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xF5};
      text += static_cast<char>(kBytes[words.below(sizeof kBytes)]);
    }
    bool valid = true;
    try {
      (void)nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      valid = false;
    }
    ASSERT_EQ(valid_utf8_prefix(text) == text.size(), valid);
  }
}

LineStatus status_of(const std::string& line) {
  std::string scratch;
  return extract_text(line, "text", scratch).status;
}
std::string text_of(const std::string& line) {
  std::string scratch;
  const LineText found = extract_text(line, "text", scratch);
  EXPECT_EQ(static_cast<int>(found.status), 0) << line << ": " << found.problem;
  return std::string(found.text);
}

TEST(Jsonl, Extracts) {
  EXPECT_EQ(text_of(R"({"text":"plain"})"), "plain");
  EXPECT_EQ(text_of(R"( { "a" : [1, -2.5e+3, {"text": "no"}, null, true] , "text" : "a long enough text" , "z":{} } )"),
            "a long enough text");
  EXPECT_EQ(text_of(R"({"text":"\"\\\/\b\f\n\r\t\u0041\u00e4\u20ac\ud83d\ude00!"})"),
            "\"\\/\b\f\n\r\tA\u00e4\u20ac\U0001F600!");
  EXPECT_EQ(text_of(R"({"te\u0078t":"escaped key"})"), "escaped key");
  EXPECT_EQ(text_of(R"({"text":""})"), "");
  EXPECT_EQ(text_of("{\"text\":\"\\u0000\"}"), std::string(1, '\0'));
}

TEST(Jsonl, Refuses) {
  const char* invalid[] = {"",
                           "text",
                           "[]",
                           "{",
                           "{}x",
                           R"({"text":"a")",
                           R"({"text":"a",})",
                           R"({"text" "a"})",
                           R"({text:"a"})",
                           R"({"text":"a"} {"text":"b"})",
                           R"({"text":"a","text":"b"})",
                           R"({"text":"\x"})",
                           R"({"text":"\u12g4"})",
                           R"({"text":"open)",
                           "{\"text\":\"tab\tinside\"}",
                           R"({"n":01,"text":"a"})",
                           R"({"n":1.,"text":"a"})",
                           R"({"n":.5,"text":"a"})",
                           R"({"n":1e,"text":"a"})",
                           R"({"n":+1,"text":"a"})",
                           R"({"n":NaN,"text":"a"})",
                           R"({"n":tru,"text":"a"})",
                           R"({"n":[1,],"text":"a"})",
                           R"({"n":[1}, "text":"a"})",
                           R"({"n":{"a"},"text":"a"})"};
  for (const char* line : invalid)
    EXPECT_EQ(static_cast<int>(status_of(line)), static_cast<int>(LineStatus::invalid_json)) << line;
  for (const char* line :
       {R"({})", R"({"other":"a"})", R"({"text":1})", R"({"text":null})", R"({"text":{"text":"a"}})"}) {
    EXPECT_EQ(static_cast<int>(status_of(line)), static_cast<int>(LineStatus::no_text)) << line;
  }
  for (const char* line : {R"({"text":"\ud800"})", R"({"text":"\udc00"})", R"({"text":"\ud800\ud800"})",
                           R"({"text":"\ud83dx"})", R"({"x":"\ud83d","text":"a"})"}) {
    EXPECT_EQ(static_cast<int>(status_of(line)), static_cast<int>(LineStatus::lone_surrogate)) << line;
  }
}

TEST(Jsonl, DepthIsLimited) {
  const auto nested = [](int depth) {
    return "{\"a\":" + std::string(static_cast<std::size_t>(depth), '[') +
           std::string(static_cast<std::size_t>(depth), ']') + ",\"text\":\"a\"}";
  };
  EXPECT_EQ(text_of(nested(63)), "a");
  EXPECT_EQ(static_cast<int>(status_of(nested(64))), static_cast<int>(LineStatus::invalid_json));
  EXPECT_EQ(static_cast<int>(status_of("{\"a\":" + std::string(1 << 20, '['))),
            static_cast<int>(LineStatus::invalid_json));
}

// Random damage to valid lines: the scanner accepts what the strict parser of storage accepts as an object with a text,
// up to duplicate keys of other members, which it does not look for.
TEST(Jsonl, AgreesWithTheStrictParser) {
  const std::string lines[] = {R"({"id":12,"text":"a\u00e4b","meta":{"x":[1,2,3],"y":null}})",
                               R"({"text":"\ud83d\ude00 ok","n":-1.5e3,"b":true})"};
  RandomWords words(2, RandomStream::test, 2);
  int accepted = 0;
  for (int trial = 0; trial < 30000; ++trial) {
    std::string line = lines[trial % 2];
    for (std::uint64_t edits = 1 + words.below(2); edits > 0; --edits) {
      const std::size_t at = words.below(line.size());
      const char c = "\"\\{}[]:,u0d8e 1-.tx"[words.below(19)];
      if (words.below(2) == 0) {
        line[at] = c;
      } else {
        line.insert(at, 1, c);
      }
    }
    std::string expected;
    bool ok = false;
    try {
      const auto value = parse_strict(line, "line");
      ok = value.is_object() && value.contains("text") && value["text"].is_string();
      if (ok) expected = value["text"].get<std::string>();
    } catch (const Error& error) {
      if (std::string(error.what()).find("duplicate") != std::string::npos) continue;
      // Numbers out of range are grammatical.
      if (std::string(error.what()).find("number") != std::string::npos) continue;
      if (std::string(error.what()).find("integer") != std::string::npos) continue;
    }
    std::string scratch;
    const LineText found = extract_text(line, "text", scratch);
    ASSERT_EQ(found.status == LineStatus::ok, ok) << line << " " << found.problem;
    if (ok) {
      ASSERT_EQ(found.text, expected) << line;
      ++accepted;
    }
  }
  EXPECT_GT(accepted, 1000);
}

std::vector<std::string> records(const RecordRule& rule, const std::string& text) {
  std::vector<std::string> all;
  rule.for_each(text, [&](std::string_view record, std::int64_t) { all.emplace_back(record); });
  return all;
}

TEST(Documents, Splits) {
  const RecordRule blank{InputFormat::text, TextSplit::blank, ""};
  EXPECT_EQ(records(blank, "\n\n a\nb\n \t\r\n\nc"), (std::vector<std::string>{" a\nb\n", "c"}));
  const RecordRule line{InputFormat::text, TextSplit::delimiter, "---"};
  EXPECT_EQ(records(line, "a\n---\n---\r\nb\n----\n"), (std::vector<std::string>{"a\n", "", "b\n----\n"}));
  const RecordRule file{InputFormat::text, TextSplit::file, ""};
  EXPECT_EQ(records(file, "a\n\nb"), (std::vector<std::string>{"a\n\nb"}));
  const RecordRule jsonl{InputFormat::jsonl, TextSplit::file, ""};
  EXPECT_EQ(records(jsonl, "{}\n\n[]"), (std::vector<std::string>{"{}\n", "[]"}));
}

// Cutting anywhere where last_end allows gives the same documents as not cutting.
TEST(Documents, CutsAreNeutral) {
  RandomWords words(3, RandomStream::test, 3);
  for (const RecordRule& rule :
       {RecordRule{InputFormat::text, TextSplit::blank, ""}, RecordRule{InputFormat::text, TextSplit::delimiter, "-"},
        RecordRule{InputFormat::jsonl, TextSplit::file, ""}}) {
    for (int trial = 0; trial < 2000; ++trial) {
      std::string text;
      for (std::uint64_t n = words.below(40); n > 0; --n) text += "ab\n\n- \r"[words.below(7)];
      const auto whole = records(rule, text);
      std::vector<std::string> parts;
      std::string buffer;
      for (const char c : text) {
        buffer += c;
        const std::size_t scanned = buffer.size() - 1;
        const std::size_t end = rule.last_end(buffer, scanned);
        if (end > 0) {
          ASSERT_EQ(rule.first_end(buffer), end);
          for (auto& record : records(rule, buffer.substr(0, end))) parts.push_back(record);
          buffer.erase(0, end);
        }
      }
      for (auto& record : records(rule, buffer)) parts.push_back(record);
      ASSERT_EQ(parts, whole) << text;
    }
  }
}

}  // namespace
}  // namespace weft
