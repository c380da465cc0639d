// Against ids that the sentencepiece package made (tests/golden/sentencepiece_models.py), and files that would harm the
// library.
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sentencepiece_processor.h>

#include "autograd/philox.h"
#include "data/dataset_test_support.h"
#include "data/storage/json.h"
#include "data/tokenizers/sentencepiece/protobuf_reader.h"
#include "data/tokenizers/sentencepiece/sentencepiece_tokenizer.h"
#include "data/tokenizers/stream_decoder.h"
#include "data/tokenizers/tokenizer_files.h"

namespace weft {
namespace {

using data_test::message_of;
using nlohmann::json;

const std::string kFolder = "tests/golden/sentencepiece/";

std::string golden(const std::string& name) {
  return read_small_file(kFolder + name + ".model", 1 << 20);
}

class GoldenSentencePiece : public testing::TestWithParam<const char*> {};

TEST_P(GoldenSentencePiece, SameIdsAndTexts) {
  const json expected = read_json_file(kFolder + "cases.json")[GetParam()];
  const auto tokenizer = parse_tokenizer_model(golden(GetParam()), GetParam());
  EXPECT_EQ(tokenizer->vocab_size(), expected["vocab_size"].get<std::int64_t>());
  EXPECT_EQ(tokenizer->bos_id(), expected["bos_id"].get<std::int64_t>());
  EXPECT_EQ(tokenizer->eos_id(), expected["eos_id"].get<std::int64_t>());
  ASSERT_GE(expected["cases"].size(), 25u);
  for (const json& one : expected["cases"]) {
    const auto text = one["text"].get<std::string>();
    const auto ids = one["ids"].get<std::vector<std::int32_t>>();
    EXPECT_EQ(tokenizer->encode(text), ids) << text;
    EXPECT_EQ(tokenizer->decode(ids), one["decoded"].get<std::string>()) << text;
    std::vector<std::uint16_t> narrow;
    tokenizer->encode(text, narrow);
    EXPECT_TRUE(std::equal(narrow.begin(), narrow.end(), ids.begin(), ids.end())) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenSentencePiece, testing::Values("bpe_bytes", "unigram", "bpe_plain"),
                         [](const auto& model) { return std::string(model.param); });

std::string long_text(std::size_t bytes) {
  RandomWords words(3, RandomStream::test, 0);
  const std::vector<std::string> stock = {"bana", "kor ", "  ", "vis", "\n", "\u0434\u043e\u043c ",
                                          "2026", " ",    "m",  "<s>"};
  std::string text;
  while (text.size() < bytes) text += stock[words.below(stock.size())];
  return text;
}

// Long texts go through the library in parts, which must not show.
TEST(SentencePiece, PartsGiveWhatTheWholeGives) {
  for (const char* name : {"bpe_bytes", "bpe_plain"}) {
    sentencepiece::SentencePieceProcessor whole;
    ASSERT_TRUE(whole.LoadFromSerializedProto(golden(name)).ok());
    const auto tokenizer = parse_tokenizer_model(golden(name), name);
    const std::string text = long_text(200'000);
    std::vector<int> expected;
    ASSERT_TRUE(whole.Encode(text, &expected).ok());
    EXPECT_EQ(tokenizer->encode(text), expected) << name;
  }
}

TEST(SentencePiece, CountsTheBytesOfTexts) {
  const auto tokenizer = parse_tokenizer_model(golden("bpe_bytes"), "m");
  for (const std::string text : {"bana \u0434\u043e\u043c \u6c34 \U0001f600", "a  b", "<tool>"}) {
    std::size_t bytes = 0;
    for (const std::int32_t id : tokenizer->encode(text)) bytes += static_cast<std::size_t>(tokenizer->text_bytes(id));
    EXPECT_EQ(bytes, text.size() + 1) << text;  // and the dummy prefix
  }
  EXPECT_EQ(tokenizer->text_bytes(0), 0);
  EXPECT_EQ(tokenizer->text_bytes(1), 0);
  EXPECT_TRUE(tokenizer->is_special(1));
  EXPECT_FALSE(tokenizer->is_special(0));
}

TEST(SentencePiece, StreamsWholeCharacters) {
  const auto tokenizer = parse_tokenizer_model(golden("bpe_bytes"), "m");
  const std::string text = "bana \U0001f600 caf\u00e9 \u4e16";
  StreamDecoder decoder(*tokenizer);
  std::string streamed;
  bool held_back = false;
  for (const std::int32_t id : tokenizer->encode(text)) {
    const std::string piece = decoder.push(id);
    EXPECT_EQ(piece.find("\uFFFD"), std::string::npos);
    held_back = held_back || piece.empty();
    streamed += piece;
  }
  EXPECT_EQ(streamed + decoder.finish(), text);
  EXPECT_TRUE(held_back);
}

TEST(SentencePiece, SpecialTokensOnlyWhereAsked) {
  const auto tokenizer = parse_tokenizer_model(golden("bpe_bytes"), "m");
  const std::vector<std::int32_t> bana = tokenizer->encode("bana");
  const std::vector<std::int32_t> plain = tokenizer->encode("<s>bana</s>");
  EXPECT_EQ(std::count_if(plain.begin(), plain.end(), [&](std::int32_t id) { return tokenizer->is_special(id); }), 0);
  const std::vector<std::int32_t> markup = tokenizer->encode("<s> bana</s>", EncodeMode::markup);
  EXPECT_EQ(markup.front(), 1);
  EXPECT_EQ(markup.back(), 2);
  // The space in the text is the one that the dummy prefix would be.
  EXPECT_EQ(std::vector<std::int32_t>(markup.begin() + 1, markup.end() - 1), bana);
  std::vector<std::int32_t> prompt = tokenizer->encode("bana", EncodeMode::prompt);
  EXPECT_EQ(prompt.front(), tokenizer->bos_id());
  prompt.erase(prompt.begin());
  EXPECT_EQ(prompt, bana);
  EXPECT_EQ(tokenizer->encode("", EncodeMode::markup), std::vector<std::int32_t>{});
}

TEST(SentencePiece, PromptsBeginWithBosUnlessTheConfigSaysNo) {
  const data_test::TemporaryFolder folder;
  data_test::write_text(folder / "tokenizer.model", golden("bpe_bytes"));
  const auto prompt = [&](const char* config) {
    data_test::write_text(folder / "tokenizer_config.json", config);
    const TokenizerBundle opened = open_tokenizer(folder / "");
    const std::vector<std::int32_t> ids = opened.tokenizer->encode("bana", EncodeMode::prompt);
    // As a checkpoint keeps it.
    const TokenizerBundle kept = restore_tokenizer(identity_of(*opened.tokenizer), opened.files, "kept");
    EXPECT_EQ(kept.tokenizer->encode("bana", EncodeMode::prompt), ids) << config;
    return ids;
  };
  const std::vector<std::int32_t> bana = parse_tokenizer_model(golden("bpe_bytes"), "m")->encode("bana");
  std::vector<std::int32_t> with_bos = bana;
  with_bos.insert(with_bos.begin(), 1);
  EXPECT_EQ(prompt("{}"), with_bos);
  EXPECT_EQ(prompt(R"({"add_bos_token": true})"), with_bos);
  EXPECT_EQ(prompt(R"({"add_bos_token": false})"), bana);
  const std::string config = folder / "tokenizer_config.json";
  EXPECT_EQ(message_of(ExitCode::storage, [&] { prompt(R"({"add_bos_token": "no"})"); }),
            config + ": key \"add_bos_token\": expected true or false, found string");
}

TEST(SentencePiece, InvalidUtf8IsReplaced) {
  const auto tokenizer = parse_tokenizer_model(golden("bpe_bytes"), "m");
  EXPECT_EQ(tokenizer->encode("a\xFF z"), tokenizer->encode("a\uFFFD z"));
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{560}), Error);
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{-1}), Error);
}

