/* bpe.c - byte-pair encoding: reading the model is in bpe_model.c, this file merges.
 *
 * Two ways to the same result. Short words keep their symbols in an array and scan it for the best pair. Long
 * ones keep a linked list and a heap of (rank, position); an entry is stale, and skipped, when its position
 * no longer makes a pair of that rank. Ranks are unique per pair and ids per string, so the two agree
 * (tests/runtime/test_tokenizer.c compares them). */
#include "runtime/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/utf8.h"

#define NO_RANK UINT32_MAX
#define NONE UINT32_MAX
#define SHORT_SYMBOLS 40

void bpe_scratch_free(struct bpe_scratch *s)
{
    free(s->ids);
    free(s->next);
    free(s->previous);
    free(s->rank);
    free(s->merged);
    free(s->heap);
    buffer_free(&s->mapped);
    *s = (struct bpe_scratch){0};
}

static void scratch_reserve(struct bpe_scratch *s, size_t n)
{
    if (n <= s->capacity) return;
    s->capacity = n + n / 2 + 64;
    s->ids = buffer_realloc(s->ids, s->capacity, sizeof *s->ids);
    s->next = buffer_realloc(s->next, s->capacity, sizeof *s->next);
    s->previous = buffer_realloc(s->previous, s->capacity, sizeof *s->previous);
    s->rank = buffer_realloc(s->rank, s->capacity, sizeof *s->rank);
    s->merged = buffer_realloc(s->merged, s->capacity, sizeof *s->merged);
}

size_t bpe_pair_slot(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) ^ b->seed;
    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return (size_t)(h ^ h >> 32) & (b->n_slots - 1);
}

/* Rank of the pair and what it becomes; NO_RANK when it does not merge. */
static uint32_t pair_rank(const struct bpe *b, int32_t left, int32_t right, int32_t *merged)
{
    if (!b->n_slots) return NO_RANK;
    for (size_t at = bpe_pair_slot(b, left, right);; at = (at + 1) & (b->n_slots - 1)) {
        const struct bpe_merge *m = &b->merges[at];
        if (m->left < 0) return NO_RANK;
        if (m->left == left && m->right == right) {
            *merged = m->merged;
            return m->rank;
        }
    }
}

/* ------------------------------------------------------------------------------------------ first symbols */
struct unknown_run {
    bool pending; /* one unknown token waits to be added */
};

static enum status add_unknown(const struct bpe *b, struct unknown_run *run, int32_t *ids, size_t *n,
                               struct reason *why)
{
    if (!b->wants_unknown) return STATUS_OK; /* the package drops such a character */
    if (run->pending && b->fuse_unknown) return STATUS_OK;
    if (b->unknown < 0)
        return status_fail(
            why, STATUS_BAD_MODEL,
            "tokenizer.json: model.unk_token is needed and is not in model.vocab: fetch the file again");
    if (run->pending) ids[(*n)++] = b->unknown;
    run->pending = true;
    return STATUS_OK;
}

static void flush_unknown(const struct bpe *b, struct unknown_run *run, int32_t *ids, size_t *n)
{
    if (run->pending) ids[(*n)++] = b->unknown;
    run->pending = false;
}

/* The bytes of a character as byte tokens; false where one of them is no token. */
static bool add_fallback(const struct bpe *b, const char *c, size_t bytes, int32_t *ids, size_t *n)
{
    if (!b->byte_fallback) return false;
    for (size_t k = 0; k < bytes; k++)
        if (b->fallback_id[(uint8_t)c[k]] < 0) return false;
    for (size_t k = 0; k < bytes; k++) ids[(*n)++] = b->fallback_id[(uint8_t)c[k]];
    return true;
}

/* Writes the word's first symbols to s->ids; there is room for one per byte. */
static enum status first_symbols(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n_bytes,
                                 size_t *n, struct reason *why)
{
    struct unknown_run run = {false};
    *n = 0;
    for (size_t at = 0; at < n_bytes;) {
        size_t from = at;
        int id;
        if (b->byte_level) {
            id = b->byte_id[(uint8_t)word[at++]];
        } else {
            uint32_t c = utf8_next(word, &at);
            id = c < 128 ? b->ascii_id[c] : vocab_find(&b->vocab, word + from, at - from);
        }
        if (id >= 0) {
            flush_unknown(b, &run, s->ids, n);
            s->ids[(*n)++] = id;
        } else if (!add_fallback(b, word + from, at - from, s->ids, n)) {
            /* The package leaves a waiting unknown token behind byte tokens that follow it, and so do we. */
            enum status status = add_unknown(b, &run, s->ids, n, why);
            if (status != STATUS_OK) return status;
        }
    }
    flush_unknown(b, &run, s->ids, n);
    return STATUS_OK;
}

/* ------------------------------------------------------------------------------------------ merging */
static size_t merge_short(const struct bpe *b, struct bpe_scratch *s, size_t n)
{
    int32_t *ids = s->ids, *merged = s->merged;
    uint32_t *rank = s->rank;
    for (size_t i = 0; i + 1 < n; i++) rank[i] = pair_rank(b, ids[i], ids[i + 1], &merged[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == NO_RANK) break;
        ids[best] = merged[best];
        size_t tail = n - best - 2; /* symbols behind the pair */
        memmove(ids + best + 1, ids + best + 2, tail * sizeof *ids);
        if (tail) {
            memmove(rank + best + 1, rank + best + 2, (tail - 1) * sizeof *rank);
            memmove(merged + best + 1, merged + best + 2, (tail - 1) * sizeof *merged);
        }
        n--;
        if (best + 1 < n) rank[best] = pair_rank(b, ids[best], ids[best + 1], &merged[best]);
        if (best) rank[best - 1] = pair_rank(b, ids[best - 1], ids[best], &merged[best - 1]);
    }
    return n;
}

