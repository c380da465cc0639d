#include "modules/mixer.h"

#include <algorithm>

namespace weft {

bool is_decoding_step(const Documents& documents) {
  const std::vector<std::int32_t>& cu = documents.cu_seqlens();
  return documents.tokens() == documents.count() && std::adjacent_find(cu.begin(), cu.end()) == cu.end();
}

bool are_first_tokens(const Documents& documents) {
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    if (documents.pos0(n) != 0) return false;
  }
  return true;
}

const MixerType* find_mixer(const std::string& name) {
  for (const MixerType* type : mixer_types()) {
    if (type->name == name) return type;
  }
  return nullptr;
}

}  // namespace weft
