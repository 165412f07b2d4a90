/* The products of the CUDA backend on the shapes of an 8B model: right, the same bits at every M, and how fast, beside
 * the best of cuBLASLt's heuristics in the same run.
 *   gemm_bench check            against sums in double at odd shapes; bits at M = 1, 8, 64, 65, 256 and 8192
 *   gemm_bench time [M...]      each shape, and a layer's four products in a row
 *   gemm_bench cuts M...        every cut of the kernel at M
 *   gemm_bench rows M           a layer's products in a row, all subsets
 * Ends with 1 when a check fails. */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/cuda.cuh"
#include "backend/cuda/gemm_wgmma.cuh"

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

static void *take(size_t bytes)
{
    void *data = NULL;
    must(cudaMalloc(&data, bytes), "memory");
    return data;
}

/* ---- Numbers ---- */

__device__ static float normal_at(uint64_t seed, uint64_t i)
{
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull ^ seed * 0xd1342543de82ef95ull;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93ull;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93ull;
    x ^= x >> 32;
    float sum = (x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48);
    return (sum / 65536.0f - 2.0f) * 1.732f;
}

__global__ static void fill(bf16 *to, uint64_t count, uint64_t seed, float scale)
{
    for (uint64_t i = blockIdx.x * 1024ull + threadIdx.x; i < count; i += gridDim.x * 1024ull)
        to[i] = __float2bfloat16(normal_at(seed, i) * scale);
}

static bf16 *numbers(size_t count, uint64_t seed, float scale)
{
    bf16 *data = static_cast<bf16 *>(take(count * 2));
    fill<<<1024, 1024>>>(data, count, seed, scale);
    must(cudaDeviceSynchronize(), "numbers");
    return data;
}

/* Sums in double of every pair (row of y, row of weights) for which (m * n_all + n) % step == 0; error and size. */
__global__ static void compare(cuda_gemm_job job, int matrix, int step, double *errors)
{
    const cuda_gemm_matrix &to = job.matrix[matrix];
    bool swiglu = job.out == CUDA_GEMM_SWIGLU;
    int64_t all = static_cast<int64_t>(job.m) * to.n, warp = blockIdx.x * 8 + threadIdx.x / 32;
    for (int64_t i = warp * step; i < all; i += gridDim.x * 8 * static_cast<int64_t>(step)) {
        int64_t m = i / to.n, n = i % to.n;
        double sum[2] = {0, 0};
        for (int part = 0; part <= (swiglu ? 1 : 0); part++) {
            const bf16 *w = static_cast<const bf16 *>(job.matrix[matrix + part].weight) + n * job.k;
            const bf16 *x = static_cast<const bf16 *>(job.x) + m * job.x_stride;
            for (int k = threadIdx.x % 32; k < job.k; k += 32)
                sum[part] +=
                    static_cast<double>(__bfloat162float(w[k])) * static_cast<double>(__bfloat162float(x[k]));
            for (int j = 16; j > 0; j /= 2)
                sum[part] += __shfl_xor_sync(0xffffffffu, sum[part], j);
        }
        double want = sum[0] + (to.bias != NULL ? static_cast<double>(to.bias[n]) : 0.0);
        if (swiglu)
            want = sum[0] / (1 + exp(-sum[0])) * sum[1];
        int64_t at = m * to.y_stride + n;
        double got = job.out == CUDA_GEMM_F32
                         ? static_cast<double>(static_cast<float *>(to.y)[at])
                         : static_cast<double>(__bfloat162float(static_cast<bf16 *>(to.y)[at]));
        if (threadIdx.x % 32 == 0) {
            atomicAdd(&errors[0], (got - want) * (got - want));
            atomicAdd(&errors[1], want * want);
        }
    }
}

static double error_of(const cuda_gemm_job &job, int matrix, int step)
{
    static double *errors = static_cast<double *>(take(16));
    double host[2];
    must(cudaMemset(errors, 0, 16), "errors");
    compare<<<528, 256>>>(job, matrix, step, errors);
    must(cudaMemcpy(host, errors, 16, cudaMemcpyDeviceToHost), "errors");
    double error = sqrt(host[0] / (host[1] > 0 ? host[1] : 1));
    return error;
}

