#include "sample/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "base/rng.h"
#include "sample/row.h"

/* A token that may still be drawn. */
typedef struct candidate {
    float weight; /* exp((logit - max) / temperature) */
    int32_t id;
} candidate;

#define BUCKETS 256

struct qr_sampler_scratch {
    int32_t vocab_max;
    int32_t logprobs_max;
    float *row;             /* [vocab] the logits as changed by masks and penalties */
    float *weights;         /* [vocab] exp((row - max) / temperature) */
    double *block_sums;     /* [vocab / ROW_BLOCK] */
    candidate *candidates;  /* [vocab] */
    int32_t *output_counts; /* [vocab] zero between calls */
    uint8_t *seen;          /* [vocab] zero between calls */
    int32_t *places;        /* [vocab] an id's edit, counted from 1; zero between calls */
    qr_logprob *best;       /* [logprobs_max] a heap while the best are looked for */
};

qr_sampler_scratch *qr_sampler_scratch_new(int32_t vocab_max, int32_t logprobs_max)
{
    qr_sampler_scratch *scratch = qr_calloc(1, sizeof(*scratch));
    size_t vocab = (size_t)vocab_max;
    scratch->vocab_max = vocab_max;
    scratch->logprobs_max = QR_MIN(logprobs_max, vocab_max);
    scratch->row = qr_calloc(vocab, sizeof(float));
    scratch->weights = qr_calloc(vocab, sizeof(float));
    scratch->block_sums = qr_calloc(vocab / ROW_BLOCK + 1, sizeof(double));
    scratch->candidates = qr_calloc(vocab, sizeof(candidate));
    scratch->output_counts = qr_calloc(vocab, sizeof(int32_t));
    scratch->seen = qr_calloc(vocab, 1);
    scratch->places = qr_calloc(vocab, sizeof(int32_t));
    scratch->best = qr_calloc((size_t)scratch->logprobs_max + 1, sizeof(qr_logprob));
    return scratch;
}

void qr_sampler_scratch_free(qr_sampler_scratch *scratch)
{
    if (scratch == NULL)
        return;
    qr_free(scratch->row);
    qr_free(scratch->weights);
    qr_free(scratch->block_sums);
    qr_free(scratch->candidates);
    qr_free(scratch->output_counts);
    qr_free(scratch->seen);
    qr_free(scratch->places);
    qr_free(scratch->best);
    qr_free(scratch);
}

/* ---- Masks and penalties: change scratch->row ----------------------------------------------------------------- */

static void keep_allowed(const qr_sampler_params *p, const float *logits, float *row)
{
    for (int32_t i = 0; i < p->vocab; i++)
        row[i] = -INFINITY;
    for (int32_t i = 0; i < p->allowed.count; i++) {
        int32_t id = p->allowed.ids[i];
        row[id] = logits[id] == logits[id] ? logits[id] : -INFINITY;
    }
}

/* Bans the last token of each bad word whose other tokens were just generated. */
static void ban_bad_words(const qr_sampler_input *input, float *row)
{
    int64_t generated = input->count - input->prompt_count;
    for (int32_t w = 0; w < input->params->bad_word_count; w++) {
        qr_id_list word = input->params->bad_words[w];
        int64_t before = word.count - 1;
        if (word.count == 0 || before > generated)
            continue;
        if (memcmp(input->ids + input->count - before, word.ids, (size_t)before * sizeof(int32_t)) == 0)
            row[word.ids[before]] = -INFINITY;
    }
}

