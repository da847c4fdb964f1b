/* pattern.c - Oniguruma's patterns on PCRE2.
 *
 * translate() walks the pattern once and writes PCRE2's spelling. It knows a whitelist: anything outside it
 * is refused, because a pattern that means something else would give other ids without a sign. */
#define _GNU_SOURCE /* memmem */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/utf8.h"

#define REGEX_BYTES_MAX (1u << 16)

/* ------------------------------------------------------------------------------------------ translation */
struct translator {
    const char *s; /* NUL-terminated, valid UTF-8 */
    size_t at;
    struct buffer out;
    const char *where;
    struct reason *why;
};

static enum status refuse(const struct translator *t, size_t at, const char *what)
{
    return status_fail(
        t->why, STATUS_BAD_MODEL,
        "tokenizer.json: %s: %s at byte %zu (\"%.24s\") is not covered: use a tokenizer of a supported "
        "family",
        t->where, what, at, t->s + at);
}

static bool is_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static void put(struct translator *t, const char *s) { buffer_append_string(&t->out, s); }

/* \p{..}: general categories and Alphabetic are spelt alike; any other name is taken for a script, by Script
 * and not by Script_Extensions, which PCRE2 would use by default. */
static enum status property(struct translator *t, size_t from)
{
    const char *s = t->s + t->at, *close = *s == '{' ? strchr(s, '}') : NULL;
    if (!close) return refuse(t, from, "a property without braces");
    bool negated = s[1] == '^';
    const char *name = s + 1 + negated;
    size_t n = (size_t)(close - name);
    if (!n || n > 32) return refuse(t, from, "this property");
    for (size_t i = 0; i < n; i++)
        if (!is_alnum(name[i]) && name[i] != '_') return refuse(t, from, "this property");
    bool category = strchr("LMNPSZC", name[0]) && (n == 1 || (n == 2 && name[1] >= 'a' && name[1] <= 'z'));
    category |= n == 10 && !memcmp(name, "Alphabetic", n);
    if ((t->s[from + 1] == 'P') != negated) put(t, category ? "\\P{" : "\\P{sc:");
    else put(t, category ? "\\p{" : "\\p{sc:");
    buffer_append(&t->out, name, n);
    put(t, "}");
    t->at += (size_t)(close + 1 - s);
    return STATUS_OK;
}

/* \xHH, \x{H...}, \uHHHH: one character. \x80 and above is a raw byte to Oniguruma. */
static enum status codepoint(struct translator *t, size_t from)
{
    const char *s = t->s + t->at;
    bool braces = t->s[from + 1] == 'x' && *s == '{';
    size_t n = 0, most = braces ? 6 : t->s[from + 1] == 'u' ? 4 : 2;
    s += braces;
    while (n < most && is_hex(s[n])) n++;
    if (!n || (!braces && n != most) || (braces && s[n] != '}')) return refuse(t, from, "this code point");
    if (most == 2 && s[0] > '7') return refuse(t, from, "a raw byte");
    put(t, "\\x{");
    buffer_append(&t->out, s, n);
    put(t, "}");
    t->at += n + 2 * (size_t)braces;
    return STATUS_OK;
}

static enum status escape(struct translator *t, bool in_class)
{
    static const char word[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
    /* Six characters that \w takes and [\w] does not: Oniguruma's Latin-1 table. */
    static const char latin1[] = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}]";
    size_t from = t->at;
    char c = t->s[from + 1];
    if (!c) return refuse(t, from, "a backslash at the end");
    t->at += 2;
    switch (c) {
    case 's': put(t, "\\p{White_Space}"); return STATUS_OK;
    case 'S': put(t, "\\P{White_Space}"); return STATUS_OK;
    case 'd': put(t, "\\p{Nd}"); return STATUS_OK;
    case 'D': put(t, "\\P{Nd}"); return STATUS_OK;
    case 'v': put(t, "\\x{b}"); return STATUS_OK;
    case 'p':
    case 'P': return property(t, from);
    case 'x':
    case 'u': return codepoint(t, from);
    case 'w':
    case 'W':
        if (in_class && c == 'W') return refuse(t, from, "\\W inside a class");
        put(t, in_class ? "" : c == 'w' ? "[" : "[^");
        put(t, word);
        put(t, in_class ? "" : latin1);
        return STATUS_OK;
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'a':
    case 'e': buffer_append(&t->out, t->s + from, 2); return STATUS_OK;
    case 'A':
    case 'z':
        if (in_class) return refuse(t, from, "this escape");
        buffer_append(&t->out, t->s + from, 2);
        return STATUS_OK;
    default: break;
    }
    if (is_alnum(c)) return refuse(t, from, "this escape");
    if ((unsigned char)c >= 0x80) { /* an escaped letter of another script stands for itself */
        t->at = from + 1;
        return STATUS_OK;
    }
    buffer_append(&t->out, t->s + from, 2);
    return STATUS_OK;
}

