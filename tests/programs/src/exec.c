/* execve(2) and execveat(2): what is refused and with what, and what another program in the same process finds of
 * the one before. The program executes itself, by a name that says what it shall tell. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char self[4096];

static long execveat_(int fd, const char *name, char *const *argv, char *const *envp, int flags) {
    return syscall(SYS_execveat, fd, name, argv, envp, flags);
}

/* A file with these bytes. */
static void file(const char *name, int mode, const void *bytes, size_t length) {
    int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, mode);
    if (write(fd, bytes, length) != (ssize_t)length) printf("%s cannot be written\n", name);
    fchmod(fd, mode);
    close(fd);
}

static void script(const char *name, const char *text) { file(name, 0755, text, strlen(text)); }

/* What wait says of a child that calls run(argument). */
static void child(const char *what, void (*run)(void *), void *argument) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        run(argument);
        printf("%s: %s\n", what, strerror(errno));
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) printf("%s: killed by %d\n", what, WTERMSIG(status));
    else if (WEXITSTATUS(status)) printf("%s: status %d\n", what, WEXITSTATUS(status));
}

static char *no_environment[] = {NULL};

static void plain(void *name) {
    char *argv[] = {"zero", "one", NULL};
    execve(name, argv, no_environment);
}
static void try(const char *what, const char *name) { child(what, plain, (void *)name); }

static void null_vectors(void *name) { execve(name, NULL, NULL); }
static void bad_argv(void *name) { execve(name, (char **)8, NULL); }
static void bad_string(void *name) { execve(name, ((char *[]){"a", (char *)8, NULL}), NULL); }
static void bad_environment(void *name) { execve(name, ((char *[]){"a", NULL}), (char **)8); }

/* Arguments */
struct sizes { size_t one, count, each, environment; const char *name; };
static void large(void *asked) {
    struct sizes *sizes = asked;
    char **argv = calloc(sizes->count + 3, sizeof *argv), *text = malloc(sizes->each), *one = malloc(sizes->one);
    memset(text, 'x', sizes->each), text[sizes->each - 1] = 0;
    memset(one, 'y', sizes->one), one[sizes->one - 1] = 0;
    argv[0] = "large", argv[1] = one;
    for (size_t i = 0; i < sizes->count; i++) argv[2 + i] = text;
    execve(sizes->name, argv, no_environment);
}
static void size(const char *what, const char *name, size_t one, size_t count, size_t each) {
    struct sizes sizes = {one, count, each, 0, name};
    child(what, large, &sizes);
}
static void with_stack(void *asked) {
    struct rlimit limit = {1 << 20, RLIM_INFINITY};
    setrlimit(RLIMIT_STACK, &limit);
    large(asked);
}

/* ELF files that are not quite */
static char elf[65536];
static size_t elf_length;
static void headers(const char *what, void (*change)(Elf64_Ehdr *, Elf64_Phdr *)) {
    char *copy = malloc(sizeof elf);
    memcpy(copy, elf, sizeof elf);
    Elf64_Ehdr *header = (Elf64_Ehdr *)copy;
    change(header, (Elf64_Phdr *)(copy + header->e_phoff));
    file("odd", 0755, copy, elf_length);
    try(what, "./odd");
    free(copy);
}
static void machine(Elf64_Ehdr *h, Elf64_Phdr *p) { (void)p, h->e_machine = EM_S390; }
static void kind(Elf64_Ehdr *h, Elf64_Phdr *p) { (void)p, h->e_type = ET_REL; }
static void magic(Elf64_Ehdr *h, Elf64_Phdr *p) { (void)p, h->e_ident[3] = 'G'; }
static void no_headers(Elf64_Ehdr *h, Elf64_Phdr *p) { (void)p, h->e_phnum = 0; }
static void header_size(Elf64_Ehdr *h, Elf64_Phdr *p) { (void)p, h->e_phentsize = 40; }
static void headers_far(Elf64_Ehdr *h, Elf64_Phdr *p) { (void)p, h->e_phoff = 1ul << 40; }
static void many_headers(Elf64_Ehdr *h, Elf64_Phdr *p) { (void)p, h->e_phnum = 2000; }
static const char *interpreter;
static void interpreted(Elf64_Ehdr *h, Elf64_Phdr *p) {
    char *base = (char *)h;
    strcpy(base + 4096 - 200, interpreter);
    for (int i = 0; i < h->e_phnum; i++)
        if (p[i].p_type != PT_LOAD) {
            p[i].p_type = PT_INTERP, p[i].p_offset = 4096 - 200, p[i].p_filesz = strlen(interpreter) + 1;
            return;
        }
}
static void no_name(Elf64_Ehdr *h, Elf64_Phdr *p) { interpreter = "/", interpreted(h, p), interpreter = NULL;
    for (int i = 0; i < h->e_phnum; i++) if (p[i].p_type == PT_INTERP) p[i].p_filesz = 1; }