/* Penalties as OpenAI and vLLM define them: repetition over prompt and output, the others over output. */
static void penalise(const qr_sampler_input *input, qr_sampler_scratch *scratch, float *row)
{
    const qr_sampler_params *p = input->params;
    for (int64_t i = input->prompt_count; i < input->count; i++)
        if (input->ids[i] < p->vocab)
            scratch->output_counts[input->ids[i]]++;
    for (int64_t i = 0; i < input->count; i++) {
        int32_t id = input->ids[i];
        if (id >= p->vocab || scratch->seen[id])
            continue;
        scratch->seen[id] = 1;
        float x = row[id];
        x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
        int32_t count = scratch->output_counts[id];
        x -= p->frequency_penalty * (float)count;
        x -= count > 0 ? p->presence_penalty : 0;
        row[id] = x;
    }
    for (int64_t i = 0; i < input->count; i++) {
        if (input->ids[i] >= p->vocab)
            continue;
        scratch->output_counts[input->ids[i]] = 0;
        scratch->seen[input->ids[i]] = 0;
    }
}

/* The row to sample from: the logits themselves when nothing changes them. */
static const float *process(const qr_sampler_input *input, qr_sampler_scratch *scratch)
{
    const qr_sampler_params *p = input->params;
    bool short_of_min = input->count - input->prompt_count < p->min_tokens;
    bool changes =
        p->allowed.count > 0 || short_of_min || p->bad_word_count > 0 || p->bias_count > 0 || p->penalised;
    if (!changes)
        return input->logits;

    float *row = scratch->row;
    if (p->allowed.count > 0)
        keep_allowed(p, input->logits, row);
    else
        row_copy(input->logits, row, p->vocab);
    for (int32_t i = 0; short_of_min && i < p->end_ids.count; i++)
        if (p->end_ids.ids[i] < p->vocab)
            row[p->end_ids.ids[i]] = -INFINITY;
    ban_bad_words(input, row);
    for (int32_t i = 0; i < p->bias_count; i++)
        row[p->bias[i].token] += p->bias[i].bias;
    if (p->penalised)
        penalise(input, scratch, row);
    return row;
}

/* ---- The same as a list of edits ------------------------------------------------------------------------------ */

typedef struct edit_list {
    qr_logit_edit *edits;
    int32_t *places;
    int32_t count, most, vocab;
} edit_list;

/* The edit of an id, made when it has none; NULL: beyond the vocabulary, or the list is full (count is then most + 1). */
static qr_logit_edit *edit_of(edit_list *list, int32_t id)
{
    if (id >= list->vocab || list->count > list->most)
        return NULL;
    if (list->places[id] == 0) {
        if (list->count == list->most) {
            list->count++;
            return NULL;
        }
        list->edits[list->count++] = (qr_logit_edit){.id = id, .repetition = 1};
        list->places[id] = list->count;
    }
    return &list->edits[list->places[id] - 1];
}

static void edit_ban(edit_list *list, int32_t id)
{
    qr_logit_edit *edit = edit_of(list, id);
    if (edit != NULL)
        edit->bias = -INFINITY;
}

static void edit_bad_words(edit_list *list, const qr_sampler_input *input)
{
    int64_t generated = input->count - input->prompt_count;
    for (int32_t w = 0; w < input->params->bad_word_count; w++) {
        qr_id_list word = input->params->bad_words[w];
        int64_t before = word.count - 1;
        if (word.count > 0 && before <= generated &&
            memcmp(input->ids + input->count - before, word.ids, (size_t)before * sizeof(int32_t)) == 0)
            edit_ban(list, word.ids[before]);
    }
}

/* An id's `presence` counts its output while the list is made. */
static void edit_penalties(edit_list *list, const qr_sampler_input *input)
{
    const qr_sampler_params *p = input->params;
    for (int64_t i = 0; i < input->count; i++) {
        qr_logit_edit *edit = edit_of(list, input->ids[i]);
        if (edit == NULL)
            continue;
        edit->repetition = p->repetition_penalty;
        edit->presence += i >= input->prompt_count ? 1 : 0;
    }
    for (int32_t i = 0; i < QR_MIN(list->count, list->most); i++) {
        float count = list->edits[i].presence;
        list->edits[i].frequency = p->frequency_penalty * count;
        list->edits[i].presence = count > 0 ? p->presence_penalty : 0;
    }
}

