#include "runtime/batch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/api_parts.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/batch_job.h"

/* How long a finished result may wait for the disk; how often an interruption is looked for; the progress line. */
enum { SYNC_US = 1000000, POLL_US = 100000, TERMINAL_US = 500000, LOG_US = 30000000 };

enum status batch_open(struct batch_work *b, const struct batch_paths *paths, const json_t *settings,
                       struct reason *why)
{
    *b = (struct batch_work){.input.fd = -1, .journal.fd = -1};
    enum status status = batch_input_open(&b->input, paths->input, why);
    if (status != STATUS_OK) return status;
    const struct batch_input_facts *f = &b->input.facts;
    struct batch_identity id = {.input_bytes = f->n_bytes,
                                .input_sha256 = f->sha256,
                                .input_lines = f->n_lines,
                                .created = f->modified_s,
                                .settings = settings};
    status = batch_journal_open(&b->journal, paths->output, paths->errors, &id, why);
    if (status != STATUS_OK) batch_input_close(&b->input);
    return status;
}

void batch_close(struct batch_work *b)
{
    batch_journal_close(&b->journal);
    batch_input_close(&b->input);
}

int64_t batch_left(const struct batch_work *b)
{
    return b->journal.complete ? 0 : b->input.facts.n_requests - b->journal.n_records;
}

/* ------------------------------------------------------------------------------------------ the batch's thread */
struct run {
    struct batch_work *b;
    const struct batch_run_options *o;
    struct batch_done done;
    struct batch_ids ids;
    struct batch_progress progress;
    int n_in_flight; /* prompts */
    bool at_end;     /* of the input */
    bool stopping;   /* no more lines: interrupted or failed */
    int64_t began_us, synced_us, told_us;
    enum status status; /* the first failure; records are dropped from then on */
    struct reason why;
};

static void stop(struct run *r, double drain_s)
{
    r->stopping = true;
    front_drain(r->o->front, drain_s);
}

static void fail(struct run *r, enum status status)
{
    if (status == STATUS_OK) return;
    r->status = status;
    stop(r, 0);
}

static void add_record(struct run *r, int64_t line, bool is_error, const struct buffer *record)
{
    if (r->status != STATUS_OK) return;
    fail(r, batch_journal_add(&r->b->journal, line, is_error, record->bytes, record->n, &r->why));
}

static void refuse_line(struct run *r, int64_t line, const char *custom_id, const struct api_error *e)
{
    struct buffer record = {0};
    batch_job_error_record(r->b, line, custom_id, e, &record);
    add_record(r, line, true, &record);
    r->progress.n_here++;
    buffer_free(&record);
}

/* Of a line that names none: 63 bits, as JSON can write them. */
static uint64_t seed_of(const char *custom_id)
{
    struct sha256 hash;
    uint8_t digest[SHA256_BYTES];
    uint64_t seed = 0;
    sha256_open(&hash);
    sha256_update(&hash, custom_id, strlen(custom_id));
    sha256_digest(&hash, digest);
    for (int i = 0; i < 8; i++) seed = seed << 8 | digest[i];
    return seed >> 1;
}

/* The line's request, or why it is none. */
static bool parse_line(struct run *r, const struct batch_line *line, struct batch_request *q,
                       struct api_request **request, struct api_error *e)
{
    bool good = batch_request_parse(q, line, e);
    /* Every line's id is taken, whatever becomes of the line: so it does not matter where a run began. */
    if (q->custom_id && !batch_ids_add(&r->ids, q->custom_id)) {
        api_error_set(e, 400, "duplicate_custom_id", "custom_id", "custom_id: an earlier line has the same");
        good = false;
    }
    if (batch_journal_has(&r->b->journal, line->number) || !good) return false;
    if (!api_parse_json(r->o->api, q->endpoint, q->body, request, e)) return false;
    if ((*request)->stream) {
        api_request_free(*request);
        *request = NULL;
        api_error_set(e, 400, "invalid_value", "stream", "stream: a batch cannot stream; leave it out");
        return false;
    }
    if (!(*request)->seeded) (*request)->sampling.seed = seed_of(q->custom_id);
    return true;
}

