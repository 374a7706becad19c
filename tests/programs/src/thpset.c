// Root chooses in /sys where huge pages come: what is written counts at once, and what is no setting is refused.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FOLDER "/sys/kernel/mm/transparent_hugepage/"
#define SIZE (8l << 20)

static void show(const char *name) {
    char path[128], text[256];
    snprintf(path, sizeof path, FOLDER "%s", name);
    int fd = open(path, O_RDONLY);
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    printf("%s: %.*s", name, (int)(got < 0 ? 0 : got), text);
}

static void set(const char *name, const char *value) {
    char path[128];
    snprintf(path, sizeof path, FOLDER "%s", name);
    int fd = open(path, O_WRONLY);
    ssize_t done = fd < 0 ? -1 : write(fd, value, strlen(value));
    if (done != (ssize_t)strlen(value))
        printf("%s = %s: %s\n", name, value, errno == EINVAL ? "EINVAL" : errno == EACCES ? "EACCES" : "?");
    if (fd >= 0)
        close(fd);
}

// KiB of huge pages that a mapping has
static long huge(char *at, const char *name) {
    char line[256];
    long found = -1, kib;
    int inside = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    while (fgets(line, sizeof line, file)) {
        unsigned long low, high;
        if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
            inside = low <= (unsigned long)at && (unsigned long)at < high;
        else if (inside && !strncmp(line, name, strlen(name)) && sscanf(line + strlen(name), ": %ld", &kib) == 1)
            found = kib;
    }
    fclose(file);
    return found;
}

static char *mapped(int flags) {
    char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    return (char *)(((unsigned long)at + (2 << 20) - 1) & -(2l << 20));
}

// What one store brings: KiB of private memory, in huge pages, and of shared memory in huge pages
static void bring(const char *when, int advised) {
    char *own = mapped(MAP_PRIVATE), *shared = mapped(MAP_SHARED);
    if (advised)
        madvise(own, 2 << 20, MADV_HUGEPAGE), madvise(shared, 2 << 20, MADV_HUGEPAGE);
    *own = *shared = 1;
    printf("%s: %ld KiB, %ld in huge pages, %ld shared\n", when, huge(own, "Rss"), huge(own, "AnonHugePages"),
           huge(shared, "ShmemPmdMapped"));
    munmap(own, 2 << 20), munmap(shared, 2 << 20);
}

int main(void) {
    show("enabled"), show("shmem_enabled"), show("defrag"), show("use_zero_page");
    bring("at first", 1);
    char *before = mapped(MAP_PRIVATE);
    *before = 1;
    set("enabled", "always\n");
    set("shmem_enabled", "advise");
    show("enabled"), show("shmem_enabled");
    bring("always", 0);
    bring("always, advised", 1);
    set("enabled", "madvise");
    bring("madvise", 0);
    bring("madvise, advised", 1);
    set("hugepages-2048kB/enabled", "never");
    set("hugepages-64kB/enabled", "always\n");
    show("hugepages-64kB/enabled");
    bring("runs of 64 KiB", 1);
    before[1 << 20] = 1;  // in a mapping that was there
    printf("and before: %ld KiB\n", huge(before, "Rss"));
    set("hugepages-64kB/enabled", "inherit");
    bring("runs, if advised", 0);
    set("hugepages-64kB/enabled", "never");
    set("shmem_enabled", "deny");
    bring("neither", 1);

    static const char *const wrong[][2] = {
        {"enabled", "sometimes"}, {"enabled", ""}, {"enabled", "always never"}, {"enabled", " always"},
        {"enabled", "inherit"}, {"shmem_enabled", "madvise"}, {"defrag", "later"},
        {"hugepages-64kB/enabled", "defer"}, {"hugepages-64kB/shmem_enabled", "force"},
        {"use_zero_page", "2"}, {"use_zero_page", "yes"}, {"khugepaged/defrag", "2"},
        {"khugepaged/pages_to_scan", "0"}, {"khugepaged/pages_to_scan", "4294967296"},
        {"khugepaged/max_ptes_none", "512"}, {"khugepaged/max_ptes_shared", "-1"},
        {"khugepaged/scan_sleep_millisecs", "1s"}, {"khugepaged/pages_collapsed", "1"}, {"hpage_pmd_size", "1"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        set(wrong[i][0], wrong[i][1]);
    static const char *const right[][2] = {
        {"defrag", "defer+madvise"}, {"use_zero_page", "0"}, {"khugepaged/defrag", "0"},
        {"khugepaged/pages_to_scan", "8192"}, {"khugepaged/max_ptes_none", "0"},
        {"khugepaged/max_ptes_shared", "3\n"}, {"khugepaged/alloc_sleep_millisecs", "5"},
        {"khugepaged/scan_sleep_millisecs", "10"}, {"hugepages-64kB/shmem_enabled", "within_size"},
    };
    for (size_t i = 0; i < sizeof right / sizeof *right; i++)
        set(right[i][0], right[i][1]), show(right[i][0]);

    // The scan begins when huge pages are wanted, and goes by the new figures
    set("hugepages-2048kB/enabled", "inherit");
    char *full = mapped(MAP_PRIVATE), *holed = full + (2 << 20);
    for (long i = 0; i < 512; i++)
        full[i << 12] = i != 7 ? holed[i << 12] = 1 : 1;
    set("enabled", "always");
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    printf("the scan: %ld KiB\n", huge(full, "AnonHugePages"));
    set("khugepaged/max_ptes_none", "1");
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    printf("with an absent page: %ld KiB\n", huge(full, "AnonHugePages"));
    show("khugepaged/pages_collapsed");
    return 0;
}
