/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The price of a message. Each case is played to the plain sender, to the server and, if there is
 * one, to another server, in turn, round after round; medians of the rounds are reported, and the
 * ratio to the kernel's own cost is that of neighbours in time. See --help.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define CASES_MAX  32
#define ROUNDS_MIN 3

static const char help_text[] =
	"Usage: bench [OPTION]... [CASE]...\n"
	"What a message costs tm_ivshmem_server, beside the kernel's own cost of sending it.\n"
	"\n"
	"A case is PEERSxVECTORS:HOW. HOW is 'once', all peers connect at the same time; 'turn',\n"
	"one by one, each when all know the one before; or 'churn', 100 times one peer joins and\n"
	"leaves in a mesh of so many others. Without any: the six of doc/cost.md.\n"
	"\n"
	"  -s, --seconds N   repeat each case for so long, three times at least (default 40)\n"
	"  -r, --rounds N    repeat each case so often\n"
	"  -t, --table FILE  write the whole table into a file as well, once it is complete\n"
	"  -h, --help        print this help and exit\n"
	"\n"
	"Environment:\n"
	"  SERVER   the program to measure (default ./tm_ivshmem_server)\n"
	"  PEER     a shell command that runs another server of the same protocol, in the\n"
	"           foreground. Its environment says what to serve: $SOCKET, the path to listen\n"
	"           on; $VECTORS; $SIZE, bytes; $NAME, of a shared memory object. The server that\n"
	"           comes with QEMU's source as an example:\n"
	"             PEER='ivshmem-server -F -S $SOCKET -M $NAME -l $SIZE -n $VECTORS'\n"
	"           Messages that it loses are counted, after two seconds of silence.\n"
	"\n"
	"Columns: CPU is the time that the server computed, for each message that clients got;\n"
	"ratio is that to the CPU time of a plain sender, which sends the same messages from\n"
	"prepared batches (sendmmsg of 64) to the same clients and does nothing else. A join\n"
	"takes from the connect to the last own vector; its ratio is that of the median to the\n"
	"plain sender's, which sends each its greeting, in the order of connecting, and then the\n"
	"news. Peak is VmHWM. Exit status: 1 where the server lost a message.\n";

