/* grammar_run.c - the automaton at work: configurations made when first met and kept.
 *
 * A configuration is the set of (BYTE node, stack) that the text so far leaves possible, closed under all
 * moves that read nothing, in order, so that equal sets are one configuration with one table of successors.
 * Stacks are linked frames, each made once. A call right before a return pushes nothing. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/grammar_parts.h"

/* What is kept at most when a mask is asked for, and what one walk may add: then the walk goes no further.
 * A configuration is 1 KiB, so a grammar holds at most 4 MiB of them between steps and 20 MiB in one. */
enum {
    CONFIGS_KEPT = 4096,
    CONFIGS_MAX = 20480,
    MASKS_KEPT = 512,
    STACKS_KEPT = 1 << 18,
    STACKS_MAX = 1 << 20,
    THREADS_KEPT = 1 << 20, /* of all configurations together */
    THREADS_MAX = 1 << 22,
};

static int push_frame(struct grammar_run *r, int32_t node, int32_t parent)
{
    uint32_t hash = grammar_hash((uint64_t)(uint32_t)node, (uint64_t)(uint32_t)parent);
    const struct grammar_slot *at = grammar_table_first(&r->stack_table, hash);
    for (; at->number >= 0; at = grammar_table_next(&r->stack_table, at))
        if (r->stack[at->number].node == node && r->stack[at->number].parent == parent) return at->number;
    if (r->n_stacks >= STACKS_MAX) return -1;
    r->stack = grammar_grow(r->stack, r->n_stacks, &r->stacks_capacity, sizeof *r->stack);
    r->stack[r->n_stacks] = (struct grammar_frame){node, parent};
    grammar_table_add(&r->stack_table, hash, (int32_t)r->n_stacks);
    return (int)r->n_stacks++;
}

/* Puts a thread on the list of what is to be followed, once. */
static void visit(struct grammar_run *r, int32_t node, int32_t stack)
{
    if (r->n_seen >= 16 * GRAMMAR_THREADS_MAX) return;
    uint32_t hash = grammar_hash((uint64_t)(uint32_t)node, (uint64_t)(uint32_t)stack);
    const struct grammar_slot *at = grammar_table_first(&r->seen, hash);
    for (; at->number >= 0; at = grammar_table_next(&r->seen, at))
        if (r->seen_thread[at->number].node == node && r->seen_thread[at->number].stack == stack) return;
    r->seen_thread = grammar_grow(r->seen_thread, r->n_seen, &r->seen_capacity, sizeof *r->seen_thread);
    r->seen_thread[r->n_seen] = (struct grammar_thread){node, stack};
    grammar_table_add(&r->seen, hash, (int32_t)r->n_seen++);
    r->pending = grammar_grow(r->pending, r->n_pending, &r->pending_capacity, sizeof *r->pending);
    r->pending[r->n_pending++] = (struct grammar_thread){node, stack};
}

/* Follows all moves that read nothing from r->pending into r->set; true when the text may end. */
static bool close_set(struct grammar *g)
{
    struct grammar_run *r = &g->run;
    bool may_end = false;
    r->n_set = 0;
    while (r->n_pending > 0) {
        struct grammar_thread t = r->pending[--r->n_pending];
        const struct grammar_node *n = &g->node[t.node];
        int frame;
        switch (n->kind) {
        case NODE_BYTE:
            if (r->n_set >= GRAMMAR_THREADS_MAX) break;
            r->set = grammar_grow(r->set, r->n_set, &r->set_capacity, sizeof *r->set);
            r->set[r->n_set++] = t;
            break;
        case NODE_SPLIT:
            visit(r, n->b, t.stack);
            visit(r, n->a, t.stack);
            break;
        case NODE_CALL:
            frame = n->a == NODE_RETURN ? t.stack : push_frame(r, n->a, t.stack);
            if (frame >= 0) visit(r, g->rule_node[n->b], frame);
            break;
        case NODE_RETURN:
            if (t.stack == 0) may_end = true;
            else visit(r, r->stack[t.stack].node, r->stack[t.stack].parent);
            break;
        default: break; /* FAIL */
        }
    }
    if (r->seen.n_slots > 4096) grammar_table_free(&r->seen); /* rare; clearing it would cost every step */
    else grammar_table_clear(&r->seen);
    r->n_seen = 0;
    return may_end;
}

