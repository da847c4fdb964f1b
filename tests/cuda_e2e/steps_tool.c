/* steps_tool.c - drives the engine with several sequences at once on either device, for tests/cuda_e2e.
 *
 *   steps_tool MODEL [key=value ...]      alone or under mpirun; prints one JSON object on rank 0
 *
 * Sequence i begins at step 3*i with its own prompt (in chunks), runs under the policy i names in `policies`
 * (its letters in turn: d dense, q quest, r retro) and feeds what is most likely. So steps hold prompt rows, new
 * and revised rows of different policies, and their shapes change. Beside the tokens it prints a checksum per
 * decode step and sequence of the pages that the step read on this rank (last_loaded says which), and, on CUDA,
 * how often the runtime was called inside steps that only decode and bring no new block: those calls are
 * counted by functions of the same name here, in front of the library's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "comm/ctl.h"
#include "runtime/base/crc32.h"
#include "runtime/base/die.h"
#include "runtime/engine.h"
#include "runtime/sampler.h"

/* ---- counting calls of the runtime */

enum call { CALL_ALLOC, CALL_LAUNCH, CALL_GRAPH, CALL_COPY, CALL_SYNC, CALL_CAPTURE, CALL_COUNT };
static long calls[CALL_COUNT];

#define COUNTED(call, name, parameters, arguments)                                                           \
    cudaError_t name parameters                                                                              \
    {                                                                                                        \
        static cudaError_t(*real) parameters;                                                                \
        if (!real) real = (cudaError_t(*) parameters)dlsym(RTLD_NEXT, #name);                                \
        if (!real) abort();                                                                                  \
        calls[call]++;                                                                                       \
        return real arguments;                                                                               \
    }

COUNTED(CALL_ALLOC, cudaMalloc, (void **p, size_t n), (p, n))
COUNTED(CALL_ALLOC, cudaHostAlloc, (void **p, size_t n, unsigned flags), (p, n, flags))
COUNTED(CALL_ALLOC, cudaFree, (void *p), (p))
COUNTED(CALL_ALLOC, cudaFreeHost, (void *p), (p))
COUNTED(CALL_GRAPH, cudaGraphLaunch, (cudaGraphExec_t g, cudaStream_t s), (g, s))
COUNTED(CALL_CAPTURE, cudaStreamBeginCapture, (cudaStream_t s, enum cudaStreamCaptureMode m), (s, m))
COUNTED(CALL_COPY, cudaMemcpyAsync,
        (void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s), (to, from, n, k, s))
COUNTED(CALL_COPY, cudaMemsetAsync, (void *to, int byte, size_t n, cudaStream_t s), (to, byte, n, s))
COUNTED(CALL_SYNC, cudaStreamSynchronize, (cudaStream_t s), (s))
COUNTED(CALL_SYNC, cudaEventSynchronize, (cudaEvent_t e), (e))

/* What a launch of nvcc's calls; the prototype is not in a C header. */
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared,
                               cudaStream_t s);
COUNTED(CALL_LAUNCH, __cudaLaunchKernel,
        (cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s),
        (kernel, grid, block, args, shared, s))

/* ---- options */

struct how {
    const char *model, *device, *policies;
    int graphs, seqs, prompt, tokens, chunk, window, page, block, dense_layers, seed, top_k;
    double budget;
    enum dtype kv, act, all_reduce;
};

static enum dtype type_of(const char *name)
{
    for (enum dtype t = DTYPE_F32; t < DTYPE_COUNT; t++)
        if (strcmp(name, dtype_name(t)) == 0) return t;
    DIE(EXIT_CODE_OPTION, NULL, "no type %s", name);
}