__global__ static void count_differences(const uint32_t *a, const uint32_t *b, uint64_t count,
                                         unsigned long long *out)
{
    unsigned long long found = 0;
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull)
        found += a[i] != b[i];
    if (found > 0)
        atomicAdd(out, found);
}

static unsigned long long differences(const void *a, const void *b, size_t bytes)
{
    static unsigned long long *count = static_cast<unsigned long long *>(take(8));
    unsigned long long host = 0;
    must(cudaMemset(count, 0, 8), "count");
    count_differences<<<528, 256>>>(static_cast<const uint32_t *>(a), static_cast<const uint32_t *>(b),
                                    bytes / 4, count);
    must(cudaMemcpy(&host, count, 8, cudaMemcpyDeviceToHost), "count");
    return host;
}

/* ---- Shapes ---- */

struct shape {
    const char *name;
    int n[3], count, k;
    cuda_gemm_out out;
};

static const shape model[] = {
    {"qkv 6144x4096", {4096, 1024, 1024}, 3, 4096, CUDA_GEMM_BF16},
    {"o 4096x4096", {4096}, 1, 4096, CUDA_GEMM_BF16},
    {"gate/up 28672x4096", {14336, 14336}, 2, 4096, CUDA_GEMM_SWIGLU},
    {"down 4096x14336", {4096}, 1, 14336, CUDA_GEMM_BF16},
    {"head 128256x4096", {128256}, 1, 4096, CUDA_GEMM_F32},
};

static double rows_of(const shape &s) { return s.n[0] + s.n[1] + s.n[2]; }

static cuda_gemm_job job_of(const shape &s, bf16 *weights, const bf16 *x, void *y, int m, const float *bias)
{
    cuda_gemm_job job = {};
    job.count = s.count;
    job.m = m;
    job.k = s.k;
    job.x = x;
    job.x_stride = s.k;
    job.out = s.out;
    char *to = static_cast<char *>(y);
    for (int i = 0; i < s.count; i++) {
        job.matrix[i] = {weights, bias, to, s.n[i], s.n[i]};
        weights += static_cast<size_t>(s.n[i]) * s.k;
        if (s.out != CUDA_GEMM_SWIGLU)
            to += (static_cast<size_t>(s.n[i]) * m * (s.out == CUDA_GEMM_F32 ? 4 : 2) + 255) / 256 * 256;
    }
    return job;
}

static size_t y_bytes(const shape &s, int m) { return static_cast<size_t>(rows_of(s) + 512) * m * 4 + 1024; }

/* ---- Checks ---- */

static int failures;

static void verdict(bool ok, const char *what, double number)
{
    failures += !ok;
    printf("%-72s %9.3g  %s\n", what, number, ok ? "ok" : "FAILED");
}

typedef std::function<cudaError_t(cudaStream_t, const cuda_gemm_job *)> runner;

static void check_shape(const shape &s, int m, bool with_bias, const runner &run, const char *how)
{
    size_t count = static_cast<size_t>(rows_of(s)) * s.k;
    bf16 *w = numbers(count + 64, 1, 0.02f), *x = numbers(static_cast<size_t>(m) * s.k + 64, 2, 1.0f);
    void *y = take(y_bytes(s, m));
    std::vector<float> host(131072);
    for (size_t i = 0; i < host.size(); i++)
        host[i] = static_cast<float>(i % 17) * 0.1f - 0.8f;
    float *bias = static_cast<float *>(take(host.size() * 4));
    must(cudaMemcpy(bias, host.data(), host.size() * 4, cudaMemcpyHostToDevice), "bias");
    must(cudaMemset(y, 0xff, y_bytes(s, m)), "poison");
    cuda_gemm_job job = job_of(s, w, x, y, m, with_bias && s.out != CUDA_GEMM_SWIGLU ? bias : NULL);
    must(run(0, &job), "launch");
    must(cudaDeviceSynchronize(), "run");
    int step = static_cast<int>(static_cast<double>(m) * s.n[0] * s.k / 2e9) * 2 + 1;
    for (int i = 0; i < (s.out == CUDA_GEMM_SWIGLU ? 1 : s.count); i++) {
        char what[160];
        snprintf(what, sizeof(what), "n %d k %d m %d %s %s", s.n[i], s.k, m,
                 s.out == CUDA_GEMM_F32    ? "f32"
                 : s.out == CUDA_GEMM_BF16 ? "bf16"
                                           : "swiglu",
                 how);
        double error = error_of(job, i, step);
        verdict(error <= (s.out == CUDA_GEMM_F32 ? 1e-5 : 4e-3), what, error);
    }
    cudaFree(w);
    cudaFree(x);
    cudaFree(y);
    cudaFree(bias);
}

