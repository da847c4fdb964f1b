/* buffer.c - bytes that grow by half of what they have. */
#include "runtime/buffer.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/utf8.h"

static _Noreturn void out_of_memory(size_t n_items, size_t item_bytes)
{
    DIE(EXIT_CODE_MEMORY, "shorten the input or free memory on this host",
        "no memory for %zu x %zu bytes of text", n_items, item_bytes);
}

void *buffer_realloc(void *p, size_t n_items, size_t item_bytes)
{
    size_t bytes;
    if (__builtin_mul_overflow(n_items ? n_items : 1, item_bytes, &bytes)) out_of_memory(n_items, item_bytes);
    void *q = realloc(p, bytes);
    if (!q) out_of_memory(n_items, item_bytes);
    return q;
}

void *buffer_zeroed(size_t n_items, size_t item_bytes)
{
    void *p = calloc(n_items ? n_items : 1, item_bytes);
    if (!p) out_of_memory(n_items, item_bytes);
    return p;
}

char *buffer_reserve(struct buffer *b, size_t n)
{
    size_t need;
    if (__builtin_add_overflow(b->n, n, &need)) out_of_memory(b->n, 1);
    if (need > b->capacity) {
        size_t capacity = b->capacity + b->capacity / 2 + 64;
        if (capacity < need) capacity = need;
        b->bytes = buffer_realloc(b->bytes, capacity, 1);
        b->capacity = capacity;
    }
    return b->bytes ? b->bytes + b->n : NULL; /* NULL only when nothing was ever needed */
}

void buffer_append(struct buffer *b, const char *bytes, size_t n)
{
    if (!n) return;
    memcpy(buffer_reserve(b, n), bytes, n);
    b->n += n;
}

void buffer_append_string(struct buffer *b, const char *s)
{
    if (s) buffer_append(b, s, strlen(s));
}

void buffer_append_char(struct buffer *b, uint32_t c) { b->n += utf8_encode(c, buffer_reserve(b, 4)); }

char *buffer_take(struct buffer *b)
{
    buffer_append(b, "", 1);
    char *bytes = b->bytes;
    *b = (struct buffer){0};
    return bytes;
}

void buffer_free(struct buffer *b)
{
    free(b->bytes);
    *b = (struct buffer){0};
}
