/* main() of a fuzz target built without libFuzzer: runs every file of the folders and files given, so that
 * each corpus is a regression test with any compiler. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat info;
    if (file == NULL || fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode)) {
        if (file != NULL)
            fclose(file);
        return 0;
    }
    size_t bytes = (size_t)info.st_size;
    uint8_t *data = malloc(bytes + 1);
    if (data != NULL && fread(data, 1, bytes, file) == bytes)
        LLVMFuzzerTestOneInput(data, bytes);
    free(data);
    fclose(file);
    return 1;
}

static int replay_path(const char *path)
{
    DIR *dir = opendir(path);
    if (dir == NULL)
        return replay_file(path);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char name[4096];
        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        count += replay_file(name);
    }
    closedir(dir);
    return count;
}

int main(int argc, char **argv)
{
    int count = 0;
    for (int i = 1; i < argc; i++)
        count += replay_path(argv[i]);
    printf("%d inputs replayed\n", count);
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    return 0;
}
