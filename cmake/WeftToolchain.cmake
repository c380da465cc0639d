# Language level, warnings, sanitizers, ccache: everything a weft target inherits through weft_options.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

find_program(WEFT_CCACHE ccache)
if(WEFT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${WEFT_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${WEFT_CCACHE}")
endif()

add_library(weft_options INTERFACE)
target_include_directories(weft_options INTERFACE "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated")
set(WEFT_WARNINGS -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND WEFT_WARNINGS -Wno-restrict)  # false alarms in std::string, GCC bug 105651
endif()
target_compile_options(weft_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${WEFT_WARNINGS}>")
# Host code in .cu files gets the plain warnings. Spills of kernels are errors for the architecture that they are made for;
# for others the compiler schedules the plain kernels differently, and spills a few bytes in some of them.
target_compile_options(weft_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror;-Werror=all-warnings>")
if(WEFT_CUDA_ARCHS STREQUAL "90a")
  target_compile_options(weft_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-warn-spills>")
endif()
# fmt 9 turns constexpr off under nvcc in one place and on in another.
target_compile_definitions(weft_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>")

# Contraction is fixed (and on) so that one source gives one rounding wherever it is compiled; -fno-math-errno and
# -fno-trapping-math let loops vectorise without changing any finite result.
target_compile_options(weft_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=fast;-fno-math-errno;-fno-trapping-math>")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_options(weft_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-march=${WEFT_CPU_ARCH}>")
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")

if(WEFT_SANITIZE)
  target_compile_options(weft_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(weft_options INTERFACE -fsanitize=address,undefined)
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")
endif()

if(WEFT_TIDY)
  find_program(WEFT_CLANG_TIDY clang-tidy REQUIRED)
  set(CMAKE_CXX_CLANG_TIDY "${WEFT_CLANG_TIDY}")
endif()
