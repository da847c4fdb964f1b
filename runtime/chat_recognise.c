/* chat_recognise.c - which family a chat template belongs to, and what it says beside that.
 *
 * A template is taken for a family by a marker string; then every string that the family leaves open must be
 * found in it, and constructs known to mean something else are refused, so that a foreign template is an
 * error and not a prompt the model was never trained on. */
#include <stdlib.h>
#include <string.h>

#include "runtime/buffer.h"
#include "runtime/chat_scan.h"
#include "runtime/chat_shape.h"

#define DEEPSEEK_USER "<\xef\xbd\x9cUser\xef\xbd\x9c>"
#define DEEPSEEK_ASSISTANT                                                                                   \
    "<\xef\xbd\x9c"                                                                                          \
    "Assistant\xef\xbd\x9c>"

struct recogniser {
    struct chat_template *c;
    const char *template;
    struct chat_scan scan;
    struct reason *why;
};

static enum status refuse(const struct recogniser *r, const char *what)
{
    const char *line = r->template + strspn(r->template, " \t\r\n");
    return status_fail(r->why, STATUS_BAD_MODEL,
                       "chat template: %s: \"%.*s\": use a model with a ChatML, Llama 2, Llama 3, Mistral or "
                       "DeepSeek-R1 template, or give plain prompts (no --chat, /v1/completions)",
                       what, (int)strcspn(line, "\r\n") > 100 ? 100 : (int)strcspn(line, "\r\n"), line);
}

static bool has(const struct recogniser *r, const char *text) { return strstr(r->template, text) != NULL; }

static char *copy_string(const char *s)
{
    struct buffer b = {0};
    buffer_append_string(&b, s);
    return buffer_take(&b);
}

/* The first tag of nothing but literals, from `from` on, whose text begins with `prefix`; malloc'd or NULL.
 */
static char *find_literal(const struct recogniser *r, int from, const char *prefix)
{
    for (int i = from; i < r->scan.n_tags; i++) {
        char *text = *r->scan.tags[i].set ? NULL : chat_tag_literal(&r->scan.tags[i]);
        if (text && !strncmp(text, prefix, strlen(prefix))) return text;
        free(text);
    }
    return NULL;
}

/* What {% set name = 'literal' %} says first; malloc'd or NULL. */
static char *find_set(const struct recogniser *r, const char *name)
{
    for (int i = 0; i < r->scan.n_tags; i++) {
        char *text = strcmp(r->scan.tags[i].set, name) ? NULL : chat_tag_literal(&r->scan.tags[i]);
        if (text) return text;
    }
    return NULL;
}

/* The literal behind the template's last add_generation_prompt, where it begins with `header`; else `header`.
 */
static void read_generation(struct recogniser *r, const char *header)
{
    size_t behind = 0;
    for (const char *at = r->template; (at = strstr(at, "add_generation_prompt")); at++)
        behind = (size_t)(at - r->template);
    int from = 0;
    while (from < r->scan.n_tags && r->scan.tags[from].at < behind) from++;
    char *text = find_literal(r, from, header);
    r->c->shape->generation = text ? text : copy_string(header);
}

/* A tag that is one message with nothing but literals, bos and eos around the content. */
static bool read_turn(const struct recogniser *r, const struct chat_tag *tag, struct chat_turn *turn)
{
    int content, other;
    if (tag->has_other || chat_tag_count(tag, CHAT_TERM_CONTENT, &content) != 1) return false;
    if (chat_tag_count(tag, CHAT_TERM_ROLE, &other) || chat_tag_count(tag, CHAT_TERM_SYSTEM, &other))
        return false;
    struct buffer sides[2] = {{0}, {0}};
    for (int i = 0; i < tag->n_terms; i++) {
        const struct chat_term *term = &tag->terms[i];
        const char *text = term->kind == CHAT_TERM_BOS   ? r->c->bos
                           : term->kind == CHAT_TERM_EOS ? r->c->eos
                                                         : term->literal;
        if (i != content) buffer_append_string(&sides[i > content], text);
    }
    free(turn->before);
    free(turn->after);
    *turn = (struct chat_turn){buffer_take(&sides[0]), buffer_take(&sides[1]), tag->terms[content].trim};
    return true;
}

/* ------------------------------------------------------------------------------------------ families */
/* The first literal of tag i, "" when it begins with something else. */
static const char *leading_literal(const struct recogniser *r, int i)
{
    const char *text =
        i >= 0 && i < r->scan.n_tags && r->scan.tags[i].n_terms ? r->scan.tags[i].terms[0].literal : NULL;
    return text ? text : "";
}

