// links: qr_loader
/* Downloads from a server on this machine that speaks the hub's routes: choice of files, cache layout, resuming,
 * checks, tokens and redirects, offline. */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/hash.h"
#include "base/mem.h"
#include "loader/hub.h"
#include "support/cmocka.h"
#include "support/hub_server.h"
#include "support/loader_images.h"

#define COMMIT "0123456789abcdef0123456789abcdef01234567"

static temp_dir cache;
static hub_server *server;
static qr_error error;
static char *path;
static char weights_sha256[65];
static char weights[100000]; /* the large file */

static int begin(void **state)
{
    (void)state;
    static const char *const vars[] = {"HF_TOKEN",    "HF_HOME",       "HF_HUB_CACHE",   "HF_HUB_OFFLINE",
                                       "HF_ENDPOINT", "HF_TOKEN_PATH", "XDG_CACHE_HOME", "http_proxy",
                                       "HTTP_PROXY",  "all_proxy"};
    for (size_t i = 0; i < QR_COUNT_OF(vars); i++)
        unsetenv(vars[i]);
    temp_dir_init(&cache);
    setenv("HOME", cache.path, 1);
    uint64_t seed = 5;
    for (size_t i = 0; i < sizeof(weights); i++)
        weights[i] = (char)(seed = seed * 6364136223846793005u + 1442695040888963407u, seed >> 60);
    qr_sha256 sha;
    uint8_t digest[32];
    qr_sha256_init(&sha);
    qr_sha256_update(&sha, weights, sizeof(weights));
    qr_sha256_final(&sha, digest);
    qr_sha256_hex(digest, weights_sha256);
    server = calloc(1, sizeof(*server));
    server->repo = "org/name";
    server->commit = COMMIT;
    memset(&error, 0, sizeof(error));
    path = NULL;
    return 0;
}

static int end(void **state)
{
    (void)state;
    if (server->port != 0)
        hub_server_stop(server);
    free(server);
    qr_free(path);
    temp_dir_release(&cache);
    return 0;
}

static hub_server_file *add_file(hub_server *s, const char *name, const char *text)
{
    hub_server_file *file = &s->files[s->file_count++];
    *file = (hub_server_file){.path = name, .content = text, .bytes = strlen(text)};
    return file;
}

static hub_server_file *add_large(hub_server *s, const char *name)
{
    hub_server_file *file = &s->files[s->file_count++];
    *file = (hub_server_file){
        .path = name, .content = weights, .bytes = sizeof(weights), .large = true, .sha256 = weights_sha256};
    return file;
}

/* Pulls from the server; `path` holds the result. */
static qr_status pull_name(const char *name, const char *token, bool offline)
{
    qr_hub_options options;
    qr_hub_options_init(&options);
    options.repo = name;
    options.endpoint = server->port != 0 ? server->url : "http://127.0.0.1:1";
    options.token = token;
    options.cache_dir = cache.path;
    options.offline = offline;
    qr_free(path);
    path = NULL;
    return qr_hub_pull(&options, &path, &error);
}

static void assert_pulled(const char *name)
{
    if (pull_name(name, NULL, false) != QR_OK)
        fail_msg("%s", error.message);
}

