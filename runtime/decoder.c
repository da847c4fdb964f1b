/* decoder.c - reading the decoder and running it token by token. */
#include "runtime/decoder.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/bpe.h"

/* ------------------------------------------------------------------------------------------ reading */
/* NULL when the reader has failed. */
static struct decoder_step *new_step(struct decoder *d, struct fields *f, enum decoder_kind kind)
{
    if (d->n_steps == DECODER_STEPS_MAX)
        fields_fail(f, "type", "at most %d steps are read", DECODER_STEPS_MAX);
    if (f->status != STATUS_OK) return NULL;
    struct decoder_step *step = &d->steps[d->n_steps++];
    *step = (struct decoder_step){.kind = kind};
    if (!d->fuse) d->n_token_steps = d->n_steps;
    return step;
}

static void read_replace(struct decoder *d, struct fields *f)
{
    if (d->byte_level || d->byte_fallback || d->fuse)
        fields_fail(f, "type", "is covered only before ByteLevel, ByteFallback and Fuse");
    const char *content = fields_string(f, "content", NULL);
    if (!content) fields_fail(f, "content", "needs a string");
    const json_t *pattern = fields_get(f, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *literal = json_object_get(pattern, "String");
    if (!json_is_string(regex) && !json_is_string(literal))
        fields_fail(f, "pattern", "needs {\"String\": ...} or {\"Regex\": ...}");
    if (f->status != STATUS_OK) return;
    struct decoder_step *step = new_step(d, f, DECODER_REPLACE);
    if (!step) return;
    struct buffer copy = {0};
    buffer_append_string(&copy, content);
    step->content_bytes = copy.n;
    step->content = buffer_take(&copy);
    f->status = json_is_string(regex)
                    ? pattern_regex(&step->pattern, json_string_value(regex), "decoder: Replace", f->why)
                    : pattern_literal(&step->pattern, json_string_value(literal), "decoder: Replace", f->why);
}

static void read_strip(struct decoder *d, struct fields *f)
{
    if (d->byte_fallback && !d->fuse)
        fields_fail(f, "type", "behind ByteFallback is covered only behind Fuse");
    if (d->byte_level) d->fuse = true; /* ByteLevel has made one text of all tokens */
    const char *content = fields_string(f, "content", "");
    int start = fields_int(f, "start", 0, 0, 1 << 20);
    if (fields_int(f, "stop", 0, 0, 1 << 20) != 0) fields_fail(f, "stop", "is not covered; only 0 is");
    size_t n = 0;
    uint32_t c = *content ? utf8_next(content, &n) : 0;
    if (!n || content[n]) fields_fail(f, "content", "needs one character");
    if (f->status != STATUS_OK) return;
    struct decoder_step *step = new_step(d, f, DECODER_STRIP);
    if (!step) return;
    step->strip = c;
    step->n_strip = start;
}

static void read_metaspace(struct decoder *d, struct fields *f)
{
    if (d->byte_level || d->byte_fallback || d->fuse)
        fields_fail(f, "type", "is covered only before ByteLevel, ByteFallback and Fuse");
    const char *mark = fields_string(f, "replacement", "");
    const char *scheme = fields_string(f, "prepend_scheme", "always");
    bool prefix_space = fields_bool(f, "add_prefix_space", true), never = !strcmp(scheme, "never");
    size_t n = 0;
    if (*mark) utf8_next(mark, &n);
    if (!n || mark[n]) fields_fail(f, "replacement", "needs one character");
    if (!never && strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0)
        fields_fail(f, "prepend_scheme", "needs always, first or never");
    if (!prefix_space && !never)
        fields_fail(f, "add_prefix_space", "contradicts prepend_scheme; remove one of them");
    if (f->status != STATUS_OK) return;
    struct decoder_step *step = new_step(d, f, DECODER_METASPACE);
    if (!step) return;
    step->drop_first = !never;
    f->status = pattern_literal(&step->pattern, mark, "decoder: Metaspace", f->why);
}

static void read_step(struct decoder *d, const struct fields *file, const json_t *object, int depth,
                      enum status *status)
{
    struct fields f = {.object = object, .file = file->file, .path = "decoder.", .why = file->why};
    const char *type = fields_string(&f, "type", "");
    if (!json_is_object(object)) fields_fail(&f, "type", "needs an object");
    if (f.status != STATUS_OK) type = NULL;
    if (!type) {
    } else if (!strcmp(type, "Sequence")) {
        const json_t *steps = fields_get(&f, "decoders");
        if (!json_is_array(steps) || depth > 4) fields_fail(&f, "decoders", "needs a flat array");
        for (size_t i = 0; f.status == STATUS_OK && i < json_array_size(steps); i++)
            read_step(d, file, json_array_get(steps, i), depth + 1, &f.status);
    } else if (!strcmp(type, "ByteLevel")) {
        if (d->n_steps || d->byte_fallback || d->fuse || d->byte_level)
            fields_fail(&f, "type", "is covered only as the first step");
        d->byte_level = true;
    } else if (!strcmp(type, "ByteFallback")) {
        if (d->byte_level || d->byte_fallback || d->fuse)
            fields_fail(&f, "type", "is covered only once and before Fuse");
        d->byte_fallback = true;
    } else if (!strcmp(type, "Fuse")) {
        d->fuse = true;
    } else if (!strcmp(type, "Replace")) {
        read_replace(d, &f);
    } else if (!strcmp(type, "Strip")) {
        read_strip(d, &f);
    } else if (!strcmp(type, "Metaspace")) {
        read_metaspace(d, &f);
    } else {
        fields_fail(
            &f, "type",
            "is not covered; ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace and Sequence are");
    }
    *status = f.status;
}

enum status decoder_open(struct decoder *d, struct fields *file)
{
    memset(d, 0, sizeof *d);
    const json_t *object = fields_get(file, "decoder");
    d->join_blank = !object;
    if (object && file->status == STATUS_OK) read_step(d, file, object, 0, &file->status);
    return file->status;
}

void decoder_close(struct decoder *d)
{
    for (int i = 0; i < d->n_steps; i++) {
        pattern_free(&d->steps[i].pattern);
        free(d->steps[i].content);
    }
    d->n_steps = 0;
}

/* ------------------------------------------------------------------------------------------ one token */
/* s->token through one step. A pattern that gives up (match limit) leaves the rest of the token as it is. */
static void step_token(struct decoder_stream *s, const struct decoder_step *step, bool first)
{
    struct buffer *in = &s->token, *out = &s->swap;
    if (!in->n) return;
    out->n = 0;
    if (step->kind == DECODER_STRIP) {
        size_t at = 0;
        for (int i = 0; i < step->n_strip && at < in->n; i++) {
            size_t next = at;
            if (utf8_next(in->bytes, &next) != step->strip) break;
            at = next;
        }
        buffer_append(out, in->bytes + at, in->n - at);
    } else {
        bool metaspace = step->kind == DECODER_METASPACE;
        const char *content = metaspace ? " " : step->content;
        size_t n = metaspace ? !(first && step->drop_first) : step->content_bytes;
        pattern_replace(&step->pattern, &s->match, in->bytes, in->n, content, n, out, NULL);
    }
    struct buffer swap = *in;
    *in = *out;
    *out = swap;
}

/* The byte of "<0xXX>" as the package reads it: two characters that Rust's from_str_radix(16) takes; -1. */
static int byte_token(const char *s, size_t n)
{
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0 && !(i == 3 && c == '+')) return -1;
        value = digit < 0 ? value : value * 16 + digit;
    }
    return value;
}

