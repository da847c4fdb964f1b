/* http_parts.h - what http*.c share. Locks, in the order in which they may be taken: http.lock, stream.lock. */
#ifndef RETRO_HTTP_PARTS_H
#define RETRO_HTTP_PARTS_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "runtime/http.h"

/* A TCP connection, from accept to close. */
struct http_socket {
    int fd;
    bool receiving;                      /* a request is awaited or arriving */
    int64_t since_us;                    /* since when */
    bool first;                          /* no request came yet */
    struct http_socket *next, *previous; /* under http.lock */
};

struct http_stream;

struct http_part { /* one prompt of a request, as the service's user */
    struct http_stream *stream;
    int prompt;
    uint64_t id;
    bool submitted, done;
};

struct http_stream {
    struct http *http;
    struct MHD_Connection *connection; /* valid while http_side */
    int fd;
    pthread_mutex_t lock; /* of what follows */
    int n_references;
    bool http_side; /* libmicrohttpd still has the request */
    bool suspended; /* and waits for http_stream_wake */
    bool dead;      /* nobody reads any more */
    bool finished;  /* nothing will be added to `out` */
    int code;       /* of a response in one piece */
    struct buffer out;
    size_t sent;
    struct api_request *request;
    struct api_answer *answer;
    struct http_part *part; /* (n_prompts) */
    int64_t *last_us;       /* (choices) when the last token came */
    uint64_t serial;
    struct http_stream *next, *previous; /* of http.streams, under http.lock */
};

enum http_kind { HTTP_GENERATE, HTTP_TOKENIZE, HTTP_DETOKENIZE, HTTP_OTHER };

/* One HTTP request, from its first line to its end. */
struct http_exchange {
    struct http *http;
    struct MHD_Connection *connection;
    enum http_kind kind;
    enum api_endpoint endpoint;
    struct buffer body;
    bool too_large;
    bool
        working; /* was given to a worker: when the handler is called again, `answer` or `stream` is to be sent */
    int code;
    struct buffer answer;
    struct http_stream *stream;
    struct http_exchange *next_job;
};

struct http {
    struct http_options o;
    char **key;
    struct MHD_Daemon *daemon;
    int port, listener;
    atomic_bool draining;
    int64_t created; /* seconds since 1970 */
    atomic_ullong n_ids;
    atomic_int n_streams, n_exchanges;
    pthread_mutex_t lock;
    struct http_stream *streams;
    struct http_socket *sockets;
    uint64_t last_serial;
    int wake; /* eventfd of the watcher */
    atomic_bool watch_ends;
    pthread_t watcher;
    pthread_mutex_t job_lock;
    pthread_cond_t job_wake;
    struct http_exchange *job, **job_end;
    bool stopping; /* under job_lock */
    pthread_t worker[HTTP_WORKERS];
};

/* http_stream.c */
/* Parses the body, submits, and sets what is to be sent: answer, or stream. On a worker, the connection suspended. True:
 * the caller resumes it; false: that happens later, and the exchange is no longer the caller's. */
bool http_generate(struct http_exchange *x);
enum MHD_Result http_stream_respond(struct http_stream *s);
/* The client is gone or too slow: what was asked for is cancelled. */
void http_stream_abandon(struct http_stream *s);
/* libmicrohttpd has done with the request. */
void http_stream_leave(struct http_stream *s);
/* http_watch.c */
void http_watch_open(struct http *h);
void http_watch_close(struct http *h);
void http_watch_poke(struct http *h);
/* http_reply.c: responses in one piece. */
enum MHD_Result http_reply(struct http *h, struct MHD_Connection *c, int code, const char *type,
                           struct buffer *body);
/* allow: the methods that are taken there, where the error is 405; else NULL. */
enum MHD_Result http_reply_error(struct http *h, struct MHD_Connection *c, const struct api_error *e,
                                 const char *allow);
enum MHD_Result http_reply_page(struct http *h, struct MHD_Connection *c);
enum MHD_Result http_reply_ready(struct http *h, struct MHD_Connection *c);
enum MHD_Result http_reply_metrics(struct http *h, struct MHD_Connection *c);
void http_error(struct api_error *e, int code, const char *name, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
