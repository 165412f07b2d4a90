#include "support/hub_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct answer {
    char text[8192];
    size_t len;
} answer;

static void add(answer *a, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(answer *a, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    a->len += (size_t)vsnprintf(a->text + a->len, sizeof(a->text) - a->len, format, args);
    va_end(args);
}

static void send_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = send(fd, data, bytes, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        data += n;
        bytes -= (size_t)n;
    }
}

static void send_simple(int fd, hub_server_request *request, int code, const char *type, const char *body)
{
    answer a = {.len = 0};
    request->code = code;
    add(&a, "HTTP/1.1 %d X\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", code,
        type, strlen(body));
    send_all(fd, a.text, a.len);
    if (strcmp(request->method, "HEAD") != 0)
        send_all(fd, body, strlen(body));
}

static void send_info(hub_server *server, int fd, hub_server_request *request)
{
    answer a = {.len = 0};
    add(&a, "{\"id\":\"%s\",\"sha\":\"%s\",\"siblings\":[", server->repo, server->commit);
    for (int i = 0; i < server->file_count; i++) {
        const hub_server_file *file = &server->files[i];
        add(&a, "%s{\"rfilename\":\"%s\"", i > 0 ? "," : "", file->path);
        if (!file->undescribed)
            add(&a, ",\"size\":%zu,\"blobId\":\"b%039d\"", file->bytes, i);
        if (file->large && !file->undescribed)
            add(&a, ",\"lfs\":{\"sha256\":\"%s\",\"size\":%zu,\"pointerSize\":130}", file->sha256,
                file->bytes);
        add(&a, "}");
    }
    add(&a, "]}");
    send_simple(fd, request, server->info_code != 0 ? server->info_code : 200, "application/json",
                server->info != NULL ? server->info : a.text);
}

static void send_file(hub_server_file *file, int fd, hub_server_request *request)
{
    answer a = {.len = 0};
    size_t begin = 0;
    bool ranged = request->range[0] != 0 && !file->ignore_range;
    if (ranged)
        begin = (size_t)strtoul(request->range + strlen("bytes="), NULL, 10);
    if (begin >= file->bytes && ranged) {
        send_simple(fd, request, 416, "text/plain", "no such range");
        return;
    }
    size_t bytes = file->bytes - begin;
    request->code = ranged ? 206 : 200;
    add(&a, "HTTP/1.1 %d X\r\nContent-Length: %zu\r\nConnection: close\r\nETag: \"%s\"\r\n", request->code,
        bytes, file->large ? file->sha256 : "0123abcd");
    if (ranged)
        add(&a, "Content-Range: bytes %zu-%zu/%zu\r\n", begin, file->bytes - 1, file->bytes);
    add(&a, "\r\n");
    send_all(fd, a.text, a.len);
    if (strcmp(request->method, "HEAD") == 0)
        return;
    if (file->breaks > 0 && (size_t)file->break_after < bytes) {
        file->breaks--;
        bytes = (size_t)file->break_after;
    }
    send_all(fd, file->content + begin, bytes);
}

static void answer_file(hub_server *server, hub_server_file *file, int fd, hub_server_request *request)
{
    if (file->fails > 0) {
        file->fails--;
        send_simple(fd, request, file->fail_code, "text/html", "<html>not the file</html>");
    } else if (file->redirect_to != NULL) {
        answer a = {.len = 0};
        request->code = 302;
        add(&a,
            "HTTP/1.1 302 Found\r\nLocation: %s/%s\r\nX-Linked-Etag: \"%s\"\r\nX-Linked-Size: %zu\r\n"
            "ETag: \"of the redirect\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            file->redirect_to, file->path, file->large ? file->sha256 : "0123abcd", file->bytes);
        send_all(fd, a.text, a.len);
    } else {
        send_file(file, fd, request);
    }
    (void)server;
}

static void answer_request(hub_server *server, int fd, hub_server_request *request)
{
    char wanted[160], bearer[160], resolve[160];
    snprintf(wanted, sizeof(wanted), "/api/models/%s/revision/main?blobs=true", server->repo);
    snprintf(resolve, sizeof(resolve), "/%s/resolve/%s/", server->repo, server->commit);
    snprintf(bearer, sizeof(bearer), "Bearer %s", server->token != NULL ? server->token : "");
    if (server->token != NULL && strcmp(request->authorization, bearer) != 0) {
        send_simple(fd, request, 401, "text/plain", "Invalid username or password.");
        return;
    }
    if (strcmp(request->path, wanted) == 0) {
        send_info(server, fd, request);
        return;
    }
    /* A second server plays the host of the large files: there the path is the file's name alone. */
    const char *path = strncmp(request->path, resolve, strlen(resolve)) == 0 ? request->path + strlen(resolve)
                                                                             : request->path + 1;
    for (int i = 0; i < server->file_count; i++)
        if (strcmp(path, server->files[i].path) == 0) {
            answer_file(server, &server->files[i], fd, request);
            return;
        }
    send_simple(fd, request, 404, "text/plain", "Repository not found");
}

static void copy_header(const char *head, const char *name, char *out, size_t out_bytes)
{
    const char *at = strcasestr(head, name);
    out[0] = 0;
    if (at != NULL)
        snprintf(out, out_bytes, "%.*s", (int)strcspn(at + strlen(name), "\r\n"), at + strlen(name));
}

static void serve(hub_server *server, int fd)
{
    char head[4096];
    size_t len = 0;
    head[0] = 0;
    while (strstr(head, "\r\n\r\n") == NULL && len < sizeof(head) - 1) {
        ssize_t n = recv(fd, head + len, sizeof(head) - 1 - len, 0);
        if (n <= 0)
            return;
        len += (size_t)n;
        head[len] = 0;
    }
    if (server->request_count == HUB_SERVER_REQUESTS_MAX)
        return;
    hub_server_request *request = &server->requests[server->request_count++];
    sscanf(head, "%7s %255s", request->method, request->path);
    copy_header(head, "\r\nRange: ", request->range, sizeof(request->range));
    copy_header(head, "\r\nAuthorization: ", request->authorization, sizeof(request->authorization));
    answer_request(server, fd, request);
}

static void *run(void *user)
{
    hub_server *server = user;
    for (;;) {
        int fd = accept(server->listener, NULL, NULL);
        if (fd < 0 || __atomic_load_n(&server->stopping, __ATOMIC_ACQUIRE)) {
            if (fd >= 0)
                close(fd);
            return NULL;
        }
        serve(server, fd);
        shutdown(fd, SHUT_WR);
        char rest[256];
        while (recv(fd, rest, sizeof(rest), 0) > 0)
            continue;
        close(fd);
    }
}

void hub_server_start(hub_server *server)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    server->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(server->listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(server->listener, 16) != 0 ||
        getsockname(server->listener, (struct sockaddr *)&address, &len) != 0)
        abort();
    server->port = ntohs(address.sin_port);
    snprintf(server->url, sizeof(server->url), "http://127.0.0.1:%d", server->port);
    if (pthread_create(&server->thread, NULL, run, server) != 0)
        abort();
}

void hub_server_stop(hub_server *server)
{
    __atomic_store_n(&server->stopping, true, __ATOMIC_RELEASE);
    shutdown(server->listener, SHUT_RDWR); /* wakes accept */
    pthread_join(server->thread, NULL);
    close(server->listener);
}
