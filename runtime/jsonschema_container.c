/* jsonschema_container.c - schemas of objects and arrays. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/buffer.h"
#include "runtime/jsonschema_parts.h"
#include "runtime/utf8.h"

enum { PROPERTIES_MAX = 1000, NAME_MAX_BYTES = 256 };

static int text(struct jsonschema *c, const char *s) { return jsonschema_text(c, s); }
static int call(struct jsonschema *c, int rule) { return grammar_call(c->g, rule); }

#define CONCAT(c, ...)                                                                                       \
    jsonschema_concat(c, (const int[]){__VA_ARGS__}, (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int)))

/* ---- objects */

struct property {
    const char *name;
    int value; /* expression; -1: may not be there */
    bool required;
};

struct object {
    struct property *property; /* (n) */
    int n;
    int more; /* value of further properties, -1: there are none */
};

static bool is_required(const json_t *required, const char *name)
{
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *one = json_string_value(json_array_get(required, i));
        if (one && strcmp(one, name) == 0) return true;
    }
    return false;
}

static void add_property(struct jsonschema *c, struct object *o, const char *name, int value, bool required)
{
    if (o->n >= PROPERTIES_MAX || strlen(name) > NAME_MAX_BYTES) {
        jsonschema_fail(c, "properties", "over %d of them, or a name over %d bytes", PROPERTIES_MAX,
                        NAME_MAX_BYTES);
        return;
    }
    o->property[o->n++] = (struct property){name, value, required};
}

static void read_object(struct jsonschema *c, const json_t *s, struct object *o)
{
    json_t *properties = json_object_get(s, "properties"), *required = json_object_get(s, "required");
    const json_t *additional = json_object_get(s, "additionalProperties");
    const char *name;
    json_t *value;
    if (properties && !json_is_object(properties)) jsonschema_fail(c, "properties", "an object is needed");
    if (required && !json_is_array(required)) jsonschema_fail(c, "required", "an array is needed");
    o->property = buffer_zeroed(PROPERTIES_MAX, sizeof *o->property);
    json_object_foreach(properties, name, value)
    {
        bool needed = is_required(required, name);
        if (json_is_false(value) && !needed) { /* never there, and no other name either */
            add_property(c, o, name, -1, false);
            continue;
        }
        add_property(c, o, name, jsonschema_below(c, value, "properties", name), needed);
    }
    o->more = -1;
    if (additional && !json_is_false(additional))
        o->more = jsonschema_below(c, additional, "additionalProperties", NULL);
    else if (!additional && o->n == 0) o->more = call(c, c->value);
    int other = additional ? o->more : call(c, c->value);
    for (size_t i = 0; i < json_array_size(required); i++) {
        name = json_string_value(json_array_get(required, i));
        if (!name) jsonschema_fail(c, "required", "strings are needed");
        else if (json_object_get(properties, name)) continue;
        else if (other < 0) jsonschema_fail(c, "required", "\"%.60s\" can never be there", name);
        else {
            bool twice = false;
            for (int k = 0; k < o->n; k++) twice |= strcmp(o->property[k].name, name) == 0;
            if (!twice) add_property(c, o, name, other, true);
        }
    }
}

/* The rest of a key after `at` bytes that `name[0..n)` share, and its closing quote: every text that is none
 * of the names. The names are in order. Keys are written without escapes here, so a name that needs them is
 * no danger. */
static int other_key(struct jsonschema *c, const char *const *name, int n, size_t at)
{
    static const struct grammar_span plain[] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0x10ffff}};
    int character = grammar_set(c->g, plain, 3), quote = text(c, "\"");
    int free_rest = CONCAT(c, grammar_repeat(c->g, character, 0, -1), quote);
    int e = n > 0 && !name[0][at] ? grammar_set(c->g, NULL, 0) : quote;
    struct grammar_span *span = buffer_zeroed((size_t)n + 4, sizeof *span);
    int n_spans = 0, i = n > 0 && !name[0][at] ? 1 : 0;
    uint32_t from = 0x20;
    while (i < n) {
        size_t after = at;
        uint32_t first = utf8_next(name[i], &after);
        int same = i;
        while (same < n && strncmp(name[same] + at, name[i] + at, after - at) == 0) same++;
        if (first >= 0x20 && first != '"' && first != '\\') {
            if (first > from) span[n_spans++] = (struct grammar_span){from, first - 1};
            from = first + 1;
            int one = grammar_literal(c->g, name[i] + at, after - at);
            e = grammar_either(c->g, e, CONCAT(c, one, other_key(c, name + i, same - i, after)));
        }
        i = same;
    }
    span[n_spans++] = (struct grammar_span){from, 0x10ffff};
    /* Out of every span the two that must be escaped. */
    struct grammar_span *cut = buffer_zeroed((size_t)n_spans * 3, sizeof *cut);
    int n_cut = 0;
    for (int k = 0; k < n_spans; k++)
        for (int p = 0; p < 3; p++) {
            uint32_t low = span[k].low > plain[p].low ? span[k].low : plain[p].low;
            uint32_t high = span[k].high < plain[p].high ? span[k].high : plain[p].high;
            if (low <= high) cut[n_cut++] = (struct grammar_span){low, high};
        }
    e = grammar_either(c->g, e, CONCAT(c, grammar_set(c->g, cut, n_cut), free_rest));
    free(span);
    free(cut);
    return e;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int other_pair(struct jsonschema *c, const struct object *o)
{
    const char **name = buffer_zeroed((size_t)o->n + 1, sizeof *name);
    for (int i = 0; i < o->n; i++) name[i] = o->property[i].name;
    qsort(name, (size_t)o->n, sizeof *name, by_name);
    int key = other_key(c, name, o->n, 0);
    free(name);
    return CONCAT(c, text(c, "\""), key, text(c, ":"), call(c, c->blank), o->more);
}

