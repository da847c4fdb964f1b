/* grammar_parts.h - what grammar*.c share.
 *
 * Nodes are compiled back to front: compile(expression, next) gives the node to begin with so that `next`
 * follows. Equal nodes are one node. Node 0 is RETURN, node 1 is FAIL. */
#ifndef RETRO_GRAMMAR_PARTS_H
#define RETRO_GRAMMAR_PARTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "runtime/grammar.h"

enum grammar_node_kind { NODE_RETURN, NODE_FAIL, NODE_BYTE, NODE_SPLIT, NODE_CALL };

struct grammar_node {
    unsigned char kind, low, high; /* BYTE: low..high, then a */
    int32_t a, b;                  /* SPLIT: a or b; CALL: rule b, then a */
};

/* A hash table of numbers (open addressing, at most half full); the caller compares what they stand for:
 *   for (at = grammar_table_first(t, hash); at->number >= 0; at = grammar_table_next(t, at)) */
struct grammar_slot {
    uint32_t hash;
    int32_t number; /* -1 empty */
};
struct grammar_table {
    struct grammar_slot *slot; /* (n_slots), a power of two */
    size_t n_slots, n_used;
};

enum grammar_expression_kind {
    EXPRESSION_EMPTY,
    EXPRESSION_LITERAL,
    EXPRESSION_SET,
    EXPRESSION_JOIN,
    EXPRESSION_EITHER,
    EXPRESSION_REPEAT,
    EXPRESSION_CALL
};

struct grammar_expression {
    enum grammar_expression_kind kind;
    int32_t a, b, min, max; /* CALL: rule a */
    size_t at, n;           /* LITERAL: bytes; SET: spans */
};

struct grammar_thread {
    int32_t node, stack; /* a BYTE node; an entry of grammar_run.stack, 0 is the empty stack */
};

/* A set of threads that can be alive together. Number 0 is dead. */
struct grammar_config {
    size_t thread0;
    int32_t n_threads;
    bool may_end;
    int32_t mask;  /* of grammar_run.mask, -1 when not made */
    int32_t *next; /* (256) configurations, -1 not known */
};

struct grammar_frame {
    int32_t node, parent; /* to go on with; the stack below */
};

struct grammar_run {
    struct grammar_thread *thread;
    size_t n_threads, threads_capacity;
    struct grammar_config *config;
    size_t n_configs, configs_capacity;
    struct grammar_frame *stack;
    size_t n_stacks, stacks_capacity;
    struct grammar_table config_table, stack_table;
    uint32_t *mask; /* (n_masks, words) */
    size_t n_masks, masks_capacity, mask_words;
    bool *mask_any; /* (n_masks) */
    /* Scratch of one closure. */
    struct grammar_thread *set, *pending;
    size_t n_set, set_capacity, n_pending, pending_capacity;
    struct grammar_table seen;
    struct grammar_thread *seen_thread;
    size_t n_seen, seen_capacity;
    struct grammar_matcher *first; /* all matchers */
    int start;
};

struct grammar {
    atomic_int n_references;
    pthread_mutex_t lock; /* of the constraints' matchers and of `run`, which grows under them */
    /* Building. */
    struct grammar_expression *expression;
    size_t n_expressions, expressions_capacity;
    char *bytes;
    size_t n_bytes, bytes_capacity;
    struct grammar_span *span;
    size_t n_spans, spans_capacity;
    int32_t *rule_expression; /* -1 until defined */
    size_t n_rules, rules_capacity;
    /* Compiled. */
    struct grammar_node *node;
    size_t n_nodes, nodes_capacity;
    struct grammar_table node_table;
    int64_t n_added; /* nodes asked for, those that were there already too */
    int32_t *rule_node;
    int start_rule;
    bool too_large;
    struct grammar_run run;
};

struct grammar_matcher {
    struct grammar *grammar;
    int state; /* a configuration, not dead */
    struct grammar_matcher *next, *previous;
};

/* `items` with room for one more behind n. */
void *grammar_grow(void *items, size_t n, size_t *capacity, size_t item_bytes);
uint32_t grammar_hash(uint64_t a, uint64_t b);
const struct grammar_slot *grammar_table_first(struct grammar_table *t, uint32_t hash);
const struct grammar_slot *grammar_table_next(const struct grammar_table *t, const struct grammar_slot *at);
void grammar_table_add(struct grammar_table *t, uint32_t hash, int32_t number);
void grammar_table_clear(struct grammar_table *t);
void grammar_table_free(struct grammar_table *t);

void grammar_run_open(struct grammar *g);
void grammar_run_close(struct grammar *g);
/* The configuration after a byte; 0 dead. */
int grammar_run_step(struct grammar *g, int config, unsigned char byte);
/* Forgets what is cached when it is much: live matchers keep their state. */
void grammar_run_trim(struct grammar *g);

#endif