int32_t qr_sampler_edits(const qr_sampler_input *input, qr_sampler_scratch *scratch, qr_logit_edit *edits,
                         int32_t most)
{
    const qr_sampler_params *p = input->params;
    edit_list list = {.edits = edits, .places = scratch->places, .most = most, .vocab = p->vocab};
    if (p->allowed.count > 0)
        return -1;
    bool short_of_min = input->count - input->prompt_count < p->min_tokens;
    for (int32_t i = 0; short_of_min && i < p->end_ids.count; i++)
        edit_ban(&list, p->end_ids.ids[i]);
    edit_bad_words(&list, input);
    for (int32_t i = 0; i < p->bias_count; i++) {
        qr_logit_edit *edit = edit_of(&list, p->bias[i].token);
        if (edit != NULL)
            edit->bias += p->bias[i].bias;
    }
    if (p->penalised)
        edit_penalties(&list, input);
    for (int32_t i = 0; i < QR_MIN(list.count, most); i++)
        list.places[edits[i].id] = 0;
    return list.count <= most ? list.count : -1;
}

/* ---- The draw ------------------------------------------------------------------------------------------------- */

static bool comes_before(candidate a, candidate b)
{
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

static void swap_candidates(candidate *a, candidate *b)
{
    candidate kept = *a;
    *a = *b;
    *b = kept;
}

/* The last of the first part around a middle one; both parts are shorter than the list. */
static int32_t split_candidates(candidate *list, int32_t count)
{
    candidate middle = list[count / 2], first = list[0], last = list[count - 1];
    if (comes_before(last, first))
        swap_candidates(&first, &last);
    candidate pivot = comes_before(middle, first) ? first : comes_before(last, middle) ? last : middle;
    int32_t low = -1, high = count;
    for (;;) {
        do
            low++;
        while (comes_before(list[low], pivot));
        do
            high--;
        while (comes_before(pivot, list[high]));
        if (low >= high)
            return high;
        swap_candidates(&list[low], &list[high]);
    }
}

/* Largest first, ties by id. In place: the C library's qsort takes heap memory beyond a kilobyte, and a step takes
 * none. Parts that wait are at least as long as the one at hand, so the stack holds few. */
static void sort_candidates(candidate *list, int32_t count)
{
    struct {
        candidate *list;
        int32_t count;
    } waiting[40];
    int depth = 0;
    for (;;) {
        while (count > 16) {
            int32_t split = split_candidates(list, count) + 1;
            bool first_longer = split > count - split;
            waiting[depth].list = first_longer ? list : list + split;
            waiting[depth++].count = first_longer ? split : count - split;
            list = first_longer ? list + split : list;
            count = first_longer ? count - split : split;
        }
        for (int32_t i = 1; i < count; i++)
            for (int32_t k = i; k > 0 && comes_before(list[k], list[k - 1]); k--)
                swap_candidates(&list[k], &list[k - 1]);
        if (depth == 0)
            return;
        list = waiting[--depth].list;
        count = waiting[depth].count;
    }
}

/* Weights lie in (0, 1]: bucket 0 holds the largest, each bucket half an octave, found from the float's bits. */
static int bucket_of(float weight)
{
    uint32_t bits;
    memcpy(&bits, &weight, sizeof(bits));
    int half_octaves = (int)((0x3f800000u - bits) >> 22); /* 2^23 is one octave of float bits */
    return half_octaves < BUCKETS ? half_octaves : BUCKETS - 1;
}

/* The smallest weight that can be among the first top_k, or that the first top_p of the mass can need; coarse
 * (a bucket's border), so that only few candidates are sorted. */
static int last_bucket_needed(const qr_sampler_params *p, const float *weights, double total)
{
    int32_t counts[BUCKETS] = {0};
    double mass[BUCKETS] = {0};
    for (int32_t i = 0; i < p->vocab; i++) {
        if (!(weights[i] > 0))
            continue;
        int bucket = bucket_of(weights[i]);
        counts[bucket]++;
        mass[bucket] += (double)weights[i];
    }
    int64_t count = 0;
    double sum = 0;
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        count += counts[bucket];
        sum += mass[bucket];
        bool enough_k = p->top_k > 0 && count >= p->top_k;
        /* With top_k the mass that top_p looks at is that of the first k, known only after sorting. */
        bool enough_p = p->top_k == 0 && sum >= (double)p->top_p * total * (1 + 1e-9);
        if (enough_k || enough_p)
            return bucket;
    }
    return BUCKETS - 1;
}