/* The bytes of a token in the GPT-2 alphabet, or its UTF-8 where a character is outside. */
static void alphabet_bytes(const char *token, size_t n, struct buffer *out)
{
    size_t from = out->n;
    for (size_t at = 0; at < n;) {
        int byte = bpe_char_byte(utf8_next(token, &at));
        if (byte < 0) {
            out->n = from;
            buffer_append(out, token, n);
            return;
        }
        buffer_append(out, (char[]){(char)byte}, 1);
    }
}

/* ------------------------------------------------------------------------------------------ the stream */
void decoder_stream_open(struct decoder_stream *s, const struct decoder *d)
{
    *s = (struct decoder_stream){.decoder = d};
}

void decoder_stream_close(struct decoder_stream *s)
{
    pattern_scratch_free(&s->match);
    buffer_free(&s->token);
    buffer_free(&s->swap);
    buffer_free(&s->run);
}

/* Text of the fused stream through the Strips that stand behind Fuse. */
static void put_text(struct decoder_stream *s, const char *text, size_t n, struct buffer *out)
{
    if (!n) return;
    for (int i = s->decoder->n_token_steps; i < s->decoder->n_steps; i++) {
        const struct decoder_step *step = &s->decoder->steps[i];
        size_t at = 0;
        while (s->n_stripped[i] >= 0 && at < n) {
            size_t next = at;
            if (s->n_stripped[i] == step->n_strip || utf8_next(text, &next) != step->strip) {
                s->n_stripped[i] = -1;
            } else {
                s->n_stripped[i]++;
                at = next;
            }
        }
        text += at;
        n -= at;
    }
    buffer_append(out, text, n);
}

