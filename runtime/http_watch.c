/* http_watch.c - one thread that waits for clients that go away while their answer is being made (libmicrohttpd does
 * not look at a suspended connection), and for requests that take too long to arrive. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/http_parts.h"

enum { TICK_MS = 250 };

struct watched {
    struct pollfd *fd; /* (n); the first is the wake-up */
    uint64_t *serial;
    size_t n, capacity;
};

static void add(struct watched *w, int fd, short events, uint64_t serial)
{
    if (w->n == w->capacity) {
        w->capacity = w->capacity * 2 + 64;
        w->fd = buffer_realloc(w->fd, w->capacity, sizeof *w->fd);
        w->serial = buffer_realloc(w->serial, w->capacity, sizeof *w->serial);
    }
    w->fd[w->n] = (struct pollfd){.fd = fd, .events = events};
    w->serial[w->n++] = serial;
}

static void collect(struct http *h, struct watched *w)
{
    w->n = 0;
    add(w, h->wake, POLLIN, 0);
    pthread_mutex_lock(&h->lock);
    for (struct http_stream *s = h->streams; s; s = s->next) {
        pthread_mutex_lock(&s->lock);
        bool gone = s->dead || s->finished;
        pthread_mutex_unlock(&s->lock);
        if (!gone) add(w, s->fd, POLLRDHUP, s->serial);
    }
    pthread_mutex_unlock(&h->lock);
}

/* The stream may have ended and its number be another's by now: it is looked up by its serial. */
static void lost(struct http *h, uint64_t serial)
{
    pthread_mutex_lock(&h->lock);
    for (struct http_stream *s = h->streams; s; s = s->next)
        if (s->serial == serial) {
            http_stream_abandon(s);
            break;
        }
    pthread_mutex_unlock(&h->lock);
}

static void end_slow_requests(struct http *h)
{
    int64_t now = clock_us();
    pthread_mutex_lock(&h->lock);
    for (struct http_socket *s = h->sockets; s; s = s->next) {
        int64_t limit_s = h->o.receive_s + (s->first ? 0 : h->o.idle_s);
        if (!s->receiving || now - s->since_us < limit_s * 1000000) continue;
        shutdown(s->fd, SHUT_RDWR);
        s->receiving = false;
    }
    pthread_mutex_unlock(&h->lock);
}

static void *watch(void *user)
{
    struct http *h = user;
    struct watched w = {0};
    while (!atomic_load(&h->watch_ends)) {
        collect(h, &w);
        if (poll(w.fd, w.n, TICK_MS) < 0 && errno != EINTR)
            DIE(EXIT_CODE_BUG, NULL, "poll: %s", strerror(errno));
        uint64_t count;
        if (w.fd[0].revents && read(h->wake, &count, sizeof count) < 0) LOG_DEBUG("wake-up of the watcher");
        for (size_t i = 1; i < w.n; i++)
            if (w.fd[i].revents & (POLLRDHUP | POLLHUP | POLLERR)) lost(h, w.serial[i]);
        end_slow_requests(h);
    }
    free(w.fd);
    free(w.serial);
    return NULL;
}

void http_watch_open(struct http *h)
{
    h->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (h->wake < 0 || pthread_create(&h->watcher, NULL, watch, h) != 0)
        DIE(EXIT_CODE_MEMORY, NULL, "no thread for the server");
}

void http_watch_poke(struct http *h)
{
    uint64_t one = 1;
    if (write(h->wake, &one, sizeof one) < 0) LOG_DEBUG("the watcher is awake already");
}

void http_watch_close(struct http *h)
{
    atomic_store(&h->watch_ends, true);
    http_watch_poke(h);
    pthread_join(h->watcher, NULL);
    close(h->wake);
}