/* Contents are cut at </think>. */
static bool cuts_reasoning(const struct recogniser *r)
{
    return has(r, "split('</think>')") || has(r, "split(\"</think>\")");
}

/* bos_token stands before everything, wherever a template writes it. */
static enum status read_bos(struct recogniser *r)
{
    int at;
    for (int i = 0; i < r->scan.n_tags; i++) {
        const struct chat_tag *tag = &r->scan.tags[i];
        if (!chat_tag_count(tag, CHAT_TERM_BOS, &at)) continue;
        if (!r->c->bos) return refuse(r, "names bos_token, which tokenizer_config.json does not have");
        r->c->shape->bos_first = true;
    }
    return STATUS_OK;
}

/* Tag i ends a message and nothing, not even a line's end in the template, comes before the next tag. */
static bool ends_bare(const struct recogniser *r, int i)
{
    const struct chat_tag *tag = &r->scan.tags[i];
    const struct chat_term *last = &tag->terms[tag->n_terms - 1];
    if (last->kind != CHAT_TERM_EOS && !(last->literal && !strcmp(last->literal, "<|im_end|>"))) return false;
    const char *end = strstr(r->template + tag->at, "}}");
    return end && end[2] == '{' && *leading_literal(r, i + 1) != '\n';
}

static enum status recognise_chatml(struct recogniser *r)
{
    static const char system_begin[] = "<|im_start|>system\n", system_end[] = "<|im_end|>\n";
    struct chat_shape *shape = r->c->shape;
    r->c->format = CHAT_CHATML;
    if (has(r, "<|im_sep|>") || has(r, "<end_of_utterance>") || has(r, "strftime_now"))
        return refuse(r, "is like ChatML but not ChatML");
    shape->reasoning = has(r, "reasoning_content");
    if (shape->reasoning && (!has(r, "not loop.last and reasoning_content") || !has(r, "last_query_index")))
        return refuse(r, "treats reasoning in a way that is not covered");
    shape->drop_reasoning = !shape->reasoning && has(r, "split('</think>')[-1].lstrip('\\n')"); /* QwQ */
    if (!shape->reasoning && !shape->drop_reasoning && cuts_reasoning(r))
        return refuse(r, "treats reasoning in a way that is not covered");
    int at, bos;
    for (int i = 0; i < r->scan.n_tags; i++) {
        const struct chat_tag *tag = &r->scan.tags[i];
        if (tag->n_terms == 1 && tag->terms[0].kind == CHAT_TERM_SYSTEM && !*tag->set &&
            strcmp(leading_literal(r, i - 1), "<|im_start|>system\n")) /* Yi writes it bare */
            return refuse(r, "places the system message its own way");
        if (!chat_tag_count(tag, CHAT_TERM_CONTENT, &at)) continue;
        if (tag->terms[at].trim) return refuse(r, "trims contents, which is not covered for ChatML");
        if (!*tag->set && chat_tag_count(tag, CHAT_TERM_BOS, &bos))
            return refuse(r, "writes bos_token into messages");
        if (!*tag->set && ends_bare(r, i)) return refuse(r, "ends messages without a new line");
    }
    for (int from = 0; from < r->scan.n_tags && !r->c->default_system; from++) {
        char *text = chat_tag_literal(&r->scan.tags[from]);
        size_t n = text ? strlen(text) : 0, n_begin = strlen(system_begin), n_end = strlen(system_end);
        if (n > n_begin + n_end && !strncmp(text, system_begin, n_begin) &&
            !strcmp(text + n - n_end, system_end)) {
            text[n - n_end] = '\0';
            r->c->default_system = copy_string(text + n_begin);
        }
        free(text);
    }
    if (!r->c->default_system) r->c->default_system = find_set(r, "system_message");
    if (r->c->default_system && !*r->c->default_system) {
        free(r->c->default_system);
        r->c->default_system = NULL;
    }
    read_generation(r, "<|im_start|>assistant\n");
    return read_bos(r);
}

static enum status recognise_llama3(struct recogniser *r)
{
    r->c->format = CHAT_LLAMA3;
    r->c->shape->trim = has(r, "trim");
    if (cuts_reasoning(r)) return refuse(r, "treats reasoning in a way that is not covered");
    if (has(r, "Today Date")) {
        char *cutting = find_literal(r, 0, "Cutting Knowledge Date: "),
             *today = find_literal(r, 0, "Today Date: ");
        char *date = find_set(r, "date_string");
        struct buffer lines = {0};
        if (cutting) buffer_append_string(&lines, cutting);
        if (today || date) buffer_append_string(&lines, today ? today : "Today Date: ");
        if (!today && date) {
            buffer_append_string(&lines, date);
            buffer_append_string(&lines, "\n\n");
        }
        bool complete = cutting && (today || date);
        r->c->shape->system_lines = buffer_take(&lines);
        free(cutting);
        free(today);
        free(date);
        if (!complete) return refuse(r, "has a date line without a date in it");
    }
    for (int i = 0; i < r->scan.n_tags && !r->c->shape->system_lines; i++)
        if (r->scan.tags[i].n_terms == 1 && strstr(leading_literal(r, i), "<|start_header_id|>system"))
            return refuse(r, "has a system block of its own");
    read_generation(r, "<|start_header_id|>assistant<|end_header_id|>\n\n");
    return read_bos(r);
}

