#include "runtime/jsonpattern.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/utf8.h"

enum { SPANS_MAX = 512, DEPTH_MAX = 64, TIMES_MAX = 100000, LAST = 0x10ffff };

struct set {
    struct grammar_span span[SPANS_MAX];
    int n;
    bool ascii; /* holds what ECMA and Python see differently beyond ASCII */
};

struct parser {
    struct grammar *g;
    const char *text;
    size_t n, at;
    int depth;
    enum status status;
    struct reason *why;
};

static void fail(struct parser *p, const char *what)
{
    if (p->status == STATUS_OK)
        p->status =
            status_fail(p->why, STATUS_BAD_INPUT, "\"%.80s\": %s (at byte %zu)", p->text, what, p->at);
}

static bool more(const struct parser *p) { return p->at < p->n && p->status == STATUS_OK; }
static char peek(const struct parser *p) { return p->at < p->n ? p->text[p->at] : 0; }
static bool take(struct parser *p, char c)
{
    if (!more(p) || p->text[p->at] != c) return false;
    p->at++;
    return true;
}

/* ---- sets of characters */

static void add(struct parser *p, struct set *s, uint32_t low, uint32_t high)
{
    if (s->n == SPANS_MAX) fail(p, "a class of too many parts");
    else s->span[s->n++] = (struct grammar_span){low, high};
}

static int by_low(const void *a, const void *b)
{
    const struct grammar_span *x = a, *y = b;
    return x->low < y->low ? -1 : x->low > y->low;
}

/* The complement of s in 0..last. */
static void negate(struct parser *p, struct set *s, uint32_t last)
{
    struct set out = {.n = 0};
    uint32_t from = 0;
    qsort(s->span, (size_t)s->n, sizeof *s->span, by_low);
    for (int i = 0; i < s->n; i++) {
        if (s->span[i].low > from && from <= last)
            add(p, &out, from, s->span[i].low - 1 < last ? s->span[i].low - 1 : last);
        if (s->span[i].high + 1 > from) from = s->span[i].high + 1;
    }
    if (from <= last) add(p, &out, from, last);
    *s = out;
}

/* Adds the class of \d \w \s \D \W \S; false when c is none of them. */
static bool add_class(struct parser *p, struct set *s, char c)
{
    struct set k = {.n = 0};
    switch (c | 0x20) {
    case 'd': add(p, &k, '0', '9'); break;
    case 'w':
        add(p, &k, '0', '9');
        add(p, &k, 'A', 'Z');
        add(p, &k, 'a', 'z');
        add(p, &k, '_', '_');
        break;
    case 's':
        add(p, &k, '\t', '\r');
        add(p, &k, ' ', ' ');
        break;
    default: return false;
    }
    if (c < 'a') negate(p, &k, 0x7f);
    for (int i = 0; i < k.n; i++) add(p, s, k.span[i].low, k.span[i].high);
    s->ascii = true;
    return true;
}

static uint32_t hexadecimal(struct parser *p, int digits)
{
    uint32_t v = 0;
    for (int i = 0; i < digits; i++) {
        char c = peek(p);
        int d = c >= '0' && c <= '9'                     ? c - '0'
                : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                         : -1;
        if (d < 0) {
            fail(p, "a hexadecimal digit is missing");
            return 0;
        }
        v = v * 16 + (uint32_t)d;
        p->at++;
    }
    return v;
}

/* One character, the backslash of an escape being passed. */
static uint32_t escaped(struct parser *p)
{
    char c = peek(p);
    if ((c >= '1' && c <= '9') || c == 'k') fail(p, "references to groups are not supported");
    else if (c == 'b' || c == 'B') fail(p, "\\b and \\B are not supported");
    else if (c == 'p' || c == 'P') fail(p, "\\p is not supported");
    else if (p->at >= p->n) fail(p, "it ends with a backslash");
    if (p->status != STATUS_OK) return 0;
    p->at++;
    switch (c) {
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'f': return '\f';
    case 'v': return '\v';
    case '0': return 0;
    case 'x': return hexadecimal(p, 2);
    case 'u': return hexadecimal(p, 4);
    default: break;
    }
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) fail(p, "an escape that is not known");
    p->at--;
    return utf8_next(p->text, &p->at);
}

