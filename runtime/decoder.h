/* decoder.h - the "decoder" of tokenizer.json, run as a stream.
 *
 * Covered, in this order: Replace, Strip (start only) and Metaspace on each token; then ByteFallback; then
 * Fuse; then Strip (start only) on the fused text. Or ByteLevel first, then Fuse and Strip. Or null: tokens
 * joined by a blank. Other types and orders are refused by name. A run of byte tokens is text only as a whole
 * (one wrong byte makes all of them U+FFFD, as in the `tokenizers` package), so a stream holds it back until
 * another token ends it. A decoder is immutable once made; a decoder_stream belongs to one thread. */
#ifndef RETRO_DECODER_H
#define RETRO_DECODER_H

#include "runtime/fields.h"
#include "runtime/pattern.h"
#include "runtime/utf8.h"

enum decoder_kind { DECODER_REPLACE, DECODER_STRIP, DECODER_METASPACE };

struct decoder_step {
    enum decoder_kind kind;
    struct pattern pattern; /* Replace; Metaspace: the mark */
    char *content;          /* Replace; owned */
    size_t content_bytes;
    uint32_t strip;  /* Strip: this character ... */
    int n_strip;     /* ... at most so often */
    bool drop_first; /* Metaspace: the first token's marks vanish instead of becoming blanks */
};

#define DECODER_STEPS_MAX 16

struct decoder {
    struct decoder_step
        steps[DECODER_STEPS_MAX]; /* n_token_steps on each token, the rest on the fused text */
    int n_steps, n_token_steps;
    bool byte_level, byte_fallback, fuse;
    bool join_blank; /* no decoder */
};

struct decoder_stream {
    const struct decoder *decoder;
    struct pattern_scratch match;
    struct buffer token, swap; /* the current token on its way through the steps */
    struct buffer run;         /* byte tokens in a row */
    struct utf8_lossy lossy;
    int n_stripped[DECODER_STEPS_MAX]; /* fused Strips: how often; -1 when done */
    bool begun;                        /* a token came */
};

/* `file` holds the field "decoder". */
enum status decoder_open(struct decoder *d, struct fields *file);
void decoder_close(struct decoder *d);

void decoder_stream_open(struct decoder_stream *s, const struct decoder *d);
void decoder_stream_close(struct decoder_stream *s);
/* One token's string; appends what is certain now to `out`. */
void decoder_stream_push(struct decoder_stream *s, const char *token, size_t n, struct buffer *out);
void decoder_stream_flush(struct decoder_stream *s, struct buffer *out);

/* Appends the bytes that a token stands for in running text (not as the first one). */
void decoder_token_bytes(const struct decoder *d, const char *token, size_t n, struct buffer *out);

#endif
