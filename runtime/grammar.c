/* grammar.c - expressions and rules, compiled to an automaton with a stack; see grammar_parts.h. */
#include "runtime/grammar.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/grammar_parts.h"
#include "runtime/utf8.h"

enum {
    EXPRESSIONS_MAX = 1000000,
    ADDED_MAX = 10 * GRAMMAR_NODES_MAX,
    WORK_MAX = 20000000, /* nodes looked at by the checks: far over what schemas of the largest size need */
};

/* ---- tables */

void *grammar_grow(void *items, size_t n, size_t *capacity, size_t item_bytes)
{
    if (n < *capacity) return items;
    *capacity = *capacity ? *capacity * 2 : 16;
    return buffer_realloc(items, *capacity, item_bytes);
}

uint32_t grammar_hash(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u ^ (b + 0x94d049bb133111ebu) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)((z ^ z >> 29) * 0x9e3779b97f4a7c15u >> 32);
}

static void reset(struct grammar_table *t, size_t n_slots)
{
    t->slot = buffer_realloc(t->slot, n_slots, sizeof *t->slot);
    t->n_slots = n_slots;
    t->n_used = 0;
    for (size_t i = 0; i < n_slots; i++) t->slot[i].number = -1;
}

const struct grammar_slot *grammar_table_first(struct grammar_table *t, uint32_t hash)
{
    if (t->n_slots == 0) reset(t, 64);
    return &t->slot[hash & (t->n_slots - 1)];
}

const struct grammar_slot *grammar_table_next(const struct grammar_table *t, const struct grammar_slot *at)
{
    return at + 1 == t->slot + t->n_slots ? t->slot : at + 1;
}

void grammar_table_add(struct grammar_table *t, uint32_t hash, int32_t number)
{
    if (2 * (t->n_used + 1) > t->n_slots) {
        struct grammar_table old = *t;
        t->slot = NULL;
        reset(t, old.n_slots ? old.n_slots * 2 : 64);
        for (size_t i = 0; i < old.n_slots; i++)
            if (old.slot[i].number >= 0) grammar_table_add(t, old.slot[i].hash, old.slot[i].number);
        free(old.slot);
    }
    size_t i = hash & (t->n_slots - 1);
    while (t->slot[i].number >= 0) i = (i + 1) & (t->n_slots - 1);
    t->slot[i] = (struct grammar_slot){hash, number};
    t->n_used++;
}

void grammar_table_clear(struct grammar_table *t)
{
    if (t->n_used) reset(t, t->n_slots);
}

void grammar_table_free(struct grammar_table *t)
{
    free(t->slot);
    *t = (struct grammar_table){0};
}

/* ---- building */

struct grammar *grammar_open(void)
{
    struct grammar *g = buffer_zeroed(1, sizeof *g);
    atomic_init(&g->n_references, 1);
    pthread_mutex_init(&g->lock, NULL);
    return g;
}

struct grammar *grammar_keep(struct grammar *g)
{
    atomic_fetch_add(&g->n_references, 1);
    return g;
}

void grammar_drop(struct grammar *g)
{
    if (!g || atomic_fetch_sub(&g->n_references, 1) > 1) return;
    grammar_run_close(g);
    pthread_mutex_destroy(&g->lock);
    free(g->expression);
    free(g->bytes);
    free(g->span);
    free(g->rule_expression);
    free(g->node);
    grammar_table_free(&g->node_table);
    free(g->rule_node);
    free(g);
}

static int add_expression(struct grammar *g, struct grammar_expression e)
{
    if (g->n_expressions >= EXPRESSIONS_MAX) {
        g->too_large = true;
        return 0;
    }
    g->expression =
        grammar_grow(g->expression, g->n_expressions, &g->expressions_capacity, sizeof *g->expression);
    g->expression[g->n_expressions] = e;
    return (int)g->n_expressions++;
}

int grammar_empty(struct grammar *g)
{
    return add_expression(g, (struct grammar_expression){.kind = EXPRESSION_EMPTY});
}

int grammar_literal(struct grammar *g, const char *bytes, size_t n)
{
    size_t at = g->n_bytes;
    while (g->bytes_capacity < at + n)
        g->bytes = grammar_grow(g->bytes, g->bytes_capacity, &g->bytes_capacity, 1);
    if (n) memcpy(g->bytes + at, bytes, n);
    g->n_bytes += n;
    return add_expression(g, (struct grammar_expression){.kind = EXPRESSION_LITERAL, .at = at, .n = n});
}

