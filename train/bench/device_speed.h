// What a device does at best, measured here and now.
#pragma once

#include "train/bench/bench.h"
#include "train/loop/compute.h"

namespace weft {

// Takes about half a second; the arena must be open.
DeviceSpeed measure_speed(const Compute& compute);

}  // namespace weft