TEST(SentencePiece, BoundariesAreGivenOrTheModelsOwn) {
  const auto own = parse_tokenizer_model(golden("unigram"), "m");
  EXPECT_EQ(own->bos_id(), -1);
  EXPECT_EQ(own->eos_id(), 1);
  EXPECT_EQ(own->token_id("<mask>"), 3);
  EXPECT_EQ(own->token_id("nothing"), -1);
  const auto given = parse_tokenizer_model(golden("unigram"), "m", {.bos = 3, .eos = 0});
  EXPECT_EQ(given->bos_id(), 3);
  EXPECT_EQ(given->eos_id(), 0);
  EXPECT_NE(own->fingerprint(), given->fingerprint());
  EXPECT_EQ(own->fingerprint(), parse_tokenizer_model(golden("unigram"), "other")->fingerprint());
  EXPECT_EQ(
      message_of(ExitCode::storage, [] { parse_tokenizer_model(golden("unigram"), "m", {.bos = 320, .eos = 0}); }),
      "m: id 320 is no piece of its 320");
}

// Files that someone made to do harm, or that a disk damaged.

SentencePieceModel small_model() {
  SentencePieceModel model;
  model.pieces = {{"<unk>", 0, PieceType::unknown}, {"a", -1, PieceType::normal}, {"\u2581", -2, PieceType::normal}};
  return model;
}

