/* die.h - the two errors that are not a status, and the log.
 *
 * ASSERT: a bug of ours. Always compiled in; prints the place, ends with EXIT_CODE_BUG.
 * DIE:    the job cannot go on (MPI, CUDA, NCCL, memory, a model file that changed under us). Says what
 * happened and what to try, then the hook installed by launcher/boot ends every rank: no rank leaves alone.
 * LOG:    one line on stderr, prefixed with level, and rank@host where there are several ranks.
 *
 * The log level, the rank prefix, the die hook and progress.h are the only globals of the program. */
#ifndef RETRO_BASE_DIE_H
#define RETRO_BASE_DIE_H

#include <stdbool.h>

enum exit_code {
    EXIT_CODE_OK = 0,
    EXIT_CODE_BUG = 1,
    EXIT_CODE_OPTION = 2,
    EXIT_CODE_MODEL = 3,
    EXIT_CODE_MEMORY = 4,
    EXIT_CODE_PEER = 5,
    EXIT_CODE_INTERRUPTED = 75, /* EX_TEMPFAIL: run again to continue */
};

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG, LOG_LEVEL_COUNT };

/* Prints "retro: <what>: <hint>" as one line and ends the job with `exit_code`. `hint` may be NULL. */
#define DIE(exit_code, hint, ...) die_at(__FILE__, __LINE__, exit_code, hint, __VA_ARGS__)

#define ASSERT(condition)                                                                                    \
    do {                                                                                                     \
        if (__builtin_expect(!(condition), 0)) die_assert(__FILE__, __LINE__, #condition);                   \
    } while (0)

#define LOG_ERROR(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define LOG_WARN(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define LOG_INFO(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define LOG_DEBUG(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

_Noreturn void die_at(const char *file, int line, int exit_code, const char *hint, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
_Noreturn void die_assert(const char *file, int line, const char *condition);

/* Called once with the final exit code after the line was printed; must not return. Default: exit(code). */
void die_set_hook(void (*hook)(int exit_code));
/* What the first DIE or ASSERT of this process said, without prefix and level; "" before. */
const char *die_cause(void);

void log_set_level(enum log_level level);
/* The prefix of every line, for example "3@node7"; copied (cut at 63 bytes); "" for none. */
void log_set_prefix(const char *prefix);
/* Every line that the level lets through also goes to `sink`, without prefix and level, from any thread; to
 * standard error only when `terminal`. */
void log_set_sink(void (*sink)(enum log_level level, const char *text), bool terminal);
/* The last line was told: other threads, which may live on for a while, tell nothing more. */
void log_close(void);
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