static int32_t collect(const qr_sampler_params *p, const float *weights, int last_bucket, candidate *out)
{
    int32_t count = 0;
    for (int32_t i = 0; i < p->vocab; i++)
        if (weights[i] > 0 && bucket_of(weights[i]) <= last_bucket)
            out[count++] = (candidate){weights[i], i};
    sort_candidates(out, count);
    return count;
}

static int32_t cut_top_k(const candidate *sorted, int32_t count, int32_t k)
{
    if (k == 0 || count <= k)
        return count;
    int32_t kept = k;
    while (kept < count && sorted[kept].weight == sorted[k - 1].weight) /* ties stay, as in vLLM */
        kept++;
    return kept;
}

static int32_t cut_top_p(const candidate *sorted, int32_t count, double total, float top_p)
{
    if (!(top_p < 1))
        return count;
    double sum = 0;
    for (int32_t i = 0; i < count; i++) {
        sum += (double)sorted[i].weight;
        if (sum >= (double)top_p * total)
            return i + 1;
    }
    return count;
}

static double candidate_mass(const candidate *list, int32_t count)
{
    double sum = 0;
    for (int32_t i = 0; i < count; i++)
        sum += (double)list[i].weight;
    return sum;
}

static int32_t draw_filtered(const qr_sampler_params *p, qr_sampler_scratch *scratch, double total,
                             double uniform)
{
    candidate *list = scratch->candidates;
    int32_t count = collect(p, scratch->weights, last_bucket_needed(p, scratch->weights, total), list);
    count = cut_top_k(list, count, p->top_k);
    double mass = p->top_k > 0 ? candidate_mass(list, count) : total;
    count = cut_top_p(list, count, mass, p->top_p);
    double target = uniform * candidate_mass(list, count), sum = 0;
    for (int32_t i = 0; i < count; i++) {
        sum += (double)list[i].weight;
        if (sum > target)
            return list[i].id;
    }
    return list[count - 1].id;
}

/* Walks whole blocks by their sums, then inside one: rounding may pass the block's end, then its last token with
 * weight is taken. */
static int32_t draw_any(const qr_sampler_params *p, const qr_sampler_scratch *scratch, double total,
                        double uniform)
{
    double target = uniform * total, sum = 0;
    int32_t last = -1;
    for (int32_t begin = 0; begin < p->vocab; begin += ROW_BLOCK) {
        double block = scratch->block_sums[begin / ROW_BLOCK];
        if (block <= 0)
            continue;
        bool inside = sum + block > target;
        int32_t end = QR_MIN(begin + ROW_BLOCK, p->vocab);
        double within = sum;
        for (int32_t i = begin; i < end; i++) {
            if (!(scratch->weights[i] > 0))
                continue;
            last = i;
            if (!inside)
                continue;
            within += (double)scratch->weights[i];
            if (within > target)
                return i;
        }
        if (inside)
            return last;
        sum += block;
    }
    return last;
}

static int32_t draw(const qr_sampler_input *input, const float *row, qr_sampler_scratch *scratch)
{
    const qr_sampler_params *p = input->params;
    float max = row_max(row, p->vocab);
    if (!(max > -INFINITY) || max == INFINITY)
        return row_argmax(row, p->vocab);
    double total = row_exp(row, p->vocab, max, 1 / p->temperature, scratch->weights, scratch->block_sums);
    if (p->min_p > 0) {
        /* exp(0) = 1 is the best token's weight, so min_p is the threshold itself. */
        for (int32_t i = 0; i < p->vocab; i++)
            if (scratch->weights[i] < p->min_p)
                scratch->weights[i] = 0;
        total = 0;
        for (int32_t begin = 0; begin < p->vocab; begin += ROW_BLOCK) {
            double sum = 0;
            for (int32_t i = begin; i < QR_MIN(begin + ROW_BLOCK, p->vocab); i++)
                sum += (double)scratch->weights[i];
            total += scratch->block_sums[begin / ROW_BLOCK] = sum;
        }
    }
    double uniform = qr_rng_uniform(p->seed, input->sample, (uint64_t)input->count, QR_RNG_SAMPLE);
    if (p->top_k > 0 || p->top_p < 1)
        return draw_filtered(p, scratch, total, uniform);
    return draw_any(p, scratch, total, uniform);
}

