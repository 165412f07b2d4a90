/* Quire: LLM inference as a C library. THE public API; the server, the CLI and the Python package use
 * nothing else.
 *
 * Objects.  A *tokenizer* turns text into token ids and back and holds the checkpoint's chat template.
 * A *model* is a loaded checkpoint. An *engine* runs requests on a model: it owns one engine thread and a
 * paged KV cache. A *request* is a prompt and its sampling parameters; it yields 1..n samples. A *poller*
 * collects news of requests for one reader thread.
 *
 * Conventions.
 *  - Every option struct begins with `size`: set it to sizeof(the struct) (the _init functions do); fields
 *    beyond it take their defaults, so a program built against an older header keeps working.
 *  - Functions that can fail return qr_status and fill the caller's qr_error (may be NULL) with one line:
 *    "where: what: the values". On failure no out-parameter is changed.
 *  - Text is UTF-8. Token ids are int32_t. Strings returned through `char **` are freed by
 *    qr_string_free. Everything else says who owns it.
 *  - Threads: each function's comment says from which threads it may be called; "any" means
 *    concurrently from several.
 *
 * A complete program is docs/examples/generate.c.
 */
#ifndef QUIRE_H
#define QUIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QR_API     __attribute__((visibility("default")))
#define QR_VERSION "0.1.0"

/* ---- Status ---------------------------------------------------------------------------------------- */

/* clang-format off */
/*    name              code HTTP  text */
#define QR_STATUS_MAP(X)                                  \
    X(OK,               0,   200, "ok")                   \
    X(INVALID_ARGUMENT, 1,   400, "invalid argument")     \
    X(NOT_FOUND,        2,   404, "not found")            \
    X(IO_ERROR,         3,   500, "input/output error")   \
    X(BAD_FILE,         4,   500, "malformed file")       \
    X(UNSUPPORTED,      5,   400, "not supported")        \
    X(LIMIT_EXCEEDED,   6,   400, "limit exceeded")       \
    X(OUT_OF_MEMORY,    7,   500, "out of memory")        \
    X(BUSY,             8,   429, "too many requests")    \
    X(CANCELLED,        9,   499, "cancelled")            \
    X(DEVICE_FAILED,    10,  500, "device failed")        \
    X(CLOSED,           11,  503, "shutting down")        \
    X(NETWORK,          12,  502, "network error")        \
    X(DENIED,           13,  401, "access denied")
/* clang-format on */

typedef enum qr_status {
#define X(name, code, http, text) QR_##name = code,
    QR_STATUS_MAP(X)
#undef X
} qr_status;

typedef struct qr_error {
    qr_status status;
    char message[252]; /* NUL-terminated, one line, no pointers, no memory contents */
} qr_error;

QR_API const char *qr_status_name(qr_status status); /* "INVALID_ARGUMENT"; any thread */
QR_API const char *qr_status_text(qr_status status); /* "invalid argument"; any thread */
QR_API const char *qr_version(void);
QR_API void qr_string_free(char *string); /* NULL is allowed */

/* Log lines (logfmt) go to `sink`; level 0 debug, 1 info, 2 warn, 3 error, 4 off (the default). */
QR_API void qr_log_to(int level, void (*sink)(void *user, int level, const char *line), void *user);

/* Called while something long goes on: `done` of `total` bytes (total 0: unknown) of `what`. */
typedef void (*qr_progress_fn)(void *user, const char *what, uint64_t done, uint64_t total);

/* ---- Tokenizer and chat template ------------------------------------------------------------------- */

typedef struct qr_tokenizer qr_tokenizer; /* immutable once open; any thread */

/* path: a Hugging Face folder (tokenizer.json, tokenizer_config.json, chat_template.jinja) or a .gguf
 * file. Errors: QR_NOT_FOUND, QR_BAD_FILE, QR_UNSUPPORTED. */
QR_API qr_status qr_tokenizer_open(const char *path, qr_tokenizer **out, qr_error *err);
QR_API void qr_tokenizer_close(qr_tokenizer *tokenizer);