int grammar_set(struct grammar *g, const struct grammar_span *span, int n)
{
    size_t at = g->n_spans;
    for (int i = 0; i < n; i++) {
        g->span = grammar_grow(g->span, g->n_spans, &g->spans_capacity, sizeof *g->span);
        g->span[g->n_spans++] = span[i];
    }
    return add_expression(g, (struct grammar_expression){.kind = EXPRESSION_SET, .at = at, .n = (size_t)n});
}

int grammar_join(struct grammar *g, int a, int b)
{
    return add_expression(g, (struct grammar_expression){.kind = EXPRESSION_JOIN, .a = a, .b = b});
}

int grammar_either(struct grammar *g, int a, int b)
{
    return add_expression(g, (struct grammar_expression){.kind = EXPRESSION_EITHER, .a = a, .b = b});
}

int grammar_repeat(struct grammar *g, int a, int min, int max)
{
    return add_expression(
        g, (struct grammar_expression){.kind = EXPRESSION_REPEAT, .a = a, .min = min, .max = max});
}

int grammar_rule(struct grammar *g)
{
    g->rule_expression =
        grammar_grow(g->rule_expression, g->n_rules, &g->rules_capacity, sizeof *g->rule_expression);
    g->rule_expression[g->n_rules] = -1;
    return (int)g->n_rules++;
}

void grammar_define(struct grammar *g, int rule, int expression)
{
    ASSERT(g->rule_expression[rule] < 0);
    g->rule_expression[rule] = expression;
}

int grammar_call(struct grammar *g, int rule)
{
    return add_expression(g, (struct grammar_expression){.kind = EXPRESSION_CALL, .a = rule});
}

/* ---- compiling */

static int add_node(struct grammar *g, struct grammar_node n)
{
    if (++g->n_added > ADDED_MAX) g->too_large = true;
    uint32_t hash = grammar_hash((uint64_t)n.kind << 16 | (uint64_t)n.low << 8 | n.high,
                                 (uint64_t)(uint32_t)n.a << 32 | (uint32_t)n.b);
    const struct grammar_slot *at = grammar_table_first(&g->node_table, hash);
    for (; at->number >= 0; at = grammar_table_next(&g->node_table, at)) {
        const struct grammar_node *o = &g->node[at->number];
        if (o->kind == n.kind && o->low == n.low && o->high == n.high && o->a == n.a && o->b == n.b)
            return at->number;
    }
    if (g->n_nodes >= GRAMMAR_NODES_MAX) {
        g->too_large = true;
        return NODE_FAIL;
    }
    g->node = grammar_grow(g->node, g->n_nodes, &g->nodes_capacity, sizeof *g->node);
    g->node[g->n_nodes] = n;
    grammar_table_add(&g->node_table, hash, (int32_t)g->n_nodes);
    return (int)g->n_nodes++;
}

static int add_split(struct grammar *g, int a, int b)
{
    if (a == NODE_FAIL || a == b) return b;
    if (b == NODE_FAIL) return a;
    return add_node(g, (struct grammar_node){.kind = NODE_SPLIT, .a = a, .b = b});
}

static int add_byte(struct grammar *g, int low, int high, int next)
{
    if (next == NODE_FAIL) return NODE_FAIL;
    return add_node(
        g, (struct grammar_node){
               .kind = NODE_BYTE, .low = (unsigned char)low, .high = (unsigned char)high, .a = next});
}

/* The characters low..high whose encodings have the same length: where two ends share their first byte, the
 * rest decides; between different first bytes everything may follow. */
static int compile_encoded(struct grammar *g, const unsigned char *low, const unsigned char *high, size_t n,
                           int next)
{
    if (n == 1) return add_byte(g, low[0], high[0], next);
    static const unsigned char first[3] = {0x80, 0x80, 0x80}, last[3] = {0xbf, 0xbf, 0xbf};
    if (low[0] == high[0])
        return add_byte(g, low[0], low[0], compile_encoded(g, low + 1, high + 1, n - 1, next));
    int a = low[0], b = high[0], node = NODE_FAIL;
    if (memcmp(low + 1, first, n - 1) != 0) {
        node = add_byte(g, a, a, compile_encoded(g, low + 1, last, n - 1, next));
        a++;
    }
    if (memcmp(high + 1, last, n - 1) != 0) {
        node = add_split(g, node, add_byte(g, b, b, compile_encoded(g, first, high + 1, n - 1, next)));
        b--;
    }
    if (a <= b) node = add_split(g, node, add_byte(g, a, b, compile_encoded(g, first, last, n - 1, next)));
    return node;
}

