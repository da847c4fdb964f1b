/* fuzz_tokenizer.c - libFuzzer target: any bytes as tokenizer.json; where they parse, text goes through it
 * and back.
 *
 * Held: nothing crashes or leaks; ids stay inside the vocabulary; decoding in one piece and one by one agree
 * and are UTF-8; encoding twice gives the same. The seeds are small tokenizers of every style. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/tokenizer.h"
#include "runtime/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const texts[] = {
    "",
    "ab abc <s>a  b</s> 12 don't\n\n \xe2\x96\x81x",
    "e\xcc\x81\xcc\xa3 \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x91\x8d\xf0\x9f\x8f\xbd \xef\xbf\xbd <0x41>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabababababababab",
};

static void decode(const struct tokenizer *t, const struct token_list *ids, bool skip)
{
    struct reason why;
    char *whole;
    size_t n_whole, n, at = 0;
    ASSERT(tokenizer_decode(t, ids->ids, ids->n_ids, skip, &whole, &n_whole, &why) == STATUS_OK);
    ASSERT(utf8_valid_prefix(whole, n_whole) == n_whole);
    struct token_stream *s = token_stream_open(t, skip);
    for (size_t i = 0; i <= ids->n_ids; i++) {
        const char *text = i < ids->n_ids ? token_stream_push(s, ids->ids[i], &n) : token_stream_flush(s, &n);
        ASSERT(at + n <= n_whole && (!n || !memcmp(whole + at, text, n)) && utf8_valid_prefix(text, n) == n);
        at += n;
    }
    ASSERT(at == n_whole);
    token_stream_close(s);
    free(whole);
}

static void round_trip(const struct tokenizer *t, const char *text, bool special)
{
    struct reason why;
    struct token_list ids = {0}, again = {0};
    if (tokenizer_encode(t, text, strlen(text), special, &ids, &why) == STATUS_OK) {
        ASSERT(tokenizer_encode(t, text, strlen(text), special, &again, &why) == STATUS_OK);
        ASSERT(ids.n_ids == again.n_ids &&
               (!ids.n_ids || !memcmp(ids.ids, again.ids, ids.n_ids * sizeof *ids.ids)));
        for (size_t i = 0; i < ids.n_ids; i++)
            ASSERT(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_vocab_size(t));
        decode(t, &ids, special);
    }
    token_list_free(&ids);
    token_list_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tokenizer *t;
    struct reason why = {{0}};
    if (tokenizer_parse(&t, (const char *)data, size, &why) != STATUS_OK) {
        ASSERT(!t && why.text[0] && !strchr(why.text, '\n'));
        return 0;
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) round_trip(t, texts[i], i % 2);
    for (int id = -1; id <= tokenizer_vocab_size(t) && id < 300; id++) {
        size_t n;
        tokenizer_bytes(t, id, &n);
        tokenizer_is_special(t, id);
    }
    tokenizer_close(t);
    return 0;
}
