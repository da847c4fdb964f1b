/* api_prompt.c - what is to be continued: texts, token ids or a conversation, as token ids. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/api_parts.h"
#include "runtime/base/die.h"

/* Ids for which the model has no embedding: a tokenizer may know more than the model. */
static void check_ids(struct api_parse *p, const struct token_list *l, const char *param)
{
    for (size_t i = 0; i < l->n_ids; i++)
        if (l->ids[i] >= p->api->o.vocab) {
            api_fail(p, param, "%s: token %zu has id %d, the model's vocabulary has %d", param, i, l->ids[i],
                     p->api->o.vocab);
            return;
        }
    if (l->n_ids == 0) api_fail(p, param, "%s: is empty, and the model has no begin-of-text token", param);
}

static void add_text(struct api_parse *p, const char *text, size_t n, bool special, const char *param)
{
    struct reason why;
    struct token_list *l = &p->r->prompt[p->r->n_prompts++];
    if (tokenizer_encode(p->api->o.tokenizer, text, n, special, l, &why) != STATUS_OK)
        api_fail(p, param, "%s: %s", param, why.text);
    else check_ids(p, l, param);
}

static void add_ids(struct api_parse *p, const json_t *ids)
{
    struct token_list *l = &p->r->prompt[p->r->n_prompts++];
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int64_t id;
        if (!api_read_int(p, json_array_get(ids, i), "prompt", 0, p->api->o.vocab - 1, &id)) return;
        token_list_push(l, (int32_t)id);
    }
    check_ids(p, l, "prompt");
}

/* What echo gives: the text as it came, for begin-of-text and a tokenizer's spaces are not the client's; ids as text.
 * echo is read here because fields come in any order. */
static void keep_text(struct api_parse *p, const json_t *v, int prompt)
{
    struct reason why;
    size_t n;
    struct token_list *l = &p->r->prompt[prompt];
    if (!json_is_true(json_object_get(p->body, "echo"))) return;
    if (!p->r->prompt_text) p->r->prompt_text = buffer_zeroed(SERVICE_CHOICES_MAX, sizeof(char *));
    bool skip = !json_is_false(json_object_get(p->body, "skip_special_tokens"));
    if (json_is_string(v)) {
        p->r->prompt_text[prompt] = strdup(json_string_value(v));
        if (!p->r->prompt_text[prompt]) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a request");
    } else if (tokenizer_decode(p->api->o.tokenizer, l->ids, l->n_ids, skip, &p->r->prompt_text[prompt], &n,
                                &why) != STATUS_OK)
        api_fail(p, "prompt", "prompt: %s", why.text);
}

static void add_prompt(struct api_parse *p, const json_t *v)
{
    if (json_is_string(v)) add_text(p, json_string_value(v), json_string_length(v), true, "prompt");
    else if (json_is_array(v) && json_is_integer(json_array_get(v, 0))) add_ids(p, v);
    else api_fail(p, "prompt", "prompt: a string, an array of token ids, or an array of either is needed");
    if (!p->failed) keep_text(p, v, p->r->n_prompts - 1);
}

void api_read_prompt(struct api_parse *p, const json_t *v)
{
    bool many = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    size_t n = many ? json_array_size(v) : 1;
    if (n == 0 || n > SERVICE_CHOICES_MAX) {
        api_fail(p, "prompt", "prompt: 1 to %d prompts are needed", SERVICE_CHOICES_MAX);
        return;
    }
    p->r->prompt = buffer_zeroed(n, sizeof *p->r->prompt);
    if (!many) add_prompt(p, v);
    for (size_t i = 0; many && i < n && !p->failed; i++) add_prompt(p, json_array_get(v, i));
}

/* ---- conversations */

enum { MESSAGES_MAX = 4096 };

/* Fields that are not null. */
static int n_given(const json_t *object)
{
    int n = 0;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value) n += !json_is_null(value);
    return n;
}

