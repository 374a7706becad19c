/* Address spaces in turn: what a process has at an address is its own, whoever ran before it.
 *
 * Two processes that live long pass a byte to and fro, while others come, look, change memory and go, as many
 * as the argument says. All have other data at the same address. A page that is given up reads as zero, and one
 * that is written after a fork does not show in the parent.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 4, ROUNDS = 24 };

static size_t page;
static volatile char *memory;
static unsigned wrong;

static void fill(char with)
{
	for (int i = 0; i < PAGES; i++)
		memory[i * page] = with;
}

static void look(char for_what)
{
	for (int i = 0; i < PAGES; i++)
		wrong += memory[i * page] != for_what;
}

static void swap_byte(int from, int to)
{
	char byte;

	if (read(from, &byte, 1) != 1 || write(to, &byte, 1) != 1)
		_exit(2);
}

static int partner(int from, int to)
{
	look('p');
	for (int round = 0; round < ROUNDS; round++) {
		swap_byte(from, to);
		look(round ? 'a' + round - 1 : 'p');
		fill('a' + round);
	}
	return wrong != 0;
}

static int visitor(int number)
{
	look('p');
	fill(number);
	look(number);
	if (madvise((void *)memory, page, MADV_DONTNEED))
		return 2;
	wrong += memory[0] != 0;
	memory[0] = number;
	look(number);
	return wrong != 0;
}

int main(int argc, char **argv)
{
	int visitors = argc > 1 ? atoi(argv[1]) : 16, there[2], back[2], status, bad = 0;

	page = sysconf(_SC_PAGESIZE);
	memory = mmap(0, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill('p');
	if (pipe(there) || pipe(back))
		return 2;
	pid_t other = fork();
	if (!other)
		_exit(partner(there[0], back[1]));
	for (int round = 0, number = 0; round < ROUNDS; round++) {
		for (; number * ROUNDS < visitors * (round + 1); number++) {
			pid_t pid = fork();
			if (!pid)
				_exit(visitor(number & 127));
			if (waitpid(pid, &status, 0) != pid)
				return 2;
			bad += status != 0;
		}
		if (write(there[1], "x", 1) != 1)
			return 2;
		char byte;
		if (read(back[0], &byte, 1) != 1)
			return 2;
		look('p');
	}
	if (waitpid(other, &status, 0) != other)
		return 2;
	bad += status != 0;
	printf("%d processes came and went, %d saw what was not theirs; here %u\n", visitors + 1, bad, wrong);
	return bad || wrong;
}
