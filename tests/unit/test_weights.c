// links: qr_loader
/* Weights from files: folders, shards, split sets, and the real files of ../shared. */
#include "loader/gguf.h"
#include "loader/weights.h"
#include "support/cmocka.h"
#include "support/loader_images.h"

static qr_error error;
static temp_dir dir;

static int make_dir(void **state)
{
    (void)state;
    temp_dir_init(&dir);
    memset(&error, 0, sizeof(error));
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    temp_dir_release(&dir);
    return 0;
}

static void assert_refused(const char *path, qr_status status, const char *message)
{
    qr_weights *w = NULL;
    assert_int_equal(qr_weights_open(path, &w, &error), status);
    assert_null(w);
    if (strstr(error.message, message) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, message);
}

/* One F32 tensor of two values whose first byte is 0. */
static void write_shard(const char *file, const char *tensor)
{
    qr_buf image = {0};
    char header[256];
    snprintf(header, sizeof(header), "{\"%s\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
             tensor);
    put_safetensors(&image, header, 8);
    temp_dir_write(&dir, file, image.data, image.len);
    qr_buf_release(&image);
}

static void a_folder_with_one_file_opens(void **state)
{
    (void)state;
    write_shard("model.safetensors", "a");
    qr_weights *w;
    assert_int_equal(qr_weights_open(dir.path, &w, &error), QR_OK);
    assert_int_equal(qr_weights_container(w), QR_CONTAINER_SAFETENSORS);
    assert_string_equal(qr_weights_path(w), dir.path);
    assert_int_equal(qr_weights_count(w), 1);
    assert_string_equal(qr_weights_at(w, 0)->name, "a");
    assert_null(qr_weights_gguf(w));
    qr_weights_will_need(w);
    qr_weights_forget(w, qr_weights_at(w, 0)->data, 8);
    assert_int_equal(qr_weights_at(w, 0)->data[7], 7); /* still readable */
    qr_weights_close(w);
    qr_weights_close(NULL);
}

static void shards_open_by_their_index(void **state)
{
    (void)state;
    write_shard("model-00001-of-00002.safetensors", "a");
    write_shard("model-00002-of-00002.safetensors", "b");
    temp_dir_write_text(
        &dir, "model.safetensors.index.json",
        "{\"metadata\":{\"total_size\":16},\"weight_map\":{"
        "\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"model-00002-of-00002.safetensors\"}}");
    qr_weights *w;
    assert_int_equal(qr_weights_open(dir.path, &w, &error), QR_OK);
    assert_int_equal(qr_weights_count(w), 2);
    assert_non_null(strstr(qr_weights_find(w, "b")->file, "model-00002-of-00002.safetensors"));
    assert_int_equal(qr_weights_bytes(w), 16);
    qr_weights_close(w);
}

static void write_index(const char *text) { temp_dir_write_text(&dir, "model.safetensors.index.json", text); }

static void a_wrong_index_is_refused(void **state)
{
    (void)state;
    write_shard("one.safetensors", "a");
    write_index("{\"weight_map\":{\"a\":\"two.safetensors\"}}");
    assert_refused(dir.path, QR_NOT_FOUND, "names two.safetensors, which is not there");
    write_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\"}}");
    assert_refused(dir.path, QR_BAD_FILE, "tensor b: not in one.safetensors");
    write_index("{\"weight_map\":{\"a\":\"../one.safetensors\"}}");
    assert_refused(dir.path, QR_BAD_FILE, "\"../one.safetensors\" is not the name of a file beside it");
    write_index("{\"weight_map\":{}}");
    assert_refused(dir.path, QR_BAD_FILE, "no weight_map");
    write_index("{\"weight_map\":{\"a\":5}}");
    assert_refused(dir.path, QR_BAD_FILE, "index.json");
    write_index("{\"weight_map\"");
    assert_refused(dir.path, QR_BAD_FILE, "index.json");
    write_shard("two.safetensors", "a");
    write_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    assert_refused(dir.path, QR_BAD_FILE, "tensor a: is there twice, first in");
}

static void missing_and_foreign_paths_are_refused(void **state)
{
    (void)state;
    assert_refused(dir.path, QR_NOT_FOUND, "neither model.safetensors nor model.safetensors.index.json");
    assert_refused(temp_dir_at(&dir, "nothing"), QR_NOT_FOUND, "nothing");
    assert_refused(temp_dir_write_text(&dir, "x.bin", "hello"), QR_BAD_FILE,
                   "neither a folder nor a GGUF file");
    assert_refused(temp_dir_write_text(&dir, "x.safetensors", ""), QR_BAD_FILE, "0 bytes are too few");
    assert_refused(temp_dir_write_text(&dir, "x.gguf", ""), QR_BAD_FILE, "neither");
}

static void an_empty_folder_opens_for_dummy_weights(void **state)
{
    (void)state;
    qr_weights *w;
    assert_int_equal(qr_weights_open_empty(dir.path, &w, &error), QR_OK);
    assert_int_equal(qr_weights_count(w), 0);
    qr_weights_close(w);
    assert_int_equal(qr_weights_open_empty(temp_dir_at(&dir, "no"), &w, &error), QR_NOT_FOUND);
}

/* ---- Split GGUF ------------------------------------------------------------------------------------ */

