#define _GNU_SOURCE
#include "launcher/session.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/check.h"
#include "kernels/trace.h"
#include "runtime/base/die.h"
#include "runtime/base/progress.h"

int session_fail(const struct comm_world *w, enum status status, const struct reason *why)
{
    if (w->rank == 0) LOG_ERROR("%s", why->text);
    return status_exit_code(status);
}

int session_group_size(const struct options *o, const struct comm_world *w)
{
    if (o->tp == OPTIONS_UNSET) return w->size % o->dp == 0 ? w->size / o->dp : 0;
    return (long)o->tp * o->dp == w->size ? o->tp : 0;
}

static enum status check_world(const struct session *s, struct reason *why)
{
    const struct options *o = s->options;
    int ranks = s->world.size;
    const char *were = ranks == 1 ? " was" : "s were";
    if (session_group_size(o, &s->world) > 0) return STATUS_OK;
    if (o->tp == OPTIONS_UNSET)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--dp %d: %d rank%s started, which is no multiple of it; start with mpirun -n %d",
                           o->dp, ranks, were, (ranks / o->dp + 1) * o->dp);
    if (o->dp > 1)
        return status_fail(why, STATUS_BAD_OPTION,
                           "--tp %d and --dp %d: %d rank%s started; start with mpirun -n %ld", o->tp, o->dp,
                           ranks, were, (long)o->tp * o->dp);
    return status_fail(why, STATUS_BAD_OPTION, "--tp %d: %d rank%s started; start with mpirun -n %d", o->tp,
                       ranks, were, o->tp);
}

static enum status check_ranks(const struct session *s, struct reason *why)
{
    int ranks = comm_size(s->comm);
    const char *of = s->n_replicas > 1 ? " a replica" : "";
    if (ranks > s->files.arch.n_heads)
        return status_fail(why, STATUS_BAD_OPTION,
                           "%d ranks%s: the model has %d query heads, start at most that many%s", ranks, of,
                           s->files.arch.n_heads, of);
    if (ranks > s->files.arch.ffn || ranks > s->files.arch.vocab)
        return status_fail(why, STATUS_BAD_OPTION,
                           "%d ranks%s: the model has %d MLP columns and %d tokens to share", ranks, of,
                           s->files.arch.ffn, s->files.arch.vocab);
    return STATUS_OK;
}

static enum status open_files(struct session *s, struct reason *why)
{
    const struct options *o = s->options;
    if (o->random_weights) return model_files_imagine(&s->files, o->model, why);
    if (!o->model)
        return status_fail(why, STATUS_BAD_OPTION, "--model DIR is missing: a Hugging Face model folder");
    return model_files_open(&s->files, o->model, why);
}

enum status session_prepare(struct session *s, const struct options *o, const struct comm_world *w,
                            struct reason *why)
{
    *s = (struct session){.world = *w, .options = o, .window = o->policy == POLICY_RETRO ? o->window : 1};
    progress_enter(PROGRESS_PREPARE);
    int n_ranks = session_group_size(o, w);
    s->comm = comm_open(w, n_ranks > 0 ? n_ranks : w->size);
    s->n_replicas = w->size / comm_size(s->comm);
    s->whole = s->n_replicas > 1 ? comm_open_world(w) : s->comm;
    s->leaders = s->n_replicas > 1 ? comm_open_leaders(w, n_ranks) : NULL;
    enum status status = check_world(s, why); /* the same on every rank */
    if (status != STATUS_OK || w->rank != 0) return status;
    status = options_policy(o, &s->policy, why);
    if (status == STATUS_OK) status = open_files(s, why);
    if (status == STATUS_OK) model_files_warn(&s->files);
    if (status == STATUS_OK) status = check_ranks(s, why);
    /* A shallow model simply has no layer beyond its last to be dense. */
    if (status == STATUS_OK && s->policy.dense_layers > s->files.arch.n_layers)
        s->policy.dense_layers = s->files.arch.n_layers;
    return status;
}

