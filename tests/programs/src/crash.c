// Crashes in the way that its argument names, a few calls deep (or waits). No call is a function's last act, so that each
// has its frame.
#include "aether.h"

typedef void function(void);

static volatile int zero;
static volatile int *volatile pointer;
static const char *volatile literal = "a literal";

__attribute__((noinline)) static void null(void) {
  pointer = (int *)(long)(zero + 16);
  *pointer = 1;
}

__attribute__((noinline)) static void hole(void) {
  volatile char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap((void *)page, PAGE);
  page[5] = 1;
}

__attribute__((noinline)) static void constant(void) { ((char *)literal)[2] = 'x'; }

__attribute__((noinline)) static void jump(void) {
  function *volatile nowhere = (function *)0x123456789000;
  nowhere();
  zero++;
}

__attribute__((noinline)) static void data(void) {
  function *volatile wrong = (function *)&zero;
  wrong();
  zero++;
}

__attribute__((noinline)) static int deeper(int depth) {
  volatile char room[256];
  room[depth & 255] = 1;
  return deeper(depth + 1) + room[depth & 255] + room[3];
}

__attribute__((noinline)) static void deep(void) { zero = deeper(0); }

__attribute__((noinline)) static void protected(void) {
  volatile char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect((void *)page, PAGE, PROT_NONE);
  zero = page[1];
}

__attribute__((noinline)) static void end_of_file(void) {
  int fd = (int)SYSCALL(openat, AT_FDCWD, "short", 0, 0);
  volatile char *page = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
  zero = page[2 * PAGE];
}

__attribute__((noinline)) static void kernel(void) { zero = *(volatile int *)KERNEL_HALF; }

__attribute__((noinline)) static void wild(void) { zero = *(volatile int *)0x0034567812345678; }

__attribute__((noinline)) static void trap(void) { __builtin_trap(); }

__attribute__((noinline)) static void divide(void) { zero = 1000 / zero; }

__attribute__((noinline)) static void gives_up(void) {
  raise(6);
  zero++;
}

__attribute__((noinline)) static void terminated(void) {
  raise(15);
  zero++;
}

__attribute__((noinline)) static void waits(void) {
  static char line[8];
  zero = (int)SYSCALL(read, 0, line, sizeof line);
}

__attribute__((noinline)) static void sleeps(void) {
  u64 mask = 0;
  zero = (int)SYSCALL(rt_sigsuspend, &mask, 8);
}

static void handler(int number) {
  zero = number - number;
  null();
  zero++;
}

__attribute__((noinline)) static void in_handler(void) {
  sigaction(10, handler, 0, 0);
  raise(10);
  zero++;
}

static const struct {
  const char *name;
  function *crash;
} ways[] = {
    {"null", null},   {"hole", hole}, {"constant", constant},   {"jump", jump},
    {"data", data},   {"deep", deep}, {"protected", protected}, {"end-of-file", end_of_file},
    {"wild", wild},   {"trap", trap}, {"divide", divide},       {"abort", gives_up},
    {"kernel", kernel}, {"handler", in_handler}, {"terminated", terminated}, {"waits", waits}, {"sleeps", sleeps},
};

int main(int argc, char **argv) {
  for (u64 i = 0; i < COUNT(ways); i++)
    if (argc > 1 && streq(argv[1], ways[i].name))
      ways[i].crash();
  printf("no such way\n");
  return 1;
}
