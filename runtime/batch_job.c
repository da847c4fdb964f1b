#include "runtime/batch_job.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/api_parts.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

enum { ID_DIGITS = 24 };

/* ------------------------------------------------------------------------------------------ finished jobs */
void batch_done_open(struct batch_done *d)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&d->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&d->lock, NULL);
    d->first = NULL;
    d->last = &d->first;
}

void batch_done_close(struct batch_done *d)
{
    ASSERT(!d->first);
    pthread_cond_destroy(&d->wake);
    pthread_mutex_destroy(&d->lock);
}

struct batch_job *batch_done_take(struct batch_done *d, int64_t timeout_us)
{
    int64_t until = clock_us() + timeout_us;
    struct timespec t = {.tv_sec = until / 1000000, .tv_nsec = until % 1000000 * 1000};
    pthread_mutex_lock(&d->lock);
    int late = timeout_us <= 0;
    while (!d->first && !late) late = pthread_cond_timedwait(&d->wake, &d->lock, &t) != 0;
    struct batch_job *jobs = d->first;
    d->first = NULL;
    d->last = &d->first;
    pthread_mutex_unlock(&d->lock);
    return jobs;
}

/* n prompts of the job need nothing more; with the last one it is finished. */
static void settle(struct batch_job *j, int n)
{
    struct batch_done *d = j->done;
    pthread_mutex_lock(&d->lock);
    j->n_pending -= n;
    if (j->n_pending == 0) {
        *d->last = j;
        d->last = &j->next;
        pthread_cond_signal(&d->wake);
    }
    pthread_mutex_unlock(&d->lock);
}

/* ------------------------------------------------------------------------------------------ the service's sink */
static void on_token(void *user, const struct service_token *t)
{
    struct batch_part *p = user;
    pthread_mutex_lock(&p->job->lock);
    api_answer_token(p->job->answer, p->prompt, t, NULL);
    pthread_mutex_unlock(&p->job->lock);
}

static void on_prompt(void *user, const struct service_prompt_token *t)
{
    struct batch_part *p = user;
    pthread_mutex_lock(&p->job->lock);
    api_answer_prompt(p->job->answer, p->prompt, t);
    pthread_mutex_unlock(&p->job->lock);
}

static void on_end(void *user, const struct service_end *e)
{
    struct batch_part *p = user;
    pthread_mutex_lock(&p->job->lock);
    api_answer_end(p->job->answer, p->prompt, e, NULL);
    pthread_mutex_unlock(&p->job->lock);
}

static void on_done(void *user, const struct service_usage *u)
{
    struct batch_part *p = user;
    pthread_mutex_lock(&p->job->lock);
    api_answer_done(p->job->answer, p->prompt, u, NULL);
    p->job->n_tokens += u->n_completion;
    pthread_mutex_unlock(&p->job->lock);
    settle(p->job, 1);
}

static const struct service_sink sink = {
    .token = on_token, .end = on_end, .done = on_done, .prompt = on_prompt};

/* ------------------------------------------------------------------------------------------ jobs */
/* Hex digits of the file's hash and the line's number: the same in every run. */
static void make_id(const struct batch_work *b, int64_t line, char id[ID_DIGITS + 1])
{
    struct sha256 hash;
    uint8_t digest[SHA256_BYTES];
    char text[SHA256_BYTES * 2 + 32];
    int n = snprintf(text, sizeof text, "%s:%" PRId64, b->input.facts.sha256, line);
    sha256_open(&hash);
    sha256_update(&hash, text, (size_t)n);
    sha256_digest(&hash, digest);
    sha256_hex(digest, ID_DIGITS / 2, id);
}

