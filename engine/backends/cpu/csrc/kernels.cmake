# The sources of the arithmetic, and the flags under which it is exact: shared by the module and
# by the sanitizer builds of its tests.
set(BITSKIP_OPTIONS -O3 -Wall -Wextra -ffp-contract=off -fno-math-errno)
set(BITSKIP_SOURCES model.cpp sweep.cpp head.cpp team.cpp pages.cpp dispatch.cpp kernels_scalar.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND BITSKIP_SOURCES kernels_avx2.cpp)
    set_source_files_properties(kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mbmi2")
endif()
