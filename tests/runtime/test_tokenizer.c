/* test_tokenizer.c - small tokenizers written out here, one property at a time; what equals the `tokenizers`
 * package on whole corpora is in tokenizer_compare.py. Ids below are worked out by hand from the merges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/bpe.h"
#include "runtime/normalizer.h"
#include "runtime/tokenizer.h"
#include "runtime/utf8.h"
#include "runtime/vocab.h"

/* A tokenizer.json from its parts; NULL parts are null. */
static char *json_of(const char *added, const char *normalizer, const char *pre, const char *post,
                     const char *decoder, const char *model)
{
    char *text = malloc(1 << 16);
    snprintf(
        text, 1 << 16,
        "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":%s,\"normalizer\":%s,"
        "\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,\"model\":%s}",
        added ? added : "[]", normalizer ? normalizer : "null", pre ? pre : "null", post ? post : "null",
        decoder ? decoder : "null", model);
    return text;
}

static struct tokenizer *parse(char *json)
{
    struct tokenizer *t;
    struct reason why = {{0}};
    if (tokenizer_parse(&t, json, strlen(json), &why) != STATUS_OK) fail_msg("%s", why.text);
    free(json);
    return t;
}

static void expect_ids(const struct tokenizer *t, const char *text, bool special, int n, const int32_t *want)
{
    struct token_list ids = {0};
    struct reason why = {{0}};
    assert_int_equal(tokenizer_encode(t, text, strlen(text), special, &ids, &why), STATUS_OK);
    assert_int_equal(ids.n_ids, n);
    for (int i = 0; i < n; i++) assert_int_equal(ids.ids[i], want[i]);
    token_list_free(&ids);
}
#define IDS(...)                                                                                             \
    (int)(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)), (int32_t[]) { __VA_ARGS__ }

static void expect_text(const struct tokenizer *t, bool skip, const char *want, int n, const int32_t *ids)
{
    struct reason why = {{0}};
    char *text;
    size_t bytes, at = 0, got;
    assert_int_equal(tokenizer_decode(t, ids, (size_t)n, skip, &text, &bytes, &why), STATUS_OK);
    assert_string_equal(text, want);
    assert_int_equal(bytes, strlen(want));
    struct token_stream *s = token_stream_open(t, skip);
    for (int i = 0; i <= n; i++) {
        const char *piece = i < n ? token_stream_push(s, ids[i], &got) : token_stream_flush(s, &got);
        assert_int_equal(utf8_valid_prefix(piece, got), got);
        assert_true(at + got <= bytes && !memcmp(text + at, piece, got));
        at += got;
    }
    assert_int_equal(at, bytes);
    token_stream_close(s);
    free(text);
}

#define BYTE_LEVEL                                                                                           \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"
/* Ġ is a blank; Ã ¦ Ĺ ¥ are the bytes c3, a6, 97, a5 ("æ" is e6). */
#define BYTE_MODEL                                                                                           \
    "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"\xc4\xa0\":3,\"\xc3\xa6\":4,\"\xc4\xb9\":5,"     \
    "\"\xc2\xa5\":6,"                                                                                        \
    "\"ab\":7,\"abc\":8,\"\xc4\xa0"                                                                          \
    "a\":9,\"aa\":10,\"\xc3\xa6\xc4\xb9\":11,\"bc\":12},"                                                    \
    "\"merges\":[\"a b\",[\"ab\",\"c\"],\"\xc4\xa0 a\",\"a a\",[\"\xc3\xa6\",\"\xc4\xb9\"],\"b c\"]%s}"

static struct tokenizer *byte_level(const char *added, const char *more)
{
    char model[2048];
    snprintf(model, sizeof model, BYTE_MODEL, more);
    return parse(json_of(added, NULL, BYTE_LEVEL, NULL, BYTE_LEVEL, model));
}