std::string refusal(const std::string& file) {
  return message_of(ExitCode::storage, [&] { parse_tokenizer_model(file, "f"); });
}

std::string refusal(const std::function<void(SentencePieceModel&)>& change) {
  SentencePieceModel model = small_model();
  change(model);
  return refusal(serialize(model, true));
}

std::string with_trainer(std::uint32_t number, std::uint64_t value) {
  std::string trainer;
  append_varint(number, value, trainer);
  std::string file = serialize(small_model(), true);
  append_bytes(2, trainer, file);
  return file;
}

TEST(HostileSentencePiece, SmallModelIsGood) {
  EXPECT_EQ(parse_tokenizer_model(serialize(small_model(), true), "f")->encode("aa"),
            (std::vector<std::int32_t>{2, 1, 1}));
}

TEST(HostileSentencePiece, Messages) {
  using std::string_literals::operator""s;
  EXPECT_EQ(refusal(""s), "f: not a sentencepiece model: it has no pieces");
  EXPECT_EQ(refusal("\x0A\xFF\xFF\xFF\xFF\x0F"s), "f: byte 0: field 1 claims 4294967295 bytes, the message has 0 left");
  EXPECT_EQ(refusal("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F"s), "f: byte 1: a number of more than 64 bits");
  EXPECT_EQ(refusal("\x0A\x80"s), "f: byte 1: the file ends within a number");
  EXPECT_EQ(refusal("\x0B\x01"s), "f: byte 0: field 1 has the unknown type 3");
  EXPECT_EQ(refusal("\x02\x01"s), "f: byte 0: no field begins here");
  EXPECT_EQ(refusal("\x08\x01"s), "f: byte 0: pieces (field 1) has type 0, expected 2");
  EXPECT_EQ(refusal("\x0A\x05\x0A\x01\x61\x15\x00"s), "f: byte 6: 4 bytes are expected, the message has 1 left");
  EXPECT_EQ(refusal("{\"model\":{}}"s), "f: byte 0: field 15 has the unknown type 3");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[1].text = ""; }), "f: piece 1 is empty");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[1].text = std::string(1025, 'a'); }),
            "f: piece 1 has 1025 bytes, at most 1024 are read");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[1].text = "\xC3"; }), "f: piece 1 (\"\uFFFD\") is no text in UTF-8");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[1].text = "a\0b"s; }), "f: piece 1 (\"a?b\") is no text in UTF-8");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[1].score = NAN; }), "f: piece 1 has the score nan");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[1].type = static_cast<PieceType>(9); }),
            "f: piece 1 has the unknown type 9");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[2].text = "a"; }), "f: pieces 1 and 2 are both \"a\"");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[0].type = PieceType::control; }),
            "f: 0 pieces of type unknown, expected one");
  EXPECT_EQ(refusal([](auto& m) { m.pieces[1].type = PieceType::unknown; }),
            "f: 2 pieces of type unknown, expected one");
  EXPECT_EQ(refusal([](auto& m) { m.pieces.resize(1); }), "f: it has no piece of text");
  EXPECT_EQ(refusal([](auto& m) { m.byte_fallback = true; }),
            "f: it falls back to bytes, but has 0 byte pieces, not 256");
  EXPECT_EQ(refusal([](auto& m) {
              m.pieces.push_back({"<0x0g>", 0, PieceType::byte});
            }),
            "f: piece 3 (\"<0x0g>\") is of type byte, but not <0xNN>");
  EXPECT_EQ(refusal([](auto& m) {
              m.pieces.push_back({"<0x0A>", 0, PieceType::byte});
            }),
            "f: it has 1 byte pieces, but does not fall back to bytes");
  // Encoding it, the library would lose count of the text.
  EXPECT_EQ(refusal([](auto& m) {
              m.algorithm = SentencePieceModel::Algorithm::bpe;
              m.pieces.push_back({"\u00e9", 0, PieceType::control});
            }),
            "f: piece 3 (\"\u00e9\") is of type control, but the library finds single characters in texts");
  EXPECT_EQ(refusal(with_trainer(3, 3)), "f: a model of words; weft reads unigram and BPE models");
  EXPECT_EQ(refusal(with_trainer(3, 77)), "f: the unknown model_type 77");
}

// Units of a double array, and texts.
std::string charsmap(const std::vector<std::uint32_t>& units, const std::string& texts) {
  const auto bytes = static_cast<std::uint32_t>(units.size() * 4);
  std::string map(reinterpret_cast<const char*>(&bytes), 4);
  map.append(reinterpret_cast<const char*>(units.data()), bytes);
  return map + texts;
}

