# The sources of the arithmetic, and the flags under which it is exact: shared by the module and
# by the sanitizer builds of its tests.
include(CheckCXXCompilerFlag)

set(BITSKIP_CSRC "${CMAKE_CURRENT_LIST_DIR}")
set(BITSKIP_OPTIONS -O3 -Wall -Wextra -ffp-contract=off -fno-math-errno)
set(BITSKIP_SOURCES model.cpp sweep.cpp head.cpp team.cpp pages.cpp dispatch.cpp kernels_scalar.cpp)
list(TRANSFORM BITSKIP_SOURCES PREPEND "${BITSKIP_CSRC}/")

# kernels_NAME.cpp, compiled with FLAGS and listed in dispatch.cpp if the compiler knows the last
# of them, the newest.
function(bitskip_instruction_set name)
    string(TOUPPER ${name} upper)
    list(GET ARGN -1 newest)
    check_cxx_compiler_flag(${newest} BITSKIP_COMPILES_${upper})
    if(NOT BITSKIP_COMPILES_${upper})
        return()
    endif()
    set(source "${BITSKIP_CSRC}/kernels_${name}.cpp")
    set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${ARGN}")
    set_property(SOURCE "${BITSKIP_CSRC}/dispatch.cpp" APPEND PROPERTY
        COMPILE_DEFINITIONS BITSKIP_${upper})
    set(BITSKIP_SOURCES ${BITSKIP_SOURCES} "${source}" PARENT_SCOPE)
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    bitskip_instruction_set(avx2 -mfma -mf16c -mbmi2 -mavx2)
    bitskip_instruction_set(avxvnni -mfma -mf16c -mavx2 -mavxvnni)
    bitskip_instruction_set(avx512vnni
        -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512vnni)
elseif(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    bitskip_instruction_set(neon -march=armv8.2-a+dotprod)
endif()
