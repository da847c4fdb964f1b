/* jsonschema.h - JSON schemas (draft 2020-12) as grammars, for response_format.
 *
 * Every text that the grammar lets through is JSON that the schema accepts. The reverse holds as far as these
 * choices go: properties come in the schema's order, those that it does not name only where
 * additionalProperties is given (or nothing is named), and then behind the others and written without
 * escapes; numbers have up to 15 digits before and behind the point; white space is a blank, or a line end
 * and up to 16 blanks, where a value may begin or end.
 *
 * Covered: type, enum, const, properties, required, additionalProperties, items, prefixItems, minItems,
 * maxItems, minLength, maxLength, pattern (jsonpattern.h), format (date, time, date-time, uuid, ipv4),
 * minimum, maximum, exclusiveMinimum, exclusiveMaximum (whole numbers for "number"), anyOf, oneOf where no
 * value fits two branches, allOf, $ref within the schema, and annotations. Every other keyword is refused by
 * name and place: none is ignored. Keywords beside each other hold together (jsonschema_merge.c), a choice beside
 * others multiplied out to at most 100 branches. Refused too: two patterns or formats of one string, one of them
 * together with a length or with named strings, named objects and arrays beside keywords about what is in them. */
#ifndef RETRO_JSONSCHEMA_H
#define RETRO_JSONSCHEMA_H

#include <jansson.h>

#include "runtime/grammar.h"

/* schema NULL: any object. BAD_INPUT: the line begins with the keyword's place, "properties.a.format: ...".
 */
enum status jsonschema_compile(struct grammar **out, const json_t *schema, struct reason *why);

#endif
