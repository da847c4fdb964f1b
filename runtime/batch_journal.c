#include "runtime/batch_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/die.h"
#include "runtime/base/progress.h"
#include "runtime/batch_file.h"
#include "runtime/fields.h"

/* ------------------------------------------------------------------------------------------ the head */
static json_t *make_head(const struct batch_identity *id)
{
    json_t *head = json_pack("{s:i, s:{s:I, s:s, s:I}, s:I, s:O}", "retro_batch", 1, "input", "bytes",
                             (json_int_t)id->input_bytes, "sha256", id->input_sha256, "lines",
                             (json_int_t)id->input_lines, "created", (json_int_t)id->created, "settings",
                             (json_t *)id->settings);
    ASSERT(head);
    return head;
}

static void format_line(struct buffer *out, const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT);
    ASSERT(text);
    buffer_append_string(out, text);
    buffer_append_string(out, "\n");
    free(text);
}

static enum status check_settings(const struct batch_journal *j, const json_t *theirs, const json_t *ours,
                                  struct reason *why)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)ours, name, value)
    {
        const json_t *before = json_object_get(theirs, name);
        char was[72] = "nothing", is[72];
        if (json_equal(before, value)) continue;
        if (before) fields_show(before, was, sizeof was);
        fields_show(value, is, sizeof is);
        return status_fail(
            why, STATUS_BAD_OPTION,
            "%s was begun with %s %s, this run has %s: give what it was begun with, or remove it to "
            "begin anew",
            j->path, name, was, is);
    }
    return STATUS_OK;
}

/* Whether the head in `text` is that of this batch. */
static enum status check_head(struct batch_journal *j, const char *text, size_t n, const json_t *ours,
                              struct reason *why)
{
    json_t *head = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    enum status status = STATUS_OK;
    if (json_integer_value(json_object_get(head, "retro_batch")) != 1)
        status =
            status_fail(why, STATUS_BAD_OPTION,
                        "%s: not a journal of this version's retro batch: move it away or choose another "
                        "--output",
                        j->path);
    else if (!json_equal(json_object_get(head, "input"), json_object_get(ours, "input")))
        status =
            status_fail(why, STATUS_BAD_OPTION,
                        "%s belongs to another --input, or the input has changed since: give the old input, "
                        "or another --output, or remove it to begin anew",
                        j->path);
    else
        status = check_settings(j, json_object_get(head, "settings"), json_object_get(ours, "settings"), why);
    j->created = json_integer_value(json_object_get(head, "created"));
    j->complete = json_is_true(json_object_get(head, "complete"));
    json_decref(head);
    return status;
}

/* ------------------------------------------------------------------------------------------ opening */
/* The file, locked. A process that completes the journal puts another file in its place: a lock on the one
 * that is no longer there means nothing. */
static enum status lock_file(struct batch_journal *j, struct reason *why)
{
    for (;;) {
        struct stat mine, named;
        j->fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (j->fd < 0) return status_fail(why, STATUS_BAD_OPTION, "%s: %s", j->path, strerror(errno));
        if (flock(j->fd, LOCK_EX | LOCK_NB) != 0) {
            if (errno == EWOULDBLOCK)
                return status_fail(
                    why, STATUS_BAD_OPTION,
                    "--output %s: another retro batch is writing it: wait for its end, or choose "
                    "another",
                    j->output);
            LOG_WARN("%s: cannot be locked (%s): see to it that no second batch writes it", j->path,
                     strerror(errno));
        }
        if (fstat(j->fd, &mine) == 0 && S_ISREG(mine.st_mode) && stat(j->path, &named) == 0 &&
            mine.st_ino == named.st_ino && mine.st_dev == named.st_dev)
            return STATUS_OK;
        if (!S_ISREG(mine.st_mode))
            return status_fail(why, STATUS_BAD_OPTION, "%s: not a regular file: choose another --output",
                               j->path);
        close(j->fd);
    }
}

static bool take_record(struct batch_journal *j, const char *text, size_t n)
{
    int64_t line;
    bool is_error;
    const char *record;
    size_t n_record;
    if (!batch_record_parse(text, n, &line, &is_error, &record, &n_record)) return false;
    if (line > j->n_lines || j->place[line].at) return false;
    j->place[line] = (struct batch_place){.at = j->n_bytes, .is_error = is_error};
    j->n_records++;
    j->n_errors += is_error;
    j->n_bytes += (int64_t)n;
    return true;
}

