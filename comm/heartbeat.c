#define _GNU_SOURCE
#include "comm/heartbeat.h"

#include <errno.h>
#include <linux/sockios.h>
#include <mpi.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "comm/group.h"
#include "comm/mesh.h"
#include "comm/net.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/base/hostmem.h"
#include "runtime/base/progress.h"

/* INTERVAL_US: between two beats. QUEUE_MAX: bytes that a peer has not taken; above it beats are left out, so
 * that a record always fits whole. LEAVE_US: how long the others may take to end. ALONE_US: how long a rank that
 * told its end waits for rank 0's verdict. SIGNAL_SILENCE_US: mpirun ends ranks by SIGTERM when it has noticed the loss
 * of a host before us; then so much silence is enough, for SIGNAL_FRESH_US, after which it kills them. */
enum {
    RECORD_MAGIC = 0x54414542, /* "BEAT" */
    INTERVAL_US = 250000,
    QUEUE_MAX = 64 << 10,
    LEAVE_US = 400000,
    ALONE_US = 3000000,
    SIGNAL_SILENCE_US = 1500000,
    SIGNAL_FRESH_US = 1000000,
};

enum record_kind { RECORD_BEAT, RECORD_REPORT, RECORD_BYE, RECORD_VERDICT, RECORD_CLOSED };

struct record {
    uint32_t magic, kind;
    struct beat beat;
    struct watch_report report;
    int32_t exit_code; /* VERDICT */
    int64_t linger_us; /* VERDICT: how much longer to stay */
};

struct stream {   /* to one peer */
    int fd;       /* -1: none any more */
    bool no_path; /* because the network gave up, not because the peer ended */
    size_t n;     /* bytes of `in` that have come */
    struct record in;
};

struct told { /* of the last beat, for other threads */
    _Atomic int64_t heard_us, allreduce_us;
    _Atomic uint64_t step;
};

struct heartbeat {
    struct comm_world world;
    struct told *told; /* (size) */
    struct heartbeat_options options;
    struct watch watch;
    struct stream *stream; /* rank 0: (size); others: stream[0] leads to rank 0 */
    struct mesh mesh;
    struct pollfd *poll; /* (size + 2) */
    int wake;            /* eventfd */
    pthread_t thread;
    int64_t began_us, told_us; /* told_us: when this rank told its own end, or 0 */
    int64_t oom_at_start;
    bool said_bye;
    atomic_bool closing;
    _Atomic int signal, failed;   /* signal: that ends this rank; failed: exit code + 1 */
    _Atomic int64_t terminate_us; /* of the last SIGTERM, whatever came of it */
};

static struct heartbeat *here; /* for the die hook and the signal handler */

/* ---- sending and receiving */

/* Bytes that the peer's host has not taken. */
static int queued(int fd)
{
    int n = 0;
    return ioctl(fd, SIOCOUTQ, &n) == 0 ? n : 0;
}

static void send_record(struct stream *s, enum record_kind kind, struct record *r)
{
    if (s->fd < 0) return;
    if (kind == RECORD_BEAT && queued(s->fd) > QUEUE_MAX) return;
    r->magic = RECORD_MAGIC;
    r->kind = kind;
    net_write_all(s->fd, r, sizeof *r, kind == RECORD_BEAT ? 0 : clock_us() + INTERVAL_US);
}

/* The kernel says that the other host cannot be reached: its silence will tell, the peer may well live. */
static bool is_network_error(int error)
{
    return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH || error == ENETDOWN ||
           error == EHOSTDOWN;
}

/* Takes what has come; true when a whole record is in s->in. A broken or foreign stream is closed. */
static bool receive_record(struct stream *s)
{
    ssize_t k = recv(s->fd, (char *)&s->in + s->n, sizeof s->in - s->n, MSG_DONTWAIT);
    if (k < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (k > 0) s->n += (size_t)k;
    if (k <= 0 || (s->n == sizeof s->in && s->in.magic != RECORD_MAGIC)) {
        s->no_path = k < 0 && is_network_error(errno);
        close(s->fd);
        s->fd = -1;
        return false;
    }
    if (s->n < sizeof s->in) return false;
    s->n = 0;
    s->in.report.text[WATCH_TEXT_BYTES - 1] = 0;
    s->in.beat.op[sizeof s->in.beat.op - 1] = 0;
    return true;
}

/* The state letter of the main thread in /proc. */
static int main_thread_state(void)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    const char *name_end = strrchr(text, ')'); /* the name may hold anything */
    return name_end && name_end[1] == ' ' ? name_end[2] : 0;
}

