/* test_grammar.c - schemas as automata over a vocabulary of bytes: masks against trying every token, matchers that live
 * through a trim, the constraint that the service sees, and schemas made to be expensive. What passes and what does not
 * is compared with Python in grammar_compare.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "runtime/base/clock.h"
#include "runtime/grammar_parts.h"
#include "runtime/jsonschema.h"
#include "tests/runtime/bytes_tokenizer.h"
#include "tests/runtime/random.h"

static struct tokenizer *tokenizer;
static struct grammar_trie *trie;

static struct grammar *compile(const char *text)
{
    struct reason why = {{0}};
    struct grammar *g = NULL;
    json_t *schema = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(schema);
    if (jsonschema_compile(&g, schema, &why) != STATUS_OK) fail_msg("%s: %s", text, why.text);
    json_decref(schema);
    return g;
}

static bool may(const uint32_t *mask, int token) { return mask[token / 32] >> token % 32 & 1; }

/* Every token of the vocabulary, one by one. */
static void check_mask(struct grammar_matcher *m)
{
    bool any, found = false;
    uint32_t mask[(BYTES_TOKENIZER_VOCAB + 31) / 32];
    memcpy(mask, grammar_allowed(m, trie, &any), sizeof mask);
    for (int token = 0; token < BYTES_TOKENIZER_VOCAB; token++) {
        size_t n;
        const char *bytes = tokenizer_bytes(tokenizer, token, &n);
        bool right = bytes && n > 0 && grammar_would_accept(m, bytes, n);
        if (may(mask, token) != right) fail_msg("token %d: mask says %d", token, !right);
        found |= right;
    }
    assert_int_equal(any, found);
}

static void masks_are_what_can_follow(void **state)
{
    (void)state;
    static const char *const schemas[] = {
        ("{\"properties\": {\"ab\": {\"type\": \"integer\"}, \"c\": {\"enum\": [\"ab\", \"b\"]}}, "
         "\"required\": [\"ab\"]}"),
        "{\"type\": \"string\", \"maxLength\": 3}",
        "{\"type\": \"array\", \"items\": {\"type\": [\"number\", \"null\"]}}",
        "{}",
    };
    struct random r = {7};
    for (size_t i = 0; i < sizeof schemas / sizeof *schemas; i++) {
        struct grammar *g = compile(schemas[i]);
        for (int text = 0; text < 20; text++) {
            struct grammar_matcher *m = grammar_matcher_open(g);
            for (int step = 0; step < 15 && !grammar_must_end(m); step++) {
                check_mask(m);
                bool any;
                const uint32_t *mask = grammar_allowed(m, trie, &any);
                int token = random_int(&r, 0, BYTES_TOKENIZER_VOCAB - 1);
                while (!may(mask, token)) token = (token + 1) % BYTES_TOKENIZER_VOCAB;
                size_t n;
                const char *bytes = tokenizer_bytes(tokenizer, token, &n);
                assert_true(grammar_accept(m, bytes, n));
            }
            grammar_matcher_close(m);
        }
        grammar_drop(g);
    }
}

/* Every character of a long string is a configuration of its own: the first ones are forgotten on the way, and a matcher
 * that stands there goes on as before. */
static void matchers_survive_a_trim(void **state)
{
    (void)state;
    struct grammar *g = compile("{\"type\": \"string\", \"minLength\": 11000, \"maxLength\": 12000}");
    struct grammar_matcher *early = grammar_matcher_open(g), *late = grammar_matcher_open(g);
    assert_true(grammar_accept(early, "\"0123456789", 11));
    assert_true(grammar_accept(late, "\"", 1));
    size_t most = 0;
    for (int i = 0; i < 11500; i++) {
        assert_true(grammar_accept(late, "x", 1));
        if (i % 10 == 0) {
            bool any;
            grammar_allowed(late, trie, &any);
            assert_true(any);
        }
        if (g->run.n_configs > most) most = g->run.n_configs;
    }
    assert_true(most > 1000 && most < 6000);
    assert_false(grammar_would_accept(early, "\"", 1)); /* 10 of 11000 */
    for (int i = 10; i < 11000; i++) assert_true(grammar_accept(early, "y", 1));
    assert_true(grammar_accept(early, "\"", 1) && grammar_must_end(early));
    assert_true(grammar_accept(late, "\"", 1) && grammar_may_end(late));
    grammar_matcher_close(early);
    grammar_matcher_close(late);
    grammar_drop(g);
}

