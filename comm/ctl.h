/* ctl.h - the control channel: rank 0 sends framed messages to all other ranks, or to one of them, and may hear an
 * answer from that one. Who waits sleeps.
 *
 * Why not MPI_Bcast: a rank waiting in it burns a core (98-100 % measured), and it cannot be left when rank 0
 * is gone. Here each follower holds one stream socket to rank 0 (a unix socket in the abstract namespace
 * between processes of one host, TCP otherwise) whose address travelled over MPI at start. A wait first polls
 * for a short adaptive time, because in a busy run the next step follows at once, then blocks in poll(2).
 *
 * Frame: u32 magic, u32 kind, u64 length, u32 crc32 of the payload, payload. A frame that does not fit the
 * magic, the limit or the sum is a DIE: the stream cannot be trusted any more. A stranger that connects is
 * dropped: the first bytes must be the job's random key, which only travelled over MPI. A follower that
 * reached a stranger tries the next address: only rank 0 knows the answer to the key. TCP connections to a
 * host that vanished silently break after about 15 s. IPv4 only.
 *
 * Rank 0 may talk to each follower from a thread of its own (ctl_send_to, ctl_receive_from); everything else
 * belongs to one thread, and no thread does it meanwhile. */
#ifndef RETRO_COMM_CTL_H
#define RETRO_COMM_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "comm/comm.h"

struct ctl;

#define CTL_FRAME_MAX ((size_t)64 << 20)

/* Collective over the group. One rank: a channel without peers. DIEs naming the ranks that did not connect
 * within timeout_s. */
struct ctl *ctl_open(struct comm *c, double timeout_s);
void ctl_close(struct ctl *x);

/* Rank 0: the same frame to every follower. Never blocks for a slow follower longer than the timeout of
 * ctl_open. */
void ctl_send(struct ctl *x, uint32_t kind, const void *bytes, size_t n);
/* Rank 0: a frame to one follower; and waits, asleep and without limit, for its next one (bytes are borrowed until
 * the next call for that rank). That one is gone: DIE with EXIT_CODE_PEER. */
void ctl_send_to(struct ctl *x, int rank, uint32_t kind, const void *bytes, size_t n);
void ctl_receive_from(struct ctl *x, int rank, uint32_t *kind, const void **bytes, size_t *n);
/* Followers: a frame to rank 0, which must be waiting for it or come to do so within the timeout. */
void ctl_reply(struct ctl *x, uint32_t kind, const void *bytes, size_t n);
/* Followers: waits, asleep, for the next frame; bytes are borrowed until the next call. False when rank 0
 * closed the channel in order (after its last frame); a broken channel is a DIE with EXIT_CODE_PEER. */
bool ctl_receive(struct ctl *x, uint32_t *kind, const void **bytes, size_t *n);

/* CPU microseconds that this follower spent waiting in ctl_receive, and wall microseconds (for tests: waiting
 * sleeps). */
void ctl_wait_times(const struct ctl *x, int64_t *cpu_us, int64_t *wall_us);

#endif