/* A string, or text parts joined by line ends; malloc'd, NULL after a complaint. */
static char *content_of(struct api_parse *p, const json_t *content, const char *where)
{
    struct buffer text = {0};
    if (json_is_string(content)) {
        buffer_append(&text, json_string_value(content), json_string_length(content));
        return buffer_take(&text);
    }
    if (!json_is_array(content) || json_array_size(content) == 0)
        api_fail(p, "messages", "%s.content: a string or an array of text parts is needed", where);
    for (size_t i = 0; i < json_array_size(content) && !p->failed; i++) {
        const json_t *part = json_array_get(content, i), *type = json_object_get(part, "type");
        const json_t *body = json_object_get(part, "text");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0)
            api_fail(p, "messages", "%s.content[%zu].type: only \"text\" is supported", where, i);
        else if (!json_is_string(body) || n_given(part) != 2)
            api_fail(p, "messages",
                     "%s.content[%zu]: \"type\" and \"text\" (a string) are needed, nothing else", where, i);
        else {
            if (i) buffer_append(&text, "\n", 1);
            buffer_append(&text, json_string_value(body), json_string_length(body));
        }
    }
    if (!p->failed) return buffer_take(&text);
    buffer_free(&text);
    return NULL;
}

static const char *role_of(struct api_parse *p, const json_t *role, const char *where)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    const char *name = json_string_value(role);
    for (int i = 0; name && i < 3; i++)
        if (strcmp(name, roles[i]) == 0) return roles[i];
    if (name && strcmp(name, "developer") == 0) return "system"; /* OpenAI's newer word for it */
    api_fail(p, "messages", "%s.role: system, developer, user or assistant is needed", where);
    return NULL;
}

/* Fields that an answer of OpenAI's server has, and a client hands back. */
static bool asks_nothing(const char *name, const json_t *v)
{
    bool list = strcmp(name, "annotations") == 0 || strcmp(name, "tool_calls") == 0;
    return json_is_null(v) || (list && json_is_array(v) && json_array_size(v) == 0);
}

static void read_message(struct api_parse *p, const json_t *v, size_t i, struct chat_message *m)
{
    char where[32];
    const char *name;
    json_t *value;
    snprintf(where, sizeof where, "messages[%zu]", i);
    if (!json_is_object(v)) api_fail(p, "messages", "%s: an object is needed", where);
    json_object_foreach((json_t *)v, name, value)
    {
        bool known = strcmp(name, "role") == 0 || strcmp(name, "content") == 0;
        if (!known && !asks_nothing(name, value))
            api_fail(p, "messages", "%s.%.60s: is not supported", where, name);
    }
    if (p->failed) return;
    m->role = role_of(p, json_object_get(v, "role"), where);
    m->content = content_of(p, json_object_get(v, "content"), where);
}

void api_read_messages(struct api_parse *p, const json_t *v)
{
    size_t n = json_array_size(v);
    const struct api *a = p->api;
    if (!a->o.chat) {
        api_fail(p, "messages", "messages: this model has no chat format that is known: %s",
                 a->o.why_no_chat ? a->o.why_no_chat : "use /v1/completions");
        return;
    }
    if (!json_is_array(v) || n == 0 || n > MESSAGES_MAX) {
        api_fail(p, "messages", "messages: an array of 1 to %d messages is needed", MESSAGES_MAX);
        return;
    }
    struct chat_message *m = buffer_zeroed(n, sizeof *m);
    for (size_t i = 0; i < n && !p->failed; i++) read_message(p, json_array_get(v, i), i, &m[i]);
    if (!p->failed) {
        char *text;
        struct reason why;
        if (chat_render(a->o.chat, m, (int)n, &text, &why) != STATUS_OK)
            api_fail(p, "messages", "messages: %s", why.text);
        else {
            p->r->prompt = buffer_zeroed(1, sizeof *p->r->prompt);
            add_text(p, text, strlen(text), false, "messages");
            free(text);
        }
    }
    for (size_t i = 0; i < n; i++) free((char *)m[i].content);
    free(m);
}
