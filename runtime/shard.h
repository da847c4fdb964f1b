/* shard.h - which part of every matrix a tensor-parallel rank owns. Pure arithmetic over integers.
 *
 * Invariants (shard_check, and a test over every combination):
 *  1. Every query head, MLP column and vocabulary row has exactly one owner; ranges of ranks are ascending.
 *  2. With ranks <= K, whole kv-head groups are dealt, first ranks take one more where it does not divide.
 *  3. With ranks > K (up to H), kv heads are replicated: each kv head is served by a run of neighbouring
 *     ranks which split its G query heads; the first of them is the kv head's owner for statistics.
 *  4. A rank that owns some query heads of a group scores pages with all G of them (score_first below), so
 *     that page selection needs no exchange and is the same function on every rank count. */
#ifndef RETRO_SHARD_H
#define RETRO_SHARD_H

#include <stdbool.h>

struct shard {
    int rank, n_ranks;
    int kv_first, n_kv;       /* kv heads held by this rank (Kr) */
    bool kv_owner;            /* this rank counts its kv heads in statistics (false on later replicas) */
    int score_first, n_score; /* query heads whose q this rank computes: its kv heads' groups (Kr * G) */
    int head_first, n_heads;  /* query heads this rank attends with and whose o_proj columns it holds (Hr) */
    int ffn_first, n_ffn;     /* MLP columns (Fr) */
    int vocab_first, n_vocab; /* rows of embedding and LM head (Vr) */
};

/* n_ranks in 1..n_heads (ASSERT); sizes as in struct arch. */
void shard_make(struct shard *s, int rank, int n_ranks, int n_heads, int n_kv_heads, int ffn, int vocab);

/* ASSERTs the invariants above over all ranks of one split; O(n_ranks), cheap enough for every start. */
void shard_check(int n_ranks, int n_heads, int n_kv_heads, int ffn, int vocab);

/* Even deal of n things over n_ranks: the first n % n_ranks ranks get one more. */
void shard_deal(int n, int n_ranks, int rank, int *first, int *count);

#endif
