/* addedtokens.c - reading added tokens and finding them in a text. */
#include "runtime/addedtokens.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/utf8.h"

/* ------------------------------------------------------------------------------------------ the trie */
static int32_t new_node(struct addedtokens_trie *t, uint8_t byte)
{
    if (t->n_nodes == t->capacity) {
        t->capacity += t->capacity / 2 + 64;
        t->nodes = buffer_realloc(t->nodes, (size_t)t->capacity, sizeof *t->nodes);
    }
    t->nodes[t->n_nodes] = (struct addedtokens_node){-1, -1, -1, byte};
    return t->n_nodes++;
}

static int32_t child_of(const struct addedtokens_trie *t, int32_t node, uint8_t byte)
{
    int32_t at = t->nodes[node].child;
    while (at >= 0 && t->nodes[at].byte != byte) at = t->nodes[at].sibling;
    return at;
}

/* False where the trie has the string already. */
static bool trie_add(struct addedtokens_trie *t, const char *s, size_t n, int32_t token)
{
    int32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t next = child_of(t, node, (uint8_t)s[i]);
        if (next < 0) {
            next = new_node(t, (uint8_t)s[i]);
            t->nodes[next].sibling = t->nodes[node].child;
            t->nodes[node].child = next;
            if (!node) t->root[(uint8_t)s[i]] = next;
        }
        node = next;
    }
    if (t->nodes[node].token >= 0) return false;
    t->nodes[node].token = token;
    return true;
}

static void trie_open(struct addedtokens_trie *t)
{
    memset(t->root, 0xff, sizeof t->root);
    new_node(t, 0);
}

/* Index of the longest token that begins at s; -1. */
static int32_t trie_match(const struct addedtokens_trie *t, const char *s, size_t n, size_t *length)
{
    int32_t found = -1, node = t->root[(uint8_t)s[0]];
    for (size_t i = 1; node >= 0; i++) {
        if (t->nodes[node].token >= 0) {
            found = t->nodes[node].token;
            *length = i;
        }
        if (i == n) break;
        node = child_of(t, node, (uint8_t)s[i]);
    }
    return found;
}

/* ------------------------------------------------------------------------------------------ reading */
static char *copy_bytes(const char *s, size_t n)
{
    struct buffer b = {0};
    buffer_append(&b, s, n);
    return buffer_take(&b);
}

static void read_token(struct addedtokens *a, struct fields *f, const struct vocab *vocab, int *next_id)
{
    const char *content = fields_string(f, "content", "");
    struct addedtoken token = {
        .special = fields_bool(f, "special", false),
        .single_word = fields_bool(f, "single_word", false),
        .lstrip = fields_bool(f, "lstrip", false),
        .rstrip = fields_bool(f, "rstrip", false),
        .normalized = fields_bool(f, "normalized", true),
    };
    int given = fields_int(f, "id", -1, 0, VOCAB_IDS_MAX - 1);
    size_t n = strlen(content);
    if (n > ADDEDTOKENS_BYTES_MAX)
        fields_fail(f, "content", "at most %d bytes are read", ADDEDTOKENS_BYTES_MAX);
    if (f->status != STATUS_OK || !n) return; /* the package ignores empty contents too */
    int index = vocab_find(&a->contents, content, n);
    if (index >= 0) { /* a second entry for the same string replaces the first one's properties */
        token.content = a->tokens[index].content;
        token.id = a->tokens[index].id;
        a->tokens[index] = token;
        return;
    }
    token.id = vocab_find(vocab, content, n);
    if (token.id < 0) token.id = (*next_id)++;
    if (given >= 0 && given != token.id)
        fields_fail(f, "id",
                    "the tokenizers package gives \"%.40s\" the id %d; correct the file or fetch it again",
                    content, token.id);
    if (token.id >= VOCAB_IDS_MAX)
        fields_fail(f, "content", "more ids than the %d that are read", VOCAB_IDS_MAX);
    if (f->status != STATUS_OK) return;
    token.content = copy_bytes(content, n);
    vocab_add(&a->contents, content, n, a->n_tokens);
    a->tokens[a->n_tokens++] = token;
}

static enum status normalize(struct addedtokens *a, const struct normalizer *normalizer, struct fields *file)
{
    struct normalizer_scratch scratch = {0};
    enum status status = STATUS_OK;
    for (int i = 0; i < a->n_tokens && status == STATUS_OK; i++) {
        struct addedtoken *token = &a->tokens[i];
        const char *text = token->content;
        size_t n = strlen(text);
        if (token->normalized) status = normalizer_run(normalizer, &scratch, text, n, &text, &n, file->why);
        if (status == STATUS_OK && (!n || n > 4 * ADDEDTOKENS_BYTES_MAX))
            status = status_fail(file->why, STATUS_BAD_MODEL,
                                 "%s: added_tokens: \"%.60s\" normalizes to %zu bytes: needs 1 to %d",
                                 file->file, token->content, n, 4 * ADDEDTOKENS_BYTES_MAX);
        if (status != STATUS_OK) break;
        token->text = copy_bytes(text, n);
        token->n_text = n;
        if (!trie_add(token->normalized ? &a->normalized : &a->raw, text, n, i))
            status = status_fail(
                file->why, STATUS_BAD_MODEL,
                "%s: added_tokens: \"%.60s\" normalizes to the same text as another one: remove one",
                file->file, token->content);
    }
    normalizer_scratch_free(&scratch);
    return status;
}

