/* api_fields.c - the table of all fields and how each one is read. A field of OpenAI's that is not honoured stands here
 * with the values that mean "as if absent", or with none. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/api_parts.h"
#include "runtime/base/die.h"

/* ---- values */

static void wanted(struct api_parse *p, const json_t *v, const char *name, const char *what)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    api_fail(p, name, "%s: %.60s is not %s", name, text ? text : "this value", what);
    free(text);
}

bool api_read_real(struct api_parse *p, const json_t *v, const char *name, double min, double max,
                   double *out)
{
    double d = json_number_value(v);
    if (json_is_number(v) && d >= min && d <= max) {
        *out = d;
        return true;
    }
    char what[80];
    snprintf(what, sizeof what, "a number from %.10g to %.10g", min, max);
    wanted(p, v, name, what);
    return false;
}

bool api_read_int(struct api_parse *p, const json_t *v, const char *name, int64_t min, int64_t max,
                  int64_t *out)
{
    if (json_is_integer(v) && json_integer_value(v) >= min && json_integer_value(v) <= max) {
        *out = json_integer_value(v);
        return true;
    }
    char what[80];
    snprintf(what, sizeof what, "a whole number from %lld to %lld", (long long)min, (long long)max);
    wanted(p, v, name, what);
    return false;
}

bool api_read_bool(struct api_parse *p, const json_t *v, const char *name, bool *out)
{
    if (!json_is_boolean(v)) {
        wanted(p, v, name, "true or false");
        return false;
    }
    *out = json_is_true(v);
    return true;
}

/* ---- fields with a meaning of their own */

static void read_stop(struct api_parse *p, const json_t *v)
{
    struct api_request *r = p->r;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > SERVICE_STOPS_MAX) api_fail(p, "stop", "stop: at most %d texts", SERVICE_STOPS_MAX);
    for (size_t i = 0; i < n && !p->failed; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(one) || json_string_length(one) == 0 || json_string_length(one) > 1024) {
            api_fail(p, "stop", "stop: a string or an array of strings of 1 to 1024 bytes is needed");
            return;
        }
        r->stop[r->n_stop] = strdup(json_string_value(one));
        if (!r->stop[r->n_stop++]) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a request");
    }
}

static void read_stop_tokens(struct api_parse *p, const json_t *v)
{
    struct api_request *r = p->r;
    if (!json_is_array(v) || json_array_size(v) > SERVICE_STOPS_MAX) {
        api_fail(p, "stop_token_ids", "stop_token_ids: an array of at most %d ids is needed",
                 SERVICE_STOPS_MAX);
        return;
    }
    for (size_t i = 0; i < json_array_size(v); i++) {
        int64_t id;
        if (!api_read_int(p, json_array_get(v, i), "stop_token_ids", 0, p->api->o.vocab - 1, &id)) return;
        r->stop_token[r->n_stop_tokens++] = (int32_t)id;
    }
}

static void read_bias(struct api_parse *p, const json_t *v)
{
    enum { BIAS_MAX = 1024 };
    struct api_request *r = p->r;
    const char *key;
    json_t *value;
    if (!json_is_object(v) || json_object_size(v) > BIAS_MAX) {
        api_fail(p, "logit_bias", "logit_bias: an object of at most %d token ids is needed", BIAS_MAX);
        return;
    }
    r->bias = buffer_zeroed(json_object_size(v) + 1, sizeof *r->bias);
    json_object_foreach((json_t *)v, key, value)
    {
        char *end;
        double bias;
        long id = strtol(key, &end, 10);
        bool plain = *key >= '0' && *key <= '9' && !*end && (*key != '0' || !key[1]); /* "05" is 5 again */
        if (!plain || id >= p->api->o.vocab) {
            api_fail(p, "logit_bias", "logit_bias: \"%.40s\" is not a token id (0 to %d)", key,
                     p->api->o.vocab - 1);
            return;
        }
        if (!api_read_real(p, value, "logit_bias", -100, 100, &bias)) return;
        r->bias[r->sampling.n_bias++] = (struct sampling_bias){(int32_t)id, (float)bias};
    }
    r->sampling.bias = r->bias;
}

static void read_logprobs(struct api_parse *p, const json_t *v)
{
    int64_t n;
    if (p->r->endpoint == API_CHAT) api_read_bool(p, v, "logprobs", &p->logprobs);
    else if (api_read_int(p, v, "logprobs", 0, 20, &n)) p->r->n_top = (int)n;
}

static void read_top_logprobs(struct api_parse *p, const json_t *v)
{
    int64_t n;
    if (api_read_int(p, v, "top_logprobs", 0, 20, &n)) p->n_top = (int)n;
}

