/* chat_shape.h - what a chat template says beside its family; for chat*.c only. */
#ifndef RETRO_CHAT_SHAPE_H
#define RETRO_CHAT_SHAPE_H

#include <stdbool.h>

#include "runtime/chat.h"

/* One message: before + content + after. */
struct chat_turn {
    char *before, *after; /* owned */
    bool trim;            /* the content loses white space at both ends */
};

struct chat_shape {
    char *generation;   /* how the reply begins; owned */
    char *system_lines; /* Llama 3.1: lines that open a system block there always is; owned; or NULL */
    struct chat_turn user, assistant; /* Mistral, Llama 2, DeepSeek */
    char *system_before,
        *system_between; /* around a system message within a user turn; owned; NULL: refused */
    bool bos_first;      /* bos stands before everything */
    bool system_last;    /* the system message goes to the last user turn, not to the first */
    bool trim;           /* Llama 3: contents lose white space at both ends */
    bool reasoning;      /* Qwen3: <think> blocks of earlier turns are dropped, of later ones rewritten */
    bool drop_reasoning; /* DeepSeek, QwQ: what an assistant wrote up to </think> is dropped */
    bool join_systems;   /* DeepSeek: several system messages are joined; otherwise the last one counts */
};

/* Fills c->format, default_system and shape from the template's text; bos and eos are set already. */
enum status chat_recognise(struct chat_template *c, const char *template, struct reason *why);

#endif