enum status addedtokens_open(struct addedtokens *a, struct fields *file, const struct vocab *vocab,
                             const struct normalizer *normalizer)
{
    *a = (struct addedtokens){0};
    trie_open(&a->raw);
    trie_open(&a->normalized);
    vocab_open(&a->contents);
    const json_t *list = fields_get(file, "added_tokens");
    if (list && (!json_is_array(list) || json_array_size(list) > ADDEDTOKENS_MAX))
        fields_fail(file, "added_tokens", "needs an array of at most %d tokens", ADDEDTOKENS_MAX);
    if (file->status != STATUS_OK) return file->status;
    size_t n = json_array_size(list);
    a->tokens = buffer_zeroed(n, sizeof *a->tokens);
    int next_id = vocab->n_tokens;
    bool single_word = false;
    for (size_t i = 0; i < n && file->status == STATUS_OK; i++) {
        struct fields f = {
            .object = json_array_get(list, i), .file = file->file, .path = "added_tokens.", .why = file->why};
        if (!json_is_object(f.object)) fields_fail(file, "added_tokens", "needs objects");
        else read_token(a, &f, vocab, &next_id);
        if (f.status != STATUS_OK) file->status = f.status;
    }
    for (int i = 0; i < a->n_tokens; i++) single_word |= a->tokens[i].single_word;
    if (file->status == STATUS_OK) file->status = normalize(a, normalizer, file);
    /* \w of Rust's regex crate, which the package asks here: Unicode Technical Standard 18, annex C. */
    if (file->status == STATUS_OK && single_word)
        file->status = pattern_regex(&a->word, "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]",
                                     "added_tokens.single_word", file->why);
    return file->status;
}

void addedtokens_close(struct addedtokens *a)
{
    for (int i = 0; i < a->n_tokens; i++) {
        free(a->tokens[i].content);
        free(a->tokens[i].text);
    }
    free(a->tokens);
    vocab_close(&a->contents);
    free(a->raw.nodes);
    free(a->normalized.nodes);
    pattern_free(&a->word);
    *a = (struct addedtokens){0};
}

const struct addedtoken *addedtokens_find(const struct addedtokens *a, const char *content)
{
    int index = vocab_find(&a->contents, content, strlen(content));
    return index < 0 ? NULL : &a->tokens[index];
}

/* ------------------------------------------------------------------------------------------ finding */
struct addedtokens_scan addedtokens_scan_begin(const struct addedtokens *a, bool normalized,
                                               struct pattern_scratch *match, const char *text, size_t n)
{
    return (struct addedtokens_scan){
        .tokens = a, .trie = normalized ? &a->normalized : &a->raw, .match = match, .text = text, .n = n};
}

static bool is_word(const struct addedtokens_scan *s, size_t from, size_t to)
{
    size_t start, end;
    struct pattern_scan scan = pattern_scan_begin(&s->tokens->word, s->match, s->text + from, to - from);
    return pattern_scan_next(&scan, &start, &end, NULL);
}

static bool stands_alone(const struct addedtokens_scan *s, size_t start, size_t end)
{
    if (start && is_word(s, utf8_previous(s->text, start), start)) return false;
    if (end == s->n) return true;
    size_t behind = end;
    utf8_next(s->text, &behind);
    return !is_word(s, end, behind);
}

bool addedtokens_scan_next(struct addedtokens_scan *s, size_t *start, size_t *end,
                           const struct addedtoken **token)
{
    if (s->finished) return false;
    size_t length = 0;
    while (s->search < s->n) {
        size_t at = s->search;
        int32_t found = s->trie->root[(uint8_t)s->text[at]] < 0
                            ? -1
                            : trie_match(s->trie, s->text + at, s->n - at, &length);
        if (found < 0) {
            s->search++;
            continue;
        }
        size_t stop = s->search =
            at + length; /* rstrip does not move the search on: the package's does not either */
        const struct addedtoken *t = &s->tokens->tokens[found];
        if (t->single_word && !stands_alone(s, at, stop)) continue;
        if (t->lstrip) {
            while (at > s->done) {
                size_t previous = utf8_previous(s->text, at), next = previous;
                if (!utf8_is_space(utf8_next(s->text, &next))) break;
                at = previous;
            }
            if (at < s->done) at = s->done;
        }
        while (t->rstrip && stop < s->n) {
            size_t next = stop;
            if (!utf8_is_space(utf8_next(s->text, &next))) break;
            stop = next;
        }
        *start = s->done;
        *end = at > s->done ? at : s->done;
        *token = t;
        s->done = stop;
        if (at < stop) return true; /* else the token before it has taken all of it */
    }
    s->finished = true;
    *start = s->done;
    *end = s->n;
    *token = NULL;
    return true;
}
