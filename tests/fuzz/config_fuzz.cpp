// config.json of a model: reading it, and writing what was read for every class that can express it.
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/target.h"
#include "data/storage/json.h"
#include "tests/fuzz/fuzz_support.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  fuzz::accepts([&] {
    const nlohmann::json config = parse_strict(fuzz::text_of(data, size), "config.json", std::uint64_t{1} << 20);
    const HubTarget& own = hub_target_of(config, "config.json");
    const HubModel model = own.read_config(config, "config.json");
    fuzz::expect(own.obstacles(model.model).empty(), "a class expresses what was read from it");
    for (const HubTarget& target : hub_targets()) {
      if (!target.obstacles(model.model).empty()) continue;
      const nlohmann::json written = target.write_config(model);
      target.read_config(written, "written config.json");
    }
  });
  return 0;
}
