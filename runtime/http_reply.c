/* http_reply.c - responses that are ready at once. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/http_parts.h"
#include "runtime/page.h"

void http_error(struct api_error *e, int code, const char *name, const char *format, ...)
{
    *e = (struct api_error){.http = code, .code = name};
    e->type = code == 401   ? "authentication_error"
              : code == 429 ? "rate_limit_error"
              : code >= 500 ? "server_error"
                            : "invalid_request_error";
    va_list args;
    va_start(args, format);
    vsnprintf(e->reason.text, sizeof e->reason.text, format, args);
    va_end(args);
}

/* Seconds until a place may be free: what the waiting ones need at the pace so far, within 1 .. 60. */
static int retry_after(struct http *h)
{
    struct service_stats s;
    front_stats(h->o.front, &s);
    int64_t done = 0;
    for (int f = 0; f < SERVICE_FINISH_COUNT; f++) done += s.n_finished[f];
    double each_s = done ? (double)s.step_us * 1e-6 / (double)done : 1;
    double wait_s = each_s * s.n_waiting / front_replicas(h->o.front); /* which work side by side */
    return wait_s < 1 ? 1 : wait_s > 60 ? 60 : (int)wait_s;
}

static enum MHD_Result reply(struct http *h, struct MHD_Connection *c, int code, const char *type,
                             const char *allow, struct buffer *body)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(body->n, body->bytes, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        buffer_free(body);
        return MHD_NO;
    }
    *body = (struct buffer){0}; /* the response's now */
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    if (allow) MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, allow);
    if (code == 401) MHD_add_response_header(r, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (code == 429 || code == 503) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", retry_after(h));
        MHD_add_response_header(r, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
    }
    enum MHD_Result result = MHD_queue_response(c, (unsigned)code, r);
    MHD_destroy_response(r);
    metrics_count_http(h->o.metrics, code);
    return result;
}

enum MHD_Result http_reply(struct http *h, struct MHD_Connection *c, int code, const char *type,
                           struct buffer *body)
{
    return reply(h, c, code, type, NULL, body);
}

enum MHD_Result http_reply_error(struct http *h, struct MHD_Connection *c, const struct api_error *e,
                                 const char *allow)
{
    struct buffer body = {0};
    api_error_write(e, &body);
    return reply(h, c, e->http, "application/json", allow, &body);
}

enum MHD_Result http_reply_page(struct http *h, struct MHD_Connection *c)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(page_bytes(), (void *)page_html, MHD_RESPMEM_PERSISTENT);
    if (!r) return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, "text/html; charset=utf-8");
    MHD_add_response_header(r, "Content-Security-Policy",
                            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                            "connect-src 'self'; img-src data:");
    enum MHD_Result result = MHD_queue_response(c, MHD_HTTP_OK, r);
    MHD_destroy_response(r);
    metrics_count_http(h->o.metrics, 200);
    return result;
}

/* Ready: taking requests, no step of any replica hangs, and every rank that can be heard was heard lately. A step is
 * the work of all ranks of a replica, so one that ended is progress of all of them. */
enum MHD_Result http_reply_ready(struct http *h, struct MHD_Connection *c)
{
    struct service_stats s;
    struct api_error e;
    int rank;
    front_stats(h->o.front, &s);
    double step_s = s.step_began_us ? (double)(clock_us() - s.step_began_us) * 1e-6 : 0;
    double silent_s = metrics_oldest_heartbeat(h->o.metrics, &rank);
    if (atomic_load(&h->draining) || s.draining)
        http_error(&e, 503, "shutting_down", "the server is shutting down");
    else if (step_s > h->o.ready_s)
        http_error(&e, 503, "not_ready", "a step takes %.1f s already: some rank does not go on", step_s);
    else if (silent_s > h->o.ready_s)
        http_error(&e, 503, "not_ready", "rank %d has not been heard for %.1f s", rank, silent_s);
    else {
        struct buffer body = {0};
        buffer_append_string(&body, "{\"status\": \"ready\"}");
        return http_reply(h, c, 200, "application/json", &body);
    }
    return http_reply_error(h, c, &e, NULL);
}

enum MHD_Result http_reply_metrics(struct http *h, struct MHD_Connection *c)
{
    struct buffer body = {0};
    metrics_write(h->o.metrics, h->o.front, atomic_load(&h->n_streams), &body);
    return http_reply(h, c, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}