/* ------------------------------------------------------------------------------------------ merging */
static void lowest_rank_merges_first_and_leftmost_at_a_tie(void **state)
{
    (void)state;
    struct tokenizer *t = byte_level(NULL, "");
    expect_ids(t, "abc", false, IDS(8));        /* ab, then abc; bc ranks lower and never happens */
    expect_ids(t, "aaa", false, IDS(10, 0));    /* the left pair of two equal ones */
    expect_ids(t, "aab", false, IDS(0, 7));     /* a b before a a */
    expect_ids(t, "a ab", false, IDS(0, 3, 7)); /* "Ġab": ab ranks before Ġa */
    expect_ids(t, "", false, 0, NULL);
    expect_ids(t, "xyz", false, 0, NULL); /* no token, no unknown token: dropped, as the package does */
    tokenizer_close(t);
}

static void ignore_merges_takes_a_word_that_is_a_token(void **state)
{
    (void)state;
    struct tokenizer *t = byte_level(NULL, ",\"ignore_merges\":true");
    expect_ids(t, "bc", false, IDS(12));
    expect_ids(t, "aabc", false, IDS(0, 8));
    tokenizer_close(t);
}

/* The plain definition: merge the best pair of the whole word, again and again. */
static size_t merge_naively(const struct bpe *b, int32_t *ids, size_t n)
{
    for (;;) {
        size_t best = n;
        const struct bpe_merge *best_merge = NULL;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t s = 0; s < b->n_slots; s++)
                if (b->merges[s].left == ids[i] && b->merges[s].right == ids[i + 1] &&
                    (!best_merge || b->merges[s].rank < best_merge->rank)) {
                    best = i;
                    best_merge = &b->merges[s];
                }
        if (!best_merge) return n;
        ids[best] = best_merge->merged;
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
    }
}

/* Random merges over an alphabet of 4 in random order; words short (array) and long (heap). */
static void both_ways_of_merging_equal_the_definition(void **state)
{
    (void)state;
    srand(5);
    for (int round = 0; round < 60; round++) {
        json_t *vocab = json_object(), *merges = json_array();
        char tokens[64][32];
        int n_tokens = 4;
        for (int i = 0; i < 4; i++) {
            snprintf(tokens[i], sizeof tokens[i], "%c", 'a' + i);
            json_object_set_new(vocab, tokens[i], json_integer(i));
        }
        for (int k = 0; k < 40; k++) {
            const char *left = tokens[rand() % n_tokens], *right = tokens[rand() % n_tokens];
            char joined[64];
            snprintf(joined, sizeof joined, "%s%s", left, right);
            if (strlen(joined) > 12) continue;
            if (!json_object_get(vocab, joined)) {
                json_object_set_new(vocab, joined, json_integer(n_tokens));
                snprintf(tokens[n_tokens++], sizeof tokens[0], "%.31s", joined);
            }
            json_array_append_new(merges, json_pack("[ss]", left, right));
        }
        json_t *model = json_pack("{soso}", "vocab", vocab, "merges", merges);
        struct reason why;
        struct fields f = {.object = model, .file = "test", .path = "model.", .why = &why};
        struct bpe b;
        assert_int_equal(bpe_open(&b, &f), STATUS_OK);
        struct bpe_scratch scratch = {0};
        for (int k = 0; k < 40; k++) {
            char word[200];
            int32_t want[200];
            size_t n = 1 + (size_t)rand() % (k % 2 ? 199 : 12);
            for (size_t i = 0; i < n; i++) want[i] = (word[i] = (char)('a' + rand() % 4)) - 'a';
            size_t n_want = merge_naively(&b, want, n);
            struct token_list got = {0};
            assert_int_equal(bpe_encode(&b, &scratch, word, n, &got, &why), STATUS_OK);
            assert_int_equal(got.n_ids, n_want);
            assert_memory_equal(got.ids, want, n_want * sizeof *want);
            token_list_free(&got);
        }
        bpe_scratch_free(&scratch);
        bpe_close(&b);
        json_decref(model);
    }
}

