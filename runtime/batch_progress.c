#include <inttypes.h>
#include <stdio.h>

#include "runtime/batch.h"

void batch_progress_format(const struct batch_progress *p, char *text, size_t text_bytes)
{
    char bad[40] = "", speed[40] = "", left[60] = "";
    if (p->n_errors) snprintf(bad, sizeof bad, ", %" PRId64 " bad", p->n_errors);
    if (p->n_tokens && p->seconds > 0)
        snprintf(speed, sizeof speed, ", %.1f tokens/s", (double)p->n_tokens / p->seconds);
    if (p->n_here && p->n_done < p->n_requests) {
        int64_t s = (int64_t)(p->seconds / (double)p->n_here * (double)(p->n_requests - p->n_done) + 0.5);
        snprintf(left, sizeof left, ", %" PRId64 ":%02d:%02d left", s / 3600, (int)(s / 60 % 60),
                 (int)(s % 60));
    }
    snprintf(text, text_bytes, "%" PRId64 " of %" PRId64 " done%s%s%s", p->n_done, p->n_requests, bad, speed,
             left);
}
