#include "autograd/place.h"

namespace weft {

Place cpu_place(DType dtype, std::shared_ptr<Allocator> arena) {
  const std::shared_ptr<Allocator> heap = heap_allocator();
  return {.stream = {}, .lasting = heap, .arena = arena != nullptr ? std::move(arena) : heap, .dtype = dtype};
}

}  // namespace weft
