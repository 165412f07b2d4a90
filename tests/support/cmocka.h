/* What every test includes: cmocka with the headers that it wants before it. Thread: tests run on one. */
#ifndef QR_TESTS_CMOCKA_H
#define QR_TESTS_CMOCKA_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h> /* after the above: it relies on them */

#endif