QR_API int32_t qr_tokenizer_vocab_size(const qr_tokenizer *tokenizer); /* highest id + 1 */
QR_API int32_t qr_tokenizer_bos(const qr_tokenizer *tokenizer);        /* -1: none */
QR_API int32_t qr_tokenizer_eos(const qr_tokenizer *tokenizer);        /* -1: none */
/* The token's string as the vocabulary spells it, and whether it is special. NULL for an unknown id.
 * Borrowed, NUL-terminated. */
QR_API const char *qr_tokenizer_token(const qr_tokenizer *tokenizer, int32_t id, bool *special);
/* The bytes that the token adds to a text, which may be half a character: at most out_max of them go to out; returns
 * how many there are, 0 for an unknown id. Any thread. */
QR_API size_t qr_tokenizer_piece(const qr_tokenizer *tokenizer, int32_t id, char *out, size_t out_max);
/* Id of a token by its exact spelling in the vocabulary, or -1. */
QR_API int32_t qr_tokenizer_find(const qr_tokenizer *tokenizer, const char *token, size_t bytes);

typedef struct qr_encode_options {
    size_t size;
    bool add_special_tokens; /* default true: BOS and so on, as the checkpoint's post-processor says */
    bool parse_special;      /* default true: spellings of special tokens become those tokens */
    bool
        truncate_and_pad; /* default false, as transformers does: what tokenizer.json says of truncation and padding */
} qr_encode_options;
QR_API void qr_encode_options_init(qr_encode_options *options);

/* *ids (qr_ids_free) holds *count ids. options may be NULL. Invalid UTF-8 becomes U+FFFD, except the byte
 * 0xFF, which splits and is dropped (design: text that spells a special token inside user content). */
QR_API qr_status qr_tokenizer_encode(const qr_tokenizer *tokenizer, const char *text, size_t bytes,
                                     const qr_encode_options *options, int32_t **ids, size_t *count,
                                     qr_error *err);
QR_API void qr_ids_free(int32_t *ids);
/* *text (qr_string_free) is NUL-terminated; ids out of range: QR_INVALID_ARGUMENT. */
QR_API qr_status qr_tokenizer_decode(const qr_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                     bool skip_special_tokens, char **text, size_t *bytes, qr_error *err);

/* The chat template in use (borrowed), or NULL when the checkpoint has none. */
QR_API const char *qr_tokenizer_chat_template(const qr_tokenizer *tokenizer);
/* Replaces it (call before sharing the tokenizer); checked at once: QR_INVALID_ARGUMENT with line and
 * column. */
QR_API qr_status qr_tokenizer_set_chat_template(qr_tokenizer *tokenizer, const char *source, qr_error *err);

/* Renders the chat template. `request_json`: an object with "messages" (required) and, as transformers'
 * apply_chat_template takes them, "tools", "documents", "add_generation_prompt" (default true),
 * "continue_final_message", "chat_template_kwargs". "answer_prefix" is put behind the prompt: what the answer
 * has to begin with; a block of reasoning that the prompt leaves open is ended before it. Untrusted content that
 * spells a special token gets the byte 0xFF inside (see qr_tokenizer_encode) unless "allow_special_in_content" is
 * true. */
QR_API qr_status qr_template_render(const qr_tokenizer *tokenizer, const char *request_json, size_t bytes,
                                    char **text, size_t *text_bytes, qr_error *err);

/* ---- Model ----------------------------------------------------------------------------------------- */

typedef struct qr_model qr_model; /* immutable once open; any thread; outlives its engines */

