#include "train/hub/imported_recipe.h"

#include <algorithm>

#include "train/recipe/schema.h"

namespace weft {
namespace {

// The name of a mixer's table, distinct for each distinct choice of the pattern.
class TableNames {
 public:
  std::string of(const MixerChoice& choice) {
    for (const Entry& entry : entries_) {
      if (entry.choice->type == choice.type && entry.choice->options.values() == choice.options.values()) {
        return entry.name;
      }
    }
    const auto& values = choice.options.values();
    const auto window = values.find("window");
    const bool windowed = window != values.end() && std::get<std::int64_t>(window->second) > 0;
    std::string name = windowed && choice.type->name == "attention" ? "window" : choice.type->name;
    const std::string base = name;
    for (int n = 2; std::ranges::find(entries_, name, &Entry::name) != entries_.end(); ++n) {
      name = fmt::format("{}-{}", base, n);
    }
    entries_.push_back({name, &choice});
    return name;
  }

  std::string tables() const {
    std::string text;
    for (const Entry& entry : entries_) {
      text += fmt::format("\n[mixer.{}]\n", entry.name);
      if (entry.name != entry.choice->type->name)
        text += fmt::format("type = {}\n", toml_string(entry.choice->type->name));
      for (const OptionSpec& spec : entry.choice->type->options) {
        const OptionValue& value = entry.choice->options.values().at(spec.key);
        if (value != spec.default_value || spec.key == "heads")
          text += fmt::format("{} = {}\n", spec.key, toml_value(value));
      }
    }
    return text;
  }

 private:
  struct Entry {
    std::string name;
    const MixerChoice* choice;
  };
  std::vector<Entry> entries_;
};

}  // namespace

std::string imported_recipe(const LanguageModelConfig& model, const ImportedRecipe& about) {
  constexpr std::int64_t kUsualLength = 1024, kRowsPerStep = 8;
  const std::int64_t length = std::clamp<std::int64_t>(about.max_positions, 2, kUsualLength);
  TableNames names;
  std::string pattern;
  for (const MixerChoice& choice : model.pattern) {
    pattern += (pattern.empty() ? "" : ", ") + toml_string(names.of(choice));
  }
  std::string text = fmt::format(
      "# Imported from {0}\n"
      "#\n"
      "# To fine-tune the model, make a dataset with its tokenizer and train on it:\n"
      "#   weft prepare --tokenizer {1} --out data/train TEXT...\n"
      "#   weft train {1}/recipe.toml --set data.train=data/train\n"
      "# The result is a run of its own, {2}; the imported model stays as it is.\n\n",
      about.origin, about.init_from, toml_string(about.name));
  text += fmt::format("[run]\nname = {}\nsteps = 1000\n", toml_string(about.name));
  text += fmt::format(
      "\n[model]\n"
      "init_from = {}  # the imported parameters\n"
      "width = {}\nlayers = {}\npattern = [{}]\nffn = {}\n",
      toml_string(about.init_from), model.width, model.layers, pattern, model.ffn_hidden);
  if (model.ffn_bias) text += "ffn_bias = true\n";
  if (model.residual == Residual::post_norm_input) text += "residual = \"post_norm_input\"\n";
  text += fmt::format(
      "tied = {}\nvocabulary = {}\nnorm_eps = {}\n"
      "z_loss = 0.0  # pretrained models were made without it\n",
      model.tied, model.vocabulary, toml_value(model.norm_eps));
  text += names.tables();
  text += fmt::format(
      "\n[data]\n"
      "train = \"data/train\"  # yours, from weft prepare\n"
      "sequence_length = {}  # the model was made for texts of up to {} tokens\n"
      "batch_tokens = {}\n",
      length, about.max_positions, kRowsPerStep * length);
  text +=
      "\n[optimizer]\n"
      "learning_rate = 2e-5\n"
      "schedule = \"cosine\"\n"
      "warmup_steps = 20\n"
      "weight_decay = 0.0\n";
  text += "\n[validation]\nevery = 100\n";
  return text;
}

}  // namespace weft
