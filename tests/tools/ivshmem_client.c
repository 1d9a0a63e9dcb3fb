/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A client of an ivshmem server for people and scripts: shows who is there, rings doorbells, waits
 * for them. It checks the protocol as strictly as the tests do.
 */
#define _GNU_SOURCE
#include "tests/lib/client.h"
#include "tests/lib/deadline.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A server that has been silent for so long has told all it knew: nothing ends a greeting but the
 * last of our own vectors, and how many those are the server never says. */
#define SILENCE_MS 300

#define VECTORS_MAX 2048

static const char help_text[] =
	"Usage: ivshmem_client [OPTION]... SOCKET COMMAND\n"
	"Connect to an ivshmem server as a node would. Others see it join, and leave at the end.\n"
	"\n"
	"  list                   show the own ID, the size of the memory in bytes, the own "
	"vectors,\n"
	"                         and each peer with its vectors\n"
	"  ring ID VECTOR         ring a doorbell of that peer\n"
	"  wait VECTOR [SECONDS]  show the own ID, wait until that doorbell is rung, show how "
	"often\n"
	"  watch [SECONDS]        list, and then show who joins and who leaves\n"
	"\n"
	"  -n, --vectors N        the server gives N vectors to each node: checked, and nothing\n"
	"                         needs to be waited for to be sure that the greeting is complete\n"
	"  -L, --legacy           the server was started with -L\n"
	"  -M, --no-memory        the server was started with -L -m 0\n"
	"  -h, --help             print this help and exit\n"
	"\n"
	"Exit status: 0, done; 1, not done, for the reason given; 2, a mistake in the command "
	"line.\n";

