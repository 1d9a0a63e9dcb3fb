/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program of make demo, a node on the host and in virtual machines: `ivshmem_client ... run
 * demo NAME`. A message goes round in the memory: whoever is rung reads it, writes the next one,
 * and rings the next node. Node 0 begins when the others are there.
 */
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NODES 3
#define TURNS 9

struct message {
	uint32_t present[NODES];
	uint32_t turn;
	char text[100];
};

static volatile struct message *memory;
static FILE *events, *requests;
static const char *name;
static int id;

static void say(const char *what, const char *text)
{
	printf("%s (node %d) %s%s\n", name, id, what, text);
	fflush(stdout);
}

/* Writes the next message, and rings the next node. */
static void turn_pass(uint32_t turn)
{
	int next = (id + 1) % NODES;
	char text[sizeof(memory->text)];

	usleep(200000); /* so that one can follow */
	snprintf(text, sizeof(text), "'message %u, from %s'", turn, name);
	say("writes ", text);
	for (size_t i = 0; i < sizeof(text); i++)
		memory->text[i] = text[i];
	memory->turn = turn;
	snprintf(text, sizeof(text), "%d, on vector 0", next);
	say("rings node ", text);
	__sync_synchronize();
	fprintf(requests, "ring %d 0\n", next);
}

/* Reads the message, and returns which it is. */
static uint32_t turn_take(void)
{
	char text[sizeof(memory->text)];

	__sync_synchronize();
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = memory->text[i];
	text[sizeof(text) - 1] = '\0';
	say("was rung, and reads ", text);
	return memory->turn;
}

int main(int argc, char **argv)
{
	const char *own = getenv("IVSHMEM_ID");
	uint32_t turn = 0;
	char line[100];

	name = argc > 1 ? argv[1] : "somebody";
	id = own ? atoi(own) : -1;
	memory = mmap(NULL, sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED, 3, 0);
	events = fdopen(4, "r");
	requests = fdopen(5, "w");
	if (memory == MAP_FAILED || !events || !requests || id < 0 || id >= NODES)
		errx(1, "run this with ivshmem_client");
	setvbuf(requests, NULL, _IOLBF, 0);
	say("is there", "");
	memory->present[id] = 1;
	if (id == 0) {
		for (int i = 1; i < NODES; i++)
			while (!memory->present[i])
				usleep(10000);
		turn_pass(1);
	}
	while (turn + NODES <= TURNS && fgets(line, sizeof(line), events)) {
		if (strncmp(line, "ring ", 5) != 0)
			continue;
		turn = turn_take();
		if (turn < TURNS)
			turn_pass(turn + 1);
	}
	return 0;
}
