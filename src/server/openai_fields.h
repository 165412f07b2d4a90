/* What the readers of request fields share: openai_common.c has the table, openai_messages.c the fields of a
 * conversation. Thread: I/O or the worker's. */
#ifndef QR_SERVER_OPENAI_FIELDS_H
#define QR_SERVER_OPENAI_FIELDS_H

#include "server/openai_common.h"

typedef struct qr_field_reader {
    qr_api_params *params;
    const qr_api_limits *limits;
    qr_api_error *error;
} qr_field_reader;

/* Fails: "name: expected WANTED, got TYPE". */
bool qr_field_wrong_type(qr_field_reader *reader, const char *name, const char *wanted, const qr_json *value);

/* Readers of single fields. */
bool qr_field_messages(qr_field_reader *reader, const char *name, const qr_json *value);
bool qr_field_tools(qr_field_reader *reader, const char *name, const qr_json *value);
bool qr_field_tool_choice(qr_field_reader *reader, const char *name, const qr_json *value);
bool qr_field_template_kwargs(qr_field_reader *reader, const char *name, const qr_json *value);
/* What the fields of a conversation say together. */
bool qr_field_settle_chat(qr_field_reader *reader);

#endif
