#include "train/evaluate/requests.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "autograd/transfer.h"
#include "data/storage/file.h"
#include "data/storage/json.h"

// V vocabulary.

namespace weft {
namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kMostLineBytes = std::uint64_t{64} << 20;
constexpr std::int64_t kRowTokens = 4096;  // short requests share a row

// Bytes of the last character of `text` if it is white space, as Python's str.rstrip has it; else 0.
std::size_t trailing_space(std::string_view text) {
  static constexpr std::array<std::string_view, 29> kSpaces = {
      " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",
      "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
      "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};
  for (const std::string_view space : kSpaces) {
    if (text.ends_with(space)) return space.size();
  }
  return 0;
}

// What stands for an empty context.
std::int32_t first_token(const Tokenizer& tokenizer) {
  return static_cast<std::int32_t>(tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : tokenizer.eos_id());
}

// Framed as a prompt, unless the text spells the first token itself.
std::vector<std::int32_t> encode_framed(const std::string& text, const Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids = tokenizer.encode(text, EncodeMode::markup);
  if (!ids.empty() && ids.front() == first_token(tokenizer)) return ids;
  return tokenizer.encode(text, EncodeMode::prompt);
}

ContinuationScore score_of(std::span<const std::int32_t> continuation, std::span<const float> logits, std::size_t V) {
  ContinuationScore score{.is_greedy = true, .tokens = static_cast<std::int64_t>(continuation.size())};
  for (std::size_t t = 0; t < continuation.size(); ++t) {
    const std::span<const float> row = logits.subspan(t * V, V);
    const auto best = std::ranges::max_element(row);
    double sum = 0.0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit) - static_cast<double>(*best));
    const auto token = static_cast<std::size_t>(continuation[t]);
    score.log_likelihood += static_cast<double>(row[token]) - static_cast<double>(*best) - std::log(sum);
    score.is_greedy = score.is_greedy && static_cast<std::size_t>(best - row.begin()) == token;
  }
  return score;
}

}  // namespace

EncodedRequest encode_request(const ScoreRequest& request, const Tokenizer& tokenizer) {
  if (request.context.empty()) {
    EncodedRequest encoded{.context = {}, .continuation = tokenizer.encode(request.continuation, EncodeMode::markup)};
    const std::int32_t first = first_token(tokenizer);
    if (first < 0) config_error("an empty context needs a tokenizer with a BOS or an end-of-document token");
    encoded.context = {first};
    if (!encoded.continuation.empty() && encoded.continuation.front() == first) {
      encoded.continuation.erase(encoded.continuation.begin());
    }
    return encoded;
  }
  std::string_view context = request.context;
  while (const std::size_t space = trailing_space(context)) context.remove_suffix(space);
  std::vector<std::int32_t> whole = encode_framed(request.context + request.continuation, tokenizer);
  const std::size_t split = std::min(encode_framed(std::string(context), tokenizer).size(), whole.size());
  const auto at = whole.begin() + static_cast<std::ptrdiff_t>(split);
  return {.context = {whole.begin(), at}, .continuation = {at, whole.end()}};
}

std::vector<ScoreRequest> read_requests(const std::string& path) {
  const std::string text = read_small_file(path, kMostBytes);
  std::vector<ScoreRequest> requests;
  std::size_t line = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view content = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", path, line);
    const nlohmann::json json = parse_strict(content, where, kMostLineBytes);
    requests.push_back({require_string(json, "context", where), require_string(json, "continuation", where)});
  }
  return requests;
}

void score_requests(LanguageModel& model, const Place& place, const Tokenizer& tokenizer,
                    const std::vector<ScoreRequest>& requests, std::int64_t max_length,
                    const std::function<void(const ContinuationScore&)>& done) {
  const auto V = static_cast<std::size_t>(model.config().vocabulary);
  // A row of documents under way, and what is asked of each.
  std::vector<std::int32_t> row, lengths;
  std::vector<std::int64_t> positions;
  std::vector<std::vector<std::int32_t>> continuations;
  const auto flush = [&] {
    if (row.empty()) return;
    Tape tape(place.arena, Tape::Mode::inference, place.stream);
    const Tensor tokens = tape.here(Tensor::from({static_cast<std::int64_t>(row.size())}, row));
    const Tensor logits =
        to_host(model.logits_at(tape, tokens, Documents::from_lengths(lengths), positions), place.stream);
    std::size_t first = 0;
    for (const std::vector<std::int32_t>& continuation : continuations) {
      done(score_of(continuation, logits.span<float>().subspan(first * V, continuation.size() * V), V));
      first += continuation.size();
    }
    row.clear();
    lengths.clear();
    positions.clear();
    continuations.clear();
  };
  for (std::size_t i = 0; i < requests.size(); ++i) {
    EncodedRequest encoded = encode_request(requests[i], tokenizer);
    const auto asked = static_cast<std::int64_t>(encoded.continuation.size());
    if (asked == 0 || asked > max_length) {
      config_error("request {}: its continuation has {} tokens; expected 1 to {}", i + 1, asked, max_length);
    }
    if (encoded.context.empty()) config_error("request {}: its context is white space alone", i + 1);
    std::vector<std::int32_t> ids = std::move(encoded.context);
    ids.insert(ids.end(), encoded.continuation.begin(), encoded.continuation.end() - 1);
    if (static_cast<std::int64_t>(ids.size()) > max_length) ids.erase(ids.begin(), ids.end() - max_length);
    const auto length = static_cast<std::int64_t>(ids.size());
    if (static_cast<std::int64_t>(row.size()) + length > kRowTokens) flush();
    for (std::int64_t t = length - asked; t < length; ++t) {
      positions.push_back(static_cast<std::int64_t>(row.size()) + t);
    }
    row.insert(row.end(), ids.begin(), ids.end());
    lengths.push_back(static_cast<std::int32_t>(length));
    continuations.push_back(std::move(encoded.continuation));
  }
  flush();
}

}  // namespace weft
