/* fuzz_grammar.c - libFuzzer target: any JSON as a schema; where it compiles, texts are made by drawing allowed tokens.
 *
 * Held: nothing crashes, leaks or takes long; a refusal is one line; what the mask allows the automaton accepts, and the
 * reverse; a text that may end is UTF-8 and JSON. The first byte chooses the draws. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/jsonschema.h"
#include "runtime/utf8.h"
#include "tests/runtime/bytes_tokenizer.h"
#include "tests/runtime/random.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *tokenizer;
static struct grammar_trie *trie;

static void check_text(const struct buffer *text)
{
    ASSERT(utf8_valid_prefix(text->bytes, text->n) == text->n);
    json_error_t at;
    json_t *value = json_loadb(text->bytes, text->n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &at);
    ASSERT(value ||
           strstr(at.text, "too big")); /* integers of 15 digits and doubles fit; names may be long */
    json_decref(value);
}

static void draw(struct grammar *g, struct random *r)
{
    struct grammar_matcher *m = grammar_matcher_open(g);
    struct buffer text = {0};
    for (int step = 0; step < 40; step++) {
        bool any;
        uint32_t mask[(BYTES_TOKENIZER_VOCAB + 31) / 32];
        memcpy(mask, grammar_allowed(m, trie, &any), sizeof mask);
        if (grammar_may_end(m) && text.n) check_text(&text);
        if (!any) break;
        int token = random_int(r, 0, BYTES_TOKENIZER_VOCAB - 1);
        while (!(mask[token / 32] >> token % 32 & 1)) token = (token + 1) % BYTES_TOKENIZER_VOCAB;
        int other = random_int(r, 0, BYTES_TOKENIZER_VOCAB - 2);
        size_t n;
        const char *bytes = tokenizer_bytes(tokenizer, other, &n);
        ASSERT(grammar_would_accept(m, bytes, n) == (mask[other / 32] >> other % 32 & 1));
        bytes = tokenizer_bytes(tokenizer, token, &n);
        ASSERT(grammar_accept(m, bytes, n));
        buffer_append(&text, bytes, n);
    }
    buffer_free(&text);
    grammar_matcher_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!tokenizer) {
        tokenizer = bytes_tokenizer_open();
        ASSERT(tokenizer);
        trie = grammar_trie_open(tokenizer, BYTES_TOKENIZER_VOCAB);
    }
    if (size < 2) return 0;
    json_t *schema = json_loadb((const char *)data + 1, size - 1, JSON_DECODE_ANY, NULL);
    if (!schema) return 0;
    struct grammar *g;
    struct reason why = {{0}};
    struct random r = {data[0] + 1u};
    if (jsonschema_compile(&g, schema, &why) == STATUS_OK) {
        draw(g, &r);
        draw(g, &r);
        grammar_drop(g);
    } else {
        ASSERT(why.text[0] && !strchr(why.text, '\n'));
    }
    json_decref(schema);
    return 0;
}
