/* grammar_tool.c - drives runtime/jsonschema.h and grammar.h for tests/runtime/grammar_compare.py.
 *
 *   grammar_tool MODEL_DIR
 *
 * Each line of standard input is a JSON array:
 *   [schema or null, seed, samples, most tokens]   texts made by drawing allowed tokens at random; behind the
 *                                                  budget tokens that close something are preferred
 *   [schema or null, text]                         does the text pass?
 *   [schema or null, text, "time"]                 how long the mask behind the text takes
 * Answers, one line each: {"texts": [[bytes, ended], ...]}, {"passes": bool}, {"us", "again_us", "tokens"},
 * or {"refused": reason}. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/jsonschema.h"
#include "tests/runtime/random.h"

struct tool {
    struct tokenizer *tokenizer;
    struct grammar_trie *trie;
    int vocab;
    struct random random;
};

static bool allowed(const uint32_t *mask, int token) { return mask[token / 32] >> token % 32 & 1; }

/* A token of the mask: any, or near the end of the budget the best of several by how much it closes. */
static int draw(struct tool *t, const uint32_t *mask, bool hurry)
{
    int best = -1, best_score = -1000;
    static const char closers[] = "\"}]";
    for (int tries = 0; tries < 40 || best < 0; tries++) {
        int token = random_int(&t->random, 0, t->vocab - 1);
        if (tries > 400) { /* a sparse mask: from a random place on */
            while (!allowed(mask, token)) token = (token + 1) % t->vocab;
        }
        if (!allowed(mask, token)) continue;
        if (!hurry) return token;
        size_t n;
        const char *bytes = tokenizer_bytes(t->tokenizer, token, &n);
        int score = -(int)n;
        for (size_t i = 0; i < n; i++) score += strchr(closers, bytes[i]) ? 3 : 0;
        if (score > best_score) best = token, best_score = score;
    }
    for (int i = 0; hurry && i < 3; i++) {
        char one[2] = {closers[i], 0};
        for (int token = 0; token < t->vocab; token++) {
            size_t n;
            const char *bytes = allowed(mask, token) ? tokenizer_bytes(t->tokenizer, token, &n) : NULL;
            if (bytes && n == 1 && bytes[0] == one[0]) return token;
        }
    }
    return best;
}

static json_t *sample(struct tool *t, struct grammar *g, int most)
{
    struct grammar_matcher *m = grammar_matcher_open(g);
    struct buffer text = {0};
    bool ended = false;
    for (int n = 0; n < 4 * most && !ended; n++) {
        bool any;
        const uint32_t *mask = grammar_allowed(m, t->trie, &any);
        if (!any) {
            ASSERT(grammar_may_end(m));
            ended = true;
            break;
        }
        ASSERT(!grammar_must_end(m));
        if (grammar_may_end(m) && random_int(&t->random, 0, 2) == 0) {
            ended = true;
            break;
        }
        int token = draw(t, mask, n > most);
        size_t n_bytes;
        const char *bytes = tokenizer_bytes(t->tokenizer, token, &n_bytes);
        ASSERT(grammar_accept(m, bytes, n_bytes));
        buffer_append(&text, bytes, n_bytes);
    }
    grammar_matcher_close(m);
    /* The text may end within a character only where it did not end. */
    json_t *list = json_array();
    for (size_t i = 0; i < text.n; i++)
        json_array_append_new(list, json_integer((unsigned char)text.bytes[i]));
    buffer_free(&text);
    return json_pack("[ob]", list, ended);
}

/* Tokens whose mask says no must be refused by the automaton itself, and the reverse. */
static void compare_mask(struct tool *t, struct grammar *g)
{
    struct grammar_matcher *m = grammar_matcher_open(g);
    for (int step = 0; step < 6; step++) {
        bool any;
        const uint32_t *mask = grammar_allowed(m, t->trie, &any);
        uint32_t *copy = malloc(((size_t)t->vocab + 31) / 32 * sizeof *copy);
        memcpy(copy, mask, ((size_t)t->vocab + 31) / 32 * sizeof *copy);
        for (int token = random_int(&t->random, 0, 50); token < t->vocab;
             token += random_int(&t->random, 1, 100)) {
            size_t n;
            const char *bytes = tokenizer_bytes(t->tokenizer, token, &n);
            if (!bytes || n == 0) {
                ASSERT(!allowed(copy, token));
                continue;
            }
            ASSERT(grammar_would_accept(m, bytes, n) == allowed(copy, token));
        }
        if (any) {
            int token = draw(t, copy, false);
            size_t n;
            const char *bytes = tokenizer_bytes(t->tokenizer, token, &n);
            ASSERT(grammar_accept(m, bytes, n));
        }
        free(copy);
        if (!any) break;
    }
    grammar_matcher_close(m);
}

static json_t *time_mask(struct tool *t, struct grammar *g, const json_t *text)
{
    struct grammar_matcher *m = grammar_matcher_open(g);
    ASSERT(grammar_accept(m, json_string_value(text), json_string_length(text)));
    bool any;
    int n = 0;
    int64_t before = clock_us();
    grammar_allowed(m, t->trie, &any);
    int64_t between = clock_us();
    const uint32_t *mask = grammar_allowed(m, t->trie, &any);
    int64_t after = clock_us();
    for (int token = 0; token < t->vocab; token++) n += allowed(mask, token);
    grammar_matcher_close(m);
    return json_pack("{sIsIsi}", "us", (json_int_t)(between - before), "again_us",
                     (json_int_t)(after - between), "tokens", n);
}

static json_t *answer(struct tool *t, const json_t *ask)
{
    const json_t *schema = json_array_get(ask, 0);
    struct grammar *g;
    struct reason why;
    if (jsonschema_compile(&g, json_is_null(schema) ? NULL : schema, &why) != STATUS_OK)
        return json_pack("{ss}", "refused", why.text);
    json_t *out;
    if (json_array_size(ask) == 3) {
        out = time_mask(t, g, json_array_get(ask, 1));
    } else if (json_is_string(json_array_get(ask, 1))) {
        const json_t *text = json_array_get(ask, 1);
        struct grammar_matcher *m = grammar_matcher_open(g);
        bool passes =
            grammar_accept(m, json_string_value(text), json_string_length(text)) && grammar_may_end(m);
        grammar_matcher_close(m);
        out = json_pack("{sb}", "passes", passes);
    } else {
        json_t *texts = json_array();
        t->random.state = (uint64_t)json_integer_value(json_array_get(ask, 1)) * 2 + 1;
        for (int i = 0; i < (int)json_integer_value(json_array_get(ask, 2)); i++)
            json_array_append_new(texts, sample(t, g, (int)json_integer_value(json_array_get(ask, 3))));
        out = json_pack("{so}", "texts", texts);
        compare_mask(t, g);
    }
    grammar_drop(g);
    return out;
}

int main(int argc, char **argv)
{
    struct tool t = {.vocab = 0};
    struct reason why = {{0}};
    if (argc != 2 || tokenizer_open(&t.tokenizer, argv[1], &why) != STATUS_OK) {
        fprintf(stderr, "%s\n", why.text);
        return 2;
    }
    t.vocab = tokenizer_vocab_size(t.tokenizer);
    t.trie = grammar_trie_open(t.tokenizer, t.vocab);
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, stdin) > 0) {
        json_t *ask = json_loads(line, JSON_ALLOW_NUL, NULL), *out = answer(&t, ask);
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(out);
        json_decref(ask);
    }
    free(line);
    grammar_trie_close(t.trie);
    tokenizer_close(t.tokenizer);
    return 0;
}
