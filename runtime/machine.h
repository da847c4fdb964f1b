/* machine.h - what a device and the link between its ranks can do, for `retro plan`.
 *
 * Built in: H100, H200, A100, B200 and NVLink or InfiniBand between them; every number has its source in
 * docs/planning.md. From a file: one JSON object with the fields of struct machine, or the lines
 * that `retro bench kernels --json` (and `bench allreduce --json`) print, which calibrate a CPU. */
#ifndef RETRO_MACHINE_H
#define RETRO_MACHINE_H

#include <stdbool.h>

#include "runtime/base/status.h"

/* y by x, ascending; between points by straight lines, beyond them by the last one. */
#define MACHINE_POINTS 32
struct curve {
    int n;
    double x[MACHINE_POINTS], y[MACHINE_POINTS];
};
void machine_curve_add(struct curve *c, double x, double y);
double machine_curve_at(const struct curve *c, double x);
/* The same for times: beyond the last point in proportion. */
double machine_curve_time(const struct curve *c, double x);

struct machine {
    char name[64];
    double memory_bytes, reserve_bytes; /* of one rank's device; context, library workspaces */
    double read_bytes_s;                /* of one rank: plain reading at its best */
    double flops_s;                     /* of one rank, matrix units in bf16; 0: the curves hold it */
    double gemm_share, attention_share, flops_share; /* what ops reach of them */
    double launch_us;                                /* of one op in a replayed step */
    double step_us;                                  /* of a step on top: plan, copies, sampling, host */
    /* Measured curves win over the shares; all of one rank. */
    struct curve gemm_by_rows;        /* bytes of weights a second */
    struct curve dense_us, sparse_us; /* attention of a whole step, by the bytes that it reads */
    struct curve rest_us; /* norms, rope, activations of a whole step, by rows: neither of the two */
    double rest_size;     /* of the model it was measured with: layers * (D + F of a rank) */
    /* The link. */
    char link[64];
    double link_base_us, link_rank_us; /* an all-reduce of nothing: base + rank x (ranks - 1) */
    double link_bytes_s;               /* each rank sends 2(n-1)/n of the bytes at this rate */
    double link_reserve_bytes;         /* buffers of the library on each rank */
    struct curve all_reduce_us; /* measured, by bytes; wins, for as many ranks as it was measured with */
};

/* NAME or FILE of each; link NULL: the machine's usual one. BAD_OPTION with a line that lists the names. */
enum status machine_find(struct machine *m, const char *name, const char *link, struct reason *why);
/* The text of a file as above; `file` for messages. */
enum status machine_parse(struct machine *m, const char *text, const char *file, struct reason *why);

struct device;
/* This host as n_ranks ranks: reads memory for a fifth of a second on an open CPU device of all threads. Shares are
 * assumed; lines of `retro bench kernels --json` are the better source. */
void machine_measure(struct machine *m, struct device *d, int n_ranks);

double machine_all_reduce_us(const struct machine *m, int n_ranks, double bytes);

#endif