static void assert_says(const char *text)
{
    if (strstr(error.message, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, text);
}

static const char *in_snapshot(const char *name)
{
    char at[128];
    snprintf(at, sizeof(at), "models--org--name/snapshots/" COMMIT "/%s", name);
    return temp_dir_at(&cache, at);
}

static void assert_content(const char *file, const char *content, size_t bytes)
{
    qr_buf have = {0};
    if (qr_file_read(file, 1 << 20, &have, &error) != QR_OK)
        fail_msg("%s", error.message);
    assert_int_equal(have.len, bytes);
    assert_memory_equal(have.data, content, bytes);
    qr_buf_release(&have);
}

static int count_requests(const char *part)
{
    int count = 0;
    for (int i = 0; i < server->request_count; i++)
        count += strstr(server->requests[i].path, part) != NULL;
    return count;
}

static void write_part(size_t bytes, const char *data)
{
    char name[128];
    qr_dir_create(temp_dir_at(&cache, "models--org--name/blobs"), NULL);
    snprintf(name, sizeof(name), "models--org--name/blobs/%s.incomplete", weights_sha256);
    temp_dir_write(&cache, name, data, bytes);
}

static bool has_part(void)
{
    char name[128];
    snprintf(name, sizeof(name), "models--org--name/blobs/%s.incomplete", weights_sha256);
    return qr_file_exists(temp_dir_at(&cache, name));
}

/* ---- Tests ----------------------------------------------------------------------------------------- */

static void a_model_arrives_in_the_standard_layout(void **state)
{
    (void)state;
    add_file(server, "config.json", "{\"a\":1}");
    add_file(server, "tokenizer.json", "{}");
    add_file(server, "README.md", "no");
    add_file(server, "onnx/model.onnx", "no");
    add_file(server, "consolidated.safetensors", "no");
    add_large(server, "model.safetensors");
    hub_server_start(server);
    assert_pulled("org/name");
    assert_string_equal(path, (temp_dir_at(&cache, "models--org--name/snapshots/" COMMIT)));
    assert_content(in_snapshot("config.json"), "{\"a\":1}", 7);
    assert_content(in_snapshot("model.safetensors"), weights, sizeof(weights));
    assert_false(qr_file_exists(in_snapshot("README.md")));
    assert_false(qr_file_exists(in_snapshot("consolidated.safetensors")));
    assert_content(temp_dir_at(&cache, "models--org--name/refs/main"), COMMIT, 40);
    char target[256] = {0}, want[256];
    assert_true(readlink(in_snapshot("model.safetensors"), target, sizeof(target) - 1) > 0);
    snprintf(want, sizeof(want), "../../blobs/%s", weights_sha256);
    assert_string_equal(target, want);
    assert_false(has_part());
    assert_int_equal(server->request_count, 4);
}

static void a_second_pull_asks_only_for_the_description(void **state)
{
    (void)state;
    add_file(server, "config.json", "{}");
    add_large(server, "model.safetensors");
    hub_server_start(server);
    assert_pulled("org/name");
    assert_int_equal(server->request_count, 3);
    assert_pulled("org/name");
    assert_int_equal(server->request_count, 4);
}

static void a_broken_line_is_resumed_where_it_broke(void **state)
{
    (void)state;
    hub_server_file *file = add_large(server, "model.safetensors");
    add_file(server, "config.json", "{}");
    file->break_after = 30000;
    file->breaks = 2;
    hub_server_start(server);
    assert_pulled("org/name");
    assert_content(in_snapshot("model.safetensors"), weights, sizeof(weights));
    assert_string_equal(server->requests[1].range, "");
    assert_string_equal(server->requests[2].range, "bytes=30000-");
    assert_int_equal(server->requests[2].code, 206);
    assert_string_equal(server->requests[3].range, "bytes=60000-");
}

static void an_earlier_partial_download_is_continued(void **state)
{
    (void)state;
    add_large(server, "model.safetensors");
    hub_server_start(server);
    write_part(50000, weights);
    assert_pulled("org/name");
    assert_string_equal(server->requests[1].range, "bytes=50000-");
    assert_content(in_snapshot("model.safetensors"), weights, sizeof(weights));
}

static void a_server_without_ranges_sends_all_again(void **state)
{
    (void)state;
    hub_server_file *file = add_large(server, "model.safetensors");
    file->ignore_range = true;
    hub_server_start(server);
    write_part(50000, weights + 7); /* other bytes than the file's: must be replaced */
    assert_pulled("org/name");
    assert_int_equal(server->requests[1].code, 200);
    assert_content(in_snapshot("model.safetensors"), weights, sizeof(weights));
}

static void a_line_that_never_recovers_is_an_error_that_keeps_what_came(void **state)
{
    (void)state;
    hub_server_file *file = add_large(server, "model.safetensors");
    file->fail_code = 503;
    file->fails = 100;
    hub_server_start(server);
    write_part(10, weights);
    assert_int_equal(pull_name("org/name", NULL, false), QR_NETWORK);
    assert_says("answers 503 for model.safetensors");
    assert_true(has_part());
    assert_null(path);
    assert_false(qr_file_exists(temp_dir_at(&cache, "models--org--name/refs/main")));
}

static void a_busy_server_is_asked_again(void **state)
{
    (void)state;
    hub_server_file *file = add_large(server, "model.safetensors");
    file->fail_code = 500;
    file->fails = 2;
    hub_server_start(server);
    assert_pulled("org/name");
    assert_content(in_snapshot("model.safetensors"), weights, sizeof(weights)); /* not the error page */
}

static void wrong_contents_are_refused_and_removed(void **state)
{
    (void)state;
    hub_server_file *file = add_large(server, "model.safetensors");
    hub_server_start(server);
    write_part(sizeof(weights), weights);
    char name[128];
    snprintf(name, sizeof(name), "models--org--name/blobs/%s.incomplete", weights_sha256);
    int fd = open(temp_dir_at(&cache, name), O_WRONLY);
    assert_int_equal(pwrite(fd, "x", 1, 500), 1);
    close(fd);
    assert_int_equal(pull_name("org/name", NULL, false), QR_BAD_FILE);
    assert_says("model.safetensors: sha256 is ");
    assert_says("the hub says");
    assert_false(has_part());
    assert_false(qr_file_exists(in_snapshot("model.safetensors")));
    assert_pulled("org/name"); /* begins again from nothing */
    (void)file;
}

static void more_bytes_than_announced_are_refused(void **state)
{
    (void)state;
    hub_server_file *file = add_file(server, "config.json", "{}");
    add_large(server, "model.safetensors");
    server->info =
        "{\"sha\":\"" COMMIT "\",\"siblings\":[{\"rfilename\":\"config.json\",\"size\":1,\"blobId\":\"aa\"},"
        "{\"rfilename\":\"model.safetensors\"}]}";
    hub_server_start(server);
    assert_int_equal(pull_name("org/name", NULL, false), QR_IO_ERROR);
    assert_says("the server sends more than the file's size");
    (void)file;
}

static void the_token_goes_to_the_hub_and_nowhere_else(void **state)
{
    (void)state;
    hub_server *other = calloc(1, sizeof(*other));
    other->repo = "x/y";
    other->commit = COMMIT;
    add_large(other, "model.safetensors");
    hub_server_start(other);
    hub_server_file *file = add_large(server, "model.safetensors");
    char elsewhere[64];
    snprintf(elsewhere, sizeof(elsewhere), "http://localhost:%d", other->port);
    file->redirect_to = elsewhere;
    server->token = "hf_secret";
    hub_server_start(server);
    assert_int_equal(pull_name("org/name", "hf_secret", false), QR_OK);
    assert_string_equal(server->requests[0].authorization, "Bearer hf_secret");
    assert_string_equal(server->requests[1].authorization, "Bearer hf_secret");
    assert_int_equal(other->request_count, 1);
    assert_string_equal(other->requests[0].authorization, "");
    assert_content(in_snapshot("model.safetensors"), weights, sizeof(weights));
    hub_server_stop(other);
    free(other);
}

static void the_token_comes_from_the_environment_or_its_file(void **state)
{
    (void)state;
    add_file(server, "model.safetensors", "w");
    server->token = "hf_abc";
    hub_server_start(server);
    assert_int_equal(pull_name("org/name", NULL, false), QR_DENIED);
    assert_says("org/name: the hub answers 401: no such repository, or a private one: set HF_TOKEN");
    assert_int_equal(pull_name("org/name", "wrong", false), QR_DENIED);
    assert_says("the token does not open it");
    temp_dir_write_text(&cache, "token", "hf_abc\n");
    setenv("HF_HOME", cache.path, 1);
    assert_pulled("org/name");
    setenv("HF_TOKEN", "wrong", 1); /* comes first */
    assert_int_equal(pull_name("org/name", NULL, false), QR_DENIED);
    setenv("HF_TOKEN", "hf_abc", 1);
    assert_pulled("org/name");
    assert_int_equal(pull_name("org/name", "a\r\nX: y", false), QR_INVALID_ARGUMENT);
}

static void refusals_say_what_to_do(void **state)
{
    (void)state;
    hub_server_start(server);
    assert_int_equal(pull_name("org/other", NULL, false), QR_NOT_FOUND);
    assert_says("org/other: not found at http://127.0.0.1:");
    server->info_code = 403;
    assert_int_equal(pull_name("org/name", NULL, false), QR_DENIED);
    assert_says("accept the model's conditions");
    server->info_code = 0;
    assert_int_equal(pull_name("org/name", NULL, false), QR_NOT_FOUND);
    assert_says("has neither model.safetensors (or its shards) nor GGUF files, of 0 files");
    server->info = "<html>";
    assert_int_equal(pull_name("org/name", NULL, false), QR_BAD_FILE);
    assert_says("org/name: the hub's answer");
    server->info = "{\"sha\":\"../../x\",\"siblings\":[]}";
    assert_int_equal(pull_name("org/name", NULL, false), QR_BAD_FILE);
    server->info =
        "{\"sha\":\"" COMMIT "\",\"siblings\":[{\"rfilename\":\"../../etc/x\",\"size\":1,\"blobId\":\"a\"}]}";
    assert_int_equal(pull_name("org/name", NULL, false), QR_BAD_FILE);
    assert_says("unsafe name: \"../../etc/x\"");
}

static void a_file_that_the_description_leaves_open_is_asked_for_by_head(void **state)
{
    (void)state;
    hub_server *other = calloc(1, sizeof(*other));
    other->repo = "x/y";
    other->commit = COMMIT;
    add_large(other, "model.safetensors");
    hub_server_start(other);
    hub_server_file *file = add_large(server, "model.safetensors");
    file->undescribed = true;
    file->redirect_to = other->url;
    hub_server_start(server);
    assert_pulled("org/name");
    assert_string_equal(server->requests[1].method, "HEAD");
    assert_int_equal(other->request_count, 1);
    char target[256] = {0};
    assert_true(readlink(in_snapshot("model.safetensors"), target, sizeof(target) - 1) > 0);
    assert_non_null(strstr(target, weights_sha256));
    hub_server_stop(other);
    free(other);
}

static void shards_come_with_their_index(void **state)
{
    (void)state;
    add_file(server, "model.safetensors.index.json", "{}");
    add_file(server, "model-00001-of-00002.safetensors", "1");
    add_file(server, "model-00002-of-00002.safetensors", "2");
    add_file(server, "adapter_model.safetensors", "no");
    add_file(server, "model-00001-of-00002.safetensors.bak", "no");
    hub_server_start(server);
    assert_pulled("org/name");
    assert_int_equal(server->request_count, 4);
    assert_content(in_snapshot("model-00002-of-00002.safetensors"), "2", 1);
}

static void gguf_files_are_chosen_by_quant_or_name(void **state)
{
    (void)state;
    add_file(server, "README.md", "no");
    add_file(server, "m-Q8_0.gguf", "8");
    add_file(server, "m-Q4_K_M.gguf", "4");
    add_file(server, "mmproj-m-Q4_K_M.gguf", "no");
    add_file(server, "big/m-F16-00001-of-00002.gguf", "f1");
    add_file(server, "big/m-F16-00002-of-00002.gguf", "f2");
    hub_server_start(server);
    assert_pulled("org/name");
    assert_string_equal(path, in_snapshot("m-Q4_K_M.gguf"));
    assert_pulled("org/name:q8_0");
    assert_string_equal(path, in_snapshot("m-Q8_0.gguf"));
    assert_pulled("org/name/m-Q8_0.gguf");
    assert_string_equal(path, in_snapshot("m-Q8_0.gguf"));
    assert_pulled("org/name:F16");
    assert_string_equal(path, in_snapshot("big/m-F16-00001-of-00002.gguf"));
    assert_content(in_snapshot("big/m-F16-00002-of-00002.gguf"), "f2", 2);
    assert_int_equal(pull_name("org/name:Q4_K", NULL, false), QR_NOT_FOUND);
    assert_says("org/name: has no GGUF file Q4_K");
    assert_int_equal(pull_name("org/name/no.gguf", NULL, false), QR_NOT_FOUND);
}

static void names_that_are_none_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"name",
                                        "org/",
                                        "/name",
                                        "org/name/x",
                                        "org/../name.gguf",
                                        "org/name:",
                                        "a b/c",
                                        "org/name/../../x.gguf",
                                        "../x/y.gguf",
                                        "org/name:a/b",
                                        "org/na me"};
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        assert_int_equal(pull_name(names[i], NULL, false), QR_INVALID_ARGUMENT);
        assert_says("is not ORG/NAME");
    }
}