/* What may follow when properties [0, i) are through; first: none of them was written. One rule each, so that
 * what follows is compiled once. */
int jsonschema_object(struct jsonschema *c, const json_t *s)
{
    struct object o = {.n = 0};
    read_object(c, s, &o);
    int blank = call(c, c->blank), comma = CONCAT(c, text(c, ","), blank);
    int(*rest)[2] = buffer_zeroed((size_t)o.n + 1, sizeof *rest);
    for (int i = 0; i <= o.n; i++)
        for (int first = 0; first < 2; first++) rest[i][first] = grammar_rule(c->g);
    for (int i = 0; i < o.n; i++) {
        if (o.property[i].value < 0) {
            for (int first = 0; first < 2; first++)
                grammar_define(c->g, rest[i][first], call(c, rest[i + 1][first]));
            continue;
        }
        json_t *name = json_string(o.property[i].name);
        int pair = CONCAT(c, jsonschema_literal(c, name), text(c, ":"), blank, o.property[i].value);
        int rule = grammar_rule(c->g); /* called from both forms */
        json_decref(name);
        grammar_define(c->g, rule, pair);
        for (int first = 0; first < 2; first++) {
            int e = CONCAT(c, first ? blank : comma, call(c, rule), call(c, rest[i + 1][0]));
            if (!o.property[i].required) e = grammar_either(c->g, e, call(c, rest[i + 1][first]));
            grammar_define(c->g, rest[i][first], e);
        }
    }
    int later = grammar_empty(c->g), begun = later;
    if (o.more >= 0 && c->status == STATUS_OK) {
        int pair = grammar_rule(c->g);
        grammar_define(c->g, pair, other_pair(c, &o));
        later = grammar_repeat(c->g, CONCAT(c, comma, call(c, pair)), 0, -1);
        begun = grammar_repeat(c->g, CONCAT(c, blank, call(c, pair), later), 0, 1);
    }
    grammar_define(c->g, rest[o.n][0], later);
    grammar_define(c->g, rest[o.n][1], begun);
    int e = CONCAT(c, text(c, "{"), call(c, rest[0][1]), blank, text(c, "}"));
    free(rest);
    free(o.property);
    return e;
}

/* ---- arrays */

int jsonschema_array(struct jsonschema *c, const json_t *s)
{
    const json_t *prefix = json_object_get(s, "prefixItems"), *items = json_object_get(s, "items");
    int min = jsonschema_count(c, s, "minItems", 0), max = jsonschema_count(c, s, "maxItems", -1);
    int n = (int)json_array_size(prefix), blank = call(c, c->blank), comma = CONCAT(c, text(c, ","), blank);
    const char *draft = json_string_value(json_object_get(c->root, "$schema"));
    if (max >= 0 && max < min) return jsonschema_fail(c, "maxItems", "is less than minItems");
    if (json_is_array(items))
        return jsonschema_fail(c, "items", "an array is not supported: use prefixItems");
    if (prefix && draft && !strstr(draft, "2020-12"))
        return jsonschema_fail(c, "prefixItems", "$schema must name draft 2020-12");
    if (prefix && (n == 0 || n > PROPERTIES_MAX))
        return jsonschema_fail(c, "prefixItems", "an array of 1 to %d schemas is needed", PROPERTIES_MAX);
    if (max >= 0 && n > max) n = max;
    if (json_is_false(items)) {
        if (min > n) return jsonschema_fail(c, "minItems", "there can be only %d", n);
        if (max < 0 || max > n) max = n;
    }
    /* Behind the fixed ones. */
    int least = min > n ? min - n : 0, most = max < 0 ? -1 : max - n, rest = grammar_empty(c->g);
    if (most != 0) {
        int item = grammar_rule(c->g);
        grammar_define(c->g, item, items ? jsonschema_below(c, items, "items", NULL) : call(c, c->value));
        int next = CONCAT(c, comma, call(c, item));
        if (n > 0) rest = grammar_repeat(c->g, next, least, most);
        else
            rest = CONCAT(c, blank, call(c, item),
                          grammar_repeat(c->g, next, least ? least - 1 : 0, most < 0 ? -1 : most - 1));
        if (n == 0 && least == 0) rest = grammar_repeat(c->g, rest, 0, 1);
    }
    for (int i = n - 1; i >= 0; i--) {
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        int value = jsonschema_below(c, json_array_get(prefix, (size_t)i), "prefixItems", number);
        rest = CONCAT(c, i ? comma : blank, value, rest);
        if (i >= min) rest = grammar_repeat(c->g, rest, 0, 1);
    }
    return CONCAT(c, text(c, "["), rest, blank, text(c, "]"));
}
