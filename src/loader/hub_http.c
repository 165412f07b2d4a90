/* HTTP for the hub through libcurl, which is opened here and nowhere else: a program that never downloads does
 * not need it. The token travels as curl's bearer option, which curl drops when a redirect leads to another
 * host, port or scheme (large files live on other hosts). */
#include <curl/curl.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loader/hub.h"

typedef struct curl_api {
    __typeof__(curl_global_init) *global_init;
    __typeof__(curl_easy_init) *easy_init;
    __typeof__(curl_easy_cleanup) *easy_cleanup;
    __typeof__(curl_easy_reset) *easy_reset;
    __typeof__(curl_easy_setopt) *easy_setopt;
    __typeof__(curl_easy_perform) *easy_perform;
    __typeof__(curl_easy_getinfo) *easy_getinfo;
    __typeof__(curl_easy_strerror) *easy_strerror;
    __typeof__(curl_slist_append) *slist_append;
    __typeof__(curl_slist_free_all) *slist_free_all;
} curl_api;

static curl_api curl;
static bool curl_ready;
static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void open_curl(void)
{
    static const char *const names[] = {"libcurl.so.4", "libcurl-gnutls.so.4"};
    void *library = NULL;
    for (size_t i = 0; i < QR_COUNT_OF(names) && library == NULL; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return;
    const struct {
        const char *name;
        void **slot;
    } symbols[] = {{"curl_global_init", (void **)&curl.global_init},
                   {"curl_easy_init", (void **)&curl.easy_init},
                   {"curl_easy_cleanup", (void **)&curl.easy_cleanup},
                   {"curl_easy_reset", (void **)&curl.easy_reset},
                   {"curl_easy_setopt", (void **)&curl.easy_setopt},
                   {"curl_easy_perform", (void **)&curl.easy_perform},
                   {"curl_easy_getinfo", (void **)&curl.easy_getinfo},
                   {"curl_easy_strerror", (void **)&curl.easy_strerror},
                   {"curl_slist_append", (void **)&curl.slist_append},
                   {"curl_slist_free_all", (void **)&curl.slist_free_all}};
    for (size_t i = 0; i < QR_COUNT_OF(symbols); i++)
        if ((*symbols[i].slot = dlsym(library, symbols[i].name)) == NULL)
            return;
    curl_ready = curl.global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
}

struct qr_hub_http {
    CURL *easy;
    char *endpoint;
    char *token;
    char message[CURL_ERROR_SIZE];
};

qr_status qr_hub_http_open(const char *endpoint, const char *token, qr_hub_http **out, qr_error *err)
{
    pthread_once(&curl_once, open_curl);
    if (!curl_ready)
        return qr_fail(err, QR_UNSUPPORTED,
                       "download: libcurl.so.4 is not installed (Debian: apt-get install libcurl4)");
    CURL *easy = curl.easy_init();
    if (easy == NULL)
        return qr_fail(err, QR_OUT_OF_MEMORY, "download: libcurl does not start");
    qr_hub_http *http = qr_calloc(1, sizeof(*http));
    http->easy = easy;
    http->endpoint = qr_strdup(endpoint);
    if (token != NULL)
        http->token = qr_strdup(token);
    *out = http;
    return QR_OK;
}

void qr_hub_http_close(qr_hub_http *http)
{
    if (http == NULL)
        return;
    curl.easy_cleanup(http->easy);
    qr_free(http->endpoint);
    qr_free(http->token);
    qr_free(http);
}

/* ---- One exchange ---------------------------------------------------------------------------------- */

/* What the callbacks of one exchange share. */
typedef struct exchange {
    qr_hub_http *http;
    qr_hub_reply *reply;
    qr_buf *body; /* into memory, or NULL */
    size_t body_max;
    const qr_hub_transfer *transfer; /* into a file, or NULL */
    int64_t at;                      /* bytes of the file so far */
    bool started;                    /* the first body byte has been seen */
    bool has_linked_etag, has_linked_size;
    long code;           /* of the answer whose headers are being read */
    int64_t range_begin; /* of Content-Range, -1: none */
    const char *refused; /* why a callback stopped the exchange */
} exchange;

static bool header_is(qr_str line, const char *name, qr_str *value)
{
    size_t len = strlen(name);
    if (line.len <= len || strncasecmp(line.data, name, len) != 0 || line.data[len] != ':')
        return false;
    const char *begin = line.data + len + 1, *end = line.data + line.len;
    while (begin < end && (*begin == ' ' || *begin == '\t'))
        begin++;
    while (end > begin && (end[-1] == '\r' || end[-1] == '\n' || end[-1] == ' '))
        end--;
    *value = qr_str_make(begin, (size_t)(end - begin));
    return true;
}

/* W/"abc" -> abc */
static void store_etag(qr_hub_reply *reply, qr_str value)
{
    if (qr_str_starts(value, QR_STR("W/")))
        value = qr_str_make(value.data + 2, value.len - 2);
    if (value.len >= 2 && value.data[0] == '"' && value.data[value.len - 1] == '"')
        value = qr_str_make(value.data + 1, value.len - 2);
    if (value.len < sizeof(reply->etag))
        snprintf(reply->etag, sizeof(reply->etag), "%.*s", (int)value.len, value.data);
}

static int64_t parse_size(qr_str value)
{
    int64_t out = 0;
    for (size_t i = 0; i < value.len; i++)
        if (value.data[i] < '0' || value.data[i] > '9' || __builtin_mul_overflow(out, 10, &out) ||
            __builtin_add_overflow(out, value.data[i] - '0', &out))
            return -1;
    return value.len > 0 ? out : -1;
}

static size_t on_header(char *data, size_t item_bytes, size_t count, void *user)
{
    exchange *x = user;
    qr_str line = qr_str_make(data, item_bytes * count), value;
    if (qr_str_starts(line, QR_STR("HTTP/"))) { /* a new answer begins: redirects have headers too */
        const char *space = memchr(line.data, ' ', line.len);
        x->code = space != NULL ? strtol(space, NULL, 10) : 0;
        x->range_begin = -1;
    } else if (header_is(line, "x-linked-etag", &value)) {
        store_etag(x->reply, value);
        x->has_linked_etag = true;
    } else if (header_is(line, "etag", &value) && !x->has_linked_etag) {
        store_etag(x->reply, value);
    } else if (header_is(line, "x-linked-size", &value)) {
        x->reply->size = parse_size(value);
        x->has_linked_size = true;
    } else if (header_is(line, "content-length", &value) && !x->has_linked_size) {
        x->reply->size = parse_size(value);
    } else if (header_is(line, "content-range", &value) && qr_str_starts(value, QR_STR("bytes "))) {
        const char *dash = memchr(value.data, '-', value.len);
        if (dash != NULL)
            x->range_begin = parse_size(qr_str_make(value.data + 6, (size_t)(dash - value.data - 6)));
    }
    return item_bytes * count;
}

static size_t into_memory(exchange *x, const char *data, size_t bytes)
{
    if (bytes > x->body_max - x->body->len) {
        x->refused = "the answer is too long";
        return 0;
    }
    qr_buf_append(x->body, data, bytes);
    return bytes;
}

/* The first body byte tells whether the server honours the range. */
static bool begin_file(exchange *x)
{
    const qr_hub_transfer *t = x->transfer;
    x->started = true;
    if (x->code == 206 && x->range_begin == t->begin)
        return true;
    if (x->code == 206 || ftruncate(t->fd, 0) != 0 || lseek(t->fd, 0, SEEK_SET) != 0) {
        x->refused =
            x->code == 206 ? "the server sends another range than asked for" : "cannot begin the file again";
        return false;
    }
    x->at = 0;
    return true;
}

static size_t into_file(exchange *x, const char *data, size_t bytes)
{
    const qr_hub_transfer *t = x->transfer;
    if (x->code != 200 && x->code != 206) /* an error page is not the file */
        return bytes;
    if (!x->started && !begin_file(x))
        return 0;
    if (t->size >= 0 && (int64_t)bytes > t->size - x->at) {
        x->refused = "the server sends more than the file's size";
        return 0;
    }
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(t->fd, data + done, bytes - done);
        if (n <= 0) {
            x->refused = "cannot write (is the disk full?)";
            return 0;
        }
        done += (size_t)n;
    }
    x->at += (int64_t)bytes;
    if (t->progress != NULL)
        t->progress(t->progress_user, t->what, (uint64_t)x->at, t->size > 0 ? (uint64_t)t->size : 0);
    return bytes;
}

