#define _GNU_SOURCE
#include "launcher/session.h"

#include <sched.h>
#include <stdio.h>
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
    if (session_group_size(o, &s->world) > 0) {
        if (o->dp == 1) return STATUS_OK;
        return status_fail(why, STATUS_BAD_OPTION,
                           "--dp %d: this command cannot use replicas; leave --dp out "
                           "and start with mpirun -n %d",
                           o->dp, ranks / o->dp);
    }
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
    if (ranks > s->files.arch.n_heads)
        return status_fail(why, STATUS_BAD_OPTION,
                           "%d ranks: the model has %d query heads, start at most that many", ranks,
                           s->files.arch.n_heads);
    if (ranks > s->files.arch.ffn || ranks > s->files.arch.vocab)
        return status_fail(why, STATUS_BAD_OPTION,
                           "%d ranks: the model has %d MLP columns and %d tokens to share", ranks,
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
    enum status status = check_world(s, why); /* the same on every rank: groups have no other way to agree */
    if (status != STATUS_OK || w->rank != 0) return status;
    status = options_policy(o, &s->policy, why);
    if (status == STATUS_OK) status = open_files(s, why);
    if (status == STATUS_OK) status = check_ranks(s, why);
    /* A shallow model simply has no layer beyond its last to be dense. */
    if (status == STATUS_OK && s->policy.dense_layers > s->files.arch.n_layers)
        s->policy.dense_layers = s->files.arch.n_layers;
    return status;
}

enum status session_agree(struct session *s, enum status status, int *context, const struct reason *why)
{
    int verdict[2] = {(int)status, *context};
    comm_bcast(s->comm, verdict, sizeof verdict);
    comm_bcast(s->comm, &s->policy, sizeof s->policy);
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

static enum dtype activation_type(const struct session *s)
{
    enum { AUTO };
    int choice = s->options->act_dtype;
    if (choice != AUTO) return (enum dtype)(choice - 1); /* the option lists the types in the enum's order */
    return s->options->device == DEVICE_CPU ? DTYPE_F32 : s->files.arch.dtype;
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

enum status session_load(struct session *s, int context, int n_slots, struct reason *why)
{
    const struct options *o = s->options;
    struct model_options m = {
        .act = activation_type(s),
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
    };
    progress_enter(PROGRESS_DEVICE);
    comm_phase(s->comm, "opening the device");
    enum status opened = open_device(s, m.act, &m.device, why);
    comm_arrive(s->comm, "device open", o->start_timeout);
    int64_t everywhere = opened == STATUS_OK;
    comm_min_i64(s->comm, &everywhere, 1); /* nobody goes on to collectives alone */
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
    if (status != STATUS_OK) return status;
    comm_reserve(s->comm, (size_t)s->model->dims.max_rows * (size_t)s->model->dims.D);
    progress_enter(PROGRESS_CONNECT);
    s->ctl = ctl_open(s->comm, 60);
    s->engine = engine_open(s->model, s->comm, s->ctl);
    progress_enter(PROGRESS_IDLE);
    if (s->world.rank == 0)
        LOG_INFO("%s %d layers, %s, %s, %s KV, %.2f GiB a rank", s->files.arch.family, s->files.arch.n_layers,
                 device_describe(s->model->device), comm_describe(s->comm), dtype_name(s->model->dims.kv),
                 (double)s->model->plan.total_bytes / (1 << 30));
    return STATUS_OK;
}

void session_close(struct session *s)
{
    progress_enter(PROGRESS_CLOSE);
    if (s->ctl) ctl_close(s->ctl);
    engine_close(s->engine);
    model_close(s->model);
    model_files_close(&s->files);
    if (s->comm) comm_close(s->comm);
    *s = (struct session){0};
}
