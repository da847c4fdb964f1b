/* jsonschema.c - walks a schema: which keywords stand there, what they mean together; see jsonschema.h. */
#include "runtime/jsonschema.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/buffer.h"
#include "runtime/grammar_parts.h"
#include "runtime/jsonschema_parts.h"

enum { DEPTH_MAX = 100 };

int jsonschema_fail(struct jsonschema *c, const char *keyword, const char *format, ...)
{
    if (c->status == STATUS_OK) {
        char text[256];
        va_list a;
        va_start(a, format);
        vsnprintf(text, sizeof text, format, a);
        va_end(a);
        c->status = status_fail(c->why, STATUS_BAD_INPUT, "%s%s: %s", c->path, keyword, text);
    }
    return grammar_empty(c->g);
}

int jsonschema_text(struct jsonschema *c, const char *text)
{
    return grammar_literal(c->g, text, strlen(text));
}

int jsonschema_concat(struct jsonschema *c, const int *e, int n)
{
    int all = e[n - 1];
    for (int i = n - 2; i >= 0; i--) all = grammar_join(c->g, e[i], all);
    return all;
}

/* ---- references */

static bool hexadecimal(const char *s, char *out)
{
    char digits[3] = {s[0], s[0] ? s[1] : 0, 0}, *end;
    *out = (char)strtol(digits, &end, 16);
    return digits[0] && digits[1] && *end == 0 && *out;
}

/* The next part of a JSON pointer in a URI fragment (RFC 6901, 6): ~0 ~1 and %XX mean characters. */
static const char *next_part(const char *at, struct buffer *part)
{
    part->n = 0;
    for (; *at && *at != '/'; at++) {
        char byte = *at;
        if (byte == '%' && hexadecimal(at + 1, &byte)) at += 2;
        if (byte == '~' && (at[1] == '0' || at[1] == '1')) byte = *++at == '0' ? '~' : '/';
        buffer_append(part, &byte, 1);
    }
    buffer_append(part, "", 1);
    return at;
}

const json_t *jsonschema_resolve(const struct jsonschema *c, const char *ref)
{
    const json_t *at = c->root;
    struct buffer part = {0};
    if (ref[0] != '#' || (ref[1] && ref[1] != '/')) return NULL;
    for (ref++; *ref == '/' && at;) {
        ref = next_part(ref + 1, &part);
        if (json_is_array(at)) {
            char *end;
            unsigned long i = strtoul(part.bytes, &end, 10);
            at = *part.bytes && !*end ? json_array_get(at, i) : NULL;
        } else {
            at = json_object_get(at, part.bytes);
        }
    }
    buffer_free(&part);
    return at;
}

static int compile(struct jsonschema *c, const json_t *s);

static int compile_ref(struct jsonschema *c, const json_t *ref)
{
    const json_t *to = json_is_string(ref) ? jsonschema_resolve(c, json_string_value(ref)) : NULL;
    if (!to) return jsonschema_fail(c, "$ref", "only \"#\" and \"#/...\" of this schema can be referred to");
    for (size_t i = 0; i < c->n_targets; i++)
        if (c->target[i].schema == to) return grammar_call(c->g, c->target[i].rule);
    int rule = grammar_rule(c->g);
    c->target = grammar_grow(c->target, c->n_targets, &c->targets_capacity, sizeof *c->target);
    c->target[c->n_targets++] = (struct jsonschema_target){to, rule};
    char path[sizeof c->path];
    memcpy(path, c->path, sizeof path);
    snprintf(c->path, sizeof c->path, "%.200s: ", json_string_value(ref));
    grammar_define(c->g, rule, compile(c, to));
    memcpy(c->path, path, sizeof path);
    return grammar_call(c->g, rule);
}

/* ---- keywords */

enum keyword_kind { ANNOTATION, ALONE, TYPED };

