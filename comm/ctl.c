#define _GNU_SOURCE
#include "comm/ctl.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "comm/net.h"
#include "runtime/base/clock.h"
#include "runtime/base/crc32.h"
#include "runtime/base/die.h"

#define FRAME_MAGIC 0x4f525452u /* "RTRO" */
#define KIND_CLOSE 0u           /* in-order end; ctl_send refuses it */

enum { SPIN_US = 200 };

struct frame_head {
    uint32_t magic, kind;
    uint64_t n_bytes;
    uint32_t crc, zero;
};

struct peer {          /* one connection, with what is kept for it */
    int fd;            /* -1: none */
    int name;          /* its rank in the world */
    uint8_t *in, *out; /* the payload that came last; the frame that is being sent */
    size_t in_capacity, out_capacity;
    int64_t last_wait_us, wait_cpu_us, wait_wall_us;
};

struct ctl {
    int rank, size;
    int timeout_ms;
    struct peer *peer; /* rank 0: (size), peer[0] holds what goes to all; others: peer[0] is rank 0 */
};

static void accept_followers(struct ctl *x, const struct net_contact *c, int listener[2])
{
    char names[256];
    int *fd = malloc((size_t)x->size * sizeof *fd);
    if (!fd) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the control channel");
    for (int r = 0; r < x->size; r++) fd[r] = -1;
    int missing = net_accept_all(c, listener, fd, x->size, x->timeout_ms, names, sizeof names);
    if (missing > 0)
        DIE(EXIT_CODE_PEER, "can their hosts reach rank 0 over TCP?",
            "rank%s %s did not open the control channel within %d s", missing == 1 ? "" : "s", names,
            x->timeout_ms / 1000);
    for (int r = 0; r < x->size; r++) x->peer[r].fd = fd[r];
    free(fd);
}

static void connect_to_leader(struct ctl *x, const struct net_contact *c)
{
    x->peer[0].fd = net_connect(c, x->rank);
    if (x->peer[0].fd < 0)
        DIE(EXIT_CODE_PEER, "is a firewall between the hosts?", "cannot reach rank %d's control channel",
            x->peer[0].name);
}

struct ctl *ctl_open(struct comm *c, double timeout_s)
{
    struct ctl *x = calloc(1, sizeof *x);
    if (x) x->peer = calloc((size_t)comm_size(c), sizeof *x->peer);
    if (!x || !x->peer) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the control channel");
    x->rank = comm_rank(c);
    x->size = comm_size(c);
    x->timeout_ms = (int)(timeout_s * 1000);
    for (int r = 0; r < x->size; r++) x->peer[r] = (struct peer){.fd = -1, .name = comm_world_rank(c, r)};
    if (x->size == 1) return x;
    struct net_contact contact;
    int listener[2] = {-1, -1};
    if (x->rank == 0) net_listen(&contact, listener, "ctl");
    comm_bcast(c, &contact, sizeof contact);
    if (x->rank == 0) accept_followers(x, &contact, listener);
    else connect_to_leader(x, &contact);
    return x;
}

static void make_room(uint8_t **buffer, size_t *capacity, size_t n)
{
    if (n <= *capacity) return;
    free(*buffer);
    *capacity = n * 2;
    *buffer = malloc(*capacity);
    if (!*buffer) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a message of %zu bytes", n);
}

/* The frame is one piece of memory, so that it is one system call and wakes its receiver once. */
static size_t make_frame(struct peer *p, uint32_t kind, const void *bytes, size_t n)
{
    struct frame_head head = {.magic = FRAME_MAGIC, .kind = kind, .n_bytes = n, .crc = crc32_of(bytes, n)};
    make_room(&p->out, &p->out_capacity, sizeof head + n);
    memcpy(p->out, &head, sizeof head);
    if (n > 0) memcpy(p->out + sizeof head, bytes, n);
    return sizeof head + n;
}

static void write_frame(const struct ctl *x, const struct peer *to, const uint8_t *frame, size_t n,
                        int64_t deadline)
{
    errno = 0;
    if (net_write_all(to->fd, frame, n, deadline)) return;
    if (errno == EAGAIN || errno == EINTR)
        DIE(EXIT_CODE_PEER, "it hangs, or its host does", "control channel: rank %d took no message for %d s",
            to->name, x->timeout_ms / 1000);
    DIE(EXIT_CODE_PEER, "see its last lines", "rank %d is gone: its control channel closed (%s)", to->name,
        strerror(errno));
}

static int64_t deadline_of(const struct ctl *x) { return clock_us() + (int64_t)x->timeout_ms * 1000; }

