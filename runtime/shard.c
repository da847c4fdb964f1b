/* shard.c - who owns what among tensor-parallel ranks; see shard.h for the invariants.
 *
 * Two regimes, one arithmetic. Up to K ranks, kv heads are dealt to ranks. With more ranks than kv heads,
 * ranks are dealt to kv heads instead and each run of ranks deals the G query heads of its one kv head among
 * itself. Nothing here allocates, communicates or can fail; sizes that the caller got wrong are ASSERTs. */
#include "runtime/shard.h"

#include "runtime/base/die.h"

void shard_deal(int n, int n_ranks, int rank, int *first, int *count)
{
    ASSERT(n >= 0 && n_ranks >= 1 && rank >= 0 && rank < n_ranks);
    int each = n / n_ranks, more = n % n_ranks;
    *first = rank * each + (rank < more ? rank : more); /* <= n: no overflow */
    *count = each + (rank < more);
}

/* More ranks than kv heads: which kv head `rank` serves, and its place in that head's run of ranks. The
 * inverse of shard_deal(n_ranks, n_kv_heads, kv): the first `more` kv heads have runs of each + 1 ranks. */
static void find_run(int rank, int n_ranks, int n_kv_heads, int *kv, int *place, int *run_length)
{
    int each = n_ranks / n_kv_heads, more = n_ranks % n_kv_heads, long_ranks = more * (each + 1);
    *kv = rank < long_ranks ? rank / (each + 1) : more + (rank - long_ranks) / each;
    int run_first;
    shard_deal(n_ranks, n_kv_heads, *kv, &run_first, run_length);
    *place = rank - run_first;
}

void shard_make(struct shard *s, int rank, int n_ranks, int n_heads, int n_kv_heads, int ffn, int vocab)
{
    ASSERT(n_kv_heads >= 1 && n_heads >= n_kv_heads && n_heads % n_kv_heads == 0);
    ASSERT(n_ranks >= 1 && n_ranks <= n_heads && rank >= 0 && rank < n_ranks);
    int group = n_heads / n_kv_heads;
    *s = (struct shard){.rank = rank, .n_ranks = n_ranks};
    if (n_ranks <= n_kv_heads) {
        shard_deal(n_kv_heads, n_ranks, rank, &s->kv_first, &s->n_kv);
        s->kv_owner = true;
        s->head_first = s->kv_first * group;
        s->n_heads = s->n_kv * group;
    } else {
        int place, run_length;
        find_run(rank, n_ranks, n_kv_heads, &s->kv_first, &place, &run_length);
        s->n_kv = 1;
        s->kv_owner = place == 0;
        shard_deal(group, run_length, place, &s->head_first, &s->n_heads);
        s->head_first += s->kv_first * group;
    }
    s->score_first = s->kv_first * group;
    s->n_score = s->n_kv * group;
    shard_deal(ffn, n_ranks, rank, &s->ffn_first, &s->n_ffn);
    shard_deal(vocab, n_ranks, rank, &s->vocab_first, &s->n_vocab);
}

void shard_check(int n_ranks, int n_heads, int n_kv_heads, int ffn, int vocab)
{
    int group = n_heads / n_kv_heads;
    int next_head = 0, next_kv = 0, next_ffn = 0, next_vocab = 0;
    for (int rank = 0; rank < n_ranks; rank++) {
        struct shard s;
        shard_make(&s, rank, n_ranks, n_heads, n_kv_heads, ffn, vocab);
        ASSERT(s.head_first == next_head && s.n_heads >= 1);
        ASSERT(s.ffn_first == next_ffn && s.n_ffn >= 0);
        ASSERT(s.vocab_first == next_vocab && s.n_vocab >= 0);
        ASSERT(s.n_kv >= 1 && s.kv_first == (s.kv_owner ? next_kv : next_kv - 1));
        ASSERT(s.kv_owner || s.n_kv == 1);
        ASSERT(s.score_first == s.kv_first * group && s.n_score == s.n_kv * group);
        ASSERT(s.head_first >= s.score_first && s.head_first + s.n_heads <= s.score_first + s.n_score);
        next_head += s.n_heads;
        next_ffn += s.n_ffn;
        next_vocab += s.n_vocab;
        if (s.kv_owner) next_kv += s.n_kv;
    }
    ASSERT(next_head == n_heads && next_kv == n_kv_heads && next_ffn == ffn && next_vocab == vocab);
}