static const struct keyword {
    const char *name;
    enum keyword_kind kind;
    int types; /* TYPED: what a schema that names no type is taken to describe */
} keywords[] = {
    {"title", ANNOTATION, 0},
    {"description", ANNOTATION, 0},
    {"default", ANNOTATION, 0},
    {"examples", ANNOTATION, 0},
    {"discriminator", ANNOTATION, 0}, /* OpenAPI's: where to look first, beside a oneOf that says the same */
    {"deprecated", ANNOTATION, 0},
    {"readOnly", ANNOTATION, 0},
    {"writeOnly", ANNOTATION, 0},
    {"$comment", ANNOTATION, 0},
    {"$schema", ANNOTATION, 0},
    {"$defs", ANNOTATION, 0},
    {"definitions", ANNOTATION, 0},
    {"$id", ANNOTATION, 0},
    {"$ref", ALONE, 0},
    {"anyOf", ALONE, 0},
    {"oneOf", ALONE, 0},
    {"allOf", ALONE, 0},
    {"enum", ALONE, 0},
    {"const", ALONE, 0},
    {"type", TYPED, 0},
    {"properties", TYPED, JSONTYPE_OBJECT},
    {"required", TYPED, JSONTYPE_OBJECT},
    {"additionalProperties", TYPED, JSONTYPE_OBJECT},
    {"items", TYPED, JSONTYPE_ARRAY},
    {"prefixItems", TYPED, JSONTYPE_ARRAY},
    {"minItems", TYPED, JSONTYPE_ARRAY},
    {"maxItems", TYPED, JSONTYPE_ARRAY},
    {"minLength", TYPED, JSONTYPE_STRING},
    {"maxLength", TYPED, JSONTYPE_STRING},
    {"pattern", TYPED, JSONTYPE_STRING},
    {"format", TYPED, JSONTYPE_STRING},
    {"minimum", TYPED, JSONTYPE_NUMBER},
    {"maximum", TYPED, JSONTYPE_NUMBER},
    {"exclusiveMinimum", TYPED, JSONTYPE_NUMBER},
    {"exclusiveMaximum", TYPED, JSONTYPE_NUMBER},
};

static const struct keyword *find_keyword(const char *name)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++)
        if (strcmp(keywords[i].name, name) == 0) return &keywords[i];
    return NULL;
}

static int type_bit(const json_t *name)
{
    static const struct {
        const char *name;
        int bit;
    } types[] = {{"null", JSONTYPE_NULL},    {"boolean", JSONTYPE_BOOLEAN}, {"object", JSONTYPE_OBJECT},
                 {"array", JSONTYPE_ARRAY},  {"number", JSONTYPE_NUMBER},   {"integer", JSONTYPE_INTEGER},
                 {"string", JSONTYPE_STRING}};
    const char *text = json_string_value(name);
    for (size_t i = 0; text && i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, text) == 0) return types[i].bit;
    return 0;
}

int jsonschema_types(struct jsonschema *c, const json_t *s)
{
    const json_t *type = json_object_get(s, "type");
    int bits = 0;
    if (json_is_array(type) && json_array_size(type) > 0) {
        for (size_t i = 0; i < json_array_size(type); i++) {
            int bit = type_bit(json_array_get(type, i));
            if (!bit) jsonschema_fail(c, "type", "names no type of JSON");
            bits |= bit;
        }
        return bits;
    }
    if (type) {
        bits = type_bit(type);
        if (!bits) jsonschema_fail(c, "type", "names no type of JSON");
        return bits;
    }
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)s, name, value)
    {
        const struct keyword *k = find_keyword(name);
        if (k && k->kind == TYPED) bits |= k->types;
    }
    return bits ? bits : JSONTYPE_ALL;
}

static const char *const together[] = {"$ref", "anyOf", "oneOf", "allOf"};

/* Counts the ALONE and TYPED keywords, "type" apart. */
static void count_keywords(const json_t *s, const char **alone, int *n_alone, int *n_typed)
{
    const char *name;
    json_t *value;
    *n_alone = *n_typed = 0;
    json_object_foreach((json_t *)s, name, value)
    {
        const struct keyword *k = find_keyword(name);
        if (k && k->kind == ALONE) *alone = k->name, ++*n_alone;
        else if (k && k->kind == TYPED && k->types) ++*n_typed;
    }
}