struct qr_engine_options;
typedef struct qr_model_options {
    size_t size;
    const char *path;   /* a Hugging Face folder or a .gguf file */
    const char *dtype;  /* "auto" (default), "float32", "bfloat16", "float16": how dense weights are held */
    const char *device; /* "auto" (default), "cpu", "cuda", "cuda:1", "sim:flops=4e14" (docs/sim.md) */
    const char *isa;    /* CPU kernels: "auto" (default), "generic", "avx2", "avx512" */
    int threads;        /* CPU worker threads; 0 (default): all CPUs this process may use */
    const char *hf_overrides; /* JSON object merged over config.json, or NULL */
    const char *load_format;  /* "auto" (default), "dummy": seeded random-normal weights, for benchmarks */
    uint64_t dummy_seed;
    qr_progress_fn progress; /* called from the calling thread while loading; may be NULL */
    void *progress_user;
    /* When given, the memory plan of such an engine is made and logged before any weight is read, and one that cannot
     * fit is refused (QR_OUT_OF_MEMORY, with the numbers). */
    const struct qr_engine_options *engine_options;
    /* Ranks that share the model: GPUs from the named one on, or parts of the CPU's threads; 0: 1. Refused with the
     * numbers when heads, widths or quantised blocks do not divide. */
    int32_t tensor_parallel_size;
} qr_model_options;
QR_API void qr_model_options_init(qr_model_options *options);

/* Loads a checkpoint: reads config and weights, checks every shape, prepares weights for the device.
 * Errors name file, tensor and values. */
QR_API qr_status qr_model_open(const qr_model_options *options, qr_model **out, qr_error *err);
QR_API void qr_model_close(qr_model *model);

/* The checkpoint's tokenizer (borrowed), or NULL when it has none (then prompts are token ids). */
QR_API const qr_tokenizer *qr_model_tokenizer(const qr_model *model);
/* For qr_tokenizer_set_chat_template before the first engine opens. */
QR_API qr_tokenizer *qr_model_tokenizer_mutable(qr_model *model);
QR_API int32_t qr_model_vocab_size(const qr_model *model);     /* rows of the output head */
QR_API int64_t qr_model_context_length(const qr_model *model); /* positions the checkpoint was made for */
/* What generation_config.json says, as JSON (borrowed): "eos_token_id" as a list, "temperature", ... */
QR_API const char *qr_model_generation_config(const qr_model *model);
/* Names the bits that this build, processor, format and configuration compute: two engines with equal
 * fingerprints give equal tokens. Borrowed. */
QR_API const char *qr_model_fingerprint(const qr_model *model);

/* Describes a checkpoint without loading its weights, as a JSON object: architecture, parameters, formats
 * (tensors and bytes of each), config, tokenizer, memory plan (weights mapped and copied, KV bytes a token,
 * blocks that fit, scratch). engine_options may be NULL. *json is freed by qr_string_free.
 * QR_OUT_OF_MEMORY with the numbers when it cannot fit: then *json is filled all the same. */
QR_API qr_status qr_model_inspect(const qr_model_options *options,
                                  const struct qr_engine_options *engine_options, char **json, qr_error *err);

/* ---- Engine ---------------------------------------------------------------------------------------- */

typedef struct qr_engine qr_engine;

typedef struct qr_engine_options {
    size_t size;
    int64_t max_model_len;          /* 0: the checkpoint's context, shortened to what the KV memory holds */
    int32_t max_num_seqs;           /* running samples; 0: 256 */
    int32_t max_num_batched_tokens; /* token budget of one step; 0: what suits the device (CPU: 512) */
    int32_t
        long_prefill_token_threshold; /* most prompt tokens of one request in a step; 0: budget / 2 while others wait */
    int32_t block_size;               /* tokens in a KV block; 0: the backend's (CPU: 16) */
    const char *kv_cache_dtype; /* "auto" (default), "float32", "float16", "bfloat16", "fp8" */
    uint64_t
        kv_cache_memory_bytes; /* of each rank; 0: a quarter of the memory available, at most what max_num_seqs full
                                * contexts need; on a GPU all that gpu_memory_utilization leaves */
    int32_t num_kv_blocks;      /* 0: from the bytes; else exactly this many (tests of preemption) */
    bool enable_prefix_caching; /* default true */
    bool priority_scheduling;  /* default false: first come, first served; true: lower priority value first */
    bool deterministic;        /* default true */
    uint64_t seed;             /* of requests without one; 0: from the system. Also of the prefix hash. */
    int32_t max_logprobs;      /* default 20 */
    int32_t max_waiting;       /* sequences (prompts x n) accepted and not yet scheduled; 0: 4096 */
    uint64_t output_bytes_max; /* memory that the outputs of all live requests may come to; 0: 1 GiB */
    int32_t text_threads;      /* tokenise and template; 0: 1 */
    double
        gpu_memory_utilization; /* of a GPU's memory, most that all of this process may hold; 0: 0.92. Not with
                                    * kv_cache_memory_bytes or num_kv_blocks */
    const char *
        async_scheduling; /* plan a step while the one before runs: "auto" (default: on a GPU), "on", "off" */
} qr_engine_options;
QR_API void qr_engine_options_init(qr_engine_options *options);