/* ---- Log-probabilities ---------------------------------------------------------------------------------------- */

/* Is `a` worse than `b`: lower, or equal with the higher id. */
static bool worse(const qr_logprob *a, const qr_logprob *b)
{
    return a->logprob < b->logprob || (a->logprob == b->logprob && a->token > b->token);
}

/* A heap whose root is the worst of the best. */
static void sift_down(qr_logprob *heap, int32_t count, int32_t at)
{
    for (;;) {
        int32_t worst = at;
        for (int32_t child = 2 * at + 1; child <= 2 * at + 2 && child < count; child++)
            if (worse(&heap[child], &heap[worst]))
                worst = child;
        if (worst == at)
            return;
        qr_logprob swap = heap[at];
        heap[at] = heap[worst];
        heap[worst] = swap;
        at = worst;
    }
}

static int compare_logprobs(const void *a, const void *b)
{
    return worse(a, b) ? 1 : -1; /* tokens differ, so no two are equal */
}

/* heap[0..top) becomes the `top` largest values, best first; `logprob` still holds the logit. */
static void find_best(const float *logits, int32_t vocab, qr_logprob *heap, int32_t top)
{
    for (int32_t i = 0; i < top; i++)
        heap[i] = (qr_logprob){i, 0, logits[i] == logits[i] ? logits[i] : -INFINITY};
    for (int32_t i = top / 2 - 1; i >= 0; i--)
        sift_down(heap, top, i);
    for (int32_t i = top; i < vocab; i++) {
        if (!(logits[i] > heap[0].logprob)) /* an equal one has a higher id: it is worse */
            continue;
        heap[0] = (qr_logprob){i, 0, logits[i]};
        sift_down(heap, top, 0);
    }
    qsort(heap, (size_t)top, sizeof(*heap), compare_logprobs);
}

void qr_logprobs_of(const float *logits, int32_t vocab, int32_t target, int32_t top,
                    qr_sampler_scratch *scratch, qr_logprob *out)
{
    QR_ASSERT(target >= 0 && target < vocab && vocab <= scratch->vocab_max);
    float max = row_max(logits, vocab);
    double log_sum = row_log_sum_exp(logits, vocab, max);
    int32_t found = QR_MIN(top, QR_MIN(vocab, scratch->logprobs_max));
    out[0] = (qr_logprob){target, 1 + row_count_greater(logits, vocab, logits[target]),
                          (float)((double)logits[target] - log_sum)};
    if (found > 0)
        find_best(logits, vocab, scratch->best, found);
    for (int32_t i = 0; i < top; i++)
        out[1 + i] = i < found ? (qr_logprob){scratch->best[i].token, i + 1,
                                              (float)((double)scratch->best[i].logprob - log_sum)}
                               : (qr_logprob){-1, 0, -INFINITY};
}

int32_t qr_sample(const qr_sampler_input *input, qr_sampler_scratch *scratch, qr_logprob *logprobs)
{
    const qr_sampler_params *p = input->params;
    QR_ASSERT(p->vocab <= scratch->vocab_max);
    const float *row = process(input, scratch);
    int32_t id = p->temperature > 0 ? draw(input, row, scratch) : row_argmax(row, p->vocab);
    if (id >= 0 && p->logprobs >= 0)
        qr_logprobs_of(input->logits, p->vocab, id, p->logprobs, scratch, logprobs);
    return id;
}