static void read_options(struct how *h, int argc, char **argv)
{
    *h = (struct how){.model = argv[1],
                      .device = "cpu",
                      .policies = "r",
                      .graphs = 1,
                      .seqs = 1,
                      .prompt = 40,
                      .tokens = 20,
                      .chunk = 16,
                      .window = 2,
                      .page = 4,
                      .block = 16,
                      .dense_layers = 1,
                      .budget = 0.25};
    struct {
        const char *name;
        int *to;
    } ints[] = {{"graphs", &h->graphs},
                {"seqs", &h->seqs},
                {"prompt", &h->prompt},
                {"tokens", &h->tokens},
                {"chunk", &h->chunk},
                {"window", &h->window},
                {"page", &h->page},
                {"block", &h->block},
                {"seed", &h->seed},
                {"top_k", &h->top_k},
                {"dense_layers", &h->dense_layers}};
    for (int i = 2; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) DIE(EXIT_CODE_OPTION, NULL, "%s is not key=value", argv[i]);
        *value++ = 0;
        bool known = true;
        if (strcmp(argv[i], "device") == 0) h->device = value;
        else if (strcmp(argv[i], "policies") == 0) h->policies = value;
        else if (strcmp(argv[i], "budget") == 0) h->budget = atof(value);
        else if (strcmp(argv[i], "kv") == 0) h->kv = type_of(value);
        else if (strcmp(argv[i], "act") == 0) h->act = type_of(value);
        else if (strcmp(argv[i], "all_reduce") == 0) h->all_reduce = type_of(value);
        else known = false;
        for (size_t k = 0; k < sizeof ints / sizeof *ints && !known; k++)
            if (strcmp(argv[i], ints[k].name) == 0) {
                *ints[k].to = atoi(value);
                known = true;
            }
        if (!known) DIE(EXIT_CODE_OPTION, NULL, "no key %s", argv[i]);
    }
}

/* ---- the machine */

static struct comm_world world;
static struct model_files files;
static struct model *model;
static struct comm *comm;
static struct ctl *ctl;
static struct engine *engine;

static void check(enum status status, const struct reason *why)
{
    if (status != STATUS_OK) DIE(status_exit_code(status), NULL, "%s", why->text);
}

static void open_all(const struct how *h)
{
    struct reason why;
    bool cuda = strcmp(h->device, "cuda") == 0;
    comm_world_open(&world, getenv("OMPI_COMM_WORLD_SIZE") != NULL);
    if (world.size > 1) die_set_hook(comm_world_abort);
    comm = comm_open(&world, world.size);
    check(model_files_open(&files, h->model, &why), &why);
    struct model_options o = {
        .act = h->act,
        .n_slots = h->seqs,
        .context = h->prompt + 7 * h->seqs + h->tokens + 1,
        .prefill_chunk = h->chunk,
        .page_tokens = h->page,
        .block_tokens = h->block,
        .window = h->window,
        .kv = h->kv,
        .summary = h->kv == DTYPE_F32   ? SUMMARY_F32
                   : h->kv == DTYPE_F16 ? SUMMARY_F16
                                        : SUMMARY_BF16,
        .all_reduce = h->all_reduce,
        .graphs = h->graphs,
        .node_ranks = 1,
    };
    struct device_options d = {.n_threads = 1, .act = h->act, .ordinal = world.node_rank};
    check(device_open(&o.device, cuda ? DEVICE_CUDA : DEVICE_CPU, &d, &why), &why);
    if (cuda) check(comm_use_nccl(comm, &world, 60, &why), &why);
    check(model_open(&model, &files, comm, &o, &why), &why);
    comm_reserve(comm, (size_t)model->dims.max_rows * (size_t)model->dims.D);
    ctl = ctl_open(comm, 60);
    engine = engine_open(model, comm, ctl);
}

static void close_all(void)
{
    ctl_close(ctl);
    engine_close(engine);
    model_close(model);
    model_files_close(&files);
    comm_close(comm);
    comm_world_close();
}

/* ---- what a step read */