/* Takes all memory it will need and starts the engine thread. Errors: QR_OUT_OF_MEMORY with the plan's
 * numbers, QR_INVALID_ARGUMENT. The model must outlive the engine. */
QR_API qr_status qr_engine_open(qr_model *model, const qr_engine_options *options, qr_engine **out,
                                qr_error *err);
/* Cancels what runs, waits for the engine thread, frees all. Requests must be released before, or after
 * from the same thread; pollers are closed before. */
QR_API void qr_engine_close(qr_engine *engine);
/* Stops taking requests (QR_CLOSED); those accepted run to their end. Any thread. */
QR_API void qr_engine_drain(qr_engine *engine);

QR_API int64_t qr_engine_max_model_len(const qr_engine *engine);

/* ---- Requests -------------------------------------------------------------------------------------- */

typedef struct qr_logit_bias {
    int32_t token;
    float bias; /* finite */
} qr_logit_bias;

/* vLLM's meanings and defaults. The arrays are copied by qr_request_submit. */
typedef struct qr_sampling_params {
    size_t size;
    int32_t n;                /* samples; default 1 */
    float temperature;        /* default 1; < 1e-5: greedy; otherwise at least 0.01 */
    float top_p;              /* (0, 1]; default 1 */
    int32_t top_k;            /* 0 or -1: off (default 0) */
    float min_p;              /* [0, 1]; default 0 */
    float repetition_penalty; /* > 0; default 1; over prompt and output */
    float presence_penalty;   /* [-2, 2]; default 0; over output */
    float frequency_penalty;  /* [-2, 2]; default 0; over output */
    bool has_seed;
    uint64_t seed;
    int64_t max_tokens; /* default 16; 0 only with prompt_logprobs or echo; -1: the rest of the context */
    int64_t min_tokens; /* default 0 */
    bool ignore_eos;
    const char *const *stop; /* stop strings, UTF-8, not empty */
    size_t stop_count;
    bool include_stop_str_in_output;
    const int32_t *stop_token_ids;
    size_t stop_token_id_count;
    int32_t logprobs;         /* -1 (default): none; 0: of the chosen token; k: and of the k best */
    int32_t prompt_logprobs;  /* -1 (default): none */
    bool detokenize;          /* default true */
    bool skip_special_tokens; /* default true */
    const qr_logit_bias *logit_bias;
    size_t logit_bias_count;
    const int32_t *allowed_token_ids; /* count 0: all */
    size_t allowed_token_id_count;
    const char *const *bad_words; /* not generated, with or without a leading space */
    size_t bad_word_count;
} qr_sampling_params;
QR_API void qr_sampling_params_init(qr_sampling_params *params);
/* Checks every number without a model: QR_INVALID_ARGUMENT names the field and the value (NaN included). */
QR_API qr_status qr_sampling_params_check(const qr_sampling_params *params, qr_error *err);

typedef struct qr_request qr_request;

