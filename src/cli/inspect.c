/* quire inspect MODEL: what it is and what it takes, without loading it. */
#include "cli/cli.h"

int cli_inspect(cli_options *options)
{
    qr_error err = {0}, print_err = {0};
    char *path = NULL, *json = NULL;
    if (cli_model_path(options, &path, &err) != QR_OK)
        return cli_fail("inspect", &err);
    options->model.path = path;
    qr_status status = qr_model_inspect(&options->model, &options->engine, &json, &err);
    if (json != NULL)
        cli_print_json(json, options->json, &print_err); /* also when it does not fit: the numbers say why */
    qr_string_free(json);
    qr_string_free(path);
    return status == QR_OK ? 0 : cli_fail("inspect", &err);
}