static enum status class(struct translator *t) {
    size_t from = t->at++; put(t, "["); if (t->s[t->at] == '^'){put(t, "^"); t->at++;}
if (t->s[t->at] == ']') return refuse(t, from, "an empty class");
while (t->s[t->at] != ']') {
    const char *s = t->s + t->at;
    if (!*s) return refuse(t, from, "a class without an end");
    if (*s == '[') return refuse(t, t->at, "a class within a class");
    if (s[0] == '&' && s[1] == '&') return refuse(t, t->at, "an intersection of classes");
    if (*s == '\\') {
        enum status status = escape(t, true);
        if (status != STATUS_OK) return status;
    } else {
        buffer_append(&t->out, s, 1);
        t->at++;
    }
}
t->at++;
put(t, "]");
return STATUS_OK;
}

static enum status group(struct translator *t)
{
    static const char *const openings[] = {
        "(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:", "(?i)"};
    const char *s = t->s + t->at;
    if (s[1] == '*') return refuse(t, t->at, "a verb");
    if (s[1] != '?') {
        put(t, "(");
        t->at++;
        return STATUS_OK;
    }
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++) {
        size_t n = strlen(openings[i]);
        if (strncmp(s, openings[i], n) != 0) continue;
        buffer_append(&t->out, s, n);
        t->at += n;
        return STATUS_OK;
    }
    return refuse(t, t->at, "this group");
}

/* {n}, {n,} and {n,m}; Oniguruma reads {n}+ and {n}? as a second quantifier. */
static enum status interval(struct translator *t)
{
    const char *s = t->s + t->at;
    size_t i = 1;
    bool comma = false;
    while (s[i] >= '0' && s[i] <= '9') i++;
    if (i == 1) return refuse(t, t->at, "this brace");
    if (s[i] == ',') {
        comma = true;
        i++;
        while (s[i] >= '0' && s[i] <= '9') i++;
    }
    if (s[i] != '}') return refuse(t, t->at, "this brace");
    i++;
    if (s[i] == '+' || (s[i] == '?' && !comma)) return refuse(t, t->at, "a quantifier behind an interval");
    buffer_append(&t->out, s, i);
    t->at += i;
    return STATUS_OK;
}

static enum status translate(struct translator *t)
{
    enum status status = STATUS_OK;
    while (t->s[t->at] && status == STATUS_OK) {
        switch (t->s[t->at]) {
        case '\\': status = escape(t, false); break;
        case '[': status = class(t); break;
        case '(': status = group(t); break;
        case '{': status = interval(t); break;
        case '^':
        case '$':
            put(t, t->s[t->at] == '^' ? "(?m:^)" : "(?m:$)");
            t->at++;
            break;
        default: buffer_append(&t->out, t->s + t->at++, 1); break;
        }
    }
    return status;
}

/* ------------------------------------------------------------------------------------------ compile */
enum status pattern_regex(struct pattern *p, const char *regex, const char *where, struct reason *why)
{
    *p = (struct pattern){0};
    if (strlen(regex) > REGEX_BYTES_MAX)
        return status_fail(why, STATUS_BAD_MODEL, "tokenizer.json: %s has %zu bytes, at most %u are read",
                           where, strlen(regex), REGEX_BYTES_MAX);
    struct translator t = {.s = regex, .where = where, .why = why};
    enum status status = translate(&t);
    if (status == STATUS_OK) {
        pcre2_compile_context *context = pcre2_compile_context_create(NULL);
        if (!context) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a regular expression");
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        int error;
        PCRE2_SIZE offset;
        p->code = pcre2_compile((PCRE2_SPTR)(t.out.bytes ? t.out.bytes : ""), t.out.n, PCRE2_UTF | PCRE2_UCP,
                                &error, &offset, context);
        pcre2_compile_context_free(context);
        if (p->code) {
            pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE); /* without it PCRE2 interprets, slower */
        } else {
            PCRE2_UCHAR text[120];
            pcre2_get_error_message(error, text, sizeof text);
            status = status_fail(why, STATUS_BAD_MODEL,
                                 "tokenizer.json: %s: %s: correct the file or fetch it again", where,
                                 (char *)text);
        }
    }
    buffer_free(&t.out);
    return status;
}