/* A run of byte tokens is its text, or U+FFFD for each of them. */
static void end_run(struct decoder_stream *s, struct buffer *out)
{
    if (utf8_valid_prefix(s->run.bytes, s->run.n) == s->run.n) put_text(s, s->run.bytes, s->run.n, out);
    else
        for (size_t i = 0; i < s->run.n; i++) put_text(s, UTF8_REPLACEMENT, strlen(UTF8_REPLACEMENT), out);
    s->run.n = 0;
}

void decoder_stream_push(struct decoder_stream *s, const char *token, size_t n, struct buffer *out)
{
    const struct decoder *d = s->decoder;
    bool first = !s->begun;
    s->begun = true;
    if (d->join_blank) {
        if (!first) buffer_append(out, " ", 1);
        buffer_append(out, token, n);
        return;
    }
    s->token.n = 0;
    buffer_append(&s->token, token, n);
    for (int i = 0; i < d->n_token_steps; i++) step_token(s, &d->steps[i], first);
    if (d->byte_level) {
        s->run.n = s->swap.n = 0;
        alphabet_bytes(s->token.bytes, s->token.n, &s->run);
        utf8_lossy_push(&s->lossy, s->run.bytes, s->run.n, &s->swap);
        put_text(s, s->swap.bytes, s->swap.n, out);
        s->run.n = 0;
        return;
    }
    int byte = d->byte_fallback ? byte_token(s->token.bytes, s->token.n) : -1;
    if (byte >= 0) {
        buffer_append(&s->run, (char[]){(char)byte}, 1);
        return;
    }
    if (s->run.n) end_run(s, out);
    put_text(s, s->token.bytes, s->token.n, out);
}

void decoder_stream_flush(struct decoder_stream *s, struct buffer *out)
{
    if (s->run.n) end_run(s, out);
    s->swap.n = 0;
    utf8_lossy_flush(&s->lossy, &s->swap);
    put_text(s, s->swap.bytes, s->swap.n, out);
}

void decoder_token_bytes(const struct decoder *d, const char *token, size_t n, struct buffer *out)
{
    struct decoder_stream s;
    decoder_stream_open(&s, d);
    buffer_append(&s.token, token, n);
    for (int i = 0; i < d->n_token_steps; i++) step_token(&s, &d->steps[i], false);
    int byte = d->byte_fallback ? byte_token(s.token.bytes, s.token.n) : -1;
    if (byte >= 0) buffer_append(out, (char[]){(char)byte}, 1);
    else if (d->byte_level) alphabet_bytes(s.token.bytes, s.token.n, out);
    else buffer_append(out, s.token.bytes, s.token.n);
    decoder_stream_close(&s);
}