static void no_end(Elf64_Ehdr *h, Elf64_Phdr *p) { interpreter = "/abc", interpreted(h, p), interpreter = NULL;
    for (int i = 0; i < h->e_phnum; i++) if (p[i].p_type == PT_INTERP) p[i].p_filesz = 3; }
static void nowhere(Elf64_Ehdr *h, Elf64_Phdr *p) {
    for (int i = 0; i < h->e_phnum; i++) if (p[i].p_type == PT_LOAD) p[i].p_vaddr += 1ul << 60;
}
static void with_interpreter(const char *what, const char *name) { interpreter = name, headers(what, interpreted); }

/* Scripts */
static void scripted(const char *what, const char *text) {
    script("script", text);
    try(what, "./script");
}

/* Files by descriptor */
static void by_descriptor(void *flags) {
    int fd = open(self, O_RDONLY);
    dup2(fd, 17);
    execveat_(17, "", ((char *[]){"by descriptor", "tell", NULL}), no_environment, (long)flags);
}
static void by_path_descriptor(void *flags) {
    int fd = open(self, O_PATH | O_CLOEXEC);
    dup3(fd, 17, O_CLOEXEC);
    execveat_(17, "", ((char *[]){"by descriptor", "tell", NULL}), no_environment, (long)flags);
}
static void by_directory(void *flags) {
    int fd = open(".", O_PATH | O_DIRECTORY);
    dup3(fd, 17, O_CLOEXEC);
    execveat_(17, "./self", ((char *[]){"by directory", "tell", NULL}), no_environment, (long)flags);
}
static void script_by_descriptor(void *flags) {
    int fd = open("script", O_RDONLY);
    dup3(fd, 17, (long)flags);
    execveat_(17, "", ((char *[]){"script", NULL}), no_environment, AT_EMPTY_PATH);
}
static void script_by_directory(void *flags) {
    int fd = open(".", O_RDONLY);
    dup3(fd, 17, (long)flags);
    execveat_(17, "script", ((char *[]){"script", NULL}), no_environment, AT_EMPTY_PATH);
}
static void no_descriptor(void *name) { execveat_(99, name, no_environment, no_environment, AT_EMPTY_PATH); }
static void descriptor_of_file(void *name) {
    execveat_(open("script", O_RDONLY), name, no_environment, no_environment, 0);
}
static void descriptor_of_directory(void *name) {
    execveat_(open(".", O_RDONLY), name, no_environment, no_environment, AT_EMPTY_PATH);
}
static void descriptor_of_pipe(void *name) {
    int ends[2];
    pipe(ends);
    execveat_(ends[0], name, no_environment, no_environment, AT_EMPTY_PATH);
}
static void link_itself(void *name) {
    execveat_(AT_FDCWD, name, ((char *[]){"link", "tell", NULL}), no_environment, AT_SYMLINK_NOFOLLOW);
}
static void bad_flags(void *name) { execveat_(AT_FDCWD, name, no_environment, no_environment, 1); }
static void from_memory(void *flags) {
    int fd = memfd_create("program", (long)flags), source = open(self, O_RDONLY);
    static char buffer[65536];
    for (ssize_t got; (got = read(source, buffer, sizeof buffer)) > 0;) write(fd, buffer, got);
    close(source);
    execveat_(fd, "", ((char *[]){"from memory", "tell", NULL}), no_environment, AT_EMPTY_PATH);
}
static void by_proc(void *name) {
    int fd = open(self, O_RDONLY);
    dup2(fd, 17);
    execve(name, ((char *[]){"by /proc", "tell", NULL}), no_environment);
}

