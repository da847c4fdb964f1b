/* jsonschema_merge.c - keywords that hold together: allOf, and what stands beside $ref, anyOf and oneOf.
 *
 * jsonschema_flatten() gives a schema that takes the same values (or fewer) and has no $ref, allOf or oneOf on its top
 * level: typed keywords and enum, or anyOf of such. Below that, two schemas of one property or item stay together as
 * {"allOf": [a, b]} until the compiler comes there. Choices are multiplied out: (a | b) & c is (a & c) | (b & c).
 * Refused: two different patterns or formats of one string. A branch that no type or value is left for is dropped. */
#include <stdio.h>
#include <string.h>

#include "runtime/grammar_parts.h"
#include "runtime/jsonschema_parts.h"

enum { MERGE_DEPTH_MAX = 32, MERGES_MAX = 2000, BRANCHES_MAX = 100 };

/* Holds both; either may be NULL: nothing is asked there. New. */
static json_t *both(json_t *a, json_t *b)
{
    if (!a || json_is_true(a)) return b ? json_incref(b) : json_true();
    if (!b || json_is_true(b) || json_equal(a, b)) return json_incref(a);
    if (json_is_false(a) || json_is_false(b)) return json_false();
    return json_pack("{s:[O, O]}", "allOf", a, b);
}

/* Sets out[name] to both, where one of them has it. */
static void set_both(json_t *out, const char *name, const json_t *a, const json_t *b)
{
    json_t *x = json_object_get(a, name), *y = json_object_get(b, name);
    if (x || y) json_object_set_new(out, name, both(x, y));
}

static void merge_bound(json_t *out, const char *name, const json_t *b, bool larger)
{
    json_t *x = json_object_get(out, name), *y = json_object_get(b, name);
    if (!y || (x && !json_is_number(x))) return; /* what is no number is refused where it is read */
    double u = json_number_value(x), v = json_number_value(y);
    if (!x || !json_is_number(y) || (larger ? v > u : v < u)) json_object_set(out, name, y);
}

static void merge_equal(struct jsonschema *c, json_t *out, const char *name, const json_t *b)
{
    json_t *x = json_object_get(out, name), *y = json_object_get(b, name);
    if (x && y && !json_equal(x, y))
        jsonschema_fail(c, name, "two different ones that must both hold are not supported");
    else if (y) json_object_set(out, name, y);
}

static void merge_required(struct jsonschema *c, json_t *out, const json_t *b)
{
    json_t *x = json_object_get(out, "required"), *y = json_object_get(b, "required");
    if ((x && !json_is_array(x)) || (y && !json_is_array(y)))
        jsonschema_fail(c, "required", "an array is needed");
    if (!x || !y) {
        if (y) json_object_set(out, "required", y);
        return;
    }
    json_t *all = json_copy(x);
    json_array_extend(all, y);
    json_object_set_new(out, "required", all);
}

/* A name that only one side knows is an additional property of the other. */
static void merge_properties(struct jsonschema *c, json_t *out, const json_t *a, const json_t *b)
{
    json_t *x = json_object_get(a, "properties"), *y = json_object_get(b, "properties"), *value;
    json_t *more_a = json_object_get(a, "additionalProperties"),
           *more_b = json_object_get(b, "additionalProperties");
    const char *name;
    if ((x && !json_is_object(x)) || (y && !json_is_object(y)))
        jsonschema_fail(c, "properties", "an object is needed");
    if (!x && !y) return;
    json_t *all = json_object();
    json_object_foreach(x, name, value)
    {
        json_t *other = json_object_get(y, name);
        json_object_set_new(all, name, both(value, other ? other : more_b));
    }
    json_object_foreach(y, name, value) if (!json_object_get(x, name))
        json_object_set_new(all, name, both(value, more_a));
    json_object_set_new(out, "properties", all);
}

