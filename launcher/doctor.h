/* doctor.h - what every rank finds out about its place, and the verdicts that rank 0 draws from all of it.
 *
 * doctor_facts.c and doctor_gpus.c look and measure on each rank; doctor_judge.c compares, about GPUs doctor_gpus.c;
 * cmd_doctor.c runs all and prints, doctor_json.c as JSON. */
#ifndef RETRO_LAUNCHER_DOCTOR_H
#define RETRO_LAUNCHER_DOCTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "comm/probe.h"
#include "kernels/kernels.h"
#include "runtime/bench.h"
#include "runtime/options.h"

enum { DOCTOR_GPUS_MAX = 16, DOCTOR_HOLDERS_MAX = 32 };

/* A host's GPUs as nvidia-smi tells; bytes -1: it does not say. */
struct doctor_smi {
    char problem[96]; /* why nvidia-smi tells nothing; "" when it does */
    char driver[32];
    int32_t n_gpus, n_holders;
    struct doctor_smi_gpu {
        int32_t number;
        int64_t total, used, free;
        char uuid[UUID_TEXT], name[64];
    } gpu[DOCTOR_GPUS_MAX];
    struct doctor_holder { /* a process that computes on it */
        int32_t pid;
        int64_t bytes;
        char uuid[UUID_TEXT], name[64];
    } holder[DOCTOR_HOLDERS_MAX];
};

/* Of one rank; plain bytes, they travel. Sizes in bytes, -1 for "no limit" or "unknown". */
struct doctor_facts {
    char host[64], version[16], mpi[64];
    char interface[32], address[32];   /* towards rank 0; "" on rank 0's host, or when there is none */
    struct device_gpu gpu;             /* that --device cuda would take */
    char cuda[16], blas[16], nccl[16]; /* versions of the libraries, "" in a build without CUDA */
    struct doctor_smi smi;             /* on the first rank of a host */
    int32_t node_rank, node_size;
    int32_t cores, host_cores, threads; /* cores it may use */
    bool has_cuda, wants_gpu, yields, loopback;
    double notices_s; /* when mpirun would notice the loss of a host; 0: no mpirun */
    int64_t memlock, files_max, available, huge_pages;
    char huge[16]; /* transparent huge pages: always, madvise, never */
    int64_t skew_us, round_trip_us;
    double file_gb_s;     /* 0: not asked for */
    char file_error[160]; /* "" when it could be read */
    double memory_gb_s;
};

enum doctor_verdict { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL, DOCTOR_VERDICT_COUNT };

struct doctor_line {
    enum doctor_verdict verdict;
    char name[24], text[512];
};

/* LIKE_MAX: where hosts are alike, lines of the same kind after so many say nothing new. */
enum { DOCTOR_LIKE_MAX = 32, DOCTOR_SIZES = 5 };

struct doctor_report { /* begins as zeros */
    struct doctor_line *line;
    int n_lines;
};

struct doctor_transport {
    char name[64];
    int64_t bytes[DOCTOR_SIZES];
    struct bench_reduce timing[DOCTOR_SIZES];
};
enum { DOCTOR_TRANSPORTS_MAX = 3 }; /* shared memory, MPI, NCCL */

const char *doctor_verdict_name(enum doctor_verdict v);

/* Not collective: looks without measuring. */
void doctor_look(struct doctor_facts *f, const struct options *o, const struct comm_world *w);
/* The same of GPUs. Asks nvidia-smi on the first rank of a host. */
void doctor_look_at_gpus(struct doctor_facts *f);
/* Reads this rank's part of the largest weight file of `dir`, past the page cache where it can. */
void doctor_read_file(struct doctor_facts *f, const char *dir, const struct comm_world *w);
/* All ranks at once: streaming read of memory by this rank's threads. */
void doctor_read_memory(struct doctor_facts *f);

/* On rank 0, over the facts of all ranks. */
void doctor_judge(struct doctor_report *r, const struct doctor_facts *all, int n_ranks);
/* Every rank has a GPU that no other rank would take. */
bool doctor_gpus_apart(const struct doctor_facts *all, int n_ranks);
void doctor_judge_gpus(struct doctor_report *r, const struct doctor_facts *all, int n_ranks);
void doctor_judge_all_reduce(struct doctor_report *r, const struct doctor_transport *t);
void doctor_say(struct doctor_report *r, enum doctor_verdict v, const char *name, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Every rank says the same text as rank 0, else `worst`. `offset` is a field of struct doctor_facts. */
void doctor_judge_same(struct doctor_report *r, const struct doctor_facts *all, int n, const char *name,
                       size_t offset, enum doctor_verdict worst);

void doctor_close(struct doctor_report *r);
enum doctor_verdict doctor_worst(const struct doctor_report *r);
void doctor_print_json(const struct doctor_report *r, const struct doctor_facts *all, int n,
                       const struct doctor_transport *t, int n_transports);

#endif
