/* Kernel objects, as root sees them: /proc/slabinfo and /proc/meminfo grow with what a program has, and come back.

   slabs watch    a line for each kind of object: how many more there are, and whether they are gone afterwards
   slabs pipes    pipes until there is no memory for another; then one again once some are closed
   slabs threads  threads until no more can be made: what their stacks take
   slabs busy     makes and ends everything again and again, for whoever looks for misused objects */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

static long active(const char *cache) {
    char line[256], name[64];
    long count, found = 0;
    FILE *file = fopen("/proc/slabinfo", "r");
    if (!file) {
        printf("slabinfo: %s\n", strerror(errno));
        exit(1);
    }
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%63s %ld", name, &count) == 2 && !strcmp(name, cache)) found = count;
    fclose(file);
    return found;
}

static long meminfo(const char *field) {
    char line[256], name[64];
    long kib, found = -1;
    FILE *file = fopen("/proc/meminfo", "r");
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%63[^:]: %ld", name, &kib) == 2 && !strcmp(name, field)) found = kib;
    fclose(file);
    return found;
}

enum { MANY = 40 };
static int ends[MANY][2], ids[MANY];
static pid_t children[MANY];

static void make_pipes(void) { for (int i = 0; i < MANY; i++) pipe(ends[i]); }
static void end_pipes(void) { for (int i = 0; i < MANY; i++) close(ends[i][0]), close(ends[i][1]); }

static void make_children(void) {
    pipe(ends[0]);
    for (int i = 0; i < MANY; i++)
        if (!(children[i] = fork())) {
            char byte;
            close(ends[0][1]);
            read(ends[0][0], &byte, 1);
            _exit(0);
        }
}

static void end_children(void) {
    close(ends[0][0]);
    close(ends[0][1]);
    for (int i = 0; i < MANY; i++) waitpid(children[i], 0, 0);
}

static void make_sets(void) { for (int i = 0; i < MANY; i++) ids[i] = semget(IPC_PRIVATE, 8, 0600); }
static void end_sets(void) { for (int i = 0; i < MANY; i++) semctl(ids[i], 0, IPC_RMID); }
static void make_segments(void) { for (int i = 0; i < MANY; i++) ids[i] = shmget(IPC_PRIVATE, 4096, 0600); }
static void end_segments(void) { for (int i = 0; i < MANY; i++) shmctl(ids[i], IPC_RMID, 0); }

static struct { long type; char text[100]; } message = {1, "what is in memory"};

static void make_messages(void) {
    ids[0] = msgget(IPC_PRIVATE, 0600);
    for (int i = 0; i < MANY; i++) message.text[50] = (char)i, msgsnd(ids[0], &message, sizeof message.text, 0);
}

static void end_messages(void) {
    for (int i = 0; i < MANY; i++) {
        msgrcv(ids[0], &message, sizeof message.text, 0, 0);
        if (message.text[50] != i || strcmp(message.text, "what is in memory")) printf("message %d is another\n", i);
    }
    msgctl(ids[0], IPC_RMID, 0);
}

static void watch(const char *what, const char *cache, void (*make)(void), void (*end)(void)) {
    long before = active(cache), more;
    make();
    more = active(cache) - before;
    end();
    printf("%s: %ld more of %s, %ld left\n", what, more, cache, active(cache) - before);
}

static void watch_all(void) {
    long stacks = meminfo("KernelStack"), slab = meminfo("Slab"), more;
    watch("pipes", "pipe_inode_info", make_pipes, end_pipes);
    watch("pipes", "kmalloc-1k", make_pipes, end_pipes);
    watch("children", "task_struct", make_children, end_children);
    watch("children", "mm_struct", make_children, end_children);
    watch("semaphores", "sem_array", make_sets, end_sets);
    watch("semaphores", "kmalloc-512", make_sets, end_sets);
    watch("segments", "shmid_kernel", make_segments, end_segments);
    watch("messages", "kmalloc-192", make_messages, end_messages);
    make_children();
    more = meminfo("KernelStack") - stacks;
    end_children();
    printf("stacks: %ld KiB more, %ld left\n", more, meminfo("KernelStack") - stacks);
    make_pipes();
    more = meminfo("Slab");
    end_pipes();
    printf("slabs: %s, as slabinfo has it: %s\n", more > slab ? "more" : "no more", slab > 0 ? "yes" : "no");
}

static void exhaust_with_pipes(void) {
    static int fds[8000][2];
    int count = 0, more = 0, pair[2];
    const long size = 1 << 18;
    memset(fds, 0, sizeof fds);
    while (meminfo("MemFree") > 2048)
        memset(mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1, size);
    while (count < 8000 && !pipe(fds[count])) count++;
    printf("pipes: then %s\n", errno == ENFILE ? "ENFILE" : strerror(errno));
    for (int i = 0; i < count / 2; i++) close(fds[i][0]), close(fds[i][1]);
    while (more < count / 4 && !pipe(pair)) more++;
    printf("once half are closed: %s\n", more && more == count / 4 ? "some again" : "none");
}

static void *wait_for(void *lock) {
    pthread_mutex_lock(lock);
    pthread_mutex_unlock(lock);
    return 0;
}

static void exhaust_with_threads(void) {
    static pthread_t threads[100000];
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t small;
    long before = meminfo("KernelStack"), more;
    int count = 0, error = 0;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 8192);
    pthread_mutex_lock(&lock);
    while (count < 100000 && !(error = pthread_create(&threads[count], &small, wait_for, &lock))) count++;
    more = meminfo("KernelStack") - before;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < count; i++) pthread_join(threads[i], 0);
    printf("threads: then %s\n", error == EAGAIN ? "EAGAIN" : strerror(error));
    printf("stacks: %s\n", more == 16 * count ? "16 KiB each" : "others");
}

static void be_busy(void) {
    for (int i = 0; i < 4; i++) {
        make_pipes(), end_pipes();
        make_children(), end_children();
        make_sets(), end_sets();
        make_segments(), end_segments();
        make_messages(), end_messages();
    }
    printf("done\n");
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "watch";
    setvbuf(stdout, 0, _IOLBF, 0);
    if (!strcmp(what, "watch")) watch_all();
    if (!strcmp(what, "pipes")) exhaust_with_pipes();
    if (!strcmp(what, "threads")) exhaust_with_threads();
    if (!strcmp(what, "busy")) be_busy();
    return 0;
}
