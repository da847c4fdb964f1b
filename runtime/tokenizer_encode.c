/* tokenizer_encode.c - text to ids.
 *
 * Words repeat, so a call keeps a direct-mapped table of the words it has met: where the word lies in the
 * text and where its ids lie in the output. Nothing outlives the call, so threads share nothing. A word of
 * the caller's text is known to the end; one in a scratch buffer until that buffer is written again
 * (`generation`). */
#include <stdlib.h>
#include <string.h>

#include "runtime/tokenizer_parts.h"
#include "runtime/utf8.h"

#define CACHE_SLOTS 8192          /* 384 KiB */
#define CACHE_TEXT_BYTES_MIN 1024 /* below this, making the table costs more than it saves */
#define CACHE_WORD_BYTES_MAX 64
#define TEXT_BYTES_MAX ((size_t)1 << 30) /* positions of symbols are 32 bits wide, with room for a prefix */

struct cached_word {
    const char *word;
    size_t first; /* of the ids, in the output */
    uint64_t generation;
    uint32_t n_bytes, n_ids;
};

struct encoder {
    const struct tokenizer *t;
    struct token_list *out;
    struct cached_word *cache; /* NULL for short texts */
    const char *text;          /* the caller's */
    size_t n_text;
    uint64_t generation; /* of the scratch buffers' contents; from 2 on */
    struct bpe_scratch bpe;
    struct normalizer_scratch normalizer;
    struct pretokenizer_scratch pretokenizer;
    struct pattern_scratch raw_match, normalized_match;
};

#define GENERATION_TEXT 1 /* of words in the caller's text; an empty slot has 0 */

static enum status encode_word(void *context, const char *word, size_t n, bool lasting, struct reason *why)
{
    struct encoder *e = context;
    if (!e->cache || n > CACHE_WORD_BYTES_MAX) return bpe_encode(&e->t->bpe, &e->bpe, word, n, e->out, why);
    struct cached_word *slot = &e->cache[vocab_hash(0, word, n) % CACHE_SLOTS];
    bool alive = slot->generation == GENERATION_TEXT || slot->generation == e->generation;
    if (alive && slot->n_bytes == n && !memcmp(slot->word, word, n)) {
        for (uint32_t i = 0; i < slot->n_ids; i++) token_list_push(e->out, e->out->ids[slot->first + i]);
        return STATUS_OK;
    }
    size_t first = e->out->n_ids;
    enum status status = bpe_encode(&e->t->bpe, &e->bpe, word, n, e->out, why);
    bool in_text = (uintptr_t)word - (uintptr_t)e->text < e->n_text;
    if (in_text || lasting)
        *slot = (struct cached_word){word, first, in_text ? GENERATION_TEXT : e->generation, (uint32_t)n,
                                     (uint32_t)(e->out->n_ids - first)};
    return status;
}

/* A stretch of text without raw added tokens; `first` says that it begins the input. */
static enum status encode_stretch(struct encoder *e, const char *text, size_t n, bool first,
                                  struct reason *why)
{
    if (!n) return STATUS_OK;
    const struct tokenizer *t = e->t;
    e->generation++; /* scratch buffers are about to be written again */
    enum status status = normalizer_run(&t->normalizer, &e->normalizer, text, n, &text, &n, why);
    struct addedtokens_scan scan = addedtokens_scan_begin(&t->added, true, &e->normalized_match, text, n);
    const struct addedtoken *token;
    size_t start, end;
    while (status == STATUS_OK && addedtokens_scan_next(&scan, &start, &end, &token)) {
        if (start < end) {
            e->generation++;
            status = pretokenizer_run(&t->pretokenizer, &e->pretokenizer, text + start, end - start,
                                      first && start == 0, encode_word, e, why);
        }
        if (token && status == STATUS_OK) token_list_push(e->out, token->id);
    }
    return status;
}

static enum status encode_text(struct encoder *e, const char *text, size_t n, struct reason *why)
{
    struct addedtokens_scan scan = addedtokens_scan_begin(&e->t->added, false, &e->raw_match, text, n);
    const struct addedtoken *token;
    size_t start, end;
    enum status status = STATUS_OK;
    while (status == STATUS_OK && addedtokens_scan_next(&scan, &start, &end, &token)) {
        status = encode_stretch(e, text + start, end - start, start == 0, why);
        if (token && status == STATUS_OK) token_list_push(e->out, token->id);
    }
    return status;
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool special,
                             struct token_list *out, struct reason *why)
{
    size_t valid = utf8_valid_prefix(text, n), before = out->n_ids;
    if (valid != n)
        return status_fail(why, STATUS_BAD_INPUT,
                           "the text is not UTF-8: byte %zu is 0x%02x: convert it to UTF-8 first", valid,
                           (unsigned)(uint8_t)text[valid]);
    if (n > TEXT_BYTES_MAX)
        return status_fail(why, STATUS_BAD_INPUT,
                           "the text has %zu bytes, at most %zu are encoded at once: split it", n,
                           TEXT_BYTES_MAX);
    struct encoder e = {.t = t, .out = out, .text = text, .n_text = n, .generation = GENERATION_TEXT};
    if (n >= CACHE_TEXT_BYTES_MIN) e.cache = buffer_zeroed(CACHE_SLOTS, sizeof *e.cache);
    for (size_t i = 0; special && i < t->prefix.n_ids; i++) token_list_push(out, t->prefix.ids[i]);
    enum status status = encode_text(&e, text, n, why);
    for (size_t i = 0; special && i < t->suffix.n_ids; i++) token_list_push(out, t->suffix.ids[i]);
    if (status != STATUS_OK) out->n_ids = before;
    free(e.cache);
    bpe_scratch_free(&e.bpe);
    normalizer_scratch_free(&e.normalizer);
    pretokenizer_scratch_free(&e.pretokenizer);
    pattern_scratch_free(&e.raw_match);
    pattern_scratch_free(&e.normalized_match);
    return status;
}
