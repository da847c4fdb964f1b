#include "runtime/seq.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

void seq_open(struct seq *s, int slot, const struct policy *p, const int32_t *prompt, int n_prompt,
              int capacity, int block_tokens)
{
    ASSERT(n_prompt >= 1 && n_prompt <= capacity);
    *s = (struct seq){
        .slot = slot, .policy = *p, .n_tokens = n_prompt, .n_prompt = n_prompt, .capacity = capacity};
    s->token = malloc((size_t)capacity * sizeof *s->token);
    s->block = malloc((size_t)(capacity / block_tokens + 1) * sizeof *s->block);
    if (!s->token || !s->block)
        DIE(EXIT_CODE_MEMORY, "lower --max-context", "no memory for a sequence of %d tokens", capacity);
    memcpy(s->token, prompt, (size_t)n_prompt * sizeof *prompt);
}

void seq_close(struct seq *s, struct pages *pages)
{
    for (int i = 0; i < s->n_blocks; i++) pages_release(pages, s->block[i]);
    free(s->token);
    free(s->block);
    *s = (struct seq){0};
}

void seq_append_token(struct seq *s, int32_t token)
{
    ASSERT(s->n_tokens < s->capacity);
    s->token[s->n_tokens++] = token;
}

enum status seq_reserve(struct seq *s, struct pages *pages, int n_tokens, int block_tokens)
{
    ASSERT(n_tokens <= s->capacity);
    int wanted = (n_tokens + block_tokens - 1) / block_tokens;
    if (wanted <= s->n_blocks) return STATUS_OK;
    enum status status = pages_alloc(pages, wanted - s->n_blocks, s->block + s->n_blocks);
    if (status == STATUS_OK) s->n_blocks = wanted;
    return status;
}

void seq_check(const struct seq *s, int block_tokens)
{
    ASSERT(s->fed >= 0 && s->fed <= s->n_tokens && s->n_tokens <= s->capacity);
    ASSERT(s->n_prompt >= 1 && s->n_prompt <= s->n_tokens);
    ASSERT((long)s->n_blocks * block_tokens >= s->fed && s->n_announced <= s->n_blocks);
}
