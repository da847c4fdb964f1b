/* grammar_mask.c - which tokens a configuration allows: all tokens' bytes as one trie in depth-first order,
 * walked with the automaton. A node that the automaton refuses is left with its whole subtree. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/grammar_parts.h"

struct trie_node {
    unsigned char byte;
    uint16_t depth;    /* of the node that the byte leads to, from 1 */
    int32_t end;       /* first node behind its subtree */
    int32_t token0, n; /* tokens that end here: token[token0 ..] */
};

struct grammar_trie {
    struct trie_node *node;
    size_t n_nodes, capacity;
    int32_t *token; /* (n_tokens) in the order of their bytes */
    size_t n_tokens;
    int vocab, depth;
};

struct entry {
    const char *bytes;
    size_t n;
    int32_t token;
};

static int by_bytes(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    size_t n = x->n < y->n ? x->n : y->n;
    int c = memcmp(x->bytes, y->bytes, n);
    if (c) return c;
    if (x->n != y->n) return x->n < y->n ? -1 : 1;
    return x->token - y->token;
}

enum { BYTES_MAX = 1024 }; /* of a token; the supported vocabularies stay below 300 */

/* Appends entry e, which follows `before` in order: the nodes that they do not share. path (depth) holds the
 * nodes of `before`. */
static void add(struct grammar_trie *t, const struct entry *before, const struct entry *e, int32_t *path)
{
    size_t shared = 0;
    while (before && shared < before->n && shared < e->n && before->bytes[shared] == e->bytes[shared])
        shared++;
    for (size_t i = before ? before->n : 0; i > shared; i--) t->node[path[i - 1]].end = (int32_t)t->n_nodes;
    for (size_t i = shared; i < e->n; i++) {
        t->node = grammar_grow(t->node, t->n_nodes, &t->capacity, sizeof *t->node);
        path[i] = (int32_t)t->n_nodes;
        t->node[t->n_nodes++] =
            (struct trie_node){.byte = (unsigned char)e->bytes[i], .depth = (uint16_t)(i + 1)};
    }
    struct trie_node *last = &t->node[path[e->n - 1]];
    if (last->n++ == 0) last->token0 = (int32_t)t->n_tokens;
    t->token[t->n_tokens++] = e->token;
    if ((int)e->n > t->depth) t->depth = (int)e->n;
}

struct grammar_trie *grammar_trie_open(const struct tokenizer *tokenizer, int vocab)
{
    struct grammar_trie *t = buffer_zeroed(1, sizeof *t);
    struct entry *e = buffer_zeroed((size_t)vocab, sizeof *e);
    int32_t *path = buffer_zeroed(BYTES_MAX, sizeof *path);
    size_t n = 0;
    t->vocab = vocab;
    t->token = buffer_zeroed((size_t)vocab, sizeof *t->token);
    for (int32_t id = 0; id < vocab; id++) {
        size_t n_bytes = 0;
        const char *bytes = tokenizer_bytes(tokenizer, id, &n_bytes);
        if (bytes && n_bytes > 0 && n_bytes <= BYTES_MAX) e[n++] = (struct entry){bytes, n_bytes, id};
    }
    qsort(e, n, sizeof *e, by_bytes);
    for (size_t i = 0; i < n; i++) add(t, i ? &e[i - 1] : NULL, &e[i], path);
    for (size_t i = n ? e[n - 1].n : 0; i > 0; i--) t->node[path[i - 1]].end = (int32_t)t->n_nodes;
    free(e);
    free(path);
    return t;
}

void grammar_trie_close(struct grammar_trie *t)
{
    if (!t) return;
    free(t->node);
    free(t->token);
    free(t);
}

static bool walk(struct grammar *g, const struct grammar_trie *t, int state, uint32_t *mask)
{
    int at[BYTES_MAX + 1];
    bool any = false;
    at[0] = state;
    for (size_t i = 0; i < t->n_nodes;) {
        const struct trie_node *n = &t->node[i];
        int to = grammar_run_step(g, at[n->depth - 1], n->byte);
        if (to == 0) {
            i = (size_t)n->end;
            continue;
        }
        at[n->depth] = to;
        for (int k = 0; k < n->n; k++) {
            int32_t token = t->token[n->token0 + k];
            mask[token / 32] |= 1u << token % 32;
            any = true;
        }
        i++;
    }
    return any;
}

const uint32_t *grammar_allowed(struct grammar_matcher *m, const struct grammar_trie *t, bool *any)
{
    struct grammar *g = m->grammar;
    struct grammar_run *r = &g->run;
    size_t words = ((size_t)t->vocab + 31) / 32;
    ASSERT(r->mask_words == 0 || r->mask_words == words); /* one vocabulary for all masks of a grammar */
    r->mask_words = words;
    grammar_run_trim(g);
    int number = r->config[m->state].mask;
    if (number < 0) {
        if (r->n_masks >= r->masks_capacity) {
            r->masks_capacity = r->masks_capacity ? r->masks_capacity * 2 : 8;
            r->mask = buffer_realloc(r->mask, r->masks_capacity * words, sizeof *r->mask);
            r->mask_any = buffer_realloc(r->mask_any, r->masks_capacity, sizeof *r->mask_any);
        }
        number = (int)r->n_masks++;
        uint32_t *mask = r->mask + (size_t)number * words;
        memset(mask, 0, words * sizeof *mask);
        r->mask_any[number] = walk(g, t, m->state, mask);
        r->config[m->state].mask = number;
    }
    *any = r->mask_any[number];
    return r->mask + (size_t)number * words;
}
