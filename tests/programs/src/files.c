// Files, directories and file mappings through the C library. Runs in a directory with text, bytes, tree and empty.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void tell(const char *what, int result, int wanted) {
    printf("%s %d %d\n", what, result, errno == wanted);
}

static int by_name(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static void list(const char *path, int depth) {
    DIR *directory = opendir(path);
    if (!directory) {
        printf("%s: %s\n", path, strerror(errno));
        return;
    }
    char *names[64];
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory));)
        names[count++] = strdup(entry->d_name);
    closedir(directory);
    qsort(names, (size_t)count, sizeof *names, by_name);
    for (int i = 0; i < count; i++) {
        char below[512];
        struct stat status;
        snprintf(below, sizeof below, "%s/%s", path, names[i]);
        if (names[i][0] != '.' && !lstat(below, &status)) {
            printf("%*s%s %o %lld\n", depth * 2, "", names[i], status.st_mode & S_IFMT,
                   S_ISDIR(status.st_mode) ? 0ll : (long long)status.st_size);
            if (S_ISDIR(status.st_mode))
                list(below, depth + 1);
        }
        free(names[i]);
    }
}

static void mapped(void) {
    int file = open("text", O_RDONLY);
    struct stat status;
    fstat(file, &status);
    const unsigned char *bytes = mmap(0, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    unsigned long sum = 0;
    for (long i = 0; i < status.st_size; i++)
        sum = sum * 131 + bytes[i];
    printf("%lld bytes %lx and zeros behind %d\n", (long long)status.st_size, sum, bytes[status.st_size]);
    long page = sysconf(_SC_PAGESIZE), at = page < status.st_size ? page : 0;
    unsigned char *own = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, at);
    unsigned char before = own[0];
    own[0] = (unsigned char)~before;
    printf("private %d %d\n", own[0] == (unsigned char)~before, bytes[at] == before);
    void *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    tell("shared for writing", shared == MAP_FAILED, EACCES);
    char first[8] = {0}, second[8] = {0};
    struct iovec pieces[] = {{first, 4}, {second, 7}};
    printf("readv %zd", readv(file, pieces, 2));
    printf(" <%s> <%s>", first, second);
    printf(" pread %zd seek %lld\n", pread(file, first, 4, 100), (long long)lseek(file, 0, SEEK_CUR));
    close(file);
}

static void written(void) {
    FILE *scratch = fopen("scratch", "w+");
    if (!scratch) {
        perror("scratch");
        return;
    }
    fprintf(scratch, "%d %s\n", 42, "kept");
    rewind(scratch);
    int number = 0;
    char word[16] = {0};
    printf("read back %d", fscanf(scratch, "%d %15s", &number, word));
    printf(" %d %s\n", number, word);
    printf("grown %d\n", ftruncate(fileno(scratch), 10000));
    char *shared = mmap(0, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(scratch), 0);
    memcpy(shared + 9000, "mapped", 6);
    msync(shared, 10000, MS_SYNC);
    printf("through the file %zd", pread(fileno(scratch), word, 6, 9000));
    printf(" %.6s\n", word);
    fclose(scratch);
    memcpy(shared, "17", 2);
    munmap(shared, 10000);
    printf("renamed %d", rename("scratch", "tree/moved"));
    scratch = fopen("tree/moved", "r");
    printf(" %d", fscanf(scratch, "%d", &number));
    printf(" %d\n", number);
    fclose(scratch);
    printf("removed %d", unlink("tree/moved"));
    tell("", access("tree/moved", F_OK), ENOENT);
}

int main(int count, char **arguments) {
    list(".", 0);
    mapped();
    FILE *text = fopen("text", "r");
    char line[256];
    int lines = 0;
    while (fgets(line, sizeof line, text))
        lines++;
    printf("%d lines, end %d, last %s", lines, feof(text) != 0, line);
    fseek(text, -5, SEEK_END);
    printf("tail %zu", fread(line, 1, sizeof line, text));
    printf(" %ld\n", ftell(text));
    fclose(text);
    tell("missing:", open("gone", O_RDONLY), ENOENT);
    tell("not a directory:", open("text/x", O_RDONLY), ENOTDIR);
    char target[64] = {0};
    printf("link %zd %s\n", readlink("tree/link", target, sizeof target - 1), target);
    written();
    int ends[2];
    if (!pipe(ends)) {
        printf("pipe %zd", write(ends[1], "through", 7));
        printf(" %zd %.7s\n", read(ends[0], line, sizeof line), line);
    }
    struct tm *day = gmtime(&(time_t){86400 * 365});
    strftime(line, sizeof line, "%Y-%m-%d %H:%M:%S %a %j", day);
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    nanosleep(&(struct timespec){0, 1000000}, 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    long long slept = (end.tv_sec - start.tv_sec) * 1000000000ll + end.tv_nsec - start.tv_nsec;
    printf("%s %lld slept %d\n", line, (long long)mktime(day), slept >= 1000000);
    for (int i = 1; i < count; i++)
        printf("argument %s\n", arguments[i]);
    printf("HOME %s gone %d\n", getenv("HOME"), getenv("GONE") == NULL);
    int number = 0;
    while (scanf("%d", &number) == 1)
        printf("read %d\n", number);
    fprintf(stderr, "to stderr\n");
    return 37;
}