constexpr std::uint32_t kUnused = 0x80000000u;  // a value, to which no label leads
std::uint32_t leads_to(std::uint32_t here, std::uint32_t base, std::uint32_t label, bool has_value) {
  return ((here ^ base) << 10) | (has_value ? 1u << 8 : 0u) | label;
}

TEST(HostileSentencePiece, Charsmaps) {
  const auto message = [](const std::string& map) { return refusal([&](auto& m) { m.charsmap = map; }); };
  const std::string damaged = "f: the compiled normalisation rules are damaged: ";
  using std::string_literals::operator""s;
  EXPECT_EQ(message("abc"), damaged + "it has 3 bytes");
  EXPECT_EQ(message("\xFF\xFF\xFF\x7F----"), damaged + "it claims an array of 2147483647 bytes, 4 follow");
  EXPECT_EQ(message("\x08\x00\x00\x00----"s), damaged + "it claims an array of 8 bytes, 4 follow");
  EXPECT_EQ(message(charsmap({leads_to(0, 0, 0, false)}, ""s)), damaged + "unit 0 leads to 255, the array has 1");

  // 'B' becomes "b": the root's children are at 256 ^ label, those of 'B' at 512, its value at 512.
  std::vector<std::uint32_t> units(768, kUnused);
  units[0] = leads_to(0, 256, 0, false);
  units[256 ^ 'B'] = leads_to(256 ^ 'B', 512, 'B', true);
  units[512] = 0x80000000u;
  SentencePieceModel good = small_model();
  good.charsmap = charsmap(units, "a\0"s);
  EXPECT_EQ(parse_tokenizer_model(serialize(good, true), "f")->encode("BaB"), (std::vector<std::int32_t>{2, 1, 1, 1}));
  EXPECT_EQ(message(charsmap(units, "a")), damaged + "its texts do not end");
  EXPECT_EQ(message(charsmap(units, "")), damaged + "a rule's text is at 0, there are 0 bytes");
  EXPECT_EQ(message(charsmap(units, "\xFF\0"s)), damaged + "its texts are no UTF-8");
  std::vector<std::uint32_t> bad = units;
  bad[512] = 0x80000001u;
  EXPECT_EQ(message(charsmap(bad, "\u00e9\0"s)), damaged + "a rule's text begins at 1, inside a character");
  bad[512] = 0xFFFFFFFFu;
  EXPECT_EQ(message(charsmap(bad, "a\0"s)), damaged + "a rule's text is at 2147483647, there are 2 bytes");
  bad = units;
  bad[256 ^ 'B'] = leads_to(256 ^ 'B', 1 << 20, 'B', true);
  EXPECT_EQ(message(charsmap(bad, "a\0"s)),
            damaged + fmt::format("unit {} leads to {}, the array has 768", 256 ^ 'B', (1 << 20) | 255));
  // Back to the root's children: "BBBB..." would match without end.
  bad[256 ^ 'B'] = leads_to(256 ^ 'B', 256, 'B', false);
  EXPECT_EQ(message(charsmap(bad, "a\0"s)),
            damaged + fmt::format("following unit {} leads round in circles", 256 ^ 'B'));
  // 40 rules for B, BB, BBB, ...: the library keeps 32 matches.
  bad.assign(256 * 42, kUnused);
  for (std::uint32_t depth = 0; depth < 41; ++depth) {
    const std::uint32_t here = depth == 0 ? 0 : (256 * depth) ^ 'B';
    bad[here] = leads_to(here, 256 * (depth + 1), depth == 0 ? 0 : 'B', depth > 0);
    bad[256 * (depth + 1)] = 0x80000000u;
  }
  EXPECT_EQ(message(charsmap(bad, "a\0"s)), damaged + "more than 32 rules match at one place");
}

// Whatever a changed byte does, it is refused or gives a tokenizer that encodes.
TEST(HostileSentencePiece, EveryChangedByte) {
  for (const char* name : {"unigram", "bpe_plain"}) {
    const std::string good = golden(name);
    RandomWords words(11, RandomStream::test, 0);
    int refused = 0;
    for (int i = 0; i < 250; ++i) {
      std::string bad = good;
      bad[words.below(bad.size())] ^= static_cast<char>(1 + words.below(255));
      if (i % 5 == 0) bad.resize(words.below(bad.size()));
      try {
        const auto tokenizer = parse_tokenizer_model(bad, "f");
        tokenizer->decode(tokenizer->encode("bana \uff21 caf\u00e9 <s> e\u0301"));
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::storage) << error.what();
        ++refused;
      }
    }
    EXPECT_GT(refused, 20);
    EXPECT_LT(refused, 250);
  }
}

}  // namespace
}  // namespace weft
