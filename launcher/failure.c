#define _GNU_SOURCE
#include "launcher/failure.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "launcher/logfile.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/progress.h"

static char path[4096]; /* "" for no file */
static int self;

static void choose_path(const struct options *o)
{
    if (o->failure_file) snprintf(path, sizeof path, "%s", o->failure_file);
    else if (o->log_dir) snprintf(path, sizeof path, "%s/failure.json", o->log_dir);
}

enum status failure_check(const struct options *o, struct reason *why)
{
    char part[sizeof path + 32];
    struct stat st;
    choose_path(o);
    if (!path[0]) return STATUS_OK;
    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode)) /* it would be removed */
        return status_fail(why, STATUS_BAD_OPTION, "--failure-file %s: is not a regular file", path);
    snprintf(part, sizeof part, "%s.0.part", path); /* as write_file names it */
    int fd = open(part, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return status_fail(why, STATUS_BAD_OPTION, "--failure-file %s: %s", path, strerror(errno));
    close(fd);
    unlink(part);
    return STATUS_OK;
}

void failure_open(const struct options *o, const struct comm_world *w)
{
    self = w->rank;
    choose_path(o);
    if (path[0] && w->rank == 0) unlink(path);
}

static void add_place(json_t *j, const struct beat *b)
{
    json_object_set_new(j, "phase", json_string(progress_phase_name((enum progress_phase)b->phase)));
    if (b->phase != PROGRESS_STEP) return;
    json_object_set_new(j, "step", json_integer((json_int_t)b->step));
    if (b->layer >= 0) json_object_set_new(j, "layer", json_integer(b->layer));
    if (b->op[0]) json_object_set_new(j, "op", json_string(b->op));
}

static json_t *ranks_json(const struct watch *w)
{
    json_t *list = json_array();
    for (int r = 0; r < w->size; r++) {
        const struct watch_rank *k = &w->rank[r];
        json_t *j = json_pack("{s:i, s:s}", "rank", r, "host", k->host);
        if (k->heard_us) {
            add_place(j, &k->beat);
            json_object_set_new(j, "silent_s", json_real((double)(clock_us() - k->heard_us) * 1e-6));
        }
        json_array_append_new(list, j);
    }
    return list;
}

/* Appears whole or not at all. Who only guesses leaves alone what is there. */
static void write_file(const char *text, bool first_hand)
{
    char part[sizeof path + 32];
    snprintf(part, sizeof part, "%s.%d.part", path, self);
    FILE *f = fopen(part, "w");
    bool good = f && fputs(text, f) >= 0 && fputc('\n', f) != EOF && fflush(f) == 0;
    if (f) good &= fclose(f) == 0;
    if (good && first_hand) good = rename(part, path) == 0;
    else if (good) (void)!link(part, path);
    if (!good) LOG_WARN("--failure-file %s: %m", path);
    unlink(part);
}

void failure_record(const struct cause *c, const struct watch *w, bool first_hand)
{
    if (!path[0]) return;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    json_t *j = json_pack("{s:f, s:s, s:i, s:s}", "time", (double)t.tv_sec + t.tv_nsec * 1e-9, "kind",
                          watch_cause_name(c->kind), "rank", c->rank, "host", c->host);
    if (c->other >= 0) json_object_set_new(j, "other_rank", json_integer(c->other));
    add_place(j, &c->beat);
    json_t *error = json_string(c->text);
    json_object_set_new(j, "error", error ? error : json_string("(a line that is no UTF-8)"));
    json_object_set_new(j, "exit_code", json_integer(c->exit_code));
    json_object_set_new(j, "told_by", json_integer(self));
    json_object_set_new(j, "ranks", ranks_json(w));
    char *text = json_dumps(j, JSON_INDENT(1) | JSON_REAL_PRECISION(16));
    if (text) write_file(text, first_hand);
    free(text);
    json_decref(j);
}

void failure_print(const struct cause *c)
{
    logfile_speak();
    LOG_ERROR("first cause: %s (exit code %d%s%s)", c->text, c->exit_code, path[0] ? ", " : "", path);
    log_close();
}
