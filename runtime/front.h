/* front.h - the services of all replicas of the model as one: each request goes to the replica that is least loaded.
 *
 * A replica has a service (service.h) with a scheduler, KV blocks and a prefix cache of its own; all of them are in rank
 * 0's process, each on a thread, and drive their engines, most of which are remote (engine.h). Everything here is as with
 * one service, which is a front of one: same calls, same promises, and a request's tokens do not depend on where it ran.
 * The sinks of one request are called on one thread, those of different ones on several at once.
 *
 * Where a request goes: to the replica on which the fewest sequences would have to wait for a slot; among these to the
 * one that would then have the fewest tokens (prompts, and what was drawn so far), where those that its prefix cache
 * is thought to hold do not count; among these to the first. So a conversation stays where its beginning is
 * while loads differ by less than that. What a cache holds is not asked (it belongs to the service's thread) but
 * remembered: which replicas were given a prompt with that beginning lately. A mistake costs a prompt's time, nothing
 * else. A request that waits stays where it was put, also when another replica becomes idle first. */
#ifndef RETRO_FRONT_H
#define RETRO_FRONT_H

#include "runtime/service.h"

struct front;

/* `engine` (n) are borrowed; [0] is the one whose thread will call front_run. o->max_queue counts what waits in all
 * replicas together. */
enum status front_open(struct front **out, struct engine *const *engine, int n,
                       const struct service_options *o, struct reason *why);
void front_close(struct front *f);

/* As service_submit, service_cancel, service_run, service_drain. */
enum status front_submit(struct front *f, const struct service_request *r, uint64_t *id, struct reason *why);
void front_cancel(struct front *f, uint64_t id);
void front_run(struct front *f);
void front_drain(struct front *f, double seconds);

int front_replicas(const struct front *f);
int front_max_queue(const struct front *f);
/* Who has the request. */
int front_replica_of(const struct front *f, uint64_t id);
/* Of one replica; and of all: sums, the oldest step in progress, the newest that ended. */
void front_replica_stats(struct front *f, int replica, struct service_stats *out);
void front_stats(struct front *f, struct service_stats *out);

#endif