static void take_line(struct run *r, const struct batch_line *line)
{
    struct batch_request q;
    struct api_request *request = NULL;
    struct api_error e;
    bool good = parse_line(r, line, &q, &request, &e);
    if (batch_journal_has(&r->b->journal, line->number)) {
        batch_request_close(&q);
        return;
    }
    if (good) {
        struct batch_job *j = batch_job_open(r->b, r->o->api, line->number, q.custom_id, request, &r->done);
        r->n_in_flight += request->n_prompts;
        batch_job_submit(j, r->o->api, r->o->front);
    } else {
        refuse_line(r, line->number, q.custom_id, &e);
    }
    batch_request_close(&q);
}

static bool can_read(const struct run *r)
{
    return !r->at_end && !r->stopping && r->n_in_flight < r->o->n_in_flight;
}

/* A long row of bad lines, or of those that are done, must not keep the journal waiting. */
static void read_ahead(struct run *r)
{
    while (can_read(r) && !r->o->interrupted() && clock_us() - r->synced_us < SYNC_US) {
        struct batch_line line;
        fail(r, batch_input_next(&r->b->input, &line, &r->at_end, &r->why));
        if (r->status == STATUS_OK && !r->at_end) take_line(r, &line);
    }
}

static void take_finished(struct run *r, int64_t timeout_us)
{
    for (struct batch_job *j = batch_done_take(&r->done, timeout_us), *next; j; j = next) {
        next = j->next;
        struct buffer record = {0};
        bool is_error;
        if (batch_job_record(j, r->b, &record, &is_error)) {
            add_record(r, j->line, is_error, &record);
            r->progress.n_here++;
        }
        r->progress.n_tokens += j->n_tokens;
        r->n_in_flight -= j->request->n_prompts;
        buffer_free(&record);
        batch_job_close(j);
    }
}

static void tell(struct run *r, int64_t now)
{
    char text[200];
    struct batch_progress *p = &r->progress;
    p->seconds = (double)(now - r->began_us) * 1e-6;
    batch_progress_format(p, text, sizeof text);
    if (r->o->terminal) fprintf(stderr, "\rretro: %s\x1b[K", text);
    else LOG_INFO("%s", text);
    r->told_us = now;
}

/* What is on the disk is done, and only that is told. */
static void synchronise(struct run *r, int64_t now)
{
    struct batch_journal *j = &r->b->journal;
    if (r->status == STATUS_OK) fail(r, batch_journal_sync(j, &r->why));
    r->synced_us = now;
    if (r->status != STATUS_OK) return;
    r->progress.n_done = j->n_records;
    r->progress.n_errors = j->n_errors;
}

static void *run_batch(void *user)
{
    struct run *r = user;
    r->began_us = r->synced_us = r->told_us = clock_us();
    if (r->o->terminal) tell(r, r->began_us);
    while (true) {
        read_ahead(r);
        if (!r->stopping && r->o->interrupted()) stop(r, r->o->drain_s);
        if ((r->at_end || r->stopping) && r->n_in_flight == 0) break;
        take_finished(r, can_read(r) ? 0 : POLL_US);
        int64_t now = clock_us();
        if (now - r->synced_us >= SYNC_US) synchronise(r, now);
        if (now - r->told_us >= (r->o->terminal ? TERMINAL_US : LOG_US)) tell(r, now);
    }
    int64_t now = clock_us();
    synchronise(r, now);
    r->progress.seconds = (double)(now - r->began_us) * 1e-6;
    if (r->o->terminal) fputs("\r\x1b[K", stderr);
    front_drain(r->o->front, 0);
    return NULL;
}

enum status batch_run(struct batch_work *b, const struct batch_run_options *o,
                      struct batch_progress *progress, struct reason *why)
{
    struct run r = {.b = b, .o = o};
    pthread_t thread;
    r.progress.n_requests = b->input.facts.n_requests;
    r.progress.n_done = b->journal.n_records;
    r.progress.n_errors = b->journal.n_errors;
    batch_done_open(&r.done);
    if (pthread_create(&thread, NULL, run_batch, &r) != 0)
        DIE(EXIT_CODE_MEMORY, "raise ulimit -u", "no thread for the batch");
    front_run(o->front);
    pthread_join(thread, NULL);
    batch_done_close(&r.done);
    batch_ids_close(&r.ids);
    *progress = r.progress;
    *why = r.why;
    return r.status;
}