typedef struct qr_request_options {
    size_t size;
    /* The prompt: exactly one of these three. Copied. */
    const char *text; /* encoded by the text pool */
    size_t text_bytes;
    const int32_t *token_ids;
    size_t token_count;
    const char *chat_json; /* what qr_template_render takes */
    size_t chat_json_bytes;

    bool add_special_tokens; /* for text; default true (chat prompts never add: the template does) */
    bool parse_special;      /* for text; default true */
    qr_sampling_params sampling;
    int32_t priority;       /* lower runs first, under priority scheduling */
    const char *cache_salt; /* separates prefix-cache entries; NULL: shared */
    bool skip_reading_prefix_cache;
    const char *request_id; /* for the log; copied, at most 128 bytes; NULL: made */
    /* Tokens treated as already generated: limits, penalties, stops, random numbers and usage count
     * them; they are not emitted again. For resuming a stream elsewhere; needs n = 1. */
    const int32_t *output_prefix_ids;
    size_t output_prefix_count;
    int64_t truncate_prompt_tokens; /* 0: off; k: keep the last k prompt tokens; -1: max_model_len */
    void *user;                     /* comes back in events */
    /* Special tokens whose text skip_special_tokens leaves in: what an output parser looks for. */
    const int32_t *kept_special_ids;
    size_t kept_special_count;
    bool
        max_tokens_must_fit; /* default false: an answer ends when the context is full; true: max_tokens that the
                               * prompt leaves no room for are refused, as vLLM's server does */
    /* How much of the text of output_prefix_ids has been seen already; what follows is emitted. -1 (default): all of
     * it. It is less where a stop string was held back, or where the text of the last ids had not come yet. */
    int64_t output_prefix_text_bytes;
} qr_request_options;
QR_API void qr_request_options_init(qr_request_options *options);

typedef struct qr_poller qr_poller;

/* A poller belongs to one reader thread at a time. */
QR_API qr_status qr_poller_open(qr_engine *engine, qr_poller **out, qr_error *err);
QR_API void qr_poller_close(qr_poller *poller); /* all its requests must be released */
/* An eventfd that is readable when there is news; owned by the poller; at most one write a step. */
QR_API int qr_poller_fd(const qr_poller *poller);

/* Never blocks: checks the options, copies them and queues the request. Errors: QR_INVALID_ARGUMENT,
 * QR_BUSY (the queue or the output budget is full: try later), QR_CLOSED. A prompt that turns out wrong
 * later (template error, too long) comes as an event with finish QR_FINISH_ERROR. Any thread. */
QR_API qr_status qr_request_submit(qr_engine *engine, qr_poller *poller, const qr_request_options *options,
                                   qr_request **out, qr_error *err);
/* Asks the engine to stop it; its samples end with QR_FINISH_ABORT. Any thread; harmless when ended. */
QR_API void qr_request_cancel(qr_request *request);
/* Gives it back (cancels it when it still runs); no event of it comes afterwards. Reader's thread. */
QR_API void qr_request_release(qr_request *request);

typedef enum qr_finish {
    QR_FINISH_NONE = 0, /* goes on */
    QR_FINISH_STOP,     /* a stop string, stop id or the end-of-sequence token */
    QR_FINISH_LENGTH,   /* max_tokens, or the context is full */
    QR_FINISH_ABORT,    /* cancelled */
    QR_FINISH_ERROR     /* event.status and event.message say why */
} qr_finish;
QR_API const char *qr_finish_name(qr_finish finish); /* "stop", "length", "abort", "error" or NULL */

typedef struct qr_logprob {
    int32_t token;
    int32_t rank;  /* 1: the most likely */
    float logprob; /* natural logarithm, of the raw distribution (before temperature, penalties, masks) */
} qr_logprob;

/* News of one sample. All pointers stay valid until qr_request_release. Text comes as whole UTF-8
 * characters; text that might still become a stop string is held back, so token_end may be ahead of
 * text_end; at the end everything is there. Concatenating the text of all events gives exactly
 * qr_request_sample().text. */
