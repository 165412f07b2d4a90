/* Python's view of text: code points, white space, case. The simple mappings come from utf8proc; the table holds
 * the ones that grow (Unicode's SpecialCasing, which str.upper and str.title use). */
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/jinja_run.h"

enum { RAW_BYTE = 0xdc00 }; /* a byte that is no UTF-8 counts as the surrogate RAW_BYTE + byte */

typedef struct special_case {
    uint32_t codepoint;
    const char *upper, *title;
} special_case;

/* clang-format off */
static const special_case special_cases[] = {
    {0x00df, "\x53\x53", "\x53\x73"},
    {0x0130, "\xc4\xb0", "\xc4\xb0"},
    {0x0149, "\xca\xbc\x4e", "\xca\xbc\x4e"},
    {0x01f0, "\x4a\xcc\x8c", "\x4a\xcc\x8c"},
    {0x0390, "\xce\x99\xcc\x88\xcc\x81", "\xce\x99\xcc\x88\xcc\x81"},
    {0x03b0, "\xce\xa5\xcc\x88\xcc\x81", "\xce\xa5\xcc\x88\xcc\x81"},
    {0x0587, "\xd4\xb5\xd5\x92", "\xd4\xb5\xd6\x82"},
    {0x1e96, "\x48\xcc\xb1", "\x48\xcc\xb1"},
    {0x1e97, "\x54\xcc\x88", "\x54\xcc\x88"},
    {0x1e98, "\x57\xcc\x8a", "\x57\xcc\x8a"},
    {0x1e99, "\x59\xcc\x8a", "\x59\xcc\x8a"},
    {0x1e9a, "\x41\xca\xbe", "\x41\xca\xbe"},
    {0x1f50, "\xce\xa5\xcc\x93", "\xce\xa5\xcc\x93"},
    {0x1f52, "\xce\xa5\xcc\x93\xcc\x80", "\xce\xa5\xcc\x93\xcc\x80"},
    {0x1f54, "\xce\xa5\xcc\x93\xcc\x81", "\xce\xa5\xcc\x93\xcc\x81"},
    {0x1f56, "\xce\xa5\xcc\x93\xcd\x82", "\xce\xa5\xcc\x93\xcd\x82"},
    {0x1f80, "\xe1\xbc\x88\xce\x99", "\xe1\xbe\x88"},
    {0x1f81, "\xe1\xbc\x89\xce\x99", "\xe1\xbe\x89"},
    {0x1f82, "\xe1\xbc\x8a\xce\x99", "\xe1\xbe\x8a"},
    {0x1f83, "\xe1\xbc\x8b\xce\x99", "\xe1\xbe\x8b"},
    {0x1f84, "\xe1\xbc\x8c\xce\x99", "\xe1\xbe\x8c"},
    {0x1f85, "\xe1\xbc\x8d\xce\x99", "\xe1\xbe\x8d"},
    {0x1f86, "\xe1\xbc\x8e\xce\x99", "\xe1\xbe\x8e"},
    {0x1f87, "\xe1\xbc\x8f\xce\x99", "\xe1\xbe\x8f"},
    {0x1f88, "\xe1\xbc\x88\xce\x99", "\xe1\xbe\x88"},
    {0x1f89, "\xe1\xbc\x89\xce\x99", "\xe1\xbe\x89"},
    {0x1f8a, "\xe1\xbc\x8a\xce\x99", "\xe1\xbe\x8a"},
    {0x1f8b, "\xe1\xbc\x8b\xce\x99", "\xe1\xbe\x8b"},
    {0x1f8c, "\xe1\xbc\x8c\xce\x99", "\xe1\xbe\x8c"},
    {0x1f8d, "\xe1\xbc\x8d\xce\x99", "\xe1\xbe\x8d"},
    {0x1f8e, "\xe1\xbc\x8e\xce\x99", "\xe1\xbe\x8e"},
    {0x1f8f, "\xe1\xbc\x8f\xce\x99", "\xe1\xbe\x8f"},
    {0x1f90, "\xe1\xbc\xa8\xce\x99", "\xe1\xbe\x98"},
    {0x1f91, "\xe1\xbc\xa9\xce\x99", "\xe1\xbe\x99"},
    {0x1f92, "\xe1\xbc\xaa\xce\x99", "\xe1\xbe\x9a"},
    {0x1f93, "\xe1\xbc\xab\xce\x99", "\xe1\xbe\x9b"},
    {0x1f94, "\xe1\xbc\xac\xce\x99", "\xe1\xbe\x9c"},
    {0x1f95, "\xe1\xbc\xad\xce\x99", "\xe1\xbe\x9d"},
    {0x1f96, "\xe1\xbc\xae\xce\x99", "\xe1\xbe\x9e"},
    {0x1f97, "\xe1\xbc\xaf\xce\x99", "\xe1\xbe\x9f"},
    {0x1f98, "\xe1\xbc\xa8\xce\x99", "\xe1\xbe\x98"},
    {0x1f99, "\xe1\xbc\xa9\xce\x99", "\xe1\xbe\x99"},
    {0x1f9a, "\xe1\xbc\xaa\xce\x99", "\xe1\xbe\x9a"},
    {0x1f9b, "\xe1\xbc\xab\xce\x99", "\xe1\xbe\x9b"},
    {0x1f9c, "\xe1\xbc\xac\xce\x99", "\xe1\xbe\x9c"},
    {0x1f9d, "\xe1\xbc\xad\xce\x99", "\xe1\xbe\x9d"},
    {0x1f9e, "\xe1\xbc\xae\xce\x99", "\xe1\xbe\x9e"},
    {0x1f9f, "\xe1\xbc\xaf\xce\x99", "\xe1\xbe\x9f"},
    {0x1fa0, "\xe1\xbd\xa8\xce\x99", "\xe1\xbe\xa8"},
    {0x1fa1, "\xe1\xbd\xa9\xce\x99", "\xe1\xbe\xa9"},
    {0x1fa2, "\xe1\xbd\xaa\xce\x99", "\xe1\xbe\xaa"},
    {0x1fa3, "\xe1\xbd\xab\xce\x99", "\xe1\xbe\xab"},
    {0x1fa4, "\xe1\xbd\xac\xce\x99", "\xe1\xbe\xac"},
    {0x1fa5, "\xe1\xbd\xad\xce\x99", "\xe1\xbe\xad"},
    {0x1fa6, "\xe1\xbd\xae\xce\x99", "\xe1\xbe\xae"},
    {0x1fa7, "\xe1\xbd\xaf\xce\x99", "\xe1\xbe\xaf"},
    {0x1fa8, "\xe1\xbd\xa8\xce\x99", "\xe1\xbe\xa8"},
    {0x1fa9, "\xe1\xbd\xa9\xce\x99", "\xe1\xbe\xa9"},
    {0x1faa, "\xe1\xbd\xaa\xce\x99", "\xe1\xbe\xaa"},
    {0x1fab, "\xe1\xbd\xab\xce\x99", "\xe1\xbe\xab"},
    {0x1fac, "\xe1\xbd\xac\xce\x99", "\xe1\xbe\xac"},
    {0x1fad, "\xe1\xbd\xad\xce\x99", "\xe1\xbe\xad"},
    {0x1fae, "\xe1\xbd\xae\xce\x99", "\xe1\xbe\xae"},
    {0x1faf, "\xe1\xbd\xaf\xce\x99", "\xe1\xbe\xaf"},
    {0x1fb2, "\xe1\xbe\xba\xce\x99", "\xe1\xbe\xba\xcd\x85"},
    {0x1fb3, "\xce\x91\xce\x99", "\xe1\xbe\xbc"},
    {0x1fb4, "\xce\x86\xce\x99", "\xce\x86\xcd\x85"},
    {0x1fb6, "\xce\x91\xcd\x82", "\xce\x91\xcd\x82"},
    {0x1fb7, "\xce\x91\xcd\x82\xce\x99", "\xce\x91\xcd\x82\xcd\x85"},
    {0x1fbc, "\xce\x91\xce\x99", "\xe1\xbe\xbc"},
    {0x1fc2, "\xe1\xbf\x8a\xce\x99", "\xe1\xbf\x8a\xcd\x85"},
    {0x1fc3, "\xce\x97\xce\x99", "\xe1\xbf\x8c"},
    {0x1fc4, "\xce\x89\xce\x99", "\xce\x89\xcd\x85"},
    {0x1fc6, "\xce\x97\xcd\x82", "\xce\x97\xcd\x82"},
    {0x1fc7, "\xce\x97\xcd\x82\xce\x99", "\xce\x97\xcd\x82\xcd\x85"},
    {0x1fcc, "\xce\x97\xce\x99", "\xe1\xbf\x8c"},
    {0x1fd2, "\xce\x99\xcc\x88\xcc\x80", "\xce\x99\xcc\x88\xcc\x80"},
    {0x1fd3, "\xce\x99\xcc\x88\xcc\x81", "\xce\x99\xcc\x88\xcc\x81"},
    {0x1fd6, "\xce\x99\xcd\x82", "\xce\x99\xcd\x82"},
    {0x1fd7, "\xce\x99\xcc\x88\xcd\x82", "\xce\x99\xcc\x88\xcd\x82"},
    {0x1fe2, "\xce\xa5\xcc\x88\xcc\x80", "\xce\xa5\xcc\x88\xcc\x80"},
    {0x1fe3, "\xce\xa5\xcc\x88\xcc\x81", "\xce\xa5\xcc\x88\xcc\x81"},
    {0x1fe4, "\xce\xa1\xcc\x93", "\xce\xa1\xcc\x93"},
    {0x1fe6, "\xce\xa5\xcd\x82", "\xce\xa5\xcd\x82"},
    {0x1fe7, "\xce\xa5\xcc\x88\xcd\x82", "\xce\xa5\xcc\x88\xcd\x82"},
    {0x1ff2, "\xe1\xbf\xba\xce\x99", "\xe1\xbf\xba\xcd\x85"},
    {0x1ff3, "\xce\xa9\xce\x99", "\xe1\xbf\xbc"},
    {0x1ff4, "\xce\x8f\xce\x99", "\xce\x8f\xcd\x85"},
    {0x1ff6, "\xce\xa9\xcd\x82", "\xce\xa9\xcd\x82"},
    {0x1ff7, "\xce\xa9\xcd\x82\xce\x99", "\xce\xa9\xcd\x82\xcd\x85"},
    {0x1ffc, "\xce\xa9\xce\x99", "\xe1\xbf\xbc"},
    {0xfb00, "\x46\x46", "\x46\x66"},
    {0xfb01, "\x46\x49", "\x46\x69"},
    {0xfb02, "\x46\x4c", "\x46\x6c"},
    {0xfb03, "\x46\x46\x49", "\x46\x66\x69"},
    {0xfb04, "\x46\x46\x4c", "\x46\x66\x6c"},
    {0xfb05, "\x53\x54", "\x53\x74"},
    {0xfb06, "\x53\x54", "\x53\x74"},
    {0xfb13, "\xd5\x84\xd5\x86", "\xd5\x84\xd5\xb6"},
    {0xfb14, "\xd5\x84\xd4\xb5", "\xd5\x84\xd5\xa5"},
    {0xfb15, "\xd5\x84\xd4\xbb", "\xd5\x84\xd5\xab"},
    {0xfb16, "\xd5\x8e\xd5\x86", "\xd5\x8e\xd5\xb6"},
    {0xfb17, "\xd5\x84\xd4\xbd", "\xd5\x84\xd5\xad"},
};
/* clang-format on */

