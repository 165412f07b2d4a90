# Flags of every file of ours. Numerics must not depend on what the compiler fuses, hence no
# -ffast-math and -ffp-contract=off: a fused multiply-add is written as one.
add_library(qr_flags INTERFACE)
target_compile_definitions(qr_flags INTERFACE _GNU_SOURCE)
target_include_directories(qr_flags INTERFACE
    ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include ${generated})
target_compile_options(qr_flags INTERFACE
    -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla
    -ffp-contract=off -fno-math-errno -fno-strict-aliasing -fno-semantic-interposition
    $<$<BOOL:${QR_WERROR}>:-Werror>)

# Kernels are optimised harder; under a sanitizer everything is built to be read in a report.
set(QR_KERNEL_FLAGS -O3)
if(QR_SANITIZE)
    add_compile_options(-fsanitize=${QR_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${QR_SANITIZE})
    set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O1 -g1")
    set(QR_KERNEL_FLAGS -O1)
endif()
if(QR_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES Clang)
        message(FATAL_ERROR "QR_FUZZ needs clang: CC=clang, or the preset `fuzz`")
    endif()
    add_compile_options(-fsanitize=fuzzer-no-link)
endif()

# Instruction sets by file name: the program is generic and chooses at run time.
set(QR_AVX2_FLAGS -mavx2 -mfma -mf16c -mbmi2)
set(QR_AVX512_FLAGS ${QR_AVX2_FLAGS} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mavx512vnni
    -mavx512bf16)

function(qr_file_flags)
    foreach(file IN LISTS ARGN)
        set(flags)
        if(file MATCHES "/backend/cpu/")
            list(APPEND flags ${QR_KERNEL_FLAGS})
        endif()
        if(file MATCHES "_avx512\\.c$")
            list(APPEND flags ${QR_AVX512_FLAGS})
        elseif(file MATCHES "_avx2\\.c$")
            list(APPEND flags ${QR_AVX2_FLAGS})
        endif()
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${flags}")
    endforeach()
endfunction()