static void fill_beat(const struct heartbeat *h, struct beat *b)
{
    *b = (struct beat){
        .phase = atomic_load_explicit(&progress_here.phase, memory_order_acquire),
        .layer = atomic_load(&progress_here.layer),
        .step = atomic_load(&progress_here.step),
        .count = atomic_load(&progress_here.count),
        .allreduce_us = atomic_load(&progress_here.allreduce_us),
        .available_mib = hostmem_available() >> 20,
        .oom_kills = hostmem_oom_kills() - h->oom_at_start,
        .thread_state = main_thread_state(),
        .deaf_to = mesh_deaf_to(&h->mesh, h->watch.limits.silent_us, clock_us()),
    };
    const char *op = atomic_load(&progress_here.op);
    if (op) snprintf(b->op, sizeof b->op, "%s", op);
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    b->cpu_us = (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int n_streams(const struct heartbeat *h) { return h->world.rank == 0 ? h->world.size : 1; }

static void hear(struct heartbeat *h, int rank, const struct beat *b)
{
    int64_t now = clock_us();
    watch_heard(&h->watch, rank, b, now);
    atomic_store(&h->told[rank].heard_us, now);
    atomic_store(&h->told[rank].allreduce_us, b->allreduce_us);
    atomic_store(&h->told[rank].step, b->step);
}

bool heartbeat_rank(int rank, struct heartbeat_rank *out)
{
    struct heartbeat *h = here;
    if (!h || rank < 0 || rank >= n_streams(h)) return false;
    struct told *t = &h->told[rank];
    out->age_s = (double)(clock_us() - atomic_load(&t->heard_us)) * 1e-6;
    out->allreduce_s = (double)atomic_load(&t->allreduce_us) * 1e-6;
    out->steps = atomic_load(&t->step);
    return true;
}

static void beat(struct heartbeat *h)
{
    struct record r = {0};
    fill_beat(h, &r.beat);
    hear(h, h->world.rank, &r.beat);
    for (int p = 0; p < n_streams(h); p++) {
        h->watch.rank[p].answers = false;
        if (h->stream[p].fd < 0) continue;
        /* What was sent a beat ago is taken by now when the peer's host lives. */
        h->watch.rank[p].answers = queued(h->stream[p].fd) == 0;
        send_record(&h->stream[p], RECORD_BEAT, &r);
    }
    mesh_beat(&h->mesh);
}

/* ---- ends */

static void wait_for_signal(struct heartbeat *h, int64_t until_us)
{
    uint64_t count;
    int64_t before = atomic_load(&h->terminate_us);
    while (clock_us() < until_us && !atomic_load(&h->signal) && atomic_load(&h->terminate_us) == before)
        if (net_wait_for(h->wake, POLLIN, until_us)) (void)!read(h->wake, &count, sizeof count);
}

static int64_t linger_us(const struct heartbeat *h, const struct cause *c)
{
    if (c->kind != CAUSE_UNREACHABLE) return 0;
    int64_t left = (int64_t)(h->options.linger_s * 1e6) - c->silent_us;
    return left > 0 ? left : 0;
}

static _Noreturn void leave(struct heartbeat *h, int exit_code, int64_t stay_us)
{
    shm_forget_name();
    if (stay_us > 0) wait_for_signal(h, clock_us() + stay_us);
    _exit(exit_code);
}

/* Rank 0's end of the job. */
static _Noreturn void conclude(struct heartbeat *h, const struct cause *c)
{
    int64_t stay = linger_us(h, c), until = clock_us() + LEAVE_US;
    h->options.record(c, &h->watch, true);
    struct record r = {.exit_code = c->exit_code, .linger_us = stay};
    int left = 0;
    for (int p = 1; p < h->world.size; p++) {
        send_record(&h->stream[p], RECORD_VERDICT, &r);
        left += h->stream[p].fd >= 0 && p != c->rank;
    }
    /* Until the others are gone: what they have to say stands before the cause. */
    while (left > 0 && stay == 0 && clock_us() < until) {
        poll(h->poll, 0, 10);
        left = 0;
        for (int p = 1; p < h->world.size; p++) {
            if (h->stream[p].fd >= 0) receive_record(&h->stream[p]);
            left += h->stream[p].fd >= 0 && p != c->rank;
        }
    }
    h->options.print(c);
    leave(h, c->exit_code, stay);
}

/* A follower's end of the job when rank 0 is gone: the lowest rank that is left speaks, the others hear of it
 * by datagram and end in silence. */
static _Noreturn void take_over(struct heartbeat *h, const struct cause *c)
{
    enum { TURN_US = 50000, TURNS_MAX = 20 };
    int turn = h->world.rank - 1 < TURNS_MAX ? h->world.rank - 1 : TURNS_MAX;
    int64_t until = clock_us() + (int64_t)turn * TURN_US, stay = linger_us(h, c);
    do {
        if (mesh_heard_end(&h->mesh)) leave(h, c->exit_code, stay);
    } while (net_wait_for(h->mesh.fd, POLLIN, until) && clock_us() < until);
    mesh_tell_end(&h->mesh);
    h->options.record(c, &h->watch, c->kind != CAUSE_UNREACHABLE);
    /* A word now would wait in the launcher's daemon for the lost host, and a daemon whose connection has bytes to
     * send probes it no more: it would live on. So it has the time to notice first. */
    if (stay > 0) wait_for_signal(h, clock_us() + stay);
    h->options.print(c);
    leave(h, c->exit_code, 0);
}

/* Tells this rank's own end, by signal or DIE, once. */
static void tell_own_end(struct heartbeat *h)
{
    int failed = atomic_load(&h->failed), by_signal = atomic_load(&h->signal);
    if (h->told_us || (!failed && !by_signal)) return;
    if (!failed) {
        struct cause c; /* a host may be lost: then that is the cause */
        watch_decide(&h->watch, clock_us(), &c);
        if (h->watch.suspected_us) return;
    }
    h->told_us = clock_us();
    int asked = by_signal == SIGUSR1 ? EXIT_CODE_INTERRUPTED : 128 + by_signal;
    struct record r = {.report = {.there = true, .exit_code = failed ? failed - 1 : asked}};
    r.report.signal = failed ? 0 : by_signal;
    snprintf(r.report.text, sizeof r.report.text, "%s", failed ? die_cause() : "");
    h->watch.rank[h->world.rank].report = r.report;
    if (h->world.rank != 0) send_record(&h->stream[0], RECORD_REPORT, &r);
}

/* ---- the thread */

static int64_t patience_us(const struct heartbeat *h)
{
    int64_t asked = (int64_t)(h->options.silence_s * 1e6);
    bool ended = atomic_load(&h->signal) || clock_us() - atomic_load(&h->terminate_us) < SIGNAL_FRESH_US;
    return ended && SIGNAL_SILENCE_US < asked ? SIGNAL_SILENCE_US : asked;
}

static void take_from_follower(struct heartbeat *h, int p)
{
    const struct record *r = &h->stream[p].in;
    struct watch_rank *k = &h->watch.rank[p];
    if (r->kind == RECORD_BEAT) hear(h, p, &r->beat);
    else if (r->kind == RECORD_REPORT && !k->report.there) k->report = r->report;
    else if (r->kind == RECORD_BYE) k->closed = true;
}

/* True when rank 0 closed in order. */
static bool take_from_leader(struct heartbeat *h)
{
    const struct record *r = &h->stream[0].in;
    if (r->kind == RECORD_BEAT) hear(h, 0, &r->beat);
    else if (r->kind == RECORD_VERDICT) leave(h, r->exit_code, r->linger_us);
    return r->kind == RECORD_CLOSED;
}

static bool take_all(struct heartbeat *h)
{
    bool closed = false;
    for (int p = 0; p < n_streams(h); p++) {
        struct stream *s = &h->stream[p];
        while (s->fd >= 0 && !closed && receive_record(s)) {
            if (h->world.rank == 0) take_from_follower(h, p);
            else closed = take_from_leader(h);
        }
        bool ended = s->fd < 0 && !s->no_path;
        if (ended && p != h->world.rank && !h->watch.rank[p].closed && !closed) h->watch.rank[p].lost = true;
    }
    mesh_take(&h->mesh);
    return closed;
}

/* Says goodbye when asked to; true when everyone has. */
static bool closes(struct heartbeat *h)
{
    if (!atomic_load(&h->closing)) return false;
    struct record r = {0};
    if (!h->said_bye && h->world.rank != 0) send_record(&h->stream[0], RECORD_BYE, &r);
    h->said_bye = true;
    if (h->world.rank != 0) return false;
    h->watch.rank[0].closed = true;
    for (int p = 1; p < h->world.size; p++)
        if (!h->watch.rank[p].closed) return false;
    for (int p = 1; p < h->world.size; p++) send_record(&h->stream[p], RECORD_CLOSED, &r);
    return true;
}

static void sleep_until(struct heartbeat *h, int64_t until_us)
{
    int n = 0;
    h->poll[n++] = (struct pollfd){.fd = h->wake, .events = POLLIN};
    h->poll[n++] = (struct pollfd){.fd = h->mesh.fd, .events = POLLIN};
    for (int p = 0; p < n_streams(h); p++)
        if (h->stream[p].fd >= 0) h->poll[n++] = (struct pollfd){.fd = h->stream[p].fd, .events = POLLIN};
    int64_t left = until_us - clock_us();
    poll(h->poll, (nfds_t)n, left > 0 ? (int)(left / 1000 + 1) : 0);
    uint64_t count;
    if (h->poll[0].revents & POLLIN) (void)!read(h->wake, &count, sizeof count);
}

/* This process itself was stopped, or its machine: what it thinks of the others is old. They get the time to speak
 * again, unless they have ended the job meanwhile. */
static void catch_up(struct heartbeat *h)
{
    take_all(h);
    bool ended = h->mesh.end;
    for (int p = 0; p < h->world.size; p++) {
        ended |= h->watch.rank[p].lost;
        if (h->watch.rank[p].heard_us) h->watch.rank[p].heard_us = h->watch.rank[p].changed_us = clock_us();
    }
    if (ended) _exit(EXIT_CODE_PEER);
}

static void *run(void *argument)
{
    struct heartbeat *h = argument;
    int64_t next = clock_us();
    for (;;) {
        if (clock_us() - next > h->watch.limits.silent_us / 2) catch_up(h);
        if (clock_us() >= next) {
            beat(h);
            next = clock_us() + INTERVAL_US;
        }
        if (take_all(h) || closes(h)) return NULL;
        h->watch.limits.silent_us = patience_us(h);
        tell_own_end(h);
        struct cause c;
        if (watch_decide(&h->watch, clock_us(), &c)) {
            if (h->world.rank == 0) conclude(h, &c);
            if (c.rank != h->world.rank) take_over(h, &c);
        }
        if (h->told_us && clock_us() - h->told_us > ALONE_US)
            _exit(h->watch.rank[h->world.rank].report.exit_code);
        /* A suspicion becomes a cause by time alone. */
        int64_t soon = clock_us() + INTERVAL_US / 5;
        sleep_until(h, h->watch.suspected_us && soon < next ? soon : next);
    }
}

static void wake_thread(struct heartbeat *h)
{
    uint64_t one = 1;
    (void)!write(h->wake, &one, sizeof one);
}

/* The die hook: the thread ends the process, so that every rank learns why first. */
static void fail(int exit_code)
{
    struct heartbeat *h = here;
    if (pthread_equal(pthread_self(), h->thread)) _exit(exit_code);
    atomic_store(&h->failed, exit_code + 1);
    wake_thread(h);
    for (int64_t until = clock_us() + 3 * ALONE_US; clock_us() < until;) usleep(100000);
    _exit(exit_code);
}

bool heartbeat_signal(int signal, bool ends)
{
    struct heartbeat *h = here;
    int saved = errno;
    if (!h) return false;
    if (signal == SIGTERM) atomic_store(&h->terminate_us, clock_us());
    if (ends) atomic_store(&h->signal, signal);
    wake_thread(h);
    errno = saved;
    return true;
}

static void on_signal(int signal) { heartbeat_signal(signal, true); }

static void handle_signals(bool ours)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGUSR1};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction now;
        sigaction(signals[i], NULL, &now);
        if (now.sa_handler != (ours ? SIG_DFL : on_signal)) continue;
        struct sigaction then = {.sa_handler = ours ? on_signal : SIG_DFL, .sa_flags = SA_RESTART};
        sigaction(signals[i], &then, NULL);
    }
}

