#include "train/hub/model_card.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/hub_facts.h"
#include "data/storage/json.h"
#include "train/loop/initial_parameters.h"

namespace weft {
namespace {

// Which model this one began as; empty names: none.
struct Base {
  std::string name;          // the last part of its path
  bool is_imported = false;  // from another library
  bool is_trained = true;    // further, by weft
};

Base base_of(const CheckpointReader& checkpoint) {
  const nlohmann::json& provenance = checkpoint.provenance();
  const std::string source = checkpoint.directory().string();
  const auto last_part = [](const std::string& path) {
    const std::filesystem::path normal = std::filesystem::path(path).lexically_normal();
    return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
  };
  const bool began = provenance.contains(kInitFromKey);
  if (provenance.contains(kImportedFromKey)) {
    return {last_part(require_string(provenance, kImportedFromKey, source)), true, began};
  }
  if (!began) return {};
  return {last_part(require_string(require_object(provenance, kInitFromKey, source), "path", source)), false, true};
}

std::string data_of(const Recipe& recipe) {
  std::string data;
  for (const SourceOptions& source : source_options(recipe)) data += fmt::format("\n- `{}`", source.path);
  if (recipe.task) data += fmt::format("\n- the synthetic task {}", recipe.task->type->name);
  return data;
}

// The part of the card on how the parameters came to be.
std::string training_of(const LoadedModel& loaded, const Base& base) {
  const Recipe& recipe = loaded.recipe;
  if (!base.is_trained) {
    return fmt::format(
        "The parameters are those of `{}`: weft has not trained them. Its card says how they were made.\n", base.name);
  }
  return fmt::format(
      R"(## Training data
{data}

Describe what these hold, where they come from, and under which terms.

## Training

{start}{steps} steps of {batch} tokens in rows of {length}. Recipe digest `{digest}`.
)",
      fmt::arg("data", data_of(recipe)),
      fmt::arg("start", base.name.empty() ? "" : fmt::format("From the parameters of `{}`: ", base.name)),
      fmt::arg("steps", loaded.step), fmt::arg("batch", recipe.data.batch_tokens),
      fmt::arg("length", recipe.data.sequence_length), fmt::arg("digest", recipe_digest(recipe)));
}

}  // namespace

std::string model_card(const LoadedModel& loaded, const HubTarget& target) {
  const Recipe& recipe = loaded.recipe;
  const LanguageModelConfig& model = loaded.model->config();
  const Base base = base_of(CheckpointReader(loaded.checkpoint));
  const bool own = target.name == "weft";
  return fmt::format(
      R"(---
library_name: transformers
pipeline_tag: text-generation
license: # fill in
base_model: {base}
tags:
- weft
---

# {name}

A language model of {millions:.1f} million parameters: {layers} layers of width {width} with the mixers {pattern}.
{made} with weft; exported as `{target}`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
{note}
{training}
## Evaluation

| task | metric | value |
| --- | --- | --- |
| | | |

## Licence

State the licence of the weights, and that of the base model if there is one.
)",
      fmt::arg("name", recipe.run.name),
      fmt::arg("millions", static_cast<double>(loaded.model->parameters().element_count()) * 1e-6),
      fmt::arg("layers", model.layers), fmt::arg("width", model.width),
      fmt::arg("pattern", fmt::join(recipe.model.pattern, ", ")), fmt::arg("target", target.name),
      fmt::arg("trust", own ? ", trust_remote_code=True" : ""),
      fmt::arg("note", own ? "\nThe Python files beside the weights need PyTorch and transformers only.\n" : ""),
      fmt::arg("base", base.is_imported    ? fmt::format("# fill in the id of {}", base.name)
                       : base.name.empty() ? "# none"
                                           : fmt::format("# fill in if {} is published", base.name)),
      fmt::arg("made", base.is_trained ? "Trained" : "Converted"), fmt::arg("training", training_of(loaded, base)));
}

}  // namespace weft