static void offline_uses_the_cache_and_says_when_it_cannot(void **state)
{
    (void)state;
    add_file(server, "config.json", "{}");
    add_large(server, "model.safetensors");
    hub_server_start(server);
    assert_int_equal(pull_name("org/name", NULL, true), QR_NOT_FOUND);
    assert_says("org/name: offline (HF_HUB_OFFLINE), and revision main is not in the cache");
    assert_int_equal(server->request_count, 0);
    assert_pulled("org/name");
    int asked = server->request_count;
    setenv("HF_HUB_OFFLINE", "1", 1);
    assert_pulled("org/name");
    assert_string_equal(path, (temp_dir_at(&cache, "models--org--name/snapshots/" COMMIT)));
    assert_int_equal(server->request_count, asked);
    assert_int_equal(pull_name("org/name:Q8_0", NULL, false), QR_NOT_FOUND);
    assert_says("offline, and the cache");
}

static void an_unreachable_hub_falls_back_to_the_cache(void **state)
{
    (void)state;
    add_large(server, "model.safetensors");
    hub_server_start(server);
    assert_pulled("org/name");
    hub_server_stop(server);
    server->port = 0; /* pull_name then asks a port where nobody listens */
    assert_pulled("org/name");
    assert_int_equal(pull_name("org/never", NULL, false), QR_NETWORK);
    assert_says("http://127.0.0.1:1/api/models/org/never");
}