static void the_service_sees_a_constraint(void **state)
{
    (void)state;
    static const int32_t eos[] = {BYTES_TOKENIZER_END};
    struct grammar *g = compile("{\"enum\": [1, 12]}");
    struct constraint *c = grammar_constraint_open(g, trie, tokenizer, eos, 1), *other = c->table->clone(c);
    grammar_drop(g); /* the constraints keep it */
    uint32_t mask[(BYTES_TOKENIZER_VOCAB + 31) / 32];
    assert_true(c->table->fill(c, mask, BYTES_TOKENIZER_VOCAB));
    assert_true(may(mask, '1') && !may(mask, '2') && !may(mask, BYTES_TOKENIZER_END));
    c->table->accept(c, '1');
    assert_true(c->table->fill(c, mask, BYTES_TOKENIZER_VOCAB));
    assert_true(!may(mask, '1') && may(mask, '2') && may(mask, BYTES_TOKENIZER_END));
    c->table->accept(c, '2');
    assert_false(c->table->fill(c, mask, BYTES_TOKENIZER_VOCAB)); /* nothing may follow */
    assert_true(other->table->fill(other, mask, BYTES_TOKENIZER_VOCAB) && may(mask, '1') && !may(mask, '2'));
    c->table->free(c);
    other->table->free(other);
}

/* Large or twisted schemas are refused or compiled, but never in more than moments. */
static void expensive_schemas_end_soon(void **state)
{
    (void)state;
    struct reason why;
    for (int kind = 0; kind < 5; kind++) {
        json_t *s = json_object();
        json_t *inner = json_object();
        json_object_set_new(s, "properties", inner);
        for (int i = 0; i < 900; i++) {
            char name[32], ref[48];
            snprintf(name, sizeof name, "p%d", i);
            snprintf(ref, sizeof ref, "#/properties/p%d", (i * 7 + 1) % 900);
            json_t *p =
                kind == 0   ? json_pack("{ss, si, si}", "type", "number", "minimum", -i, "maximum", 999999999)
                : kind == 1 ? json_pack("{s[{ss}, {ss}]}", "anyOf", "$ref", ref, "type", "null")
                : kind == 2 ? json_pack("{ss}", "pattern", "^(a{0,50}b{0,50}){0,50}$")
                : kind == 3 ? json_pack("{ss, si}", "type", "string", "maxLength", 100000)
                            : json_pack("{s{s{ss}}, s[s]}", "properties", "x", "$ref", ref, "required", "x");
            json_object_set_new(inner, name, p);
        }
        struct grammar *g = NULL;
        int64_t began = clock_us();
        if (jsonschema_compile(&g, s, &why) == STATUS_OK) {
            struct grammar_matcher *m = grammar_matcher_open(g);
            bool any;
            grammar_allowed(m, trie, &any);
            grammar_matcher_close(m);
            grammar_drop(g);
        } else {
            assert_true(why.text[0]);
        }
        int64_t took = clock_us() - began;
        if (took > 20000000) fail_msg("kind %d took %.1f s", kind, (double)took * 1e-6);
        json_decref(s);
    }
}

static int open_all(void **state)
{
    (void)state;
    tokenizer = bytes_tokenizer_open();
    if (tokenizer) trie = grammar_trie_open(tokenizer, BYTES_TOKENIZER_VOCAB);
    return trie ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    grammar_trie_close(trie);
    tokenizer_close(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masks_are_what_can_follow),
        cmocka_unit_test(matchers_survive_a_trim),
        cmocka_unit_test(the_service_sees_a_constraint),
        cmocka_unit_test(expensive_schemas_end_soon),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
