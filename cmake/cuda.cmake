# src/backend/cuda, when QR_CUDA is on: .cu files by nvcc for Hopper, the glue in C by the C compiler. The CUDA
# runtime is linked as an archive, which opens the driver when a device is opened: the program needs only libc to
# start and runs where there is no GPU.
set(QR_CUDA_FOLDER)
set(QR_CUDA_OBJECTS)
if(NOT QR_CUDA)
    return()
endif()
find_program(QR_NVCC nvcc PATHS /usr/local/cuda/bin)
if(NOT QR_NVCC)
    message(FATAL_ERROR "QR_CUDA needs nvcc (CUDA 13): not on PATH, not in /usr/local/cuda/bin")
endif()
cmake_path(GET QR_NVCC PARENT_PATH cuda_home)
cmake_path(GET cuda_home PARENT_PATH cuda_home)
find_path(QR_CUDA_INCLUDE cuda_runtime_api.h PATHS ${cuda_home}/include NO_DEFAULT_PATH REQUIRED)
find_library(QR_CUDART libcudart_static.a PATHS ${cuda_home}/lib64 NO_DEFAULT_PATH REQUIRED)

set(QR_CUDA_FOLDER cuda)
set(nvcc_flags -std=c++17 -O3 -lineinfo -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr
    -I${CMAKE_SOURCE_DIR}/src -I${CMAKE_SOURCE_DIR}/include -I${generated}
    -Xcompiler -fPIC,-fno-exceptions,-fno-threadsafe-statics,-Wall,-Wextra,-fvisibility=hidden)
if(QR_WERROR)
    list(APPEND nvcc_flags -Werror all-warnings -Xcompiler -Werror)
endif()
file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/backend/cuda/*.cu)
foreach(file IN LISTS cuda_sources)
    cmake_path(GET file STEM name)
    set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
    add_custom_command(OUTPUT ${object}
        COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/cuda
        COMMAND ${QR_NVCC} ${nvcc_flags} -MD -MF ${object}.d -c ${file} -o ${object}
        DEPENDS ${file} DEPFILE ${object}.d COMMENT "nvcc ${name}.cu" VERBATIM)
    list(APPEND QR_CUDA_OBJECTS ${object})
endforeach()
set_source_files_properties(${QR_CUDA_OBJECTS} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)

# bench/gpu/*.cu: programs over the backend's own launchers
function(qr_cuda_benches)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/gpu/*.cu)
    foreach(file IN LISTS sources)
        cmake_path(GET file STEM name)
        set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
        add_custom_command(OUTPUT ${object}
            COMMAND ${QR_NVCC} ${nvcc_flags} -MD -MF ${object}.d -c ${file} -o ${object}
            DEPENDS ${file} DEPFILE ${object}.d COMMENT "nvcc ${name}.cu" VERBATIM)
        add_executable(${name} ${object})
        set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
        set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C)
        target_link_libraries(${name} PRIVATE qr_backend qr_base stdc++)
    endforeach()
endfunction()