/* What Python's predicates have beside (or without) the general category: ranges, ascending. */
typedef struct range {
    uint32_t first, last;
} range;
/* clang-format off */
static const range lower_extra[] = {
    {0x00aa, 0x00aa}, {0x00ba, 0x00ba}, {0x02b0, 0x02b8}, {0x02c0, 0x02c1}, {0x02e0, 0x02e4},
    {0x0345, 0x0345}, {0x037a, 0x037a}, {0x1d2c, 0x1d6a}, {0x1d78, 0x1d78}, {0x1d9b, 0x1dbf},
    {0x2071, 0x2071}, {0x207f, 0x207f}, {0x2090, 0x209c}, {0x2170, 0x217f}, {0x24d0, 0x24e9},
    {0x2c7c, 0x2c7d}, {0xa69c, 0xa69d}, {0xa770, 0xa770}, {0xa7f8, 0xa7f9}, {0xab5c, 0xab5f},
    {0x10780, 0x10780}, {0x10783, 0x10785}, {0x10787, 0x107b0}, {0x107b2, 0x107ba},
};
static const range upper_extra[] = {
    {0x2160, 0x216f}, {0x24b6, 0x24cf}, {0x1f130, 0x1f149}, {0x1f150, 0x1f169}, {0x1f170, 0x1f189},
};
static const range digit_extra[] = {
    {0x00b2, 0x00b3}, {0x00b9, 0x00b9}, {0x1369, 0x1371}, {0x19da, 0x19da}, {0x2070, 0x2070},
    {0x2074, 0x2079}, {0x2080, 0x2089}, {0x2460, 0x2468}, {0x2474, 0x247c}, {0x2488, 0x2490},
    {0x24ea, 0x24ea}, {0x24f5, 0x24fd}, {0x24ff, 0x24ff}, {0x2776, 0x277e}, {0x2780, 0x2788},
    {0x278a, 0x2792}, {0x10a40, 0x10a43}, {0x10e60, 0x10e68}, {0x11052, 0x1105a}, {0x1f100, 0x1f10a},
};
static const range numeric_extra[] = {
    {0x3405, 0x3405}, {0x3483, 0x3483}, {0x382a, 0x382a}, {0x3b4d, 0x3b4d}, {0x4e00, 0x4e00},
    {0x4e03, 0x4e03}, {0x4e07, 0x4e07}, {0x4e09, 0x4e09}, {0x4e5d, 0x4e5d}, {0x4e8c, 0x4e8c},
    {0x4e94, 0x4e94}, {0x4e96, 0x4e96}, {0x4ebf, 0x4ec0}, {0x4edf, 0x4edf}, {0x4ee8, 0x4ee8},
    {0x4f0d, 0x4f0d}, {0x4f70, 0x4f70}, {0x5104, 0x5104}, {0x5146, 0x5146}, {0x5169, 0x5169},
    {0x516b, 0x516b}, {0x516d, 0x516d}, {0x5341, 0x5341}, {0x5343, 0x5345}, {0x534c, 0x534c},
    {0x53c1, 0x53c4}, {0x56db, 0x56db}, {0x58f1, 0x58f1}, {0x58f9, 0x58f9}, {0x5e7a, 0x5e7a},
    {0x5efe, 0x5eff}, {0x5f0c, 0x5f0e}, {0x5f10, 0x5f10}, {0x62fe, 0x62fe}, {0x634c, 0x634c},
    {0x67d2, 0x67d2}, {0x6f06, 0x6f06}, {0x7396, 0x7396}, {0x767e, 0x767e}, {0x8086, 0x8086},
    {0x842c, 0x842c}, {0x8cae, 0x8cae}, {0x8cb3, 0x8cb3}, {0x8d30, 0x8d30}, {0x9621, 0x9621},
    {0x9646, 0x9646}, {0x964c, 0x964c}, {0x9678, 0x9678}, {0x96f6, 0x96f6}, {0xf96b, 0xf96b},
    {0xf973, 0xf973}, {0xf978, 0xf978}, {0xf9b2, 0xf9b2}, {0xf9d1, 0xf9d1}, {0xf9d3, 0xf9d3},
    {0xf9fd, 0xf9fd}, {0x20001, 0x20001}, {0x20064, 0x20064}, {0x200e2, 0x200e2}, {0x20121, 0x20121},
    {0x2092a, 0x2092a}, {0x20983, 0x20983}, {0x2098c, 0x2098c}, {0x2099c, 0x2099c}, {0x20aea, 0x20aea},
    {0x20afd, 0x20afd}, {0x20b19, 0x20b19}, {0x22390, 0x22390}, {0x22998, 0x22998}, {0x23b1b, 0x23b1b},
    {0x2626d, 0x2626d}, {0x2f890, 0x2f890},
};
static const range start_extra[] = {
    {0x1885, 0x1886}, {0x2118, 0x2118}, {0x212e, 0x212e},
};
static const range start_except[] = {
    {0x037a, 0x037a}, {0x0e33, 0x0e33}, {0x0eb3, 0x0eb3}, {0x2e2f, 0x2e2f}, {0xfc5e, 0xfc63},
    {0xfdfa, 0xfdfb}, {0xfe70, 0xfe70}, {0xfe72, 0xfe72}, {0xfe74, 0xfe74}, {0xfe76, 0xfe76},
    {0xfe78, 0xfe78}, {0xfe7a, 0xfe7a}, {0xfe7c, 0xfe7c}, {0xfe7e, 0xfe7e}, {0xff9e, 0xff9f},
};
/* clang-format on */

