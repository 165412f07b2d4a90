// links: qr_model qr_backend qr_loader qr_quant qr_tensor qr_base
/* Every checkpoint of tests/golden/models on the GPU: logits of the recorded tokens against transformers' float32 and
 * against the CPU backend, and the greedy choice of every row, which may differ only where the recorded top two lie
 * closer than the GPU's logits are off. Further checkpoints may be named as arguments: CPU against GPU on a few
 * tokens. --ranks N: by N GPUs, what so many can share. Ends with 77 where there is no GPU. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "support/net_run.h"

#define MODELS QR_TESTS_DIR "/golden/models"

static int failures, cases, refused, ranks = 1;

static bool open_run(net_run *run, const char *path, const char *device, int32_t context, int32_t rows)
{
    qr_error err = {0};
    net_run_options options = {.path = path,
                               .device = device,
                               .dtype = -1,
                               .kv_dtype = -1,
                               .context_max = context,
                               .seqs_max = 2,
                               .block_size = 32,
                               .rows_max = rows,
                               .threads = 2,
                               .ranks = strcmp(device, "cpu") == 0 ? 1 : ranks};
    qr_status status = net_run_open(run, &options, &err);
    if (status == QR_OK)
        return true;
    if (options.ranks > 1 && status == QR_UNSUPPORTED &&
        strstr(err.message, "tensor parallelism: ") != NULL) {
        refused++;
        return false;
    }
    printf("%-34s %s: %s\n", path, device, err.message);
    failures++;
    return false;
}

typedef struct outcome {
    double error;       /* |a - b| / |b| over all rows */
    int swapped, wrong; /* rows whose greedy choice differs: within the rounding, and not */
} outcome;

static outcome compare(const float *got, const float *want, int32_t rows, int32_t vocab)
{
    outcome o = {0};
    double above = 0, below = 0;
    for (int32_t r = 0; r < rows; r++) {
        const float *g = got + (size_t)r * (size_t)vocab, *w = want + (size_t)r * (size_t)vocab;
        double worst = 0;
        for (int32_t i = 0; i < vocab; i++) {
            double d = (double)g[i] - (double)w[i];
            above += d * d;
            below += (double)w[i] * (double)w[i];
            worst = fabs(d) > worst || d != d ? fabs(d) : worst;
        }
        int32_t a = net_run_argmax(g, vocab), b = net_run_argmax(w, vocab);
        if (a != b)
            *(w[b] - w[a] <= 2 * worst ? &o.swapped : &o.wrong) += 1;
    }
    o.error = sqrt(above / below);
    return o;
}

static void run_case(const char *name, const char *path, int32_t prompt, int32_t greedy, int32_t vocab)
{
    char file[700];
    qr_file_map map;
    qr_error err = {0};
    snprintf(file, sizeof(file), MODELS "/expected/%s.bin", name);
    if (qr_file_map_open(file, &map, &err) != QR_OK) {
        printf("%s\n", err.message);
        failures++;
        return;
    }
    const int32_t *ids = (const int32_t *)(const void *)map.data;
    const float *want = (const float *)(const void *)(map.data + (size_t)(prompt + greedy) * 4);
    int32_t rows = prompt + greedy - 1;
    net_run run;
    cases++;
    snprintf(file, sizeof(file), MODELS "/%s", path);
    if (open_run(&run, file, "cuda", rows + 1, rows + 1)) {
        float *got = qr_calloc((size_t)rows * (size_t)vocab, sizeof(float));
        /* The prompt at once, then token by token: prefill and decode. */
        memcpy(got, net_run_step(&run, &(net_run_rows){0, 0, prompt, ids}, 1, true),
               (size_t)prompt * (size_t)vocab * sizeof(float));
        for (int32_t i = prompt; i < rows; i++)
            memcpy(got + (size_t)i * (size_t)vocab,
                   net_run_step(&run, &(net_run_rows){0, i, 1, ids + i}, 1, false),
                   (size_t)vocab * sizeof(float));
        outcome o = compare(got, want, rows, vocab);
        /* The same rows in one step, beside another sequence: the same bits. */
        const net_run_rows both[] = {{1, 0, 1, ids}, {0, 0, rows, ids}};
        long other = 0;
        if (net_run_step(&run, both, 1, true) != NULL) {
            net_run_close(&run);
            if (open_run(&run, file, "cuda", rows + 1, rows + 1)) {
                const float *all = net_run_step(&run, both, 2, true) + vocab;
                for (int32_t i = 0; i < rows; i++)
                    other += memcmp(all + (size_t)i * (size_t)vocab, got + (size_t)i * (size_t)vocab,
                                    (size_t)vocab * sizeof(float)) != 0;
            }
        }
        bool ok = o.error < 0.05 && o.wrong == 0 && other == 0;
        failures += !ok;
        printf("%-28s %4d rows  error %.2e  top swapped %d, wrong %d  other bits %ld  %s\n", name, rows,
               o.error, o.swapped, o.wrong, other, ok ? "ok" : "FAILED");
        qr_free(got);
        net_run_close(&run);
    }
    qr_file_map_close(&map);
}

static void run_pair(const char *path)
{
    enum { ROWS = 96 };
    net_run cpu, gpu;
    if (!open_run(&cpu, path, "cpu", 512, ROWS))
        return;
    if (open_run(&gpu, path, "cuda", 512, ROWS)) {
        int32_t ids[ROWS], vocab = qr_net_vocab(cpu.net);
        for (int i = 0; i < ROWS; i++)
            ids[i] = (int32_t)((int64_t)i * 7919 % vocab);
        const float *a = net_run_step(&gpu, &(net_run_rows){0, 0, ROWS, ids}, 1, true);
        const float *b = net_run_step(&cpu, &(net_run_rows){0, 0, ROWS, ids}, 1, true);
        outcome o = compare(a, b, ROWS, vocab);
        bool ok = o.error < 0.05 && o.wrong == 0;
        failures += !ok;
        cases++;
        printf("%-28.28s %4d rows  error %.2e  top swapped %d, wrong %d (against the CPU)  %s\n",
               strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path, ROWS, o.error, o.swapped, o.wrong,
               ok ? "ok" : "FAILED");
        net_run_close(&gpu);
    }
    net_run_close(&cpu);
}

int main(int argc, char **argv)
{
    qr_team *team;
    qr_error err = {0};
    int first = 1;
    if (argc > 2 && strcmp(argv[1], "--ranks") == 0) {
        ranks = (int)strtol(argv[2], NULL, 10);
        first = 3;
    }
    if (qr_team_open(&(qr_device_options){.device = "cuda"}, ranks, &team, &err) != QR_OK) {
        printf("skipped: %s\n", err.message);
        return 77;
    }
    qr_team_close(team);
    FILE *file = fopen(MODELS "/manifest.txt", "r");
    char line[600], name[64], path[400];
    int prompt, greedy, vocab;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (line[0] != '#' && sscanf(line, "%63s %399s %d %d %d", name, path, &prompt, &greedy, &vocab) == 5)
            run_case(name, path, prompt, greedy, vocab);
    if (file != NULL)
        fclose(file);
    for (int i = first; i < argc; i++)
        run_pair(argv[i]);
    printf("%d checkpoints by %d, %d of them refused, %d failed\n", cases, ranks, refused, failures);
    return cases == refused || failures > 0;
}