void jsonschema_look_over(struct jsonschema *c, const json_t *s)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)s, name, value)
    {
        if (!find_keyword(name)) jsonschema_fail(c, name, "this keyword is not supported");
        else if (strcmp(name, "$id") == 0 && s != c->root)
            jsonschema_fail(c, name, "is supported at the root only");
    }
}

void jsonschema_drop_annotations(json_t *s)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++)
        if (keywords[i].kind == ANNOTATION) json_object_del(s, keywords[i].name);
}

void jsonschema_drop_typed(json_t *s, int types)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++)
        if (keywords[i].kind == TYPED && keywords[i].types && !(keywords[i].types & ~types))
            json_object_del(s, keywords[i].name);
}

/* Does it say several things that must hold together? */
static bool is_mixed(const struct jsonschema *c, const json_t *s, int n_alone, bool typed)
{
    for (size_t i = 0; i < c->n_made; i++)
        if (c->made[i] == s) return false; /* what could be done was done */
    if (json_object_get(s, "enum") || json_object_get(s, "const")) return n_alone > 1 || typed;
    for (size_t i = 0; i < sizeof together / sizeof *together; i++)
        if (json_object_get(s, together[i]) && (n_alone > 1 || typed)) return true;
    return json_array_size(json_object_get(s, "allOf")) > 1;
}

/* ---- choices */

int jsonschema_bit(const json_t *v)
{
    if (json_is_real(v)) {
        double d = json_real_value(v);
        return d == (double)(long long)d ? JSONTYPE_INTEGER : JSONTYPE_FRACTION;
    }
    switch (json_typeof(v)) {
    case JSON_NULL: return JSONTYPE_NULL;
    case JSON_TRUE:
    case JSON_FALSE: return JSONTYPE_BOOLEAN;
    case JSON_OBJECT: return JSONTYPE_OBJECT;
    case JSON_ARRAY: return JSONTYPE_ARRAY;
    case JSON_STRING: return JSONTYPE_STRING;
    default: return JSONTYPE_INTEGER;
    }
}

static int compile_values(struct jsonschema *c, const json_t *s, const json_t *values, const char *keyword)
{
    int types = jsonschema_types(c, s), e = -1;
    if (!json_is_array(values) || json_array_size(values) == 0 || json_array_size(values) > 1000)
        return jsonschema_fail(c, keyword, "1 to 1000 values are needed");
    for (size_t i = 0; i < json_array_size(values); i++) {
        const json_t *v = json_array_get(values, i);
        if (!(jsonschema_bit(v) & types)) continue;
        int one = jsonschema_literal(c, v);
        e = e < 0 ? one : grammar_either(c->g, one, e);
    }
    return e < 0 ? jsonschema_fail(c, keyword, "no value has the type that is asked for") : e;
}

void jsonschema_check_branches(struct jsonschema *c, const json_t *branches, const char *keyword)
{
    size_t n = json_array_size(branches);
    if (n == 0 || n > 100) jsonschema_fail(c, keyword, "1 to 100 schemas are needed");
    for (size_t i = 0; i < n && n <= 100 && strcmp(keyword, "oneOf") == 0; i++)
        for (size_t k = 0; k < i; k++)
            if (!jsonschema_disjoint(c, json_array_get(branches, k), json_array_get(branches, i)))
                jsonschema_fail(c, keyword,
                                "a value might fit branches %zu and %zu: tell them apart by type or by a "
                                "required constant, or use anyOf",
                                k, i);
}

static int compile_branches(struct jsonschema *c, const json_t *branches, const char *keyword)
{
    int e = grammar_empty(c->g);
    jsonschema_check_branches(c, branches, keyword);
    for (size_t i = 0; i < json_array_size(branches) && c->status == STATUS_OK; i++) {
        char number[24];
        snprintf(number, sizeof number, "%zu", i);
        int one = jsonschema_below(c, json_array_get(branches, i), keyword, number);
        e = i == 0 ? one : grammar_either(c->g, e, one);
    }
    return e;
}