void ctl_send(struct ctl *x, uint32_t kind, const void *bytes, size_t n)
{
    ASSERT(x->rank == 0 && kind != KIND_CLOSE && n <= CTL_FRAME_MAX);
    size_t size = make_frame(&x->peer[0], kind, bytes, n);
    int64_t deadline = deadline_of(x);
    for (int r = 1; r < x->size; r++) write_frame(x, &x->peer[r], x->peer[0].out, size, deadline);
}

static void send_one(const struct ctl *x, struct peer *to, uint32_t kind, const void *bytes, size_t n)
{
    ASSERT(kind != KIND_CLOSE && n <= CTL_FRAME_MAX);
    write_frame(x, to, to->out, make_frame(to, kind, bytes, n), deadline_of(x));
}

void ctl_send_to(struct ctl *x, int rank, uint32_t kind, const void *bytes, size_t n)
{
    ASSERT(x->rank == 0 && rank > 0 && rank < x->size);
    send_one(x, &x->peer[rank], kind, bytes, n);
}

void ctl_reply(struct ctl *x, uint32_t kind, const void *bytes, size_t n)
{
    ASSERT(x->rank != 0);
    send_one(x, &x->peer[0], kind, bytes, n);
}

void ctl_close(struct ctl *x)
{
    if (!x) return;
    for (int r = 0; r < x->size; r++) {
        struct peer *p = &x->peer[r];
        /* A follower that is gone already needs no goodbye. */
        if (x->rank == 0 && r > 0)
            net_write_all(p->fd, p->out, make_frame(p, KIND_CLOSE, NULL, 0), deadline_of(x));
        if (p->fd >= 0) close(p->fd);
        free(p->in);
        free(p->out);
    }
    free(x->peer);
    free(x);
}

static int64_t thread_cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Waits until bytes are there or the peer is gone. In a busy run the next step follows within microseconds:
 * then a short spin saves the wake-up; after a long wait the next one sleeps at once. */
static void wait_readable(struct peer *from)
{
    int64_t begun = clock_us(), cpu = thread_cpu_us();
    int64_t spin_us = from->last_wait_us < 4 * SPIN_US ? SPIN_US : 0;
    struct pollfd p = {.fd = from->fd, .events = POLLIN};
    while (poll(&p, 1, 0) == 0 && clock_us() - begun < spin_us) sched_yield();
    if (!(p.revents & (POLLIN | POLLHUP | POLLERR)))
        while (poll(&p, 1, -1) < 0 && errno == EINTR) {
        }
    from->last_wait_us = clock_us() - begun;
    from->wait_wall_us += from->last_wait_us;
    from->wait_cpu_us += thread_cpu_us() - cpu;
}

static bool receive(const struct ctl *x, struct peer *from, uint32_t *kind, const void **bytes, size_t *n)
{
    struct frame_head head;
    wait_readable(from);
    int64_t deadline = deadline_of(x);
    if (!net_read_all(from->fd, &head, sizeof head, deadline))
        DIE(EXIT_CODE_PEER, "see its last lines", "rank %d is gone: its control channel closed", from->name);
    if (head.magic != FRAME_MAGIC || head.n_bytes > CTL_FRAME_MAX)
        DIE(EXIT_CODE_PEER, NULL, "control channel: a frame that rank %d cannot have sent", from->name);
    if (head.kind == KIND_CLOSE) return false;
    make_room(&from->in, &from->in_capacity, head.n_bytes);
    if (!net_read_all(from->fd, from->in, head.n_bytes, deadline))
        DIE(EXIT_CODE_PEER, "see its last lines",
            "rank %d is gone: its control channel closed inside a message", from->name);
    if (crc32_of(from->in, head.n_bytes) != head.crc)
        DIE(EXIT_CODE_PEER, NULL, "control channel: a frame arrived damaged");
    *kind = head.kind;
    *bytes = from->in;
    *n = head.n_bytes;
    return true;
}

bool ctl_receive(struct ctl *x, uint32_t *kind, const void **bytes, size_t *n)
{
    ASSERT(x->rank != 0);
    return receive(x, &x->peer[0], kind, bytes, n);
}

void ctl_receive_from(struct ctl *x, int rank, uint32_t *kind, const void **bytes, size_t *n)
{
    ASSERT(x->rank == 0 && rank > 0 && rank < x->size);
    if (!receive(x, &x->peer[rank], kind, bytes, n))
        DIE(EXIT_CODE_PEER, NULL, "control channel: a frame that rank %d cannot have sent",
            x->peer[rank].name);
}

void ctl_wait_times(const struct ctl *x, int64_t *cpu_us, int64_t *wall_us)
{
    *cpu_us = x->peer[0].wait_cpu_us;
    *wall_us = x->peer[0].wait_wall_us;
}
