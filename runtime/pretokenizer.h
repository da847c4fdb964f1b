/* pretokenizer.h - the "pre_tokenizer" of tokenizer.json: text to words.
 *
 * Stages run one inside the other: what a stage emits is the next one's text, and the last one's words go to
 * the caller, so memory stays that of one word per stage (but for the Merged and Contiguous behaviours, which
 * gather the matches of a text first). Covered: Split (String or Regex; every behaviour; invert), Digits,
 * Metaspace, ByteLevel (last only; the bytes are not spelt in the GPT-2 alphabet here, bpe.h looks them up as
 * bytes), Sequence. Every other type is refused by name. Immutable once made; a scratch belongs to one
 * thread. */
#ifndef RETRO_PRETOKENIZER_H
#define RETRO_PRETOKENIZER_H

#include "runtime/fields.h"
#include "runtime/pattern.h"

enum pretokenizer_behavior {
    BEHAVIOR_ISOLATED,
    BEHAVIOR_REMOVED,
    BEHAVIOR_MERGED_WITH_PREVIOUS,
    BEHAVIOR_MERGED_WITH_NEXT,
    BEHAVIOR_CONTIGUOUS,
    BEHAVIOR_COUNT
};

enum pretokenizer_prefix { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS };

/* First edit (Metaspace's replacement, then the prefix unless the text begins with it), then split. */
struct pretokenizer_stage {
    bool replace_blanks;
    enum pretokenizer_prefix prefix;
    char mark[5]; /* what blanks become, and the prefix; NUL-terminated UTF-8 of one character */
    bool split;
    struct pattern pattern;
    bool invert;
    enum pretokenizer_behavior behavior;
};

#define PRETOKENIZER_STAGES_MAX 16

struct pretokenizer {
    struct pretokenizer_stage stages[PRETOKENIZER_STAGES_MAX];
    int n_stages;
    bool byte_level;
};

struct pretokenizer_piece {
    size_t start, end;
    bool match;
};

struct pretokenizer_scratch {
    struct {
        struct pattern_scratch match;
        struct buffer text;
        struct pretokenizer_piece *pieces;
        size_t n_pieces, capacity;
    } stage[PRETOKENIZER_STAGES_MAX];
};
void pretokenizer_scratch_free(struct pretokenizer_scratch *s);

/* A word is borrowed until the call returns, or, when `lasting`, until pretokenizer_run does. */
typedef enum status (*pretokenizer_emit)(void *context, const char *word, size_t n, bool lasting,
                                         struct reason *why);

/* `file` holds the field "pre_tokenizer" (absent or null: the text is one word). */
enum status pretokenizer_open(struct pretokenizer *p, struct fields *file);
void pretokenizer_close(struct pretokenizer *p);
/* Emits the words of text[0..n), valid UTF-8, in order; none is empty. `first`: the text begins the input. */
enum status pretokenizer_run(const struct pretokenizer *p, struct pretokenizer_scratch *s, const char *text,
                             size_t n, bool first, pretokenizer_emit emit, void *context, struct reason *why);

#endif
