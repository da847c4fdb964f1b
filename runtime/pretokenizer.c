/* pretokenizer.c - reading and running the stages of the pre-tokenizer. */
#include "runtime/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/utf8.h"

/* The pattern of ByteLevel with use_regex: GPT-2's, published with its encoder. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

void pretokenizer_scratch_free(struct pretokenizer_scratch *s)
{
    for (int i = 0; i < PRETOKENIZER_STAGES_MAX; i++) {
        pattern_scratch_free(&s->stage[i].match);
        buffer_free(&s->stage[i].text);
        free(s->stage[i].pieces);
    }
    *s = (struct pretokenizer_scratch){0};
}

/* ------------------------------------------------------------------------------------------ reading */
static void read_split(struct pretokenizer_stage *stage, struct fields *f)
{
    static const char *const names[BEHAVIOR_COUNT] = {
        [BEHAVIOR_ISOLATED] = "Isolated",
        [BEHAVIOR_REMOVED] = "Removed",
        [BEHAVIOR_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [BEHAVIOR_MERGED_WITH_NEXT] = "MergedWithNext",
        [BEHAVIOR_CONTIGUOUS] = "Contiguous",
    };
    const char *behavior = fields_string(f, "behavior", "");
    int which = 0;
    while (which < BEHAVIOR_COUNT && strcmp(behavior, names[which]) != 0) which++;
    if (which == BEHAVIOR_COUNT)
        fields_fail(f, "behavior",
                    "needs Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
    stage->behavior = (enum pretokenizer_behavior)which;
    stage->invert = fields_bool(f, "invert", false);
    stage->split = true;
    const json_t *pattern = fields_get(f, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *literal = json_object_get(pattern, "String");
    if (f->status != STATUS_OK) return;
    if (json_is_string(regex))
        f->status = pattern_regex(&stage->pattern, json_string_value(regex), "pre_tokenizer: Split", f->why);
    else if (json_is_string(literal))
        f->status =
            pattern_literal(&stage->pattern, json_string_value(literal), "pre_tokenizer: Split", f->why);
    else fields_fail(f, "pattern", "needs {\"String\": ...} or {\"Regex\": ...}");
}

static void read_byte_level(struct pretokenizer *p, struct pretokenizer_stage *stage, struct fields *f)
{
    p->byte_level = true;
    if (fields_bool(f, "add_prefix_space", true)) {
        stage->prefix = PREFIX_ALWAYS;
        strcpy(stage->mark, " ");
    }
    stage->split = fields_bool(f, "use_regex", true);
    if (stage->split && f->status == STATUS_OK)
        f->status = pattern_regex(&stage->pattern, gpt2_pattern, "pre_tokenizer: ByteLevel", f->why);
}

static void read_metaspace(struct pretokenizer_stage *stage, struct fields *f)
{
    const char *mark = fields_string(f, "replacement", "");
    const char *scheme = fields_string(f, "prepend_scheme", "always");
    bool prefix_space = fields_bool(f, "add_prefix_space", true);
    if (f->status != STATUS_OK) return;
    size_t n = 0;
    if (*mark) utf8_next(mark, &n);
    if (!n || mark[n]) {
        fields_fail(f, "replacement", "needs one character");
        return;
    }
    memcpy(stage->mark, mark, n + 1);
    if (!strcmp(scheme, "always")) stage->prefix = PREFIX_ALWAYS;
    else if (!strcmp(scheme, "first")) stage->prefix = PREFIX_FIRST;
    else if (strcmp(scheme, "never") != 0) fields_fail(f, "prepend_scheme", "needs always, first or never");
    if (!prefix_space && stage->prefix != PREFIX_NEVER)
        fields_fail(f, "add_prefix_space", "contradicts prepend_scheme; remove one of them");
    stage->replace_blanks = true;
    stage->split = fields_bool(f, "split", true);
    stage->behavior = BEHAVIOR_MERGED_WITH_NEXT;
    if (f->status == STATUS_OK)
        f->status = pattern_literal(&stage->pattern, stage->mark, "pre_tokenizer: Metaspace", f->why);
}

static void read_digits(struct pretokenizer_stage *stage, struct fields *f)
{
    stage->behavior = fields_bool(f, "individual_digits", false) ? BEHAVIOR_ISOLATED : BEHAVIOR_CONTIGUOUS;
    stage->split = true;
    if (f->status == STATUS_OK)
        f->status = pattern_regex(&stage->pattern, "\\p{N}", "pre_tokenizer: Digits", f->why);
}

static void read_stage(struct pretokenizer *p, const struct fields *file, const json_t *object, int depth,
                       enum status *status)
{
    struct fields f = {.object = object, .file = file->file, .path = "pre_tokenizer.", .why = file->why};
    const char *type = fields_string(&f, "type", "");
    if (!json_is_object(object)) fields_fail(&f, "type", "needs an object");
    if (f.status == STATUS_OK && !strcmp(type, "Sequence")) {
        const json_t *stages = fields_get(&f, "pretokenizers");
        if (!json_is_array(stages) || depth > 4) fields_fail(&f, "pretokenizers", "needs a flat array");
        for (size_t i = 0; f.status == STATUS_OK && i < json_array_size(stages); i++)
            read_stage(p, file, json_array_get(stages, i), depth + 1, &f.status);
        *status = f.status;
        return;
    }
    if (p->byte_level)
        fields_fail(&f, "type", "stands behind ByteLevel, which is covered as the last stage only");
    if (p->n_stages == PRETOKENIZER_STAGES_MAX)
        fields_fail(&f, "type", "at most %d stages are read", PRETOKENIZER_STAGES_MAX);
    if (f.status == STATUS_OK) {
        struct pretokenizer_stage *stage = &p->stages[p->n_stages++];
        *stage = (struct pretokenizer_stage){0};
        if (!strcmp(type, "Split")) read_split(stage, &f);
        else if (!strcmp(type, "Digits")) read_digits(stage, &f);
        else if (!strcmp(type, "ByteLevel")) read_byte_level(p, stage, &f);
        else if (!strcmp(type, "Metaspace")) read_metaspace(stage, &f);
        else fields_fail(&f, "type", "is not covered; Split, Digits, ByteLevel, Metaspace and Sequence are");
    }
    *status = f.status;
}

enum status pretokenizer_open(struct pretokenizer *p, struct fields *file)
{
    p->n_stages = 0;
    p->byte_level = false;
    const json_t *object = fields_get(file, "pre_tokenizer");
    if (object && file->status == STATUS_OK) read_stage(p, file, object, 0, &file->status);
    return file->status;
}

void pretokenizer_close(struct pretokenizer *p)
{
    for (int i = 0; i < p->n_stages; i++) pattern_free(&p->stages[i].pattern);
    p->n_stages = 0;
}

/* ------------------------------------------------------------------------------------------ running */
/* The walk of one text through the stages. */
struct run {
    const struct pretokenizer *p;
    struct pretokenizer_scratch *scratch;
    pretokenizer_emit emit;
    void *context;
    struct reason *why;
    bool lasting; /* no stage behind the first edited the text, so its buffer is not written again */
};

static enum status run_stage(struct run *r, int at, const char *text, size_t n, bool first);

static void add_piece(struct pretokenizer_scratch *s, int at, size_t start, size_t end, bool match)
{
    if (s->stage[at].n_pieces == s->stage[at].capacity) {
        size_t capacity = s->stage[at].capacity + s->stage[at].capacity / 2 + 64;
        s->stage[at].pieces = buffer_realloc(s->stage[at].pieces, capacity, sizeof *s->stage[at].pieces);
        s->stage[at].capacity = capacity;
    }
    s->stage[at].pieces[s->stage[at].n_pieces++] = (struct pretokenizer_piece){start, end, match};
}

/* Joins pieces in place by the stage's behaviour. A match joins the piece before (behind) it, unless that
 * piece is itself a match as the file gave them; Contiguous joins equal neighbours. */
static size_t join_pieces(enum pretokenizer_behavior behavior, struct pretokenizer_piece *p, size_t n)
{
    size_t kept = 0;
    if (behavior == BEHAVIOR_MERGED_WITH_NEXT) {
        bool after = false; /* the piece behind is a match */
        kept = n;
        for (size_t i = n; i-- > 0;) {
            bool match = p[i].match;
            if (match && !after && kept < n) p[kept].start = p[i].start;
            else p[--kept] = p[i];
            after = match;
        }
        memmove(p, p + kept, (n - kept) * sizeof *p);
        return n - kept;
    }
    bool before = false;
    for (size_t i = 0; i < n; i++) {
        bool match = p[i].match;
        bool join = behavior == BEHAVIOR_CONTIGUOUS ? match == before : match && !before;
        if (join && kept) p[kept - 1].end = p[i].end;
        else p[kept++] = p[i];
        before = match;
    }
    return kept;
}

/* One piece to the next stage. */
static enum status hand_on(struct run *r, int at, const char *text, size_t start, size_t end, bool first)
{
    if (start == end) return STATUS_OK;
    return run_stage(r, at + 1, text + start, end - start, first && start == 0);
}

static enum status split(struct run *r, int at, const char *text, size_t n, bool first)
{
    const struct pretokenizer_stage *stage = &r->p->stages[at];
    bool gather = stage->behavior != BEHAVIOR_ISOLATED && stage->behavior != BEHAVIOR_REMOVED;
    bool keep_match = stage->behavior == BEHAVIOR_ISOLATED || stage->invert;
    bool keep_rest = stage->behavior == BEHAVIOR_ISOLATED || !stage->invert;
    struct pattern_scan scan = pattern_scan_begin(&stage->pattern, &r->scratch->stage[at].match, text, n);
    size_t done = 0, start, end;
    enum status status = STATUS_OK;
    r->scratch->stage[at].n_pieces = 0;
    while (status == STATUS_OK && pattern_scan_next(&scan, &start, &end, r->why)) {
        if (gather) {
            if (done != start) add_piece(r->scratch, at, done, start, stage->invert);
            add_piece(r->scratch, at, start, end, !stage->invert);
        } else {
            if (keep_rest) status = hand_on(r, at, text, done, start, first);
            if (keep_match && status == STATUS_OK) status = hand_on(r, at, text, start, end, first);
        }
        done = end;
    }
    if (status == STATUS_OK) status = scan.status;
    if (status != STATUS_OK) return status;
    if (!gather) return keep_rest ? hand_on(r, at, text, done, n, first) : STATUS_OK;
    if (done != n) add_piece(r->scratch, at, done, n, stage->invert);
    size_t kept = join_pieces(stage->behavior, r->scratch->stage[at].pieces, r->scratch->stage[at].n_pieces);
    for (size_t i = 0; i < kept && status == STATUS_OK; i++) {
        const struct pretokenizer_piece *piece = &r->scratch->stage[at].pieces[i];
        status = hand_on(r, at, text, piece->start, piece->end, first);
    }
    return status;
}

static enum status run_stage(struct run *r, int at, const char *text, size_t n, bool first)
{
    if (at == r->p->n_stages) return r->emit(r->context, text, n, r->lasting, r->why);
    const struct pretokenizer_stage *stage = &r->p->stages[at];
    bool lasting = r->lasting;
    size_t n_mark = strlen(stage->mark);
    bool prefix = stage->prefix == PREFIX_ALWAYS || (stage->prefix == PREFIX_FIRST && first);
    if (prefix && (n >= n_mark && !memcmp(text, stage->mark, n_mark))) prefix = false;
    if (prefix && stage->replace_blanks && text[0] == ' ') prefix = false; /* becomes the mark */
    if (prefix || (stage->replace_blanks && memchr(text, ' ', n))) {
        struct buffer *edited = &r->scratch->stage[at].text;
        edited->n = 0;
        if (prefix) buffer_append(edited, stage->mark, n_mark);
        for (size_t done = 0; done < n;) {
            const char *blank = stage->replace_blanks ? memchr(text + done, ' ', n - done) : NULL;
            size_t end = blank ? (size_t)(blank - text) : n;
            buffer_append(edited, text + done, end - done);
            if (blank) buffer_append(edited, stage->mark, n_mark);
            done = end + (blank != NULL);
        }
        text = edited->bytes;
        n = edited->n;
        r->lasting = lasting && at == 0;
    }
    enum status status = (stage->split ? split : run_stage)(r, at + !stage->split, text, n, first);
    r->lasting = lasting;
    return status;
}

enum status pretokenizer_run(const struct pretokenizer *p, struct pretokenizer_scratch *s, const char *text,
                             size_t n, bool first, pretokenizer_emit emit, void *context, struct reason *why)
{
    if (!n) return STATUS_OK;
    struct run r = {.p = p, .scratch = s, .emit = emit, .context = context, .why = why, .lasting = true};
    return run_stage(&r, 0, text, n, first);
}