typedef struct qr_event {
    qr_request *request;
    void *user;
    int32_t sample;
    const int32_t *token_ids; /* the new ones */
    size_t token_count;
    const char *text; /* the new bytes */
    size_t text_bytes;
    const qr_logprob *
        logprobs; /* new rows of (1 + logprobs) entries a token: the chosen one, then the best; NULL when not asked for */
    qr_finish finish;
    int32_t stop_token;  /* the id that ended it when finish is STOP, else -1 */
    int32_t stop_string; /* index into sampling.stop, else -1 */
    qr_status status;    /* of QR_FINISH_ERROR */
    const char *message; /* of QR_FINISH_ERROR; else NULL */
} qr_event;

/* Takes up to `events_max` events; returns how many. Clears the eventfd when nothing is left. Reader's
 * thread. timeout_ms: 0 does not wait, -1 waits for ever. */
QR_API size_t qr_poller_poll(qr_poller *poller, qr_event *events, size_t events_max, int timeout_ms);

/* What a sample has so far (reader's view: grows only inside qr_poller_poll). Borrowed. */
typedef struct qr_sample_view {
    const int32_t *token_ids;
    size_t token_count;
    const char *text;
    size_t text_bytes;
    const qr_logprob *logprobs;
    size_t logprob_columns; /* 1 + k, 0 when not asked for */
    qr_finish finish;
} qr_sample_view;
QR_API qr_sample_view qr_request_sample(const qr_request *request, int32_t sample);

/* Facts of a request; valid from its first event on. */
typedef struct qr_request_facts {
    const char *id;
    uint64_t seed; /* the effective one */
    const int32_t *prompt_ids;
    size_t prompt_count;
    size_t cached_count; /* prompt tokens read from the prefix cache */
    const qr_logprob
        *prompt_logprobs; /* prompt_count rows (row 0 is empty: token -1) of columns entries, or NULL */
    size_t prompt_logprob_columns;
    uint64_t queued_ns, scheduled_ns, first_token_ns, finished_ns; /* monotonic; 0: not yet */
} qr_request_facts;
QR_API qr_request_facts qr_request_describe(const qr_request *request);

/* The text before the first event's: that of output_prefix_ids, as far as it is not emitted. Borrowed; valid from the
 * first event on. */
QR_API const char *qr_request_prefix_text(const qr_request *request, size_t *bytes);

/* Log-probability of each given token after the ones before it: out[0] = 0, out[i] = log p(ids[i] |
 * ids[0..i)). Blocks; runs as a request of the engine. Any thread. */
QR_API qr_status qr_score(qr_engine *engine, const int32_t *ids, size_t count, float *out, qr_error *err);

/* ---- Watching -------------------------------------------------------------------------------------- */

typedef struct qr_engine_stats {
    size_t size;
    uint64_t steps;            /* completed */
    uint64_t last_progress_ns; /* monotonic: end of the last step, or now while idle */
    bool healthy;              /* false: a failed device, or work and no step for 30 s */
    bool draining;
    int32_t running, waiting; /* samples */
    double kv_usage;          /* 0..1 */
    int64_t kv_blocks, kv_blocks_free;
    int32_t block_size;
    uint64_t prompt_tokens, generation_tokens, cached_tokens, preemptions;
    uint64_t prefix_queries, prefix_hits; /* tokens */
    uint64_t step_ns_total;               /* time inside steps */
    uint64_t bytes_moved_total; /* weight and KV bytes that the steps had to read: for % of the read limit */
    uint64_t flops_total;
    uint64_t engine_heap_allocations; /* by the engine thread since "ready": stays 0 */
    /* By the device's own clock, where it has one (a GPU), else 0: in steps' first to last kernel, and between the
     * last kernel of a step and the first of the next while there was work. */
    uint64_t device_busy_ns_total, device_idle_ns_total;
    bool device_failed; /* for good: requests fail with QR_DEVICE_FAILED */
    uint64_t
        roof_ns_total; /* what the steps would have taken at the device's measured limits; 0: not measured */
} qr_engine_stats;
QR_API void qr_engine_get_stats(const qr_engine *engine, qr_engine_stats *stats); /* any thread */

