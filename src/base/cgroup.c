#include "base/cgroup.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"

enum { SMALL_FILE_BYTES = 1 << 16 };

/* One level of one hierarchy: reads `name` in `dir` as text; false when it is not there. */
static bool read_small(const char *dir, const char *name, qr_buf *text)
{
    char *path = qr_path_join(dir, name);
    qr_buf_clear(text);
    bool ok = qr_file_read(path, SMALL_FILE_BYTES, text, NULL) == QR_OK && text->len > 0;
    qr_free(path);
    return ok;
}

static bool read_number(const char *dir, const char *name, qr_buf *text, double *value)
{
    if (!read_small(dir, name, text))
        return false;
    char *end = NULL;
    *value = strtod(text->data, &end);
    return end != text->data; /* "max" is no number */
}

static double stat_field(const char *dir, const char *field, qr_buf *text)
{
    if (!read_small(dir, "memory.stat", text))
        return 0;
    size_t len = strlen(field);
    for (char *line = text->data; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, field, len) == 0 && line[len] == ' ')
            return strtod(line + len, NULL);
    }
    return 0;
}

/* What a level allows; `best` is the tightest so far, and the result. */
typedef double (*level_limit)(const char *dir, qr_buf *text, double best);

static double cpus_v2(const char *dir, qr_buf *text, double best)
{
    double quota, period;
    if (!read_number(dir, "cpu.max", text, &quota)) /* "max 100000" or "150000 100000" */
        return best;
    const char *space = strchr(text->data, ' ');
    period = space != NULL ? strtod(space, NULL) : 100000;
    return quota > 0 && period > 0 ? QR_MIN(best, quota / period) : best;
}

static double cpus_v1(const char *dir, qr_buf *text, double best)
{
    double quota, period;
    bool known = read_number(dir, "cpu.cfs_quota_us", text, &quota) &&
                 read_number(dir, "cpu.cfs_period_us", text, &period);
    return known && quota > 0 && period > 0 ? QR_MIN(best, quota / period) : best;
}

static double left_of(const char *dir, qr_buf *text, double limit, const char *usage, const char *cache,
                      double best)
{
    double used = 0;
    if (!read_number(dir, usage, text, &used))
        return best;
    used -= stat_field(dir, cache, text);
    double left = limit > used ? limit - QR_MAX(used, 0) : 0;
    return QR_MIN(best, left);
}

static double memory_v2(const char *dir, qr_buf *text, double best)
{
    double limit;
    if (!read_number(dir, "memory.max", text, &limit))
        return best;
    return left_of(dir, text, limit, "memory.current", "inactive_file", best);
}

static double memory_v1(const char *dir, qr_buf *text, double best)
{
    double limit;
    if (!read_number(dir, "memory.limit_in_bytes", text, &limit) || limit > 0x1p60)
        return best;
    return left_of(dir, text, limit, "memory.usage_in_bytes", "total_inactive_file", best);
}

/* From mount/group up to mount. In a container the group's path is often not visible: the levels that
 * are missing are passed over. */
static double walk_levels(const char *mount, const char *group, level_limit limit, double best)
{
    qr_buf text = {0};
    char *dir = qr_path_join(mount, group + strspn(group, "/"));
    size_t top = strlen(mount);
    for (;;) {
        best = limit(dir, &text, best);
        char *slash = strrchr(dir, '/');
        if (slash == NULL || (size_t)(slash - dir) < top)
            break;
        *slash = '\0';
    }
    qr_free(dir);
    qr_buf_release(&text);
    return best;
}

static bool lists_controller(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, len) == 0 && (at[len] == ',' || at[len] == '\0'))
            return true;
    }
    return false;
}

/* A line of /proc/self/cgroup is "number:controllers:path"; version 2 has number 0 and no controllers. */
static double line_limit(char *line, const char *mount, const char *controller, level_limit v1,
                         level_limit v2, double best)
{
    char *controllers = strchr(line, ':');
    char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
    if (group == NULL || strstr(group, "..") != NULL)
        return best;
    *group++ = '\0';
    controllers++;
    if (*controllers == '\0')
        return walk_levels(mount, group, v2, best);
    if (!lists_controller(controllers, controller))
        return best;
    char *hierarchy = qr_path_join(mount, controller);
    best = walk_levels(hierarchy, group, v1, best);
    qr_free(hierarchy);
    return best;
}

static double tightest(const char *membership, const char *mount, const char *controller, level_limit v1,
                       level_limit v2)
{
    double best = __builtin_inf();
    qr_buf lines = {0};
    if (qr_file_read(membership, SMALL_FILE_BYTES, &lines, NULL) == QR_OK && lines.len > 0) {
        char *rest = lines.data;
        for (char *line; (line = strsep(&rest, "\n")) != NULL;)
            best = line_limit(line, mount, controller, v1, v2, best);
    }
    qr_buf_release(&lines);
    return best;
}

double qr_cgroup_cpus(const char *membership, const char *mount)
{
    double cpus = tightest(membership, mount, "cpu", cpus_v1, cpus_v2);
    return cpus < __builtin_inf() ? cpus : 0;
}

uint64_t qr_cgroup_memory_left(const char *membership, const char *mount)
{
    double left = tightest(membership, mount, "memory", memory_v1, memory_v2);
    return left < 0x1p62 ? (uint64_t)left : UINT64_MAX;
}
