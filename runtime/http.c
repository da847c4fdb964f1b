#define _GNU_SOURCE
#include "runtime/http.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/http_parts.h"

/* ---- routes */

struct route {
    const char *url, *method; /* one route a URL */
    bool open;                /* needs no key */
    enum http_kind kind;
    enum api_endpoint endpoint;                                         /* GENERATE */
    enum MHD_Result (*reply)(struct http *h, struct MHD_Connection *c); /* OTHER */
    /* OTHER: of all that begin with url; `rest` follows it */
    enum MHD_Result (*reply_rest)(struct http *h, struct MHD_Connection *c, const char *rest);
};

static enum MHD_Result reply_health(struct http *h, struct MHD_Connection *c)
{
    struct buffer body = {0};
    buffer_append_string(&body, "{\"status\": \"live\"}");
    return http_reply(h, c, 200, "application/json", &body);
}

static enum MHD_Result reply_models(struct http *h, struct MHD_Connection *c)
{
    struct buffer body = {0};
    api_models(h->o.api, h->created, &body);
    return http_reply(h, c, 200, "application/json", &body);
}

static enum MHD_Result reply_model(struct http *h, struct MHD_Connection *c, const char *name)
{
    struct buffer body = {0};
    struct api_error e;
    if (!api_model_object(h->o.api, name, h->created, &body, &e)) return http_reply_error(h, c, &e, NULL);
    return http_reply(h, c, 200, "application/json", &body);
}

static const struct route routes[] = {
    {"/v1/chat/completions", "POST", .kind = HTTP_GENERATE, .endpoint = API_CHAT},
    {"/v1/completions", "POST", .kind = HTTP_GENERATE, .endpoint = API_COMPLETIONS},
    {"/tokenize", "POST", .kind = HTTP_TOKENIZE},
    {"/detokenize", "POST", .kind = HTTP_DETOKENIZE},
    {"/v1/models", "GET", .kind = HTTP_OTHER, .reply = reply_models},
    {"/v1/models/", "GET", .kind = HTTP_OTHER, .reply_rest = reply_model},
    {"/health", "GET", .open = true, .kind = HTTP_OTHER, .reply = reply_health},
    {"/ready", "GET", .open = true, .kind = HTTP_OTHER, .reply = http_reply_ready},
    {"/metrics", "GET", .open = true, .kind = HTTP_OTHER, .reply = http_reply_metrics},
    {"/", "GET", .open = true, .kind = HTTP_OTHER, .reply = http_reply_page},
};

/* NULL: nothing is there. */
static const struct route *find_route(const char *url)
{
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        size_t n = strlen(routes[i].url);
        if (routes[i].reply_rest ? strncmp(url, routes[i].url, n) == 0 && url[n]
                                 : strcmp(url, routes[i].url) == 0)
            return &routes[i];
    }
    return NULL;
}

