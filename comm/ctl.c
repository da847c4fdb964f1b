#define _GNU_SOURCE
#include "comm/ctl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/crc32.h"
#include "runtime/base/die.h"

#define FRAME_MAGIC 0x4f525452u /* "RTRO" */
#define KIND_CLOSE 0u           /* in-order end; ctl_send refuses it */

/* CONNECT_US: so that all of rank 0's addresses can be tried well inside the timeout of ctl_open. */
enum { ADDRESSES_MAX = 16, KEY_BYTES = 32, SPIN_US = 200, CONNECT_US = 2000000 };

struct frame_head {
    uint32_t magic, kind;
    uint64_t n_bytes;
    uint32_t crc, zero;
};

/* Where rank 0 listens; travels over MPI. */
struct contact {
    char unix_name[64]; /* in the abstract namespace of Linux: no file, gone with the process */
    struct in_addr address[ADDRESSES_MAX];
    int n_addresses;
    uint16_t port;             /* network order */
    uint8_t key[KEY_BYTES];    /* what a follower must say ... */
    uint8_t answer[KEY_BYTES]; /* ... and what only rank 0 can say back */
};

struct hello { /* first bytes on a connection */
    uint8_t key[KEY_BYTES];
    uint32_t rank;
};

struct ctl {
    int rank, size;
    int timeout_ms;
    int *fd;         /* rank 0: (size), fd[0] unused; others: fd[0] is the connection to rank 0 */
    uint8_t *buffer; /* rank 0: the frame being sent; others: the payload that was received */
    size_t capacity;
    int64_t last_wait_us, wait_cpu_us, wait_wall_us;
};

static int unix_socket(const char *name, struct sockaddr_un *a, socklen_t *n)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(a->sun_path + 1, name, strlen(name)); /* a leading NUL means abstract */
    *n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* IPv4 addresses of this host that another host could reach; loopback only when there is nothing else. */
static void list_addresses(struct contact *c)
{
    struct ifaddrs *list, *i;
    if (getifaddrs(&list) != 0) return;
    for (int loopback = 0; loopback < 2 && c->n_addresses == 0; loopback++)
        for (i = list; i && c->n_addresses < ADDRESSES_MAX; i = i->ifa_next) {
            if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || !(i->ifa_flags & IFF_UP)) continue;
            if (((i->ifa_flags & IFF_LOOPBACK) != 0) != loopback) continue;
            c->address[c->n_addresses++] = ((struct sockaddr_in *)i->ifa_addr)->sin_addr;
        }
    freeifaddrs(list);
}

static void listen_on_both(struct contact *c, int fds[2])
{
    *c = (struct contact){0};
    if (getrandom(c->key, KEY_BYTES, 0) != KEY_BYTES || getrandom(c->answer, KEY_BYTES, 0) != KEY_BYTES)
        DIE(EXIT_CODE_PEER, NULL, "getrandom: %s", strerror(errno));
    uint64_t tag;
    memcpy(&tag, c->key, sizeof tag);
    snprintf(c->unix_name, sizeof c->unix_name, "retro-ctl-%d-%016llx", getpid(),
             (unsigned long long)(tag ^ tag >> 7));
    struct sockaddr_un u;
    socklen_t n;
    fds[0] = unix_socket(c->unix_name, &u, &n);
    if (fds[0] < 0 || bind(fds[0], (struct sockaddr *)&u, n) != 0 || listen(fds[0], SOMAXCONN) != 0)
        DIE(EXIT_CODE_PEER, NULL, "control channel: cannot listen: %s", strerror(errno));
    struct sockaddr_in in = {.sin_family = AF_INET};
    n = sizeof in;
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fds[1] < 0 || bind(fds[1], (struct sockaddr *)&in, n) != 0 || listen(fds[1], SOMAXCONN) != 0 ||
        getsockname(fds[1], (struct sockaddr *)&in, &n) != 0)
        DIE(EXIT_CODE_PEER, NULL, "control channel: cannot listen on TCP: %s", strerror(errno));
    c->port = in.sin_port;
    list_addresses(c);
}

static bool wait_for(int fd, short events, int64_t deadline_us)
{
    for (;;) {
        int64_t left = deadline_us - clock_us();
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, left > 0 ? (int)(left / 1000 + 1) : 0);
        if (n > 0) return true;
        if (n == 0 && left <= 0) return false;
        if (n < 0 && errno != EINTR) return false;
    }
}

static bool read_all(int fd, void *to, size_t n, int64_t deadline_us)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = recv(fd, (char *)to + got, n - got, 0);
        if (k > 0) got += (size_t)k;
        else if (k == 0 || (errno != EAGAIN && errno != EINTR) || !wait_for(fd, POLLIN, deadline_us))
            return false;
    }
    return true;
}

static bool write_all(int fd, const void *from, size_t n, int64_t deadline_us)
{
    for (size_t sent = 0; sent < n;) {
        ssize_t k = send(fd, (const char *)from + sent, n - sent, MSG_NOSIGNAL);
        if (k >= 0) sent += (size_t)k;
        else if ((errno != EAGAIN && errno != EINTR) || !wait_for(fd, POLLOUT, deadline_us)) return false;
    }
    return true;
}

