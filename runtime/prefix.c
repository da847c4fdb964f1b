#include "runtime/prefix.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

void prefix_open(struct prefix *x, struct pages *pages, int block_tokens)
{
    int n = pages->n_blocks;
    *x = (struct prefix){.pages = pages, .block_tokens = block_tokens, .n_entries = n, .n_buckets = 16};
    while (x->n_buckets < n) x->n_buckets *= 2;
    x->entry = calloc((size_t)n, sizeof *x->entry);
    x->token = malloc((size_t)n * (size_t)block_tokens * sizeof *x->token);
    x->bucket = malloc((size_t)x->n_buckets * sizeof *x->bucket);
    if (!x->entry || !x->token || !x->bucket)
        DIE(EXIT_CODE_MEMORY, "switch it off with --prefix-cache off", "no memory for the prefix cache");
    for (int i = 0; i < x->n_buckets; i++) x->bucket[i] = -1;
    for (int i = 0; i < n; i++) x->entry[i].next = i + 1 < n ? i + 1 : -1;
    x->free = 0;
    x->newest = x->oldest = x->root_child = -1;
}

struct prefix_place prefix_root(void) { return (struct prefix_place){.entry = -1}; }

static bool valid(const struct prefix *x, struct prefix_place at)
{
    return at.entry < 0 || x->entry[at.entry].serial == at.serial;
}

/* FNV-1a (Fowler, Noll, Vo) over the parent and the tokens. */
static uint32_t hash_of(const struct prefix *x, int parent, const int32_t *tokens)
{
    uint32_t h = (2166136261u ^ (uint32_t)parent) * 16777619u;
    for (int i = 0; i < x->block_tokens; i++) h = (h ^ (uint32_t)tokens[i]) * 16777619u;
    return h ^ h >> 15;
}

static int *bucket_of(const struct prefix *x, uint32_t hash)
{
    return &x->bucket[hash & (uint32_t)(x->n_buckets - 1)];
}

static int32_t *tokens_of(const struct prefix *x, int entry)
{
    return x->token + (size_t)entry * (size_t)x->block_tokens;
}

/* The entry behind `parent` with these tokens: a prompt block, or one decoded under the policy. */
static int lookup(const struct prefix *x, int parent, uint32_t hash, const int32_t *tokens,
                  const struct policy *decoded)
{
    for (int i = *bucket_of(x, hash); i >= 0; i = x->entry[i].next) {
        const struct prefix_entry *e = &x->entry[i];
        if (e->hash != hash || e->parent != parent || e->decoded != (decoded != NULL)) continue;
        if (memcmp(tokens_of(x, i), tokens, (size_t)x->block_tokens * sizeof *tokens) != 0) continue;
        if (!decoded || policy_same(&e->policy, decoded)) return i;
    }
    return -1;
}

static void unlink_use(struct prefix *x, int i)
{
    struct prefix_entry *e = &x->entry[i];
    *(e->newer >= 0 ? &x->entry[e->newer].older : &x->newest) = e->older;
    *(e->older >= 0 ? &x->entry[e->older].newer : &x->oldest) = e->newer;
}

static void link_newest(struct prefix *x, int i)
{
    struct prefix_entry *e = &x->entry[i];
    e->newer = -1;
    e->older = x->newest;
    *(x->newest >= 0 ? &x->entry[x->newest].newer : &x->oldest) = i;
    x->newest = i;
}

/* A chain was used: a parent stays newer than its children, so that eviction meets leaves first. */
static void touch_chain(struct prefix *x, int i)
{
    for (; i >= 0; i = x->entry[i].parent) {
        unlink_use(x, i);
        link_newest(x, i);
    }
}

int prefix_find(struct prefix *x, const int32_t *tokens, int n_blocks, const struct policy *decoded,
                int32_t *blocks, struct prefix_place *end)
{
    *end = prefix_root();
    int n = 0;
    for (; n < n_blocks; n++, tokens += x->block_tokens) {
        uint32_t hash = hash_of(x, end->entry, tokens);
        int i = lookup(x, end->entry, hash, tokens, NULL);
        if (i < 0 && decoded) i = lookup(x, end->entry, hash, tokens, decoded);
        if (i < 0) break;
        blocks[n] = x->entry[i].block;
        pages_share(x->pages, blocks[n]);
        *end = (struct prefix_place){i, x->entry[i].serial};
    }
    touch_chain(x, end->entry);
    return n;
}

