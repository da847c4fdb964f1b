/* chat.c - opens a folder's chat template and renders conversations; chat_recognise.c tells the families
 * apart. */
#include "runtime/chat.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/buffer.h"
#include "runtime/chat_shape.h"
#include "runtime/tokenizer_config.h"
#include "runtime/utf8.h"

const char *chat_format_name(enum chat_format f)
{
    static const char *const names[CHAT_FORMAT_COUNT] = {
        [CHAT_NONE] = "none",     [CHAT_CHATML] = "chatml",   [CHAT_LLAMA2] = "llama2",
        [CHAT_LLAMA3] = "llama3", [CHAT_MISTRAL] = "mistral", [CHAT_DEEPSEEK_R1] = "deepseek-r1",
    };
    ASSERT(f < CHAT_FORMAT_COUNT);
    return names[f];
}

/* ------------------------------------------------------------------------------------------ open */
/* "chat_template": a string, or [{"name": "default", "template": ...}, ...]; borrowed. */
static const char *config_template(const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && !strcmp(name, "default")) return json_string_value(json_object_get(entry, "template"));
    }
    return json_string_value(value);
}

static char *copy_string(const char *s)
{
    struct buffer b = {0};
    buffer_append_string(&b, s);
    return s ? buffer_take(&b) : NULL;
}

enum status chat_open(struct chat_template *c, const char *dir, struct reason *why)
{
    *c = (struct chat_template){.format = CHAT_NONE};
    json_t *config;
    char *file = NULL;
    size_t n;
    enum status status = tokenizer_config_load(&config, dir, why);
    if (status == STATUS_OK) status = tokenizer_config_read(&file, &n, dir, "chat_template.jinja", why);
    const char *template = file ? file : config_template(config);
    if (status == STATUS_OK && !template)
        status = status_fail(why, STATUS_BAD_MODEL,
                             "%.300s: has no chat template (chat_template.jinja, or chat_template in "
                             "tokenizer_config.json): give plain prompts (no --chat, /v1/completions)",
                             dir);
    if (status == STATUS_OK && file && utf8_valid_prefix(file, n) != n)
        status = status_fail(why, STATUS_BAD_MODEL,
                             "%.300s/chat_template.jinja: is not UTF-8: fetch it again", dir);
    if (status == STATUS_OK) {
        c->bos = copy_string(tokenizer_config_token(config, "bos_token"));
        c->eos = copy_string(tokenizer_config_token(config, "eos_token"));
        status = chat_recognise(c, template, why);
    }
    free(file);
    json_decref(config);
    if (status != STATUS_OK) chat_close(c);
    return status;
}

void chat_close(struct chat_template *c)
{
    if (c->shape) {
        free(c->shape->generation);
        free(c->shape->system_lines);
        free(c->shape->user.before);
        free(c->shape->user.after);
        free(c->shape->assistant.before);
        free(c->shape->assistant.after);
        free(c->shape->system_before);
        free(c->shape->system_between);
    }
    free(c->shape);
    free(c->default_system);
    free(c->bos);
    free(c->eos);
    *c = (struct chat_template){.format = CHAT_NONE};
}

/* ------------------------------------------------------------------------------------------ text */
struct span {
    const char *s;
    size_t n;
};

static struct span span_of(const char *s) { return (struct span){s, strlen(s)}; }

static void put(struct buffer *out, struct span text) { buffer_append(out, text.s, text.n); }

/* What Python's str.strip() takes: White_Space and the four separators that Python counts with it. */
static bool strips(uint32_t c) { return utf8_is_space(c) || (c >= 0x1c && c <= 0x1f); }

static struct span trimmed(struct span text)
{
    size_t from = 0, to = text.n;
    while (from < to) {
        size_t next = from;
        if (!strips(utf8_next(text.s, &next))) break;
        from = next;
    }
    while (to > from) {
        size_t previous = utf8_previous(text.s, to), next = previous;
        if (!strips(utf8_next(text.s, &next))) break;
        to = previous;
    }
    return (struct span){text.s + from, to - from};
}

static struct span strip_newlines(struct span text, bool left, bool right)
{
    while (left && text.n && *text.s == '\n') text.s++, text.n--;
    while (right && text.n && text.s[text.n - 1] == '\n') text.n--;
    return text;
}

