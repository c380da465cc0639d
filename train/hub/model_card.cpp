#include "train/hub/model_card.h"

namespace weft {

std::string model_card(const LoadedModel& loaded, const HubTarget& target) {
  const Recipe& recipe = loaded.recipe;
  const LanguageModelConfig& model = loaded.model->config();
  std::string data;
  for (const SourceOptions& source : source_options(recipe)) data += fmt::format("\n- `{}`", source.path);
  if (recipe.task) data += fmt::format("\n- the synthetic task {}", recipe.task->type->name);
  const bool own = target.name == "weft";
  return fmt::format(
      R"(---
library_name: transformers
pipeline_tag: text-generation
license: # fill in
base_model: # fill in if the weights come from another model
tags:
- weft
---

# {name}

A language model of {millions:.1f} million parameters: {layers} layers of width {width} with the mixers {pattern}.
Trained with weft; exported as `{target}`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
{note}
## Training data
{data}

Describe what these hold, where they come from, and under which terms.

## Training

{steps} steps of {batch} tokens in rows of {length}. Recipe digest `{digest}`.

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
      fmt::arg("data", data), fmt::arg("steps", loaded.step), fmt::arg("batch", recipe.data.batch_tokens),
      fmt::arg("length", recipe.data.sequence_length), fmt::arg("digest", recipe_digest(recipe)));
}

}  // namespace weft
