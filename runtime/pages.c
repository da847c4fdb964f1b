#include "runtime/pages.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

void pages_open(struct pages *p, int n_blocks)
{
    ASSERT(n_blocks > 0);
    *p = (struct pages){.n_blocks = n_blocks, .n_free = n_blocks};
    p->free_list = malloc((size_t)n_blocks * sizeof *p->free_list);
    p->n_refs = calloc((size_t)n_blocks, sizeof *p->n_refs);
    p->kept = calloc((size_t)n_blocks, sizeof *p->kept);
    if (!p->free_list || !p->n_refs || !p->kept)
        DIE(EXIT_CODE_MEMORY, "lower --max-context or --max-seqs", "no memory for the table of %d KV blocks",
            n_blocks);
    for (int i = 0; i < n_blocks; i++) p->free_list[i] = n_blocks - 1 - i; /* block 0 first */
}

void pages_close(struct pages *p)
{
    free(p->free_list);
    free(p->n_refs);
    free(p->kept);
    *p = (struct pages){0};
}

enum status pages_alloc(struct pages *p, int n, int32_t *out_blocks)
{
    ASSERT(n >= 0);
    if (n > p->n_free) return STATUS_NO_PAGES;
    for (int i = 0; i < n; i++) {
        int32_t block = p->free_list[--p->n_free];
        ASSERT(p->n_refs[block] == 0);
        p->n_refs[block] = 1;
        out_blocks[i] = block;
    }
    return STATUS_OK;
}

void pages_share(struct pages *p, int32_t block)
{
    ASSERT(block >= 0 && block < p->n_blocks && p->n_refs[block] > 0);
    p->n_idle -= p->kept[block] && p->n_refs[block] == 1;
    p->n_refs[block]++;
}

void pages_release(struct pages *p, int32_t block)
{
    ASSERT(block >= 0 && block < p->n_blocks && p->n_refs[block] > 0);
    if (--p->n_refs[block] == 0) p->free_list[p->n_free++] = block;
    ASSERT(!p->kept[block] || p->n_refs[block] > 0);
    p->n_idle += p->kept[block] && p->n_refs[block] == 1;
}

void pages_keep(struct pages *p, int32_t block)
{
    ASSERT(block >= 0 && block < p->n_blocks && !p->kept[block]);
    pages_share(p, block);
    p->kept[block] = true;
}

void pages_unkeep(struct pages *p, int32_t block)
{
    ASSERT(block >= 0 && block < p->n_blocks && p->kept[block]);
    p->n_idle -= p->n_refs[block] == 1;
    p->kept[block] = false;
    pages_release(p, block);
}

void pages_check(const struct pages *p)
{
    ASSERT(p->n_free >= 0 && p->n_free <= p->n_blocks);
    char *seen = calloc((size_t)p->n_blocks, 1);
    ASSERT(seen);
    for (int i = 0; i < p->n_free; i++) {
        int32_t block = p->free_list[i];
        ASSERT(block >= 0 && block < p->n_blocks && !seen[block] && p->n_refs[block] == 0);
        seen[block] = 1;
    }
    int n_idle = 0;
    for (int i = 0; i < p->n_blocks; i++) {
        ASSERT(p->n_refs[i] >= 0 && (seen[i] || p->n_refs[i] > 0) && (!p->kept[i] || p->n_refs[i] > 0));
        n_idle += p->kept[i] && p->n_refs[i] == 1;
    }
    ASSERT(n_idle == p->n_idle);
    free(seen);
}
