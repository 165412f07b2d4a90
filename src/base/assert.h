/* QR_ASSERT: for bugs only, on in every build, aborts with file, line and text. Never on input.
 * Thread: any. */
#ifndef QR_BASE_ASSERT_H
#define QR_BASE_ASSERT_H

_Noreturn void qr_assert_failed(const char *text, const char *file, int line);

#define QR_ASSERT(condition) ((condition) ? (void)0 : qr_assert_failed(#condition, __FILE__, __LINE__))

#endif