/* What stands behind the last `mark`; the text itself without one. */
static struct span behind_last(struct span text, const char *mark)
{
    size_t n = strlen(mark);
    for (size_t i = text.n + 1; i-- > 0;)
        if (text.n - i >= n && !memcmp(text.s + i, mark, n))
            return (struct span){text.s + i + n, text.n - i - n};
    return text;
}

/* What stands before the first `mark`; the text itself without one. */
static struct span before_first(struct span text, const char *mark)
{
    size_t n = strlen(mark);
    for (size_t i = 0; i + n <= text.n; i++)
        if (!memcmp(text.s + i, mark, n)) return (struct span){text.s, i};
    return text;
}

static bool is_role(const struct chat_message *m, const char *role) { return !strcmp(m->role, role); }

/* ------------------------------------------------------------------------------------------ families */
static void chatml_turn(struct buffer *out, const char *role, struct span content)
{
    buffer_append_string(out, "<|im_start|>");
    buffer_append_string(out, role);
    buffer_append_string(out, "\n");
    put(out, content);
    buffer_append_string(out, "<|im_end|>\n");
}

/* Qwen3: the last user message that is no tool's answer; without one, the last message. */
static int last_query(const struct chat_message *m, int n)
{
    static const char begin[] = "<tool_response>", end[] = "</tool_response>";
    for (int i = n - 1; i >= 0; i--) {
        size_t length = strlen(m[i].content);
        bool answer = length >= strlen(end) && !strncmp(m[i].content, begin, strlen(begin)) &&
                      !strcmp(m[i].content + length - strlen(end), end);
        if (is_role(&m[i], "user") && !answer) return i;
    }
    return n - 1;
}

static void qwen3_assistant(struct buffer *out, struct span content, bool behind_query, bool last)
{
    struct span reasoning = {"", 0};
    if (strstr(content.s, "</think>")) {
        reasoning = strip_newlines(before_first(content, "</think>"), false, true);
        reasoning = strip_newlines(behind_last(reasoning, "<think>"), true, false);
        content = strip_newlines(behind_last(content, "</think>"), true, false);
    }
    if (!behind_query || !(last || reasoning.n)) {
        chatml_turn(out, "assistant", content);
        return;
    }
    struct buffer text = {0};
    buffer_append_string(&text, "<think>\n");
    put(&text, strip_newlines(reasoning, true, true));
    buffer_append_string(&text, "\n</think>\n\n");
    put(&text, strip_newlines(content, true, false));
    chatml_turn(out, "assistant", (struct span){text.bytes, text.n});
    buffer_free(&text);
}

static void render_chatml(const struct chat_template *c, const struct chat_message *m, int n,
                          struct buffer *out)
{
    if (c->default_system && !is_role(&m[0], "system"))
        chatml_turn(out, "system", span_of(c->default_system));
    int query = last_query(m, n);
    for (int i = 0; i < n; i++) {
        struct span content = span_of(m[i].content);
        if (c->shape->reasoning && is_role(&m[i], "assistant"))
            qwen3_assistant(out, content, i > query, i == n - 1);
        else if (c->shape->drop_reasoning && is_role(&m[i], "assistant"))
            chatml_turn(out, "assistant", strip_newlines(behind_last(content, "</think>"), true, false));
        else chatml_turn(out, m[i].role, content);
    }
}

static void render_llama3(const struct chat_template *c, const struct chat_message *m, int n,
                          struct buffer *out)
{
    const struct chat_shape *shape = c->shape;
    if (shape->system_lines) {
        bool given = is_role(&m[0], "system");
        buffer_append_string(out, "<|start_header_id|>system<|end_header_id|>\n\n");
        buffer_append_string(out, shape->system_lines);
        if (given) put(out, trimmed(span_of(m[0].content)));
        buffer_append_string(out, "<|eot_id|>");
        m += given;
        n -= given;
    }
    for (int i = 0; i < n; i++) {
        struct span content = span_of(m[i].content);
        buffer_append_string(out, "<|start_header_id|>");
        buffer_append_string(out, m[i].role);
        buffer_append_string(out, "<|end_header_id|>\n\n");
        put(out, shape->trim ? trimmed(content) : content);
        buffer_append_string(out, "<|eot_id|>");
    }
}

