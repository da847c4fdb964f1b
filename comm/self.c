/* self.c - a group of one rank: nothing to exchange, no MPI. */
#include <string.h>

#include "comm/group.h"

static void self_reserve(struct comm *c, size_t n_f32)
{
    (void)c;
    (void)n_f32;
}

static void self_all_reduce(struct comm *c, void *buffer, size_t n, enum dtype dtype, void *stream)
{
    (void)c;
    (void)buffer;
    (void)n;
    (void)dtype;
    (void)stream;
}

static void self_gather(struct comm *c, const void *mine, size_t n_bytes, void *all, const size_t *counts)
{
    (void)c;
    (void)counts;
    memcpy(all, mine, n_bytes);
}

static void self_close(struct comm *c) { (void)c; }

static const struct comm_table self_table = {
    .reserve = self_reserve, .all_reduce = self_all_reduce, .gather = self_gather, .close = self_close};

void self_open(struct comm *c)
{
    c->table = &self_table;
    strcpy(c->description, "one rank");
}
