# The file is the registration: tables made from file names, in sorted order, when CMake configures.
# `row` is a macro that the including file defines.
function(qr_generate_rows output row)
    set(text "/* Made by cmake/generate.cmake from file names. */\n")
    set(names)
    foreach(file IN LISTS ARGN)
        cmake_path(GET file STEM name)
        list(APPEND names ${name})
    endforeach()
    list(SORT names)
    foreach(name IN LISTS names)
        string(APPEND text "${row}(${name})\n")
    endforeach()
    file(CONFIGURE OUTPUT ${generated}/${output} CONTENT "${text}" @ONLY)
endfunction()

file(GLOB formats CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/quant/formats/*.h)
qr_generate_rows(quant/formats.inc QR_FORMAT_ROW ${formats})
set(text "/* Made by cmake/generate.cmake from file names. */\n")
foreach(file IN LISTS formats)
    cmake_path(GET file FILENAME name)
    string(APPEND text "#include \"quant/formats/${name}\"\n")
endforeach()
file(CONFIGURE OUTPUT ${generated}/quant/format_headers.inc CONTENT "${text}" @ONLY)
file(GLOB architectures CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/model/arch/*.c)
qr_generate_rows(model/arch_list.inc QR_ARCH_ROW ${architectures})

# The chat page: every file of web/ as a byte array (src/server/web_assets.h says how to read it).
set(QR_WEB_ASSETS)
if(EXISTS ${CMAKE_SOURCE_DIR}/src/server/web_assets.h)
    file(GLOB web_files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/web/*)
    set(QR_WEB_ASSETS ${generated}/server/web_assets.c)
    add_custom_command(OUTPUT ${QR_WEB_ASSETS}
        COMMAND ${CMAKE_COMMAND} -DOUTPUT=${QR_WEB_ASSETS} "-DFILES=${web_files}"
            -P ${CMAKE_SOURCE_DIR}/cmake/embed_web.cmake
        DEPENDS ${web_files} ${CMAKE_SOURCE_DIR}/cmake/embed_web.cmake
        COMMENT "Embedding web/" VERBATIM)
endif()