static void merge_prefix(struct jsonschema *c, json_t *out, const json_t *a, const json_t *b)
{
    json_t *x = json_object_get(a, "prefixItems"), *y = json_object_get(b, "prefixItems");
    json_t *rest_a = json_object_get(a, "items"), *rest_b = json_object_get(b, "items");
    if ((x && !json_is_array(x)) || (y && !json_is_array(y)))
        jsonschema_fail(c, "prefixItems", "an array is needed");
    size_t n = json_array_size(x) > json_array_size(y) ? json_array_size(x) : json_array_size(y);
    if (n == 0) return;
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *u = json_array_get(x, i), *v = json_array_get(y, i), *one;
        one = both(u ? u : rest_a, v ? v : rest_b);
        if (json_is_false(one)) { /* no array is that long */
            json_t *most = json_pack("{s:I}", "maxItems", (json_int_t)i);
            merge_bound(out, "maxItems", most, false);
            json_decref(most);
            break;
        }
        json_array_append_new(all, one);
    }
    if (json_array_size(all) > 0) json_object_set_new(out, "prefixItems", all);
    else {
        json_decref(all);
        json_object_del(out, "prefixItems");
    }
}

static json_t *type_names(int types)
{
    static const struct {
        const char *name;
        int bits;
    } named[] = {{"null", JSONTYPE_NULL},    {"boolean", JSONTYPE_BOOLEAN}, {"object", JSONTYPE_OBJECT},
                 {"array", JSONTYPE_ARRAY},  {"number", JSONTYPE_NUMBER},   {"integer", JSONTYPE_INTEGER},
                 {"string", JSONTYPE_STRING}};
    json_t *names = json_array();
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if ((types & named[i].bits) == named[i].bits) {
            json_array_append_new(names, json_string(named[i].name));
            types &= ~named[i].bits;
        }
    return names;
}

/* Of the values that out names: those that `b` names too, and that have one of the types. False: none is left. */
static bool merge_values(struct jsonschema *c, json_t *out, const json_t *b)
{
    json_t *x = json_object_get(out, "enum"), *y = json_object_get(b, "enum"), *left = json_array(), *v, *w;
    size_t i, k;
    int types = json_object_get(out, "type") ? jsonschema_types(c, out) : JSONTYPE_ALL;
    if ((x && !json_is_array(x)) || (y && !json_is_array(y)))
        jsonschema_fail(c, "enum", "an array is needed");
    json_array_foreach(x ? x : y, i, v)
    {
        bool named = !x || !y;
        json_array_foreach(y, k, w) named = named || jsonschema_same(v, w);
        if (named && (jsonschema_bit(v) & types)) json_array_append(left, v);
    }
    bool some = json_array_size(left) > 0 || (!x && !y);
    if (x || y) json_object_set(out, "enum", left);
    json_decref(left);
    return some;
}

static bool within(const json_t *s, const char *low, const char *high, double v)
{
    const json_t *x = json_object_get(s, low), *y = json_object_get(s, high);
    return (!x || v >= json_number_value(x)) && (!y || v <= json_number_value(y));
}

/* Does a value keep the bounds that stand beside enum? What is no number there is refused elsewhere. */
static bool keeps_bounds(const json_t *s, const json_t *v)
{
    if (json_is_number(v)) {
        double d = json_number_value(v);
        const json_t *low = json_object_get(s, "exclusiveMinimum"),
                     *high = json_object_get(s, "exclusiveMaximum");
        return within(s, "minimum", "maximum", d) && (!low || d > json_number_value(low)) &&
               (!high || d < json_number_value(high));
    }
    if (!json_is_string(v)) return true;
    int n = 0;
    for (const char *at = json_string_value(v); *at; at++) n += ((unsigned char)*at & 0xc0) != 0x80;
    return within(s, "minLength", "maxLength", n);
}

/* Where values are named, keywords beside them only choose among them: those that are settled go. Patterns, formats and
 * what is inside objects and arrays stay, as long as a value is left that they are about. False: none is left. */
