/* tokenizer_stream.c - ids to text, one by one or all at once; the second is the first plus a flush. */
#include <stdlib.h>

#include "runtime/tokenizer_parts.h"

struct token_stream {
    const struct tokenizer *tokenizer;
    bool skip_special;
    struct decoder_stream decoder;
    struct buffer out;
};

struct token_stream *token_stream_open(const struct tokenizer *t, bool skip_special)
{
    struct token_stream *s = buffer_zeroed(1, sizeof *s);
    s->tokenizer = t;
    s->skip_special = skip_special;
    decoder_stream_open(&s->decoder, &t->decoder);
    return s;
}

/* Ids outside the vocabulary have no text; a model's padded logits may choose them. */
static void push(struct token_stream *s, int32_t id)
{
    const struct tokenizer *t = s->tokenizer;
    if (id < 0 || id >= t->n_ids || !t->ids[id].text || (s->skip_special && t->ids[id].skipped)) return;
    decoder_stream_push(&s->decoder, t->ids[id].text, t->ids[id].n_text, &s->out);
}

/* The output with a NUL behind it, lent to the caller. */
static const char *lend(struct token_stream *s, size_t *n_bytes)
{
    *n_bytes = s->out.n;
    buffer_append(&s->out, "", 1);
    s->out.n = 0;
    return s->out.bytes;
}

const char *token_stream_push(struct token_stream *s, int32_t id, size_t *n_bytes)
{
    s->out.n = 0;
    push(s, id);
    return lend(s, n_bytes);
}

const char *token_stream_flush(struct token_stream *s, size_t *n_bytes)
{
    s->out.n = 0;
    decoder_stream_flush(&s->decoder, &s->out);
    return lend(s, n_bytes);
}

void token_stream_close(struct token_stream *s)
{
    if (!s) return;
    decoder_stream_close(&s->decoder);
    buffer_free(&s->out);
    free(s);
}

enum status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids, bool skip_special,
                             char **text, size_t *n_bytes, struct reason *why)
{
    *text = NULL;
    *n_bytes = 0;
    for (size_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= t->n_ids || !t->ids[ids[i]].text)
            return status_fail(why, STATUS_BAD_INPUT,
                               "id %d at position %zu is no token: ids go from 0 to %d", ids[i], i,
                               t->n_ids - 1);
    struct token_stream *s = token_stream_open(t, skip_special);
    for (size_t i = 0; i < n_ids; i++) push(s, ids[i]);
    decoder_stream_flush(&s->decoder, &s->out);
    *n_bytes = s->out.n;
    *text = buffer_take(&s->out);
    token_stream_close(s);
    return STATUS_OK;
}
