#include "runtime/base/die.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum log_level level_max = LOG_LEVEL_INFO;
static char prefix[64];
static void (*die_hook)(int);

/* One write(2) a line, so that lines of several ranks on one terminal do not mix. */
static void write_line(const char *tag, const char *format, va_list ap, const char *tail)
{
    char line[2048];
    size_t n = (size_t)snprintf(line, sizeof line, "retro%s%s%s: %s", prefix[0] ? "[" : "", prefix,
                                prefix[0] ? "]" : "", tag);
    int body = vsnprintf(line + n, sizeof line - n, format, ap);
    if (body > 0) n += (size_t)body < sizeof line - n ? (size_t)body : sizeof line - n - 1;
    if (tail && n < sizeof line - 1) {
        int more = snprintf(line + n, sizeof line - n, ": %s", tail);
        if (more > 0) n += (size_t)more < sizeof line - n ? (size_t)more : sizeof line - n - 1;
    }
    if (n > sizeof line - 2) n = sizeof line - 2;
    /* A file name or a library's message may hold line breaks; one call stays one line. */
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = ' ';
    line[n++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written; /* nowhere left to report it */
}

/* The first cause ends the job. A thread that fails meanwhile leaves it the time to do so; a hook that fails
 * itself does not begin again. */
static _Noreturn void end_job(int exit_code)
{
    static atomic_flag ending = ATOMIC_FLAG_INIT;
    static _Thread_local bool is_first;
    if (atomic_flag_test_and_set(&ending)) {
        if (!is_first) sleep(5);
        _exit(exit_code);
    }
    is_first = true;
    if (die_hook) die_hook(exit_code);
    exit(exit_code);
}

void die_at(const char *file, int line, int exit_code, const char *hint, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    write_line("error: ", format, ap, hint);
    va_end(ap);
    if (level_max >= LOG_LEVEL_DEBUG) log_line(LOG_LEVEL_DEBUG, "raised at %s:%d", file, line);
    end_job(exit_code);
}

void die_assert(const char *file, int line, const char *condition)
{
    log_line(LOG_LEVEL_ERROR, "bug: %s:%d: assertion failed: %s (please report this line)", file, line,
             condition);
    end_job(EXIT_CODE_BUG);
}

void die_set_hook(void (*hook)(int exit_code)) { die_hook = hook; }

void log_set_level(enum log_level level) { level_max = level; }

void log_set_prefix(const char *text) { snprintf(prefix, sizeof prefix, "%s", text); }

void log_line(enum log_level level, const char *format, ...)
{
    static const char *const tags[LOG_LEVEL_COUNT] = {"error: ", "warning: ", "", "debug: "};
    if (level > level_max) return;
    va_list ap;
    va_start(ap, format);
    write_line(tags[level], format, ap, NULL);
    va_end(ap);
}
