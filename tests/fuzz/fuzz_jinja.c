// links: qr_text qr_base
/* A template of any bytes, over a fixed conversation, with small limits: it renders or fails, and that is all. */
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "text/jinja.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char context_text[] = "{\"messages\": [{\"role\": \"system\", \"content\": \"Be "
                                   "<b>\xc3\xa9</b>.\"}, {\"role\": \"user\", \"content\": [{\"type\": "
                                   "\"text\", \"text\": \"a b\\nc\"}]}, {\"role\": \"assistant\", "
                                   "\"content\": null, \"tool_calls\": [{\"function\": {\"name\": "
                                   "\"f\", \"arguments\": {\"x\": 1.5, \"y\": [true, null]}}}]}], \"tools\": "
                                   "[{\"type\": \"function\", \"function\": {\"name\": "
                                   "\"f\", \"parameters\": {\"type\": \"object\"}}}], \"bos_token\": "
                                   "\"<s>\", \"add_generation_prompt\": true, \"n\": 3}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static qr_json *context;
    const qr_jinja_limits limits = {.steps_max = 50000,
                                    .depth_max = 300,
                                    .output_bytes_max = 1 << 18,
                                    .memory_bytes_max = 1 << 22,
                                    .time_ns_max = UINT64_C(1000000000)};
    if (context == NULL &&
        qr_json_parse(QR_STR(context_text), &qr_json_limits_request, &context, NULL) != QR_OK)
        return 0;
    qr_error err = {0};
    qr_jinja *jinja = NULL;
    if (qr_jinja_compile(qr_str_make((const char *)data, bytes), &jinja, &err) != QR_OK)
        return 0;
    qr_buf out = {0};
    (void)qr_jinja_render(jinja, context, 1721995200, &limits, &out, &err);
    qr_buf_release(&out);
    qr_jinja_free(jinja);
    return 0;
}
