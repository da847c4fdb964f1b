#define _GNU_SOURCE
#include "comm/net.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"

/* So that all addresses can be tried well inside the timeouts of those who call. */
enum { CONNECT_US = 2000000 };

struct hello { /* first bytes on a connection */
    uint8_t key[NET_KEY_BYTES];
    uint32_t rank;
};

static int unix_socket(const char *name, struct sockaddr_un *a, socklen_t *n)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(a->sun_path + 1, name, strlen(name)); /* a leading NUL means abstract */
    *n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

int net_addresses(struct in_addr address[NET_ADDRESSES_MAX])
{
    struct ifaddrs *list, *i;
    int n = 0;
    if (getifaddrs(&list) != 0) return 0;
    for (int loopback = 0; loopback < 2 && n == 0; loopback++)
        for (i = list; i && n < NET_ADDRESSES_MAX; i = i->ifa_next) {
            if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || !(i->ifa_flags & IFF_UP)) continue;
            if (((i->ifa_flags & IFF_LOOPBACK) != 0) != loopback) continue;
            address[n++] = ((struct sockaddr_in *)i->ifa_addr)->sin_addr;
        }
    freeifaddrs(list);
    return n;
}

void net_listen(struct net_contact *c, int listener[2], const char *what)
{
    *c = (struct net_contact){0};
    if (getrandom(c->key, NET_KEY_BYTES, 0) != NET_KEY_BYTES ||
        getrandom(c->answer, NET_KEY_BYTES, 0) != NET_KEY_BYTES)
        DIE(EXIT_CODE_PEER, NULL, "getrandom: %s", strerror(errno));
    uint64_t tag;
    memcpy(&tag, c->key, sizeof tag);
    snprintf(c->unix_name, sizeof c->unix_name, "retro-%.16s-%d-%016llx", what, getpid(),
             (unsigned long long)(tag ^ tag >> 7));
    struct sockaddr_un u;
    socklen_t n;
    listener[0] = unix_socket(c->unix_name, &u, &n);
    if (listener[0] < 0 || bind(listener[0], (struct sockaddr *)&u, n) != 0 ||
        listen(listener[0], SOMAXCONN) != 0)
        DIE(EXIT_CODE_PEER, NULL, "%s channel: cannot listen: %s", what, strerror(errno));
    struct sockaddr_in in = {.sin_family = AF_INET};
    n = sizeof in;
    listener[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener[1] < 0 || bind(listener[1], (struct sockaddr *)&in, n) != 0 ||
        listen(listener[1], SOMAXCONN) != 0 || getsockname(listener[1], (struct sockaddr *)&in, &n) != 0)
        DIE(EXIT_CODE_PEER, NULL, "%s channel: cannot listen on TCP: %s", what, strerror(errno));
    c->port = in.sin_port;
    c->n_addresses = net_addresses(c->address);
}

bool net_wait_for(int fd, short events, int64_t deadline_us)
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

bool net_read_all(int fd, void *to, size_t n, int64_t deadline_us)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = recv(fd, (char *)to + got, n - got, 0);
        if (k > 0) got += (size_t)k;
        else if (k == 0 || (errno != EAGAIN && errno != EINTR) || !net_wait_for(fd, POLLIN, deadline_us))
            return false;
    }
    return true;
}

bool net_write_all(int fd, const void *from, size_t n, int64_t deadline_us)
{
    for (size_t sent = 0; sent < n;) {
        ssize_t k = send(fd, (const char *)from + sent, n - sent, MSG_NOSIGNAL);
        if (k >= 0) sent += (size_t)k;
        else if ((errno != EAGAIN && errno != EINTR) || !net_wait_for(fd, POLLOUT, deadline_us)) return false;
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
static bool accept_one(const struct net_contact *c, int listener, int *fds, int size)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return false;
    struct hello h;
    int64_t deadline = clock_us() + CONNECT_US / 2;
    bool good = net_read_all(fd, &h, sizeof h, deadline) && memcmp(h.key, c->key, NET_KEY_BYTES) == 0 &&
                h.rank > 0 && h.rank < (uint32_t)size && fds[h.rank] < 0 &&
                net_write_all(fd, c->answer, NET_KEY_BYTES, deadline);
    if (!good) {
        close(fd);
        return false;
    }
    tune(fd);
    fds[h.rank] = fd;
    return true;
}

int net_accept_all(const struct net_contact *c, int listener[2], int *fd, int size, int timeout_ms,
                   char *missing, size_t missing_bytes)
{
    int n_missing = size - 1;
    int64_t deadline = clock_us() + (int64_t)timeout_ms * 1000;
    while (n_missing > 0 && clock_us() < deadline) {
        struct pollfd p[2] = {{.fd = listener[0], .events = POLLIN}, {.fd = listener[1], .events = POLLIN}};
        if (poll(p, 2, 100) <= 0) continue;
        for (int i = 0; i < 2; i++)
            if (p[i].revents & POLLIN) n_missing -= accept_one(c, listener[i], fd, size);
    }
    close(listener[0]);
    close(listener[1]);
    size_t n = 0;
    missing[0] = 0;
    for (int r = 1; r < size && n + 8 < missing_bytes; r++)
        if (fd[r] < 0) n += (size_t)snprintf(missing + n, missing_bytes - n, "%s%d", n ? "," : "", r);
    return n_missing;
}

/* Takes `fd`. A connection is good when the other side knows the answer: hosts may share private addresses
 * (those of container bridges), and then a stranger of our own host listens there. */
static int try_connect(const struct net_contact *c, int rank, int fd, const struct sockaddr *a, socklen_t n)
{
    int64_t deadline = clock_us() + CONNECT_US;
    struct hello h = {.rank = (uint32_t)rank};
    memcpy(h.key, c->key, NET_KEY_BYTES);
    uint8_t answer[NET_KEY_BYTES];
    int error = 0;
    socklen_t size = sizeof error;
    if (fd < 0) return -1;
    bool open =
        connect(fd, a, n) == 0 || (errno == EINPROGRESS && net_wait_for(fd, POLLOUT, deadline) &&
                                   getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0);
    if (open && net_write_all(fd, &h, sizeof h, deadline)) {
        /* The server may first have to see off a few silent strangers. */
        deadline = clock_us() + 5 * CONNECT_US;
        if (net_read_all(fd, answer, NET_KEY_BYTES, deadline) &&
            memcmp(answer, c->answer, NET_KEY_BYTES) == 0)
            return fd;
    }
    close(fd);
    return -1;
}

int net_connect(const struct net_contact *c, int rank)
{
    struct sockaddr_un u;
    socklen_t n;
    int fd = unix_socket(c->unix_name, &u, &n);
    fd = try_connect(c, rank, fd, (struct sockaddr *)&u, n);
    for (int i = 0; i < c->n_addresses && fd < 0; i++) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = c->address[i], .sin_port = c->port};
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        fd = try_connect(c, rank, fd, (struct sockaddr *)&in, sizeof in);
    }
    if (fd >= 0) tune(fd);
    return fd;
}