/* A character of a class, or a whole class like \d: then false. */
static bool class_item(struct parser *p, struct set *s, uint32_t *c)
{
    if (!take(p, '\\')) {
        *c = utf8_next(p->text, &p->at);
        return true;
    }
    if (p->at < p->n && add_class(p, s, p->text[p->at])) {
        p->at++;
        return false;
    }
    if (take(p, 'b')) *c = '\b';
    else *c = escaped(p);
    return true;
}

static int parse_class(struct parser *p)
{
    struct set s = {.n = 0};
    bool negated = take(p, '^');
    if (peek(p) == ']') fail(p, "an empty class");
    while (more(p) && peek(p) != ']') {
        uint32_t low = 0, high = 0;
        if (!class_item(p, &s, &low)) continue;
        high = low;
        if (peek(p) == '-' && p->at + 1 < p->n && p->text[p->at + 1] != ']') {
            p->at++;
            if (!class_item(p, &s, &high)) fail(p, "a range that ends in a class");
            else if (high < low) fail(p, "a range that goes backwards");
        }
        add(p, &s, low, high);
    }
    if (!take(p, ']')) fail(p, "a class without its ]");
    if (negated) negate(p, &s, s.ascii ? 0x7f : LAST);
    return jsonpattern_char(p->g, s.span, s.n);
}

/* What \n is in a span, and how JSON writes it. */
static const struct {
    uint32_t character;
    const char *text;
} escape[] = {{'"', "\\\""}, {'\\', "\\\\"}, {'\n', "\\n"}, {'\t', "\\t"},
              {'\r', "\\r"}, {'\f', "\\f"},  {'\b', "\\b"}};

int jsonpattern_char(struct grammar *g, const struct grammar_span *span, int n)
{
    /* Everything that JSON lets stand as it is. */
    static const struct grammar_span plain[] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, LAST}};
    struct grammar_span kept[SPANS_MAX * 3];
    int n_kept = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 3; k++) {
            uint32_t low = span[i].low > plain[k].low ? span[i].low : plain[k].low;
            uint32_t high = span[i].high < plain[k].high ? span[i].high : plain[k].high;
            if (low <= high) kept[n_kept++] = (struct grammar_span){low, high};
        }
    int e = grammar_set(g, kept, n_kept);
    for (size_t k = 0; k < sizeof escape / sizeof *escape; k++)
        for (int i = 0; i < n; i++)
            if (span[i].low <= escape[k].character && escape[k].character <= span[i].high) {
                e = grammar_either(g, e, grammar_literal(g, escape[k].text, strlen(escape[k].text)));
                break;
            }
    if (n == 1 && span[0].low == span[0].high && span[0].low < 0x20) { /* a control character, asked for */
        static const char digits[] = "0123456789abcdef";
        char text[7] = "\\u00";
        text[4] = digits[span[0].low >> 4];
        text[5] = digits[span[0].low & 15];
        e = grammar_either(g, e, grammar_literal(g, text, 6));
    }
    return e;
}

static int one(struct parser *p, uint32_t c)
{
    return jsonpattern_char(p->g, &(struct grammar_span){c, c}, 1);
}

static int any_text(struct grammar *g)
{
    static const struct grammar_span all = {0, LAST};
    return grammar_repeat(g, jsonpattern_char(g, &all, 1), 0, -1);
}

/* ---- expressions */

static int parse_branches(struct parser *p, bool outermost);

static int parse_group(struct parser *p)
{
    if (take(p, '?') && !take(p, ':')) fail(p, "look-around, named groups and flags are not supported");
    if (++p->depth > DEPTH_MAX) fail(p, "groups nested too deeply");
    if (p->status != STATUS_OK) return 0;
    int e = parse_branches(p, false);
    p->depth--;
    if (!take(p, ')')) fail(p, "a group without its )");
    return e;
}