static bool settle_values(struct jsonschema *c, json_t *s)
{
    static const char *const bounds[] = {"minimum",          "maximum",   "exclusiveMinimum",
                                         "exclusiveMaximum", "minLength", "maxLength"};
    json_t *values = json_object_get(s, "enum"), *left, *v;
    size_t i;
    int types = 0;
    if (!json_is_array(values)) return true; /* none, or refused where it is read */
    for (i = 0; i < sizeof bounds / sizeof *bounds; i++)
        if (json_object_get(s, bounds[i]) && !json_is_number(json_object_get(s, bounds[i])))
            jsonschema_fail(c, bounds[i], "a number is needed");
    left = json_array();
    json_array_foreach(values, i, v)
    {
        if (!keeps_bounds(s, v)) continue;
        json_array_append(left, v);
        types |= jsonschema_bit(v);
    }
    for (i = 0; i < sizeof bounds / sizeof *bounds; i++) json_object_del(s, bounds[i]);
    jsonschema_drop_typed(s, JSONTYPE_ALL & ~types);
    json_object_set_new(s, "enum", left);
    return json_array_size(left) > 0;
}

/* Both are plain: typed keywords and enum. New; json_false(): no value is left. */
static json_t *merge_plain(struct jsonschema *c, const json_t *a, const json_t *b)
{
    json_t *out = json_copy((json_t *)a);
    if (json_object_get(a, "type") && json_object_get(b, "type")) {
        int types = jsonschema_types(c, a) & jsonschema_types(c, b);
        json_object_set_new(out, "type", type_names(types));
        if (!types) goto none;
    } else if (json_object_get(b, "type")) json_object_set(out, "type", json_object_get(b, "type"));
    if (!merge_values(c, out, b)) goto none;
    merge_properties(c, out, a, b);
    merge_required(c, out, b);
    merge_prefix(c, out, a, b);
    set_both(out, "additionalProperties", a, b);
    set_both(out, "items", a, b);
    static const char *const low[] = {"minItems", "minLength", "minimum", "exclusiveMinimum"};
    static const char *const high[] = {"maxItems", "maxLength", "maximum", "exclusiveMaximum"};
    for (int i = 0; i < 4; i++) {
        merge_bound(out, low[i], b, true);
        merge_bound(out, high[i], b, false);
    }
    merge_equal(c, out, "pattern", b);
    merge_equal(c, out, "format", b);
    if (!settle_values(c, out)) goto none;
    return out;
none:
    json_decref(out);
    return json_false();
}

/* One of the branches is left as it is, none as json_false(). Takes the array. */
static json_t *choice_of(struct jsonschema *c, json_t *branches)
{
    json_t *out = json_array_size(branches) == 0   ? json_false()
                  : json_array_size(branches) == 1 ? json_incref(json_array_get(branches, 0))
                                                   : json_pack("{s:O}", "anyOf", branches);
    if (json_array_size(branches) > BRANCHES_MAX)
        jsonschema_fail(c, "anyOf", "over %d ways to combine it with what must hold too", BRANCHES_MAX);
    json_decref(branches);
    return out;
}

/* Adds a flat schema, or its branches. */
static void add_branch(json_t *branches, json_t *flat)
{
    json_t *inner = json_object_get(flat, "anyOf");
    if (inner) json_array_extend(branches, inner);
    else if (!json_is_false(flat)) json_array_append(branches, flat);
}

/* Both are flat. New. */
static json_t *merge(struct jsonschema *c, json_t *a, json_t *b)
{
    if (c->status != STATUS_OK || ++c->n_merges > MERGES_MAX) {
        jsonschema_fail(c, "allOf", "over %d schemas to merge", MERGES_MAX);
        return json_true();
    }
    if (json_is_false(a) || json_is_false(b)) return json_false();
    if (json_is_true(a)) return json_incref(b);
    if (json_is_true(b)) return json_incref(a);
    json_t *left = json_object_get(a, "anyOf"), *right = json_object_get(b, "anyOf"), *one;
    if (!left && !right) return merge_plain(c, a, b);
    json_t *many = left ? left : right, *other = left ? b : a, *branches = json_array();
    size_t i;
    json_array_foreach(many, i, one)
    {
        json_t *part = merge(c, one, other);
        add_branch(branches, part);
        json_decref(part);
        if (json_array_size(branches) > BRANCHES_MAX) break;
    }
    return choice_of(c, branches);
}

