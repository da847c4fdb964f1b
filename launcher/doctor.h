/* doctor.h - what every rank finds out about its place, and the verdicts that rank 0 draws from all of it.
 *
 * doctor_facts.c looks and measures on each rank; doctor_judge.c compares; cmd_doctor.c runs both and prints. */
#ifndef RETRO_LAUNCHER_DOCTOR_H
#define RETRO_LAUNCHER_DOCTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "comm/probe.h"
#include "runtime/options.h"

/* Of one rank; plain bytes, they travel. Sizes in bytes, -1 for "no limit" or "unknown". */
struct doctor_facts {
    char host[64], version[16], mpi[64];
    char driver[64], gpus[256], holders[256]; /* as nvidia-smi tells; "" without it */
    char interface[32], address[32];          /* towards rank 0; "" on rank 0's host, or when there is none */
    int32_t node_rank, node_size;
    int32_t cores, host_cores, threads; /* cores it may use */
    bool has_cuda, yields, loopback;
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

enum { DOCTOR_LINES_MAX = 64, DOCTOR_SIZES = 5 };

struct doctor_report {
    struct doctor_line line[DOCTOR_LINES_MAX];
    int n_lines;
};

struct doctor_transport {
    char name[64];
    struct comm_timing timing[DOCTOR_SIZES];
};

const char *doctor_verdict_name(enum doctor_verdict v);

/* Not collective: looks without measuring. */
void doctor_look(struct doctor_facts *f, const struct options *o, const struct comm_world *w);
/* Reads this rank's part of the largest weight file of `dir`, past the page cache where it can. */
void doctor_read_file(struct doctor_facts *f, const char *dir, const struct comm_world *w);
/* All ranks at once: streaming read of memory by this rank's threads. */
void doctor_read_memory(struct doctor_facts *f);

/* On rank 0, over the facts of all ranks. */
void doctor_judge(struct doctor_report *r, const struct doctor_facts *all, int n_ranks);
void doctor_judge_all_reduce(struct doctor_report *r, const struct doctor_transport *t, int n_transports);

#endif
