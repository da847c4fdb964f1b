/* bpe.h - byte-pair encoding of one word: the lowest-ranked pair of neighbours merges first, the leftmost at
 * a tie.
 *
 * A word's first symbols are its characters, or its bytes in the GPT-2 alphabet when `byte_level`; a
 * character that is no token becomes its bytes "<0x00>".."<0xFF>" (byte_fallback), else the unknown token,
 * else nothing, in the order in which the `tokenizers` package does so. With ignore_merges a word that is a
 * token is that token. Refused: dropout, continuing_subword_prefix and end_of_word_suffix other than "",
 * merges of strings that are no tokens, two strings with one id. Cost: O(n log n) for a word of n symbols. A
 * bpe is immutable once made; a scratch belongs to one thread. */
#ifndef RETRO_BPE_H
#define RETRO_BPE_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/fields.h"
#include "runtime/tokenizer.h"
#include "runtime/vocab.h"

struct bpe_merge {
    int32_t left, right; /* left -1: empty slot */
    uint32_t rank;
    int32_t merged;
};

struct bpe {
    struct vocab vocab;
    struct bpe_merge *merges; /* open addressing by (left, right); a power of two */
    size_t n_slots;
    uint64_t seed;
    bool byte_level, byte_fallback, fuse_unknown, ignore_merges;
    bool wants_unknown;   /* unk_token is given */
    int unknown;          /* its id; -1 when it is no token, which only matters once it is needed */
    int byte_id[256];     /* id of the byte's character in the GPT-2 alphabet; -1 */
    int fallback_id[256]; /* id of "<0xXX>"; -1 */
    int ascii_id[128];    /* id of the character itself; -1 */
    size_t longest_bytes; /* of any token */
};

struct bpe_scratch {
    int32_t *ids;
    uint32_t *next, *previous, *rank; /* rank of the pair that a symbol makes with the next one */
    int32_t *merged;                  /* what that pair becomes */
    uint64_t *heap;                   /* rank << 32 | position, a binary min-heap */
    size_t capacity, n_heap, heap_capacity;
    struct buffer mapped;
};
void bpe_scratch_free(struct bpe_scratch *s);

/* The code point that stands for a byte in the GPT-2 alphabet, and back (-1). */
uint32_t bpe_byte_char(uint8_t byte);
int bpe_char_byte(uint32_t c);

/* Reads the object `model`. */
enum status bpe_open(struct bpe *b, struct fields *model);
void bpe_close(struct bpe *b);
/* Words are bytes from now on; refused where that would need byte_fallback. */
enum status bpe_set_byte_level(struct bpe *b, struct reason *why);

/* Where the search for a pair begins in `merges`. */
size_t bpe_pair_slot(const struct bpe *b, int32_t left, int32_t right);

/* Appends the ids of word[0..n), valid UTF-8. */
enum status bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n,
                       struct token_list *out, struct reason *why);

#endif