/* Reads head and records up to the first that is not whole. A file without a whole head is empty. */
static enum status scan(struct batch_journal *j, const json_t *ours, struct reason *why)
{
    FILE *f = fopen(j->path, "rb");
    char *text = NULL;
    size_t capacity = 0;
    if (!f) return status_fail(why, STATUS_IO, "%s: %s", j->path, strerror(errno));
    enum status status = STATUS_OK;
    ssize_t n = getline(&text, &capacity, f);
    if (n > 0 && text[n - 1] == '\n') {
        status = check_head(j, text, (size_t)n - 1, ours, why);
        j->n_bytes = n;
        while (status == STATUS_OK && (n = getline(&text, &capacity, f)) > 0) {
            if (!take_record(j, text, (size_t)n)) break;
            progress_tick();
        }
    }
    if (status == STATUS_OK && ferror(f))
        status = status_fail(why, STATUS_IO, "%s: %s", j->path, strerror(errno));
    fclose(f);
    free(text);
    return status;
}

static enum status begin(struct batch_journal *j, const json_t *head, struct reason *why)
{
    struct buffer line = {0};
    format_line(&line, head);
    enum status status = batch_file_write(j->fd, line.bytes, line.n, 0, j->path, why);
    j->n_bytes = (int64_t)line.n;
    j->unsynced = true;
    buffer_free(&line);
    if (status == STATUS_OK) status = batch_journal_sync(j, why);
    if (status == STATUS_OK) status = batch_file_sync_folder(j->path, why);
    return status;
}

/* Results that are there belong to this journal, or they are somebody's. They are its own when it is complete, or when
 * its end was written beside it and a crash came between the renames. */
static enum status check_results(const struct batch_journal *j, bool begun, struct reason *why)
{
    bool ours = begun && (j->complete || batch_file_pending(j->path));
    const char *const path[] = {j->output, j->errors}, *const flag[] = {"--output", "--errors"};
    for (int i = 0; i < 2; i++) {
        if (!path[i]) continue;
        bool exists = access(path[i], F_OK) == 0;
        if (exists && !ours)
            return status_fail(why, STATUS_BAD_OPTION,
                               "%s %s: exists and is not of this batch: move it away, or choose another",
                               flag[i], path[i]);
        int error = batch_file_folder_error(path[i]);
        if (error) return status_fail(why, STATUS_BAD_OPTION, "%s %s: %s", flag[i], path[i], strerror(error));
        if (!exists && j->complete)
            return status_fail(
                why, STATUS_BAD_OPTION,
                "%s %s: is gone, and %s says that it was complete: remove that too to compute it "
                "again",
                flag[i], path[i], j->path);
    }
    return STATUS_OK;
}

static enum status open_locked(struct batch_journal *j, const json_t *head, struct reason *why)
{
    struct stat st;
    enum status status = scan(j, head, why);
    if (status == STATUS_OK && fstat(j->fd, &st) != 0)
        status = status_fail(why, STATUS_IO, "%s: %s", j->path, strerror(errno));
    bool begun = j->n_bytes > 0;
    if (status == STATUS_OK) status = check_results(j, begun, why);
    if (status != STATUS_OK) return status;
    j->n_lost = (int64_t)st.st_size - j->n_bytes;
    if (j->n_lost > 0 && ftruncate(j->fd, (off_t)j->n_bytes) != 0)
        return status_fail(why, STATUS_IO, "%s: %s", j->path, strerror(errno));
    /* What was read may have been written and not yet synchronised when the last process died. */
    j->unsynced = true;
    return begun ? batch_journal_sync(j, why) : begin(j, head, why);
}

enum status batch_journal_open(struct batch_journal *j, const char *output, const char *errors,
                               const struct batch_identity *id, struct reason *why)
{
    struct buffer path = {0};
    buffer_append_string(&path, output);
    buffer_append_string(&path, ".journal");
    *j = (struct batch_journal){.output = output,
                                .errors = errors,
                                .path = buffer_take(&path),
                                .created = id->created,
                                .n_lines = id->input_lines};
    j->place = buffer_zeroed((size_t)j->n_lines + 1, sizeof *j->place);
    json_t *head = make_head(id);
    bool existed = access(j->path, F_OK) == 0;
    enum status status = existed ? STATUS_OK : check_results(j, false, why); /* leaves no journal behind */
    j->fd = -1;
    if (status == STATUS_OK) status = lock_file(j, why);
    if (status == STATUS_OK) status = open_locked(j, head, why);
    json_decref(head);
    if (status != STATUS_OK) batch_journal_close(j);
    return status;
}

void batch_journal_close(struct batch_journal *j)
{
    if (j->path && j->fd >= 0) close(j->fd);
    free(j->path);
    free(j->place);
    *j = (struct batch_journal){.fd = -1};
}

