/* normalizer.h - the "normalizer" of tokenizer.json: null, NFC, Prepend, Replace, and Sequences of them.
 *
 * NFC is that of utf8proc (Unicode 15.0 in version 2.8); without utf8proc at build time it is refused. Every
 * other type is refused by name. Immutable once made. */
#ifndef RETRO_NORMALIZER_H
#define RETRO_NORMALIZER_H

#include "runtime/fields.h"
#include "runtime/pattern.h"

enum normalizer_kind { NORMALIZER_NFC, NORMALIZER_PREPEND, NORMALIZER_REPLACE };

struct normalizer_step {
    enum normalizer_kind kind;
    struct pattern pattern; /* Replace */
    char *content;          /* Prepend, Replace; owned */
    size_t content_bytes;
};

#define NORMALIZER_STEPS_MAX 16

struct normalizer {
    struct normalizer_step steps[NORMALIZER_STEPS_MAX];
    int n_steps;
};

struct normalizer_scratch {
    struct pattern_scratch match;
    struct buffer in, out;
};
void normalizer_scratch_free(struct normalizer_scratch *s);

/* `file` holds the field "normalizer" (absent or null: no steps). */
enum status normalizer_open(struct normalizer *z, struct fields *file);
void normalizer_close(struct normalizer *z);
/* The normalized form of valid UTF-8 text[0..n): the text itself, or bytes borrowed until the scratch is used
 * again. */
enum status normalizer_run(const struct normalizer *z, struct normalizer_scratch *s, const char *text,
                           size_t n, const char **out, size_t *n_out, struct reason *why);
/* Whether a step may delete characters, which "prepend_scheme": "first" cannot be combined with. */
bool normalizer_deletes(const struct normalizer *z);

/* Appends canonical composition (Unicode Standard Annex 15) of valid UTF-8. False where the build has no
 * utf8proc. */
bool normalizer_nfc(const char *text, size_t n, struct buffer *out);

#endif