static bool same_method(const char *wanted, const char *method)
{
    return strcmp(wanted, method) == 0 || (strcmp(wanted, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

/* For the header Allow. */
static const char *route_methods(const struct route *r)
{
    return strcmp(r->method, "GET") == 0 ? "GET, HEAD" : r->method;
}

/* Compares all of it whatever the first difference: the time tells nothing about a key. */
static bool same_key(const char *key, const char *given)
{
    size_t n = strlen(key), m = strlen(given);
    unsigned char differ = n != m;
    for (size_t i = 0; i < n; i++) differ |= (unsigned char)(key[i] ^ given[i < m ? i : m]);
    return differ == 0;
}

static bool may_enter(const struct http *h, struct MHD_Connection *c)
{
    const char *given = MHD_lookup_connection_value(c, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    bool may = h->o.n_keys == 0;
    if (!given || strncasecmp(given, "Bearer ", 7) != 0) return may;
    for (given += 7; *given == ' '; given++) {
    }
    for (int i = 0; i < h->o.n_keys; i++) may |= same_key(h->key[i], given);
    return may;
}

/* What can be said before the body came; false: *e says it. */
static bool may_go_on(struct http *h, struct MHD_Connection *c, const char *url, const char *method,
                      const struct route **route, struct api_error *e)
{
    *route = find_route(url);
    const char *coding = MHD_lookup_connection_value(c, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_ENCODING);
    const char *length = MHD_lookup_connection_value(c, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    if (!*route) http_error(e, 404, "not_found", "%.100s: there is nothing here", url);
    else if (!same_method((*route)->method, method))
        http_error(e, 405, "method_not_allowed", "%.20s: not a method of %.60s", method, url);
    else if (!(*route)->open && !may_enter(h, c))
        http_error(e, 401, "invalid_api_key", "a key is needed: Authorization: Bearer KEY");
    else if (length && strtoll(length, NULL, 10) > h->o.max_body_bytes)
        http_error(e, 413, "body_too_large", "the body has %.20s bytes, at most %d are taken", length,
                   h->o.max_body_bytes);
    else if (coding && strcasecmp(coding, "identity") != 0)
        http_error(e, 415, "unsupported_encoding", "Content-Encoding: %.40s is not supported", coding);
    else if ((*route)->kind == HTTP_GENERATE && atomic_load(&h->draining))
        http_error(e, 503, "shutting_down", "the server is shutting down");
    else return true;
    return false;
}

/* ---- one request */

static struct http_socket *socket_of(struct MHD_Connection *c)
{
    return MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

static void set_receiving(struct http *h, struct http_socket *s, bool receiving)
{
    if (!s) return;
    pthread_mutex_lock(&h->lock);
    s->receiving = receiving;
    s->first = false;
    s->since_us = clock_us();
    pthread_mutex_unlock(&h->lock);
}

static void receive(struct http_exchange *x, const char *bytes, size_t n)
{
    if (x->body.n + n > (size_t)x->http->o.max_body_bytes) x->too_large = true;
    if (!x->too_large) buffer_append(&x->body, bytes, n);
}

static void give_to_worker(struct http_exchange *x)
{
    struct http *h = x->http;
    x->working = true;
    MHD_suspend_connection(x->connection);
    pthread_mutex_lock(&h->job_lock);
    x->next_job = NULL;
    *h->job_end = x;
    h->job_end = &x->next_job;
    pthread_cond_signal(&h->job_wake);
    pthread_mutex_unlock(&h->job_lock);
}

/* What a worker or the service left to be sent. */
static enum MHD_Result respond(struct http_exchange *x)
{
    if (x->stream) return http_stream_respond(x->stream);
    return http_reply(x->http, x->connection, x->code, "application/json", &x->answer);
}

static enum MHD_Result begin_exchange(struct http *h, struct MHD_Connection *c, const char *url,
                                      const char *method, void **exchange)
{
    const struct route *route;
    struct api_error e;
    struct http_exchange *x = buffer_zeroed(1, sizeof *x);
    *exchange = x;
    atomic_fetch_add(&h->n_exchanges, 1);
    *x = (struct http_exchange){.http = h, .connection = c, .code = 200, .kind = HTTP_OTHER};
    if (!may_go_on(h, c, url, method, &route, &e))
        return http_reply_error(h, c, &e, e.http == 405 ? route_methods(route) : NULL);
    x->kind = route->kind;
    x->endpoint = route->endpoint;
    return MHD_YES;
}

static enum MHD_Result handle(void *user, struct MHD_Connection *c, const char *url, const char *method,
                              const char *version, const char *upload, size_t *n_upload, void **exchange)
{
    struct http *h = user;
    struct http_exchange *x = *exchange;
    (void)version;
    if (!x) return begin_exchange(h, c, url, method, exchange);
    if (*n_upload > 0) {
        receive(x, upload, *n_upload);
        *n_upload = 0;
        return MHD_YES;
    }
    if (x->working) return respond(x);
    set_receiving(h, socket_of(c), false);
    if (x->too_large) {
        struct api_error e;
        http_error(&e, 413, "body_too_large", "the body has more than %d bytes", h->o.max_body_bytes);
        return http_reply_error(h, c, &e, NULL);
    }
    if (x->kind != HTTP_OTHER) {
        give_to_worker(x);
        return MHD_YES;
    }
    const struct route *route = find_route(url);
    if (route && route->reply_rest) return route->reply_rest(h, c, url + strlen(route->url));
    return route && route->reply ? route->reply(h, c) : MHD_NO;
}

static void completed(void *user, struct MHD_Connection *c, void **exchange,
                      enum MHD_RequestTerminationCode why)
{
    struct http *h = user;
    struct http_exchange *x = *exchange;
    if (!x) return;
    *exchange = NULL;
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK && x->kind != HTTP_OTHER)
        metrics_count_http(h->o.metrics, 499);
    if (x->stream) http_stream_leave(x->stream);
    set_receiving(h, socket_of(c), true);
    buffer_free(&x->body);
    buffer_free(&x->answer);
    free(x);
    atomic_fetch_sub(&h->n_exchanges, 1);
}

/* ---- connections */

/* A host that vanished without a word is noticed too. The kernel keeps no more for a slow reader than for others: left
 * alone it takes 4 MiB, and who reads nothing would be noticed late. */
static void set_socket(int fd)
{
    int send_bytes = 256 << 10;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
    int on = 1, idle_s = 30, interval_s = 10, count = 3;
    unsigned unacked_ms = 60000;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacked_ms, sizeof unacked_ms);
}

static void connected(void *user, struct MHD_Connection *c, void **context,
                      enum MHD_ConnectionNotificationCode what)
{
    struct http *h = user;
    struct http_socket *s = *context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        s = buffer_zeroed(1, sizeof *s);
        s->fd = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        s->receiving = s->first = true;
        s->since_us = clock_us();
        set_socket(s->fd);
        *context = s;
        pthread_mutex_lock(&h->lock);
        s->next = h->sockets;
        if (s->next) s->next->previous = s;
        h->sockets = s;
        pthread_mutex_unlock(&h->lock);
    } else if (s) {
        pthread_mutex_lock(&h->lock);
        if (s->next) s->next->previous = s->previous;
        if (s->previous) s->previous->next = s->next;
        else h->sockets = s->next;
        pthread_mutex_unlock(&h->lock);
        *context = NULL;
        free(s);
    }
}

/* ---- workers */

static void work_on(struct http_exchange *x)
{
    struct api_error e;
    bool good = true, now = true;
    struct api *api = x->http->o.api;
    switch (x->kind) {
    case HTTP_GENERATE: now = http_generate(x); break;
    case HTTP_TOKENIZE: good = api_tokenize(api, x->body.bytes, x->body.n, &x->answer, &e); break;
    case HTTP_DETOKENIZE: good = api_detokenize(api, x->body.bytes, x->body.n, &x->answer, &e); break;
    case HTTP_OTHER: break;
    }
    if (!good) {
        x->code = e.http;
        api_error_write(&e, &x->answer);
    }
    if (now) MHD_resume_connection(x->connection);
}

static void *work(void *user)
{
    struct http *h = user;
    pthread_mutex_lock(&h->job_lock);
    for (;;) {
        while (!h->job && !h->stopping) pthread_cond_wait(&h->job_wake, &h->job_lock);
        struct http_exchange *x = h->job;
        if (!x) break; /* stopping, and nothing is left */
        h->job = x->next_job;
        if (!h->job) h->job_end = &h->job;
        pthread_mutex_unlock(&h->job_lock);
        work_on(x);
        pthread_mutex_lock(&h->job_lock);
    }
    pthread_mutex_unlock(&h->job_lock);
    return NULL;
}

/* ---- open and close */

static enum status listen_on(struct http *h, struct reason *why)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE},
                    *list;
    char port[16];
    snprintf(port, sizeof port, "%d", h->o.port);
    int fault = getaddrinfo(h->o.host, port, &hints, &list), on = 1, error = 0;
    if (fault) return status_fail(why, STATUS_BAD_OPTION, "--host %s: %s", h->o.host, gai_strerror(fault));
    h->listener = -1;
    for (struct addrinfo *a = list; a && h->listener < 0; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (fd >= 0 && bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 1024) == 0) h->listener = fd;
        else error = errno;
        if (fd >= 0 && h->listener < 0) close(fd);
    }
    freeaddrinfo(list);
    if (h->listener < 0)
        return status_fail(
            why, STATUS_BAD_OPTION, "--host %s --port %d: %s%s", h->o.host, h->o.port, strerror(error),
            error == EADDRINUSE ? ": another server listens there; --port 0 takes a free one" : "");
    struct sockaddr_storage bound;
    socklen_t n = sizeof bound;
    ASSERT(getsockname(h->listener, (struct sockaddr *)&bound, &n) == 0);
    h->port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                : ((struct sockaddr_in *)&bound)->sin_port);
    return STATUS_OK;
}