static size_t on_body(char *data, size_t item_bytes, size_t count, void *user)
{
    exchange *x = user;
    size_t bytes = item_bytes * count;
    return x->body != NULL       ? into_memory(x, data, bytes)
           : x->transfer != NULL ? into_file(x, data, bytes)
                                 : bytes;
}

/* Options that every exchange has. A redirect may not leave HTTPS. */
static void set_common(exchange *x, const char *url)
{
    CURL *easy = x->http->easy;
    curl.easy_reset(easy);
    curl.easy_setopt(easy, CURLOPT_URL, url);
    curl.easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl.easy_setopt(easy, CURLOPT_USERAGENT, "quire/" QR_VERSION);
    curl.easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, 20L);
    curl.easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L); /* a minute without a byte is a broken line */
    curl.easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, 60L);
    curl.easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L);
    curl.easy_setopt(easy, CURLOPT_MAXREDIRS, 8L);
    const char *schemes = strncmp(x->http->endpoint, "https:", 6) == 0 ? "https" : "http,https";
    curl.easy_setopt(easy, CURLOPT_PROTOCOLS_STR, schemes);
    curl.easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, schemes);
    curl.easy_setopt(easy, CURLOPT_ERRORBUFFER, x->http->message);
    curl.easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl.easy_setopt(easy, CURLOPT_HEADERDATA, x);
    curl.easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl.easy_setopt(easy, CURLOPT_WRITEDATA, x);
    if (x->http->token != NULL) {
        curl.easy_setopt(easy, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
        curl.easy_setopt(easy, CURLOPT_XOAUTH2_BEARER, x->http->token);
    }
}

