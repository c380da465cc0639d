// Events of a stream, for autograd/stopwatch.h.
#pragma once

#include "autograd/device.h"

namespace weft {

void* create_cuda_event();  // cudaEvent_t
void destroy_cuda_event(void* event) noexcept;
void record_cuda_event(void* event, const Stream& stream);
// Waits until the second has happened.
double seconds_between_cuda_events(void* first, void* second);

}  // namespace weft
