#include "data/tokenizers/tokenizer_files.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "autograd/check.h"
#include "data/storage/json.h"
#include "data/storage/links.h"
#include "data/storage/text.h"

namespace weft {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::array<std::string_view, 2> kTokenizerNames = {"tokenizer.json", "tokenizer.model"};
constexpr std::array<std::string_view, 4> kCompanionNames = {"tokenizer_config.json", "special_tokens_map.json",
                                                             "generation_config.json", "chat_template.jinja"};
constexpr std::uint64_t kMaxCompanionBytes = std::uint64_t{8} << 20;
constexpr std::size_t kShownDigits = 12;

const TokenizerFile* find_file(const std::vector<TokenizerFile>& files, std::string_view name) {
  const auto found = std::find_if(files.begin(), files.end(), [&](const auto& file) { return file.name == name; });
  return found == files.end() ? nullptr : &*found;
}

}  // namespace

TokenizerIdentity identity_of(const Tokenizer& tokenizer) {
  return {tokenizer.name(), hex(tokenizer.fingerprint()), tokenizer.bos_id(), tokenizer.eos_id()};
}

std::string shown(const TokenizerIdentity& identity) {
  if (identity.name == "byte" || identity.fingerprint.empty()) return identity.name;
  return fmt::format("{} {}", identity.name, identity.fingerprint.substr(0, kShownDigits));
}

bool is_tokenizer_file(std::string_view name) {
  return std::find(kTokenizerNames.begin(), kTokenizerNames.end(), name) != kTokenizerNames.end() ||
         std::find(kCompanionNames.begin(), kCompanionNames.end(), name) != kCompanionNames.end();
}

TokenizerBundle open_tokenizer(const std::string& name) {
  TokenizerBundle bundle{make_tokenizer(name), {}};
  if (bundle.tokenizer->file().empty()) return bundle;
  bundle.files.push_back({bundle.tokenizer->name(), std::string(bundle.tokenizer->file())});
  const fs::path folder = fs::is_directory(name) ? fs::path(name) : fs::path(name).parent_path();
  for (const std::string_view companion : kCompanionNames) {
    const fs::path path = folder / companion;
    std::error_code missing;
    if (!fs::is_regular_file(path, missing)) continue;
    bundle.files.push_back({std::string(companion), read_model_file(path, kMaxCompanionBytes)});
  }
  stop_ids(bundle);  // so that a file that cannot be read is said now, and not when text is generated
  return bundle;
}

TokenizerBundle restore_tokenizer(const TokenizerIdentity& identity, std::vector<TokenizerFile> files,
                                  const std::string& where) {
  TokenizerBundle bundle{nullptr, std::move(files)};
  if (identity.name == "byte") {
    bundle.tokenizer = make_tokenizer("byte");
  } else {
    const TokenizerFile* file = find_file(bundle.files, identity.name);
    if (std::find(kTokenizerNames.begin(), kTokenizerNames.end(), identity.name) == kTokenizerNames.end()) {
      config_error("{}: its tokenizer is \"{}\", expected byte, tokenizer.json or tokenizer.model", where,
                   identity.name);
    }
    if (file == nullptr) config_error("{}: the {} that its ids are of is missing", where, identity.name);
    BoundaryIds ids{.bos = identity.bos_id, .eos = identity.eos_id};
    if (const TokenizerFile* config = find_file(bundle.files, "tokenizer_config.json")) {
      const std::string beside = (fs::path(where) / config->name).string();
      ids.bos_in_prompts = bos_in_prompts(parse_strict(config->content, beside, kMaxCompanionBytes), beside);
    }
    const std::string source = (fs::path(where) / file->name).string();
    bundle.tokenizer = file->name == "tokenizer.json" ? parse_tokenizer_json(file->content, source, ids)
                                                      : parse_tokenizer_model(file->content, source, ids);
  }
  const TokenizerIdentity found = identity_of(*bundle.tokenizer);
  if (!identity.fingerprint.empty() && found.fingerprint != identity.fingerprint) {
    config_error("{}: its ids are of the tokenizer {}, but the file there is {}", where, shown(identity), shown(found));
  }
  return bundle;
}

std::vector<std::int32_t> stop_ids(const TokenizerBundle& bundle) {
  std::set<std::int32_t> ids;
  if (const std::int64_t eos = bundle.tokenizer->eos_id(); eos >= 0) ids.insert(static_cast<std::int32_t>(eos));
  if (const TokenizerFile* file = find_file(bundle.files, "generation_config.json")) {
    const json config = parse_strict(file->content, file->name, kMaxCompanionBytes);
    const auto eos = config.is_object() ? config.find("eos_token_id") : config.end();
    if (eos != config.end() && !eos->is_null()) {
      for (const json& id : eos->is_array() ? *eos : json::array({*eos})) {
        // A model may have more ids than its tokenizer.
        if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > (1 << 30)) {
          storage_error("{}: \"eos_token_id\" holds {}, expected ids", file->name, printable(id.dump()));
        }
        ids.insert(id.get<std::int32_t>());
      }
    }
  }
  return {ids.begin(), ids.end()};
}

}  // namespace weft
