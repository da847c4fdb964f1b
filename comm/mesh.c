#define _GNU_SOURCE
#include "comm/mesh.h"

#include <arpa/inet.h>
#include <errno.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/group.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

struct datagram {
    uint8_t key[NET_KEY_BYTES];
    int32_t from, to, end;
};

void mesh_open(struct mesh *m, const struct comm_world *w, const uint8_t key[NET_KEY_BYTES])
{
    *m = (struct mesh){.self = w->rank, .size = w->size};
    memcpy(m->key, key, NET_KEY_BYTES);
    m->station = calloc((size_t)w->size, sizeof *m->station);
    m->peer = calloc((size_t)w->size, sizeof *m->peer);
    if (!m->station || !m->peer) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the heartbeat");
    struct sockaddr_in in = {.sin_family = AF_INET};
    socklen_t n = sizeof in;
    m->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (m->fd < 0 || bind(m->fd, (struct sockaddr *)&in, n) != 0 ||
        getsockname(m->fd, (struct sockaddr *)&in, &n) != 0)
        DIE(EXIT_CODE_PEER, NULL, "heartbeat: no datagram socket: %s", strerror(errno));
    struct mesh_station mine = {.node_rank = w->node_rank, .port = in.sin_port};
    snprintf(mine.host, sizeof mine.host, "%s", w->host);
    mine.n_addresses = net_addresses(mine.address);
    mpi_check(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, m->station, sizeof mine, MPI_BYTE, MPI_COMM_WORLD),
              "MPI_Allgather");
}

void mesh_close(struct mesh *m)
{
    close(m->fd);
    free(m->station);
    free(m->peer);
}

static bool same_host(const struct mesh *m, int a, int b)
{
    return strcmp(m->station[a].host, m->station[b].host) == 0;
}

/* Fire and forget: a datagram that cannot be sent is as good as lost. */
static void send_to(const struct mesh *m, int to, struct in_addr address, bool end)
{
    struct datagram d = {.from = m->self, .to = to, .end = end};
    memcpy(d.key, m->key, NET_KEY_BYTES);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = address, .sin_port = m->station[to].port};
    (void)!sendto(m->fd, &d, sizeof d, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&in, sizeof in);
}

static void send_anywhere(const struct mesh *m, int to, bool end)
{
    const struct mesh_station *s = &m->station[to];
    struct in_addr loopback = {htonl(INADDR_LOOPBACK)};
    if (same_host(m, m->self, to)) {
        send_to(m, to, loopback, end);
        return;
    }
    if (m->peer[to].address.s_addr != INADDR_ANY) {
        send_to(m, to, m->peer[to].address, end);
        return;
    }
    for (int i = 0; i < s->n_addresses; i++) send_to(m, to, s->address[i], end);
}

void mesh_beat(struct mesh *m)
{
    if (m->station[m->self].node_rank != 0) return;
    for (int r = 0; r < m->size; r++)
        if (r != m->self && m->station[r].node_rank == 0) send_anywhere(m, r, false);
}

void mesh_take(struct mesh *m)
{
    struct datagram d;
    struct sockaddr_in in;
    for (;;) {
        socklen_t n = sizeof in;
        ssize_t k = recvfrom(m->fd, &d, sizeof d, MSG_DONTWAIT, (struct sockaddr *)&in, &n);
        if (k < 0 && errno != ECONNREFUSED && errno != EINTR) return;
        if (k != sizeof d || memcmp(d.key, m->key, NET_KEY_BYTES) != 0 || d.to != m->self || d.from < 0 ||
            d.from >= m->size || d.from == m->self)
            continue;
        m->peer[d.from] = (struct mesh_peer){.address = in.sin_addr, .heard_us = clock_us()};
        m->end |= d.end != 0;
    }
}

int mesh_deaf_to(const struct mesh *m, int64_t silent_us, int64_t now_us)
{
    for (int r = 0; r < m->size; r++)
        if (m->peer[r].heard_us && !same_host(m, m->self, r) && now_us - m->peer[r].heard_us > silent_us)
            return r;
    return -1;
}

void mesh_tell_end(struct mesh *m)
{
    for (int r = 0; r < m->size; r++)
        if (r != m->self) send_anywhere(m, r, true);
}

bool mesh_heard_end(struct mesh *m)
{
    mesh_take(m);
    return m->end;
}