static void the_byte_alphabet_is_a_bijection(void **state)
{
    (void)state;
    for (int byte = 0; byte < 256; byte++) {
        uint32_t c = bpe_byte_char((uint8_t)byte);
        assert_int_equal(bpe_char_byte(c), byte);
        if (byte > 32 && byte < 127) assert_int_equal(c, byte);
    }
    assert_int_equal(bpe_byte_char(' '), 0x120);  /* Ġ */
    assert_int_equal(bpe_byte_char('\n'), 0x10a); /* Ċ */
    assert_int_equal(bpe_char_byte(0x144), -1);
    assert_int_equal(bpe_char_byte(' '), -1);
}

/* ------------------------------------------------------------------------------------------ added tokens */
#define TOKEN(id, content, more)                                                                             \
    "{\"id\":" #id ",\"content\":\"" content "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"   \
    "\"normalized\":false,\"special\":true" more "}"

static void added_tokens_are_found_anywhere_and_the_longest_wins(void **state)
{
    (void)state;
    struct tokenizer *t =
        byte_level("[" TOKEN(13, "<s>", "") "," TOKEN(14, "<s>x", "") "," TOKEN(1, "b", "") "]", "");
    expect_ids(t, "a<s>xa<s>", false, IDS(0, 14, 0, 13));
    expect_ids(t, "<s", false, 0, NULL);
    expect_ids(t, "abc", false, IDS(0, 1, 2)); /* a token cuts a merge */
    tokenizer_close(t);
}

static void ids_come_from_the_vocabulary_or_behind_it(void **state)
{
    (void)state;
    struct tokenizer *t = byte_level("[" TOKEN(7, "ab", "") "," TOKEN(13, "<s>", "") "]", "");
    assert_int_equal(tokenizer_id(t, "ab"), 7);
    assert_int_equal(tokenizer_id(t, "<s>"), 13);
    assert_int_equal(tokenizer_id(t, "nothing"), -1);
    assert_int_equal(tokenizer_vocab_size(t), 14);
    assert_true(tokenizer_is_special(t, 7));
    assert_false(tokenizer_is_special(t, 8));
    assert_false(tokenizer_is_special(t, -1));
    assert_false(tokenizer_is_special(t, 14));
    size_t n;
    assert_null(tokenizer_bytes(t, 13, &n));
    assert_null(tokenizer_bytes(t, 99, &n));
    assert_memory_equal(tokenizer_bytes(t, 9, &n), " a", 2);
    assert_int_equal(n, 2);
    assert_memory_equal(tokenizer_bytes(t, 4, &n), "\xe6", 1);
    assert_int_equal(n, 1);
    tokenizer_close(t);
}

/* The options as JSON, spelt out because a key given twice is refused. */
static void stripping_and_single_words(void **state)
{
    (void)state;
    const char *added =
        "[{\"id\":13,\"content\":\"<l>\",\"lstrip\":true,\"normalized\":false,\"special\":true},"
        "{\"id\":14,\"content\":\"<r>\",\"rstrip\":true,\"normalized\":false,\"special\":true},"
        "{\"id\":15,\"content\":\"zz\",\"single_word\":true,\"normalized\":false,\"special\":false}]";
    struct tokenizer *t = byte_level(added, "");
    expect_ids(t, "a \t\xe3\x80\x80<l> a", false, IDS(0, 13, 9));
    expect_ids(t, "a <r> \n a", false, IDS(0, 3, 14, 0));
    expect_ids(t, "zz azz", false, IDS(15, 9));
    expect_ids(t, "\xc3\xa9zz -zz.", false, IDS(3, 15)); /* é is a word character and no token here */
    expect_text(t, true, "zz", IDS(13, 15));             /* zz is not special */
    tokenizer_close(t);
}

/* As in the package: what a token has stripped can be another one unless that one strips to its left, too. */
static void what_was_stripped_may_be_a_token(void **state)
{
    (void)state;
    static const char *const added[] = {
        "[{\"id\":13,\"content\":\"xx\",\"rstrip\":true,\"normalized\":false},"
        "{\"id\":14,\"content\":\"\\n\\n\",\"rstrip\":true,\"normalized\":false}]",
        "[{\"id\":13,\"content\":\"xx\",\"rstrip\":true,\"normalized\":false},"
        "{\"id\":14,\"content\":\"\\n\\n\",\"lstrip\":true,\"rstrip\":true,\"normalized\":false}]",
    };
    struct tokenizer *t = byte_level(added[0], "");
    expect_ids(t, "axx\n\n\n\na", false, IDS(0, 13, 14, 14, 0));
    tokenizer_close(t);
    t = byte_level(added[1], "");
    expect_ids(t, "axx\n\n\n\na", false, IDS(0, 13, 0));
    expect_ids(t, "a \n\n\n\na", false, IDS(0, 14, 0));
    tokenizer_close(t);
}

