# cmake -DOUTPUT=x.c -DFILES=a;b -P embed_web.cmake: files as C arrays, with name and content type.
set(type_html "text/html; charset=utf-8")
set(type_css "text/css; charset=utf-8")
set(type_js "text/javascript; charset=utf-8")
set(type_json "application/json")
set(type_svg "image/svg+xml")
set(type_png "image/png")
set(type_ico "image/x-icon")
set(type_txt "text/plain; charset=utf-8")

set(arrays "")
set(rows "")
set(index 0)
list(SORT FILES)
foreach(file IN LISTS FILES)
    cmake_path(GET file FILENAME name)
    cmake_path(GET file EXTENSION LAST_ONLY extension)
    string(SUBSTRING "${extension}" 1 -1 extension)
    if(NOT DEFINED type_${extension})
        message(FATAL_ERROR "web/${name}: no content type for .${extension}; add it to cmake/embed_web.cmake")
    endif()
    file(READ ${file} hex HEX)
    file(SIZE ${file} bytes)
    string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
    string(APPEND arrays "static const unsigned char asset_${index}[] = {\n${hex}0};\n")
    string(APPEND rows "    {\"${name}\", \"${type_${extension}}\", asset_${index}, ${bytes}},\n")
    math(EXPR index "${index} + 1")
endforeach()
file(WRITE ${OUTPUT} "/* Made by cmake/embed_web.cmake from web/. */
#include \"server/web_assets.h\"

${arrays}
const qr_web_asset qr_web_assets[] = {
${rows}    {0, 0, 0, 0},
};
const size_t qr_web_asset_count = ${index};
")
