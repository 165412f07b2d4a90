#include "server/hosts.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

/* A name is at most 255 bytes. */
#define NAME_BYTES 256

/* Without its port, brackets and last dot. false: no name. */
static bool bare_name(qr_str host, char *name)
{
    bool bracketed = host.len > 0 && host.data[0] == '[';
    const char *end = host.len > 0 ? memchr(host.data, bracketed ? ']' : ':', host.len) : NULL;
    size_t from = bracketed, to = end != NULL ? (size_t)(end - host.data) : host.len;
    if (to > from && host.data[to - 1] == '.')
        to--;
    if (to <= from || to - from >= NAME_BYTES)
        return false;
    memcpy(name, host.data + from, to - from);
    name[to - from] = '\0';
    return true;
}

static bool ends_in(const char *name, const char *suffix)
{
    size_t len = strlen(name), suffix_len = strlen(suffix);
    return len >= suffix_len && strcasecmp(name + len - suffix_len, suffix) == 0;
}

static bool listens_here_only(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &v6) == 1)
        return IN6_IS_ADDR_LOOPBACK(&v6);
    return strcasecmp(host, "localhost") == 0 || ends_in(host, ".localhost");
}

/* What containers call the machine they run on; nobody can register a name under .internal. */
static bool is_own_name(const char *name)
{
    static const char *const names[] = {"localhost", "host.docker.internal", "host.containers.internal"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcasecmp(name, names[i]) == 0)
            return true;
    return ends_in(name, ".localhost");
}

static bool listed(const qr_server_options *options, const char *name)
{
    for (size_t i = 0; i < options->allowed_host_count; i++) {
        const char *allowed = options->allowed_hosts[i];
        if (strcmp(allowed, "*") == 0 || strcasecmp(allowed, name) == 0 ||
            (allowed[0] == '.' && (ends_in(name, allowed) || strcasecmp(allowed + 1, name) == 0)))
            return true;
    }
    return false;
}

bool qr_host_allowed(const qr_server_options *options, qr_str host)
{
    char name[NAME_BYTES];
    unsigned char address[sizeof(struct in6_addr)];
    bool guarded = options->api_key_count == 0 && !options->sockets_only && listens_here_only(options->host);
    if (host.len == 0 || (!guarded && options->allowed_host_count == 0))
        return true;
    if (!bare_name(host, name))
        return false;
    return inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1 ||
           is_own_name(name) || strcasecmp(name, options->host) == 0 || listed(options, name);
}
