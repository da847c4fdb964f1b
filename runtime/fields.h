/* fields.h - reading the fields of a JSON object from a foreign file, one complaint at most.
 *
 * A reader keeps its first failure: later reads return their fallback and write nothing, so a parser is a
 * list of reads followed by one look at `status`. A field that is absent or null yields the fallback. Every
 * complaint is one line: file, field, the value found (cut short) and what was expected. Refused: wrong JSON
 * types (4096.0 where an integer is needed), values out of range, duplicate keys, files over a limit, nesting
 * deeper than jansson's 2048. */
#ifndef RETRO_FIELDS_H
#define RETRO_FIELDS_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "runtime/base/status.h"

struct fields {
    const json_t *object; /* borrowed */
    const char *file;     /* for messages; borrowed */
    const char *path;     /* "" or what leads to the object, with its dot: "rope_scaling." */
    enum status status;   /* of the first failure; STATUS_OK while there is none */
    struct reason *why;
};

/* The text of a JSON object (anything else is refused); the caller decrefs. `file` is used in messages. */
enum status fields_parse(json_t **out, const char *text, size_t text_bytes, const char *file,
                         struct reason *why);
/* The same from a regular file of at most `limit_bytes`. */
enum status fields_load(json_t **out, const char *file, size_t limit_bytes, struct reason *why);

/* NULL where the field is absent or null. */
const json_t *fields_get(const struct fields *f, const char *name);
int fields_int(struct fields *f, const char *name, int fallback, int min, int max);
/* An integer or a real; min <= value <= max. */
double fields_number(struct fields *f, const char *name, double fallback, double min, double max);
bool fields_bool(struct fields *f, const char *name, bool fallback);
/* Borrowed from the object; the fallback may be NULL. */
const char *fields_string(struct fields *f, const char *name, const char *fallback);
/* Fails the reader with "FILE: PATH+NAME is VALUE: TEXT" (or "is missing"), unless it failed before. */
void fields_fail(struct fields *f, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A value as one short line of ASCII JSON, cut with "..." to fit; text_bytes is at least 8. */
void fields_show(const json_t *value, char *text, size_t text_bytes);

#endif