static int by_node(const void *a, const void *b)
{
    const struct grammar_thread *x = a, *y = b;
    if (x->node != y->node) return x->node < y->node ? -1 : 1;
    return x->stack < y->stack ? -1 : x->stack > y->stack;
}

/* The configuration of r->set; -1 when there is no room. */
static int intern(struct grammar_run *r, bool may_end)
{
    if (r->n_set > 1) qsort(r->set, r->n_set, sizeof *r->set, by_node);
    uint32_t hash = may_end;
    for (size_t i = 0; i < r->n_set; i++)
        hash = grammar_hash(hash, (uint64_t)(uint32_t)r->set[i].node << 32 | (uint32_t)r->set[i].stack);
    const struct grammar_slot *at = grammar_table_first(&r->config_table, hash);
    for (; at->number >= 0; at = grammar_table_next(&r->config_table, at)) {
        const struct grammar_config *c = &r->config[at->number];
        if (c->n_threads == (int)r->n_set && c->may_end == may_end &&
            (r->n_set == 0 || memcmp(r->thread + c->thread0, r->set, r->n_set * sizeof *r->set) == 0))
            return at->number;
    }
    if (r->n_configs >= CONFIGS_MAX || r->n_threads > THREADS_MAX) return -1;
    r->config = grammar_grow(r->config, r->n_configs, &r->configs_capacity, sizeof *r->config);
    struct grammar_config *c = &r->config[r->n_configs];
    *c = (struct grammar_config){
        .thread0 = r->n_threads, .n_threads = (int)r->n_set, .may_end = may_end, .mask = -1};
    c->next = buffer_realloc(NULL, 256, sizeof *c->next);
    for (int i = 0; i < 256; i++) c->next[i] = -1;
    for (size_t i = 0; i < r->n_set; i++) {
        r->thread = grammar_grow(r->thread, r->n_threads, &r->threads_capacity, sizeof *r->thread);
        r->thread[r->n_threads++] = r->set[i];
    }
    grammar_table_add(&r->config_table, hash, (int32_t)r->n_configs);
    return (int)r->n_configs++;
}

/* Dead (number 0), the bottom of all stacks, and the beginning of a text. */
static void begin(struct grammar *g)
{
    struct grammar_run *r = &g->run;
    push_frame(r, NODE_FAIL, -1);
    r->n_set = 0;
    intern(r, false);
    visit(r, g->rule_node[g->start_rule], 0);
    bool may_end = close_set(g);
    r->start = intern(r, may_end);
}

void grammar_run_open(struct grammar *g)
{
    if (g->run.n_configs == 0) begin(g);
}

static void forget(struct grammar_run *r)
{
    for (size_t i = 0; i < r->n_configs; i++) free(r->config[i].next);
    r->n_threads = r->n_configs = r->n_stacks = r->n_masks = 0;
    grammar_table_clear(&r->config_table);
    grammar_table_clear(&r->stack_table);
}

void grammar_run_close(struct grammar *g)
{
    struct grammar_run *r = &g->run;
    ASSERT(!r->first);
    forget(r);
    free(r->thread);
    free(r->config);
    free(r->stack);
    free(r->mask);
    free(r->mask_any);
    free(r->set);
    free(r->pending);
    free(r->seen_thread);
    grammar_table_free(&r->config_table);
    grammar_table_free(&r->stack_table);
    grammar_table_free(&r->seen);
}

