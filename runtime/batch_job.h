/* batch_job.h - one line of a batch on its way through the service to its record. */
#ifndef RETRO_BATCH_JOB_H
#define RETRO_BATCH_JOB_H

#include <pthread.h>

#include "runtime/batch.h"

struct batch_job;

/* Where finished jobs wait for the writing thread. */
struct batch_done {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct batch_job *first, **last;
};

/* One prompt of a request (a completion may have several) as the service's `user`. */
struct batch_part {
    struct batch_job *job;
    int prompt;
};

struct batch_job {
    int64_t line;
    char *custom_id; /* owned; NULL: it has none */
    struct api_request *request;
    struct api_answer *answer;
    struct batch_part *part; /* (n_prompts) */
    struct batch_done *done;
    pthread_mutex_t
        lock;         /* of answer and n_tokens: prompts of one request may run on several engines' threads */
    int n_pending;    /* prompts that the service has and that are not submitted yet; under done->lock */
    int64_t n_tokens; /* generated */
    bool failed;      /* the service refused a prompt; `error` says why */
    struct api_error error;
    struct batch_job *next;
};

void batch_done_open(struct batch_done *d);
void batch_done_close(struct batch_done *d);
/* All that have finished, oldest first; waits up to timeout_us for the first. */
struct batch_job *batch_done_take(struct batch_done *d, int64_t timeout_us);

/* The job of a line that was parsed; takes the request. */
struct batch_job *batch_job_open(const struct batch_work *b, struct api *api, int64_t line,
                                 const char *custom_id, struct api_request *request, struct batch_done *done);
void batch_job_close(struct batch_job *j);
/* Gives its prompts to the service. It comes out of `done` whatever happens. */
void batch_job_submit(struct batch_job *j, struct api *api, struct front *f);

/* The record of a job that came out. False: it was cut off by a drain and has none. */
bool batch_job_record(struct batch_job *j, const struct batch_work *b, struct buffer *out, bool *is_error);
/* The record of a line that is no request. */
void batch_job_error_record(const struct batch_work *b, int64_t line, const char *custom_id,
                            const struct api_error *e, struct buffer *out);

#endif