/* ------------------------------------------------------------------------------------------ records */
enum status batch_journal_add(struct batch_journal *j, int64_t line, bool is_error, const char *record,
                              size_t n, struct reason *why)
{
    ASSERT(line > 0 && line <= j->n_lines && !j->place[line].at);
    struct buffer text = {0};
    batch_record_format(&text, line, is_error, record, n);
    enum status status = batch_file_write(j->fd, text.bytes, text.n, j->n_bytes, j->path, why);
    if (status == STATUS_OK) {
        j->place[line] = (struct batch_place){.at = j->n_bytes, .is_error = is_error};
        j->n_records++;
        j->n_errors += is_error;
        j->n_bytes += (int64_t)text.n;
        j->unsynced = true;
    } else if (ftruncate(j->fd, (off_t)j->n_bytes) != 0) {
        LOG_DEBUG("%s: a torn line stays for the next opening to cut off", j->path);
    }
    buffer_free(&text);
    return status;
}

enum status batch_journal_sync(struct batch_journal *j, struct reason *why)
{
    if (!j->unsynced) return STATUS_OK;
    if (fsync(j->fd) != 0) return status_fail(why, STATUS_IO, "%s: %s", j->path, strerror(errno));
    j->unsynced = false;
    return STATUS_OK;
}

/* ------------------------------------------------------------------------------------------ publishing */
/* Copies the records that belong to `to`: everything, or only errors, or only what is none. */
struct selection {
    bool output, errors;
};

static enum status copy_records(const struct batch_journal *j, FILE *from, struct batch_file *to,
                                struct selection s, struct reason *why)
{
    char *text = NULL;
    size_t capacity = 0;
    enum status status = STATUS_OK;
    for (int64_t line = 1; line <= j->n_lines && status == STATUS_OK; line++) {
        const struct batch_place *p = &j->place[line];
        if (!p->at || !(p->is_error ? s.errors : s.output)) continue;
        int64_t found;
        bool is_error;
        const char *record;
        size_t n_record;
        ssize_t n = fseeko(from, (off_t)p->at, SEEK_SET) == 0 ? getline(&text, &capacity, from) : -1;
        if (n <= 0 || !batch_record_parse(text, (size_t)n, &found, &is_error, &record, &n_record) ||
            found != line)
            status = status_fail(why, STATUS_IO, "%s: the record at byte %" PRId64 " can no longer be read",
                                 j->path, p->at);
        if (status == STATUS_OK) status = batch_file_append(to, record, n_record, why);
        if (status == STATUS_OK) status = batch_file_append(to, "\n", 1, why);
    }
    free(text);
    return status;
}

/* PATH.tmp, whole and on the disk. */
static enum status write_results(const struct batch_journal *j, const char *path, struct selection s,
                                 struct reason *why)
{
    struct batch_file f;
    FILE *from = fopen(j->path, "rb");
    if (!from) return status_fail(why, STATUS_IO, "%s: %s", j->path, strerror(errno));
    enum status status = batch_file_create(&f, path, why);
    if (status == STATUS_OK) {
        status = copy_records(j, from, &f, s, why);
        status = batch_file_close(&f, status, why);
    }
    fclose(from);
    return status;
}

static enum status write_complete_head(const struct batch_journal *j, struct reason *why)
{
    FILE *from = fopen(j->path, "rb");
    char *text = NULL;
    size_t capacity = 0;
    ssize_t n = from ? getline(&text, &capacity, from) : -1;
    if (from) fclose(from);
    json_t *head = n > 0 ? json_loadb(text, (size_t)n, 0, NULL) : NULL;
    free(text);
    if (!head) return status_fail(why, STATUS_IO, "%s: can no longer be read", j->path);
    json_object_set_new(head, "complete", json_true());
    json_object_set_new(head, "results", json_integer(j->n_records - j->n_errors));
    json_object_set_new(head, "bad_lines", json_integer(j->n_errors));
    struct buffer line = {0};
    format_line(&line, head);
    json_decref(head);
    struct batch_file f;
    enum status status = batch_file_create(&f, j->path, why);
    if (status == STATUS_OK) {
        status = batch_file_append(&f, line.bytes, line.n, why);
        status = batch_file_close(&f, status, why);
    }
    buffer_free(&line);
    return status;
}

enum status batch_journal_publish(struct batch_journal *j, struct reason *why)
{
    enum status status = batch_journal_sync(j, why);
    /* Another batch with the same --errors may have been faster. */
    if (status == STATUS_OK) status = check_results(j, true, why);
    if (status == STATUS_OK && j->errors)
        status = write_results(j, j->errors, (struct selection){.errors = true}, why);
    if (status == STATUS_OK)
        status = write_results(j, j->output, (struct selection){.output = true, .errors = !j->errors}, why);
    if (status == STATUS_OK) status = write_complete_head(j, why);
    if (status == STATUS_OK) status = batch_file_sync_folder(j->path, why);
    /* Whatever of this a crash leaves undone, running again does: the journal is complete last. */
    if (status == STATUS_OK && j->errors) status = batch_file_rename(j->errors, why);
    if (status == STATUS_OK) status = batch_file_rename(j->output, why);
    if (status == STATUS_OK) status = batch_file_rename(j->path, why);
    if (status == STATUS_OK) j->complete = true;
    return status;
}
