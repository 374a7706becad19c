/* What processes share by System V's numbers, and who waits there, again and again: a word chooses the kind. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

union argument { int val; void *buf; unsigned short *array; };
static char stack[8][1 << 14] __attribute__((aligned(16)));

/* Blocks that take their time, so that others have turns meanwhile. */
static void work(int rounds) {
    for (volatile int i = 0; i < rounds; i++) {}
}

static int op(int id, int at, int by, int flags) { return semop(id, &(struct sembuf){at, by, flags}, 1); }

static int value(int id, int at) { return semctl(id, at, GETVAL); }

/* Numbers without their sequence say nothing of the host; those of one place differ. */
static void number(const char *what, int first, int second) {
    printf("%s: %s\n", what, first == second ? "the same" : "another");
}

static void reap(const char *what) {
    int status, sum = 0, count = 0;
    while (wait(&status) > 0) count++, sum += WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    printf("%s: %d ended, %d in all\n", what, count, sum);
    fflush(stdout);
}

/* Many hold one of few, as long as they work; what each holds is taken back though some never let go. */
static void semaphores(void) {
    int id = semget(IPC_PRIVATE, 4, 0600);
    semctl(id, 0, SETVAL, (union argument){.val = 2});
    for (int i = 0; i < 6; i++)
        if (!fork()) {
            for (int round = 0; round < 3; round++) {
                op(id, 0, -1, SEM_UNDO), op(id, 1, 1, 0);
                work(40 + 30 * i);
                if (i == 3 && round == 1) raise(SIGKILL);
                op(id, 0, 1, SEM_UNDO);
            }
            struct timespec soon = {0, 200000 * (i + 1)};
            int result = semtimedop(id, &(struct sembuf){2, -1, 0}, 1, &soon);
            if (result && errno != EAGAIN) _exit(99);
            struct sembuf both[2] = {{3, -1, 0}, {2, 0, 0}};
            semop(id, both, 2);
            _exit(i);
        }
    while (value(id, 1) < 17) sched_yield();
    for (int i = 0; i < 5; i++) work(300), op(id, 3, 1, 0);
    reap("semaphores");
    printf("all have had it %d times, %d are left\n", value(id, 1), value(id, 0));
    if (!fork()) {
        int result = op(id, 3, -1, 0);
        _exit(result && errno == EIDRM ? 5 : 6);
    }
    while (semctl(id, 3, GETNCNT) < 1) sched_yield();
    semctl(id, 0, IPC_RMID);
    reap("removed");
}

static int noting(void *given) {
    int id = *(int *)given;
    op(id, 0, 1, SEM_UNDO), work(200), op(id, 1, 2, SEM_UNDO), work(200);
    return 0;
}

/* An undo list of several tasks is taken back at the end of the last; that of one set after another. */
static void undoing(void) {
    int id = semget(IPC_PRIVATE, 2, 0600), other = semget(IPC_PRIVATE, 2, 0600);
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            op(other, 0, 1, SEM_UNDO);
            for (int each = 0; each < 3; each++)
                clone(noting, stack[each] + sizeof stack[each], CLONE_VM | CLONE_SYSVSEM | SIGCHLD, &id);
            while (wait(0) > 0) work(50);
            if (i == 1) semctl(other, 0, SETVAL, (union argument){.val = 7});
            op(id, 1, 1, SEM_UNDO), work(400);
            _exit(i);
        }
    reap("undone");
    printf("left %d %d %d\n", value(id, 0), value(id, 1), value(other, 0));
    semctl(id, 0, IPC_RMID), semctl(other, 0, IPC_RMID);
}

struct message { long type; char text[600]; };

static void on_signal(int number) { (void)number; }

