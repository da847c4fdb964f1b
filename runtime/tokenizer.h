/* tokenizer.h - text to token ids and back, from a Hugging Face tokenizer.json.
 *
 * Covers the two kinds that the supported families publish: byte-level BPE (GPT-2 alphabet; pre-tokenizers
 * Split by regex, Digits, ByteLevel, Sequence of them) and SentencePiece-style BPE with byte fallback
 * (Prepend/Replace normalizers or Metaspace). Added tokens with lstrip/rstrip/single_word/normalized/special
 * as the `tokenizers` package treats them. Anything else in the file that would change ids is refused by
 * name. Encode and decode equal the `tokenizers` package. A tokenizer is immutable after open and may be
 * shared. */
#ifndef RETRO_TOKENIZER_H
#define RETRO_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

struct tokenizer;

/* DIR/tokenizer.json (+ tokenizer_config.json, generation_config.json for bos/eos names). Caller closes. */
enum status tokenizer_open(struct tokenizer **out, const char *dir, struct reason *why);
/* The same from memory; the fuzz target. */
enum status tokenizer_parse(struct tokenizer **out, const char *json, size_t json_bytes, struct reason *why);
void tokenizer_close(struct tokenizer *t); /* NULL is fine */

struct token_list {
    int32_t *ids; /* grown by realloc; owned by the list */
    size_t n_ids, capacity;
};
void token_list_free(struct token_list *l);
void token_list_push(struct token_list *l, int32_t id);

/* Appends the ids of text[0..n). Invalid UTF-8 is BAD_INPUT (the line gives the byte offset). With `special`,
 * the template post-processor (bos) is applied as `tokenizers` does with add_special_tokens=True; added
 * tokens written in the text are recognised either way. */
enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool special,
                             struct token_list *out, struct reason *why);

/* Decodes ids to bytes (malloc'd, NUL-terminated, *n_bytes without the NUL; caller frees). skip_special drops
 * special added tokens. Ids outside the vocabulary are BAD_INPUT. Equals Tokenizer.decode of the package,
 * including U+FFFD for bytes that are no UTF-8. */
enum status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids, bool skip_special,
                             char **text, size_t *n_bytes, struct reason *why);

/* Streaming decode: feed ids one by one; whole characters come out as soon as they are certain, never half a
 * UTF-8 character; the concatenation with the flush equals tokenizer_decode of all ids. */
struct token_stream;
struct token_stream *token_stream_open(const struct tokenizer *t, bool skip_special);
/* Returns the new text (borrowed until the next call), possibly "". *n_bytes gets its length. */
const char *token_stream_push(struct token_stream *s, int32_t id, size_t *n_bytes);
/* What is left (an unfinished character becomes U+FFFD); borrowed until the next call. */
const char *token_stream_flush(struct token_stream *s, size_t *n_bytes);
void token_stream_close(struct token_stream *s);

int tokenizer_vocab_size(const struct tokenizer *t);            /* largest id + 1 */
int tokenizer_id(const struct tokenizer *t, const char *token); /* -1 when absent; the literal token string */
/* The raw bytes that an id stands for in running text (for constrained decoding and logprobs); NULL when
 * special. */
const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n_bytes);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
int tokenizer_bos(const struct tokenizer *t); /* -1 when none */
int tokenizer_eos(const struct tokenizer *t); /* -1 when none */

#endif
