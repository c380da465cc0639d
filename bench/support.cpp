#include "bench/support.h"

#include "autograd/philox.h"

namespace weft::bench {

std::vector<MixerChoice> choices(const std::vector<std::string>& names,
                                 const std::map<std::string, OptionValue>& options) {
  constexpr std::int64_t kWindow = 256;
  std::vector<MixerChoice> list;
  for (const std::string& name : names) {
    const bool window = name == "window";
    const MixerType* type = find_mixer(window ? "attention" : name);
    WEFT_CHECK(type != nullptr, "no mixer {}", name);
    MixerChoice choice{.type = type, .options = Options(type->options), .table = "[mixer." + name + "]"};
    for (const auto& [key, value] : options) {
      if (choice.options.values().contains(key)) choice.options.set(key, value);
    }
    if (window) choice.options.set("window", kWindow);
    list.push_back(std::move(choice));
  }
  return list;
}

Text random_text(std::int64_t T, std::int64_t document) {
  Text text{.tokens = Tensor::empty({T}, DType::i32), .labels = Tensor::empty({T}, DType::i32), .documents = {}};
  RandomWords words(1, RandomStream::test, 0);
  std::vector<std::int32_t> lengths;
  for (std::int64_t t = 0; t < T; ++t) {
    text.tokens.data<std::int32_t>()[t] = static_cast<std::int32_t>(words.below(256));
    text.labels.data<std::int32_t>()[t] = static_cast<std::int32_t>(words.below(256));
  }
  for (std::int64_t left = T; left > 0; left -= document) {
    lengths.push_back(static_cast<std::int32_t>(std::min(left, document)));
  }
  text.documents = Documents::from_lengths(lengths);
  return text;
}

}  // namespace weft::bench