/* CRC-32 over (layer, kv head, page) of the pages whose last_loaded is the step's position. */
static uint32_t pages_of(const struct seq *s, int position)
{
    const struct dims *m = &model->dims;
    size_t pages = (size_t)(m->C / m->P), n = (size_t)m->Kr * pages;
    int32_t *last = malloc(n * sizeof *last);
    uint32_t sum = 0;
    if (!last) abort();
    for (int l = 0; l < m->L; l++) {
        struct kv_layer kv = model_layer(model, l);
        model->op->download(model->device, last, kv_last_loaded(&kv, m, s->slot, 0, 0), n * sizeof *last);
        model->op->sync(model->device);
        for (size_t i = 0; i < n; i++)
            if (last[i] == position) {
                uint32_t place[4] = {sum, (uint32_t)l, (uint32_t)(i / pages), (uint32_t)(i % pages)};
                sum = crc32_of(place, sizeof place);
            }
    }
    free(last);
    return sum;
}

/* ---- the sequences */

struct run {
    const struct how *h;
    struct pages pages;
    struct step step;
    struct seq *seq;
    uint32_t **read; /* (seqs, tokens) checksums of what each decode step read */
    long decode_steps, replays, most[CALL_COUNT];
    struct sampler *sampler;
};

static struct policy policy_of(const struct how *h, int i)
{
    char letter = h->policies[(size_t)i % strlen(h->policies)];
    struct policy p = {.kind = letter == 'd'   ? POLICY_DENSE
                               : letter == 'q' ? POLICY_QUEST
                                               : POLICY_RETRO,
                       .window = letter == 'r' ? h->window : 1,
                       .kv_budget = h->budget,
                       .dense_layers = h->dense_layers,
                       .score_alpha = 0.2f,
                       .score_group = SCORE_GROUP_SOFTMAX,
                       .sink_pages = 1};
    return p;
}

static void begin(struct run *r, int i)
{
    const struct how *h = r->h;
    int n = h->prompt + 7 * i;
    int32_t *prompt = malloc((size_t)n * sizeof *prompt);
    if (!prompt) abort();
    for (int t = 0; t < n; t++)
        prompt[t] =
            (int32_t)(sampler_uniform((uint64_t)h->seed, (uint64_t)i, (uint64_t)t) * files.arch.vocab);
    struct policy p = policy_of(h, i);
    seq_open(&r->seq[i], i, &p, prompt, n, n + h->tokens + 1, model->dims.B);
    free(prompt);
}

static bool wants_more(const struct run *r, int i)
{
    const struct seq *s = &r->seq[i];
    return s->capacity > 0 && s->n_tokens < s->n_prompt + r->h->tokens;
}

/* Decode rows of all that are past their prompt, and one chunk of the first that is not. */
static void plan(struct run *r, long n)
{
    struct step *step = &r->step;
    enum step_want want = r->h->top_k > 0 ? STEP_WANT_CANDIDATES : STEP_WANT_BEST;
    step_clear(step, (uint64_t)n);
    for (int i = 0; i < r->h->seqs; i++) {
        struct seq *s = &r->seq[i];
        if (!wants_more(r, i) || s->fed < s->n_prompt) continue;
        if (seq_reserve(s, &r->pages, s->n_tokens, model->dims.B) != STATUS_OK) abort();
        step_add_decode(step, s, want);
    }
    for (int i = 0; i < r->h->seqs; i++) {
        struct seq *s = &r->seq[i];
        if (!wants_more(r, i) || s->fed >= s->n_prompt) continue;
        int left = s->n_prompt - s->fed, rows = left < r->h->chunk ? left : r->h->chunk;
        if (seq_reserve(s, &r->pages, s->fed + rows, model->dims.B) != STATUS_OK) abort();
        step_add_prompt(step, s, rows, rows == left ? want : STEP_WANT_NOTHING);
        break;
    }
}

static int32_t next_token(struct run *r, const struct engine_output *out, int i)
{
    if (!out->top) return out->best;
    struct sampling p = {.temperature = 1, .top_k = r->h->top_k, .top_p = 0.95, .repetition_penalty = 1};
    p.request = (uint64_t)i;
    return sampler_draw_top(r->sampler, &p, out->top, r->seq[i].n_tokens);
}