static void log_mhd(void *user, const char *format, va_list args)
{
    char text[512];
    (void)user;
    int n = vsnprintf(text, sizeof text, format, args);
    while (n > 0 && n < (int)sizeof text && text[n - 1] == '\n') text[--n] = 0;
    LOG_DEBUG("http: %s", text); /* broken connections, for the most part */
}

static enum status start(struct http *h, struct reason *why)
{
    h->daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG,
                                 0, NULL, NULL, handle, h, MHD_OPTION_EXTERNAL_LOGGER, log_mhd, NULL,
                                 MHD_OPTION_LISTEN_SOCKET, h->listener, MHD_OPTION_CONNECTION_TIMEOUT,
                                 (unsigned)h->o.idle_s, MHD_OPTION_CONNECTION_LIMIT,
                                 (unsigned)h->o.max_connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                 (size_t)HTTP_HEADER_BYTES, MHD_OPTION_NOTIFY_COMPLETED, completed, h,
                                 MHD_OPTION_NOTIFY_CONNECTION, connected, h, MHD_OPTION_END);
    if (!h->daemon)
        return status_fail(why, STATUS_BAD_OPTION,
                           "the HTTP server could not be started (too many open files?)");
    return STATUS_OK;
}

static void free_http(struct http *h)
{
    for (int i = 0; i < h->o.n_keys; i++) free(h->key[i]);
    free(h->key);
    free(h);
}

