/* http.h - the server: HTTP around api.h and front.h, on threads of its own.
 *
 *   GET  /                     the page             POST /v1/chat/completions   (server-sent events with "stream")
 *   GET  /health               200 while it lives   POST /v1/completions
 *   GET  /ready                200 or 503           GET  /v1/models, /v1/models/NAME
 *   GET  /metrics              Prometheus text      POST /tokenize, /detokenize
 *
 * Threads: libmicrohttpd's one moves bytes; HTTP_WORKERS parse bodies (tokenizing, compiling schemas) and submit; one
 * watches sockets. An engine's thread only appends to a stream's buffer and wakes it: it never waits for a client, and
 * clients never wait for each other. A client that goes away is noticed by its socket at once and its request is
 * cancelled before the next step; one that reads too slowly is cancelled when HTTP_BUFFER_BYTES wait for it.
 *
 * A stream belongs to two: the HTTP side (until libmicrohttpd has done with the request) and the service (until the
 * last done). Whoever leaves last frees it. */
#ifndef RETRO_HTTP_H
#define RETRO_HTTP_H

#include "runtime/api.h"
#include "runtime/front.h"
#include "runtime/metrics.h"

enum { HTTP_WORKERS = 2, HTTP_BUFFER_BYTES = 1 << 20, HTTP_HEADER_BYTES = 32 << 10 };

struct http;

struct http_options {
    const char *host; /* a name or a numeric address */
    int port;         /* 0: chosen by the kernel */
    struct api *api;  /* these three are borrowed */
    struct front *front;
    struct metrics *metrics;
    char *const *key; /* (n_keys) bearer keys, copied; none: everyone may */
    int n_keys;
    int max_body_bytes;
    int max_connections;
    int idle_s;    /* a connection without traffic is closed */
    int receive_s; /* a request must have arrived within */
    int ready_s;   /* /ready says no when a step or the silence of a rank lasts longer */
};

enum status http_open(struct http **out, const struct http_options *o, struct reason *why);
int http_port(const struct http *h);
/* New requests get 503 from now on; /health stays 200. Safe from any thread. */
void http_drain(struct http *h);
/* After the service has ended: delivers what waits to be read for up to `seconds`, then closes all. */
void http_close(struct http *h, double seconds);

#endif