/* The first rows of a step of 8192 (or as many as fit) and of smaller ones. */
static void check_bits(const shape &s)
{
    const int sizes[] = {1, 2, 8, 9, 31, 64, 65, 128, 200, 256, 300, 512, 777, 2048};
    int most = s.out == CUDA_GEMM_F32 ? 512 : 8192;
    bf16 *w = numbers(static_cast<size_t>(rows_of(s)) * s.k, 3, 0.02f);
    bf16 *x = numbers(static_cast<size_t>(most) * s.k, 4, 1.0f);
    void *all = take(y_bytes(s, most)), *some = take(y_bytes(s, most));
    cuda_gemm_job whole = job_of(s, w, x, all, most, NULL);
    must(cuda_gemm(0, &whole), "launch");
    for (int m : sizes) {
        if (m >= most)
            break;
        must(cudaMemset(some, 0xff, y_bytes(s, m)), "poison");
        cuda_gemm_job job = job_of(s, w, x, some, m, NULL);
        must(cuda_gemm(0, &job), "launch");
        must(cudaDeviceSynchronize(), "run");
        unsigned long long found = 0;
        for (int i = 0; i < (s.out == CUDA_GEMM_SWIGLU ? 1 : s.count); i++)
            found += differences(job.matrix[i].y, whole.matrix[i].y,
                                 static_cast<size_t>(m) * s.n[i] * (s.out == CUDA_GEMM_F32 ? 4 : 2));
        char what[160];
        snprintf(what, sizeof(what), "%s: words of M = %d unlike those of M = %d", s.name, m, most);
        verdict(found == 0, what, static_cast<double>(found));
    }
    cudaFree(w);
    cudaFree(x);
    cudaFree(all);
    cudaFree(some);
}

static cuda_gemm_chip chip;

typedef std::function<void(const cuda_gemm_plan &)> plan_user;

static void each_plan(const cuda_gemm_job &job, const plan_user &use)
{
    cuda_gemm_each_plan(
        &job, &chip,
        [](void *context, const cuda_gemm_plan *plan) { (*static_cast<const plan_user *>(context))(*plan); },
        const_cast<plan_user *>(&use));
}

static void name_plan(const cuda_gemm_plan &p, char (&out)[96])
{
    static const char *const splits[] = {"whole", "inside", "cluster", "turns"};
    snprintf(out, sizeof(out), "%s %d x %d rows %d peers %d %d, %d stages of %d x %d KB, grid %d",
             splits[p.cut.split], p.cut.groups, p.cut.tokens, p.cut.rows, p.cut.row_peers, p.cut.token_peers,
             p.stages, p.depth, p.atom_bytes / 1024, p.grid);
}

