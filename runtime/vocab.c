/* vocab.c - token strings in a pool, found by a seeded hash or by id. */
#include "runtime/vocab.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

uint64_t vocab_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed) {
        struct timespec t; /* early in boot; still nothing that a file could know */
        clock_gettime(CLOCK_MONOTONIC, &t);
        seed = (uint64_t)t.tv_nsec * 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)&seed;
    }
    return seed;
}

static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Multiply and fold eight bytes at a time; the last ones are padded with zeros and the length goes in at the
 * end. */
uint64_t vocab_hash(uint64_t seed, const char *s, size_t n)
{
    uint64_t h = seed ^ 0x2d358dccaa6c78a5u, word;
    size_t left = n;
    for (; left >= 8; left -= 8, s += 8) {
        memcpy(&word, s, 8);
        h = fold(h ^ word, 0x8bb84b93962eacc9u);
    }
    word = 0;
    memcpy(&word, s, left);
    return fold(h ^ word, 0x4b33a62ed433d4a3u ^ n);
}

void vocab_open(struct vocab *v)
{
    *v = (struct vocab){.seed = vocab_seed(), .n_slots = 256};
    v->slots = buffer_realloc(NULL, v->n_slots, sizeof *v->slots);
    memset(v->slots, 0xff, v->n_slots * sizeof *v->slots);
}

void vocab_close(struct vocab *v)
{
    buffer_free(&v->pool);
    free(v->strings);
    free(v->slots);
    *v = (struct vocab){0};
}

/* The slot that holds the string, or the empty one where it belongs. */
static size_t slot_of(const struct vocab *v, const char *s, size_t n)
{
    size_t mask = v->n_slots - 1, at = (size_t)vocab_hash(v->seed, s, n) & mask;
    for (;; at = (at + 1) & mask) {
        int id = v->slots[at];
        if (id < 0) return at;
        if (v->strings[id].bytes == n && !memcmp(v->pool.bytes + v->strings[id].offset, s, n)) return at;
    }
}

static void rehash(struct vocab *v)
{
    v->n_slots *= 2;
    v->slots = buffer_realloc(v->slots, v->n_slots, sizeof *v->slots);
    memset(v->slots, 0xff, v->n_slots * sizeof *v->slots);
    for (int id = 0; id < v->n_ids; id++)
        if (v->strings[id].bytes != VOCAB_HOLE)
            v->slots[slot_of(v, v->pool.bytes + v->strings[id].offset, v->strings[id].bytes)] = id;
}

bool vocab_add(struct vocab *v, const char *s, size_t n, int id)
{
    if (id < 0 || id >= VOCAB_IDS_MAX || n >= VOCAB_HOLE) return false;
    if (id < v->n_ids && v->strings[id].bytes != VOCAB_HOLE) return false;
    if (vocab_find(v, s, n) >= 0) return false;
    if ((size_t)(v->n_tokens + 1) * 2 > v->n_slots) rehash(v);
    size_t slot = slot_of(v, s, n);
    if (id >= v->ids_capacity) {
        int capacity = id + 1 + v->ids_capacity / 2;
        v->strings = buffer_realloc(v->strings, (size_t)capacity, sizeof *v->strings);
        v->ids_capacity = capacity;
    }
    for (; v->n_ids <= id; v->n_ids++) v->strings[v->n_ids] = (struct vocab_string){0, VOCAB_HOLE};
    v->strings[id] = (struct vocab_string){v->pool.n, (uint32_t)n};
    buffer_append(&v->pool, s, n);
    v->slots[slot] = id;
    v->n_tokens++;
    return true;
}

int vocab_find(const struct vocab *v, const char *s, size_t n)
{
    return v->n_tokens ? v->slots[slot_of(v, s, n)] : -1;
}

const char *vocab_string(const struct vocab *v, int id, size_t *n)
{
    if (id < 0 || id >= v->n_ids || v->strings[id].bytes == VOCAB_HOLE) return NULL;
    *n = v->strings[id].bytes;
    return v->pool.bytes ? v->pool.bytes + v->strings[id].offset : "";
}