struct batch_job *batch_job_open(const struct batch_work *b, struct api *api, int64_t line,
                                 const char *custom_id, struct api_request *request, struct batch_done *done)
{
    char id[ID_DIGITS + 1], answer_id[40];
    make_id(b, line, id);
    snprintf(answer_id, sizeof answer_id, "%s-%s", request->endpoint == API_CHAT ? "chatcmpl" : "cmpl", id);
    struct batch_job *j = buffer_zeroed(1, sizeof *j);
    j->line = line;
    j->custom_id = strdup(custom_id);
    if (!j->custom_id) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a request");
    j->request = request;
    j->answer = api_answer_open(api, request, answer_id, b->journal.created);
    api_answer_leave_out_measured(j->answer);
    j->part = buffer_zeroed((size_t)request->n_prompts, sizeof *j->part);
    j->done = done;
    pthread_mutex_init(&j->lock, NULL);
    j->n_pending = request->n_prompts;
    return j;
}

void batch_job_close(struct batch_job *j)
{
    api_answer_close(j->answer);
    api_request_free(j->request);
    free(j->custom_id);
    free(j->part);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

void batch_job_submit(struct batch_job *j, struct api *api, struct front *f)
{
    int n = j->request->n_prompts, submitted = 0;
    uint64_t *id = buffer_zeroed((size_t)n, sizeof *id);
    for (; submitted < n; submitted++) {
        struct service_request q;
        struct reason why;
        api_request_service(api, j->request, submitted, &q);
        j->part[submitted] = (struct batch_part){.job = j, .prompt = submitted};
        q.sink = &sink;
        q.user = &j->part[submitted];
        enum status status = front_submit(f, &q, &id[submitted], &why);
        if (status == STATUS_OK) continue;
        ASSERT(status != STATUS_QUEUE_FULL && status != STATUS_DRAINING); /* the caller's to see to */
        api_constraint_free(&q);
        api_error_from_status(&j->error, status, &why);
        j->failed = true;
        break;
    }
    if (submitted < n) {
        for (int i = 0; i < submitted; i++) front_cancel(f, id[i]);
        settle(j, n - submitted);
    }
    free(id);
}

/* ------------------------------------------------------------------------------------------ records */
static void write_head(const struct batch_work *b, int64_t line, const char *custom_id, struct buffer *out)
{
    char id[ID_DIGITS + 1];
    make_id(b, line, id);
    api_write_format(out, "{\"id\": \"batch_req_%s\", \"custom_id\": ", id);
    if (custom_id) api_write_text(out, custom_id, strlen(custom_id));
    else api_write_format(out, "null");
}

void batch_job_error_record(const struct batch_work *b, int64_t line, const char *custom_id,
                            const struct api_error *e, struct buffer *out)
{
    write_head(b, line, custom_id, out);
    api_write_format(out, ", \"response\": null, \"error\": {\"code\": \"%s\", \"message\": ",
                     e->code ? e->code : e->type);
    api_write_text(out, e->reason.text, strlen(e->reason.text));
    api_write_format(out, ", \"param\": ");
    if (e->param[0]) api_write_text(out, e->param, strlen(e->param));
    else api_write_format(out, "null");
    api_write_format(out, ", \"line\": %" PRId64 "}}", line);
}

bool batch_job_record(struct batch_job *j, const struct batch_work *b, struct buffer *out, bool *is_error)
{
    struct api_error cut;
    struct buffer body = {0};
    *is_error = j->failed;
    if (j->failed) {
        batch_job_error_record(b, j->line, j->custom_id, &j->error, out);
        return true;
    }
    bool whole = api_answer_write(j->answer, &body, &cut);
    if (!whole && cut.http == 500) { /* doing it again would end the same way */
        *is_error = true;
        batch_job_error_record(b, j->line, j->custom_id, &cut, out);
        return true;
    }
    if (whole) {
        char id[ID_DIGITS + 1];
        make_id(b, j->line, id);
        write_head(b, j->line, j->custom_id, out);
        api_write_format(out,
                         ", \"response\": {\"status_code\": 200, \"request_id\": \"req_%s\", \"body\": ", id);
        buffer_append(out, body.bytes, body.n);
        api_write_format(out, "}, \"error\": null}");
    }
    buffer_free(&body);
    return whole;
}
