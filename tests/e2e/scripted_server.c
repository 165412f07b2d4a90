// links: qr_server qr_text
/* The real HTTP server over the fake engine, for clients in other languages: a chat request's answer is what its last
 * message says, so a test can script what a model would write.
 *
 *     scripted_server TEMPLATE_FILE TOOL_STYLE REASONING_STYLE EVENT_BYTES
 *
 * Prints its port and serves until its standard input ends. */
#include "base/file.h"
#include "unit/server_rig.h"

/* What the template ends in: the script stands before it. */
#define PROMPT_END "\x1e"

int main(int argc, char **argv)
{
    qr_buf template = {0};
    qr_server_options options;
    rig r;
    char byte;
    if (argc != 5 || qr_file_read(argv[1], 1 << 20, &template, NULL) != QR_OK) {
        (void)fprintf(stderr, "usage: %s TEMPLATE_FILE TOOL_STYLE REASONING_STYLE EVENT_BYTES\n", argv[0]);
        return 2;
    }
    rig_options(&options);
    options.tool_call_parser = argv[2];
    options.reasoning_parser = argv[3];
    fake_template = template.data;
    fake_event_bytes = (size_t)atoi(argv[4]);
    fake_prompt_end = PROMPT_END;
    fake_echo = true;
    rig_start(&r, &options);
    r.engine->step_tokens = 256;
    (void)printf("%d\n", qr_server_port(r.server));
    (void)fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        continue;
    rig_stop(&r);
    qr_buf_release(&template);
    return 0;
}
