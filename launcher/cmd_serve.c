/* cmd_serve.c - `retro serve`: the HTTP API over one model. Rank 0 serves and plans; the other ranks follow its steps.
 * The main thread is the engine's; with --dp it is that of the first replica's, and the others have one each. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/heartbeat.h"
#include "launcher/commands.h"
#include "launcher/serving.h"
#include "launcher/signals.h"
#include "launcher/text.h"
#include "runtime/base/die.h"
#include "runtime/http.h"

enum { KEYS_MAX = 1024, NAME_MAX_BYTES = 200 };

struct server { /* what rank 0 has open */
    struct session *s;
    const struct options *o;
    struct serving serving;
    char *key[KEYS_MAX];
    int n_keys;
    struct metrics *metrics;
    struct http *http;
};

/* ---- options */

static enum status add_key(struct server *v, const char *key, const char *from, struct reason *why)
{
    if (!*key) return status_fail(why, STATUS_BAD_OPTION, "%s: an empty key", from);
    for (const char *c = key; *c; c++)
        if (*c <= ' ' || *c > '~')
            return status_fail(why, STATUS_BAD_OPTION, "%s: a key holds printable ASCII without blanks",
                               from);
    if (v->n_keys == KEYS_MAX) return status_fail(why, STATUS_BAD_OPTION, "%s: over %d keys", from, KEYS_MAX);
    v->key[v->n_keys] = strdup(key);
    if (!v->key[v->n_keys++]) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a key");
    return STATUS_OK;
}

/* One key a line; empty lines and lines that begin with # are passed over. */
static enum status read_keys(struct server *v, const char *path, struct reason *why)
{
    char *text, *rest;
    size_t n;
    enum status status = text_read_file(path, &text, &n, why);
    if (status != STATUS_OK) return status;
    for (char *line = strtok_r(text, "\r\n", &rest); line && status == STATUS_OK;
         line = strtok_r(NULL, "\r\n", &rest))
        if (*line != '#') status = add_key(v, line, path, why);
    free(text);
    if (status == STATUS_OK && v->n_keys == 0)
        status = status_fail(why, STATUS_BAD_OPTION, "--api-key-file %s: holds no key", path);
    return status;
}

static enum status prepare(struct server *v, int *context, struct reason *why)
{
    const struct options *o = v->o;
    enum status status = STATUS_OK;
    for (int i = 0; i < o->api_key.n_items && status == STATUS_OK; i++)
        status = add_key(v, o->api_key.item[i], "--api-key", why);
    if (status == STATUS_OK && o->api_key_file) status = read_keys(v, o->api_key_file, why);
    if (status == STATUS_OK) status = serving_prepare(&v->serving, v->s, context, why);
    if (status == STATUS_OK && strlen(v->serving.model) > NAME_MAX_BYTES)
        status = status_fail(why, STATUS_BAD_OPTION, "--served-model-name: over %d bytes", NAME_MAX_BYTES);
    if (status == STATUS_OK && v->serving.why_no_chat.text[0])
        LOG_WARN("no chat: %s", v->serving.why_no_chat.text);
    return status;
}

/* ---- serving */

static bool read_rank(void *user, int rank, struct metrics_rank *out)
{
    const struct server *v = user;
    struct heartbeat_rank h;
    if (v->s->world.size == 1 || !heartbeat_rank(rank, &h)) return false;
    *out = (struct metrics_rank){h.age_s, h.allreduce_s, (int64_t)h.steps};
    return true;
}

static void on_signal(void *user, int signal)
{
    struct server *v = user;
    LOG_INFO("signal %d: no new requests; those that run have %g s; a second signal ends at once", signal,
             v->o->drain);
    http_drain(v->http);
    front_drain(v->serving.front, v->o->drain);
}

/* Written beside and renamed: who reads it finds a whole number. */
static enum status write_port(const char *path, int port, struct reason *why)
{
    char temporary[4096];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    FILE *f = fopen(temporary, "w");
    bool good = f && fprintf(f, "%d\n", port) > 0;
    if (f && fclose(f) != 0) good = false;
    if (good && rename(temporary, path) == 0) return STATUS_OK;
    return status_fail(why, STATUS_BAD_OPTION, "--port-file %s: %s", path, strerror(errno));
}

static enum status open_server(struct server *v, int context, struct reason *why)
{
    const struct options *o = v->o;
    enum status status = serving_open(&v->serving, v->s, context, o->max_queue, why);
    if (status != STATUS_OK) return status;
    v->metrics = metrics_open(v->serving.model, v->s->world.size);
    metrics_ranks(v->metrics, read_rank, v);
    struct http_options h = {
        .host = o->host ? o->host : "127.0.0.1",
        .port = o->port,
        .api = v->serving.api,
        .front = v->serving.front,
        .metrics = v->metrics,
        .key = v->key,
        .n_keys = v->n_keys,
        .max_body_bytes = o->max_body_mib << 20,
        .max_connections = o->max_connections,
        .idle_s = o->idle_timeout,
        .receive_s = o->receive_timeout,
        .ready_s = o->ready_timeout,
    };
    status = http_open(&v->http, &h, why);
    if (status != STATUS_OK) return status;
    signals_open(on_signal, v);
    if (o->port_file) status = write_port(o->port_file, http_port(v->http), why);
    return status;
}

static enum status serve(struct server *v, int context, struct reason *why)
{
    const struct step_limits *l = engine_limits(v->s->engine);
    enum status status = open_server(v, context, why);
    struct front *front = v->serving.front;
    int n = v->s->n_replicas;
    char of[32] = "";
    if (n > 1) snprintf(of, sizeof of, "%d replicas of ", n);
    const char *host = v->o->host ? v->o->host : "127.0.0.1";
    bool ipv6 = strchr(host, ':') != NULL;
    if (status == STATUS_OK)
        LOG_INFO("serving %s on http://%s%s%s:%d/ (%s%d sequences, %d KV blocks of %d tokens)",
                 v->serving.model, ipv6 ? "[" : "", host, ipv6 ? "]" : "", http_port(v->http), of, l->n_slots,
                 l->n_blocks, l->block_tokens);
    else if (front) front_drain(front, 0);
    if (front) front_run(front); /* every stream is complete when it returns */
    http_close(v->http, status == STATUS_OK ? 5 : 0);
    if (v->o->port_file && status == STATUS_OK) unlink(v->o->port_file);
    return status;
}

int cmd_serve(const struct options *o, const struct comm_world *w)
{
    struct session s;
    struct reason why;
    struct server v = {.s = &s, .o = o};
    int context = 0;
    enum status status = session_prepare(&s, o, w, &why);
    if (status == STATUS_OK && w->rank == 0) status = prepare(&v, &context, &why);
    status = session_agree(&s, status, &context, &why);
    if (status == STATUS_OK) {
        serving_size(&s);
        status = session_load(&s, context, o->max_seqs, &why);
        if (status == STATUS_OK && w->rank != 0) {
            signals_open(NULL, NULL);
            session_follow(&s);
        }
        if (status == STATUS_OK && w->rank == 0) status = serve(&v, context, &why);
        if (status != STATUS_OK) session_fail(w, status, &why);
    }
    signals_close();
    serving_close(&v.serving);
    session_close(&s);
    metrics_close(v.metrics);
    for (int i = 0; i < v.n_keys; i++) free(v.key[i]);
    return status_exit_code(status);
}