static void heap_sink(uint64_t *heap, size_t n, size_t at)
{
    uint64_t entry = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= entry) break;
        heap[at] = heap[child];
    }
    heap[at] = entry;
}

static void heap_push(struct bpe_scratch *s, uint64_t entry)
{
    if (s->n_heap == s->heap_capacity) {
        s->heap_capacity += s->heap_capacity / 2 + 64;
        s->heap = buffer_realloc(s->heap, s->heap_capacity, sizeof *s->heap);
    }
    size_t at = s->n_heap++;
    for (size_t parent; at && s->heap[parent = (at - 1) / 2] > entry; at = parent)
        s->heap[at] = s->heap[parent];
    s->heap[at] = entry;
}

static uint64_t heap_pop(struct bpe_scratch *s)
{
    uint64_t top = s->heap[0];
    s->heap[0] = s->heap[--s->n_heap];
    if (s->n_heap) heap_sink(s->heap, s->n_heap, 0);
    return top;
}

/* Ranks the pair that symbol `at` makes with its right neighbour and offers it to the heap. */
static void rank_pair(const struct bpe *b, struct bpe_scratch *s, uint32_t at)
{
    uint32_t right = s->next[at];
    s->rank[at] = right == NONE ? NO_RANK : pair_rank(b, s->ids[at], s->ids[right], &s->merged[at]);
    if (s->rank[at] != NO_RANK) heap_push(s, (uint64_t)s->rank[at] << 32 | at);
}

static size_t merge_long(const struct bpe *b, struct bpe_scratch *s, size_t n)
{
    s->n_heap = 0;
    if (s->heap_capacity < n) {
        s->heap_capacity = n;
        s->heap = buffer_realloc(s->heap, n, sizeof *s->heap);
    }
    for (uint32_t i = 0; i < n; i++) {
        s->previous[i] = i ? i - 1 : NONE;
        s->next[i] = i + 1 < n ? i + 1 : NONE;
        s->rank[i] = i + 1 < n ? pair_rank(b, s->ids[i], s->ids[i + 1], &s->merged[i]) : NO_RANK;
        if (s->rank[i] != NO_RANK) s->heap[s->n_heap++] = (uint64_t)s->rank[i] << 32 | i;
    }
    for (size_t i = s->n_heap / 2; i-- > 0;) heap_sink(s->heap, s->n_heap, i);
    while (s->n_heap) {
        uint64_t top = heap_pop(s);
        uint32_t at = (uint32_t)top, right;
        if (s->rank[at] != top >> 32) continue; /* stale: the pair there is another one or gone */
        right = s->next[at];
        s->ids[at] = s->merged[at];
        s->rank[right] = NO_RANK;
        s->next[at] = s->next[right];
        if (s->next[at] != NONE) s->previous[s->next[at]] = at;
        rank_pair(b, s, at);
        if (s->previous[at] != NONE) rank_pair(b, s, s->previous[at]);
    }
    size_t kept = 0;
    for (uint32_t i = 0; i != NONE; i = s->next[i]) s->ids[kept++] = s->ids[i];
    return kept;
}

/* The id of a word that is a token as it stands; -1. */
static int whole_word(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n)
{
    if (n > b->longest_bytes) return -1;
    if (!b->byte_level) return vocab_find(&b->vocab, word, n);
    s->mapped.n = 0;
    for (size_t i = 0; i < n; i++) buffer_append_char(&s->mapped, bpe_byte_char((uint8_t)word[i]));
    return vocab_find(&b->vocab, s->mapped.bytes, s->mapped.n);
}

enum status bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n,
                       struct token_list *out, struct reason *why)
{
    if (!n) return STATUS_OK;
    ASSERT(n < NONE);
    int whole = b->ignore_merges ? whole_word(b, s, word, n) : -1;
    if (whole >= 0) {
        token_list_push(out, whole);
        return STATUS_OK;
    }
    scratch_reserve(s, n);
    size_t n_symbols;
    enum status status = first_symbols(b, s, word, n, &n_symbols, why);
    if (status != STATUS_OK) return status;
    if (n_symbols > 1) n_symbols = (n_symbols <= SHORT_SYMBOLS ? merge_short : merge_long)(b, s, n_symbols);
    for (size_t i = 0; i < n_symbols; i++) token_list_push(out, s->ids[i]);
    return STATUS_OK;
}

/* ------------------------------------------------------------------------------------------ the GPT-2
 * alphabet */
/* Printable Latin-1 stands for itself; the other 68 bytes are U+0100 and up, in order. */
static bool is_printable(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

uint32_t bpe_byte_char(uint8_t byte)
{
    if (is_printable(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    if (byte <= 0xa0) return 0x100u + 0x21 + (byte - 0x7fu);
    return 0x143; /* 0xad */
}

int bpe_char_byte(uint32_t c)
{
    if (c < 0x100) return is_printable(c) ? (int)c : -1;
    if (c <= 0x120) return (int)(c - 0x100);
    if (c <= 0x142) return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}
