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
static void (*log_sink)(enum log_level, const char *);
static bool on_terminal = true;
static atomic_bool closed;
static char cause[1024];
static atomic_flag cause_taken = ATOMIC_FLAG_INIT;

enum { TEXT_MAX = 1920 };

/* The text of a line, cut at TEXT_MAX. A file name or a library's message may hold line breaks; one call stays
 * one line. */
static void make_text(char text[TEXT_MAX], const char *format, va_list ap, const char *tail)
{
    int n = vsnprintf(text, TEXT_MAX, format, ap);
    if (n < 0) n = 0;
    if (tail && n < TEXT_MAX) snprintf(text + n, TEXT_MAX - (size_t)n, ": %s", tail);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
}

/* One write(2) a line, so that lines of several ranks on one terminal do not mix. */
static void write_line(enum log_level level, const char *text)
{
    static const char *const tags[LOG_LEVEL_COUNT] = {"error: ", "warning: ", "", "debug: "};
    if (atomic_load(&closed)) return;
    if (log_sink) log_sink(level, text);
    if (!on_terminal) return;
    char line[TEXT_MAX + 96];
    int n = snprintf(line, sizeof line, "retro%s%s%s: %s%s\n", prefix[0] ? "[" : "", prefix,
                     prefix[0] ? "]" : "", tags[level], text);
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written; /* nowhere left to report it */
}

static void keep_cause(const char *text)
{
    if (!atomic_flag_test_and_set(&cause_taken)) snprintf(cause, sizeof cause, "%s", text);
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
    char text[TEXT_MAX];
    va_list ap;
    va_start(ap, format);
    make_text(text, format, ap, hint);
    va_end(ap);
    keep_cause(text);
    write_line(LOG_LEVEL_ERROR, text);
    if (level_max >= LOG_LEVEL_DEBUG) log_line(LOG_LEVEL_DEBUG, "raised at %s:%d", file, line);
    end_job(exit_code);
}

void die_assert(const char *file, int line, const char *condition)
{
    char text[TEXT_MAX];
    snprintf(text, sizeof text, "bug: %s:%d: assertion failed: %s (please report this line)", file, line,
             condition);
    keep_cause(text);
    write_line(LOG_LEVEL_ERROR, text);
    end_job(EXIT_CODE_BUG);
}

void die_set_hook(void (*hook)(int exit_code)) { die_hook = hook; }

const char *die_cause(void) { return cause; }

void log_set_sink(void (*sink)(enum log_level level, const char *text), bool terminal)
{
    log_sink = sink;
    on_terminal = terminal;
}

void log_close(void) { atomic_store(&closed, true); }

void log_set_level(enum log_level level) { level_max = level; }

void log_set_prefix(const char *text) { snprintf(prefix, sizeof prefix, "%s", text); }

void log_line(enum log_level level, const char *format, ...)
{
    if (level > level_max) return;
    char text[TEXT_MAX];
    va_list ap;
    va_start(ap, format);
    make_text(text, format, ap, NULL);
    va_end(ap);
    write_line(level, text);
}