/* Files that are open for writing */
static void busy(void *name) {
    int fd = open("busy", O_RDWR);
    plain(name);
    close(fd);
}
static void writes_itself(void *name) { execve(name, ((char *[]){"itself", "written", NULL}), no_environment); }
static int written(void) {
    printf("  written: %s\n", open(self, O_WRONLY) < 0 ? strerror(errno) : "yes");
    printf("  emptied: %s\n", open(self, O_RDONLY | O_TRUNC) < 0 ? strerror(errno) : "yes");
    printf("  truncated: %s\n", truncate(self, 0) < 0 ? strerror(errno) : "yes");
    printf("  removed: %s\n", unlink(self) < 0 ? strerror(errno) : "yes");
    return 0;
}

/* What stays and what goes */
static void handler(int signal) { (void)signal; }
static void everything(void *name) {
    signal(SIGUSR1, SIG_IGN), signal(SIGUSR2, handler), signal(SIGCHLD, SIG_IGN);
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR2), sigaddset(&set, SIGRTMIN + 3), sigaddset(&set, SIGALRM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR2), raise(SIGRTMIN + 3), raise(SIGRTMIN + 3);
    umask(027);
    prctl(PR_SET_NAME, "another name"), prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    personality(READ_IMPLIES_EXEC | ADDR_NO_RANDOMIZE);
    stack_t stack = {malloc(65536), 0, 65536};
    sigaltstack(&stack, NULL);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){77, 88});
    mlockall(MCL_CURRENT | MCL_FUTURE);
    dup2(1, 20), dup2(1, 21), fcntl(21, F_SETFD, FD_CLOEXEC);
    chdir("sub");
    execve(name, ((char *[]){"everything", "remains", NULL}), ((char *[]){"A=b", "C=", "=", NULL}));
}
static int remains(void) {
    struct sigaction action;
    int signals[] = {SIGUSR1, SIGUSR2, SIGCHLD};
    for (int i = 0; i < 3; i++) {
        sigaction(signals[i], NULL, &action);
        printf("  signal %d: %s\n", signals[i], action.sa_handler == SIG_IGN   ? "ignored"
                                              : action.sa_handler == SIG_DFL ? "default"
                                                                             : "handled");
    }
    sigset_t set;
    sigprocmask(SIG_BLOCK, NULL, &set);
    printf("  blocked: %d %d %d %d\n", sigismember(&set, SIGUSR1), sigismember(&set, SIGUSR2),
           sigismember(&set, SIGRTMIN + 3), sigismember(&set, SIGALRM));
    sigpending(&set);
    printf("  pending: %d %d %d %d\n", sigismember(&set, SIGUSR1), sigismember(&set, SIGUSR2),
           sigismember(&set, SIGRTMIN + 3), sigismember(&set, SIGALRM));
    printf("  umask %o, personality %x\n", umask(0), personality(0xffffffff));
    char name[32] = "";
    prctl(PR_GET_NAME, name);
    printf("  name \"%s\", no new privileges %d\n", name, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    stack_t stack;
    sigaltstack(NULL, &stack);
    printf("  stack for signals: flags %d, size %ld\n", stack.ss_flags, (long)stack.ss_size);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    printf("  descriptors: %ld of %ld; 20 %s, 21 %s\n", (long)limit.rlim_cur, (long)limit.rlim_max,
           fcntl(20, F_GETFD) >= 0 ? "open" : "closed", fcntl(21, F_GETFD) >= 0 ? "open" : "closed");
    char directory[4096];
    printf("  directory %s\n", strrchr(getcwd(directory, sizeof directory), '/'));
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, "VmLck", 5) || !strncmp(line, "Threads", 7)) printf("  %s", line);
    fclose(status);
    void *head;
    size_t length;
    syscall(SYS_get_robust_list, 0, &head, &length);
    extern char **environ;
    for (char **each = environ; *each; each++) printf("  environment \"%s\"\n", *each);
    return 0;
}