/* ------------------------------------------------------------------------------------------ decoding */
static void half_characters_wait(void **state)
{
    (void)state;
    struct tokenizer *t = byte_level("[" TOKEN(13, "<s>", "") "]", "");
    struct token_stream *s = token_stream_open(t, false);
    size_t n;
    assert_string_equal(token_stream_push(s, 4, &n), "");
    assert_string_equal(token_stream_push(s, 5, &n), "");
    assert_string_equal(token_stream_push(s, 6, &n), "\xe6\x97\xa5");
    assert_int_equal(n, 3);
    assert_string_equal(token_stream_push(s, 11, &n), "");
    assert_string_equal(token_stream_push(s, 0, &n), "\xef\xbf\xbd"
                                                     "a"); /* one U+FFFD for the unfinished one */
    assert_string_equal(token_stream_push(s, 4, &n), "");
    assert_string_equal(token_stream_push(s, 1000, &n), ""); /* outside the vocabulary: no text */
    assert_string_equal(token_stream_flush(s, &n), "\xef\xbf\xbd");
    assert_string_equal(token_stream_flush(s, &n), "");
    token_stream_close(s);
    token_stream_close(NULL);
    expect_text(t, false, "\xef\xbf\xbd\xef\xbf\xbd<s>\xe6\x97\xa5", IDS(6, 4, 13, 11, 6));
    expect_text(t, true, "\xef\xbf\xbd\xe6\x97\xa5", IDS(6, 13, 11, 6));
    tokenizer_close(t);
}

#define PIECES                                                                                               \
    "{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":%s,\"vocab\":{\"<unk>\":" \
    "0,"                                                                                                     \
    "\"<0xE6>\":1,\"<0x97>\":2,\"<0xA5>\":3,\"\xe2\x96\x81\":4,\"a\":5,\"\xe2\x96\x81"                       \
    "a\":6,\"b\":7},"                                                                                        \
    "\"merges\":[[\"\xe2\x96\x81\",\"a\"]]}"
#define PREPEND                                                                                              \
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"},{\"type\":" \
    "\"Replace\","                                                                                           \
    "\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}]}"
#define PIECE_DECODER                                                                                        \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},"  \
    "\"content\":"                                                                                           \
    "\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "             \
    "\",\"start\":1,"                                                                                        \
    "\"stop\":0}]}"
#define TEMPLATE                                                                                             \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<unk>\",\"type_id\":0}},{"     \
    "\"Sequence\":"                                                                                          \
    "{\"id\":\"A\",\"type_id\":0}},{\"SpecialToken\":{\"id\":\"b\",\"type_id\":0}}],\"pair\":[],\"special_"  \
    "tokens\":"                                                                                              \
    "{\"<unk>\":{\"id\":\"<unk>\",\"ids\":[0],\"tokens\":[\"<unk>\"]},\"b\":{\"id\":\"b\",\"ids\":[7,5],"    \
    "\"tokens\":[]}}}"

static struct tokenizer *pieces(const char *fallback)
{
    char model[1024];
    snprintf(model, sizeof model, PIECES, fallback);
    return parse(json_of(NULL, PREPEND, NULL, TEMPLATE, PIECE_DECODER, model));
}

