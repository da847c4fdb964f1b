/* attention_expect.h - the reference for each attention op; attention_world.c calls these after the op. */
#ifndef RETRO_TESTS_ATTENTION_EXPECT_H
#define RETRO_TESTS_ATTENTION_EXPECT_H

#include "attention_world.h"

/* q, the stored keys and values, the summaries of touched pages; nothing else in the cache changed. */
void expect_rope_store(const struct world *w);
/* Lists are right up to pages whose scores are closer than rounding; the cache is unchanged. */
void expect_select(const struct world *w);
/* The cache (and the slot records) are as they were. */
void expect_untouched(const struct world *w, bool slots_too);
/* Outputs, output cache, last_loaded, counters; moves the reference's own state on. */
void expect_merge(struct world *w);
void expect_attend_prompt(const struct world *w);

#endif
