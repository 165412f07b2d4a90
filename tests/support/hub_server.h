/* A small HTTP server on a thread of its own that speaks the hub's routes, with the faults that tests want:
 * broken lines, wrong contents, redirects to another host, refusals. It records what it was asked.
 * Thread: set up before start; read records after the pull returned. */
#ifndef QR_TESTS_HUB_SERVER_H
#define QR_TESTS_HUB_SERVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HUB_SERVER_FILES_MAX    16
#define HUB_SERVER_REQUESTS_MAX 64

typedef struct hub_server_file {
    const char *path, *content;
    size_t bytes;
    bool large;              /* lfs: sha256 in the description */
    const char *sha256;      /* of a large file; any text makes a wrong one */
    bool undescribed;        /* neither size nor blob id in the description: HEAD must tell */
    const char *redirect_to; /* "http://host:port/..." */
    int break_after;         /* bytes sent before the line breaks, for the next `breaks` answers */
    int breaks;
    int fail_code, fails; /* answers `fail_code` to the next `fails` requests */
    bool ignore_range;
} hub_server_file;

typedef struct hub_server_request {
    char method[8], path[256], range[64], authorization[128];
    int code;
} hub_server_request;

typedef struct hub_server {
    int listener, port;
    pthread_t thread;
    bool stopping;
    char url[64]; /* "http://127.0.0.1:PORT" */
    const char *repo, *commit;
    const char *token; /* needed when not NULL */
    const char *info;  /* another body for the description, or NULL */
    int info_code;     /* 0: 200 */
    hub_server_file files[HUB_SERVER_FILES_MAX];
    int file_count;
    hub_server_request requests[HUB_SERVER_REQUESTS_MAX];
    int request_count;
} hub_server;

void hub_server_start(hub_server *server);
void hub_server_stop(hub_server *server);

#endif