/* Threads */
static void *sleeps(void *argument) {
    for (;;) pause();
    return argument;
}
static void *executes(void *name) {
    plain(name);
    return NULL;
}
static void threads(void *name) {
    pthread_t thread;
    for (int i = 0; i < 4; i++) pthread_create(&thread, NULL, sleeps, NULL);
    pthread_create(&thread, NULL, executes, name);
    for (;;) pause();
}

static int tell(int argc, char **argv) {
    const char *executed = (const char *)getauxval(AT_EXECFN);
    char name[32] = "by descriptor", link[4096] = "";
    if (*executed != '/' || !strncmp(executed, "/dev/fd/", 8)) printf("  executed as %s", executed);
    else printf("  executed as .../%s", strrchr(executed, '/') + 1);
    /* Linux 6.14 and later take the name that the file has */
    if (strncmp(executed, "/dev/fd/", 8)) prctl(PR_GET_NAME, name);
    readlink("/proc/self/exe", link, sizeof link);
    printf(", name \"%s\", exe %s, secure %lu, tid %d\n", name, strrchr(link, '/'), getauxval(AT_SECURE),
           getpid() == gettid());
    for (int i = 0; i < argc; i++) {
        size_t length = strlen(argv[i]);
        if (length > 100) printf("  argument of %zu\n", length);
        else printf("  argument \"%s\"\n", argv[i]);
        if (i > 8) {
            printf("  and %d more\n", argc - i - 1);
            break;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOFBF, 65536);
    readlink("/proc/self/exe", self, sizeof self - 1);
    if (argc == 2 && !strcmp(argv[1], "remains")) return remains();
    if (argc == 2 && !strcmp(argv[1], "written")) return written();
    if (strcmp(argv[0], "exec")) return tell(argc, argv);
    int source = open(self, O_RDONLY);
    elf_length = read(source, elf, sizeof elf);
    close(source);
    file("program", 0755, elf, elf_length), getcwd(self, sizeof self - 16), strcat(self, "/program");
    symlink(self, "self"), symlink("loop", "loop"), mkdir("sub", 0755);
    file("data", 0644, "data", 4), file("empty", 0755, "", 0), file("text", 0755, "text\n", 5);

    try("nothing", "nothing"), try("no name", ""), try("a directory", "sub"), try("no permission", "data");
    try("below a file", "data/below"), try("a loop", "loop"), try("a slash behind", "text/"), try("a null pointer", NULL);
    char *path = malloc(5001);
    memset(path, 'p', 5000), path[5000] = 0;
    try("a long path", path), path[256] = 0, try("a long name", path);
    child("bad arguments", bad_argv, "self"), child("bad string", bad_string, "self");
    child("bad environment", bad_environment, "self"), child("bad arguments, no file", bad_argv, "");
    try("text", "text"), try("empty", "empty"), try("a device", "/dev/null");
    child("no vectors", null_vectors, "self");
    try("by a link", "self");

    headers("machine", machine), headers("kind", kind), headers("magic", magic);
    headers("no headers", no_headers), headers("size of headers", header_size), headers("headers far", headers_far);
    headers("many headers", many_headers), headers("nowhere", nowhere);
    file("odd", 0755, elf, 40), try("half a header", "odd");
    file("odd", 0755, elf, 100), try("half the headers", "odd");
    headers("a name of one byte", no_name), headers("a name without end", no_end);
    with_interpreter("interpreter: none", "/nothing"), with_interpreter("interpreter: directory", "/tmp/..");
    with_interpreter("interpreter: empty", "empty"), with_interpreter("interpreter: text", "text");
    with_interpreter("interpreter: not executable", "data"), with_interpreter("interpreter: loop", "loop");
    file("other", 0755, elf, elf_length);
    char *other = malloc(sizeof elf);
    memcpy(other, elf, sizeof elf), ((Elf64_Ehdr *)other)->e_machine = EM_S390;
    file("other", 0755, other, elf_length), with_interpreter("interpreter: other machine", "other");
    memcpy(other, elf, sizeof elf), ((Elf64_Ehdr *)other)->e_phnum = 0;
    file("other", 0755, other, elf_length), with_interpreter("interpreter: no headers", "other");
    memset(other, 'x', 200);
    file("other", 0755, other, 200), with_interpreter("interpreter: long text", "other");

    scripted("script", "#!self\n"), scripted("spaces", "#! \t self \t one two \t \n"), scripted("tabs", "#!\tself\targ\n");
    scripted("no end", "#!self"), scripted("no end, argument", "#!self x"), scripted("only spaces", "#!  \t \n");
    scripted("nothing else", "#!"), scripted("an empty line", "#!\n"), scripted("no interpreter", "#!nothing\n");
    scripted("a directory as interpreter", "#!/\n"), scripted("data as interpreter", "#!data\n");
    scripted("text as interpreter", "#!text\n"), scripted("itself", "#!./script\n"), scripted("return", "#!self\r\n");
    script("inner", "#!self inner\n"), scripted("nested", "#!inner outer\n");
    char name[16], text[600];
    script("s1", "#!self\n");
    for (int i = 2; i < 8; i++) {
        sprintf(name, "s%d", i), sprintf(text, "#!s%d %d\n", i - 1, i), script(name, text), try(name, name);
    }
    file("script", 0755, "#!self\0rest arg\n", 16), try("a null byte", "script");
    file("script", 0755, "#!self a\0rest arg\n", 18), try("a null byte in the argument", "script");
    for (int length = 250; length < 260; length++) {
        int n = sprintf(text, "#!./");
        while (n < length - 4) text[n] = '/', n++;
        strcpy(text + n, "self\n"), sprintf(name, "long %d", length), scripted(name, text);
        n = sprintf(text, "#!self ");
        while (n < length) text[n] = 'a', n++;
        strcpy(text + n, "\n"), sprintf(name, "argument %d", length), scripted(name, text);
    }
    memset(text, ' ', 500), memcpy(text, "#!", 2), strcpy(text + 300, "self\n"), scripted("far", text);
    script("script", "#!self\n");
    long cloexec = O_CLOEXEC;
    child("script by descriptor", script_by_descriptor, 0), child("closing", script_by_descriptor, (void *)cloexec);
    child("script by directory", script_by_directory, 0), child("closing", script_by_directory, (void *)cloexec);

    void *empty = (void *)(long)AT_EMPTY_PATH;
    child("descriptor", by_descriptor, empty), child("descriptor, no flag", by_descriptor, 0);
    child("O_PATH", by_path_descriptor, empty), child("directory", by_directory, 0);
    child("no descriptor", no_descriptor, ""), child("no descriptor, path", no_descriptor, "self");
    child("no directory", descriptor_of_file, "self"), child("a directory itself", descriptor_of_directory, "");
    child("a pipe", descriptor_of_pipe, ""), child("a link", link_itself, "self"), child("no link", link_itself, self);
    child("flags", bad_flags, "self");
    child("memory", from_memory, 0);
    child("memory, closing", from_memory, (void *)(long)MFD_CLOEXEC);
    child("/proc/self/exe", by_proc, "/proc/self/exe"), child("/proc/self/fd", by_proc, "/proc/self/fd/17");
    child("/dev/fd", by_proc, "/dev/fd/17");

    file("busy", 0755, elf, 4096), child("a program that is written", busy, "./busy");
    script("busy", "#!self\n"), child("a script that is written", busy, "./busy");
    script("script", "#!busy\n"), child("an interpreter that is written", busy, "./script");
    script("script", "#!self\n");

    size("a string", "self", 131072, 0, 1), size("a long string", "self", 131073, 0, 1);
    size("many", "self", 1, 15, 131072), size("too many", "self", 1, 16, 131072);
    /* 2 MiB less the pointers, the name, "large" and "" */
    size_t rest = (2 << 20) - 15 * 131072 - 8 * 18 - 5 - 6;
    size("exactly", "self", rest, 15, 131072), size("one more", "self", rest + 1, 15, 131072);
    struct sizes sizes = {1, 0, 1, 0, "self"};
    sizes.one = 100000, sizes.count = 1, sizes.each = 100000, child("little stack", with_stack, &sizes);
    sizes.one = 131072, sizes.each = 131072 - 8 * 3 - 5 - 6, child("little stack, exactly", with_stack, &sizes);
    sizes.each++, child("little stack, one more", with_stack, &sizes);

    child("what remains", everything, self), child("threads", threads, "self");
    child("itself", writes_itself, self), try("after that", self);
    fflush(stdout);
    return 0;
}
