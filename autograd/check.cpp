#include "autograd/check.h"

namespace weft::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(ExitCode::internal, fmt::format("{}:{}: {} ({})", file, line, message, condition));
}

}  // namespace weft::detail
