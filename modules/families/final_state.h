// Whether a recurrent operation gives its final states. They are as large as the memories of all documents, so where
// memories are large they are made on request.
#pragma once

#include <cstdint>

namespace weft {

enum class FinalState : std::uint8_t { skip, keep };

}  // namespace weft
