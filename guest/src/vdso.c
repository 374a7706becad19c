/* vdso: the kernel's own library in every program. What it has; that its clocks are those of system calls;
 * and what a program may do with its pages: move them or take them away as a whole, and nothing else. */
#include "aether.h"

struct timespec {
    i64 seconds, nanoseconds;
};
struct timeval {
    i64 seconds, microseconds;
};
struct symbol {
    u32 name;
    u8 info, other;
    u16 section;
    u64 value, size;
};
enum { DT_HASH = 4, DT_STRTAB = 5, DT_SYMTAB = 6, DT_SONAME = 14 };
enum { DT_VERSYM = 0x6ffffff0, DT_VERDEF = 0x6ffffffc };
enum { CLOCK_REALTIME = 0, CLOCK_MONOTONIC = 1 };

#if defined(__x86_64__)
#define PREFIX "__vdso_"
static const char *const names[] = {"clock_gettime", "gettimeofday", "clock_getres", "time", "getcpu"};
enum { CLOCK_GETRES = 229, GETCPU = 309, MLOCK = 149, SECOND_NAMES = 1 };
#else
#define PREFIX "__kernel_"
static const char *const names[] = {"clock_gettime", "gettimeofday", "clock_getres", "rt_sigreturn"};
enum { CLOCK_GETRES = 114, GETCPU = 168, MLOCK = 228, SECOND_NAMES = 0 };
#endif

static const u8 *image;
static u64 dynamic[16]; /* the values of tags below 16, of the versions behind them */
static const u16 *versions;
static const u8 *definitions;
static int broken;

static void holds(const char *claim, int truth) {
    printf("%-58s %s\n", claim, truth ? "yes" : "NO");
    broken |= !truth;
}

static void read_image(void) {
    const u8 *header = image + *(u64 *)(image + 32);
    for (int i = 0; i < *(u16 *)(image + 56); i++, header += 56) {
        if (*(u32 *)header != 2 /* PT_DYNAMIC */) continue;
        for (const u64 *tag = (const u64 *)(image + *(u64 *)(header + 16)); tag[0]; tag += 2) {
            if (tag[0] < 16) dynamic[tag[0]] = tag[1];
            if (tag[0] == DT_VERSYM) versions = (const u16 *)(image + tag[1]);
            if (tag[0] == DT_VERDEF) definitions = image + tag[1];
        }
    }
}

static const char *text(u64 offset) { return (const char *)image + dynamic[DT_STRTAB] + offset; }

static const char *version_of(u64 number) {
    for (const u8 *at = definitions;; at += *(u32 *)(at + 16)) {
        if (*(u16 *)(at + 4) == (versions[number] & 0x7fff)) return text(*(u32 *)(at + *(u32 *)(at + 12)));
        if (!*(u32 *)(at + 16)) return "none";
    }
}

/* Its number in the symbol table, 0 for none. */
static u64 find(const char *prefix, const char *name) {
    const struct symbol *table = (const struct symbol *)(image + dynamic[DT_SYMTAB]);
    u64 skip = strlen(prefix), count = ((const u32 *)(image + dynamic[DT_HASH]))[1];
    for (u64 i = 1; i < count; i++) {
        const char *known = text(table[i].name);
        if (strlen(known) == skip + strlen(name) && !memcmp(known, prefix, skip) && streq(known + skip, name))
            return i;
    }
    return 0;
}

static void *address_of(const char *name) {
    const struct symbol *table = (const struct symbol *)(image + dynamic[DT_SYMTAB]);
    return (void *)(image + table[find(PREFIX, name)].value);
}

static void show_names(void) {
    const struct symbol *table = (const struct symbol *)(image + dynamic[DT_SYMTAB]);
    printf("%s\n", text(dynamic[DT_SONAME]));
    for (u64 i = 0; i < COUNT(names); i++)
        for (int second = 0; second <= SECOND_NAMES; second++) {
            u64 number = find(second ? "" : PREFIX, names[i]);
            if (!number) FAIL("no %s", names[i]);
            const char *kind = table[number].info >> 4 == 2 ? "weak" : "global";
            printf("  %-24s %-14s %s\n", text(table[number].name), version_of(number), kind);
        }
}

/* ------------------------------------------------------------------------------------------------ clocks */
static u64 ns(struct timespec now) { return (u64)now.seconds * 1000000000UL + (u64)now.nanoseconds; }

