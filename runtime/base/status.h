/* status.h - what a function returns when its input may be bad.
 *
 * A status says that this request, file or value is refused; outputs travel through pointers and a status
 * never shares a type with data. The sentence for a person goes into a `struct reason`, one line that names
 * the field, flag or file and what to do. See die.h for the two other kinds of error. */
#ifndef RETRO_BASE_STATUS_H
#define RETRO_BASE_STATUS_H

#include <stdarg.h>

enum status {
#define STATUS(name, exit_code, text) STATUS_##name,
#include "runtime/base/status.def"
#undef STATUS
    STATUS_COUNT
};

struct reason {
    char text[512];
};

/* The table's text for a status ("bad model folder"). */
const char *status_text(enum status s);

/* The process exit code that belongs to a status (DESIGN: 2 option, 3 model, 4 memory, 5 peer). */
int status_exit_code(enum status s);

/* Writes one line into `why` (may be NULL) and returns `s`: `return status_fail(why, STATUS_BAD_MODEL,
 * "...")`. */
enum status status_fail(struct reason *why, enum status s, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