int grammar_run_step(struct grammar *g, int config, unsigned char byte)
{
    struct grammar_run *r = &g->run;
    int known = r->config[config].next[byte];
    if (known >= 0) return known;
    const struct grammar_thread *t = r->thread + r->config[config].thread0;
    for (int i = 0; i < r->config[config].n_threads; i++) {
        const struct grammar_node *n = &g->node[t[i].node];
        if (byte >= n->low && byte <= n->high) visit(r, n->a, t[i].stack);
    }
    bool may_end = close_set(g);
    int to = intern(r, may_end);
    if (to < 0) return 0; /* no room: as if nothing could follow, until there is room again */
    r->config[config].next[byte] = to;
    return to;
}

/* The frames of `stack` of the old run, made again in the new one. */
static int copy_stack(struct grammar_run *r, const struct grammar_run *old, int stack)
{
    int depth = 0, made = 0;
    for (int s = stack; s > 0; s = old->stack[s].parent) depth++;
    int32_t *node = buffer_realloc(NULL, (size_t)depth, sizeof *node);
    int n = 0;
    for (int s = stack; s > 0; s = old->stack[s].parent) node[n++] = old->stack[s].node;
    while (n > 0) made = push_frame(r, node[--n], made);
    free(node);
    return made;
}

void grammar_run_trim(struct grammar *g)
{
    struct grammar_run *r = &g->run;
    if (r->n_configs <= CONFIGS_KEPT && r->n_masks <= MASKS_KEPT && r->n_stacks <= STACKS_KEPT &&
        r->n_threads <= THREADS_KEPT)
        return;
    struct grammar_run old = *r;
    *r = (struct grammar_run){.first = old.first, .mask_words = old.mask_words};
    begin(g);
    for (struct grammar_matcher *m = r->first; m; m = m->next) {
        const struct grammar_config *c = &old.config[m->state];
        r->n_set = 0;
        for (int i = 0; i < c->n_threads; i++) {
            const struct grammar_thread *t = &old.thread[c->thread0 + (size_t)i];
            r->set = grammar_grow(r->set, r->n_set, &r->set_capacity, sizeof *r->set);
            r->set[r->n_set++] = (struct grammar_thread){t->node, copy_stack(r, &old, t->stack)};
        }
        m->state = intern(r, c->may_end);
        ASSERT(m->state >= 0);
    }
    struct grammar gone = {.run = old};
    gone.run.first = NULL;
    grammar_run_close(&gone);
}

/* ---- matchers */

struct grammar_matcher *grammar_matcher_open(struct grammar *g)
{
    grammar_run_open(g);
    struct grammar_matcher *m = buffer_zeroed(1, sizeof *m);
    m->grammar = grammar_keep(g);
    m->state = g->run.start;
    m->next = g->run.first;
    if (m->next) m->next->previous = m;
    g->run.first = m;
    return m;
}

void grammar_matcher_close(struct grammar_matcher *m)
{
    if (!m) return;
    if (m->next) m->next->previous = m->previous;
    if (m->previous) m->previous->next = m->next;
    else m->grammar->run.first = m->next;
    grammar_drop(m->grammar);
    free(m);
}

static int state_after(struct grammar_matcher *m, const char *bytes, size_t n)
{
    grammar_run_trim(m->grammar);
    int state = m->state;
    for (size_t i = 0; i < n && state > 0; i++)
        state = grammar_run_step(m->grammar, state, (unsigned char)bytes[i]);
    return state;
}

bool grammar_would_accept(struct grammar_matcher *m, const char *bytes, size_t n)
{
    return state_after(m, bytes, n) > 0;
}

bool grammar_accept(struct grammar_matcher *m, const char *bytes, size_t n)
{
    int state = state_after(m, bytes, n);
    if (state > 0) m->state = state;
    return state > 0;
}

bool grammar_may_end(const struct grammar_matcher *m) { return m->grammar->run.config[m->state].may_end; }

bool grammar_must_end(const struct grammar_matcher *m)
{
    const struct grammar_config *c = &m->grammar->run.config[m->state];
    return c->may_end && c->n_threads == 0;
}
