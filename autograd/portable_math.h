// log, sin and cos of fp64 arguments from weft's own series: the same bits with every C library, so that initial
// weights are reproducible across machines. Accurate to a few 1e-16; not for inner loops.
#pragma once

namespace weft {

double portable_log(double x);          // x > 0
double portable_exp(double x);          // |x| < 700
double portable_cos_2pi(double turns);  // cos(2 pi turns), 0 <= turns < 1

}  // namespace weft
