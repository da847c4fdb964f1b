/* api_parts.h - what api*.c share. */
#ifndef RETRO_API_PARTS_H
#define RETRO_API_PARTS_H

#include <pthread.h>

#include "runtime/api.h"
#include "runtime/grammar.h"

enum { API_SCHEMAS_KEPT = 32 };

struct api_schema { /* a compiled response_format, by its text */
    char *text;
    struct grammar *grammar;
    uint64_t used; /* when last */
};

struct api {
    struct api_options o;
    char *model;
    struct grammar_trie *trie;
    pthread_mutex_t lock; /* of the schemas */
    struct api_schema schema[API_SCHEMAS_KEPT];
    int n_schemas;
    uint64_t n_uses;
};

/* One body on its way to a request; the first complaint is kept. */
struct api_parse {
    struct api *api;
    struct api_request *r;
    const json_t *body;
    struct api_error *error;
    bool failed;
    bool logprobs, max_given;
    int best_of, n_top;
};

void api_fail(struct api_parse *p, const char *param, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void api_error_set(struct api_error *e, int http, const char *code, const char *param, const char *format,
                   ...) __attribute__((format(printf, 5, 6)));
/* The body as an object; false: *e is set. The caller decrefs. */
bool api_load(const char *body, size_t n, json_t **out, struct api_error *e);
bool api_is_model(const struct api *a, const json_t *name, struct api_error *e);
bool api_is_model_name(const struct api *a, const char *name, struct api_error *e);

/* api_fields.c: all fields of p->body. */
void api_read_fields(struct api_parse *p);
/* Values; they fail with the field's name. */
bool api_read_real(struct api_parse *p, const json_t *v, const char *name, double min, double max,
                   double *out);
bool api_read_int(struct api_parse *p, const json_t *v, const char *name, int64_t min, int64_t max,
                  int64_t *out);
bool api_read_bool(struct api_parse *p, const json_t *v, const char *name, bool *out);
/* api_prompt.c */
void api_read_prompt(struct api_parse *p, const json_t *v);
void api_read_messages(struct api_parse *p, const json_t *v);
/* api_format.c */
void api_read_format(struct api_parse *p, const json_t *v);
void api_read_attention(struct api_parse *p, const json_t *v);
void api_drop_schemas(struct api *a);

/* api_write.c: JSON by hand, because a token is written in every step. */
void api_write_text(struct buffer *out, const char *text,
                    size_t n); /* quoted, escaped; bad UTF-8 becomes U+FFFD */
void api_write_format(struct buffer *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