static enum status recognise_deepseek(struct recogniser *r)
{
    struct chat_shape *shape = r->c->shape;
    r->c->format = CHAT_DEEPSEEK_R1;
    shape->drop_reasoning = has(r, "'</think>' in content") || has(r, "split('</think>')");
    shape->join_systems = has(r, "is_first_sp");
    for (int i = 0; i < r->scan.n_tags; i++) {
        const struct chat_tag *tag = &r->scan.tags[i];
        const char *first = tag->n_terms ? tag->terms[0].literal : NULL;
        if (!first || tag->n_terms > 3 || *tag->set) continue;
        if (!shape->user.before && !strcmp(first, DEEPSEEK_USER)) read_turn(r, tag, &shape->user);
        if (!shape->assistant.before && tag->n_terms == 3 && !strcmp(first, DEEPSEEK_ASSISTANT))
            read_turn(r, tag, &shape->assistant);
    }
    if (!shape->user.before || *shape->user.after || !shape->assistant.before)
        return refuse(r, "is no DeepSeek-R1 template");
    read_generation(r, DEEPSEEK_ASSISTANT);
    return read_bos(r);
}

/* Mistral and Llama 2 write [INST] ... [/INST] around user messages and eos behind assistant ones. */
static enum status recognise_inst(struct recogniser *r)
{
    struct chat_shape *shape = r->c->shape;
    bool llama2 = has(r, "<<SYS>>");
    r->c->format = llama2 ? CHAT_LLAMA2 : CHAT_MISTRAL;
    shape->generation = copy_string("");
    if (has(r, "[SYSTEM_PROMPT]") || has(r, "true == true"))
        return refuse(r, "places the system message its own way");
    for (int i = 0; i < r->scan.n_tags; i++) {
        const struct chat_tag *tag = &r->scan.tags[i];
        int at, content, system;
        chat_tag_count(tag, CHAT_TERM_CONTENT, &content);
        int n_systems = chat_tag_count(tag, CHAT_TERM_SYSTEM, &system);
        bool inst = chat_tag_mentions(tag, "[INST]"), sys = chat_tag_mentions(tag, "<<SYS>>");
        if (n_systems == 1 && content == system + 2 && system == 1 && !tag->has_other && (inst || sys)) {
            free(shape->system_before);
            free(shape->system_between);
            shape->system_before = copy_string(llama2 ? tag->terms[0].literal : "");
            shape->system_between = copy_string(tag->terms[2].literal);
        } else if (inst && !shape->user.before) {
            read_turn(r, tag, &shape->user);
        } else if (content >= 0 && chat_tag_count(tag, CHAT_TERM_EOS, &at) && !shape->assistant.before) {
            read_turn(r, tag, &shape->assistant);
        } else if (!*tag->set && tag->n_terms == 1 && chat_tag_count(tag, CHAT_TERM_BOS, &at)) {
            shape->bos_first = true;
        }
    }
    if (!r->c->bos || !r->c->eos) return refuse(r, "needs bos_token and eos_token in tokenizer_config.json");
    if (!shape->user.before || !shape->assistant.before)
        return refuse(r, "has no [INST] turns of a known form");
    shape->system_last = has(r, "loop.last and system_message");
    if (has(r, "[INST]") && has(r, "system_message") && !shape->system_between)
        return refuse(r, "places the system message its own way");
    return STATUS_OK;
}

enum status chat_recognise(struct chat_template *c, const char *template, struct reason *why)
{
    struct recogniser r = {.c = c, .template = template, .why = why};
    c->shape = buffer_zeroed(1, sizeof *c->shape);
    chat_scan_open(&r.scan, template);
    enum status status;
    if (has(&r, DEEPSEEK_USER)) status = recognise_deepseek(&r);
    else if (has(&r, "<|im_start|>")) status = recognise_chatml(&r);
    else if (has(&r, "<|start_header_id|>")) status = recognise_llama3(&r);
    else if (has(&r, "[INST]")) status = recognise_inst(&r);
    else status = refuse(&r, "is of no known family");
    chat_scan_close(&r.scan);
    return status;
}