/* max_tokens and its newer name. 0: see check_together. */
static void read_max_tokens(struct api_parse *p, const json_t *v, const char *name)
{
    int64_t n;
    if (!api_read_int(p, v, name, p->r->endpoint == API_CHAT ? 1 : 0, INT32_MAX, &n)) return;
    if (p->max_given && p->r->max_tokens != (int)n)
        api_fail(p, name, "max_tokens and max_completion_tokens differ: give one of them");
    p->max_given = true;
    p->r->max_tokens = (int)n;
}
static void read_max(struct api_parse *p, const json_t *v) { read_max_tokens(p, v, "max_tokens"); }
static void read_max_completion(struct api_parse *p, const json_t *v)
{
    read_max_tokens(p, v, "max_completion_tokens");
}

static void read_stream_options(struct api_parse *p, const json_t *v)
{
    const char *key;
    json_t *value;
    if (!json_is_object(v)) api_fail(p, "stream_options", "stream_options: an object is needed");
    json_object_foreach((json_t *)v, key, value)
    {
        if (json_is_null(value)) continue;
        if (strcmp(key, "include_usage") == 0)
            api_read_bool(p, value, "stream_options.include_usage", &p->r->include_usage);
        else if (strcmp(key, "continuous_usage_stats") == 0)
            api_read_bool(p, value, "stream_options.continuous_usage_stats", &p->r->continuous_usage);
        else if (strcmp(key, "include_obfuscation") != 0 || !json_is_false(value))
            api_fail(p, "stream_options", "stream_options.%.60s: is not supported", key);
    }
}

static void read_skip_special(struct api_parse *p, const json_t *v)
{
    bool skip;
    if (api_read_bool(p, v, "skip_special_tokens", &skip)) p->r->keep_special = !skip;
}

static void read_seed(struct api_parse *p, const json_t *v)
{
    int64_t seed;
    if (!api_read_int(p, v, "seed", INT64_MIN, INT64_MAX, &seed)) return;
    p->r->sampling.seed = (uint64_t)seed;
    p->r->seeded = true;
}

static void read_best_of(struct api_parse *p, const json_t *v)
{
    int64_t n;
    if (api_read_int(p, v, "best_of", 1, SERVICE_CHOICES_MAX, &n)) p->best_of = (int)n;
}

static void read_model(struct api_parse *p, const json_t *v)
{
    (void)p, (void)v; /* looked at before all others */
}

/* ---- the table */

enum field_kind { REAL, INT, BOOL, READ, LABEL, ONLY }; /* LABEL: a text that no answer depends on */
enum { BOTH = API_COMPLETIONS | API_CHAT };

#define AT(member) offsetof(struct api_request, member)

