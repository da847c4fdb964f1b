/* cmd_check.c - `retro check`: a prompt chunk and decode steps of a real model with every op run twice, on
 * the device of --device and on the CPU's portable code, stopping at the first difference that rounding does
 * not explain. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/check.h"
#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"
#include "runtime/generation.h"
#include "runtime/sampler.h"

/* Random tokens from the sampler's hash: the same on every machine. */
static int32_t random_token(int vocab, int i)
{
    return (int32_t)(sampler_uniform(1, 0, (uint64_t)i) * vocab);
}

static const struct check_report *run(struct session *s, int n_prompt, int n_steps)
{
    int vocab = s->files.arch.vocab;
    int32_t *prompt = malloc((size_t)n_prompt * sizeof *prompt);
    if (!prompt) DIE(EXIT_CODE_MEMORY, "lower --prompt", "no memory for %d tokens", n_prompt);
    for (int i = 0; i < n_prompt; i++) prompt[i] = random_token(vocab, i);
    struct generation g;
    generation_open(&g, s->engine, &s->policy, prompt, n_prompt, n_prompt + n_steps, n_prompt);
    const struct check_report *r = check_device_report(s->model->device);
    generation_prefill(&g, STEP_WANT_LOGITS);
    for (int i = 0; i < n_steps && !r->failed; i++)
        generation_feed(&g, random_token(vocab, n_prompt + i), STEP_WANT_CANDIDATES);
    generation_close(&g);
    free(prompt);
    return r;
}

static void print_report(const struct session *s, const struct check_report *r)
{
    printf("%s\n", device_describe(s->model->device));
    printf("%d op calls, %lld values compared; largest difference %.3f of its tolerance, in %s\n", r->n_ops,
           (long long)r->n_values, r->worst, r->worst_op[0] ? r->worst_op : "none");
    printf("%d page lists, %d differ by nearly tied pages\n", r->n_page_lists, r->n_page_lists_differ);
    printf("%s\n", r->failed ? r->first : "equal within rounding");
}

int cmd_check(const struct options *o, const struct comm_world *w)
{
    struct session s;
    struct reason why;
    int context = o->check_prompt + o->check_steps, code = EXIT_CODE_OK;
    enum status status = session_prepare(&s, o, w, &why);
    if (status == STATUS_OK && w->size > 1)
        status = status_fail(&why, STATUS_BAD_OPTION,
                             "retro check compares one rank's ops: start it without mpirun");
    if (status == STATUS_OK && context > s.files.arch.context)
        status = status_fail(&why, STATUS_TOO_LONG, "--prompt %d and --steps %d: the context limit is %d",
                             o->check_prompt, o->check_steps, s.files.arch.context);
    status = session_agree(&s, status, &context, &why);
    s.checked = true;
    if (status == STATUS_OK) {
        status = session_load(&s, context, 1, &why);
        if (status != STATUS_OK) {
            session_fail(w, status, &why);
        } else {
            const struct check_report *r = run(&s, o->check_prompt, o->check_steps);
            print_report(&s, r);
            code = r->failed ? EXIT_CODE_BUG : EXIT_CODE_OK;
        }
    }
    session_close(&s);
    return status == STATUS_OK ? code : status_exit_code(status);
}
