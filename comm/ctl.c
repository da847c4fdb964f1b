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

struct ctl {
    int rank, size;
    int timeout_ms;
    int *fd;         /* rank 0: (size), fd[0] unused; others: fd[0] is the connection to rank 0 */
    uint8_t *buffer; /* rank 0: the frame being sent; others: the payload that was received */
    size_t capacity;
    int64_t last_wait_us, wait_cpu_us, wait_wall_us;
};

static void accept_followers(struct ctl *x, const struct net_contact *c, int listener[2])
{
    char names[256];
    int missing = net_accept_all(c, listener, x->fd, x->size, x->timeout_ms, names, sizeof names);
    if (missing > 0)
        DIE(EXIT_CODE_PEER, "can their hosts reach rank 0 over TCP?",
            "rank%s %s did not open the control channel within %d s", missing == 1 ? "" : "s", names,
            x->timeout_ms / 1000);
}

static void connect_to_leader(struct ctl *x, const struct net_contact *c)
{
    x->fd[0] = net_connect(c, x->rank);
    if (x->fd[0] < 0)
        DIE(EXIT_CODE_PEER, "is a firewall between the hosts?", "cannot reach rank 0's control channel");
}

struct ctl *ctl_open(struct comm *c, double timeout_s)
{
    struct ctl *x = calloc(1, sizeof *x);
    if (x) x->fd = malloc((size_t)comm_size(c) * sizeof *x->fd);
    if (!x || !x->fd) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the control channel");
    x->rank = comm_rank(c);
    x->size = comm_size(c);
    x->timeout_ms = (int)(timeout_s * 1000);
    for (int r = 0; r < x->size; r++) x->fd[r] = -1;
    if (x->size == 1) return x;
    struct net_contact contact;
    int listener[2] = {-1, -1};
    if (x->rank == 0) net_listen(&contact, listener, "ctl");
    comm_bcast(c, &contact, sizeof contact);
    if (x->rank == 0) accept_followers(x, &contact, listener);
    else connect_to_leader(x, &contact);
    return x;
}

static void make_room(struct ctl *x, size_t n)
{
    if (n <= x->capacity) return;
    free(x->buffer);
    x->capacity = n * 2;
    x->buffer = malloc(x->capacity);
    if (!x->buffer) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a message of %zu bytes", n);
}

/* The frame is one piece of memory, so that it is one system call and wakes a follower once. */
static void send_frame(struct ctl *x, uint32_t kind, const void *bytes, size_t n)
{
    struct frame_head head = {.magic = FRAME_MAGIC, .kind = kind, .n_bytes = n, .crc = crc32_of(bytes, n)};
    make_room(x, sizeof head + n);
    memcpy(x->buffer, &head, sizeof head);
    if (n > 0) memcpy(x->buffer + sizeof head, bytes, n);
    int64_t deadline = clock_us() + (int64_t)x->timeout_ms * 1000;
    for (int r = 1; r < x->size; r++) {
        errno = 0;
        if (net_write_all(x->fd[r], x->buffer, sizeof head + n, deadline) || kind == KIND_CLOSE) continue;
        if (errno == EAGAIN || errno == EINTR)
            DIE(EXIT_CODE_PEER, "it hangs, or its host does",
                "control channel: rank %d took no message for %d s", r, x->timeout_ms / 1000);
        DIE(EXIT_CODE_PEER, "see its last lines", "rank %d is gone: its control channel closed (%s)", r,
            strerror(errno));
    }
}

void ctl_send(struct ctl *x, uint32_t kind, const void *bytes, size_t n)
{
    ASSERT(x->rank == 0 && kind != KIND_CLOSE && n <= CTL_FRAME_MAX);
    send_frame(x, kind, bytes, n);
}

void ctl_close(struct ctl *x)
{
    if (!x) return;
    if (x->rank == 0 && x->size > 1) send_frame(x, KIND_CLOSE, NULL, 0);
    for (int r = 0; r < x->size; r++)
        if (x->fd[r] >= 0) close(x->fd[r]);
    free(x->fd);
    free(x->buffer);
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
static void wait_readable(struct ctl *x)
{
    int64_t begun = clock_us(), cpu = thread_cpu_us();
    int64_t spin_us = x->last_wait_us < 4 * SPIN_US ? SPIN_US : 0;
    struct pollfd p = {.fd = x->fd[0], .events = POLLIN};
    while (poll(&p, 1, 0) == 0 && clock_us() - begun < spin_us) sched_yield();
    if (!(p.revents & (POLLIN | POLLHUP | POLLERR)))
        while (poll(&p, 1, -1) < 0 && errno == EINTR) {
        }
    x->last_wait_us = clock_us() - begun;
    x->wait_wall_us += x->last_wait_us;
    x->wait_cpu_us += thread_cpu_us() - cpu;
}

bool ctl_receive(struct ctl *x, uint32_t *kind, const void **bytes, size_t *n)
{
    ASSERT(x->rank != 0);
    struct frame_head head;
    wait_readable(x);
    int64_t deadline = clock_us() + (int64_t)x->timeout_ms * 1000;
    if (!net_read_all(x->fd[0], &head, sizeof head, deadline))
        DIE(EXIT_CODE_PEER, "see its last lines", "rank 0 is gone: its control channel closed");
    if (head.magic != FRAME_MAGIC || head.n_bytes > CTL_FRAME_MAX)
        DIE(EXIT_CODE_PEER, NULL, "control channel: a frame that rank 0 cannot have sent");
    if (head.kind == KIND_CLOSE) return false;
    make_room(x, head.n_bytes);
    if (!net_read_all(x->fd[0], x->buffer, head.n_bytes, deadline))
        DIE(EXIT_CODE_PEER, "see its last lines",
            "rank 0 is gone: its control channel closed inside a message");
    if (crc32_of(x->buffer, head.n_bytes) != head.crc)
        DIE(EXIT_CODE_PEER, NULL, "control channel: a frame arrived damaged");
    *kind = head.kind;
    *bytes = x->buffer;
    *n = head.n_bytes;
    return true;
}

void ctl_wait_times(const struct ctl *x, int64_t *cpu_us, int64_t *wall_us)
{
    *cpu_us = x->wait_cpu_us;
    *wall_us = x->wait_wall_us;
}