bool prefix_add(struct prefix *x, struct prefix_place *at, const int32_t *tokens, int32_t block,
                const struct policy *decoded)
{
    if (!valid(x, *at)) return false;
    uint32_t hash = hash_of(x, at->entry, tokens);
    int i = lookup(x, at->entry, hash, tokens, decoded);
    if (i < 0) {
        if (x->free < 0 || x->pages->kept[block]) return false;
        i = x->free;
        struct prefix_entry *e = &x->entry[i];
        x->free = e->next;
        int *bucket = bucket_of(x, hash),
            *siblings = at->entry >= 0 ? &x->entry[at->entry].child : &x->root_child;
        *e = (struct prefix_entry){.block = block,
                                   .parent = at->entry,
                                   .child = -1,
                                   .sibling = *siblings,
                                   .next = *bucket,
                                   .hash = hash,
                                   .serial = ++x->last_serial,
                                   .decoded = decoded != NULL};
        if (decoded) e->policy = *decoded;
        *siblings = *bucket = i;
        memcpy(tokens_of(x, i), tokens, (size_t)x->block_tokens * sizeof *tokens);
        pages_keep(x->pages, block);
        link_newest(x, i);
        x->n_used++;
    }
    *at = (struct prefix_place){i, x->entry[i].serial};
    touch_chain(x, i);
    return true;
}

/* The entry, which has no children, leaves bucket and order of use; its block loses the cache's reference. */
static void drop_leaf(struct prefix *x, int i)
{
    struct prefix_entry *e = &x->entry[i];
    int *at = bucket_of(x, e->hash);
    while (*at != i) at = &x->entry[*at].next;
    *at = e->next;
    at = e->parent >= 0 ? &x->entry[e->parent].child : &x->root_child;
    while (*at != i) at = &x->entry[*at].sibling;
    *at = e->sibling;
    unlink_use(x, i);
    pages_unkeep(x->pages, e->block);
    e->serial = 0;
    e->next = x->free;
    x->free = i;
    x->n_used--;
}

/* The entry and all below it, leaves first. */
static void drop_tree(struct prefix *x, int top)
{
    for (int i = top;;) {
        while (x->entry[i].child >= 0) i = x->entry[i].child;
        int parent = x->entry[i].parent;
        drop_leaf(x, i);
        if (i == top) return;
        i = parent;
    }
}

void prefix_evict(struct prefix *x, int n)
{
    int target = x->pages->n_free + n;
    for (int i = x->oldest; i >= 0 && x->pages->n_free < target && x->pages->n_idle > 0;) {
        if (x->pages->n_refs[x->entry[i].block] > 1) {
            i = x->entry[i].newer;
            continue;
        }
        drop_tree(x, i);
        i = x->oldest; /* what was dropped may include the next one */
    }
}

void prefix_close(struct prefix *x)
{
    while (x->root_child >= 0) drop_tree(x, x->root_child);
    ASSERT(x->n_used == 0);
    free(x->entry);
    free(x->token);
    free(x->bucket);
    *x = (struct prefix){0};
}

void prefix_check(const struct prefix *x)
{
    int n = 0, n_kept = 0, n_free = 0;
    for (int i = x->oldest, before = -1; i >= 0; before = i, i = x->entry[i].newer, n++) {
        const struct prefix_entry *e = &x->entry[i];
        ASSERT(e->serial && e->older == before && x->pages->kept[e->block] && n < x->n_entries);
        ASSERT(e->parent < 0 || x->entry[e->parent].serial);
        ASSERT(e->hash == hash_of(x, e->parent, tokens_of(x, i)));
        ASSERT(lookup(x, e->parent, e->hash, tokens_of(x, i), e->decoded ? &e->policy : NULL) == i);
        int child = e->parent >= 0 ? x->entry[e->parent].child : x->root_child;
        while (child >= 0 && child != i) child = x->entry[child].sibling;
        ASSERT(child == i);
    }
    for (int i = x->free; i >= 0; i = x->entry[i].next, n_free++) ASSERT(x->entry[i].serial == 0);
    for (int i = 0; i < x->pages->n_blocks; i++) n_kept += x->pages->kept[i];
    ASSERT(n == x->n_used && n == n_kept && n + n_free == x->n_entries);
}