enum status pattern_literal(struct pattern *p, const char *s, const char *where, struct reason *why)
{
    *p = (struct pattern){0};
    if (!*s)
        return status_fail(why, STATUS_BAD_MODEL,
                           "tokenizer.json: %s is empty: correct the file or fetch it again", where);
    struct buffer copy = {0};
    buffer_append_string(&copy, s);
    p->literal_bytes = copy.n;
    p->literal = buffer_take(&copy);
    return STATUS_OK;
}

void pattern_free(struct pattern *p)
{
    pcre2_code_free(p->code);
    free(p->literal);
    *p = (struct pattern){0};
}

/* ------------------------------------------------------------------------------------------ matching */
void pattern_scratch_free(struct pattern_scratch *s)
{
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    *s = (struct pattern_scratch){0};
}

struct pattern_scan pattern_scan_begin(const struct pattern *p, struct pattern_scratch *scratch,
                                       const char *text, size_t n)
{
    if (p->code && !scratch->data) {
        scratch->data = pcre2_match_data_create(1, NULL);
        scratch->context = pcre2_match_context_create(NULL);
        if (!scratch->data || !scratch->context) DIE(EXIT_CODE_MEMORY, NULL, "no memory for matching");
    }
    if (p->code) {
        /* Backing off a run of n blanks costs n steps in the published patterns; the rest is PCRE2's default.
         */
        size_t limit = 10000000 + 4 * n;
        pcre2_set_match_limit(scratch->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
    }
    return (struct pattern_scan){.pattern = p, .scratch = scratch, .text = text, .n = n, .status = STATUS_OK};
}

static bool next_regex(struct pattern_scan *s, size_t *start, size_t *end, struct reason *why)
{
    while (s->at <= s->n) {
        int found = pcre2_match(s->pattern->code, (PCRE2_SPTR)s->text, s->n, s->at, PCRE2_NO_UTF_CHECK,
                                s->scratch->data, s->scratch->context);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its stack on the heap */
            found = pcre2_match(s->pattern->code, (PCRE2_SPTR)s->text, s->n, s->at,
                                PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->scratch->data, s->scratch->context);
        if (found == PCRE2_ERROR_NOMATCH) return false;
        if (found < 0) {
            PCRE2_UCHAR text[120];
            pcre2_get_error_message(found, text, sizeof text);
            s->status = status_fail(
                why, STATUS_BAD_INPUT,
                "a pattern of tokenizer.json fails at byte %zu of a text of %zu bytes: %s: shorten "
                "the text",
                s->at, s->n, (char *)text);
            return false;
        }
        const PCRE2_SIZE *pair = pcre2_get_ovector_pointer(s->scratch->data);
        if (pair[0] > pair[1])
            return false; /* \K is refused, so this cannot be; the caller must not see it */
        if (pair[0] == pair[1] && s->matched && s->last_end == pair[1]) {
            if (s->at == s->n) return false;
            utf8_next(s->text, &s->at);
            continue;
        }
        *start = pair[0];
        *end = s->at = s->last_end = pair[1];
        s->matched = true;
        return true;
    }
    return false;
}

bool pattern_scan_next(struct pattern_scan *s, size_t *start, size_t *end, struct reason *why)
{
    if (s->status != STATUS_OK) return false;
    if (s->pattern->code) return next_regex(s, start, end, why);
    if (!s->pattern->literal || s->at >= s->n) return false;
    const char *found = memmem(s->text + s->at, s->n - s->at, s->pattern->literal, s->pattern->literal_bytes);
    if (!found) return false;
    *start = (size_t)(found - s->text);
    *end = s->at = *start + s->pattern->literal_bytes;
    return true;
}

enum status pattern_replace(const struct pattern *p, struct pattern_scratch *scratch, const char *text,
                            size_t n, const char *content, size_t content_bytes, struct buffer *out,
                            struct reason *why)
{
    if (!n) return STATUS_OK; /* the package finds nothing in an empty text, not even an empty match */
    struct pattern_scan scan = pattern_scan_begin(p, scratch, text, n);
    size_t start, end, done = 0;
    while (pattern_scan_next(&scan, &start, &end, why)) {
        buffer_append(out, text + done, start - done);
        buffer_append(out, content, content_bytes);
        done = end;
    }
    buffer_append(out, text + done, n - done);
    return scan.status;
}
