/* http_stream.c - a request for generation between libmicrohttpd and the service; who calls what is in http.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/http_parts.h"

/* ---- lifetime */

static struct http_stream *open_stream(struct http_exchange *x, struct api_request *r)
{
    struct http *h = x->http;
    struct http_stream *s = buffer_zeroed(1, sizeof *s);
    char id[64];
    snprintf(id, sizeof id, "%s-%llx-%llx", r->endpoint == API_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)h->created, (unsigned long long)atomic_fetch_add(&h->n_ids, 1) + 1);
    pthread_mutex_init(&s->lock, NULL);
    s->http = h;
    s->connection = x->connection;
    s->fd = MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    s->n_references = 1;
    s->http_side = true;
    s->code = 200;
    s->request = r;
    s->answer = api_answer_open(h->o.api, r, id, (int64_t)time(NULL));
    s->part = buffer_zeroed((size_t)r->n_prompts, sizeof *s->part);
    s->last_us = buffer_zeroed((size_t)(r->n_prompts * r->n), sizeof *s->last_us);
    for (int p = 0; p < r->n_prompts; p++) s->part[p] = (struct http_part){.stream = s, .prompt = p};
    atomic_fetch_add(&h->n_streams, 1);
    pthread_mutex_lock(&h->lock);
    s->serial = ++h->last_serial;
    s->next = h->streams;
    if (s->next) s->next->previous = s;
    h->streams = s;
    pthread_mutex_unlock(&h->lock);
    http_watch_poke(h);
    return s;
}