static void a_download_of_another_program_is_found(void **state)
{
    (void)state;
    add_large(server, "model.safetensors");
    hub_server_start(server);
    qr_dir_create(temp_dir_at(&cache, "models--org--name/blobs"), NULL);
    char name[128];
    snprintf(name, sizeof(name), "models--org--name/blobs/%s", weights_sha256);
    temp_dir_write(&cache, name, weights, sizeof(weights));
    assert_pulled("org/name");
    assert_int_equal(count_requests("resolve"), 0);
    assert_content(in_snapshot("model.safetensors"), weights, sizeof(weights));
}

/* Holds the blob's lock for a moment, then puts the blob there, as another process would. */
static void *other_process(void *user)
{
    int fd = *(int *)user;
    usleep(200000);
    char name[128];
    temp_dir dir = cache;
    snprintf(name, sizeof(name), "models--org--name/blobs/%s", weights_sha256);
    temp_dir_write(&dir, name, weights, sizeof(weights));
    close(fd);
    return NULL;
}

static void two_pulls_at_once_download_once(void **state)
{
    (void)state;
    add_large(server, "model.safetensors");
    hub_server_start(server);
    qr_dir_create(temp_dir_at(&cache, "models--org--name/blobs"), NULL);
    qr_dir_create(temp_dir_at(&cache, ".locks/models--org--name"), NULL);
    char name[128];
    snprintf(name, sizeof(name), ".locks/models--org--name/%s.lock", weights_sha256);
    int fd = open(temp_dir_at(&cache, name), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    pthread_t thread;
    pthread_create(&thread, NULL, other_process, &fd);
    assert_pulled("org/name");
    pthread_join(thread, NULL);
    assert_int_equal(count_requests("resolve"), 0);
}

static uint64_t last_done, last_total;
static int progress_calls;
static void on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    assert_string_equal(user, "user");
    assert_string_equal(what, "model.safetensors");
    assert_true(done >= last_done);
    last_done = done;
    last_total = total;
    progress_calls++;
}