typedef enum qr_metric_type { QR_METRIC_GAUGE, QR_METRIC_COUNTER, QR_METRIC_HISTOGRAM } qr_metric_type;
typedef struct qr_metric {
    const char *name; /* "vllm:num_requests_running"; counters without the _total suffix */
    const char *help;
    const char *label; /* extra label as key="value", or "" */
    qr_metric_type type;
    double value;            /* gauge, counter; histogram: sum */
    uint64_t count;          /* histogram */
    const double *bounds;    /* histogram: upper bounds, ascending, without +Inf */
    const uint64_t *buckets; /* histogram: counts per bound (not cumulative), then the rest */
    size_t bound_count;
} qr_metric;
/* A consistent copy of every metric; *out is one allocation (qr_metrics_free). Any thread. */
QR_API size_t qr_engine_metrics(const qr_engine *engine, qr_metric **out);
QR_API void qr_metrics_free(qr_metric *metrics);

/* Forgets all cached prefixes that no running request holds. Any thread; takes effect at the next step. */
QR_API void qr_engine_reset_prefix_cache(qr_engine *engine);

/* ---- Output parser --------------------------------------------------------------------------------- */

/* Splits generated text into reasoning, content and tool calls, as it comes. What comes out does not depend on
 * how the text was cut into pushes. Arguments are passed on as JSON text and never evaluated. Marks that are
 * special tokens have to be kept in the text (see qr_output_parser_mark). */
typedef struct qr_output_parser qr_output_parser; /* one owner */

typedef struct qr_output_parser_options {
    size_t size;
    /* How reasoning is marked: "none" (default); "think": <think>...</think> at the start of the text; "deepseek_r1":
     * the same, and the text begins inside; "mistral": [THINK]...[/THINK]; "harmony". Newlines next to the marks,
     * and white space between the end mark and the content, belong to neither. */
    const char *reasoning;
    /* How tool calls are marked: "none" (default), "hermes" (<tool_call>{json}</tool_call>: Hermes, Qwen),
     * "qwen3_coder" (<function=f><parameter=p>value</parameter></function>; tools_json says what is no string),
     * "llama3_json" ({"name", "parameters"}, also after <|python_tag|>, separated by ;), "pythonic" ([f(a=1)]),
     * "mistral" ([TOOL_CALLS] with a list, or name{json}), "harmony" (channels; reasoning too). Both take vLLM's
     * names for the same ("qwen3", "openai_gptoss", "openai", "llama4_pythonic", ...).
     * "auto": what chat_template uses (reasoning "auto" likewise). */
    const char *tools;
    const char *chat_template; /* for "auto" and for the opening; may be NULL */
    const char *tool_choice;   /* "auto" (default), "none" (calls stay content), "required", "named" */
    const char *tool_name;     /* of "named" */
    bool
        constrained; /* the output was forced: "required": a JSON list of {"name", "parameters"}; "named": the
                       * arguments of tool_name alone */
    bool reasoning_open; /* the prompt ends inside <think> (see qr_output_parser_prompt_opens) */
    const char *const
        *tool_names;         /* llama3_json and pythonic, which have no mark of their own, take only these */
    size_t tool_name_count;  /* for calls; 0: any name */
    size_t memory_bytes_max; /* of text held back; 0: 1 MiB */
    const char *tools_json;  /* the request's tools, a JSON list, for the types of parameters; may be NULL */
    size_t tools_json_bytes;
} qr_output_parser_options;
QR_API void qr_output_parser_options_init(qr_output_parser_options *options);
/* Copies what it needs. Errors: QR_INVALID_ARGUMENT (an unknown style). */
QR_API qr_status qr_output_parser_new(const qr_output_parser_options *options, qr_output_parser **out,
                                      qr_error *err);
