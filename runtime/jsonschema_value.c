/* jsonschema_value.c - JSON itself as rules, and schemas of strings and numbers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/jsonpattern.h"
#include "runtime/jsonschema_parts.h"

#define WHOLE_MAX 999999999999999LL /* 15 digits: exact in a double */
enum { FRACTION_DIGITS = 15, BOUNDED_DIGITS = 6 };

static int set_of(struct jsonschema *c, const char *spans)
{
    struct grammar_span s[8];
    int n = 0;
    for (; spans[2 * n]; n++)
        s[n] = (struct grammar_span){(unsigned char)spans[2 * n], (unsigned char)spans[2 * n + 1]};
    return grammar_set(c->g, s, n);
}

static int call(struct jsonschema *c, int rule) { return grammar_call(c->g, rule); }
static int optional(struct jsonschema *c, int e) { return grammar_repeat(c->g, e, 0, 1); }
static int several(struct jsonschema *c, int e, int min, int max)
{
    return grammar_repeat(c->g, e, min, max);
}
static int text(struct jsonschema *c, const char *s) { return jsonschema_text(c, s); }

#define CONCAT(c, ...)                                                                                       \
    jsonschema_concat(c, (const int[]){__VA_ARGS__}, (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int)))

/* A character of a string as a whole code point: no escaped surrogates, so that lengths can be counted. */
static void define_character(struct jsonschema *c)
{
    static const struct grammar_span plain[] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0x10ffff}};
    int hex = set_of(c, "09afAF"), letter = set_of(c, "\"\"\\\\//bbffnnrrtt");
    int four = grammar_either(c->g, CONCAT(c, set_of(c, "09acACefEF"), several(c, hex, 3, 3)),
                              CONCAT(c, set_of(c, "ddDD"), set_of(c, "07"), several(c, hex, 2, 2)));
    int unicode = CONCAT(c, text(c, "u"), four);
    int escape = CONCAT(c, text(c, "\\"), grammar_either(c->g, letter, unicode));
    grammar_define(c->g, c->character, grammar_either(c->g, grammar_set(c->g, plain, 3), escape));
}

static void define_numbers(struct jsonschema *c)
{
    int digit = set_of(c, "09");
    int whole =
        CONCAT(c, optional(c, text(c, "-")),
               grammar_either(c->g, text(c, "0"), CONCAT(c, set_of(c, "19"), several(c, digit, 0, 14))));
    int fraction = CONCAT(c, text(c, "."), several(c, digit, 1, FRACTION_DIGITS));
    int exponent = CONCAT(c, set_of(c, "eeEE"), optional(c, set_of(c, "++--")), several(c, digit, 1, 2));
    grammar_define(c->g, c->integer, whole);
    grammar_define(c->g, c->number,
                   CONCAT(c, call(c, c->integer), optional(c, fraction), optional(c, exponent)));
}

/* "[" or "{", items with commas between them, the other bracket. */
static int enclosed(struct jsonschema *c, const char *open, int item, const char *close)
{
    int blank = call(c, c->blank);
    int items = CONCAT(c, blank, item, several(c, CONCAT(c, text(c, ","), blank, item), 0, -1));
    return CONCAT(c, text(c, open), optional(c, items), blank, text(c, close));
}

void jsonschema_define_json(struct jsonschema *c)
{
    int *rules[] = {&c->blank,   &c->character, &c->string,     &c->number,
                    &c->integer, &c->value,     &c->any_object, &c->any_array};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) *rules[i] = grammar_rule(c->g);
    int line = CONCAT(c, text(c, "\n"), several(c, text(c, " "), 0, 16));
    grammar_define(c->g, c->blank, optional(c, grammar_either(c->g, text(c, " "), line)));
    define_character(c);
    define_numbers(c);
    grammar_define(c->g, c->string,
                   CONCAT(c, text(c, "\""), several(c, call(c, c->character), 0, -1), text(c, "\"")));
    int pair = CONCAT(c, call(c, c->string), text(c, ":"), call(c, c->blank), call(c, c->value));
    grammar_define(c->g, c->any_object, enclosed(c, "{", pair, "}"));
    grammar_define(c->g, c->any_array, enclosed(c, "[", call(c, c->value), "]"));
    int e = call(c, c->any_object);
    e = grammar_either(c->g, e, call(c, c->any_array));
    e = grammar_either(c->g, e, call(c, c->string));
    e = grammar_either(c->g, e, call(c, c->number));
    static const char *const words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) e = grammar_either(c->g, e, text(c, words[i]));
    grammar_define(c->g, c->value, e);
}