static int compile_alone(struct jsonschema *c, const json_t *s, const char *keyword)
{
    json_t *v = json_object_get(s, keyword);
    if (strcmp(keyword, "$ref") == 0) return compile_ref(c, v);
    if (strcmp(keyword, "enum") == 0) return compile_values(c, s, v, keyword);
    if (strcmp(keyword, "const") == 0) {
        json_t *one = json_pack("[O]", v);
        int e = compile_values(c, s, one, keyword);
        json_decref(one);
        return e;
    }
    return compile_branches(c, v, keyword);
}

static int compile_typed(struct jsonschema *c, const json_t *s, int types)
{
    int option[7], n = 0;
    if (types & JSONTYPE_OBJECT) option[n++] = jsonschema_object(c, s);
    if (types & JSONTYPE_ARRAY) option[n++] = jsonschema_array(c, s);
    if (types & JSONTYPE_STRING) option[n++] = jsonschema_string(c, s);
    if (types & JSONTYPE_NUMBER) option[n++] = jsonschema_number(c, s, !(types & JSONTYPE_FRACTION));
    if (types & JSONTYPE_BOOLEAN)
        option[n++] = grammar_either(c->g, jsonschema_text(c, "true"), jsonschema_text(c, "false"));
    if (types & JSONTYPE_NULL) option[n++] = jsonschema_text(c, "null");
    int e = option[0];
    for (int i = 1; i < n; i++) e = grammar_either(c->g, e, option[i]);
    return e;
}

static int compile(struct jsonschema *c, const json_t *s)
{
    if (json_is_true(s)) return grammar_call(c->g, c->value);
    if (!json_is_object(s)) return jsonschema_fail(c, "schema", "an object or true is needed");
    if (c->depth >= DEPTH_MAX) return jsonschema_fail(c, "schema", "nested deeper than %d", DEPTH_MAX);
    const char *alone = NULL;
    int n_alone, n_typed, e;
    jsonschema_look_over(c, s);
    count_keywords(s, &alone, &n_alone, &n_typed);
    if (c->status != STATUS_OK) return grammar_empty(c->g);
    c->depth++;
    bool values = alone && (strcmp(alone, "enum") == 0 || strcmp(alone, "const") == 0);
    bool typed = n_typed > 0 || (!values && json_object_get(s, "type"));
    int types = jsonschema_types(c, s);
    if (is_mixed(c, s, n_alone, typed)) {
        const json_t *flat = jsonschema_flatten(c, s);
        if (json_is_false(flat))
            e = jsonschema_fail(c, alone, "leaves no value together with what stands beside it");
        else e = compile(c, flat);
    } else if (n_alone > 1 || (n_alone == 1 && typed))
        e = jsonschema_fail(c, alone, "keywords beside it that must hold too are not supported");
    else if (n_alone == 1) e = compile_alone(c, s, alone);
    else if (types == JSONTYPE_ALL && n_typed == 0) e = grammar_call(c->g, c->value);
    else if (c->status == STATUS_OK) e = compile_typed(c, s, types);
    else e = grammar_empty(c->g);
    c->depth--;
    return e;
}

int jsonschema_below(struct jsonschema *c, const json_t *schema, const char *keyword, const char *name)
{
    size_t n = strlen(c->path);
    snprintf(c->path + n, sizeof c->path - n, name ? "%s.%s." : "%s.", keyword, name);
    int e = compile(c, schema);
    c->path[n] = 0;
    return e;
}

enum status jsonschema_compile(struct grammar **out, const json_t *schema, struct reason *why)
{
    struct jsonschema c = {.g = grammar_open(), .root = schema, .why = why};
    jsonschema_define_json(&c);
    int start = grammar_rule(c.g);
    grammar_define(c.g, start, schema ? compile(&c, schema) : grammar_call(c.g, c.any_object));
    if (c.status == STATUS_OK) {
        struct reason sub;
        c.status = grammar_finish(c.g, start, &sub);
        if (c.status != STATUS_OK) status_fail(why, c.status, "schema: %s", sub.text);
    }
    for (size_t i = 0; i < c.n_made; i++) json_decref(c.made[i]);
    free(c.made);
    free(c.target);
    if (c.status != STATUS_OK) grammar_drop(c.g);
    else *out = c.g;
    return c.status;
}