QR_API void qr_output_parser_free(qr_output_parser *parser);
/* What "auto" means for a template: names for the options above. Borrowed for ever. Any thread. */
QR_API void qr_output_parser_detect(const char *chat_template, const char **reasoning, const char **tools);
/* What an answer begins with that has to call a tool (tool_choice "required", "named"), in the style's syntax: to
 * be put behind the prompt ("answer_prefix" of a chat request) and pushed first. "": the style knows none. */
QR_API const char *qr_output_parser_opening(const qr_output_parser *parser);
/* The marks that may be special tokens, which skip_special_tokens would swallow (see kept_special_ids of a request);
 * NULL past the last. */
QR_API const char *qr_output_parser_mark(const qr_output_parser *parser, size_t index);
/* Whether a prompt leaves a <think> block open for the answer to go on in. Any thread. */
QR_API bool qr_output_parser_prompt_opens(const char *prompt, size_t bytes);

typedef enum qr_output_kind {
    QR_OUTPUT_CONTENT,
    QR_OUTPUT_REASONING,
    QR_OUTPUT_TOOL_BEGIN,     /* text: the function's name */
    QR_OUTPUT_TOOL_ARGUMENTS, /* text: the next piece of the arguments' JSON */
    QR_OUTPUT_TOOL_END        /* text: empty */
} qr_output_kind;

typedef struct qr_output_delta {
    qr_output_kind kind;
    int32_t tool_index; /* 0, 1, ... of the three TOOL kinds; else -1 */
    const char *text;   /* not NUL-terminated */
    size_t bytes;
} qr_output_delta;

/* Takes the next text (whole UTF-8 characters). *deltas (borrowed until the next call) holds *count pieces; text
 * that may still become a mark is held back. Errors: QR_LIMIT_EXCEEDED, after which only free is allowed. */
QR_API qr_status qr_output_parser_push(qr_output_parser *parser, const char *text, size_t bytes,
                                       const qr_output_delta **deltas, size_t *count, qr_error *err);
/* The end of the text: what was held back comes out; a call that was cut ends as far as it got. */
QR_API qr_status qr_output_parser_finish(qr_output_parser *parser, const qr_output_delta **deltas,
                                         size_t *count, qr_error *err);
QR_API int32_t qr_output_parser_tool_count(const qr_output_parser *parser); /* calls begun so far */

/* ---- Hub, limits ----------------------------------------------------------------------------------- */

typedef struct qr_hub_options {
    size_t size;
    const char *repo;      /* "ORG/NAME" */
    const char *revision;  /* NULL: "main" */
    const char *endpoint;  /* NULL: $HF_ENDPOINT or the public one */
    const char *token;     /* NULL: $HF_TOKEN or the token file */
    const char *cache_dir; /* NULL: $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub */
    bool offline;          /* also by $HF_HUB_OFFLINE: only what is in the cache */
    qr_progress_fn progress;
    void *progress_user;
} qr_hub_options;
QR_API void qr_hub_options_init(qr_hub_options *options);
/* Downloads what Quire needs of a repository into the standard cache layout, resuming and checking sizes and
 * hashes; *path (qr_string_free) is the snapshot folder, or the .gguf file in it. */
QR_API qr_status qr_hub_pull(const qr_hub_options *options, char **path, qr_error *err);

/* Measures a device's limits, as a JSON object. A CPU (threads 0: all; read from the cache, keyed by its model and
 * the thread count, unless `refresh`): read bandwidth in GB/s by page size, peak of each instruction the kernels use
 * in GFLOP/s or GOP/s; takes a few seconds when measured. A GPU: read and copy in GB/s, BF16 products in TFLOP/s;
 * takes 2 GiB of its memory and a second, and must not be called while an engine runs on it. */
QR_API qr_status qr_bench_limits(const char *device, int threads, bool refresh, char **json, qr_error *err);

#ifdef __cplusplus
}
#endif
#endif
