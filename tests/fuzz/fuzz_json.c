// links: qr_base
/* Any bytes: the tree and the scanner agree on whether they are JSON, and what is written reads back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json.h"
#include "base/json_scan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool contains_nul_escape(const uint8_t *data, size_t size)
{
    return qr_str_find(qr_str_make((const char *)data, size), QR_STR("\\u0000"), 0) >= 0;
}

static void check_round_trip(const qr_json *json, const qr_json_limits *limits)
{
    qr_buf first = {0}, second = {0};
    qr_json *again = NULL;
    qr_json_write(json, 0, &first);
    QR_ASSERT(qr_json_parse(qr_buf_str(&first), limits, &again, NULL) == QR_OK);
    qr_json_write(again, 0, &second);
    QR_ASSERT(qr_str_equal(qr_buf_str(&first), qr_buf_str(&second)));
    qr_json_free(again);
    qr_buf_release(&first);
    qr_buf_release(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qr_json_limits limits = qr_json_limits_request;
    limits.allow_duplicates = true;
    qr_str text = qr_str_make((const char *)data, size);
    qr_json *json = NULL;
    qr_status status = qr_json_parse(text, &limits, &json, NULL);
    if (status == QR_OK)
        check_round_trip(json, &limits);

    qr_json_scan scan;
    qr_json_scan_init(&scan, text);
    bool scanned = qr_json_scan_skip(&scan) && qr_json_scan_end(&scan);
    /* jansson refuses escaped NULs and keys with NUL; the scanner leaves that to its user. A byte order mark
     * is the scanner's to skip. */
    bool comparable =
        !contains_nul_escape(data, size) && !(size >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0);
    if (comparable && status != QR_LIMIT_EXCEEDED)
        QR_ASSERT(scanned == (status == QR_OK));
    qr_json_free(json);

    qr_buf unescaped = {0};
    qr_json_scan_unescape(text, &unescaped);
    qr_json_append_string(&unescaped, text);
    qr_buf_release(&unescaped);
    return 0;
}