static int compile_span(struct grammar *g, struct grammar_span s, int next)
{
    /* By length of encoding, without the surrogates. */
    static const struct grammar_span part[] = {
        {0, 0x7f}, {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, 0x10ffff}};
    int node = NODE_FAIL;
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        uint32_t low = s.low > part[i].low ? s.low : part[i].low;
        uint32_t high = s.high < part[i].high ? s.high : part[i].high;
        if (low > high) continue;
        char a[4], b[4];
        size_t n = utf8_encode(low, a);
        utf8_encode(high, b);
        node = add_split(g, node,
                         compile_encoded(g, (const unsigned char *)a, (const unsigned char *)b, n, next));
    }
    return node;
}

static int compile(struct grammar *g, int expression, int next);

static int compile_repeat(struct grammar *g, struct grammar_expression e, int next)
{
    int node = next;
    if (e.max < 0) {
        /* A loop cannot be made back to front: its node is made first and filled in, so it is never shared.
         */
        if (g->n_nodes >= GRAMMAR_NODES_MAX) {
            g->too_large = true;
            return NODE_FAIL;
        }
        g->node = grammar_grow(g->node, g->n_nodes, &g->nodes_capacity, sizeof *g->node);
        node = (int)g->n_nodes++;
        g->node[node] = (struct grammar_node){.kind = NODE_SPLIT, .a = NODE_FAIL, .b = next};
        int body = compile(g, e.a, node); /* g->node may move */
        g->node[node].a = body;
    } else {
        for (int i = e.min; i < e.max && !g->too_large; i++) {
            int once = compile(g, e.a, node);
            if (once == node || once == NODE_FAIL) break;
            node = add_split(g, once, next);
        }
    }
    for (int i = 0; i < e.min && !g->too_large; i++) {
        int once = compile(g, e.a, node);
        if (once == node) break; /* the empty text, however often */
        node = once;
    }
    return node;
}

static int compile(struct grammar *g, int expression, int next)
{
    struct grammar_expression e = g->expression[expression];
    if (g->too_large) return NODE_FAIL;
    int node = next;
    switch (e.kind) {
    case EXPRESSION_EMPTY: return next;
    case EXPRESSION_LITERAL:
        for (size_t i = e.n; i > 0; i--) {
            int byte = (unsigned char)g->bytes[e.at + i - 1];
            node = add_byte(g, byte, byte, node);
        }
        return node;
    case EXPRESSION_SET:
        node = NODE_FAIL;
        for (size_t i = 0; i < e.n; i++) node = add_split(g, node, compile_span(g, g->span[e.at + i], next));
        return node;
    case EXPRESSION_JOIN: return compile(g, e.a, compile(g, e.b, next));
    case EXPRESSION_EITHER: {
        int a = compile(g, e.a, next);
        return add_split(g, a, compile(g, e.b, next));
    }
    case EXPRESSION_REPEAT: return compile_repeat(g, e, next);
    case EXPRESSION_CALL:
        if (next == NODE_FAIL) return NODE_FAIL;
        return add_node(g, (struct grammar_node){.kind = NODE_CALL, .a = next, .b = e.a});
    }
    ASSERT(false);
    return NODE_FAIL;
}

/* ---- checks: what a rule can begin with and whether it can end */

struct check {
    const struct grammar *g;
    bool *nullable, *finite; /* (n_rules) */
    int32_t *visited;        /* (n_nodes) number of the last visit */
    int32_t n_visits;
    int64_t work;          /* nodes looked at */
    int32_t *pending;      /* (n_nodes) */
    unsigned char *colour; /* (n_rules) 0 new, 1 being looked at, 2 done */
};

/* Can RETURN be reached from the rule's first node? `reading`: bytes may be passed too. Called rules count by
 * what is known of them so far. calls, where not NULL, gets a mark for every rule that can come first. */
