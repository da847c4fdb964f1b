/* session.h - everything a running command needs, opened in the order in which it can fail.
 *
 * Rank 0 checks options and files first and tells the others the verdict, so that a bad folder is one line
 * and one exit code however many ranks there are. With --dp the world is several replicas of the model: they start
 * and fail as one, and rank 0 has an engine for each. */
#ifndef RETRO_LAUNCHER_SESSION_H
#define RETRO_LAUNCHER_SESSION_H

#include "comm/comm.h"
#include "comm/ctl.h"
#include "runtime/engine.h"
#include "runtime/options.h"
#include "runtime/tokenizer.h"

struct session {
    struct comm_world world;
    const struct options *options;
    bool checked;  /* run every op on a reference device too (retro check) */
    int window;    /* largest of any sequence; session_prepare sets that of the options */
    int threads;   /* of a rank; 0: the device has none of its own */
    int kv_tokens; /* that the KV cache holds; 0: enough for all sequences at once */
    /* What a command may want otherwise, set between session_prepare and session_load on every rank; 0: as
     * model.h says. */
    struct {
        int max_rows;
        int64_t swap_bytes;
    } room;
    int n_replicas;
    struct comm *whole;   /* all ranks of the job: to start together; with one replica it is comm */
    struct comm *comm;    /* this rank's replica */
    struct comm *leaders; /* the replicas' leaders, where this rank is one of several; else NULL */
    struct ctl *front;    /* from rank 0 to the other leaders; likewise */
    struct ctl *ctl;
    struct model_files files;
    struct policy policy;
    struct model *model;
    struct engine *engine;
    struct engine **replica; /* rank 0: (n_replicas) the engines of all, [0] is `engine` */
};

/* Opens the group; on rank 0 the policy and the model files too. Returns the status on rank 0; follow it with
 * session_agree, also after a failure. */
enum status session_prepare(struct session *s, const struct options *o, const struct comm_world *w,
                            struct reason *why);
/* Collective: everyone learns rank 0's status and how many tokens a sequence needs. On failure rank 0 prints
 * `why`. */
enum status session_agree(struct session *s, enum status status, int *context, const struct reason *why);
/* Collective: loads the model and opens the engine for n_slots sequences of `context` tokens. */
enum status session_load(struct session *s, int context, int n_slots, struct reason *why);
/* Every rank but rank 0: does what it is told until rank 0 closes its session. */
void session_follow(struct session *s);
/* Collective; ends session_follow on the other ranks. */
void session_close(struct session *s);

/* Ranks of one replica by --tp and --dp; 0 when the world is not tp x dp. The same on every rank. */
int session_group_size(const struct options *o, const struct comm_world *w);

/* CPU threads of this rank: --threads, or the cores it may use, shared fairly when the launcher did not bind the
 * ranks of a host apart. */
int session_threads(const struct options *o, const struct comm_world *w);

/* What GEMMs read on this host, by --act-dtype: auto is the weights' type on CUDA, on the CPU bf16 where keys, values and
 * weights are and the processor gains by it, else f32. f32 keys and values ask for exactness, and so does eval, whose
 * numbers are to be those of the model and the policy and not of the kind of processor. */
enum dtype session_act(const struct options *o, enum dtype weights);

/* Prints one error line on rank 0 and gives the status's exit code. */
int session_fail(const struct comm_world *w, enum status status, const struct reason *why);

#endif