static void compare_clocks(void) {
    int (*gettime)(int, struct timespec *) = address_of("clock_gettime");
    int (*getres)(int, struct timespec *) = address_of("clock_getres");
    static const int clocks[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 100, -1, -6};
    for (u64 i = 0; i < COUNT(clocks); i++) {
        int clock = clocks[i];
        struct timespec before = {0, 0}, between = {0, 0}, after = {0, 0}, called = {0, 0};
        int answered = gettime(clock, &before);
        i64 called_answered = SYSCALL(clock_gettime, clock, &between);
        gettime(clock, &after);
        int good = answered == called_answered;
        good &= ns(before) <= ns(between) && ns(between) <= ns(after);
        called_answered = syscall6(CLOCK_GETRES, (u64)clock, (u64)&called, 0, 0, 0, 0);
        good &= getres(clock, &after) == called_answered;
        good &= answered < 0 || ns(after) == ns(called);
        if (!good || i < 8 || clock == 100) /* a host may lack one of the others */
            printf("  clock %d %s: %s\n", clock, answer(answered), good ? "as the system call" : "DIFFERS");
        broken |= !good;
    }
    holds("a resolution is asked for without a place for it", getres(CLOCK_MONOTONIC, NULL) == 0);

    int (*timeofday)(struct timeval *, int *) = address_of("gettimeofday");
    struct timespec before, after;
    struct timeval now;
    int zone[2] = {77, 77};
    gettime(CLOCK_REALTIME, &before);
    int done = timeofday(&now, zone);
    gettime(CLOCK_REALTIME, &after);
    u64 micro = (u64)now.seconds * 1000000UL + (u64)now.microseconds;
    holds("gettimeofday lies between", !done && micro >= ns(before) / 1000 && micro <= ns(after) / 1000);
    holds("the zone is Greenwich, and nothing may be asked", !zone[0] && !zone[1] && !timeofday(NULL, NULL));
#if defined(__x86_64__)
    i64 (*get)(i64 *) = address_of("time");
    i64 kept = 0, seconds = get(&kept); /* Linux takes it from the last tick */
    holds("time is in seconds", seconds == kept && seconds >= before.seconds - 1 && get(NULL) >= seconds);
    int (*getcpu)(u32 *, u32 *, void *) = address_of("getcpu");
    int same = 0;
    for (int tries = 0; tries < 1000 && !same; tries++) { /* it may change between the two */
        u32 cpu[2] = {9999, 9999}, node[2] = {9999, 9999};
        same = !getcpu(&cpu[0], &node[0], NULL);
        same &= !syscall6(GETCPU, (u64)&cpu[1], (u64)&node[1], 0, 0, 0, 0);
        same &= cpu[0] == cpu[1] && node[0] == node[1];
    }
    holds("getcpu is as the system call", same && !getcpu(NULL, NULL, NULL));
#endif
}

/* ------------------------------------------------------------------------------------------------ memory */
static struct area {
    u64 start, end;
    char permissions[5], name[20];
} areas[8];
static u64 area_count;

static u64 hexadecimal(const char **at) {
    u64 value = 0;
    for (;; (*at)++) {
        char c = **at;
        if (c >= '0' && c <= '9') value = value * 16 + (u64)(c - '0');
        else if (c >= 'a' && c <= 'f') value = value * 16 + (u64)(c - 'a' + 10);
        else return value;
    }
}

/* The lines of /proc/self/maps that are the kernel's, but for the page of the calls at fixed addresses. */
static void read_areas(void) {
    static char maps[16 * KIB];
    i64 fd = open("/proc/self/maps", O_RDONLY), size = 0, got;
    while ((got = SYSCALL(read, fd, maps + size, sizeof maps - 1 - (u64)size)) > 0) size += got;
    SYSCALL(close, fd);
    maps[size] = 0;
    area_count = 0;
    for (const char *at = maps; *at; at++) {
        struct area area = {0};
        area.start = hexadecimal(&at), at++;
        area.end = hexadecimal(&at), at++;
        memcpy(area.permissions, at, 4);
        while (*at != '\n' && *at != '[') at++;
        for (u64 n = 0; *at != '\n'; at++)
            if (n < sizeof area.name - 1) area.name[n++] = *at;
        int ours = area.name[0] == '[' && area.name[1] == 'v' && area.name[2] != 's';
        if (ours && area_count < COUNT(areas)) areas[area_count++] = area;
    }
}

