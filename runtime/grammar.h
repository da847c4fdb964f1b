/* grammar.h - what a text may be, as rules over bytes, and which tokens may come next.
 *
 * Made in three parts: expressions and rules (grammar.c) are compiled to one automaton with a stack; its
 * configurations, sets of (node, stack), are made when they are first met and kept (grammar_run.c); the
 * tokens that a configuration allows are found by walking all tokens' bytes in one trie (grammar_mask.c). All
 * sets of characters are written as well-formed UTF-8, so a text that a grammar lets through is valid UTF-8
 * wherever the literals are.
 *
 * Refused by grammar_finish: a rule that calls itself before it reads a byte, one that no finite text
 * satisfies, more than GRAMMAR_RULES_MAX rules or GRAMMAR_NODES_MAX nodes. A set of more than
 * GRAMMAR_THREADS_MAX (node, stack) drops what is over: fewer texts then, never a wrong one.
 *
 * A grammar is built by one thread, which gives it away; matchers of it, and so everything that grammar_run.c
 * and grammar_mask.c keep in it, belong to one thread at a time. Only grammar_keep and grammar_drop may be called
 * from anywhere, and constraints (below), which lock it: requests of several replicas may share a schema. */
#ifndef RETRO_GRAMMAR_H
#define RETRO_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/constraint.h"
#include "runtime/tokenizer.h"

enum { GRAMMAR_RULES_MAX = 10000, GRAMMAR_NODES_MAX = 400000, GRAMMAR_THREADS_MAX = 4096 };

struct grammar;

/* ---- building: an expression is a number, and may be used in several places */
struct grammar *grammar_open(void); /* one reference */
struct grammar *grammar_keep(struct grammar *g);
void grammar_drop(struct grammar *g); /* NULL is fine */

struct grammar_span {
    uint32_t low, high; /* code points, both included */
};

int grammar_empty(struct grammar *g);
int grammar_literal(struct grammar *g, const char *bytes, size_t n);
/* One character of any of the spans, which may overlap; surrogates are left out. No span: nothing matches. */
int grammar_set(struct grammar *g, const struct grammar_span *span, int n);
int grammar_join(struct grammar *g, int a, int b);
int grammar_either(struct grammar *g, int a, int b);
/* min to max times; max < 0: without an end. */
int grammar_repeat(struct grammar *g, int a, int min, int max);
/* Rules may be called before they are defined. */
int grammar_rule(struct grammar *g);
void grammar_define(struct grammar *g, int rule, int expression);
int grammar_call(struct grammar *g, int rule);
/* Compiles; BAD_INPUT says why not. The grammar is only to be dropped then. */
enum status grammar_finish(struct grammar *g, int start_rule, struct reason *why);

/* ---- matching */
struct grammar_trie; /* the bytes of a vocabulary; immutable */
struct grammar_trie *grammar_trie_open(const struct tokenizer *t, int vocab);
void grammar_trie_close(struct grammar_trie *t);

struct grammar_matcher;                                          /* how far one text has come */
struct grammar_matcher *grammar_matcher_open(struct grammar *g); /* keeps g */
void grammar_matcher_close(struct grammar_matcher *m);
/* False, and nothing changes, where the bytes cannot follow. */
bool grammar_accept(struct grammar_matcher *m, const char *bytes, size_t n);
/* The same without going there. */
bool grammar_would_accept(struct grammar_matcher *m, const char *bytes, size_t n);
/* The text may end here; it must end here when nothing may follow. */
bool grammar_may_end(const struct grammar_matcher *m);
bool grammar_must_end(const struct grammar_matcher *m);
/* Bit t % 32 of word t / 32: token t may come next (tokens without bytes never). *any is false where none
 * may. Borrowed until the next call for any matcher of this grammar. */
const uint32_t *grammar_allowed(struct grammar_matcher *m, const struct grammar_trie *t, bool *any);

/* ---- as the service's hook: keeps g; trie and tokenizer are borrowed, eos (n_eos) is copied. The tokens of
 * eos may come where the text may end; nothing else has to know the grammar. */
struct constraint *grammar_constraint_open(struct grammar *g, const struct grammar_trie *trie,
                                           const struct tokenizer *tokenizer, const int32_t *eos, int n_eos);

#endif
