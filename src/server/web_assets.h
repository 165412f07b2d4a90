/* The files of web/, embedded at build time (cmake/embed_web.cmake). Thread: any. */
#ifndef QR_SERVER_WEB_ASSETS_H
#define QR_SERVER_WEB_ASSETS_H

#include <stddef.h>

typedef struct qr_web_asset {
    const char *name;         /* the file's name: "index.html" */
    const char *content_type; /* "text/html; charset=utf-8" */
    const unsigned char *data;
    size_t bytes;
} qr_web_asset;

extern const qr_web_asset qr_web_assets[]; /* sorted by name */
extern const size_t qr_web_asset_count;

#endif