static qr_status perform(exchange *x, const char *path, qr_error *err)
{
    x->http->message[0] = 0;
    CURLcode result = curl.easy_perform(x->http->easy);
    curl.easy_getinfo(x->http->easy, CURLINFO_RESPONSE_CODE, &x->reply->code);
    if (result == CURLE_OK)
        return QR_OK;
    const char *why = x->refused != NULL         ? x->refused
                      : x->http->message[0] != 0 ? x->http->message
                                                 : curl.easy_strerror(result);
    return qr_fail(err, x->refused != NULL ? QR_IO_ERROR : QR_NETWORK, "%s%.80s: %.120s", x->http->endpoint,
                   path, why);
}

static qr_status run(exchange *x, const char *path, bool head, int64_t begin, qr_error *err)
{
    qr_buf url = {0};
    qr_buf_printf(&url, "%s%s", x->http->endpoint, path);
    *x->reply = (qr_hub_reply){.size = -1};
    x->range_begin = -1;
    set_common(x, url.data);
    char range[32];
    if (head) {
        /* The first answer describes the file; where it leads does not matter. */
        curl.easy_setopt(x->http->easy, CURLOPT_NOBODY, 1L);
        curl.easy_setopt(x->http->easy, CURLOPT_FOLLOWLOCATION, 0L);
    } else if (begin > 0) {
        snprintf(range, sizeof(range), "%lld-", (long long)begin);
        curl.easy_setopt(x->http->easy, CURLOPT_RANGE, range);
    }
    qr_status status = perform(x, path, err);
    qr_buf_release(&url);
    return status;
}

qr_status qr_hub_http_get(qr_hub_http *http, const char *path, size_t bytes_max, qr_buf *body,
                          qr_hub_reply *reply, qr_error *err)
{
    exchange x = {.http = http, .reply = reply, .body = body, .body_max = bytes_max};
    return run(&x, path, false, 0, err);
}

qr_status qr_hub_http_head(qr_hub_http *http, const char *path, qr_hub_reply *reply, qr_error *err)
{
    exchange x = {.http = http, .reply = reply};
    qr_status status = run(&x, path, true, 0, err);
    if (reply->code >= 300 && !x.has_linked_size)
        reply->size = -1; /* that of the redirect's own text */
    return status;
}

qr_status qr_hub_http_download(qr_hub_http *http, const qr_hub_transfer *transfer, qr_hub_reply *reply,
                               qr_error *err)
{
    exchange x = {.http = http, .reply = reply, .transfer = transfer, .at = transfer->begin};
    return run(&x, transfer->path, false, transfer->begin, err);
}

void qr_hub_append_escaped(qr_buf *out, const char *text)
{
    for (; *text != 0; text++) {
        unsigned char c = (unsigned char)*text;
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
            strchr("-._~/", c) != NULL)
            qr_buf_append_char(out, (char)c);
        else
            qr_buf_printf(out, "%%%02X", c);
    }
}