/* ---- open and close */

static void connect_all(struct heartbeat *h)
{
    struct net_contact contact;
    int listener[2], *fd = malloc((size_t)h->world.size * sizeof *fd);
    if (!fd) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the heartbeat");
    for (int r = 0; r < h->world.size; r++) fd[r] = -1;
    if (h->world.rank == 0) net_listen(&contact, listener, "heartbeat");
    mpi_check(MPI_Bcast(&contact, sizeof contact, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
    char missing[256];
    if (h->world.rank != 0) {
        fd[0] = net_connect(&contact, h->world.rank);
        if (fd[0] < 0)
            DIE(EXIT_CODE_PEER, "is a firewall between the hosts?", "cannot reach rank 0's heartbeat");
    } else if (net_accept_all(&contact, listener, fd, h->world.size, (int)(h->options.start_s * 1000),
                              missing, sizeof missing) > 0) {
        DIE(EXIT_CODE_PEER, "can their hosts reach rank 0 over TCP?",
            "rank %s did not connect to the heartbeat within %.0f s", missing, h->options.start_s);
    }
    for (int p = 0; p < n_streams(h); p++) h->stream[p].fd = fd[p];
    free(fd);
    mesh_open(&h->mesh, &h->world, contact.key);
    for (int r = 0; r < h->world.size; r++)
        snprintf(h->watch.rank[r].host, sizeof h->watch.rank[r].host, "%s", h->mesh.station[r].host);
}

void heartbeat_open(const struct comm_world *w, const struct heartbeat_options *o)
{
    if (w->size == 1) return;
    struct heartbeat *h = calloc(1, sizeof *h);
    if (h) h->stream = calloc((size_t)w->size, sizeof *h->stream);
    if (h) h->told = calloc((size_t)w->size, sizeof *h->told);
    if (h) h->poll = calloc((size_t)w->size + 2, sizeof *h->poll);
    if (!h || !h->stream || !h->told || !h->poll) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the heartbeat");
    h->world = *w;
    h->options = *o;
    struct watch_limits limits = {
        .silent_us = (int64_t)(o->silence_s * 1e6),
        .hung_us = (int64_t)(o->watchdog_s * 1e6),
        .start_us = (int64_t)(o->start_s * 1e6),
        .interval_us = INTERVAL_US,
        .group = o->group,
    };
    watch_open(&h->watch, w->rank, w->size, &limits);
    h->oom_at_start = hostmem_oom_kills();
    h->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->wake < 0) DIE(EXIT_CODE_MEMORY, "raise ulimit -n", "eventfd: %s", strerror(errno));
    connect_all(h);
    /* From here on every rank counts as heard: one that stops before its first beat is noticed too. */
    struct beat first = {.phase = PROGRESS_BOOT, .layer = -1, .deaf_to = -1, .available_mib = 1 << 20};
    for (int p = 0; p < n_streams(h); p++) hear(h, p, &first);
    here = h;
    int error = pthread_create(&h->thread, NULL, run, h);
    if (error) DIE(EXIT_CODE_MEMORY, "raise ulimit -u", "the heartbeat's thread: %s", strerror(error));
    die_set_hook(fail);
    handle_signals(true);
}

bool heartbeat_close(void)
{
    struct heartbeat *h = here;
    if (!h) return false;
    atomic_store(&h->closing, true);
    wake_thread(h);
    pthread_join(h->thread, NULL);
    handle_signals(false);
    die_set_hook(comm_world_abort);
    here = NULL;
    for (int p = 0; p < n_streams(h); p++)
        if (h->stream[p].fd >= 0) close(h->stream[p].fd);
    close(h->wake);
    mesh_close(&h->mesh);
    watch_close(&h->watch);
    free(h->poll);
    free(h->stream);
    free(h->told);
    free(h);
    return true;
}
