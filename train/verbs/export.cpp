#include "checkpoints/huggingface/export.h"

#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/hub_facts.h"
#include "checkpoints/reader.h"
#include "data/storage/file.h"
#include "data/storage/sha256.h"
#include "train/hub/aside_folder.h"
#include "train/hub/choose_target.h"
#include "train/hub/hub_model_of.h"
#include "train/hub/model_card.h"
#include "train/hub/python_check.h"
#include "train/loop/initial_parameters.h"
#include "train/loop/run_folder.h"
#include "train/loop/run_log.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace fs = std::filesystem;
namespace {

SafetensorsDType stored_type(const std::string& name) {
  if (name == "fp32") return SafetensorsDType::f32;
  return name == "f16" ? SafetensorsDType::f16 : SafetensorsDType::bf16;
}

std::uint64_t bytes_in(const fs::path& folder) {
  std::uint64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) bytes += entry.file_size();
  return bytes;
}

nlohmann::json provenance(const LoadedModel& loaded, const HubTarget& target, const std::string& dtype,
                          const fs::path& folder) {
  const CheckpointReader checkpoint(loaded.checkpoint);
  nlohmann::json files = nlohmann::json::object();
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = {{"bytes", entry.file_size()},
                                               {"sha256", hex(sha256_file(entry.path()))}};
  }
  nlohmann::json json = {{"target", target.name},
                         {"dtype", dtype},
                         {"checkpoint", {{"digest", checkpoint.digest()}, {"step", loaded.step}}},
                         {"recipe_digest", recipe_digest(loaded.recipe)},
                         {"recipe", resolved_recipe(loaded.recipe)},
                         {"files", std::move(files)}};
  for (const char* key : {kImportedFromKey, kInitFromKey}) {
    if (checkpoint.provenance().contains(key)) json[key] = checkpoint.provenance().at(key);
  }
  if (loaded.tokenizer != nullptr) json["tokenizer_fingerprint"] = hex(loaded.tokenizer->fingerprint());
  return json;
}

nlohmann::json reread_json(const Reread& reread) {
  return {{"lengths", reread.lengths},
          {"max_logit_difference", reread.max_difference},
          {"largest_logit", reread.largest_logit}};
}

std::string figure_text(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.is_number_integer() ? value.dump() : fmt::format("{:.2g}", value.get<double>());
}

void print_result(const ExportArguments& arguments, const HubTarget& target, const nlohmann::json& verification,
                  std::uint64_t bytes) {
  if (arguments.form == OutputForm::json) {
    const nlohmann::json json = {{"out", arguments.out},
                                 {"target", target.name},
                                 {"dtype", arguments.dtype},
                                 {"bytes", bytes},
                                 {"verification", verification}};
    fmt::print("{}\n", json.dump());
    return;
  }
  const nlohmann::json& reread = verification.at("reread");
  fmt::print("{}: {}, {}, {}B\n", arguments.out, target.name, arguments.dtype, short_count(static_cast<double>(bytes)));
  fmt::print("  reread by weft: every parameter equal, logits within {:.2g} (largest {:.3g})\n",
             reread.at("max_logit_difference").get<double>(), reread.at("largest_logit").get<double>());
  if (verification.contains("tokenizer")) fmt::print("  {}\n", verification.at("tokenizer").get<std::string>());
  const nlohmann::json& python = verification.at("python");
  if (python.is_null()) {
    fmt::print("  not loaded in transformers; --verify python does that\n");
    return;
  }
  const nlohmann::json& figures = python.at("figures");
  const int excused = figures.value("greedy_excused", 0);
  fmt::print("  transformers {}: nothing missing or unexpected, greedy text equal{}",
             python.at("transformers").get<std::string>(), excused > 0 ? fmt::format(" ({} excused)", excused) : "");
  for (const auto& [name, value] : figures.items()) {
    if (name != "greedy_excused") fmt::print(", {} {}", name, figure_text(value));
  }
  fmt::print("\n");
}

// Keeps what was written, and says so.
std::string left_over(const ExportArguments& arguments, AsideFolder& aside) {
  if (aside.named()) return fmt::format("\n{} is complete, but may be lost if the machine fails now", arguments.out);
  aside.keep();
  return fmt::format("\n{} was not made; what was written stays in {}", arguments.out, aside.path().string());
}

}  // namespace

void run_export(const ExportArguments& arguments) {
  if (arguments.verify == "python") require_python(arguments.python);
  LoadedModel loaded = load_model(arguments.path);
  const HubModel hub = hub_model_of(loaded);
  const HubTarget& target = choose_target(hub.model, arguments.target, loaded.recipe.model.export_profile);
  const ExportSource source{.target = target,
                            .hub = hub,
                            .model = *loaded.model,
                            .tokenizer = loaded.tokenizer == nullptr ? nullptr : &loaded.tokenizer_files};
  const SafetensorsDType dtype = stored_type(arguments.dtype);
  AsideFolder aside(arguments.out, "unverified");
  const fs::path& staging = aside.path();
  nlohmann::json verification = {{"python", nullptr}};
  try {
    const std::string alone = write_export(
        source, {.dtype = dtype, .shard_bytes = arguments.shard_bytes, .card = model_card(loaded, target)}, staging);
    if (!alone.empty()) verification["tokenizer"] = "tokenizer.model alone, which transformers converts: " + alone;
    round_to_files(source, dtype);
    verification["reread"] = reread_json(check_export(source, staging));
    if (arguments.verify == "python") {
      verification["python"] =
          check_in_python(*loaded.model, loaded.tokenizer.get(), staging, arguments.python, arguments.verify_seconds);
    }
    nlohmann::json record = provenance(loaded, target, arguments.dtype, staging);
    record["verification"] = verification;
    write_file_atomically(staging / "weft_export.json", record.dump(2) + "\n");
    aside.take_name();
  } catch (const Error& error) {
    throw Error(error.code(), error.what() + left_over(arguments, aside));
  } catch (const std::exception& error) {
    throw Error(ExitCode::internal, error.what() + left_over(arguments, aside));
  }
  print_result(arguments, target, verification, bytes_in(arguments.out));
}

}  // namespace weft