enum status http_open(struct http **out, const struct http_options *o, struct reason *why)
{
    struct http *h = buffer_zeroed(1, sizeof *h);
    h->o = *o;
    h->created = (int64_t)time(NULL);
    h->job_end = &h->job;
    h->key = buffer_zeroed((size_t)o->n_keys + 1, sizeof *h->key);
    for (int i = 0; i < o->n_keys; i++) h->key[i] = strdup(o->key[i]);
    enum status status = listen_on(h, why);
    if (status != STATUS_OK) {
        free_http(h);
        return status;
    }
    pthread_mutex_init(&h->lock, NULL);
    pthread_mutex_init(&h->job_lock, NULL);
    pthread_cond_init(&h->job_wake, NULL);
    http_watch_open(h);
    for (int i = 0; i < HTTP_WORKERS; i++)
        if (pthread_create(&h->worker[i], NULL, work, h) != 0)
            DIE(EXIT_CODE_MEMORY, NULL, "no thread for the server");
    status = start(h, why);
    if (status == STATUS_OK) *out = h;
    else http_close(h, 0);
    return status;
}

int http_port(const struct http *h) { return h->port; }
void http_drain(struct http *h) { atomic_store(&h->draining, true); }

/* What has not arrived by now is not waited for; what has is answered. */
static void end_receiving(struct http *h)
{
    pthread_mutex_lock(&h->lock);
    for (struct http_socket *s = h->sockets; s; s = s->next)
        if (s->receiving) shutdown(s->fd, SHUT_RD);
    pthread_mutex_unlock(&h->lock);
}

void http_close(struct http *h, double seconds)
{
    if (!h) return;
    http_drain(h);
    /* The service is over, so every stream is or will be complete: only clients are waited for. */
    int64_t deadline = clock_us() + (int64_t)(seconds * 1e6);
    if (h->daemon) MHD_quiesce_daemon(h->daemon);
    end_receiving(h);
    while (h->daemon && atomic_load(&h->n_exchanges) > 0 && clock_us() < deadline) usleep(10000);
    pthread_mutex_lock(&h->job_lock);
    h->stopping = true;
    pthread_cond_broadcast(&h->job_wake);
    pthread_mutex_unlock(&h->job_lock);
    for (int i = 0; i < HTTP_WORKERS; i++) pthread_join(h->worker[i], NULL);
    http_watch_close(h);
    if (h->daemon) MHD_stop_daemon(h->daemon);
    close(h->listener);
    pthread_cond_destroy(&h->job_wake);
    pthread_mutex_destroy(&h->job_lock);
    pthread_mutex_destroy(&h->lock);
    free_http(h);
}
