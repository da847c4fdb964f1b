/* marks.c - time stamps on the GPU's own time line: one event a mark.
 *
 * The runtime gives the time between two events as f32 milliseconds, which after an hour would be too coarse.
 * So each step that takes mark 0 also moves an anchor along: times are f32 from the anchor, and the anchor's
 * time is a double. Events are made when they are first needed; only a tracing device takes marks. */
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

static void record(struct cuda_device *c, cudaEvent_t *event)
{
    if (!*event) cuda_check(cudaEventCreate(event), "creating an event");
    cuda_check(cudaEventRecord(*event, c->stream), "recording an event");
}

static double us_between(cudaEvent_t from, cudaEvent_t to)
{
    float ms;
    cuda_check(cudaEventElapsedTime(&ms, from, to), "reading an event's time");
    return (double)ms * 1e3;
}

void cuda_mark(struct device *d, int i)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(i >= 0 && i < MARKS_MAX);
    if (!c->mark) {
        c->mark = calloc(MARKS_MAX, sizeof *c->mark);
        if (!c->mark) DIE(EXIT_CODE_MEMORY, NULL, "no memory for %d marks", MARKS_MAX);
        record(c, &c->anchor[0]);
    }
    if (i == 0 && !c->anchor_moves) {
        record(c, &c->anchor[1]);
        c->anchor_moves = true;
    }
    record(c, &c->mark[i]);
}

double cuda_mark_us(struct device *d, int i)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(i >= 0 && i < MARKS_MAX && c->mark && c->mark[i]);
    if (c->anchor_moves) {
        cudaEvent_t old = c->anchor[0];
        c->anchor_us += us_between(old, c->anchor[1]);
        c->anchor[0] = c->anchor[1];
        c->anchor[1] = old;
        c->anchor_moves = false;
    }
    return c->anchor_us + us_between(c->anchor[0], c->mark[i]);
}

void cuda_range(struct device *d, const char *name)
{
    (void)d;
    (void)name;
}

void cuda_marks_close(struct cuda_device *c)
{
    for (int i = 0; i < MARKS_MAX && c->mark; i++)
        if (c->mark[i]) cudaEventDestroy(c->mark[i]);
    for (int i = 0; i < 2; i++)
        if (c->anchor[i]) cudaEventDestroy(c->anchor[i]);
    free(c->mark);
}