static void run_step(struct run *r)
{
    struct engine_result result;
    bool decode = r->step.n_seqs > 0 && r->step.n_blocks == 0;
    for (int i = 0; i < r->step.n_seqs; i++)
        decode &= r->step.seq[i].kind == ROW_NEW && !r->step.seq[i].fresh;
    memset(calls, 0, sizeof calls);
    engine_step(engine, &r->step, &result);
    if (decode) {
        r->decode_steps++;
        bool replay = calls[CALL_GRAPH] == 1 && calls[CALL_CAPTURE] == 0;
        r->replays += replay;
        for (int k = 0; k < CALL_COUNT && (replay || !r->h->graphs); k++)
            if (calls[k] > r->most[k]) r->most[k] = calls[k];
    }
    for (int i = 0; i < result.n_outputs; i++) {
        const struct step_seq *q = &r->step.seq[result.output[i].seq];
        struct seq *s = &r->seq[q->slot];
        if (q->kind == ROW_NEW)
            r->read[q->slot][s->n_tokens - 1 - s->n_prompt] = pages_of(s, q->position + q->n_rows - 1);
        seq_append_token(s, next_token(r, &result.output[i], q->slot));
    }
}

static void print_seq(const struct run *r, int i)
{
    const struct seq *s = &r->seq[i];
    int64_t c[COUNTER_COUNT];
    engine_counters(engine, i, c);
    printf("%s{\"tokens\": [", i ? ", " : "");
    for (int t = s->n_prompt; t < s->n_tokens; t++) printf("%s%d", t > s->n_prompt ? ", " : "", s->token[t]);
    printf("], \"read\": [");
    for (int t = 0; t < s->n_tokens - s->n_prompt - 1; t++) printf("%s%u", t ? ", " : "", r->read[i][t]);
    printf("], \"counters\": [");
    for (int k = 0; k < COUNTER_COUNT; k++) printf("%s%lld", k ? ", " : "", (long long)c[k]);
    printf("]}");
}

static void lead(const struct how *h)
{
    static const char *const names[CALL_COUNT] = {"allocs", "launches", "graphs",
                                                  "copies", "syncs",    "captures"};
    struct run r = {.h = h, .sampler = sampler_open(files.arch.vocab)};
    pages_open(&r.pages, model->dims.n_blocks);
    step_open(&r.step, engine_limits(engine));
    r.seq = calloc((size_t)h->seqs, sizeof *r.seq);
    r.read = calloc((size_t)h->seqs, sizeof *r.read);
    if (!r.seq || !r.read) abort();
    for (int i = 0; i < h->seqs; i++) r.read[i] = calloc((size_t)h->tokens + 1, sizeof **r.read);
    long n = 0;
    for (bool more = true; more; n++) {
        if (n % 3 == 0 && n / 3 < h->seqs) begin(&r, (int)(n / 3));
        plan(&r, n);
        if (r.step.n_rows > 0) run_step(&r);
        more = n / 3 < h->seqs - 1;
        for (int i = 0; i < h->seqs; i++) more |= wants_more(&r, i);
    }
    printf("{\"description\": \"%s\", \"steps\": %ld, \"decode_steps\": %ld, \"replays\": %ld",
           comm_describe(comm), n, r.decode_steps, r.replays);
    for (int k = 0; k < CALL_COUNT; k++) printf(", \"%s\": %ld", names[k], r.most[k]);
    printf(", \"sequences\": [");
    for (int i = 0; i < h->seqs; i++) print_seq(&r, i);
    printf("]}\n");
    for (int i = 0; i < h->seqs; i++) {
        seq_close(&r.seq[i], &r.pages);
        free(r.read[i]);
    }
    pages_check(&r.pages);
    pages_close(&r.pages);
    step_close(&r.step);
    sampler_close(r.sampler);
    free(r.seq);
    free(r.read);
}

int main(int argc, char **argv)
{
    struct how h;
    if (argc < 2) DIE(EXIT_CODE_OPTION, NULL, "steps_tool MODEL [key=value ...]");
    read_options(&h, argc, argv);
    open_all(&h);
    if (world.rank == 0) lead(&h);
    else engine_follow(engine);
    close_all();
    return 0;
}
