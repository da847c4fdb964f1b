/* jsonschema_choice.c - oneOf means exactly one: it is taken only where no value can fit two branches. */
#include <string.h>

#include "runtime/jsonschema_parts.h"

enum { DEPTH_MAX = 16, COMPARED_MAX = 4096 };

static const json_t *follow(const struct jsonschema *c, const json_t *s)
{
    for (int i = 0; i < DEPTH_MAX && s; i++) {
        const char *ref = json_string_value(json_object_get(s, "$ref"));
        if (!ref) break;
        s = jsonschema_resolve(c, ref);
    }
    return s;
}

bool jsonschema_same(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b)) return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

/* The i-th of the only values that a schema takes; NULL behind the last, or when it names none. */
static const json_t *value_of(const json_t *s, size_t i)
{
    const json_t *one = json_object_get(s, "const");
    return one ? (i == 0 ? one : NULL) : json_array_get(json_object_get(s, "enum"), i);
}

static bool values_disjoint(const json_t *a, const json_t *b)
{
    if (!value_of(a, 0) || !value_of(b, 0)) return false;
    size_t n = json_array_size(json_object_get(a, "enum")) + 1;
    if (n * (json_array_size(json_object_get(b, "enum")) + 1) > COMPARED_MAX) return false;
    for (size_t i = 0; value_of(a, i); i++)
        for (size_t k = 0; value_of(b, k); k++)
            if (jsonschema_same(value_of(a, i), value_of(b, k))) return false;
    return true;
}

static bool requires(const json_t *s, const char *name)
{
    const json_t *required = json_object_get(s, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *one = json_string_value(json_array_get(required, i));
        if (one && strcmp(one, name) == 0) return true;
    }
    return false;
}

bool jsonschema_disjoint(struct jsonschema *c, const json_t *a, const json_t *b)
{
    a = follow(c, a);
    b = follow(c, b);
    if (!json_is_object(a) || !json_is_object(b)) return false;
    if (values_disjoint(a, b)) return true;
    const char *name;
    json_t *value;
    bool typed = json_object_get(a, "type") && json_object_get(b, "type");
    int types_a = jsonschema_types(c, a), types_b = jsonschema_types(c, b);
    if (typed && !(types_a & types_b)) return true;
    if (!typed || (types_a & types_b) != JSONTYPE_OBJECT) return false;
    json_object_foreach(json_object_get(a, "properties"), name, value)
    {
        const json_t *other = json_object_get(json_object_get(b, "properties"), name);
        if (other && requires(a, name) && requires(b, name) &&
            values_disjoint(follow(c, value), follow(c, other)))
            return true;
    }
    return false;
}
