/* normalizer.c - reading and running the normalizer.
 *
 * NFC takes decomposition and composition from utf8proc and sorts combining marks itself: utf8proc's own sort
 * is quadratic in the length of a run of marks, and a prompt may be one run of eight million. */
#include "runtime/normalizer.h"

#include <stdlib.h>
#include <string.h>

#ifdef RETRO_HAVE_UTF8PROC
#include <utf8proc.h>
#endif

#include "runtime/utf8.h"

void normalizer_scratch_free(struct normalizer_scratch *s)
{
    pattern_scratch_free(&s->match);
    buffer_free(&s->in);
    buffer_free(&s->out);
}

/* ------------------------------------------------------------------------------------------ NFC */
#ifdef RETRO_HAVE_UTF8PROC
/* Sorts c[0..n), all combining marks, by combining class, keeping the order within a class. */
static void sort_marks(utf8proc_int32_t *c, size_t n)
{
    if (n < 2) return;
    if (n <= 16) {
        for (size_t i = 1; i < n; i++) {
            utf8proc_int32_t mark = c[i];
            int class = utf8proc_get_property(mark)->combining_class;
            size_t k = i;
            for (; k && utf8proc_get_property(c[k - 1])->combining_class > class; k--) c[k] = c[k - 1];
            c[k] = mark;
        }
        return;
    }
    size_t start[257] = {0};
    utf8proc_int32_t *copy = buffer_realloc(NULL, n, sizeof *copy);
    memcpy(copy, c, n * sizeof *copy);
    for (size_t i = 0; i < n; i++) start[(utf8proc_get_property(copy[i])->combining_class & 0xff) + 1]++;
    for (int k = 1; k <= 256; k++) start[k] += start[k - 1];
    for (size_t i = 0; i < n; i++)
        c[start[utf8proc_get_property(copy[i])->combining_class & 0xff]++] = copy[i];
    free(copy);
}

/* Decomposes text into c (room for 4 per character) in canonical order; returns the number of code points. */
static size_t decompose(const char *text, size_t n, utf8proc_int32_t *c)
{
    size_t n_points = 0, marks = 0; /* c[marks..n_points) is the current run of combining marks */
    for (size_t at = 0; at < n;) {
        int boundary = 0;
        utf8proc_int32_t point = (utf8proc_int32_t)utf8_next(text, &at);
        utf8proc_ssize_t k = utf8proc_decompose_char(point, c + n_points, 4, UTF8PROC_DECOMPOSE, &boundary);
        if (k < 1 ||
            k > 4) { /* does not happen for valid text; a canonical decomposition has at most 4 points */
            c[n_points] = point;
            k = 1;
        }
        for (; k > 0; k--, n_points++) {
            if (utf8proc_get_property(c[n_points])->combining_class) continue;
            sort_marks(c + marks, n_points - marks);
            marks = n_points + 1;
        }
    }
    sort_marks(c + marks, n_points - marks);
    return n_points;
}

bool normalizer_nfc(const char *text, size_t n, struct buffer *out)
{
    size_t plain = 0; /* below U+0300 nothing composes or reorders */
    while (plain < n && (uint8_t)text[plain] < 0xcc) plain++;
    if (plain == n) {
        buffer_append(out, text, n);
        return true;
    }
    /* The last plain character may compose with what follows. */
    if (plain) plain = utf8_previous(text, plain);
    buffer_append(out, text, plain);
    size_t n_chars = 0;
    for (size_t i = plain; i < n; i++) n_chars += ((uint8_t)text[i] & 0xc0) != 0x80;
    utf8proc_int32_t *c = buffer_realloc(NULL, n_chars + 1, 4 * sizeof *c);
    utf8proc_ssize_t n_points = (utf8proc_ssize_t)decompose(text + plain, n - plain, c);
    n_points = utf8proc_normalize_utf32(c, n_points, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t i = 0; i < n_points; i++) buffer_append_char(out, (uint32_t)c[i]);
    free(c);
    return true;
}
#else
bool normalizer_nfc(const char *text, size_t n, struct buffer *out)
{
    buffer_append(out, text, n);
    return false;
}
#endif

/* ------------------------------------------------------------------------------------------ reading */
static void read_content(struct normalizer_step *step, struct fields *f, const char *name)
{
    const char *content = fields_string(f, name, NULL);
    if (!content) fields_fail(f, name, "needs a string; fetch the file again");
    struct buffer copy = {0};
    buffer_append_string(&copy, content);
    step->content_bytes = copy.n;
    step->content = buffer_take(&copy);
}

