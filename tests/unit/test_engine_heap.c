/* After "ready" neither the engine thread nor a worker takes heap memory, from whatever library: malloc itself is
 * counted here, on every thread but the test's own. */
#include "unit/engine_rig.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
int main(void)
{
    print_message("skipped: a sanitizer has malloc for itself\n");
    return 77;
}
#else
#include <stdatomic.h>

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);

static _Thread_local bool own_thread;
static atomic_bool counting;
static atomic_int taken;

static void count_one(void)
{
    if (!own_thread && atomic_load(&counting))
        atomic_fetch_add(&taken, 1);
}

void *malloc(size_t bytes)
{
    count_one();
    return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes)
{
    count_one();
    return __libc_calloc(count, bytes);
}
void *realloc(void *old, size_t bytes)
{
    count_one();
    return __libc_realloc(old, bytes);
}

static int32_t prompt[60];

static rig_job job_of(int i)
{
    rig_job job = rig_job_of(prompt, 20 + (size_t)(i % 40), 1 + i % 50);
    qr_sampling_params *s = &job.options.sampling;
    s->temperature = 1;
    s->top_p = i % 2 == 0 ? 0.97f : 1;
    s->top_k = i % 5 == 0 ? 100 : 0;
    s->logprobs = i % 3 == 0 ? 20 : -1;
    s->prompt_logprobs = i % 7 == 0 ? 5 : -1;
    s->repetition_penalty = i % 4 == 0 ? 1.2f : 1;
    s->n = 1 + i % 2;
    s->ignore_eos = true;
    return job;
}

/* So many things happen: preemption, hits, samples, log-probabilities, cancels. */
static void run_all(rig *r)
{
    enum { MANY = 60 };
    static rig_job jobs[MANY];
    for (int i = 0; i < MANY; i++) {
        jobs[i] = job_of(i);
        rig_submit(r, &jobs[i]);
    }
    rig_job cancelled = job_of(49);
    rig_submit(r, &cancelled);
    qr_request_release(cancelled.request);
    rig_finish(r, jobs, MANY);
    rig_free(jobs, MANY);
}

static void check_model(const char *path)
{
    qr_model *model = rig_model(path, NULL, 2);
    rig r;
    qr_engine_options options = rig_options();
    options.num_kv_blocks = 40;
    options.max_num_batched_tokens = 48;
    options.max_num_seqs = 32;
    rig_open(&r, model, &options);
    /* A text thread makes its encoder as it starts, maybe after "ready": it has, when it has encoded a prompt. */
    rig_job first = job_of(0);
    if (qr_model_tokenizer(model) != NULL) {
        first.options.token_ids = NULL;
        first.options.token_count = 0;
        first.options.text = "a";
        first.options.text_bytes = 1;
    }
    rig_submit(&r, &first);
    rig_finish(&r, &first, 1);
    rig_free(&first, 1);
    atomic_store(&taken, 0);
    atomic_store(&counting, true);
    run_all(&r);
    rig_check_quiet(&r);
    atomic_store(&counting, false);
    assert_int_equal(atomic_load(&taken), 0);
    rig_close(&r);
    qr_model_close(model);
}

static void steps_take_no_heap_memory(void **state)
{
    (void)state;
    uint64_t seed = 4;
    for (size_t i = 0; i < QR_COUNT_OF(prompt); i++)
        prompt[i] = 2 + (int32_t)(qr_rng_next(&seed) % 120);
    check_model(MODELS "llama-gqa4-llama3");
    check_model(MODELS "gguf-llama-q4_1/model.gguf");
    check_model(MODELS "qwen2-window");
    const char *shared = getenv("QR_SHARED_DIR");
    char path[512]; /* a vocabulary so large that sorting it in qsort would take heap memory */
    snprintf(path, sizeof(path), "%s/data/weights/stories260K/hf", shared != NULL ? shared : "../shared");
    if (qr_file_is_dir(path))
        check_model(path);
}

static void the_counter_counts(void **state)
{
    (void)state;
    atomic_store(&taken, 0);
    atomic_store(&counting, true);
    own_thread = false;
    free(malloc(10));
    own_thread = true;
    free(malloc(10));
    atomic_store(&counting, false);
    assert_int_equal(atomic_load(&taken), 1);
}

int main(void)
{
    own_thread = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_counter_counts),
        cmocka_unit_test(steps_take_no_heap_memory),
    };
    return RIG_RUN_BOTH_WAYS(tests, NULL, NULL);
}
#endif
