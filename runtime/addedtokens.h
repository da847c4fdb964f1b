/* addedtokens.h - the "added_tokens" of tokenizer.json: strings that are tokens wherever they stand in a
 * text.
 *
 * Tokens with "normalized": false are looked for in the text as given, the others, normalized themselves, in
 * what the normalizer made of the rest. A match is the leftmost, and the longest of those; single_word
 * discards it between word characters; lstrip and rstrip take the white space around it along. Ids come from
 * the model's vocabulary where the content is there and are dealt in file order behind it where it is not, as
 * the `tokenizers` package deals them. Refused: contents over ADDEDTOKENS_BYTES_MAX, two tokens of one list
 * that normalize alike, ids in the file that contradict the dealt ones. Immutable once made. */
#ifndef RETRO_ADDEDTOKENS_H
#define RETRO_ADDEDTOKENS_H

#include "runtime/fields.h"
#include "runtime/normalizer.h"
#include "runtime/pattern.h"
#include "runtime/vocab.h"

#define ADDEDTOKENS_BYTES_MAX 1024
#define ADDEDTOKENS_MAX 65536

struct addedtoken {
    char *content; /* owned, NUL-terminated */
    char *text;    /* as it is looked for and decoded: the normalized content; owned */
    size_t n_text;
    int id;
    bool special, single_word, lstrip, rstrip, normalized;
};

/* A byte trie; node 0 is the root, whose children `root` finds at once. */
struct addedtokens_node {
    int32_t child, sibling; /* -1 */
    int32_t token;          /* index of the token that ends here; -1 */
    uint8_t byte;
};
struct addedtokens_trie {
    struct addedtokens_node *nodes;
    int n_nodes, capacity;
    int32_t root[256];
};

struct addedtokens {
    struct addedtoken *tokens;
    int n_tokens;
    struct vocab contents; /* content -> index */
    struct addedtokens_trie raw, normalized;
    struct pattern word; /* one word character; compiled when a token has single_word */
};

/* `file` holds the field "added_tokens"; ids are found in and dealt behind `vocab`. */
enum status addedtokens_open(struct addedtokens *a, struct fields *file, const struct vocab *vocab,
                             const struct normalizer *normalizer);
void addedtokens_close(struct addedtokens *a);
/* The token with this content, or NULL. */
const struct addedtoken *addedtokens_find(const struct addedtokens *a, const char *content);

/* Walks text[0..n) from left to right. Each step yields the stretch before the next token (maybe empty) and
 * the token, or the last stretch and NULL. False behind the end. */
struct addedtokens_scan {
    const struct addedtokens *tokens;
    const struct addedtokens_trie *trie;
    struct pattern_scratch *match;
    const char *text;
    size_t n, search, done;
    bool finished;
};
struct addedtokens_scan addedtokens_scan_begin(const struct addedtokens *a, bool normalized,
                                               struct pattern_scratch *match, const char *text, size_t n);
bool addedtokens_scan_next(struct addedtokens_scan *s, size_t *start, size_t *end,
                           const struct addedtoken **token);

#endif
