/* net.h - sockets between the ranks of a job, outside MPI: addresses, a handshake, whole reads and writes.
 *
 * A server listens on a unix socket in the abstract namespace (no file, gone with the process) and on TCP,
 * and tells where in a net_contact that travels over MPI. A client tries the unix name first, which answers
 * only on the server's own host, then the server's addresses. A stranger is dropped: the first bytes must be
 * the job's random key. A client that reached a stranger (hosts may share private addresses, those of
 * container bridges) tries the next address: only the server knows the answer to the key. IPv4 only. Only
 * comm/ includes this. */
#ifndef RETRO_COMM_NET_H
#define RETRO_COMM_NET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NET_ADDRESSES_MAX = 16, NET_KEY_BYTES = 32 };

struct net_contact {
    char unix_name[64];
    struct in_addr address[NET_ADDRESSES_MAX];
    int n_addresses;
    uint16_t port;                 /* network order */
    uint8_t key[NET_KEY_BYTES];    /* what a client must say ... */
    uint8_t answer[NET_KEY_BYTES]; /* ... and what only the server can say back */
};

/* IPv4 addresses of this host that another host could reach; loopback only when there is nothing else.
 * Returns how many. */
int net_addresses(struct in_addr address[NET_ADDRESSES_MAX]);

/* Opens both listeners and fills `c`. DIEs when it cannot. `what` is one word that names the channel in
 * messages and in the unix name. */
void net_listen(struct net_contact *c, int listener[2], const char *what);
/* Takes the connections of ranks 1 .. size-1 into fd[rank] (which are -1 before) until all are there or
 * timeout_ms is over; closes the listeners. Returns how many are missing; `missing` names them. */
int net_accept_all(const struct net_contact *c, int listener[2], int *fd, int size, int timeout_ms,
                   char *missing, size_t missing_bytes);
/* Connects rank `rank` to the server; -1 when no address answers. Non-blocking, tuned. */
int net_connect(const struct net_contact *c, int rank);

/* poll(2) until `events` or the deadline of clock_us. */
bool net_wait_for(int fd, short events, int64_t deadline_us);
/* All n bytes or false; errno says why, EAGAIN for the deadline. */
bool net_read_all(int fd, void *to, size_t n, int64_t deadline_us);
bool net_write_all(int fd, const void *from, size_t n, int64_t deadline_us);

#endif