static int check(void)
{
    const shape odd[] = {
        {"", {64}, 1, 64, CUDA_GEMM_F32},
        {"", {8}, 1, 64, CUDA_GEMM_BF16},
        {"", {100}, 1, 128, CUDA_GEMM_BF16},
        {"", {77}, 1, 192, CUDA_GEMM_BF16},
        {"", {1000}, 1, 1024, CUDA_GEMM_F32},
        {"", {192, 64, 64}, 3, 576, CUDA_GEMM_BF16},
        {"", {1536, 1536}, 2, 576, CUDA_GEMM_SWIGLU},
        {"", {1000, 1000}, 2, 1088, CUDA_GEMM_SWIGLU},
        {"", {49152}, 1, 576, CUDA_GEMM_F32},
        {"", {576}, 1, 1536, CUDA_GEMM_BF16},
        {"", {40}, 1, 100, CUDA_GEMM_BF16},
        {"", {2048, 512, 512}, 3, 2048, CUDA_GEMM_F32},
    };
    for (const shape &s : odd)
        for (int m : {1, 7, 16, 33, 65, 130, 300})
            check_shape(s, m, m % 2 == 1, cuda_gemm, "");
    for (const shape &s : model)
        for (int m : {1, 37, 129, 1000})
            check_shape(s, s.out == CUDA_GEMM_F32 && m > 512 ? 512 : m, m == 37, cuda_gemm, "");
    const shape cut_shapes[] = {{"", {1000}, 1, 1088, CUDA_GEMM_BF16},
                                {"", {4360, 104, 200}, 3, 448, CUDA_GEMM_BF16},
                                {"", {2200, 2200}, 2, 576, CUDA_GEMM_SWIGLU}};
    for (const shape &s : cut_shapes)
        for (int m : {20, 150, 600}) {
            cuda_gemm_job job = job_of(s, NULL, NULL, NULL, m, NULL);
            each_plan(job, [&](const cuda_gemm_plan &plan) {
                char name[96];
                name_plan(plan, name);
                if (plan.cut.rows % 48 == 0 || plan.cut.rows % 64 == 0)
                    check_shape(
                        s, m, true,
                        [&](cudaStream_t stream, const cuda_gemm_job *j) {
                            return cuda_gemm_wgmma(stream, j, &plan);
                        },
                        name);
            });
        }
    for (const shape &s : model)
        check_bits(s);
    printf("%d failed\n", failures);
    return failures > 0;
}

/* ---- Times ---- */

static cudaStream_t stream;

/* Microseconds of one call out of `calls` in a graph; the best of some replays (the card is shared with nobody). */
static double time_graph(int calls, const std::function<void(int)> &call)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "event");
    must(cudaEventCreate(&end), "event");
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < calls; i++)
        call(i);
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "graph");
    std::vector<float> times;
    double total = 0;
    for (int i = 0; i < 12 && (i < 4 || total < 30); i++) {
        float ms = 0;
        must(cudaEventRecord(begin, stream), "event");
        must(cudaGraphLaunch(exec, stream), "graph");
        must(cudaEventRecord(end, stream), "event");
        must(cudaEventSynchronize(end), "graph");
        must(cudaEventElapsedTime(&ms, begin, end), "event");
        if (i > 0)
            times.push_back(ms);
        total += static_cast<double>(ms);
    }
    std::sort(times.begin(), times.end());
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return static_cast<double>(times[times.size() / 2]) * 1000 / calls;
}

struct bench_memory {
    bf16
        *weights[5]; /* copies of each shape's, 600 MB or more, so that none is in L2 when it is read again */
    int copies[5];
    bf16 *x;
    void *y;
};

static bench_memory memory_of(int most)
{
    bench_memory memory = {};
    for (int i = 0; i < 5; i++) {
        size_t bytes = static_cast<size_t>(rows_of(model[i])) * model[i].k * 2;
        memory.copies[i] = i == 4 ? 1 : static_cast<int>(600e6 / static_cast<double>(bytes)) + 1;
        memory.weights[i] = numbers(bytes / 2 * memory.copies[i], 5 + i, 0.02f);
    }
    memory.x = numbers(static_cast<size_t>(most) * 14336, 11, 1.0f);
    memory.y = take(static_cast<size_t>(most) * 28672 * 4 + static_cast<size_t>(128256) * 512 * 4);
    return memory;
}

static cuda_gemm_job turn_of(const bench_memory &memory, int i, int turn, int m)
{
    const shape &s = model[i];
    size_t count = static_cast<size_t>(rows_of(s)) * s.k;
    return job_of(s, memory.weights[i] + count * (turn % memory.copies[i]), memory.x, memory.y, m, NULL);
}

static int calls_for(int i, int m) { return i == 4 ? 4 : m >= 2048 ? 6 : 24; }

/* One matrix for cuBLASLt: what shares x is merged there, and there is no activation. */
static cuda_gemm_job merged(const cuda_gemm_job &job)
{
    cuda_gemm_job one = job;
    one.count = 1;
    one.out = job.out == CUDA_GEMM_F32 ? CUDA_GEMM_F32 : CUDA_GEMM_BF16;
    one.matrix[0].n = static_cast<int>(cuda_gemm_rows(&job));
    one.matrix[0].y_stride = one.matrix[0].n;
    return one;
}