static void pieces_fall_back_to_bytes(void **state)
{
    (void)state;
    struct tokenizer *t = pieces("true");
    expect_ids(t,
               "a \xe6\x97\xa5"
               "b",
               false, IDS(6, 4, 1, 2, 3, 7));
    expect_ids(t, "a", true, IDS(0, 6, 7, 5)); /* the template around it */
    expect_ids(t, "xy", false, IDS(4, 0));     /* fused unknown */
    expect_text(t, false,
                "a \xe6\x97\xa5"
                "b",
                IDS(6, 4, 1, 2, 3, 7));
    expect_text(t, false, " a", IDS(4, 6)); /* only the first blank goes */
    /* A run of byte tokens is one text: one too many spoils them all. */
    expect_text(t, false,
                "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                "b",
                IDS(1, 2, 3, 1, 7));
    size_t n;
    assert_memory_equal(tokenizer_bytes(t, 6, &n), " a", 2);
    assert_memory_equal(tokenizer_bytes(t, 1, &n), "\xe6", 1);
    assert_int_equal(n, 1);
    tokenizer_close(t);
    t = pieces("false");
    expect_ids(t,
               "\xe6\x97\xa5"
               "ab",
               false, IDS(4, 0, 5, 7));
    tokenizer_close(t);
}

/* ------------------------------------------------------------------------------------------ bad input */
static void bad_input_is_refused(void **state)
{
    (void)state;
    struct tokenizer *t = byte_level(NULL, "");
    struct reason why;
    struct token_list ids = {0};
    token_list_push(&ids, 42);
    assert_int_equal(tokenizer_encode(t, "ab\xff", 3, false, &ids, &why), STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "byte 2 is 0xff"));
    assert_int_equal(tokenizer_encode(t, "\xed\xa0\x80", 3, false, &ids, &why),
                     STATUS_BAD_INPUT); /* a surrogate */
    assert_int_equal(tokenizer_encode(t, "\xc0\x80", 2, false, &ids, &why), STATUS_BAD_INPUT); /* overlong */
    assert_int_equal(tokenizer_encode(t, "\xe6\x97", 2, false, &ids, &why), STATUS_BAD_INPUT); /* cut */
    assert_int_equal(ids.n_ids, 1); /* a list keeps what it had */
    token_list_free(&ids);
    char *text;
    size_t n;
    assert_int_equal(tokenizer_decode(t, (int32_t[]){0, 13}, 2, false, &text, &n, &why), STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "id 13 at position 1"));
    assert_int_equal(tokenizer_decode(t, (int32_t[]){-1}, 1, false, &text, &n, &why), STATUS_BAD_INPUT);
    assert_null(text);
    tokenizer_close(t);
}