static bool in_ranges(const range *ranges, size_t count, uint32_t c)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && c >= ranges[low].first;
}
#define IN(table, c) in_ranges(table, QR_COUNT_OF(table), c)

size_t qr_jtext_decode(const char *text, size_t len, uint32_t *codepoint)
{
    if ((unsigned char)text[0] < 0x80) {
        *codepoint = (unsigned char)text[0];
        return 1;
    }
    size_t bytes = qr_utf8_decode(text, len, codepoint);
    if (bytes > 0)
        return bytes;
    *codepoint = RAW_BYTE + (unsigned char)text[0];
    return 1;
}

static bool is_raw(uint32_t codepoint) { return codepoint >= RAW_BYTE && codepoint < RAW_BYTE + 256; }

void qr_jinja_write_codepoint(qr_jrun *run, uint32_t codepoint)
{
    char bytes[4];
    size_t len = 1;
    if (is_raw(codepoint))
        bytes[0] = (char)(codepoint - RAW_BYTE);
    else
        len = qr_utf8_encode(codepoint, bytes);
    qr_jinja_write(run, qr_str_make(bytes, len));
}

static bool is_ascii(qr_str text)
{
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.data[i] >= 0x80)
            return false;
    return true;
}

size_t qr_jtext_count(qr_str text)
{
    size_t count = 0;
    for (size_t i = 0; i < text.len; count++) {
        uint32_t codepoint = 0;
        i += qr_jtext_decode(text.data + i, text.len - i, &codepoint);
    }
    return count;
}