struct best_choice {
    double us;
    cuda_cublaslt_product *product;
    int choice;
};

static best_choice time_cublaslt(cuda_cublaslt *library, const bench_memory &memory, int i, int m)
{
    cuda_gemm_job first = merged(turn_of(memory, i, 0, m));
    best_choice best = {0, cuda_cublaslt_plan(library, &first), 0};
    for (int c = 0; best.product != NULL && c < cuda_cublaslt_choices(best.product); c++) {
        if (cuda_cublaslt_run(best.product, c, stream, &first) != 0)
            continue;
        double us = time_graph(calls_for(i, m), [&](int turn) {
            cuda_gemm_job job = merged(turn_of(memory, i, turn, m));
            if (cuda_cublaslt_run(best.product, c, stream, &job) != 0)
                printf("cuBLASLt failed\n");
        });
        if (best.us == 0 || us < best.us) {
            best.us = us;
            best.choice = c;
        }
    }
    return best;
}

/* Stands for the kernel that makes a product's input in a model: the input is in L2, or on its way to memory, when the
 * product begins. */
__global__ static void touch(bf16 *x, int count, uint32_t seed)
{
    pdl_wait();
    pdl_release();
    for (int i = blockIdx.x * 256 + threadIdx.x; i < count / 2; i += gridDim.x * 256) {
        uint32_t v = (i + seed) * 2654435761u;
        reinterpret_cast<uint32_t *>(x)[i] = ((v & 0x807f807fu) | 0x3f003f00u) ^ (v >> 9 & 0x00800080u);
    }
}

typedef std::function<void(int, const cuda_gemm_job &)> layer_runner;

/* Sixteen layers' products in a row, as a step runs them; which: bits of those that take part. */
static double time_layers(const bench_memory &memory, int m, int which, bool fresh, const layer_runner &run)
{
    const int layers = m >= 2048 ? 2 : 16;
    return time_graph(1,
                      [&](int) {
                          for (int turn = 0; turn < layers; turn++)
                              for (int i = 0; i < 4; i++) {
                                  if ((which >> i & 1) == 0)
                                      continue;
                                  if (fresh)
                                      must(cuda_launch(touch, dim3(132), dim3(256), 0, stream, memory.x,
                                                       m * model[i].k, turn * 4 + i),
                                           "touch");
                                  run(i, turn_of(memory, i, turn, m));
                              }
                      }) /
           layers;
}

static void run_ours(int, const cuda_gemm_job &job) { must(cuda_gemm(stream, &job), "launch"); }

static void time_at(cuda_cublaslt *library, const bench_memory &memory, int m)
{
    best_choice choices[5] = {};
    double sum[2] = {0, 0};
    for (int i = 0; i < 5; i++) {
        if (i == 4 && m > 512)
            continue;
        const shape &s = model[i];
        double us = time_graph(calls_for(i, m), [&](int turn) {
            cuda_gemm_job job = turn_of(memory, i, turn, m);
            must(cuda_gemm(stream, &job), "launch");
        });
        if (library != NULL)
            choices[i] = time_cublaslt(library, memory, i, m);
        double bytes = rows_of(s) * s.k * 2, flops = 2.0 * m * rows_of(s) * s.k;
        char name[96];
        cuda_gemm_job job = turn_of(memory, i, 0, m);
        name_plan(cuda_gemm_choose(&job, &chip), name);
        printf("M %5d %-19s %8.1f us %5.2f TB/s %4.0f TFLOP/s   cuBLASLt %8.1f us, %5.3f of it   %s\n", m,
               s.name, us, bytes / us / 1e6, flops / us / 1e6, choices[i].us,
               choices[i].us > 0 ? us / choices[i].us : 0, name);
        sum[0] += i < 4 ? us : 0;
        sum[1] += i < 4 ? choices[i].us : 0;
    }
    layer_runner theirs = [&](int i, const cuda_gemm_job &job) {
        cuda_gemm_job one = merged(job);
        if (library != NULL)
            cuda_cublaslt_run(choices[i].product, choices[i].choice, stream, &one);
    };
    for (int fresh = 0; fresh < 2; fresh++) {
        double a = 0, b = 0; /* in turn: what ran before heats the card and slows the first */
        for (int turn = 0; turn < 3; turn++) {
            double ours = time_layers(memory, m, 15, fresh != 0, run_ours);
            double others = library != NULL ? time_layers(memory, m, 15, fresh != 0, theirs) : 0;
            a = turn == 0 ? ours : std::min(a, ours);
            b = turn == 0 ? others : std::min(b, others);
        }
        printf("M %5d layer in a row%s %8.1f us (sum %.1f)   cuBLASLt %8.1f us (sum %.1f), %5.3f of it\n", m,
               fresh ? ", x made before each" : "", a, sum[0], b, sum[1], b > 0 ? a / b : 0);
    }
    fflush(stdout);
    for (int i = 0; i < 5; i++)
        cuda_cublaslt_free(choices[i].product);
}

