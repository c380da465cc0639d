// What a failing call says.
#pragma once

#include <gtest/gtest.h>
#include <string>

#include "autograd/check.h"

namespace weft::testing_support {

// The message of the Error that `f` throws, which must have this code; "no error" if it throws none.
template <class F>
std::string message_of(F&& f, ExitCode code = ExitCode::storage) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "no error";
}

}  // namespace weft::testing_support