static void bad_files_are_refused_by_name(void **state)
{
    (void)state;
#define MODEL(vocab, merges) "{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"
    static const struct {
        const char *added, *normalizer, *pre, *post, *decoder, *model, *says;
    } bad[] = {
        {.model = "null", .says = "model"},
        {.model = MODEL("{}", "[]"), .says = "vocab"},
        {.model = MODEL("{\"a\":0,\"b\":0}", "[]"), .says = "\"b\""},
        {.model = MODEL("{\"a\":-1}", "[]"), .says = "vocab"},
        {.model = MODEL("{\"a\":1.0}", "[]"), .says = "vocab"},
        {.model = MODEL("{\"a\":99999999}", "[]"), .says = "99999999"},
        {.model = MODEL("{\"a\":0}", "{}"), .says = "merges"},
        {.model = MODEL("{\"a\":0}", "[\"a a\"]"), .says = "merges[0]"},
        {.model = MODEL("{\"a\":0,\"aa\":1}", "[\"a a\",\"aa\"]"), .says = "merges[1]"},
        {.model = MODEL("{\"a\":0,\"aa\":1}", "[[\"a\",5]]"), .says = "merges[0]"},
        {.model = MODEL("{\"a\":0}", "[]"), .added = "{}", .says = "added_tokens"},
        {.model = MODEL("{\"a\":0}", "[]"), .added = "[5]", .says = "added_tokens"},
        {.model = MODEL("{\"a\":0}", "[]"), .added = "[{\"id\":7,\"content\":\"x\"}]", .says = "id"},
        {.model = MODEL("{\"a\":0}", "[]"), .normalizer = "{\"type\":\"NFKC\"}", .says = "normalizer.type"},
        {.model = MODEL("{\"a\":0}", "[]"), .normalizer = "5", .says = "normalizer"},
        {.model = MODEL("{\"a\":0}", "[]"),
         .pre = "{\"type\":\"Punctuation\"}",
         .says = "pre_tokenizer.type"},
        {.model = MODEL("{\"a\":0}", "[]"), .pre = "{}", .says = "pre_tokenizer.type"},
        {.model = MODEL("{\"a\":0}", "[]"),
         .pre =
             "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\",\"invert\":false}",
         .says = "Split"},
        {.model = MODEL("{\"a\":0}", "[]"),
         .pre = "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL "," BYTE_LEVEL "]}",
         .says = "ByteLevel"},
        {.model = MODEL("{\"a\":0}", "[]"),
         .post = "{\"type\":\"RobertaProcessing\"}",
         .says = "post_processor.type"},
        {.model = MODEL("{\"a\":0}", "[]"),
         .post = "{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}",
         .says = "single"},
        {.model = MODEL("{\"a\":0}", "[]"), .post = TEMPLATE, .says = "id 7"},
        {.model = MODEL("{\"a\":0}", "[]"), .decoder = "{\"type\":\"BPEDecoder\"}", .says = "decoder.type"},
    };
    struct tokenizer *t;
    struct reason why;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *json =
            json_of(bad[i].added, bad[i].normalizer, bad[i].pre, bad[i].post, bad[i].decoder, bad[i].model);
        assert_int_equal(tokenizer_parse(&t, json, strlen(json), &why), STATUS_BAD_MODEL);
        assert_null(t);
        if (!strstr(why.text, bad[i].says)) fail_msg("%zu: \"%s\" does not say %s", i, why.text, bad[i].says);
        /* Every cut of the file is refused too. */
        for (size_t n = 0; n < strlen(json); n += 7)
            assert_int_equal(tokenizer_parse(&t, json, n, &why), STATUS_BAD_MODEL);
        free(json);
    }
    tokenizer_close(NULL);
}