static struct area *named(const char *name) {
    for (u64 i = 0; i < area_count; i++)
        if (streq(areas[i].name, name)) return &areas[i];
    FAIL("no %s", name);
    return NULL;
}

static void store(const char *what, u64 address) {
    struct outcome out;
    probe(code_store, address, &out);
    printf("  a store to %s: %s, si_code %d\n", what, signal_name(out.signo), out.code);
}

static void try_memory(void) {
    struct area *data = named("[vvar]"), *code = named("[vdso]");
    u64 size = data->end - data->start, whole = code->end - code->start;
    printf("[vvar] %s, [vdso] %s\n", data->permissions, code->permissions);
    holds("the image begins where [vdso] does", code->start == (u64)image);
    store("[vvar]", data->start);
    store("[vdso]", code->start);
#define SHOW(what, call) printf("  %-44s %s\n", what, answer((i64)(call)))
    SHOW("[vvar] made writable:", mprotect((void *)data->start, size, PROT_READ | PROT_WRITE));
    SHOW("[vvar], a part, made inaccessible:", mprotect((void *)data->start, PAGE, PROT_NONE));
    SHOW("[vvar], a part, unmapped:", munmap((void *)data->start, PAGE));
    SHOW("[vvar], a part, mapped over:",
         mmap((void *)data->start, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    SHOW("[vvar], a part, moved:",
         mremap((void *)data->start, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(64 * GIB)));
    SHOW("[vvar], a part, locked:", syscall6(MLOCK, data->start, PAGE, 0, 0, 0, 0));
    SHOW("[vvar], a part, to be read at random:", madvise((void *)data->start, PAGE, MADV_RANDOM));
    SHOW("[vvar] made shorter:", mremap((void *)data->start, size, PAGE, 0, NULL));
    SHOW("[vvar] made longer:", mremap((void *)data->start, size, size + PAGE, MREMAP_MAYMOVE, NULL));
    SHOW("[vdso] made longer:", mremap((void *)code->start, whole, whole + PAGE, MREMAP_MAYMOVE, NULL));
    SHOW("[vdso] moved and left behind:",
         mremap((void *)code->start, whole, whole, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
    SHOW("[vdso] made writable:", mprotect((void *)code->start, whole, PROT_READ | PROT_WRITE));
    struct outcome out;
    holds("then a store to its first byte goes through", probe(code_load, code->start, &out) == 0);
    *(volatile u8 *)code->start = 0x7f;
    SHOW("[vdso] made executable again:", mprotect((void *)code->start, whole, PROT_READ | PROT_EXEC));
}

static volatile int handled;
static void handler(int signo) { handled = signo; }

static void move(void) {
    int (*gettime)(int, struct timespec *) = address_of("clock_gettime");
    struct timespec before, after;
    gettime(CLOCK_MONOTONIC, &before);
    read_areas();
    u64 delta = 64 * GIB - areas[0].start;
    for (u64 i = 0; i < area_count; i++) { /* their distances stay, for the code counts on them */
        u64 size = areas[i].end - areas[i].start;
        void *to = (void *)(areas[i].start + delta);
        if (mremap((void *)areas[i].start, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
            FAIL("%s does not move", areas[i].name);
    }
    image += delta;
    read_areas();
    holds("moved, they are called what they were", named("[vdso]")->start == (u64)image && named("[vvar]"));
    gettime = address_of("clock_gettime");
    gettime(CLOCK_MONOTONIC, &after);
    holds("and the clock goes on", ns(after) >= ns(before));
    sigaction(SIGUSR1, handler, 0, 0);
    raise(SIGUSR1);
    holds("and a handler returns", handled == SIGUSR1);
    for (u64 i = 0; i < area_count; i++)
        if (munmap((void *)areas[i].start, areas[i].end - areas[i].start))
            FAIL("%s does not go", areas[i].name);
    read_areas();
    holds("they can be taken away", area_count == 0);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    probe_setup();
    image = (const u8 *)auxiliary_value(33 /* AT_SYSINFO_EHDR */);
    if (!image) FAIL("there is none");
    read_image();
    read_areas();
    show_names();
    compare_clocks();
    try_memory();
    move();
    return broken;
}
