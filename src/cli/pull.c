/* quire pull ORG/NAME: download into the Hugging Face cache and print where it is. */
#include <stdio.h>

#include "cli/cli.h"

int cli_pull(cli_options *options)
{
    qr_error err = {0};
    char *path = NULL;
    if (options->arguments.count != 1) {
        qr_fail(&err, QR_INVALID_ARGUMENT, "one ORG/NAME is expected; see quire pull --help");
        return cli_fail("pull", &err);
    }
    options->hub.repo = options->arguments.items[0];
    options->hub.progress = cli_progress_bar;
    if (qr_hub_pull(&options->hub, &path, &err) != QR_OK)
        return cli_fail("pull", &err);
    puts(path);
    qr_string_free(path);
    return 0;
}