static void progress_counts_up_to_the_size(void **state)
{
    (void)state;
    add_large(server, "model.safetensors");
    hub_server_start(server);
    qr_hub_options options;
    qr_hub_options_init(&options);
    options.repo = "org/name";
    options.endpoint = server->url;
    options.cache_dir = cache.path;
    options.progress = on_progress;
    options.progress_user = (void *)(uintptr_t) "user";
    last_done = last_total = 0;
    progress_calls = 0;
    assert_int_equal(qr_hub_pull(&options, &path, &error), QR_OK);
    assert_true(progress_calls > 0);
    assert_int_equal(last_done, sizeof(weights));
    assert_int_equal(last_total, sizeof(weights));
}

#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(a_model_arrives_in_the_standard_layout),
        WITH_SERVER(a_second_pull_asks_only_for_the_description),
        WITH_SERVER(a_broken_line_is_resumed_where_it_broke),
        WITH_SERVER(an_earlier_partial_download_is_continued),
        WITH_SERVER(a_server_without_ranges_sends_all_again),
        WITH_SERVER(a_line_that_never_recovers_is_an_error_that_keeps_what_came),
        WITH_SERVER(a_busy_server_is_asked_again),
        WITH_SERVER(wrong_contents_are_refused_and_removed),
        WITH_SERVER(more_bytes_than_announced_are_refused),
        WITH_SERVER(the_token_goes_to_the_hub_and_nowhere_else),
        WITH_SERVER(the_token_comes_from_the_environment_or_its_file),
        WITH_SERVER(refusals_say_what_to_do),
        WITH_SERVER(a_file_that_the_description_leaves_open_is_asked_for_by_head),
        WITH_SERVER(shards_come_with_their_index),
        WITH_SERVER(gguf_files_are_chosen_by_quant_or_name),
        WITH_SERVER(names_that_are_none_are_refused),
        WITH_SERVER(offline_uses_the_cache_and_says_when_it_cannot),
        WITH_SERVER(an_unreachable_hub_falls_back_to_the_cache),
        WITH_SERVER(a_download_of_another_program_is_found),
        WITH_SERVER(two_pulls_at_once_download_once),
        WITH_SERVER(progress_counts_up_to_the_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
