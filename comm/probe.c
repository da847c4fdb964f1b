#include "comm/probe.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <mpi.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "comm/group.h"
#include "comm/net.h"
#include "runtime/base/die.h"

void comm_mpi_version(char *text, size_t bytes)
{
    char whole[MPI_MAX_LIBRARY_VERSION_STRING];
    int n;
    MPI_Get_library_version(whole, &n);
    whole[strcspn(whole, ",\n")] = 0; /* "Open MPI v4.1.4, package: ..." */
    snprintf(text, bytes, "%s", whole);
}

struct comm *comm_open_mpi(const struct comm_world *w)
{
    struct comm *c = comm_alloc(w->rank, w->size);
    mpi_open(c, w->node_rank == 0);
    return c;
}

static int64_t wall_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void comm_clock_skew(const struct comm_world *w, int64_t *skew_us, int64_t *round_trip_us)
{
    enum { TRIES = 16, TAG = 1 };
    for (int r = 1; r < w->size; r++) {
        int64_t best = INT64_MAX;
        for (int i = 0; i < TRIES && (w->rank == 0 || w->rank == r); i++) {
            int64_t there = 0;
            if (w->rank == r) {
                mpi_check(MPI_Recv(&there, 1, MPI_INT64_T, 0, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE),
                          "MPI_Recv");
                there = wall_us();
                mpi_check(MPI_Send(&there, 1, MPI_INT64_T, 0, TAG, MPI_COMM_WORLD), "MPI_Send");
                continue;
            }
            int64_t sent = wall_us();
            mpi_check(MPI_Send(&there, 1, MPI_INT64_T, r, TAG, MPI_COMM_WORLD), "MPI_Send");
            mpi_check(MPI_Recv(&there, 1, MPI_INT64_T, r, TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE),
                      "MPI_Recv");
            int64_t back = wall_us();
            if (back - sent >= best) continue;
            best = back - sent;
            skew_us[r] = there - (sent + back) / 2;
            round_trip_us[r] = best;
        }
    }
    if (w->rank == 0) skew_us[0] = round_trip_us[0] = 0;
}

static void name_interface(struct in_addr address, char *name, size_t bytes, bool *loopback)
{
    struct ifaddrs *list;
    if (getifaddrs(&list) != 0) return;
    for (struct ifaddrs *i = list; i; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET ||
            ((struct sockaddr_in *)i->ifa_addr)->sin_addr.s_addr != address.s_addr)
            continue;
        snprintf(name, bytes, "%s", i->ifa_name);
        *loopback = (i->ifa_flags & IFF_LOOPBACK) != 0;
        break;
    }
    freeifaddrs(list);
}

/* The address that the kernel would send from; nothing is sent. False without a route. */
static bool route(struct in_addr to, struct in_addr *from)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = to, .sin_port = htons(9)};
    socklen_t n = sizeof in;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && connect(fd, (struct sockaddr *)&in, sizeof in) == 0 &&
                getsockname(fd, (struct sockaddr *)&in, &n) == 0;
    if (fd >= 0) close(fd);
    *from = in.sin_addr;
    return good;
}

void comm_route_to_leader(const struct comm_world *w, char *interface, size_t interface_bytes, char *address,
                          size_t address_bytes, bool *loopback)
{
    struct {
        char host[64];
        int n;
        struct in_addr address[NET_ADDRESSES_MAX];
    } leader = {.n = 0};
    interface[0] = address[0] = 0;
    *loopback = false;
    if (w->size == 1) return;
    memcpy(leader.host, w->host, sizeof leader.host);
    leader.n = net_addresses(leader.address);
    mpi_check(MPI_Bcast(&leader, sizeof leader, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
    if (strcmp(leader.host, w->host) == 0) return;
    for (int i = 0; i < leader.n; i++) {
        struct in_addr from;
        if (!route(leader.address[i], &from)) continue;
        name_interface(from, interface, interface_bytes, loopback);
        inet_ntop(AF_INET, &from, address, (socklen_t)address_bytes);
        /* The same address on both hosts (a container bridge): another one may lead out. */
        *loopback |= from.s_addr == leader.address[i].s_addr;
        if (!*loopback) return;
    }
}

void comm_world_gather(const struct comm_world *w, const void *mine, size_t bytes, void *all)
{
    if (w->size == 1) {
        memcpy(all, mine, bytes);
        return;
    }
    mpi_check(MPI_Gather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD),
              "MPI_Gather");
}