static const char *write_split(const char *file, uint32_t number, uint32_t count, uint32_t tensors,
                               const char *tensor)
{
    qr_buf image = {0};
    put_gguf_head(&image, 3, 1, 3);
    put_gguf_u32(&image, "split.no", number);
    put_gguf_u32(&image, "split.count", count);
    put_gguf_u32(&image, "split.tensors.count", tensors);
    put_gguf_tensor(&image, tensor, 1, 2, 0, 0, 0);
    put_gguf_data(&image, 8);
    temp_dir_write(&dir, file, image.data, image.len);
    qr_buf_release(&image);
    return dir.last;
}

static void a_split_set_opens_by_its_first_file(void **state)
{
    (void)state;
    write_split("m-00002-of-00002.gguf", 1, 2, 2, "b");
    const char *first = write_split("m-00001-of-00002.gguf", 0, 2, 2, "a");
    qr_weights *w;
    assert_int_equal(qr_weights_open(first, &w, &error), QR_OK);
    assert_int_equal(qr_weights_container(w), QR_CONTAINER_GGUF);
    assert_int_equal(qr_weights_count(w), 2);
    assert_non_null(strstr(qr_weights_find(w, "b")->file, "m-00002-of-00002.gguf"));
    assert_non_null(qr_weights_gguf(w));
    qr_weights_close(w);
    assert_refused(temp_dir_at(&dir, "m-00002-of-00002.gguf"), QR_BAD_FILE, "opens by its first file");
}

static void a_wrong_split_set_is_refused(void **state)
{
    (void)state;
    assert_refused(write_split("m-00001-of-00002.gguf", 0, 2, 2, "a"), QR_NOT_FOUND, "m-00002-of-00002.gguf");
    write_split("m-00002-of-00002.gguf", 1, 3, 2, "b");
    assert_refused(temp_dir_at(&dir, "m-00001-of-00002.gguf"), QR_BAD_FILE,
                   "part 2 of 3, needed is part 2 of 2");
    write_split("m-00002-of-00002.gguf", 1, 2, 2, "a");
    assert_refused(temp_dir_at(&dir, "m-00001-of-00002.gguf"), QR_BAD_FILE, "tensor a: is there twice");
    write_split("m-00002-of-00002.gguf", 1, 2, 9, "b");
    assert_refused(write_split("m-00001-of-00002.gguf", 0, 2, 9, "a"), QR_BAD_FILE, "is 9, its files hold 2");
    assert_refused(write_split("other.gguf", 0, 2, 2, "a"), QR_BAD_FILE,
                   "does not end in -00001-of-00002.gguf");
    assert_refused(write_split("m-00001-of-99999.gguf", 0, 99999, 2, "a"), QR_BAD_FILE, "99999 files");
    qr_weights *w;
    assert_int_equal(qr_weights_open(write_split("single.gguf", 0, 0, 1, "a"), &w, &error), QR_OK);
    qr_weights_close(w);
}

/* ---- Real files ------------------------------------------------------------------------------------ */

static void the_same_model_reads_the_same_from_both_containers(void **state)
{
    (void)state;
    char hf[512], file[512];
    if (shared_path(hf, sizeof(hf), "data/weights/stories260K/hf") == NULL ||
        shared_path(file, sizeof(file), "data/weights/stories260K/gguf/stories260K-f32.gguf") == NULL) {
        print_message("skipped: no ../shared/data/weights\n");
        skip();
    }
    qr_weights *a, *b;
    assert_int_equal(qr_weights_open(hf, &a, &error), QR_OK);
    assert_int_equal(qr_weights_open(file, &b, &error), QR_OK);
    static const char *const names[][2] = {{"model.embed_tokens.weight", "token_embd.weight"},
                                           {"model.norm.weight", "output_norm.weight"},
                                           {"model.layers.4.mlp.down_proj.weight", "blk.4.ffn_down.weight"},
                                           {"model.layers.2.self_attn.v_proj.weight", "blk.2.attn_v.weight"}};
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        const qr_weights_entry *x = qr_weights_find(a, names[i][0]), *y = qr_weights_find(b, names[i][1]);
        assert_non_null(x);
        assert_non_null(y);
        assert_int_equal(x->n_dims, y->n_dims);
        assert_memory_equal(x->shape, y->shape, sizeof(int64_t) * (size_t)x->n_dims);
        assert_int_equal(x->bytes, y->bytes);
        assert_memory_equal(x->data, y->data, x->bytes);
    }
    qr_weights_close(a);
    qr_weights_close(b);
}

static void a_download_that_broke_off_is_refused(void **state)
{
    (void)state;
    char path[512];
    if (shared_path(path, sizeof(path), "data/weights/broken/all-MiniLM-L6-v2.truncated.safetensors") ==
        NULL) {
        print_message("skipped: no ../shared/data/weights\n");
        skip();
    }
    assert_refused(path, QR_BAD_FILE, "lie outside the 840552 bytes of data (truncated?)");
}

#define WITH_DIR(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_DIR(a_folder_with_one_file_opens),
        WITH_DIR(shards_open_by_their_index),
        WITH_DIR(a_wrong_index_is_refused),
        WITH_DIR(missing_and_foreign_paths_are_refused),
        WITH_DIR(an_empty_folder_opens_for_dummy_weights),
        WITH_DIR(a_split_set_opens_by_its_first_file),
        WITH_DIR(a_wrong_split_set_is_refused),
        cmocka_unit_test(the_same_model_reads_the_same_from_both_containers),
        cmocka_unit_test(a_download_that_broke_off_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
