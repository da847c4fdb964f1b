/* prefix.h - the prefix cache: which blocks hold keys and values that another sequence may read. Integers only.
 *
 * A tree: an entry is one full block of tokens behind its parent's blocks. Tokens are compared, not only their
 * hash, so a hit is never a mistake. Prompt tokens are computed densely whatever the policy, so blocks of
 * prompt tokens serve every policy and have the bits that a prefill would give; a block with decoded tokens
 * depends on how they were decoded: it is found under the same policy only, and only by who asks for such
 * blocks. last_loaded is the sequence's (kernels.h), never the block's.
 *
 * The cache holds a reference to each of its blocks (pages_keep). An entry that nobody else refers to can be
 * evicted, the least recently used first; what hangs below it goes with it, for it could not be found again.
 *
 * Who publishes a block promises that it is full and that nobody will write to it: prompt blocks once
 * computed, decoded blocks once the open window has left them (sched.c). */
#ifndef RETRO_PREFIX_H
#define RETRO_PREFIX_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/pages.h"
#include "runtime/policy.h"

struct prefix_entry {
    int32_t block;
    int parent, child, sibling; /* entries, -1: none; child is the first of a list through sibling */
    int next;                   /* in the bucket, or on the free list */
    int newer, older;           /* by use */
    uint32_t hash;
    uint64_t serial; /* of this use of the entry; 0: free */
    bool decoded;
    struct policy policy; /* of a decoded block */
};

/* Where a sequence's chain of cached blocks ends: an entry, as long as its serial is the same. */
struct prefix_place {
    int entry; /* -1: the root */
    uint64_t serial;
};

struct prefix {
    struct pages *pages; /* borrowed */
    int block_tokens, n_entries, n_used;
    struct prefix_entry *entry; /* (n_entries), one for each block at most */
    int32_t *token;             /* (n_entries, block_tokens) */
    int *bucket, n_buckets;     /* a power of two */
    int free, newest, oldest, root_child;
    uint64_t last_serial;
};

void prefix_open(struct prefix *x, struct pages *pages, int block_tokens);
/* Nobody may refer to its blocks any more. */
void prefix_close(struct prefix *x);

/* The place before the first block. */
struct prefix_place prefix_root(void);
/* Follows `tokens` from the root over at most n_blocks full blocks; each found block gets one more reference
 * and its id in `blocks`. `decoded` (may be NULL): blocks decoded under this policy count too. Returns how many
 * were found; *end is where the chain ends. */
int prefix_find(struct prefix *x, const int32_t *tokens, int n_blocks, const struct policy *decoded,
                int32_t *blocks, struct prefix_place *end);
/* Publishes a block of `tokens` (block_tokens) behind *at, which becomes its place. Where there is one with the
 * same tokens already, that one stays. False: the chain was evicted meanwhile. */
bool prefix_add(struct prefix *x, struct prefix_place *at, const int32_t *tokens, int32_t block,
                const struct policy *decoded);
/* Frees at least n blocks, as far as there are idle ones (pages.n_idle). */
void prefix_evict(struct prefix *x, int n);

void prefix_check(const struct prefix *x);

#endif
