#include "runtime/api.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "runtime/api_parts.h"
#include "runtime/base/die.h"
#include "runtime/utf8.h"

struct api *api_open(const struct api_options *o)
{
    struct api *a = buffer_zeroed(1, sizeof *a);
    a->o = *o;
    a->model = strdup(o->model);
    if (!a->model) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the API");
    a->o.model = a->model;
    a->trie = grammar_trie_open(o->tokenizer, o->vocab);
    pthread_mutex_init(&a->lock, NULL);
    return a;
}

void api_close(struct api *a)
{
    if (!a) return;
    api_drop_schemas(a);
    grammar_trie_close(a->trie);
    pthread_mutex_destroy(&a->lock);
    free(a->model);
    free(a);
}

/* ---- errors */

/* Names are cut to a number of bytes: the piece of a character that this may leave goes too. */
static void drop_pieces(char *text)
{
    size_t n = strlen(text), to = 0;
    for (size_t at = 0; at < n; at++) { /* over the valid part, and then one byte that is in no character */
        size_t valid = utf8_valid_prefix(text + at, n - at);
        memmove(text + to, text + at, valid);
        to += valid;
        at += valid;
    }
    text[to] = 0;
}

/* Names may hold line ends. */
static void make_one_line(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 127) *text = ' ';
}

static void set(struct api_error *e, int http, const char *code, const char *param, const char *format,
                va_list args)
{
    *e = (struct api_error){.http = http, .code = code};
    e->type = http == 401   ? "authentication_error"
              : http == 429 ? "rate_limit_error"
              : http >= 500 ? "server_error"
                            : "invalid_request_error";
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    drop_pieces(e->param);
    vsnprintf(e->reason.text, sizeof e->reason.text, format, args);
    drop_pieces(e->reason.text);
    make_one_line(e->reason.text);
}

void api_error_set(struct api_error *e, int http, const char *code, const char *param, const char *format,
                   ...)
{
    va_list args;
    va_start(args, format);
    set(e, http, code, param, format, args);
    va_end(args);
}

void api_fail(struct api_parse *p, const char *param, const char *format, ...)
{
    if (p->failed) return;
    p->failed = true;
    va_list args;
    va_start(args, format);
    set(p->error, 400, NULL, param, format, args);
    va_end(args);
}

void api_error_from_status(struct api_error *e, enum status status, const struct reason *why)
{
    switch (status) {
    case STATUS_QUEUE_FULL: api_error_set(e, 429, "queue_full", NULL, "%s", why->text); break;
    case STATUS_DRAINING: api_error_set(e, 503, "shutting_down", NULL, "%s", why->text); break;
    case STATUS_TOO_LONG: api_error_set(e, 400, "context_length_exceeded", NULL, "%s", why->text); break;
    default: api_error_set(e, 400, NULL, NULL, "%s", why->text);
    }
}

void api_error_write(const struct api_error *e, struct buffer *out)
{
    api_write_format(out, "{\"error\": {\"message\": ");
    api_write_text(out, e->reason.text, strlen(e->reason.text));
    api_write_format(out, ", \"type\": \"%s\", \"param\": ", e->type);
    if (e->param[0]) api_write_text(out, e->param, strlen(e->param));
    else api_write_format(out, "null");
    if (e->code) api_write_format(out, ", \"code\": \"%s\"}}", e->code);
    else api_write_format(out, ", \"code\": null}}");
}

/* ---- bodies */

/* JSON that is not taken all the same is told apart from what is no JSON. */
static const char *what_is_wrong(const json_error_t *at)
{
    switch (json_error_code(at)) {
    case json_error_numeric_overflow: return "the body has a number out of range";
    case json_error_null_character: return "the body has a text with a NUL";
    case json_error_stack_overflow: return "the body is nested too deeply";
    case json_error_duplicate_key: return "the body has a name twice in one object";
    default: return "the body is not JSON";
    }
}

bool api_load(const char *body, size_t n, json_t **out, struct api_error *e)
{
    json_error_t at;
    *out = json_loadb(n ? body : "", n, JSON_REJECT_DUPLICATES, &at);
    if (!*out) {
        api_error_set(e, 400, "invalid_json", NULL, "%s: %s (line %d, column %d)", what_is_wrong(&at),
                      at.text, at.line, at.column);
        return false;
    }
    if (json_is_object(*out)) return true;
    api_error_set(e, 400, "invalid_json", NULL, "the body must be a JSON object");
    json_decref(*out);
    *out = NULL;
    return false;
}

bool api_is_model_name(const struct api *a, const char *name, struct api_error *e)
{
    if (strcmp(name, a->model) == 0) return true;
    api_error_set(e, 404, "model_not_found", "model", "model: this server serves \"%s\", not \"%.100s\"",
                  a->model, name);
    return false;
}

bool api_is_model(const struct api *a, const json_t *name, struct api_error *e)
{
    if (!json_is_string(name)) {
        api_error_set(e, 400, NULL, "model", "model: a string is needed: the name of the model, %s",
                      a->model);
        return false;
    }
    return api_is_model_name(a, json_string_value(name), e);
}

