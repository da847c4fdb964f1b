/* api_format.c - response_format and attention: what an answer must be, and what is read for it. */
#include <stdlib.h>
#include <string.h>

#include "runtime/api_parts.h"
#include "runtime/base/die.h"
#include "runtime/jsonschema.h"

/* ---- compiled schemas: a grammar also holds the masks that were computed for it, so it pays to keep */

static struct grammar *find_schema(struct api *a, const char *text)
{
    struct grammar *g = NULL;
    pthread_mutex_lock(&a->lock);
    for (int i = 0; i < a->n_schemas && !g; i++)
        if (strcmp(a->schema[i].text, text) == 0) {
            a->schema[i].used = ++a->n_uses;
            g = grammar_keep(a->schema[i].grammar);
        }
    pthread_mutex_unlock(&a->lock);
    return g;
}

/* Takes the text; the one not used for longest goes. */
static void keep_schema(struct api *a, char *text, struct grammar *g)
{
    pthread_mutex_lock(&a->lock);
    struct api_schema *at = &a->schema[0];
    if (a->n_schemas < API_SCHEMAS_KEPT) at = &a->schema[a->n_schemas++];
    else
        for (int i = 1; i < API_SCHEMAS_KEPT; i++)
            if (a->schema[i].used < at->used) at = &a->schema[i];
    struct api_schema old = *at;
    *at = (struct api_schema){text, grammar_keep(g), ++a->n_uses};
    pthread_mutex_unlock(&a->lock);
    free(old.text);
    grammar_drop(old.grammar);
}

void api_drop_schemas(struct api *a)
{
    for (int i = 0; i < a->n_schemas; i++) {
        free(a->schema[i].text);
        grammar_drop(a->schema[i].grammar);
    }
    a->n_schemas = 0;
}

/* schema NULL: any object. */
static void use_schema(struct api_parse *p, const json_t *schema, const char *param)
{
    struct reason why;
    char *text = schema ? json_dumps(schema, JSON_COMPACT | JSON_ENCODE_ANY) : strdup("");
    if (!text) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a schema");
    p->r->grammar = find_schema(p->api, text);
    if (!p->r->grammar && jsonschema_compile(&p->r->grammar, schema, &why) == STATUS_OK) {
        keep_schema(p->api, text, p->r->grammar);
        text = NULL;
    }
    if (!p->r->grammar) api_fail(p, "response_format", "%s: %s", param, why.text);
    free(text);
}

static void read_json_schema(struct api_parse *p, const json_t *v)
{
    static const char *const known[] = {"name", "description", "schema", "strict"};
    const char *name;
    json_t *value;
    if (!json_is_object(v))
        api_fail(p, "response_format", "response_format.json_schema: an object is needed");
    json_object_foreach((json_t *)v, name, value)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= strcmp(name, known[i]) == 0;
        if (!found) api_fail(p, "response_format", "response_format.json_schema.%.60s: no such field", name);
    }
    if (!p->failed && !json_is_string(json_object_get(v, "name")))
        api_fail(p, "response_format", "response_format.json_schema.name: a string is needed");
    const json_t *about = json_object_get(v, "description"), *strict = json_object_get(v, "strict");
    if (about && !json_is_string(about) && !json_is_null(about))
        api_fail(p, "response_format", "response_format.json_schema.description: a string is needed");
    if (strict && !json_is_boolean(strict) && !json_is_null(strict))
        api_fail(p, "response_format", "response_format.json_schema.strict: true or false is needed");
    const json_t *schema = json_object_get(v, "schema");
    if (!p->failed && !schema)
        api_fail(p, "response_format", "response_format.json_schema.schema is missing");
    if (!p->failed) use_schema(p, schema, "response_format.json_schema.schema");
}

void api_read_format(struct api_parse *p, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type")), *name;
    bool schema = type && strcmp(type, "json_schema") == 0;
    json_t *value;
    json_object_foreach((json_t *)v, name, value)
    {
        if (json_is_null(value)) continue;
        if (strcmp(name, "type") != 0 && !(schema && strcmp(name, "json_schema") == 0))
            api_fail(p, "response_format", "response_format.%.60s: no such field", name);
    }
    if (p->failed) return;
    if (schema) read_json_schema(p, json_object_get(v, "json_schema"));
    else if (type && strcmp(type, "json_object") == 0) use_schema(p, NULL, "response_format");
    else if (!type || strcmp(type, "text") != 0)
        api_fail(p, "response_format", "response_format.type: text, json_object or json_schema is needed");
}

/* ---- attention */

static void read_policy(struct api_parse *p, const json_t *v)
{
    struct policy *to = &p->r->policy;
    const char *name = json_string_value(v);
    for (int k = 0; name && k < POLICY_KIND_COUNT; k++)
        if (strcmp(name, policy_kind_name((enum policy_kind)k)) == 0) {
            to->kind = (enum policy_kind)k;
            return;
        }
    api_fail(p, "attention", "attention.policy: dense, quest, retro or streaming is needed");
}

void api_read_attention(struct api_parse *p, const json_t *v)
{
    struct policy *to = &p->r->policy;
    const char *name;
    json_t *value;
    int64_t n;
    bool window = false, share = false, tokens = false;
    if (!json_is_object(v)) api_fail(p, "attention", "attention: an object is needed");
    json_object_foreach((json_t *)v, name, value)
    {
        if (p->failed || json_is_null(value)) continue;
        if (strcmp(name, "policy") == 0) read_policy(p, value);
        else if (strcmp(name, "kv_budget") == 0) {
            share = true;
            if (api_read_real(p, value, "attention.kv_budget", 1e-6, 1, &to->kv_budget))
                to->kv_budget_tokens = 0;
        } else if (strcmp(name, "kv_budget_tokens") == 0) {
            tokens = true;
            if (api_read_int(p, value, "attention.kv_budget_tokens", 1, 1 << 24, &n))
                to->kv_budget_tokens = (int)n;
        } else if (strcmp(name, "window") == 0) {
            window = true;
            if (api_read_int(p, value, "attention.window", 1, p->api->o.max_window, &n)) to->window = (int)n;
        } else api_fail(p, "attention", "attention.%.60s: no such field", name);
    }
    if (p->failed) return;
    if (share && tokens)
        api_fail(p, "attention", "attention.kv_budget and attention.kv_budget_tokens: give one of them");
    if ((share || tokens) && to->kind == POLICY_DENSE)
        api_fail(p, "attention", "attention.%s: the policy dense reads everything",
                 share ? "kv_budget" : "kv_budget_tokens");
    if (!window && to->kind == POLICY_RETRO) to->window = p->api->o.window;
    if (window && to->window > 1 && to->kind != POLICY_RETRO)
        api_fail(p, "attention", "attention.window: %d needs the policy retro", to->window);
}
