/* api_tokens.c - /tokenize, /detokenize and /v1/models[/NAME]. Bodies as strict as the others'. */
#include <stdlib.h>
#include <string.h>

#include "runtime/api_parts.h"

/* The request whose body is `json`, with the fields of `known` (ended by NULL) and no others. */
static bool check_names(const json_t *json, const char *const *known, struct api_error *e)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)json, name, value)
    {
        int i = 0;
        while (known[i] && strcmp(known[i], name) != 0) i++;
        if (known[i]) continue;
        api_error_set(e, 400, NULL, name, "%.60s: no such field", name);
        return false;
    }
    return true;
}

static bool model_fits(const struct api *a, const json_t *json, struct api_error *e)
{
    const json_t *model = json_object_get(json, "model");
    return !model || json_is_null(model) || api_is_model(a, model, e);
}

/* null means absent. */
static const json_t *given(const json_t *body, const char *name)
{
    const json_t *value = json_object_get(body, name);
    return json_is_null(value) ? NULL : value;
}

static void tokenize(struct api_parse *p)
{
    const json_t *prompt = given(p->body, "prompt"), *messages = given(p->body, "messages");
    const json_t *special = given(p->body, "add_special_tokens");
    bool add = !messages; /* a conversation's special tokens are its template's */
    if ((prompt != NULL) == (messages != NULL)) api_fail(p, "prompt", "one of prompt and messages is needed");
    if (special && !p->failed) api_read_bool(p, special, "add_special_tokens", &add);
    if (messages && add)
        api_fail(p, "add_special_tokens", "add_special_tokens: true is not supported together with messages");
    if (p->failed) return;
    if (messages) {
        api_read_messages(p, messages);
    } else if (!json_is_string(prompt)) {
        api_fail(p, "prompt", "prompt: a string is needed");
    } else {
        struct reason why;
        p->r->prompt = buffer_zeroed(1, sizeof *p->r->prompt);
        p->r->n_prompts = 1;
        if (tokenizer_encode(p->api->o.tokenizer, json_string_value(prompt), json_string_length(prompt), add,
                             &p->r->prompt[0], &why) != STATUS_OK)
            api_fail(p, "prompt", "prompt: %s", why.text);
    }
}

bool api_tokenize(struct api *a, const char *body, size_t n, struct buffer *out, struct api_error *e)
{
    static const char *const known[] = {"model", "prompt", "messages", "add_special_tokens", NULL};
    json_t *json;
    if (!api_load(body, n, &json, e)) return false;
    struct api_request *r = buffer_zeroed(1, sizeof *r);
    struct api_parse p = {.api = a, .r = r, .body = json, .error = e};
    p.failed = !check_names(json, known, e) || !model_fits(a, json, e);
    if (!p.failed) tokenize(&p);
    if (!p.failed) {
        const struct token_list *l = &r->prompt[0];
        api_write_format(out, "{\"count\": %zu, \"max_model_len\": %d, \"tokens\": [", l->n_ids,
                         a->o.context);
        for (size_t i = 0; i < l->n_ids; i++) api_write_format(out, i ? ", %d" : "%d", l->ids[i]);
        api_write_format(out, "]}");
    }
    api_request_free(r);
    json_decref(json);
    return !p.failed;
}

bool api_detokenize(struct api *a, const char *body, size_t n, struct buffer *out, struct api_error *e)
{
    static const char *const known[] = {"model", "tokens", NULL};
    json_t *json;
    struct token_list ids = {0};
    struct reason why;
    char *text;
    size_t n_text;
    if (!api_load(body, n, &json, e)) return false;
    struct api_parse p = {.api = a, .body = json, .error = e};
    const json_t *tokens = json_object_get(json, "tokens");
    p.failed = !check_names(json, known, e) || !model_fits(a, json, e);
    if (!p.failed && !json_is_array(tokens))
        api_fail(&p, "tokens", "tokens: an array of token ids is needed");
    for (size_t i = 0; !p.failed && i < json_array_size(tokens); i++) {
        int64_t id;
        if (api_read_int(&p, json_array_get(tokens, i), "tokens", 0, INT32_MAX, &id))
            token_list_push(&ids, (int32_t)id);
    }
    if (!p.failed &&
        tokenizer_decode(a->o.tokenizer, ids.ids, ids.n_ids, false, &text, &n_text, &why) != STATUS_OK)
        api_fail(&p, "tokens", "tokens: %s", why.text);
    if (!p.failed) {
        api_write_format(out, "{\"prompt\": ");
        api_write_text(out, text, n_text);
        api_write_format(out, "}");
        free(text);
    }
    token_list_free(&ids);
    json_decref(json);
    return !p.failed;
}

static void write_model(const struct api *a, int64_t created, struct buffer *out)
{
    api_write_format(out, "{\"id\": ");
    api_write_text(out, a->model, strlen(a->model));
    api_write_format(
        out, ", \"object\": \"model\", \"created\": %lld, \"owned_by\": \"retro\", \"max_model_len\": %d}",
        (long long)created, a->o.context);
}

void api_models(const struct api *a, int64_t created, struct buffer *out)
{
    api_write_format(out, "{\"object\": \"list\", \"data\": [");
    write_model(a, created, out);
    api_write_format(out, "]}");
}

bool api_model_object(const struct api *a, const char *name, int64_t created, struct buffer *out,
                      struct api_error *e)
{
    if (!api_is_model_name(a, name, e)) return false;
    write_model(a, created, out);
    return true;
}
