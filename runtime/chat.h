/* chat.h - conversations to prompt text, by format family rather than by running Jinja.
 *
 * The folder's chat template (chat_template.jinja, or tokenizer_config.json "chat_template") is recognised by
 * its markers: ChatML (SmolLM2, Qwen), Llama 3, Mistral, DeepSeek-R1 distills, Llama 2. What differs within a
 * family (the default system message, blanks around [INST], where a system message goes, dates, how a reply
 * begins) is read from the template's own strings. The rendered text equals what the published template
 * renders with add_generation_prompt=true for system/user/assistant messages; tools are refused. A template
 * that names strftime_now (Llama 3.2) renders its own fallback date, so that prompts do not change overnight.
 * An unrecognised template is refused with its first line in the message. */
#ifndef RETRO_CHAT_H
#define RETRO_CHAT_H

#include <stddef.h>

#include "runtime/base/status.h"

enum chat_format {
    CHAT_NONE,
    CHAT_CHATML,
    CHAT_LLAMA2,
    CHAT_LLAMA3,
    CHAT_MISTRAL,
    CHAT_DEEPSEEK_R1,
    CHAT_FORMAT_COUNT
};

struct chat_template {
    enum chat_format format;
    char
        *default_system; /* what the template inserts when there is no system message; NULL for none; owned */
    char *bos, *eos;     /* literal tokens where the template writes them; owned; NULL when absent */
    struct chat_shape *shape; /* what else the template says; private to chat*.c; owned */
};

struct chat_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* UTF-8 */
};

enum status chat_open(struct chat_template *c, const char *dir, struct reason *why);
void chat_close(struct chat_template *c);
/* *text is malloc'd; caller frees. Encode it with special=false: the text already holds bos where the
 * template has it. */
enum status chat_render(const struct chat_template *c, const struct chat_message *messages, int n_messages,
                        char **text, struct reason *why);
const char *chat_format_name(enum chat_format f);

#endif