/* ------------------------------------------------------------------------------------------ folders */
static void put_file(const char *dir, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (!text) {
        unlink(path);
        return;
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void bos_and_eos_come_from_the_folder(void **state)
{
    (void)state;
    char dir[] = "/tmp/retro-tokenizer-XXXXXX";
    assert_non_null(mkdtemp(dir));
    struct tokenizer *t;
    struct reason why;
    assert_int_equal(tokenizer_open(&t, dir, &why), STATUS_BAD_MODEL);
    assert_non_null(strstr(why.text, "tokenizer.json"));
    char model[2048];
    snprintf(model, sizeof model, BYTE_MODEL, "");
    char *json = json_of("[" TOKEN(13, "<s>", "") "]", NULL, BYTE_LEVEL, NULL, BYTE_LEVEL, model);
    put_file(dir, "tokenizer.json", json);
    free(json);
    static const struct {
        const char *config, *generation;
        int bos, eos;
    } cases[] = {
        {NULL, NULL, -1, -1},
        {"{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"abc\"}}", NULL, 13, 8},
        {"{\"model_max_length\":1000000000000000019884624838656,\"bos_token\":null}",
         "{\"bos_token_id\":1,\"eos_token_id\":[2,3]}", 1, 2},
        {"{\"bos_token\":\"gone\"}", "{\"eos_token_id\":500}", -1, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_file(dir, "tokenizer_config.json", cases[i].config);
        put_file(dir, "generation_config.json", cases[i].generation);
        assert_int_equal(tokenizer_open(&t, dir, &why), STATUS_OK);
        assert_int_equal(tokenizer_bos(t), cases[i].bos);
        assert_int_equal(tokenizer_eos(t), cases[i].eos);
        tokenizer_close(t);
    }
    put_file(dir, "tokenizer_config.json", "{");
    assert_int_equal(tokenizer_open(&t, dir, &why), STATUS_BAD_MODEL);
    assert_non_null(strstr(why.text, "tokenizer_config.json"));
    put_file(dir, "tokenizer_config.json", NULL);
    put_file(dir, "generation_config.json", NULL);
    put_file(dir, "tokenizer.json", NULL);
    rmdir(dir);
}

/* ------------------------------------------------------------------------------------------ parts */
static void utf8_agrees_with_the_table(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        char text[4];
        size_t n = utf8_encode(c, text), at = 0;
        assert_int_equal(utf8_valid_prefix(text, n), n);
        assert_int_equal(utf8_next(text, &at), c);
        assert_int_equal(at, n);
        assert_int_equal(utf8_previous(text, n), 0);
        for (size_t k = 1; k < n; k++) assert_int_equal(utf8_valid_prefix(text, k), 0);
    }
    static const char *const wrong[] = {"\x80",
                                        "\xc1\xbf",
                                        "\xe0\x9f\xbf",
                                        "\xed\xa0\x80",
                                        "\xf0\x8f\xbf\xbf",
                                        "\xf4\x90\x80\x80",
                                        "\xf5\x80\x80\x80",
                                        "\xff"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(utf8_valid_prefix(wrong[i], strlen(wrong[i])), 0);
}

static void a_vocabulary_finds_what_was_added(void **state)
{
    (void)state;
    struct vocab v;
    vocab_open(&v);
    char text[32];
    size_t n;
    for (int i = 0; i < 5000; i++)
        assert_true(vocab_add(&v, text, (size_t)sprintf(text, "token %d", i * 7), i * 2));
    assert_false(vocab_add(&v, "token 7", 7, 1)); /* the string is taken */
    assert_false(vocab_add(&v, "new", 3, 2));     /* the id is taken */
    assert_false(vocab_add(&v, "new", 3, -1));
    assert_false(vocab_add(&v, "new", 3, VOCAB_IDS_MAX));
    for (int i = 0; i < 35000; i++)
        assert_int_equal(vocab_find(&v, text, (size_t)sprintf(text, "token %d", i)), i % 7 ? -1 : i / 7 * 2);
    assert_null(vocab_string(&v, 1, &n)); /* a hole */
    assert_memory_equal(vocab_string(&v, 9998, &n), "token 34993", 11);
    vocab_close(&v);
}

static void nfc_composes_and_orders(void **state)
{
    (void)state;
#ifdef RETRO_HAVE_UTF8PROC
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"abc \xc3\xa9", "abc \xc3\xa9"},
        {"e\xcc\x81", "\xc3\xa9"},
        {"\xe2\x84\xab", "\xc3\x85"},                             /* ANGSTROM SIGN */
        {"a\xcc\x81\xcc\xa3", "\xe1\xba\xa1\xcc\x81"},            /* dot below moves before acute */
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"}, /* Hangul */
        {"\xcd\x84", "\xcc\x88\xcc\x81"},                         /* excluded from composition */
        {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"},             /* the same */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buffer out = {0};
        assert_true(normalizer_nfc(cases[i].text, strlen(cases[i].text), &out));
        assert_int_equal(out.n, strlen(cases[i].want));
        assert_memory_equal(out.bytes, cases[i].want, out.n);
        buffer_free(&out);
    }
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lowest_rank_merges_first_and_leftmost_at_a_tie),
        cmocka_unit_test(ignore_merges_takes_a_word_that_is_a_token),
        cmocka_unit_test(both_ways_of_merging_equal_the_definition),
        cmocka_unit_test(the_byte_alphabet_is_a_bijection),
        cmocka_unit_test(added_tokens_are_found_anywhere_and_the_longest_wins),
        cmocka_unit_test(ids_come_from_the_vocabulary_or_behind_it),
        cmocka_unit_test(stripping_and_single_words),
        cmocka_unit_test(what_was_stripped_may_be_a_token),
        cmocka_unit_test(half_characters_wait),
        cmocka_unit_test(pieces_fall_back_to_bytes),
        cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(bad_files_are_refused_by_name),
        cmocka_unit_test(bos_and_eos_come_from_the_folder),
        cmocka_unit_test(utf8_agrees_with_the_table),
        cmocka_unit_test(a_vocabulary_finds_what_was_added),
        cmocka_unit_test(nfc_composes_and_orders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