enum status session_agree(struct session *s, enum status status, int *context, const struct reason *why)
{
    int verdict[2] = {(int)status, *context};
    comm_bcast(s->whole, verdict, sizeof verdict);
    comm_bcast(s->whole, &s->policy, sizeof s->policy);
    *context = verdict[1];
    status = (enum status)verdict[0];
    if (status != STATUS_OK || s->world.rank == 0) {
        if (status != STATUS_OK) session_fail(&s->world, status, why);
        return status;
    }
    /* Rank 0 found the folder good: if this rank cannot read it, its view of the file system differs. */
    struct reason mine;
    status = open_files(s, &mine);
    if (status != STATUS_OK)
        DIE(status_exit_code(status),
            "rank 0 read the same folder: is the file system mounted on every host?", "%s", mine.text);
    return STATUS_OK;
}

int session_threads(const struct options *o, const struct comm_world *w)
{
    cpu_set_t set;
    if (o->threads != OPTIONS_UNSET) return o->threads;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    int share = cores / w->node_size;
    return share > 0 ? share : 1;
}

enum dtype session_act(const struct options *o, enum dtype weights)
{
    enum { AUTO };
    if (o->act_dtype != AUTO)
        return (enum dtype)(o->act_dtype - 1); /* the option lists the types in the enum's order */
    if (o->device == DEVICE_CUDA) return weights;
    bool bf16 = (enum dtype)o->kv_dtype == DTYPE_BF16 && weights == DTYPE_BF16 && o->command != CMD_EVAL;
    return bf16 && cpu_fast_pairs((enum cpu_isa)o->cpu_isa) ? DTYPE_BF16 : DTYPE_F32;
}

/* Collective. Hosts with unlike processors take f32. */
static enum dtype common_act(const struct session *s)
{
    int64_t act = session_act(s->options, s->files.arch.dtype), least = act, most = act;
    comm_min_i64(s->whole, &least, 1);
    comm_max_i64(s->whole, &most, 1);
    return least == most ? (enum dtype)act : DTYPE_F32;
}

/* The options that say how many tokens there are. */
static const char *size_flags(int command)
{
    switch (command) {
    case CMD_GENERATE: return "--max-context or --max-tokens";
    case CMD_EVAL: return "--prompt or --steps";
    case CMD_CHECK: return "--prompt";
    case CMD_BENCH_DECODE:
    case CMD_BENCH_KERNELS: return "--contexts or --batches";
    case CMD_BENCH_PREFILL: return "--lengths";
    default: return "--max-context or --max-seqs";
    }
}

/* The device of --device, with what the options wrap around it. */
static enum status open_device(struct session *s, enum dtype act, struct device **out, struct reason *why)
{
    const struct options *o = s->options;
    struct device_options d = {
        .n_threads = session_threads(o, &s->world),
        .isa = (enum cpu_isa)o->cpu_isa,
        .pin = s->world.node_size == 1,
        .act = act,
        .ordinal = s->world.node_rank,
    };
    s->threads = o->device == DEVICE_CPU ? d.n_threads : 0;
    enum status status = device_open(out, (enum device_kind)o->device, &d, why);
    if (status == STATUS_OK && s->checked) {
        struct device *reference;
        d.isa = CPU_ISA_PORTABLE;
        d.pin = false;
        status = device_open(&reference, DEVICE_CPU, &d, why);
        if (status == STATUS_OK) *out = check_device_open(reference, *out);
    } else if (status == STATUS_OK && o->trace) {
        char path[4096];
        snprintf(path, sizeof path, s->world.rank ? "%s.%d" : "%s", o->trace, s->world.rank);
        status = trace_device_open(out, *out, path, s->world.rank, why);
    }
    return status;
}

/* Collective: the ranks go on together or not at all. A rank whose own status was good returns another one's; what is
 * to be said about it is said by the leader of the replica that failed, because rank 0 only knows its own. */
static enum status all_or_none(struct session *s, enum status mine, struct reason *why)
{
    int64_t worst = (int64_t)mine;
    comm_max_i64(s->whole, &worst, 1);
    if (worst == STATUS_OK) return STATUS_OK;
    if (mine != STATUS_OK && s->world.rank != 0 && comm_rank(s->comm) == 0) LOG_ERROR("%s", why->text);
    if (mine == STATUS_OK)
        status_fail(why, (enum status)worst, "another replica could not be loaded: see its line");
    return (enum status)worst;
}