static void read_pattern(struct normalizer_step *step, struct fields *f)
{
    const json_t *pattern = fields_get(f, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *literal = json_object_get(pattern, "String");
    if (f->status != STATUS_OK) return;
    if (json_is_string(regex))
        f->status = pattern_regex(&step->pattern, json_string_value(regex), "normalizer: Replace", f->why);
    else if (json_is_string(literal))
        f->status =
            pattern_literal(&step->pattern, json_string_value(literal), "normalizer: Replace", f->why);
    else fields_fail(f, "pattern", "needs {\"String\": ...} or {\"Regex\": ...}");
}

static void read_step(struct normalizer *z, const struct fields *file, const json_t *object, int depth,
                      enum status *status)
{
    struct fields f = {.object = object, .file = file->file, .path = "normalizer.", .why = file->why};
    const char *type = fields_string(&f, "type", "");
    if (!json_is_object(object)) fields_fail(&f, "type", "needs an object");
    if (f.status == STATUS_OK && !strcmp(type, "Sequence")) {
        const json_t *steps = fields_get(&f, "normalizers");
        if (!json_is_array(steps) || depth > 4) fields_fail(&f, "normalizers", "needs a flat array");
        for (size_t i = 0; f.status == STATUS_OK && i < json_array_size(steps); i++)
            read_step(z, file, json_array_get(steps, i), depth + 1, &f.status);
        *status = f.status;
        return;
    }
    if (z->n_steps == NORMALIZER_STEPS_MAX)
        fields_fail(&f, "type", "at most %d steps are read", NORMALIZER_STEPS_MAX);
    if (f.status == STATUS_OK) {
        struct normalizer_step *step = &z->steps[z->n_steps++];
        *step = (struct normalizer_step){0};
        if (!strcmp(type, "NFC")) {
            step->kind = NORMALIZER_NFC;
#ifndef RETRO_HAVE_UTF8PROC
            fields_fail(&f, "type", "this build has no utf8proc: install libutf8proc-dev and build again");
#endif
        } else if (!strcmp(type, "Prepend")) {
            step->kind = NORMALIZER_PREPEND;
            read_content(step, &f, "prepend");
        } else if (!strcmp(type, "Replace")) {
            step->kind = NORMALIZER_REPLACE;
            read_content(step, &f, "content");
            read_pattern(step, &f);
        } else {
            fields_fail(&f, "type", "is not covered; NFC, Prepend, Replace and Sequence are");
        }
    }
    *status = f.status;
}

enum status normalizer_open(struct normalizer *z, struct fields *file)
{
    z->n_steps = 0;
    const json_t *object = fields_get(file, "normalizer");
    if (object && file->status == STATUS_OK) read_step(z, file, object, 0, &file->status);
    return file->status;
}

void normalizer_close(struct normalizer *z)
{
    for (int i = 0; i < z->n_steps; i++) {
        pattern_free(&z->steps[i].pattern);
        free(z->steps[i].content);
    }
    z->n_steps = 0;
}

bool normalizer_deletes(const struct normalizer *z)
{
    for (int i = 0; i < z->n_steps; i++)
        if (z->steps[i].kind == NORMALIZER_REPLACE && !z->steps[i].content_bytes) return true;
    return false;
}

/* ------------------------------------------------------------------------------------------ running */
enum status normalizer_run(const struct normalizer *z, struct normalizer_scratch *s, const char *text,
                           size_t n, const char **out, size_t *n_out, struct reason *why)
{
    for (int i = 0; i < z->n_steps; i++) {
        const struct normalizer_step *step = &z->steps[i];
        s->out.n = 0;
        if (step->kind == NORMALIZER_NFC) {
            normalizer_nfc(text, n, &s->out);
        } else if (step->kind == NORMALIZER_PREPEND) {
            if (n) buffer_append(&s->out, step->content, step->content_bytes);
            buffer_append(&s->out, text, n);
        } else {
            enum status status = pattern_replace(&step->pattern, &s->match, text, n, step->content,
                                                 step->content_bytes, &s->out, why);
            if (status != STATUS_OK) return status;
        }
        struct buffer swap =
            s->in; /* the text may lie in `in`, so the result becomes the new `in` only now */
        s->in = s->out;
        s->out = swap;
        text = s->in.bytes;
        n = s->in.n;
    }
    *out = text;
    *n_out = n;
    return STATUS_OK;
}