static void put_turn(struct buffer *out, const struct chat_turn *turn, struct span content)
{
    buffer_append_string(out, turn->before);
    put(out, turn->trim ? trimmed(content) : content);
    buffer_append_string(out, turn->after);
}

static void render_deepseek(const struct chat_template *c, const struct chat_message *m, int n,
                            struct buffer *out)
{
    const struct chat_shape *shape = c->shape;
    struct buffer system = {0};
    bool first = true;
    for (int i = 0; i < n; i++) {
        if (!is_role(&m[i], "system")) continue;
        if (!shape->join_systems) system.n = 0;
        else if (!first) buffer_append_string(&system, "\n\n");
        buffer_append_string(&system, m[i].content);
        first = false;
    }
    buffer_append(out, system.bytes, system.n);
    buffer_free(&system);
    for (int i = 0; i < n; i++) {
        struct span content = span_of(m[i].content);
        if (is_role(&m[i], "user")) put_turn(out, &shape->user, content);
        if (!is_role(&m[i], "assistant")) continue;
        put_turn(out, &shape->assistant, shape->drop_reasoning ? behind_last(content, "</think>") : content);
    }
}

static enum status render_inst(const struct chat_template *c, const struct chat_message *m, int n,
                               struct buffer *out, struct reason *why)
{
    const struct chat_shape *shape = c->shape;
    const char *system = NULL;
    if (is_role(&m[0], "system")) {
        if (!shape->system_between)
            return status_fail(why, STATUS_BAD_INPUT,
                               "this model's chat template takes no system message: put it into the user's");
        system = m[0].content;
        m++;
        n--;
    }
    for (int i = 0; i < n; i++) {
        if (!is_role(&m[i], i % 2 ? "assistant" : "user"))
            return status_fail(
                why, STATUS_BAD_INPUT,
                "message %d is of the %s: this model's chat template wants user and assistant in turn",
                i + 1 + (system != NULL), m[i].role);
        bool carries = system && i == (shape->system_last ? n - 1 : 0);
        struct buffer content = {0};
        if (carries) {
            buffer_append_string(&content, shape->system_before);
            buffer_append_string(&content, system);
            buffer_append_string(&content, shape->system_between);
        }
        buffer_append_string(&content, m[i].content);
        if (i % 2) put_turn(out, &shape->assistant, span_of(m[i].content));
        else put_turn(out, &shape->user, (struct span){content.bytes ? content.bytes : "", content.n});
        buffer_free(&content);
    }
    return STATUS_OK;
}

/* ------------------------------------------------------------------------------------------ render */
static enum status check_messages(const struct chat_message *m, int n, struct reason *why)
{
    if (n < 1)
        return status_fail(why, STATUS_BAD_INPUT, "the conversation has no messages: give at least one");
    for (int i = 0; i < n; i++) {
        size_t length = strlen(m[i].content), valid = utf8_valid_prefix(m[i].content, length);
        if (!is_role(&m[i], "system") && !is_role(&m[i], "user") && !is_role(&m[i], "assistant"))
            return status_fail(
                why, STATUS_BAD_INPUT,
                "message %d has the role \"%.40s\": needs system, user or assistant; tools are not "
                "covered",
                i + 1, m[i].role);
        if (valid != length)
            return status_fail(why, STATUS_BAD_INPUT, "message %d is not UTF-8: byte %zu is 0x%02x", i + 1,
                               valid, (unsigned)(uint8_t)m[i].content[valid]);
    }
    return STATUS_OK;
}

enum status chat_render(const struct chat_template *c, const struct chat_message *messages, int n_messages,
                        char **text, struct reason *why)
{
    *text = NULL;
    enum status status = check_messages(messages, n_messages, why);
    if (status != STATUS_OK) return status;
    ASSERT(c->shape);
    struct buffer out = {0};
    if (c->shape->bos_first) buffer_append_string(&out, c->bos);
    switch (c->format) {
    case CHAT_CHATML: render_chatml(c, messages, n_messages, &out); break;
    case CHAT_LLAMA3: render_llama3(c, messages, n_messages, &out); break;
    case CHAT_DEEPSEEK_R1: render_deepseek(c, messages, n_messages, &out); break;
    default: status = render_inst(c, messages, n_messages, &out, why); break;
    }
    buffer_append_string(&out, c->shape->generation);
    if (status == STATUS_OK) *text = buffer_take(&out);
    buffer_free(&out);
    return status;
}
