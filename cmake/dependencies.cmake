# What Debian 12 brings. Programs link the archives and so need libc alone; the archives are not
# position-independent, so libquire.so links the shared libraries. libcurl is opened at run time by the
# one verb that needs it; its header is all the build wants.
find_package(Threads REQUIRED)

function(qr_find_archive variable name package)
    find_library(${variable} NAMES lib${name}.a)
    if(NOT ${variable})
        message(FATAL_ERROR "lib${name}.a is missing: apt-get install ${package} (or run ./dev, which does)")
    endif()
endfunction()

qr_find_archive(QR_JANSSON jansson libjansson-dev)
qr_find_archive(QR_PCRE2 pcre2-8 libpcre2-dev)
qr_find_archive(QR_UTF8PROC utf8proc libutf8proc-dev)
qr_find_archive(QR_EVENT_CORE event_core libevent-dev)
qr_find_archive(QR_EVENT_PTHREADS event_pthreads libevent-dev)
find_path(QR_CURL_INCLUDE curl/curl.h)
if(NOT QR_CURL_INCLUDE)
    message(FATAL_ERROR "curl/curl.h is missing: apt-get install libcurl4-openssl-dev (or run ./dev)")
endif()

add_library(qr_deps_base INTERFACE)
target_link_libraries(qr_deps_base INTERFACE ${QR_JANSSON} Threads::Threads m ${CMAKE_DL_LIBS})

add_library(qr_deps_text INTERFACE)
target_compile_definitions(qr_deps_text INTERFACE UTF8PROC_STATIC PCRE2_STATIC)
target_link_libraries(qr_deps_text INTERFACE ${QR_PCRE2} ${QR_UTF8PROC})

# llhttp comes as C sources (package node-llhttp): compiled here, without our warnings.
find_path(QR_LLHTTP_SOURCE llhttp.c PATHS /usr/share/llhttp NO_DEFAULT_PATH)
find_path(QR_LLHTTP_INCLUDE llhttp.h PATHS /usr/share/include/llhttp NO_DEFAULT_PATH)
if(NOT QR_LLHTTP_SOURCE OR NOT QR_LLHTTP_INCLUDE)
    message(FATAL_ERROR "llhttp is missing: apt-get install node-llhttp (or run ./dev, which does)")
endif()
add_library(qr_llhttp STATIC ${QR_LLHTTP_SOURCE}/api.c ${QR_LLHTTP_SOURCE}/http.c ${QR_LLHTTP_SOURCE}/llhttp.c)
target_include_directories(qr_llhttp SYSTEM PUBLIC ${QR_LLHTTP_INCLUDE})
target_compile_options(qr_llhttp PRIVATE -w)
# The strict grammar: no bare LF, no stray bytes in a URL or a chunk size.
target_compile_definitions(qr_llhttp PUBLIC LLHTTP_STRICT_MODE=1)

add_library(qr_deps_server INTERFACE)
target_link_libraries(qr_deps_server INTERFACE qr_llhttp ${QR_EVENT_CORE} ${QR_EVENT_PTHREADS} Threads::Threads)

set(QR_SHARED_DEPENDENCIES jansson pcre2-8 utf8proc Threads::Threads m ${CMAKE_DL_LIBS})
