// links: qr_server qr_text
/* Requests that other servers' authors collected: what is malformed is refused, what is sound is answered, and no bytes
 * of one request are ever taken for a second one. Needs ../shared/data/http/gunicorn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>

#include "base/file.h"
#include "server_rig.h"

/* Refused by gunicorn's own rules, not by HTTP's: harmless here, each for the reason given. */
static const char *const invalid_but_sound[] = {
    "019.http",        /* proxy headers: we read none */
    "040.http",        /* underscores: we map no header to a variable */
    "chunked_07.http", /* the same */
    "006.http",
    "007.http",
    "008.http",
    "009.http",
    "017.http",
    "limit_header_default_01.http",         /* smaller limits than ours */
    "rfc9110_trailer_forbidden_cl_01.http", /* trailers are counted and never read */
    "rfc9110_trailer_forbidden_host_01.http",
    "rfc9110_trailer_forbidden_te_01.http",
    "011.http",
    "012.http",
    "010.http", /* header values that gunicorn's parser options forbid */
    "obs_fold_01.http",
    "013.http", /* folded values: RFC 9112 5.2 lets a server take them as spaces; unknown headers are dropped */
};

static bool listed(const char *name, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(name, list[i]) == 0)
            return true;
    }
    return false;
}

/* The files hold \r\n, \t and \xNN as text, and line breaks that mean nothing. */
static void unescape(qr_str text, qr_buf *out)
{
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i], next = i + 1 < text.len ? text.data[i + 1] : '\0';
        if (c == '\n' || c == '\r')
            continue;
        if (c != '\\') {
            qr_buf_append_char(out, c);
        } else if (next == 'x' && i + 3 < text.len) {
            char hex[3] = {text.data[i + 2], text.data[i + 3], '\0'};
            qr_buf_append_char(out, (char)strtol(hex, NULL, 16));
            i += 3;
        } else {
            qr_buf_append_char(out, next == 'r'   ? '\r'
                                    : next == 'n' ? '\n'
                                    : next == 't' ? '\t'
                                    : next == '0' ? '\0'
                                                  : next);
            i++;
        }
    }
}

/* Points a path at a route that answers 200 to GET and POST, and gives the head a Host, so that only what the file is
 * about can be wrong. */
static void aim(const qr_buf *raw, qr_buf *out)
{
    const char *line = raw->data, *end = memchr(line, '\r', raw->len);
    const char *space = memchr(line, ' ', raw->len);
    const char *second = space != NULL ? memchr(space + 1, ' ', raw->len - (size_t)(space + 1 - line)) : NULL;
    if (end != NULL && second != NULL && second < end && space[1] == '/' &&
        memmem(raw->data, raw->len, "HTTP/", 5) != NULL) {
        qr_buf_append(out, line, (size_t)(space + 1 - line));
        qr_buf_append_cstr(out, "/ping");
        qr_buf_append(out, second, (size_t)(end - second));
    } else if (end != NULL) {
        qr_buf_append(out, line, (size_t)(end - line));
    }
    const char *rest = end != NULL ? end : line;
    if (end != NULL && memmem(raw->data, raw->len, "Host:", 5) == NULL) {
        qr_buf_append_cstr(out, "\r\nHost: x");
    }
    qr_buf_append(out, rest, raw->len - (size_t)(rest - line));
}

static char *exchange(const rig *r, const char *folder, const char *name)
{
    char path[512];
    qr_buf text = {0}, raw = {0}, aimed = {0}, out = {0};
    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    assert_int_equal(qr_file_read(path, 1 << 20, &text, NULL), QR_OK);
    unescape(qr_buf_str(&text), &raw);
    aim(&raw, &aimed);
    int fd = rig_connect(r);
    rig_send(fd, aimed.data, aimed.len);
    (void)shutdown(fd, SHUT_WR);
    rig_read(fd, NULL, 1000, &out);
    close(fd);
    qr_buf_release(&text);
    qr_buf_release(&raw);
    qr_buf_release(&aimed);
    return out.data != NULL ? out.data : strdup("");
}

static size_t replies(const char *text)
{
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, "HTTP/1.1 ")) != NULL; at++)
        count += at[9] >= '1' && at[9] <= '5'; /* not the words of a message */
    return count;
}

static void each_file(const char *kind, void (*check)(const rig *r, const char *folder, const char *name))
{
    const char *shared = getenv("QR_SHARED_DIR");
    char folder[512];
    if (shared == NULL) {
        print_message("skipped: QR_SHARED_DIR is not set (the collected requests are not in this tree)\n");
        skip();
    }
    (void)snprintf(folder, sizeof(folder), "%s/data/http/gunicorn/%s", shared, kind);
    DIR *dir = opendir(folder);
    if (dir == NULL) {
        print_message("skipped: no %s\n", folder);
        skip();
    }
    rig r;
    qr_server_options options;
    rig_options(&options);
    options.header_timeout_ms = options.body_timeout_ms = 300;
    rig_start(&r, &options);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] != '.')
            check(&r, folder, entry->d_name);
    }
    closedir(dir);
    rig_stop(&r);
}

static void check_invalid(const rig *r, const char *folder, const char *name)
{
    char *reply = exchange(r, folder, name);
    bool sound = listed(name, invalid_but_sound, sizeof(invalid_but_sound) / sizeof(invalid_but_sound[0]));
    if (!sound && (strstr(reply, "HTTP/1.1 2") != NULL || replies(reply) > 1))
        print_error("%s: %.200s\n", name, reply);
    assert_true(sound || strstr(reply, "HTTP/1.1 2") == NULL);
    assert_true(sound || replies(reply) <= 1);
    free(reply);
}

static void check_valid(const rig *r, const char *folder, const char *name)
{
    /* Forms that gunicorn takes under options, or that this server does not serve; 099's body counts bytes that the
     * notation drops. */
    static const char *const not_here[] = {"031compat.http",
                                           "031compat2.http",
                                           "040_compat.http",
                                           "compat_obs_fold.http",
                                           "compat_obs_fold_huge.http",
                                           "025_line.http",
                                           "099.http"};
    if (strncmp(name, "pp_", 3) == 0 || listed(name, not_here, sizeof(not_here) / sizeof(not_here[0])))
        return;
    char *reply = exchange(r, folder, name);
    int status = rig_status(reply);
    bool fine = status == 200 || status == 405 || status == 404 || status == 415 || status == 400 ||
                status == 505 || status == 501 || status == 431;
    if (status != 200)
        print_message("%s: %d\n", name, status);
    assert_true(fine);
    free(reply);
}

static void malformed_requests_are_refused_and_never_split_in_two(void **state)
{
    (void)state;
    each_file("invalid", check_invalid);
}

static void sound_requests_get_an_answer(void **state)
{
    (void)state;
    each_file("valid", check_valid);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_requests_are_refused_and_never_split_in_two),
        cmocka_unit_test(sound_requests_get_an_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
