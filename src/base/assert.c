#include "base/assert.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void qr_assert_failed(const char *text, const char *file, int line)
{
    fprintf(stderr, "%s:%d: bug: `%s` does not hold\n", file, line, text);
    fflush(stderr);
    abort();
}