static bool reaches_end(struct check *c, int rule, bool reading, unsigned char *calls)
{
    const struct grammar *g = c->g;
    int32_t visit = ++c->n_visits;
    size_t n = 0;
    c->pending[n++] = g->rule_node[rule];
    c->visited[g->rule_node[rule]] = visit;
    bool end = false;
    for (; n > 0; c->work++) {
        const struct grammar_node *node = &g->node[c->pending[--n]];
        int32_t go[2] = {-1, -1};
        if (node->kind == NODE_RETURN) end = true;
        else if (node->kind == NODE_SPLIT) go[0] = node->a, go[1] = node->b;
        else if (node->kind == NODE_BYTE && reading) go[0] = node->a;
        else if (node->kind == NODE_CALL) {
            if (calls) calls[node->b] = 1;
            if (reading ? c->finite[node->b] : c->nullable[node->b]) go[0] = node->a;
        }
        for (int i = 0; i < 2; i++)
            if (go[i] >= 0 && c->visited[go[i]] != visit) {
                c->visited[go[i]] = visit;
                c->pending[n++] = go[i];
            }
    }
    return end;
}

/* The least fixed point of "can end" over all rules. Every other pass goes backwards: rules often form
 * chains.
 */
static void settle(struct check *c, bool *known, bool reading)
{
    int n = (int)c->g->n_rules;
    bool changed = true;
    for (int pass = 0; changed; pass++) {
        changed = false;
        for (int i = 0; i < n && c->work < WORK_MAX; i++) {
            int r = pass % 2 ? i : n - 1 - i;
            if (!known[r] && reaches_end(c, r, reading, NULL)) known[r] = changed = true;
        }
    }
}

/* Depth first over "can come first"; a rule met while it is being looked at calls itself before any byte. */
static bool calls_itself(struct check *c, int rule, int depth)
{
    if (c->colour[rule]) return c->colour[rule] == 1;
    if (depth > 2000) return true;
    c->colour[rule] = 1;
    unsigned char *calls = buffer_zeroed(c->g->n_rules, 1);
    reaches_end(c, rule, false, calls);
    bool found = false;
    for (int r = 0; r < (int)c->g->n_rules && !found; r++) found = calls[r] && calls_itself(c, r, depth + 1);
    free(calls);
    c->colour[rule] = 2;
    return found;
}

static enum status check_rules(struct grammar *g, struct reason *why)
{
    struct check c = {.g = g,
                      .nullable = buffer_zeroed(g->n_rules, sizeof(bool)),
                      .finite = buffer_zeroed(g->n_rules, sizeof(bool)),
                      .visited = buffer_zeroed(g->n_nodes, sizeof(int32_t)),
                      .pending = buffer_zeroed(g->n_nodes, sizeof(int32_t)),
                      .colour = buffer_zeroed(g->n_rules, 1)};
    enum status status = STATUS_OK;
    settle(&c, c.nullable, false);
    settle(&c, c.finite, true);
    for (int r = 0; r < (int)g->n_rules && status == STATUS_OK; r++) {
        if (c.work >= WORK_MAX)
            status = status_fail(why, STATUS_BAD_INPUT,
                                 "it is too large: its parts refer to each other too often");
        else if (calls_itself(&c, r, 0))
            status = status_fail(why, STATUS_BAD_INPUT, "it refers to itself with nothing in between");
        else if (!c.finite[r])
            status = status_fail(why, STATUS_BAD_INPUT, "a part of it has no value that ever ends");
    }
    free(c.nullable);
    free(c.finite);
    free(c.visited);
    free(c.pending);
    free(c.colour);
    return status;
}

enum status grammar_finish(struct grammar *g, int start_rule, struct reason *why)
{
    if (g->n_rules > GRAMMAR_RULES_MAX)
        return status_fail(why, STATUS_BAD_INPUT, "it is too large: over %d parts", GRAMMAR_RULES_MAX);
    add_node(g, (struct grammar_node){.kind = NODE_RETURN});
    add_node(g, (struct grammar_node){.kind = NODE_FAIL});
    g->rule_node = buffer_zeroed(g->n_rules, sizeof *g->rule_node);
    g->start_rule = start_rule;
    for (size_t r = 0; r < g->n_rules; r++) {
        ASSERT(g->rule_expression[r] >= 0);
        g->rule_node[r] = compile(g, g->rule_expression[r], NODE_RETURN);
    }
    if (g->too_large)
        return status_fail(why, STATUS_BAD_INPUT, "it is too large: its automaton has over %d nodes",
                           GRAMMAR_NODES_MAX);
    return check_rules(g, why);
}
