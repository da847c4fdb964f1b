/* grammar_constraint.c - a grammar as the service's constraint. The matcher is opened on first use, on the
 * thread of the request's replica, because requests are made on another. Requests with the same schema share the
 * grammar, and may run on several threads: it is locked for each call. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/grammar_parts.h"

enum { EOS_MAX = 16 };

struct bound {
    struct constraint constraint; /* first: the service sees only this */
    struct grammar *grammar;
    const struct grammar_trie *trie;
    const struct tokenizer *tokenizer;
    struct grammar_matcher *matcher; /* NULL before the first use */
    int32_t eos[EOS_MAX];
    int n_eos;
};

/* With the grammar's lock held. */
static bool fill_mask(struct bound *b, uint32_t *mask, int vocab)
{
    bool any;
    if (!b->matcher) b->matcher = grammar_matcher_open(b->grammar);
    const uint32_t *allowed = grammar_allowed(b->matcher, b->trie, &any);
    bool may_end = grammar_may_end(b->matcher);
    if (!any) {
        if (!may_end)
            LOG_WARN("a constrained answer cannot be completed with this vocabulary: it ends early");
        return false;
    }
    memcpy(mask, allowed, ((size_t)vocab + 31) / 32 * sizeof *mask);
    for (int i = 0; may_end && i < b->n_eos; i++)
        if (b->eos[i] < vocab) mask[b->eos[i] / 32] |= 1u << b->eos[i] % 32;
    return true;
}

static bool fill(struct constraint *c, uint32_t *mask, int vocab)
{
    struct bound *b = (struct bound *)c;
    pthread_mutex_lock(&b->grammar->lock);
    bool goes_on = fill_mask(b, mask, vocab);
    pthread_mutex_unlock(&b->grammar->lock);
    return goes_on;
}

static void accept(struct constraint *c, int32_t token)
{
    struct bound *b = (struct bound *)c;
    size_t n;
    const char *bytes = tokenizer_bytes(b->tokenizer, token, &n);
    pthread_mutex_lock(&b->grammar->lock);
    ASSERT(b->matcher && bytes && grammar_accept(b->matcher, bytes, n));
    pthread_mutex_unlock(&b->grammar->lock);
}

static struct constraint *clone(const struct constraint *c)
{
    const struct bound *b = (const struct bound *)c;
    return grammar_constraint_open(b->grammar, b->trie, b->tokenizer, b->eos, b->n_eos);
}

static void free_bound(struct constraint *c)
{
    struct bound *b = (struct bound *)c;
    pthread_mutex_lock(&b->grammar->lock);
    grammar_matcher_close(b->matcher);
    pthread_mutex_unlock(&b->grammar->lock);
    grammar_drop(b->grammar);
    free(b);
}

struct constraint *grammar_constraint_open(struct grammar *g, const struct grammar_trie *trie,
                                           const struct tokenizer *tokenizer, const int32_t *eos, int n_eos)
{
    static const struct constraint_table table = {fill, accept, clone, free_bound};
    struct bound *b = buffer_zeroed(1, sizeof *b);
    b->constraint.table = &table;
    b->grammar = grammar_keep(g);
    b->trie = trie;
    b->tokenizer = tokenizer;
    b->n_eos = n_eos < EOS_MAX ? n_eos : EOS_MAX;
    memcpy(b->eos, eos, (size_t)b->n_eos * sizeof *eos);
    return &b->constraint;
}