static const struct option long_options[] = {
	{"seconds", required_argument, NULL, 's'},
	{"rounds", required_argument, NULL, 'r'},
	{"table", required_argument, NULL, 't'},
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

struct bench {
	double seconds; /* for each case */
	size_t rounds;  /* of each case; 0: as many as fit */
	const char *table;
	const char *server; /* the program to measure */
	const char *commands[BENCH_PROGRAMS];
	size_t cases;
	struct bench_series series[CASES_MAX];
};

__attribute__((noreturn)) static void usage(const char *what, const char *value)
{
	fprintf(stderr, "bench: %s '%s' (see --help)\n", what, value);
	exit(2);
}

static struct bench_case case_parse(const char *text)
{
	struct bench_case c;
	char how[8];

	if (sscanf(text, "%ux%u:%7s", &c.peers, &c.vectors, how) != 3 || c.peers < 1 ||
	    c.peers > 1000 || c.vectors < 1 || c.vectors > 2048)
		usage("not a case:", text);
	if (!strcmp(how, "once"))
		c.how = AT_ONCE;
	else if (!strcmp(how, "turn"))
		c.how = IN_TURN;
	else if (!strcmp(how, "churn"))
		c.how = CHURN;
	else
		usage("not a case:", text);
	return c;
}

static double number_parse(const char *text, double most)
{
	char *end;
	double number = strtod(text, &end);

	if (end == text || *end || !(number > 0) || number > most)
		usage("not a number that fits:", text);
	return number;
}

static void options_parse(struct bench *b, int argc, char **argv)
{
	static const char *const usual[] = {"200x4:once", "900x1:once", "120x64:once",
					    "200x4:turn", "900x1:turn", "200x4:churn"};
	int letter;

	while ((letter = getopt_long(argc, argv, "s:r:t:h", long_options, NULL)) != -1) {
		switch (letter) {
		case 's': b->seconds = number_parse(optarg, 3600); break;
		case 'r': b->rounds = (size_t)number_parse(optarg, ROUNDS_MAX); break;
		case 't': b->table = optarg; break;
		case 'h': fputs(help_text, stdout); exit(0);
		default: exit(2);
		}
	}
	if (argc - optind > CASES_MAX)
		usage("too many cases:", argv[optind + CASES_MAX]);
	for (; optind < argc; optind++)
		b->series[b->cases++].what = case_parse(argv[optind]);
	for (size_t i = 0; b->cases == 0 && i < sizeof(usual) / sizeof(usual[0]); i++)
		b->series[i].what = case_parse(usual[i]);
	if (b->cases == 0)
		b->cases = sizeof(usual) / sizeof(usual[0]);
}

/* The commands that serve, from the environment. */
static void commands_find(struct bench *b)
{
	const char *peer = getenv("PEER");
	char *command;

	b->server = getenv("SERVER");
	if (!b->server)
		b->server = "./tm_ivshmem_server";
	if (asprintf(&command, "'%s' -p \"$SOCKET\" -s \"$NAME\" -m 1M -n \"$VECTORS\"",
		     b->server) < 0)
		exit(EXIT_FAILURE);
	b->commands[SERVER] = command;
	b->commands[PEER] = peer && *peer ? peer : NULL;
}

/* One run of a case. Returns false after having said why. */
static bool case_run(const struct bench *b, struct bench_series *s, enum bench_who who)
{
	struct bench_program p;
	bool done = program_start(&p, b->commands[who], &s->what) &&
		    mesh_run(&s->what, &p, &s->results[who][s->rounds]);

	program_stop(&p);
	return done;
}

/* All rounds of a case. Each begins with another program, so that none always has the same
 * neighbour. */
static bool case_repeat(const struct bench *b, struct bench_series *s)
{
	unsigned int programs = b->commands[PEER] ? BENCH_PROGRAMS : PEER;
	double end = clock_seconds(CLOCK_MONOTONIC) + b->seconds;

	while (b->rounds ? s->rounds < b->rounds
			 : s->rounds < ROUNDS_MIN || (s->rounds < ROUNDS_MAX &&
						      clock_seconds(CLOCK_MONOTONIC) < end)) {
		for (unsigned int i = 0; i < programs; i++)
			if (!case_run(b, s, (s->rounds + i) % programs))
				return false;
		s->rounds++;
	}
	return true;
}

/* Writes the table of all cases. Returns false after having said why. */
static bool table_write(const struct bench *b)
{
	FILE *f = fopen(b->table, "we");
	bool written = f;

	if (f) {
		report_head(f, b->server, b->commands[PEER]);
		for (size_t i = 0; i < b->cases; i++)
			report_case(f, &b->series[i], b->commands[PEER]);
		report_foot(f, b->series, b->cases);
		written = !ferror(f);
		written = fclose(f) == 0 && written;
	}
	if (!written)
		fprintf(stderr, "bench: %s: %s\n", b->table, strerror(errno));
	return written;
}

int main(int argc, char **argv)
{
	static struct bench b = {.seconds = 40};
	struct rlimit limit;
	bool lossless = true;

	options_parse(&b, argc, argv);
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	commands_find(&b);
	report_head(stdout, b.server, b.commands[PEER]);
	program_pin(false);
	for (size_t i = 0; i < b.cases; i++) {
		struct bench_series *s = &b.series[i];

		if (!case_repeat(&b, s))
			return EXIT_FAILURE;
		report_case(stdout, s, b.commands[PEER]);
		for (size_t round = 0; round < s->rounds; round++)
			lossless = lossless && s->results[SERVER][round].lost == 0;
	}
	report_foot(stdout, b.series, b.cases);
	if (b.table && !table_write(&b))
		return EXIT_FAILURE;
	return lossless ? EXIT_SUCCESS : EXIT_FAILURE;
}