static json_t *flatten(struct jsonschema *c, json_t *s, int depth);

/* The schema below keyword.name, flat; *all becomes what holds with it too. */
static void flatten_below(struct jsonschema *c, json_t **all, json_t *s, const char *keyword, size_t i,
                          int depth)
{
    size_t n = strlen(c->path);
    snprintf(c->path + n, sizeof c->path - n, "%s.%zu.", keyword, i);
    json_t *flat = flatten(c, s, depth + 1), *before = *all;
    *all = merge(c, before, flat);
    c->path[n] = 0;
    json_decref(before);
    json_decref(flat);
}

/* The branches of anyOf or oneOf as one flat schema. */
static json_t *flatten_choice(struct jsonschema *c, json_t *of, const char *keyword, int depth)
{
    json_t *branches = json_array(), *one;
    size_t i;
    jsonschema_check_branches(c, of, keyword);
    json_array_foreach(of, i, one)
    {
        json_t *flat = json_true();
        flatten_below(c, &flat, one, keyword, i, depth);
        /* true beside others makes them say nothing. */
        if (json_is_true(flat)) {
            json_decref(branches);
            return flat;
        }
        add_branch(branches, flat);
        json_decref(flat);
    }
    return choice_of(c, branches);
}

static json_t *flatten(struct jsonschema *c, json_t *s, int depth)
{
    static const char *const apart[] = {"$ref", "allOf", "anyOf", "oneOf", "const"};
    if (json_is_boolean(s)) return json_incref(s);
    if (depth > MERGE_DEPTH_MAX)
        jsonschema_fail(c, "allOf", "nested deeper than %d, or refers to itself", depth - 1);
    else if (!json_is_object(s)) jsonschema_fail(c, "schema", "an object, true or false is needed");
    else jsonschema_look_over(c, s);
    if (c->status != STATUS_OK) return json_true();
    json_t *all = json_copy(s), *one;
    jsonschema_drop_annotations(all);
    for (size_t i = 0; i < sizeof apart / sizeof *apart; i++) json_object_del(all, apart[i]);
    if (json_object_size(all) == 0) {
        json_decref(all);
        all = json_true();
    } else if (!settle_values(c, all)) {
        json_decref(all);
        all = json_false();
    }
    for (size_t i = 0; i < sizeof apart / sizeof *apart; i++) {
        json_t *v = json_object_get(s, apart[i]), *flat, *before = all;
        size_t k;
        if (!v) continue;
        if (i == 0) {
            const json_t *to = json_is_string(v) ? jsonschema_resolve(c, json_string_value(v)) : NULL;
            if (!to) jsonschema_fail(c, "$ref", "only \"#\" and \"#/...\" of this schema can be referred to");
            flat = to ? flatten(c, (json_t *)to, depth + 1) : json_true();
        } else if (i == 1) {
            jsonschema_check_branches(c, v, apart[i]);
            json_array_foreach(v, k, one) flatten_below(c, &all, one, apart[i], k, depth);
            continue;
        } else if (i == 4) flat = json_pack("{s:[O]}", "enum", v);
        else flat = flatten_choice(c, v, apart[i], depth);
        all = merge(c, before, flat);
        json_decref(before);
        json_decref(flat);
    }
    return all;
}

const json_t *jsonschema_flatten(struct jsonschema *c, const json_t *s)
{
    json_t *flat = flatten(c, (json_t *)s, 0);
    c->made = grammar_grow(c->made, c->n_made, &c->made_capacity, sizeof *c->made);
    c->made[c->n_made++] = flat;
    return flat;
}