/* A seed for who does not give one: different every time. */
static uint64_t fresh_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) DIE(EXIT_CODE_BUG, NULL, "getrandom gave nothing");
    return seed;
}

static void check_together(struct api_parse *p)
{
    struct api_request *r = p->r;
    if (p->failed) return;
    if (r->n_prompts == 0)
        api_fail(p, r->endpoint == API_CHAT ? "messages" : "prompt", "%s is missing",
                 r->endpoint == API_CHAT ? "messages" : "prompt");
    if (r->n_prompts * r->n > SERVICE_CHOICES_MAX)
        api_fail(p, "n", "n: %d prompts with %d choices each are over %d", r->n_prompts, r->n,
                 SERVICE_CHOICES_MAX);
    if (p->best_of && p->best_of != r->n)
        api_fail(p, "best_of", "best_of: is supported only where it equals n (%d)", r->n);
    if (r->endpoint == API_CHAT) {
        if (p->n_top > 0 && !p->logprobs)
            api_fail(p, "top_logprobs", "top_logprobs: needs \"logprobs\": true");
        if (p->logprobs) r->n_top = p->n_top;
    }
    if (r->include_usage && !r->stream)
        api_fail(p, "stream_options", "stream_options: needs \"stream\": true");
    if (r->continuous_usage && !r->include_usage)
        api_fail(p, "stream_options", "stream_options.continuous_usage_stats: needs \"include_usage\": true");
    r->prompt_only = p->max_given && r->max_tokens == 0;
    if (r->prompt_only && !r->echo)
        api_fail(p, "max_tokens", "max_tokens: 0 gives nothing but an echo: it needs \"echo\": true");
    if (r->echo && r->grammar) api_fail(p, "echo", "echo: is not supported together with response_format");
    if (r->grammar && r->ignore_eos)
        api_fail(p, "ignore_eos", "ignore_eos: is not supported together with response_format");
    if (r->policy.window > 1 && r->policy.kind != POLICY_RETRO) r->policy.window = 1;
}

static struct api_request *fresh_request(const struct api *a, enum api_endpoint endpoint)
{
    struct api_request *r = buffer_zeroed(1, sizeof *r);
    r->endpoint = endpoint;
    r->n = 1;
    r->n_top = -1;
    r->max_tokens = endpoint == API_COMPLETIONS ? 16 : 0; /* OpenAI's defaults */
    r->sampling =
        (struct sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = fresh_seed()};
    r->policy = a->o.policy;
    return r;
}

bool api_parse_json(struct api *a, enum api_endpoint endpoint, const json_t *body, struct api_request **out,
                    struct api_error *e)
{
    *out = NULL;
    if (!json_is_object(body)) {
        api_error_set(e, 400, "invalid_json", NULL, "the body must be a JSON object");
        return false;
    }
    if (!api_is_model(a, json_object_get(body, "model"), e)) return false;
    struct api_request *r = fresh_request(a, endpoint);
    struct api_parse p = {.api = a, .r = r, .body = body, .error = e};
    api_read_fields(&p);
    check_together(&p);
    if (p.failed) api_request_free(r);
    else *out = r;
    return !p.failed;
}

bool api_parse(struct api *a, enum api_endpoint endpoint, const char *body, size_t n,
               struct api_request **out, struct api_error *e)
{
    json_t *json;
    *out = NULL;
    if (!api_load(body, n, &json, e)) return false;
    bool good = api_parse_json(a, endpoint, json, out, e);
    json_decref(json);
    return good;
}

void api_request_free(struct api_request *r)
{
    if (!r) return;
    for (int i = 0; i < r->n_prompts; i++) {
        token_list_free(&r->prompt[i]);
        if (r->prompt_text) free(r->prompt_text[i]);
    }
    for (int i = 0; i < r->n_stop; i++) free(r->stop[i]);
    free(r->prompt);
    free(r->prompt_text);
    free(r->bias);
    grammar_drop(r->grammar);
    free(r);
}

void api_request_service(struct api *a, const struct api_request *r, int prompt, struct service_request *out)
{
    *out = (struct service_request){
        .prompt = r->prompt[prompt].ids,
        .n_prompt = (int)r->prompt[prompt].n_ids,
        .policy = r->policy,
        .sampling = r->sampling,
        .n_choices = r->n,
        .max_tokens = r->max_tokens,
        .ignore_eos = r->ignore_eos,
        .stop_token = r->stop_token,
        .n_stop_tokens = r->n_stop_tokens,
        .stop = (const char *const *)r->stop,
        .n_stop = r->n_stop,
        .keep_special = r->keep_special,
        .want_logits = r->n_top >= 0,
        .want_prompt = r->echo && r->n_top >= 0,
        .prompt_only = r->prompt_only,
        .priority = r->priority,
    };
    if (!r->seeded) out->sampling.seed += (uint64_t)prompt; /* equal prompts differ like choices */
    if (r->grammar)
        out->constraint = grammar_constraint_open(r->grammar, a->trie, a->o.tokenizer, a->o.eos, a->o.n_eos);
}

void api_constraint_free(struct service_request *q)
{
    if (q->constraint) q->constraint->table->free(q->constraint);
    q->constraint = NULL;
}