/* With no more digits than it takes to tell the numbers from all others: 0.1, not 0.10000000000000001. */
static char *shortest(const json_t *value)
{
    char *t = NULL;
    for (size_t digits = 15; digits <= 17; digits++) {
        free(t);
        t = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits));
        json_t *again = t ? json_loads(t, JSON_DECODE_ANY, NULL) : NULL;
        bool same = json_equal(again, value);
        json_decref(again);
        if (same) break;
    }
    return t;
}

int jsonschema_literal(struct jsonschema *c, const json_t *value)
{
    char *t = shortest(value);
    int e = t ? text(c, t) : jsonschema_fail(c, "enum", "a value that cannot be written");
    free(t);
    return e;
}

/* ---- strings */

static const struct {
    const char *name, *pattern;
} formats[] = {
/* Days that exist: 31, 30 and 28 day months, and 29 February of leap years. */
#define DATE                                                                                                 \
    "(?:\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0["  \
    "1-"                                                                                                     \
    "9]|1\\d|2[0-8]))|(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
#define TIME "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"
    {"date", "^" DATE "$"},
    {"time", "^" TIME "$"},
    {"date-time", "^" DATE "T" TIME "$"},
    {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    {"ipv4", "^(?:(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)$"},
};

int jsonschema_count(struct jsonschema *c, const json_t *s, const char *keyword, int fallback)
{
    const json_t *v = json_object_get(s, keyword);
    if (!v) return fallback;
    double d = json_number_value(v);
    if (!json_is_number(v) || d < 0 || d > 100000 || d != floor(d)) {
        jsonschema_fail(c, keyword, "a whole number from 0 to 100000 is needed");
        return fallback;
    }
    return (int)d;
}

static int from_pattern(struct jsonschema *c, const char *keyword, const char *pattern)
{
    int inside;
    struct reason why;
    if (jsonpattern_compile(c->g, pattern, &inside, &why) != STATUS_OK)
        return jsonschema_fail(c, keyword, "%s", why.text);
    return CONCAT(c, text(c, "\""), inside, text(c, "\""));
}

int jsonschema_string(struct jsonschema *c, const json_t *s)
{
    const json_t *pattern = json_object_get(s, "pattern"), *format = json_object_get(s, "format");
    int min = jsonschema_count(c, s, "minLength", 0), max = jsonschema_count(c, s, "maxLength", -1);
    if (max >= 0 && max < min) return jsonschema_fail(c, "maxLength", "is less than minLength");
    if (!pattern && !format) {
        if (min == 0 && max < 0) return call(c, c->string);
        return CONCAT(c, text(c, "\""), several(c, call(c, c->character), min, max), text(c, "\""));
    }
    if (min > 0 || max >= 0 || (pattern && format))
        return jsonschema_fail(c, pattern ? "pattern" : "format",
                               "is not supported together with a length or %s",
                               pattern ? "format" : "pattern");
    if (pattern && !json_is_string(pattern)) return jsonschema_fail(c, "pattern", "a string is needed");
    if (pattern) return from_pattern(c, "pattern", json_string_value(pattern));
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (json_is_string(format) && strcmp(json_string_value(format), formats[i].name) == 0)
            return from_pattern(c, "format", formats[i].pattern);
    return jsonschema_fail(c, "format", "only date, time, date-time, uuid and ipv4 are supported");
}

/* ---- numbers in a range */

/* Whole numbers of n digits between low and high, both written with n digits. */
static int digits_between(struct jsonschema *c, const char *low, const char *high, int n)
{
    static const char zeros[] = "000000000000000", nines[] = "999999999999999";
    if (n == 0) return grammar_empty(c->g);
    /* All of them: without this the two halves below would double with every digit. */
    if (memcmp(low, zeros, (size_t)n) == 0 && memcmp(high, nines, (size_t)n) == 0)
        return several(c, set_of(c, "09"), n, n);
    int any = several(c, set_of(c, "09"), n - 1, n - 1), e;
    if (low[0] == high[0]) {
        char one[3] = {low[0], low[0], 0};
        return CONCAT(c, set_of(c, one), digits_between(c, low + 1, high + 1, n - 1));
    }
    char first[3] = {low[0], low[0], 0}, last[3] = {high[0], high[0], 0};
    e = grammar_either(c->g, CONCAT(c, set_of(c, first), digits_between(c, low + 1, nines, n - 1)),
                       CONCAT(c, set_of(c, last), digits_between(c, zeros, high + 1, n - 1)));
    if (high[0] - low[0] > 1) {
        char between[3] = {(char)(low[0] + 1), (char)(high[0] - 1), 0};
        e = grammar_either(c->g, e, CONCAT(c, set_of(c, between), any));
    }
    return e;
}

/* 0 <= low <= high, without leading zeros. */
static int whole_between(struct jsonschema *c, long long low, long long high)
{
    int e = -1;
    long long from = 0, to = 9;
    for (int n = 1; n <= 15; n++, from = to + 1, to = to * 10 + 9) {
        long long a = low > from ? low : from, b = high < to ? high : to;
        if (a > b) continue;
        char first[24], last[24];
        snprintf(first, sizeof first, "%lld", a);
        snprintf(last, sizeof last, "%lld", b);
        int one = digits_between(c, first, last, n);
        e = e < 0 ? one : grammar_either(c->g, e, one);
    }
    return e < 0 ? grammar_set(c->g, NULL, 0) : e;
}

static long long most(long long a, long long b) { return a > b ? a : b; }

static int signed_between(struct jsonschema *c, long long low, long long high)
{
    int e = grammar_set(c->g, NULL, 0);
    if (high >= 0) e = whole_between(c, most(low, 0), high);
    if (low < 0) e = grammar_either(c->g, e, CONCAT(c, text(c, "-"), whole_between(c, most(-high, 1), -low)));
    return e;
}

/* 0 <= k < limit with any fraction, from `first` on; what lies at an excluded bound needs a fraction that is
 * not 0. */
static int fractions(struct jsonschema *c, long long first, long long limit, bool first_open)
{
    int digit = set_of(c, "09"), any = CONCAT(c, text(c, "."), several(c, digit, 1, BOUNDED_DIGITS));
    int e = grammar_set(c->g, NULL, 0), nonzero = e;
    for (int zeros = 0; zeros < BOUNDED_DIGITS; zeros++)
        nonzero = grammar_either(c->g, nonzero,
                                 CONCAT(c, text(c, "."), several(c, text(c, "0"), zeros, zeros),
                                        set_of(c, "19"), several(c, digit, 0, BOUNDED_DIGITS - zeros - 1)));
    if (first_open && first < limit) {
        e = CONCAT(c, whole_between(c, first, first), nonzero);
        first++;
    }
    if (first < limit) e = grammar_either(c->g, e, CONCAT(c, whole_between(c, first, limit - 1), any));
    return e;
}

struct range {
    long long low, high;
    bool low_open, high_open; /* the bound itself is excluded */
    bool given;
};

static void narrow(struct jsonschema *c, const json_t *s, const char *keyword, bool whole, struct range *r)
{
    const json_t *v = json_object_get(s, keyword);
    bool open = keyword[0] == 'e', upper = strstr(keyword, "ax") != NULL;
    if (!v) return;
    double d = json_number_value(v), rounded = upper ? floor(d) : ceil(d);
    r->given = true;
    if (!json_is_number(v) || fabs(d) > WHOLE_MAX) {
        jsonschema_fail(c, keyword, "a number of at most 15 digits is needed");
        return;
    }
    if (!whole && (rounded != d || (open && fabs(d) > 1e9))) {
        jsonschema_fail(c, keyword, "%g: for \"number\" only whole bounds are supported%s", d,
                        rounded != d ? "" : ", open ones up to 1e9");
        return;
    }
    long long bound = (long long)rounded;
    if (whole && open && rounded == d) bound += upper ? -1 : 1;
    if (upper && (bound < r->high || (bound == r->high && open))) r->high = bound, r->high_open = open;
    if (!upper && (bound > r->low || (bound == r->low && open))) r->low = bound, r->low_open = open;
}

int jsonschema_number(struct jsonschema *c, const json_t *s, bool whole)
{
    static const char *const keywords[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};
    struct range r = {.low = -WHOLE_MAX, .high = WHOLE_MAX};
    for (int i = 0; i < 4; i++) narrow(c, s, keywords[i], whole, &r);
    if (c->status != STATUS_OK || !r.given) return call(c, whole ? c->integer : c->number);
    bool empty = r.low > r.high || (!whole && r.low == r.high && (r.low_open || r.high_open));
    if (empty) return jsonschema_fail(c, "minimum", "no number lies between the bounds");
    if (whole) return signed_between(c, r.low, r.high);
    int e = grammar_set(c->g, NULL, 0);
    if (r.low + r.low_open <= r.high - r.high_open)
        e = signed_between(c, r.low + r.low_open, r.high - r.high_open);
    if (r.high > 0)
        e = grammar_either(c->g, e, fractions(c, most(r.low, 0), r.high, r.low_open && r.low >= 0));
    if (r.low < 0)
        e = grammar_either(
            c->g, e,
            CONCAT(c, text(c, "-"), fractions(c, most(-r.high, 0), -r.low, r.high_open && r.high <= 0)));
    return e;
}
