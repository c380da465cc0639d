#include "data/tokenizers/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/json.h"
#include "data/storage/links.h"
#include "data/tokenizers/byte_tokenizer.h"
#include "data/tokenizers/probe.h"
#include "data/tokenizers/sentencepiece/tokenizer_json_of.h"

namespace weft {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kMaxTokenizerBytes = std::uint64_t{64} << 20;
// tokenizer_config.json lists added tokens again, so that it may be as large as they are many.
constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{8} << 20;

std::optional<json> read_object(const fs::path& path) {
  std::error_code missing;
  if (!fs::is_regular_file(path, missing)) return std::nullopt;
  json object = parse_strict(read_model_file(path, kMaxConfigBytes), path.string(), kMaxConfigBytes);
  if (!object.is_object()) storage_error("{}: expected an object, found {}", path.string(), object.type_name());
  return object;
}

// The content of a token that a file states by name: a string, or an object with a "content".
std::optional<std::string> token_content(const json& object, const char* key, const std::string& source) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object()) return require_string(*found, "content", fmt::format("{}, {}", source, key));
  storage_error("{}: \"{}\" is expected to be the text of a token, found {}", source, key, found->type_name());
}

std::optional<std::int64_t> token_number(const json& object, const char* key, const std::string& source) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::nullopt;
  const json& value = found->is_array() && !found->empty() ? found->front() : *found;
  if (!value.is_number_integer()) {
    storage_error("{}: \"{}\" is expected to be an id, or a list of them, found {}", source, key, value.type_name());
  }
  return value.get<std::int64_t>();
}

// Rules 1 and 2 of make_tokenizer for one of the two. `plain` is the tokenizer without them, which knows the ids of
// names.
std::optional<std::int64_t> stated_beside(const fs::path& folder, const std::string& which, const Tokenizer& plain) {
  const std::string by_name = which + "_token";
  const std::string by_id = which + "_token_id";
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const std::string source = (folder / name).string();
    const std::optional<json> object = read_object(source);
    if (!object) continue;
    const std::optional<std::string> content = token_content(*object, by_name.c_str(), source);
    if (!content) continue;
    const std::int64_t id = plain.token_id(*content);
    if (id < 0) storage_error("{}: \"{}\" is \"{}\", which is no token of {}", source, by_name, *content, plain.name());
    return id;
  }
  for (const char* name : {"generation_config.json", "config.json"}) {
    const std::string source = (folder / name).string();
    const std::optional<json> object = read_object(source);
    if (!object) continue;
    const std::optional<std::int64_t> id = token_number(*object, by_id.c_str(), source);
    if (!id) continue;
    if (*id < 0 || *id >= plain.vocab_size()) {
      storage_error("{}: \"{}\" is {}, but {} has the ids 0 to {}", source, by_id, *id, plain.name(),
                    plain.vocab_size() - 1);
    }
    return id;
  }
  return std::nullopt;
}

using Factory = std::unique_ptr<Tokenizer> (*)(std::string, const std::string&, const BoundaryIds&);
using Reader = std::string (*)(const fs::path&, std::uint64_t);

std::unique_ptr<Tokenizer> read_tokenizer(const fs::path& path, Reader read, Factory parse, const BoundaryIds& ids) {
  BoundaryIds found = ids;
  if (!found.bos_in_prompts && path.extension() == ".model") {
    const std::string beside = (path.parent_path() / "tokenizer_config.json").string();
    if (const std::optional<json> config = read_object(beside)) found.bos_in_prompts = bos_in_prompts(*config, beside);
  }
  std::unique_ptr<Tokenizer> plain = parse(read(path, kMaxTokenizerBytes), path.string(), found);
  if (!found.bos) found.bos = stated_beside(path.parent_path(), "bos", *plain);
  if (!found.eos) found.eos = stated_beside(path.parent_path(), "eos", *plain);
  const bool same = (!found.bos || *found.bos == plain->bos_id()) && (!found.eos || *found.eos == plain->eos_id());
  return same ? std::move(plain) : parse(std::string(plain->file()), path.string(), found);
}

// The tokenizer.model of a folder whose tokenizer.json is what weft writes of it, so that its datasets stay those of
// the model; otherwise null.
std::unique_ptr<Tokenizer> written_of_model(const fs::path& folder, const BoundaryIds& ids) {
  if (!fs::exists(folder / "tokenizer.model")) return nullptr;
  std::unique_ptr<Tokenizer> model =
      read_tokenizer(folder / "tokenizer.model", read_model_file, parse_tokenizer_model, ids);
  const json config = read_object(folder / "tokenizer_config.json").value_or(nullptr);
  const SentencePieceJson written =
      tokenizer_json_of(parse_sentencepiece_model(model->file(), (folder / "tokenizer.model").string()),
                        tokenizer_json_choices(*model, config));
  const bool same = written.text == read_model_file(folder / "tokenizer.json", kMaxTokenizerBytes);
  return same ? std::move(model) : nullptr;
}

}  // namespace

std::optional<bool> bos_in_prompts(const json& tokenizer_config, const std::string& source) {
  const auto found = tokenizer_config.find("add_bos_token");
  if (found == tokenizer_config.end() || found->is_null()) return std::nullopt;
  return require_bool(tokenizer_config, "add_bos_token", source);
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name, const BoundaryIds& ids) {
  if (name == "byte") return std::make_unique<ByteTokenizer>();
  fs::path path = name;
  if (fs::is_directory(path)) {
    if (fs::exists(path / "tokenizer.json")) {
      if (std::unique_ptr<Tokenizer> original = written_of_model(path, ids)) return original;
      auto tokenizer = read_tokenizer(path / "tokenizer.json", read_model_file, parse_tokenizer_json, ids);
      if (fs::exists(path / "tokenizer.model")) {
        check_same_ids(*tokenizer,
                       *read_tokenizer(path / "tokenizer.model", read_model_file, parse_tokenizer_model, ids), name);
      }
      return tokenizer;
    }
    if (fs::exists(path / "tokenizer.model"))
      return read_tokenizer(path / "tokenizer.model", read_model_file, parse_tokenizer_model, ids);
    config_error("tokenizer \"{}\": the folder has neither tokenizer.json nor tokenizer.model", name);
  }
  if (!fs::exists(path)) config_error("tokenizer \"{}\": neither \"byte\" nor the path of a tokenizer's file", name);
  // Where a link leads that is named itself is the user's choice.
  if (path.extension() == ".json") return read_tokenizer(path, read_small_file, parse_tokenizer_json, ids);
  if (path.extension() == ".model") return read_tokenizer(path, read_small_file, parse_tokenizer_model, ids);
  config_error("tokenizer \"{}\": expected \"byte\", a tokenizer.json or tokenizer.model, or a folder that holds one",
               name);
}

}  // namespace weft