/* Ends the program: with 1, not done, or 2, a mistake in the command line. */
__attribute__((format(printf, 2, 3), noreturn)) static void quit(int status, const char *format,
								 ...)
{
	va_list args;

	fflush(stdout);
	fputs("ivshmem_client: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs(status == 2 ? " (see 'ivshmem_client --help')\n" : "\n", stderr);
	exit(status);
}

static int number_parse(const char *what, const char *text, int max)
{
	char *end;
	long number;

	errno = 0;
	number = strtol(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || number > max)
		quit(2, "%s '%s': give a whole number from 0 to %d", what, text, max);
	return (int)number;
}

/* Shows one message, if somebody joined or left by it. */
static void message_show(const struct client *c, size_t here, size_t left)
{
	if (c->here > here)
		printf("join %" PRId64 "\n", c->last);
	if (c->left > left)
		printf("leave %" PRId64 "\n", c->last);
	fflush(stdout);
}

/* Reads what is there; the end of the stream only shows in c->ended. */
static void messages_read(struct client *c, bool show)
{
	for (;;) {
		size_t here = c->here, left = c->left;

		if (client_step(c) <= 0)
			break;
		if (show)
			message_show(c, here, left);
	}
	if (c->error[0])
		quit(1, "%s", c->error);
}

/* Waits for the server, for a bell (or none: -1), or for the deadline. Returns whether it rang. */
static bool client_wait(struct client *c, int bell, int64_t deadline)
{
	struct pollfd polls[] = {
		{.fd = c->ended ? -1 : c->sock, .events = POLLIN},
		{.fd = bell, .events = POLLIN},
	};
	int64_t wait = deadline - clock_ms();

	if (wait < 0)
		wait = 0;
	if (poll(polls, 2, wait > INT_MAX ? INT_MAX : (int)wait) < 0 && errno != EINTR)
		quit(1, "cannot wait: %s", strerror(errno));
	return polls[1].revents & POLLIN;
}

/* Reads the greeting: to its end where that is known, else until the server is silent. */
static void greeting_read(struct client *c)
{
	bool certain = c->options.vectors != CLIENT_VECTORS_ANY;
	int64_t deadline = deadline_in(PATIENCE);

	while (!c->ended && clock_ms() < deadline) {
		size_t before = c->messages;

		messages_read(c, false);
		if (certain && client_greeted(c, NULL))
			return;
		if (certain || c->phase < CLIENT_PEERS)
			client_wait(c, -1, deadline);
		else if (c->messages == before)
			return;
		else
			client_wait(c, -1, clock_ms() + SILENCE_MS);
	}
	if (c->phase == CLIENT_REFUSED)
		quit(1, "the server refused us");
	quit(1, "the greeting is not complete: %s",
	     c->ended ? "the server closed the connection" : "the server is silent");
}

/* What the arguments of a command ask for. */
struct request {
	int id, vector;
	int64_t deadline;
};

static void list(struct client *c, const struct request *r)
{
	(void)r;
	printf("id %d\nmemory %jd\nvectors %d\n", c->id, (intmax_t)c->memory_size,
	       client_peer(c, c->id)->vectors);
	for (int id = 0; id < CLIENT_IDS; id++)
		if (id != c->id && client_peer(c, id)->state == PEER_HERE)
			printf("peer %d %d\n", id, client_peer(c, id)->vectors);
}

static void ring(struct client *c, const struct request *r)
{
	if (!client_ring(c, r->id, r->vector))
		quit(1, "no peer %d with a vector %d", r->id, r->vector);
}

/* Doorbells need no server: one that ends is no reason to stop waiting. */
static void wait_for(struct client *c, const struct request *r)
{
	const struct client_peer *own = client_peer(c, c->id);
	int bell;

	if (r->vector >= own->vectors)
		quit(1, "there is no vector %d, only %d of them", r->vector, own->vectors);
	bell = own->fds[r->vector];
	printf("id %d\n", c->id);
	fflush(stdout);
	while (!client_wait(c, bell, r->deadline)) {
		if (clock_ms() >= r->deadline)
			quit(1, "vector %d was not rung", r->vector);
		messages_read(c, false);
	}
	printf("vector %d %" PRIu64 "\n", r->vector, client_rung(c, r->vector));
}

static void watch(struct client *c, const struct request *r)
{
	list(c, r);
	fflush(stdout);
	while (clock_ms() < r->deadline) {
		client_wait(c, -1, r->deadline);
		messages_read(c, true);
		if (c->ended)
			quit(1, "the server closed the connection");
	}
}

static const struct command {
	const char *name;
	void (*run)(struct client *c, const struct request *r);
	const char *arguments; /* i: an ID, v: a vector, s: seconds */
	size_t least;          /* arguments that it needs */
} commands[] = {
	{"list", list, "", 0},
	{"ring", ring, "iv", 2},
	{"wait", wait_for, "vs", 1},
	{"watch", watch, "s", 0},
};

/* Finds the command, and reads its arguments up to the NULL. */
static const struct command *command_parse(char **args, struct request *r)
{
	const struct command *command = NULL;
	size_t given = 0;

	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (strcmp(args[0], commands[i].name) == 0)
			command = &commands[i];
	if (!command)
		quit(2, "unknown command '%s'", args[0]);
	*r = (struct request){.deadline = INT64_MAX};
	for (const char *text; (text = args[given + 1]); given++) {
		switch (command->arguments[given]) {
		case 'i': r->id = number_parse("ID", text, CLIENT_IDS - 1); break;
		case 'v': r->vector = number_parse("VECTOR", text, VECTORS_MAX - 1); break;
		case 's':
			r->deadline = deadline_in(number_parse("SECONDS", text, INT_MAX / 1000));
			break;
		default: quit(2, "unexpected argument '%s'", text);
		}
	}
	if (given < command->least)
		quit(2, "'%s' needs %zu more", command->name, command->least - given);
	return command;
}

/* The options. Returns the index of the first argument that is none. */
static int options_parse(struct client_options *o, int argc, char **argv)
{
	static const struct option options[] = {
		{"vectors", required_argument, NULL, 'n'},
		{"legacy", no_argument, NULL, 'L'},
		{"no-memory", no_argument, NULL, 'M'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int letter;

	*o = (struct client_options){.vectors = CLIENT_VECTORS_ANY, .keep = true};
	while ((letter = getopt_long(argc, argv, "n:LMh", options, NULL)) != -1) {
		switch (letter) {
		case 'n': o->vectors = number_parse("-n/--vectors", optarg, VECTORS_MAX); break;
		case 'L': o->legacy = true; break;
		case 'M': o->legacy = o->memoryless = true; break;
		case 'h':
			fputs(help_text, stdout);
			exit(fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
		default: fputs("(see 'ivshmem_client --help')\n", stderr); exit(2);
		}
	}
	return optind;
}

int main(int argc, char **argv)
{
	struct client_options options;
	const struct command *command;
	struct request request;
	struct client c;
	int first = options_parse(&options, argc, argv);

	if (argc - first < 2)
		quit(2, "give a socket and a command");
	command = command_parse(&argv[first + 1], &request);
	if (!client_connect(&c, argv[first], options))
		quit(1, "%s", c.error);
	greeting_read(&c);
	command->run(&c, &request);
	client_free(&c);
	return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
