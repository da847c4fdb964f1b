/* jsonschema_parts.h - what jsonschema*.c share: one compilation. A failed compilation goes on with
 * expressions that mean nothing and keeps its first complaint. */
#ifndef RETRO_JSONSCHEMA_PARTS_H
#define RETRO_JSONSCHEMA_PARTS_H

#include "runtime/jsonschema.h"

enum { /* bits of "type" */
       JSONTYPE_NULL = 1,
       JSONTYPE_BOOLEAN = 2,
       JSONTYPE_OBJECT = 4,
       JSONTYPE_ARRAY = 8,
       JSONTYPE_FRACTION = 16, /* a number that is not whole */
       JSONTYPE_INTEGER = 32,
       JSONTYPE_STRING = 64,
       JSONTYPE_NUMBER = JSONTYPE_FRACTION | JSONTYPE_INTEGER,
       JSONTYPE_ALL = 127
};

struct jsonschema_target { /* of a $ref */
    const json_t *schema;
    int rule;
};

struct jsonschema {
    struct grammar *g;
    const json_t *root;
    struct jsonschema_target *target;
    size_t n_targets, targets_capacity;
    json_t **made; /* schemas merged from others, owned until the end */
    size_t n_made, made_capacity;
    int n_merges;
    /* Rules of JSON itself. */
    int blank, character, string, number, integer, value, any_object, any_array;
    char path[256]; /* of the schema at hand: "properties.a." */
    int depth;
    enum status status;
    struct reason *why;
};

/* Keeps the first complaint; the answer is an expression to go on with. */
int jsonschema_fail(struct jsonschema *c, const char *keyword, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The schema below `keyword` (and the name or number below that). */
int jsonschema_below(struct jsonschema *c, const json_t *schema, const char *keyword, const char *name);
int jsonschema_text(struct jsonschema *c, const char *text);
int jsonschema_concat(struct jsonschema *c, const int *e, int n);

/* jsonschema_value.c */
void jsonschema_define_json(struct jsonschema *c);
int jsonschema_literal(struct jsonschema *c, const json_t *value);
int jsonschema_string(struct jsonschema *c, const json_t *s);
int jsonschema_number(struct jsonschema *c, const json_t *s, bool whole);
int jsonschema_count(struct jsonschema *c, const json_t *s, const char *keyword, int fallback);
/* jsonschema_container.c */
int jsonschema_object(struct jsonschema *c, const json_t *s);
int jsonschema_array(struct jsonschema *c, const json_t *s);
/* jsonschema_choice.c: can no value fit both? */
bool jsonschema_disjoint(struct jsonschema *c, const json_t *a, const json_t *b);
bool jsonschema_same(const json_t *a, const json_t *b); /* as values: 1 is 1.0 */
/* jsonschema_merge.c: the keywords of one schema as one that has no two that must hold apart; owned by `c`. */
const json_t *jsonschema_flatten(struct jsonschema *c, const json_t *s);
/* jsonschema.c: the types that a schema's "type" names or its keywords suggest; the target of a $ref or NULL.
 */
int jsonschema_types(struct jsonschema *c, const json_t *s);
const json_t *jsonschema_resolve(const struct jsonschema *c, const char *ref);
int jsonschema_bit(const json_t *value); /* the type of a value */
/* Refuses keywords that are not covered; branches that are no schemas, or those of oneOf that are not disjoint. */
void jsonschema_look_over(struct jsonschema *c, const json_t *s);
void jsonschema_check_branches(struct jsonschema *c, const json_t *branches, const char *keyword);
void jsonschema_drop_annotations(json_t *s);
/* Removes keywords that say something of these types only. */
void jsonschema_drop_typed(json_t *s, int types);

#endif