static const struct field {
    const char *name;
    int endpoints;
    enum field_kind kind;
    double min, max;                                    /* REAL, INT; LABEL: at most max bytes */
    size_t offset;                                      /* REAL, INT, BOOL: into the request */
    void (*read)(struct api_parse *p, const json_t *v); /* READ */
    const char *only; /* ONLY: the JSON values that are taken, because they ask for nothing; NULL: none */
} fields[] = {
    {"model", BOTH, READ, .read = read_model},
    {"prompt", API_COMPLETIONS, READ, .read = api_read_prompt},
    {"messages", API_CHAT, READ, .read = api_read_messages},
    {"max_tokens", BOTH, READ, .read = read_max},
    {"max_completion_tokens", API_CHAT, READ, .read = read_max_completion},
    {"n", BOTH, INT, .min = 1, .max = SERVICE_CHOICES_MAX, .offset = AT(n)},
    {"temperature", BOTH, REAL, .min = 0, .max = 2, .offset = AT(sampling.temperature)},
    {"top_p", BOTH, REAL, .min = 0, .max = 1, .offset = AT(sampling.top_p)},
    {"min_p", BOTH, REAL, .min = 0, .max = 1, .offset = AT(sampling.min_p)},
    {"top_k", BOTH, INT, .min = 0, .max = INT32_MAX, .offset = AT(sampling.top_k)},
    {"presence_penalty", BOTH, REAL, .min = -2, .max = 2, .offset = AT(sampling.presence_penalty)},
    {"frequency_penalty", BOTH, REAL, .min = -2, .max = 2, .offset = AT(sampling.frequency_penalty)},
    {"repetition_penalty", BOTH, REAL, .min = 0.01, .max = 100, .offset = AT(sampling.repetition_penalty)},
    {"seed", BOTH, READ, .read = read_seed},
    {"stop", BOTH, READ, .read = read_stop},
    {"stop_token_ids", BOTH, READ, .read = read_stop_tokens},
    {"logit_bias", BOTH, READ, .read = read_bias},
    {"logprobs", BOTH, READ, .read = read_logprobs},
    {"top_logprobs", API_CHAT, READ, .read = read_top_logprobs},
    {"stream", BOTH, BOOL, .offset = AT(stream)},
    {"stream_options", BOTH, READ, .read = read_stream_options},
    {"echo", API_COMPLETIONS, BOOL, .offset = AT(echo)},
    {"response_format", BOTH, READ, .read = api_read_format},
    {"attention", BOTH, READ, .read = api_read_attention},
    {"ignore_eos", BOTH, BOOL, .offset = AT(ignore_eos)},
    {"skip_special_tokens", BOTH, READ, .read = read_skip_special},
    {"priority", BOTH, INT, .min = -100, .max = 100, .offset = AT(priority)},
    {"user", BOTH, LABEL, .max = 256},
    {"safety_identifier", API_CHAT, LABEL, .max = 256},
    {"prompt_cache_key", API_CHAT, LABEL, .max = 256},
    {"best_of", API_COMPLETIONS, READ, .read = read_best_of},
    {"suffix", API_COMPLETIONS, ONLY, .only = "\"\""},
    {"tools", API_CHAT, ONLY, .only = "[]"},
    {"tool_choice", API_CHAT, ONLY, .only = "\"none\", \"auto\""}, /* of no tools */
    {"parallel_tool_calls", API_CHAT, ONLY, .only = "true, false"},
    {"functions", API_CHAT, ONLY, .only = "[]"},
    {"function_call", API_CHAT, ONLY, .only = "\"none\", \"auto\""},
    {"modalities", API_CHAT, ONLY, .only = "[\"text\"]"},
    {"audio", API_CHAT, ONLY, .only = NULL},
    {"prediction", API_CHAT, ONLY, .only = NULL},
    {"reasoning_effort", API_CHAT, ONLY, .only = NULL},
    {"verbosity", API_CHAT, ONLY, .only = "\"medium\""},
    {"store", API_CHAT, ONLY, .only = "false"},
    {"metadata", API_CHAT, ONLY, .only = "{}"},
    {"service_tier", API_CHAT, ONLY, .only = "\"auto\", \"default\""},
    {"web_search_options", API_CHAT, ONLY, .only = NULL},
    {"prompt_cache_retention", API_CHAT, ONLY, .only = "\"in_memory\""},
    {"prompt_cache_options", API_CHAT, ONLY, .only = NULL},
    {"moderation", API_CHAT, ONLY, .only = NULL},
};

static const struct field *find_field(const char *name)
{
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strcmp(fields[i].name, name) == 0) return &fields[i];
    return NULL;
}

static void read_label(struct api_parse *p, const struct field *f, const json_t *v)
{
    if (!json_is_string(v) || json_string_length(v) > (size_t)f->max)
        api_fail(p, f->name, "%s: a string of at most %g bytes is needed", f->name, f->max);
}

static void read_only(struct api_parse *p, const struct field *f, const json_t *v)
{
    char list[80];
    snprintf(list, sizeof list, "[%s]", f->only ? f->only : "");
    json_t *taken = json_loads(list, 0, NULL);
    bool found = false;
    for (size_t i = 0; i < json_array_size(taken); i++) found |= json_equal(json_array_get(taken, i), v) != 0;
    if (!found && f->only) api_fail(p, f->name, "%s: is not supported (only %s)", f->name, f->only);
    else if (!found) api_fail(p, f->name, "%s: is not supported", f->name);
    json_decref(taken);
}

static void read_field(struct api_parse *p, const struct field *f, const json_t *v)
{
    char *at = (char *)p->r + f->offset;
    int64_t whole;
    switch (f->kind) {
    case REAL: api_read_real(p, v, f->name, f->min, f->max, (double *)at); break;
    case INT:
        if (api_read_int(p, v, f->name, (int64_t)f->min, (int64_t)f->max, &whole)) *(int *)at = (int)whole;
        break;
    case BOOL: api_read_bool(p, v, f->name, (bool *)at); break;
    case LABEL: read_label(p, f, v); break;
    case ONLY: read_only(p, f, v); break;
    case READ: f->read(p, v); break;
    }
}

void api_read_fields(struct api_parse *p)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)p->body, name, value)
    {
        const struct field *f = find_field(name);
        if (!f) api_fail(p, name, "%.60s: no such field", name);
        else if (!(f->endpoints & p->r->endpoint))
            api_fail(p, name, "%s: is not a field of this endpoint", name);
        else if (!json_is_null(value)) read_field(p, f, value);
        if (p->failed) return;
    }
}