/* No delay for small frames; and a host that vanished without a word is noticed within about 15 s instead of
 * never. The options of TCP fail harmlessly on a unix socket, whose end the kernel always tells. */
static void tune(int fd)
{
    int one = 1, idle_s = 5, between_s = 2, probes = 5, unacked_ms = 15000;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &between_s, sizeof between_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacked_ms, sizeof unacked_ms);
}

/* One incoming connection: keeps it when it knows the key and is a rank that is still missing. */
static bool accept_one(struct ctl *x, int listener, const struct contact *c)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return false;
    struct hello h;
    int64_t deadline = clock_us() + CONNECT_US / 2;
    bool good = read_all(fd, &h, sizeof h, deadline) && memcmp(h.key, c->key, KEY_BYTES) == 0 && h.rank > 0 &&
                h.rank < (uint32_t)x->size && x->fd[h.rank] < 0 &&
                write_all(fd, c->answer, KEY_BYTES, deadline);
    if (!good) {
        close(fd);
        return false;
    }
    tune(fd);
    x->fd[h.rank] = fd;
    return true;
}

static void accept_all(struct ctl *x, const struct contact *c, int listeners[2])
{
    int missing = x->size - 1;
    int64_t deadline = clock_us() + (int64_t)x->timeout_ms * 1000;
    while (missing > 0 && clock_us() < deadline) {
        struct pollfd p[2] = {{.fd = listeners[0], .events = POLLIN}, {.fd = listeners[1], .events = POLLIN}};
        if (poll(p, 2, 100) <= 0) continue;
        for (int i = 0; i < 2; i++)
            if (p[i].revents & POLLIN) missing -= accept_one(x, listeners[i], c);
    }
    close(listeners[0]);
    close(listeners[1]);
    if (missing == 0) return;
    char names[256];
    size_t n = 0;
    names[0] = 0;
    for (int r = 1; r < x->size && n < sizeof names - 8; r++)
        if (x->fd[r] < 0) n += (size_t)snprintf(names + n, sizeof names - n, "%s%d", n ? "," : "", r);
    DIE(EXIT_CODE_PEER, "can their hosts reach rank 0 over TCP?",
        "rank%s %s did not open the control channel within %d s", missing == 1 ? "" : "s", names,
        x->timeout_ms / 1000);
}

/* Takes `fd`. A connection is good when the other side knows the answer: hosts may share private addresses
 * (those of container bridges), and then a stranger of our own host listens there. */
static int try_connect(const struct ctl *x, const struct contact *c, int fd, const struct sockaddr *a,
                       socklen_t n)
{
    int64_t deadline = clock_us() + CONNECT_US;
    struct hello h = {.rank = (uint32_t)x->rank};
    memcpy(h.key, c->key, KEY_BYTES);
    uint8_t answer[KEY_BYTES];
    int error = 0;
    socklen_t size = sizeof error;
    if (fd < 0) return -1;
    bool open =
        connect(fd, a, n) == 0 || (errno == EINPROGRESS && wait_for(fd, POLLOUT, deadline) &&
                                   getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0);
    if (open && write_all(fd, &h, sizeof h, deadline)) {
        /* Rank 0 may first have to see off a few silent strangers. */
        deadline = clock_us() + 5 * CONNECT_US;
        if (read_all(fd, answer, KEY_BYTES, deadline) && memcmp(answer, c->answer, KEY_BYTES) == 0) return fd;
    }
    close(fd);
    return -1;
}

/* The abstract name first: it answers only on rank 0's own host. */
static void connect_to_leader(struct ctl *x, const struct contact *c)
{
    struct sockaddr_un u;
    socklen_t n;
    int fd = unix_socket(c->unix_name, &u, &n);
    fd = try_connect(x, c, fd, (struct sockaddr *)&u, n);
    for (int i = 0; i < c->n_addresses && fd < 0; i++) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = c->address[i], .sin_port = c->port};
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        fd = try_connect(x, c, fd, (struct sockaddr *)&in, sizeof in);
    }
    if (fd < 0)
        DIE(EXIT_CODE_PEER, "is a firewall between the hosts?", "cannot reach rank 0's control channel");
    tune(fd);
    x->fd[0] = fd;
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
    struct contact contact;
    int listeners[2] = {-1, -1};
    if (x->rank == 0) listen_on_both(&contact, listeners);
    comm_bcast(c, &contact, sizeof contact);
    if (x->rank == 0) accept_all(x, &contact, listeners);
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
        if (write_all(x->fd[r], x->buffer, sizeof head + n, deadline) || kind == KIND_CLOSE) continue;
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
    if (!read_all(x->fd[0], &head, sizeof head, deadline))
        DIE(EXIT_CODE_PEER, "see its last lines", "rank 0 is gone: its control channel closed");
    if (head.magic != FRAME_MAGIC || head.n_bytes > CTL_FRAME_MAX)
        DIE(EXIT_CODE_PEER, NULL, "control channel: a frame that rank 0 cannot have sent");
    if (head.kind == KIND_CLOSE) return false;
    make_room(x, head.n_bytes);
    if (!read_all(x->fd[0], x->buffer, head.n_bytes, deadline))
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
