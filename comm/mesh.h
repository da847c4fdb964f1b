/* mesh.h - datagrams between ranks of different hosts, for the heartbeat: who hears whom.
 *
 * Only the first ranks of the hosts beat; every rank has a socket, so that it can be told the end when rank 0
 * is gone. Which of a peer's addresses works is found out: all are tried until one of its datagrams came, then
 * that one's source is used. Datagrams without the job's key are dropped. Only comm/ includes this. */
#ifndef RETRO_COMM_MESH_H
#define RETRO_COMM_MESH_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "comm/comm.h"
#include "comm/net.h"

struct mesh_station { /* what every rank tells about itself at the start, over MPI */
    char host[64];
    int32_t node_rank, n_addresses;
    struct in_addr address[NET_ADDRESSES_MAX];
    uint16_t port; /* network order */
};

struct mesh_peer {
    struct in_addr address; /* that its datagrams come from; INADDR_ANY while none came */
    int64_t heard_us;       /* 0: never */
};

struct mesh {
    int fd, self, size;
    uint8_t key[NET_KEY_BYTES];
    struct mesh_station *station; /* (size) */
    struct mesh_peer *peer;       /* (size) */
    bool end;                     /* another rank ends the job */
};

/* Collective over the world. */
void mesh_open(struct mesh *m, const struct comm_world *w, const uint8_t key[NET_KEY_BYTES]);
void mesh_close(struct mesh *m);

void mesh_beat(struct mesh *m);
/* Takes what has come. */
void mesh_take(struct mesh *m);
/* The lowest rank that was heard once and not for silent_us, or -1. */
int mesh_deaf_to(const struct mesh *m, int64_t silent_us, int64_t now_us);

/* Tells all other ranks that this one ends the job; and whether somebody did. */
void mesh_tell_end(struct mesh *m);
bool mesh_heard_end(struct mesh *m);

#endif
