// Crashes in the way that its argument names, a few calls deep.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <fcntl.h>

typedef void function(void);

static volatile int zero;
static char *volatile literal = "a literal";

__attribute__((noinline)) static void null(void) { *(volatile int *)(long)(zero + 16) = 1; }

__attribute__((noinline)) static void hole(void) {
  char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(page, 4096);
  page[5] = 1;
}

__attribute__((noinline)) static void constant(void) { literal[2] = 'x'; }

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

__attribute__((noinline)) static void protected_page(void) {
  char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(page, 4096, PROT_NONE);
  zero = page[1];
}

__attribute__((noinline)) static void file_end(void) {
  int fd = open("short", O_RDWR | O_CREAT | O_TRUNC, 0600);
  zero = (int)write(fd, "abc", 3);
  char *page = mmap(NULL, 131072, PROT_READ, MAP_SHARED, fd, 0);
  zero = page[70000];
}

__attribute__((noinline)) static void kernel(void) { zero = *(volatile int *)0xffff800000000000; }

__attribute__((noinline)) static void wild(void) { zero = *(volatile int *)0x1234567812345678; }

__attribute__((noinline)) static void trap(void) { __builtin_trap(); }

__attribute__((noinline)) static void gives_up(void) { abort(); }

__attribute__((noinline)) static void terminated(void) { raise(SIGTERM); }

static void handler(int number) {
  (void)number;
  null();
}

__attribute__((noinline)) static void in_handler(void) {
  signal(SIGUSR1, handler);
  raise(SIGUSR1);
}

static const struct {
  const char *name;
  function *crash;
} ways[] = {
    {"null", null},   {"hole", hole},     {"constant", constant},        {"jump", jump},
    {"data", data},   {"deep", deep},     {"protected", protected_page}, {"file-end", file_end},
    {"wild", wild},   {"trap", trap},     {"abort", gives_up},           {"handler", in_handler},
    {"term", terminated}, {"kernel", kernel},
};

int main(int argc, char **argv) {
  for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++)
    if (argc > 1 && !strcmp(argv[1], ways[i].name))
      ways[i].crash();
  puts("no such way");
  return 1;
}
