/* serving.h - a session as a service: tokenizer, chat template, API and scheduler, as serve and batch need them. */
#ifndef RETRO_LAUNCHER_SERVING_H
#define RETRO_LAUNCHER_SERVING_H

#include "launcher/session.h"
#include "runtime/api.h"
#include "runtime/chat.h"
#include "runtime/front.h"

struct serving {
    const char *model; /* the served name; borrowed from the options */
    struct tokenizer *tokenizer;
    struct chat_template chat;
    struct reason why_no_chat; /* "" when the folder has a chat template that is known */
    int32_t eos_of_tokenizer;
    struct api *api;
    struct front *front;
};

/* Rank 0, between session_prepare and session_agree: reads the folder's texts and finds how many tokens a sequence
 * may hold. */
enum status serving_prepare(struct serving *v, const struct session *s, int *context, struct reason *why);
/* Every rank, before session_load: the room that the options give to sequences (session.room). */
void serving_size(struct session *s);
/* Rank 0, after session_load for `context` tokens. */
enum status serving_open(struct serving *v, const struct session *s, int context, int max_queue,
                         struct reason *why);
void serving_close(struct serving *v);

#endif
