#include "launcher/logfile.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/die.h"

static int file = -1;
static struct comm_world world;

static void write_json(enum log_level level, const char *text)
{
    static const char *const names[LOG_LEVEL_COUNT] = {"error", "warn", "info", "debug"};
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    /* Text that is no UTF-8 (a file name) would make no JSON: it is replaced by a word about itself. */
    json_t *said = json_string(text);
    json_t *j = json_pack("{s:f, s:i, s:s, s:s, s:o}", "time", (double)t.tv_sec + t.tv_nsec * 1e-9, "rank",
                          world.rank, "host", world.host, "level", names[level], "text",
                          said ? said : json_string("(a line that is no UTF-8)"));
    char *line = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(16)) : NULL;
    size_t n = line ? strlen(line) : 0;
    if (line) {
        line[n] = '\n'; /* in the place of the closing NUL */
        ssize_t written = write(file, line, n + 1);
        (void)written; /* nowhere left to report it */
    }
    free(line);
    json_decref(j);
}

enum status logfile_open(const char *dir, const struct comm_world *w, struct reason *why)
{
    char path[4096];
    world = *w;
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return status_fail(why, STATUS_BAD_OPTION, "--log-dir %s: %s", dir, strerror(errno));
    snprintf(path, sizeof path, "%s/rank-%d.jsonl", dir, w->rank);
    file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (file < 0) return status_fail(why, STATUS_BAD_OPTION, "--log-dir: %s: %s", path, strerror(errno));
    log_set_sink(write_json, w->rank == 0);
    return STATUS_OK;
}

void logfile_speak(void)
{
    if (file >= 0) log_set_sink(write_json, true);
}
