/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A node in C, the same on the host and in a guest: `ivshmem_client ... run node`
 *
 *   ask PEER ROUNDS   rings each vector of the peer so often, one after the other: each time it
 *                     writes a number to the memory, rings, and waits until the peer has written
 *                     the same, and has rung back
 *   answer            does the peer's part, until the other has asked for the last time
 *   tell WORD         writes a word to another place in the memory
 *   show              says that word
 *
 * A ring that gets lost ends the asker with an error. What it says starts with "fam: ".
 */
#include <err.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#define PATIENCE_US 30000000
#define WORD_AT     0x20000 /* behind all slots */
#define WORD_SIZE   32

/* One for each vector, at the start of the memory. */
struct slot {
	uint64_t asked, answered;
	uint64_t asker, last;
	uint64_t padding[4];
};

static volatile struct slot *slots;
static unsigned long vectors, own;
static FILE *events, *requests;

static unsigned long number(const char *name)
{
	const char *text = getenv(name);

	if (!text)
		errx(1, "%s is not set", name);
	return strtoul(text, NULL, 10);
}

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void node_open(void)
{
	struct stat st;

	own = number("IVSHMEM_ID");
	vectors = number("IVSHMEM_VECTORS");
	if (fstat(3, &st) < 0 || (unsigned long)st.st_size != number("IVSHMEM_SIZE"))
		errx(1, "descriptor 3 is not the memory");
	slots = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	events = fdopen(4, "r");
	requests = fdopen(5, "w");
	if (slots == MAP_FAILED || !events || !requests)
		err(1, "cannot open what the client gives");
	setvbuf(requests, NULL, _IOLBF, 0);
}

/* Waits until an own doorbell is rung. Returns its vector. */
static unsigned long rung(void)
{
	char line[100];
	unsigned long vector, count;

	while (fgets(line, sizeof(line), events))
		if (sscanf(line, "ring %lu %lu", &vector, &count) == 2)
			return vector;
	errx(1, "no events any more");
}

static void ring(unsigned long peer, unsigned long vector)
{
	__sync_synchronize();
	fprintf(requests, "ring %lu %lu\n", peer, vector);
}

static int longer(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/* Rings a vector of the peer once. Returns after how many us the memory had the answer. */
static int64_t ask_once(unsigned long peer, unsigned long vector, unsigned long round, int last)
{
	volatile struct slot *s = &slots[vector];
	int64_t start = now_us(), answered;

	s->asker = own;
	s->last = (uint64_t)last;
	s->asked = round;
	ring(peer, vector);
	while (s->answered != round)
		if (now_us() - start > PATIENCE_US)
			errx(1, "ring %lu of vector %lu got lost", round, vector);
	answered = now_us() - start;
	if (poll(&(struct pollfd){.fd = 4, .events = POLLIN}, 1, PATIENCE_US / 1000) != 1 ||
	    rung() != vector)
		errx(1, "the answer to ring %lu of vector %lu got lost", round, vector);
	return answered;
}

static void ask(unsigned long peer, unsigned long rounds)
{
	int64_t *took = calloc(rounds * vectors, sizeof(*took)), *next = took;

	if (!took)
		err(1, "no memory");
	for (unsigned long v = 0; v < vectors; v++)
		slots[v].answered = 0;
	for (unsigned long v = 0; v < vectors; v++)
		for (unsigned long i = 1; i <= rounds; i++)
			*next++ = ask_once(peer, v, i, v == vectors - 1 && i == rounds);
	qsort(took, rounds * vectors, sizeof(*took), longer);
	printf("fam: asked %lu times on each of %lu vectors\n", rounds, vectors);
	printf("fam: us until the memory had the answer: median %lld, 99 of 100 %lld\n",
	       (long long)took[rounds * vectors / 2], (long long)took[rounds * vectors * 99 / 100]);
	free(took);
}

static void answer(void)
{
	unsigned long total = 0;
	uint64_t last = 0;

	while (!last) {
		unsigned long v = rung();
		volatile struct slot *s = &slots[v];

		__sync_synchronize();
		if (v >= vectors || s->asked == s->answered)
			errx(1, "rung on vector %lu, and nothing was asked", v);
		last = s->last;
		s->answered = s->asked;
		total++;
		ring(s->asker, v);
	}
	printf("fam: answered %lu times\n", total);
}

static void tell(const char *word)
{
	volatile char *to = (volatile char *)slots + WORD_AT;

	for (size_t i = 0; i < WORD_SIZE; i++)
		to[i] = i < strlen(word) ? word[i] : '\0';
	printf("fam: told %s\n", word);
}

static void show(void)
{
	volatile char *from = (volatile char *)slots + WORD_AT;
	char word[WORD_SIZE];

	for (size_t i = 0; i < WORD_SIZE; i++)
		word[i] = from[i];
	printf("fam: shown %.*s\n", WORD_SIZE, word);
}

int main(int argc, char **argv)
{
	node_open();
	if (argc == 4 && !strcmp(argv[1], "ask"))
		ask(strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10));
	else if (argc == 2 && !strcmp(argv[1], "answer"))
		answer();
	else if (argc == 3 && !strcmp(argv[1], "tell"))
		tell(argv[2]);
	else if (argc == 2 && !strcmp(argv[1], "show"))
		show();
	else
		errx(2, "usage: node ask PEER ROUNDS | answer | tell WORD | show");
	return 0;
}