/* Rank 0 gets an engine for every replica. */
static void open_replicas(struct session *s)
{
    if (s->leaders) s->front = ctl_open(s->leaders, 60);
    if (s->world.rank != 0) return;
    s->replica = calloc((size_t)s->n_replicas, sizeof *s->replica);
    if (!s->replica) DIE(EXIT_CODE_MEMORY, NULL, "no memory for %d replicas", s->n_replicas);
    s->replica[0] = s->engine;
    for (int r = 1; r < s->n_replicas; r++) s->replica[r] = engine_open_remote(s->front, r);
}

void session_follow(struct session *s)
{
    if (s->front) engine_lead(s->engine, s->front);
    else engine_follow(s->engine);
}

enum status session_load(struct session *s, int context, int n_slots, struct reason *why)
{
    const struct options *o = s->options;
    struct model_options m = {
        .act = common_act(s),
        .n_slots = n_slots,
        .context = context,
        .prefill_chunk = o->prefill_chunk < context ? o->prefill_chunk : context,
        .page_tokens = o->page_size,
        .block_tokens = o->block_size,
        .window = s->window,
        .kv_tokens = s->kv_tokens,
        .max_rows = s->room.max_rows,
        .swap_bytes = s->room.swap_bytes,
        .kv = (enum dtype)o->kv_dtype,
        .summary = options_summary(o),
        .all_reduce = o->all_reduce_dtype == 0 ? DTYPE_F32 : DTYPE_BF16,
        .graphs = o->cuda_graphs == 0,
        .progress = s->world.rank == 0,
        .node_ranks = o->device == DEVICE_CUDA ? 1 : s->world.node_size, /* a GPU is of one rank alone */
        .size_flags = size_flags(o->command),
    };
    progress_enter(PROGRESS_DEVICE);
    comm_phase(s->whole, "opening the device");
    enum status opened = open_device(s, m.act, &m.device, why);
    comm_arrive(s->whole, "device open", o->start_timeout);
    int64_t everywhere = opened == STATUS_OK;
    comm_min_i64(s->whole, &everywhere, 1); /* nobody goes on to collectives alone */
    if (!everywhere) {
        if (opened != STATUS_OK) return opened;
        device_close(m.device);
        return status_fail(why, STATUS_BAD_OPTION, "another rank could not open its device");
    }
    enum status status =
        o->device == DEVICE_CUDA ? comm_use_nccl(s->comm, &s->world, o->start_timeout, why) : STATUS_OK;
    if (status != STATUS_OK) {
        device_close(m.device);
        return status;
    }
    status = model_open(&s->model, &s->files, s->comm, &m, why);
    progress_enter(PROGRESS_CONNECT); /* who still loads is the one that the others wait for */
    status = s->n_replicas > 1 ? all_or_none(s, status, why) : status;
    if (status != STATUS_OK) return status;
    comm_reserve(s->comm, (size_t)s->model->dims.max_rows * (size_t)s->model->dims.D);
    s->ctl = ctl_open(s->comm, 60);
    s->engine = engine_open(s->model, s->comm, s->ctl);
    open_replicas(s);
    progress_enter(PROGRESS_IDLE);
    char copies[64] = "";
    if (s->n_replicas > 1) snprintf(copies, sizeof copies, "%d replicas, each of ", s->n_replicas);
    if (s->world.rank == 0)
        LOG_INFO("%s %d layers, %s, %s%s, %s KV, %.2f GiB a rank", s->files.arch.family,
                 s->files.arch.n_layers, device_describe(s->model->device), copies, comm_describe(s->comm),
                 dtype_name(s->model->dims.kv), (double)s->model->plan.total_bytes / (1 << 30));
    return STATUS_OK;
}

void session_close(struct session *s)
{
    progress_enter(PROGRESS_CLOSE);
    for (int r = 1; s->replica && r < s->n_replicas; r++) engine_close(s->replica[r]);
    free(s->replica);
    ctl_close(s->front);
    ctl_close(s->ctl);
    engine_close(s->engine);
    model_close(s->model);
    model_files_close(&s->files);
    if (s->whole != s->comm) comm_close(s->whole);
    comm_close(s->leaders);
    comm_close(s->comm);
    *s = (struct session){0};
}
