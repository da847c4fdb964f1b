/* vocab.h - token strings and their ids, both ways.
 *
 * Strings live in one pool; a hash table finds ids by string and an array finds strings by id. The hash is
 * seeded per table, so a file cannot be made whose strings collide. Refused: a string or an id twice, ids
 * from VOCAB_IDS_MAX on. How sparse ids may be is for the caller to judge. */
#ifndef RETRO_VOCAB_H
#define RETRO_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/buffer.h"

#define VOCAB_IDS_MAX (1 << 24) /* ids are below this; published vocabularies end near 2^18 */

struct vocab_string {
    size_t offset;  /* into the pool */
    uint32_t bytes; /* VOCAB_HOLE where no token has this id */
};
#define VOCAB_HOLE UINT32_MAX

struct vocab {
    struct buffer pool;
    struct vocab_string *strings; /* by id */
    int n_ids, ids_capacity;      /* largest id + 1 */
    int n_tokens;
    int32_t *slots; /* open addressing, -1 empty; a power of two, at most half full */
    size_t n_slots;
    uint64_t seed;
};

/* A seed that no file can know. */
uint64_t vocab_seed(void);
uint64_t vocab_hash(uint64_t seed, const char *s, size_t n);

void vocab_open(struct vocab *v);
void vocab_close(struct vocab *v);
/* False (nothing changes) where the string or the id is taken or the id is outside 0..VOCAB_IDS_MAX-1. */
bool vocab_add(struct vocab *v, const char *s, size_t n, int id);
/* -1 when absent. */
int vocab_find(const struct vocab *v, const char *s, size_t n);
/* Borrowed until the next vocab_add; NULL for a hole or an id outside. */
const char *vocab_string(const struct vocab *v, int id, size_t *n);

#endif
