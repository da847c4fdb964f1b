/* buffer.h - bytes that grow.
 *
 * The one growing byte string of the text side (tokenizer, chat). Contents are not NUL-terminated unless
 * buffer_take() ends them. Memory that cannot be had ends the job (DIE), so appends return nothing. */
#ifndef RETRO_BUFFER_H
#define RETRO_BUFFER_H

#include <stddef.h>
#include <stdint.h>

struct buffer {
    char *bytes; /* owned */
    size_t n, capacity;
};

/* realloc of n_items * item_bytes that ends the job instead of failing; n_items may be 0. */
void *buffer_realloc(void *p, size_t n_items, size_t item_bytes);
/* Zeroed memory, or the end of the job. */
void *buffer_zeroed(size_t n_items, size_t item_bytes);

/* Room for n more bytes; the caller writes them behind bytes + n and raises n itself. */
char *buffer_reserve(struct buffer *b, size_t n);
void buffer_append(struct buffer *b, const char *bytes, size_t n);
void buffer_append_string(struct buffer *b, const char *s); /* up to the NUL; NULL appends nothing */
/* The UTF-8 of one scalar value. */
void buffer_append_char(struct buffer *b, uint32_t c);
/* The content with a NUL behind it; the caller frees it and the buffer is empty again. */
char *buffer_take(struct buffer *b);
void buffer_free(struct buffer *b);

#endif