static void time_cuts(const bench_memory &memory, int m, int only)
{
    for (int i = 0; i < 5; i++) {
        if (only >= 0 && i != only)
            continue;
        cuda_gemm_job job = turn_of(memory, i, 0, m);
        std::vector<std::pair<double, cuda_gemm_plan>> found;
        each_plan(job, [&](const cuda_gemm_plan &plan) {
            if (m > 256 && plan.cut.rows % 64 != 0)
                return;
            double us = time_graph(m >= 2048 ? 3 : 8, [&](int turn) {
                cuda_gemm_job j = turn_of(memory, i, turn, m);
                must(cuda_gemm_wgmma(stream, &j, &plan), "launch");
            });
            found.push_back({us, plan});
        });
        std::sort(found.begin(), found.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
        for (size_t j = 0; j < found.size() && j < 5; j++) {
            char name[96];
            name_plan(found[j].second, name);
            printf("M %d %s %.1f us %s\n", m, model[i].name, found[j].first, name);
        }
        cuda_gemm_plan plan = cuda_gemm_choose(&job, &chip);
        char name[96];
        name_plan(plan, name);
        for (size_t j = 0; j < found.size(); j++)
            if (memcmp(&found[j].second.cut, &plan.cut, sizeof(plan.cut)) == 0)
                printf("M %d %s CHOSEN %zu of %zu, %.1f us %s\n", m, model[i].name, j + 1, found.size(),
                       found[j].first, name);
        fflush(stdout);
    }
}

/* Which neighbours in a row cost more than alone. */
static void time_rows(const bench_memory &memory, int m)
{
    for (int fresh = 0; fresh < 2; fresh++)
        for (int which = 1; which < 16; which++)
            printf("M %d products %s%s%s%s%s: %.1f us\n", m, which & 1 ? "qkv " : "", which & 2 ? "o " : "",
                   which & 4 ? "gate/up " : "", which & 8 ? "down " : "", fresh ? "fresh" : "",
                   time_layers(memory, m, which, fresh != 0, run_ours));
}

int main(int argc, char **argv)
{
    int sm_count = 0;
    must(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, 0), "device");
    must(cuda_gemm_init(NULL, sm_count), "init");
    chip.clusters[0] = sm_count;
    must(cuda_gemm_wgmma_init(&chip), "init");
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    if (argc > 1 && strcmp(argv[1], "check") == 0)
        return check();
    printf("clusters of 1, 2, 4, 8 at once: %d %d %d %d\n", chip.clusters[0], chip.clusters[1],
           chip.clusters[2], chip.clusters[3]);
    bench_memory memory = memory_of(8192);
    if (argc > 2 && strcmp(argv[1], "cuts") == 0) {
        for (int i = 2; i < argc; i++)
            time_cuts(memory, atoi(argv[i]), -1);
        return 0;
    }
    if (argc > 2 && strcmp(argv[1], "rows") == 0) {
        time_rows(memory, atoi(argv[2]));
        return 0;
    }
    cuda_cublaslt *library = cuda_cublaslt_open(take(CUDA_CUBLASLT_WORKSPACE));
    printf("cuBLASLt: %s\n", library != NULL ? "best of 16 heuristics" : "not installed");
    for (int i = 2; i < argc; i++)
        time_at(library, memory, atoi(argv[i]));
    for (int m : {1, 8, 32, 64, 128, 256, 512, 2048, 8192})
        if (argc <= 2)
            time_at(library, memory, m);
    cuda_cublaslt_close(library);
    return 0;
}