size_t qr_jtext_offset(qr_str text, size_t codepoints)
{
    size_t at = 0;
    for (; codepoints > 0 && at < text.len; codepoints--) {
        uint32_t codepoint = 0;
        at += qr_jtext_decode(text.data + at, text.len - at, &codepoint);
    }
    return at;
}

bool qr_jtext_is_space(uint32_t c)
{
    if (c < 128)
        return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static utf8proc_category_t category(uint32_t c) { return utf8proc_category((utf8proc_int32_t)c); }
static bool is_letter(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
static bool is_numeric(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO) || IN(numeric_extra, c);
}

bool qr_jtext_is_word(uint32_t c)
{
    if (c < 128)
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    return is_letter(c) || is_numeric(c);
}

bool qr_jtext_printable(uint32_t c)
{
    if (c < 127)
        return c >= 32;
    if (is_raw(c))
        return true;
    utf8proc_category_t k = category(c);
    return k != UTF8PROC_CATEGORY_CN && k < UTF8PROC_CATEGORY_ZS;
}

/* Start of the character that ends at `end`. */
static size_t previous(qr_str text, size_t end)
{
    size_t at = end - 1;
    while (at > 0 && end - at < 4 && ((unsigned char)text.data[at] & 0xc0) == 0x80)
        at--;
    uint32_t codepoint = 0;
    return at + qr_jtext_decode(text.data + at, end - at, &codepoint) == end ? at : end - 1;
}

qr_str qr_jtext_trim(qr_str text, bool left, bool right)
{
    uint32_t codepoint = 0;
    while (left && text.len > 0) {
        size_t bytes = qr_jtext_decode(text.data, text.len, &codepoint);
        if (!qr_jtext_is_space(codepoint))
            break;
        text = qr_str_make(text.data + bytes, text.len - bytes);
    }
    while (right && text.len > 0) {
        size_t at = previous(text, text.len);
        qr_jtext_decode(text.data + at, text.len - at, &codepoint);
        if (!qr_jtext_is_space(codepoint))
            break;
        text.len = at;
    }
    return text;
}

/* ---- Case ---- */

static const special_case *find_special(uint32_t codepoint)
{
    size_t low = 0, high = QR_COUNT_OF(special_cases);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (special_cases[middle].codepoint == codepoint)
            return &special_cases[middle];
        if (special_cases[middle].codepoint < codepoint)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static bool is_lower(uint32_t c)
{
    return c < 128 ? c >= 'a' && c <= 'z' : category(c) == UTF8PROC_CATEGORY_LL || IN(lower_extra, c);
}

static bool is_upper(uint32_t c)
{
    return c < 128 ? c >= 'A' && c <= 'Z' : category(c) == UTF8PROC_CATEGORY_LU || IN(upper_extra, c);
}

static bool is_cased(uint32_t c) { return is_lower(c) || is_upper(c) || category(c) == UTF8PROC_CATEGORY_LT; }

static bool is_case_ignorable(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF ||
           k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK || c == '\'' || c == 0xad || c == 0x2019 ||
           c == '.' || c == ':' || c == 0xb7;
}

/* Whether the capital sigma at text[at] ends a word. */
static bool is_final_sigma(qr_str text, size_t at)
{
    uint32_t c = 0;
    size_t i = at;
    bool before = false;
    while (i > 0) {
        i = previous(text, i);
        qr_jtext_decode(text.data + i, text.len - i, &c);
        if (is_case_ignorable(c))
            continue;
        before = is_cased(c);
        break;
    }
    for (i = at + 2; before && i < text.len;) {
        i += qr_jtext_decode(text.data + i, text.len - i, &c);
        if (!is_case_ignorable(c))
            return !is_cased(c);
    }
    return before;
}

static void write_lower(qr_jrun *run, qr_str text, size_t at, uint32_t c)
{
    if (c == 0x3a3)
        qr_jinja_write_codepoint(run, is_final_sigma(text, at) ? 0x3c2 : 0x3c3);
    else if (c == 0x130)
        qr_jinja_write(run, QR_STR("i\xcc\x87"));
    else
        qr_jinja_write_codepoint(run, is_raw(c) ? c : (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
}

static void write_upper(qr_jrun *run, uint32_t c, bool title)
{
    const special_case *special = c >= 128 ? find_special(c) : NULL;
    if (is_raw(c))
        qr_jinja_write_codepoint(run, c);
    else if (special != NULL)
        qr_jinja_write(run, qr_str_of(title ? special->title : special->upper));
    else if (title)
        qr_jinja_write_codepoint(run, (uint32_t)utf8proc_totitle((utf8proc_int32_t)c));
    else
        qr_jinja_write_codepoint(run, (uint32_t)utf8proc_toupper((utf8proc_int32_t)c));
}

static void write_folded(qr_jrun *run, uint32_t c)
{
    utf8proc_int32_t folded[16];
    int boundary = 0;
    utf8proc_ssize_t count = is_raw(c)
                                 ? 0
                                 : utf8proc_decompose_char((utf8proc_int32_t)c, folded, QR_COUNT_OF(folded),
                                                           UTF8PROC_CASEFOLD, &boundary);
    if (count <= 0 || (size_t)count > QR_COUNT_OF(folded))
        qr_jinja_write_codepoint(run, c);
    else
        for (utf8proc_ssize_t i = 0; i < count; i++)
            qr_jinja_write_codepoint(run, (uint32_t)folded[i]);
}

void qr_jinja_write_case(qr_jrun *run, qr_str text, qr_jcase mode)
{
    bool inside = false; /* after a cased character: for TITLE */
    for (size_t i = 0; i < text.len;) {
        uint32_t c = 0;
        size_t at = i;
        i += qr_jtext_decode(text.data + i, text.len - i, &c);
        bool upper = mode == QR_JCASE_UPPER;
        bool title = (mode == QR_JCASE_TITLE && !inside) || (mode == QR_JCASE_CAPITALIZE && at == 0);
        if (mode == QR_JCASE_SWAP)
            upper = is_lower(c);
        inside = is_cased(c);
        if (mode == QR_JCASE_FOLD)
            write_folded(run, c);
        else if (mode == QR_JCASE_SWAP && !upper && !is_upper(c))
            qr_jinja_write_codepoint(run, c); /* title case stays */
        else if (upper || title)
            write_upper(run, c, title);
        else
            write_lower(run, text, at, c);
    }
}

static bool case_ascii(qr_jrun *run, qr_str text, qr_jcase mode, qr_jv *out)
{
    if ((mode != QR_JCASE_UPPER && mode != QR_JCASE_LOWER) || !is_ascii(text))
        return false;
    char *copy = qr_jinja_text(run, text.len);
    char first = mode == QR_JCASE_UPPER ? 'a' : 'A';
    *out = copy != NULL ? qr_jv_str(qr_str_make(copy, text.len)) : QR_JV_TEXT("");
    for (size_t i = 0; copy != NULL && i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        copy[i] = (char)((unsigned)(c - first) < 26 ? c ^ 32 : c);
    }
    return true;
}

qr_jv qr_jv_case(qr_jrun *run, qr_str text, qr_jcase mode)
{
    qr_jv value;
    if (case_ascii(run, text, mode, &value))
        return value;
    size_t mark = run->out->len;
    qr_jinja_write_case(run, text, mode);
    return qr_jinja_take(run, mark);
}

/* ---- isalpha() and its relatives ---- */

static bool codepoint_is(uint32_t c, qr_jclass class, bool first)
{
    switch (class) {
    case QR_JCLASS_ALPHA: return is_letter(c);
    case QR_JCLASS_DECIMAL: return category(c) == UTF8PROC_CATEGORY_ND;
    case QR_JCLASS_DIGIT: return category(c) == UTF8PROC_CATEGORY_ND || IN(digit_extra, c);
    case QR_JCLASS_NUMERIC: return is_numeric(c);
    case QR_JCLASS_ALNUM: return is_letter(c) || is_numeric(c);
    case QR_JCLASS_SPACE: return qr_jtext_is_space(c);
    case QR_JCLASS_PRINTABLE: return qr_jtext_printable(c);
    case QR_JCLASS_ASCII: return c < 128;
    case QR_JCLASS_IDENTIFIER: {
        utf8proc_category_t k = category(c);
        bool start = ((is_letter(c) || k == UTF8PROC_CATEGORY_NL || c == '_') && !IN(start_except, c)) ||
                     IN(start_extra, c);
        bool go_on = k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_ND ||
                     k == UTF8PROC_CATEGORY_PC;
        return start || (!first && go_on);
    }
    default: return false;
    }
}

static bool has_case(qr_str text, bool upper)
{
    bool any = false;
    for (size_t i = 0; i < text.len;) {
        uint32_t c = 0;
        i += qr_jtext_decode(text.data + i, text.len - i, &c);
        if (!is_cased(c))
            continue;
        if (upper ? !is_upper(c) : !is_lower(c))
            return false;
        any = true;
    }
    return any;
}

static bool is_titled(qr_str text)
{
    bool any = false, inside = false;
    for (size_t i = 0; i < text.len;) {
        uint32_t c = 0;
        i += qr_jtext_decode(text.data + i, text.len - i, &c);
        if (is_cased(c) && is_lower(c) != inside)
            return false;
        inside = is_cased(c);
        any = any || inside;
    }
    return any;
}

bool qr_jtext_is(qr_str text, qr_jclass class)
{
    if (class == QR_JCLASS_UPPER || class == QR_JCLASS_LOWER)
        return has_case(text, class == QR_JCLASS_UPPER);
    if (class == QR_JCLASS_TITLE)
        return is_titled(text);
    for (size_t i = 0; i < text.len;) {
        uint32_t c = 0;
        size_t at = i;
        i += qr_jtext_decode(text.data + i, text.len - i, &c);
        if (!codepoint_is(c, class, at == 0))
            return false;
    }
    return text.len > 0 || class == QR_JCLASS_PRINTABLE || class == QR_JCLASS_ASCII;
}
