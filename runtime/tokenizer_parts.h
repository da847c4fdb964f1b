/* tokenizer_parts.h - what a tokenizer is made of; for tokenizer*.c only.
 *
 * A text goes: added tokens (raw) -> normalizer -> added tokens (normalized) -> pre-tokenizer -> bpe, then
 * the prefix and suffix of the post-processor. Ids go through decoder. Immutable after tokenizer_parse. */
#ifndef RETRO_TOKENIZER_PARTS_H
#define RETRO_TOKENIZER_PARTS_H

#include "runtime/addedtokens.h"
#include "runtime/bpe.h"
#include "runtime/decoder.h"
#include "runtime/normalizer.h"
#include "runtime/pretokenizer.h"
#include "runtime/tokenizer.h"

struct tokenizer_id {
    const char *text; /* what the decoder gets; NULL for a hole; borrowed from vocab or addedtokens */
    uint32_t n_text;
    uint32_t n_raw;
    size_t raw;   /* offset into tokenizer.raw of the bytes in running text */
    bool special; /* an added token with "special" */
    bool skipped; /* what skip_special drops: its decoded text is a special token's content */
};

struct tokenizer {
    struct bpe bpe;
    struct addedtokens added;
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct decoder decoder;
    struct token_list prefix, suffix; /* of the post-processor */
    struct tokenizer_id *ids;
    int n_ids;
    struct buffer raw;
    int bos, eos; /* -1 when none */
};

/* Reads the field "post_processor" into prefix and suffix. */
enum status tokenizer_read_postprocessor(struct tokenizer *t, struct fields *file);

#endif
