#include "modules/mixer.h"

namespace weft {

const MixerType* find_mixer(const std::string& name) {
  for (const MixerType* type : mixer_types()) {
    if (type->name == name) return type;
  }
  return nullptr;
}

}  // namespace weft
