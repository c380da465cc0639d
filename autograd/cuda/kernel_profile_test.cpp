#include "autograd/cuda/kernel_profile.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(KernelName, LeavesWhatTellsKernelsApart) {
  EXPECT_EQ(readable_kernel_name("_ZN4weft14attention_cuda14forward_kernelILi128ELi128ELb0EEEvPKfi"),
            "attention_cuda::forward_kernel<128, 128, false>");
  EXPECT_EQ(readable_kernel_name("_ZN4weft49_GLOBAL__N__2c737eb7_16_rms_norm_cuda_cu_12d33abd23rms_norm_forward_kernelI"
                                 "fNS_7RowTileILi8ELi1ELi4EEEEEvNS_14RmsNormForwardE"),
            "rms_norm_forward_kernel<float, RowTile<8, 1, 4> >");
  EXPECT_EQ(readable_kernel_name("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT"),
            "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT");
  EXPECT_EQ(readable_kernel_name("[copy of memory]"), "[copy of memory]");
}

}  // namespace
}  // namespace weft