/* With s->lock held, which it gives up. */
static void release(struct http_stream *s)
{
    bool last = --s->n_references == 0;
    pthread_mutex_unlock(&s->lock);
    if (!last) return;
    atomic_fetch_sub(&s->http->n_streams, 1);
    api_answer_close(s->answer);
    api_request_free(s->request);
    buffer_free(&s->out);
    free(s->part);
    free(s->last_us);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void cancel_parts(struct http_stream *s)
{
    for (int p = 0; p < s->request->n_prompts; p++)
        if (s->part[p].submitted && !s->part[p].done) front_cancel(s->http->o.front, s->part[p].id);
}

/* Lets libmicrohttpd go on with the connection. With s->lock held. */
static void wake(struct http_stream *s)
{
    if (!s->suspended || !s->http_side) return;
    s->suspended = false;
    MHD_resume_connection(s->connection);
}

/* With s->lock held. */
static void abandon(struct http_stream *s)
{
    if (s->dead) return;
    s->dead = true;
    cancel_parts(s);
    if (!s->http_side) return;
    shutdown(s->fd, SHUT_RDWR); /* a write that waits for the client ends now */
    if (s->request->stream) wake(s);
}

void http_stream_abandon(struct http_stream *s)
{
    pthread_mutex_lock(&s->lock);
    if (!s->finished) abandon(s);
    pthread_mutex_unlock(&s->lock);
}

void http_stream_leave(struct http_stream *s)
{
    struct http *h = s->http;
    pthread_mutex_lock(&h->lock);
    if (s->next) s->next->previous = s->previous;
    if (s->previous) s->previous->next = s->next;
    else h->streams = s->next;
    pthread_mutex_unlock(&h->lock);
    pthread_mutex_lock(&s->lock);
    s->http_side = false;
    if (!s->finished && !s->dead) {
        s->dead = true;
        cancel_parts(s);
    }
    release(s);
}

/* ---- the sink: an engine's thread; the prompts of one request may run on several */

static void on_token(void *user, const struct service_token *t)
{
    struct http_part *part = user;
    struct http_stream *s = part->stream;
    int64_t now = clock_us(), *last = &s->last_us[part->prompt * s->request->n + t->choice];
    if (t->index > 0 && *last) metrics_observe(s->http->o.metrics, METRICS_INTER_TOKEN, now - *last);
    *last = now;
    pthread_mutex_lock(&s->lock);
    if (!s->dead) {
        api_answer_token(s->answer, part->prompt, t, &s->out);
        if (s->request->stream && s->out.n - s->sent > HTTP_BUFFER_BYTES) abandon(s);
        else if (s->request->stream && s->out.n > s->sent) wake(s);
    }
    pthread_mutex_unlock(&s->lock);
}

static void on_prompt(void *user, const struct service_prompt_token *t)
{
    struct http_part *part = user;
    struct http_stream *s = part->stream;
    pthread_mutex_lock(&s->lock);
    if (!s->dead) api_answer_prompt(s->answer, part->prompt, t);
    pthread_mutex_unlock(&s->lock);
}

static void on_end(void *user, const struct service_end *e)
{
    struct http_part *part = user;
    struct http_stream *s = part->stream;
    pthread_mutex_lock(&s->lock);
    api_answer_end(s->answer, part->prompt, e, &s->out);
    if (s->request->stream && s->out.n > s->sent) wake(s);
    pthread_mutex_unlock(&s->lock);
}

static void observe(struct metrics *m, const struct service_usage *u)
{
    metrics_observe(m, METRICS_QUEUE, u->queue_us);
    metrics_observe(m, METRICS_END_TO_END, u->total_us);
    if (!u->first_us) return;
    metrics_observe(m, METRICS_FIRST_TOKEN, u->first_us);
    metrics_observe(m, METRICS_PREFILL, u->prefill_us);
    metrics_observe(m, METRICS_DECODE, u->decode_us);
}

/* The last part is done: a response in one piece is written. With s->lock held. */
static void finish(struct http_stream *s)
{
    struct api_error e;
    s->finished = true;
    if (!s->request->stream && !s->dead && !api_answer_write(s->answer, &s->out, &e)) {
        s->code = e.http;
        s->out.n = 0;
        api_error_write(&e, &s->out);
    }
    wake(s);
}

static void on_done(void *user, const struct service_usage *u)
{
    struct http_part *part = user;
    struct http_stream *s = part->stream;
    observe(s->http->o.metrics, u);
    pthread_mutex_lock(&s->lock);
    part->done = true;
    if (api_answer_done(s->answer, part->prompt, u, &s->out)) finish(s);
    release(s);
}

static const struct service_sink sink = {
    .token = on_token, .end = on_end, .done = on_done, .prompt = on_prompt};

/* ---- submission: a worker */

static void refuse(struct http_exchange *x, const struct api_error *e)
{
    x->code = e->http;
    api_error_write(e, &x->answer);
}

/* Submits all prompts or none. The service may call the sink before this returns, so a reference is taken first. */
static bool submit_parts(struct http_stream *s, struct api_error *e)
{
    struct api *api = s->http->o.api;
    for (int p = 0; p < s->request->n_prompts; p++) {
        struct service_request q;
        struct reason why;
        uint64_t id;
        api_request_service(api, s->request, p, &q);
        q.sink = &sink;
        q.user = &s->part[p];
        pthread_mutex_lock(&s->lock);
        s->n_references++;
        pthread_mutex_unlock(&s->lock);
        enum status status = front_submit(s->http->o.front, &q, &id, &why);
        pthread_mutex_lock(&s->lock);
        if (status != STATUS_OK) {
            api_constraint_free(&q);
            s->n_references--; /* not the last: the HTTP side is there */
            s->dead = true;
            cancel_parts(s);
            pthread_mutex_unlock(&s->lock);
            api_error_from_status(e, status, &why);
            return false;
        }
        s->part[p].id = id;
        s->part[p].submitted = true;
        if (s->dead) front_cancel(s->http->o.front, id); /* the client left meanwhile */
        pthread_mutex_unlock(&s->lock);
    }
    return true;
}

bool http_generate(struct http_exchange *x)
{
    struct api_request *r;
    struct api_error e;
    if (!api_parse(x->http->o.api, x->endpoint, x->body.bytes, x->body.n, &r, &e)) {
        refuse(x, &e);
        return true;
    }
    int most = front_max_queue(x->http->o.front);
    if (r->n_prompts > most) { /* else it would be told to come back for ever */
        http_error(&e, 400, NULL, "prompt: %d prompts, at most %d may wait here (--max-queue)", r->n_prompts,
                   most);
        snprintf(e.param, sizeof e.param, "prompt");
        api_request_free(r);
        refuse(x, &e);
        return true;
    }
    struct http_stream *s = open_stream(x, r);
    if (!submit_parts(s, &e)) {
        http_stream_leave(s);
        refuse(x, &e);
        return true;
    }
    pthread_mutex_lock(&s->lock);
    x->stream = s;
    bool now = r->stream || s->finished;
    s->suspended = !now; /* in one piece: the last done wakes the connection */
    pthread_mutex_unlock(&s->lock);
    return now;
}

/* ---- sending: libmicrohttpd's thread */

/* Who is always a little behind must not have the whole stream kept for it. With s->lock held. */
static void drop_sent(struct http_stream *s)
{
    s->out.n -= s->sent;
    memmove(s->out.bytes, s->out.bytes + s->sent, s->out.n);
    s->sent = 0;
}

static ssize_t read_events(void *user, uint64_t position, char *to, size_t max)
{
    struct http_stream *s = user;
    (void)position;
    ssize_t n = 0;
    pthread_mutex_lock(&s->lock);
    size_t left = s->out.n - s->sent;
    if (s->dead) n = MHD_CONTENT_READER_END_WITH_ERROR;
    else if (left > 0) {
        n = (ssize_t)(left < max ? left : max);
        memcpy(to, s->out.bytes + s->sent, (size_t)n);
        s->sent += (size_t)n;
        if (s->sent == s->out.n || s->sent >= HTTP_BUFFER_BYTES) drop_sent(s);
    } else if (s->finished) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        s->suspended = true;
        MHD_suspend_connection(s->connection);
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

enum MHD_Result http_stream_respond(struct http_stream *s)
{
    struct MHD_Response *r;
    if (!s->request->stream && s->dead) return MHD_NO; /* nobody is there to be answered */
    if (!s->request->stream) {
        struct buffer body = s->out;
        s->out = (struct buffer){0};
        return http_reply(s->http, s->connection, s->code, "application/json", &body);
    }
    r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 << 10, read_events, s, NULL);
    if (!r) return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream; charset=utf-8");
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    enum MHD_Result result = MHD_queue_response(s->connection, MHD_HTTP_OK, r);
    MHD_destroy_response(r);
    metrics_count_http(s->http->o.metrics, 200);
    return result;
}