static int parse_atom(struct parser *p)
{
    char c = peek(p);
    if (take(p, '(')) return parse_group(p);
    if (take(p, '[')) return parse_class(p);
    if (take(p, '.')) {
        /* No line end: ECMA knows four, Python one. */
        static const struct grammar_span dot[] = {{0, 9}, {11, 12}, {14, 0x2027}, {0x202a, LAST}};
        return jsonpattern_char(p->g, dot, 4);
    }
    if (take(p, '\\')) {
        struct set s = {.n = 0};
        if (p->at < p->n && add_class(p, &s, p->text[p->at])) {
            p->at++;
            return jsonpattern_char(p->g, s.span, s.n);
        }
        return one(p, escaped(p));
    }
    if (c == '*' || c == '+' || c == '?') fail(p, "nothing to repeat");
    else if (c == '^') fail(p, "^ is supported at the beginning of the pattern or of a branch only");
    else if (c == '$') fail(p, "$ is supported at the end of the pattern or of a branch only");
    else if (c == '{' || c == '}' || c == ']') fail(p, "a bracket that must be escaped");
    if (p->status != STATUS_OK) return 0;
    return one(p, utf8_next(p->text, &p->at));
}

static int parse_count(struct parser *p)
{
    int v = -1;
    while (more(p) && peek(p) >= '0' && peek(p) <= '9') {
        v = (v < 0 ? 0 : v) * 10 + (p->text[p->at++] - '0');
        if (v > TIMES_MAX) fail(p, "too many repetitions");
    }
    return v;
}

static int parse_repeated(struct parser *p)
{
    int e = parse_atom(p), min = 1, max = 1;
    if (take(p, '*')) min = 0, max = -1;
    else if (take(p, '+')) max = -1;
    else if (take(p, '?')) min = 0;
    else if (take(p, '{')) {
        min = max = parse_count(p);
        if (take(p, ',')) max = peek(p) == '}' ? -1 : parse_count(p);
        if (min < 0 || (max >= 0 && max < min) || !take(p, '}'))
            fail(p, "a repetition other than {m}, {m,} or {m,n}");
    } else return e;
    take(p, '?'); /* lazy: the same texts */
    char c = peek(p);
    if (c == '*' || c == '+' || c == '?' || c == '{') fail(p, "a repetition of a repetition");
    return p->status == STATUS_OK ? grammar_repeat(p->g, e, min, max) : 0;
}

static int parse_branch(struct parser *p, bool outermost)
{
    bool begins = outermost && take(p, '^'), ends = false;
    int e = begins || !outermost ? grammar_empty(p->g) : any_text(p->g);
    while (more(p) && peek(p) != '|' && peek(p) != ')') {
        if (outermost && peek(p) == '$' && (p->at + 1 == p->n || p->text[p->at + 1] == '|')) {
            p->at++;
            ends = true;
            break;
        }
        e = grammar_join(p->g, e, parse_repeated(p));
    }
    return ends || !outermost ? e : grammar_join(p->g, e, any_text(p->g));
}

static int parse_branches(struct parser *p, bool outermost)
{
    int e = parse_branch(p, outermost);
    while (take(p, '|')) e = grammar_either(p->g, e, parse_branch(p, outermost));
    return e;
}

enum status jsonpattern_compile(struct grammar *g, const char *pattern, int *expression, struct reason *why)
{
    struct parser p = {.g = g, .text = pattern, .n = strlen(pattern), .why = why};
    if (utf8_valid_prefix(pattern, p.n) != p.n) fail(&p, "it is not UTF-8");
    else if (p.n > 4096) fail(&p, "it is longer than 4096 bytes");
    if (p.status == STATUS_OK) *expression = parse_branches(&p, true);
    if (p.status == STATUS_OK && p.at < p.n) fail(&p, "a ) without its (");
    return p.status;
}