/* Senders wait for room and receivers for types; each message comes out once. */
static void queues(void) {
    int id = msgget(IPC_PRIVATE, 0600), back = msgget(IPC_PRIVATE, 0600);
    struct msqid_ds about;
    msgctl(id, IPC_STAT, &about);
    about.msg_qbytes = 1500;
    msgctl(id, IPC_SET, &about);
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            struct message m;
            for (int round = 0; round < 6; round++) {
                m.type = 1 + round % 3;
                int size = sprintf(m.text, "%d of %d", round, i) + 1;
                if (msgsnd(id, &m, size + 300 + 20 * i, 0)) _exit(98);
                work(60 * i);
            }
            _exit(i);
        }
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            struct message m;
            long wanted = i == 0 ? 2 : i == 1 ? -1 : 3;
            int sum = 0;
            for (int round = 0; round < 6; round++) {
                if (msgrcv(id, &m, sizeof m.text, wanted, 0) < 0) _exit(97);
                sum += m.text[0] - '0' + 10 * (m.text[5] - '0');
                work(90);
            }
            m.type = i + 1;
            msgsnd(back, &m, sprintf(m.text, "%d", sum) + 1, 0);
            _exit(10 * i);
        }
    for (int i = 1; i < 4; i++) {
        struct message m;
        msgrcv(back, &m, sizeof m.text, i, 0);
        printf("receiver %d: %s\n", i, m.text);
    }
    reap("queues");
    msgctl(id, IPC_STAT, &about);
    printf("%lu messages are left\n", (unsigned long)about.msg_qnum);
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            struct message m = {1, ""};
            struct sigaction action = {.sa_handler = on_signal};
            sigaction(SIGUSR1, &action, 0);
            m.type = 9, m.text[0] = 'r';
            msgsnd(back, &m, 1, 0);
            long result = i == 1 ? msgrcv(id, &m, 2, 5, 0) : msgrcv(id, &m, sizeof m.text, 7, 0);
            _exit(result < 0 ? errno == EIDRM ? 1 : errno == EINTR ? 2 : errno == E2BIG ? 3 : 4 : 5);
        }
    for (int i = 0; i < 3; i++) {
        struct message m;
        msgrcv(back, &m, sizeof m.text, 9, 0);
    }
    struct timespec moment = {0, 3000000};
    nanosleep(&moment, 0);
    msgsnd(id, &(struct message){5, "too long for it"}, 16, 0);
    work(500);
    msgctl(id, IPC_RMID, 0), msgctl(back, IPC_RMID, 0);
    reap("removed");
}

/* Segments that are attached, removed while they are, made again under their key, and their numbers. */
static void segments(void) {
    key_t key = 0x77000000 + getpid();
    int last = -1;
    for (int round = 0; round < 4; round++) {
        int id = shmget(key, 20000, IPC_CREAT | IPC_EXCL | 0600);
        if (last >= 0) number("the next number", last, id);
        last = id;
        int *all = shmat(id, 0, 0);
        struct shmid_ds about;
        for (int i = 0; i < 3; i++)
            if (!fork()) {
                int *twin = shmat(id, 0, 0);
                for (int at = 0; at < 5; at++)
                    __atomic_add_fetch(twin + 1000 * at, i + 1, __ATOMIC_SEQ_CST), work(40);
                if (i == 1) shmdt(twin);
                work(100);
                _exit(all[0] > 0 ? 0 : 50);
            }
        work(150);
        if (round & 1) {
            shmctl(id, IPC_RMID, 0);
            printf("the key finds %s\n", shmget(key, 1, 0) < 0 ? strerror(errno) : "it");
        }
        reap("attached");
        shmctl(id, IPC_STAT, &about);
        printf("%d %d %d, attached %lu, by its maker %d, key %d, times %d %d %d\n", all[0], all[2000], all[4000],
               (unsigned long)about.shm_nattch, about.shm_cpid == getpid(), about.shm_perm.__key == key,
               about.shm_atime != 0, about.shm_dtime != 0, about.shm_ctime != 0);
        if (!(round & 1)) shmctl(id, IPC_RMID, 0);
        shmdt(all);
        printf("afterwards: %d\n", shmctl(id, IPC_STAT, &about));
    }
}

int main(int count, char **words) {
    setvbuf(stdout, 0, _IOFBF, 1 << 14);
    char kind = count > 1 ? words[1][0] : 'a';
    if (kind == 's' || kind == 'a') semaphores();
    if (kind == 'u' || kind == 'a') undoing();
    if (kind == 'q' || kind == 'a') queues();
    if (kind == 'm' || kind == 'a') segments();
    return 0;
}
