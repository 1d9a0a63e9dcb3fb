/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ivshmem_client: a peer of an ivshmem server for host programs, scripts and people
 *
 * Theory of operation. The client connects as a node would, and from the server's stream keeps a
 * table of the mesh (mesh): for each ID the eventfds that ring that peer's doorbells, its own among
 * them, on which it waits. A command is then done with that table: list, ring, wait and watch,
 * which are here; a dialog in the words of QEMU's ivshmem-client (dialog), which is all that there
 * is by the name of that program; or run, which makes another program a peer (run). Only status
 * asks the server and is no peer (status). In a virtual
 * machine all is the same, but the table has only the client itself, and the ivshmem device is in
 * place of the stream (device; vfio has its interrupts). What comes in as text, for these two, is
 * read by lines; report says what is wrong, and clock waits.
 */
#define _GNU_SOURCE
#include "client/clock.h"
#include "client/device.h"
#include "client/dialog.h"
#include "client/lines.h"
#include "client/mesh.h"
#include "client/report.h"
#include "client/run.h"
#include "client/status.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

#define DEFAULT_SOCKET "/tmp/ivshmem_socket"
#define PATH_LENGTH    (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)
#define SECONDS_MAX    (INT_MAX / 1000)
#define POLL_MAX       1000 /* ms */
#define WATCH_MS       2000 /* between two looks of status --watch */
#define WATCH_MIN_MS   100

static const char help_text[] =
	"Usage: ivshmem_client [OPTION]... [SOCKET] [COMMAND]\n"
	"Connect to an ivshmem server as a node does. Other nodes see the client join, and leave\n"
	"at the end; status only asks the server, and no node sees that. In a virtual machine, -D\n"
	"uses the ivshmem device of the machine instead.\n"
	"\n"
	"  status [--json] [--watch [SECONDS]]\n"
	"                         show what is served, and a table of all nodes, without joining:\n"
	"                         as JSON; again every SECONDS (default 2)\n"
	"  list                   show the client's ID, the size of the memory (in bytes, unless on\n"
	"                         a terminal), the client's vectors, and each other node with its\n"
	"                         vectors\n"
	"  ring ID VECTOR         ring a doorbell of that node\n"
	"  ring ID all, ring all  ring all doorbells of that node, or of all other nodes\n"
	"  wait VECTOR [SECONDS]  show the client's ID, wait until that doorbell of the client is\n"
	"                         rung, show how often\n"
	"  watch [SECONDS]        list, and then show which nodes join and leave (SECONDS: 5, 0.5)\n"
	"  run PROGRAM [ARG]...   run a program as a node: memory, events and requests are its\n"
	"                         descriptors 3, 4 and 5 (see the manual page)\n"
	"Without a command, commands are read from standard input: dump, int ID VECTOR, int ID all,\n"
	"int all, help, quit.\n"
	"\n"
	"  -S, --socket PATH      the server's socket (default " DEFAULT_SOCKET ")\n"
	"  -n, --vectors N        expect N vectors for each node; this is checked, and the client\n"
	"                         knows without waiting that the handshake is complete\n"
	"  -D, --device[=ADDRESS]\n"
	"                         in a virtual machine: use its ivshmem device instead of a socket;\n"
	"                         if there are several, the device at that PCI address\n"
	"      --poll MS          with -D and without vfio-pci, look for rings every MS\n"
	"                         milliseconds (1 to 1000, default 1)\n"
	"  -v, --verbose          show every message of the server on standard error\n"
	"  -V, --version          print the version and exit\n"
	"  -h, --help             print this help and exit\n"
	"\n"
	"Exit status: 0, done; 1, not done, for the reason given; 2, a mistake in the command line;\n"
	"of run: that of the program, or 128 plus the number of the signal that ended it.\n"
	"Run as " QEMU_NAME ", it takes the options of QEMU's program of that name.\n";

static const char qemu_help_text[] =
	"Usage: " QEMU_NAME " [OPTION]...\n"
	"Connect to an ivshmem server as a node, with the options of QEMU's own client; options\n"
	"and commands beyond them need the name ivshmem_client.\n"
	"\n"
	"  -S PATH         the server's socket (default " DEFAULT_SOCKET ")\n"
	"  -v              show every message of the server on standard error\n"
	"  -h, --help      print this help and exit\n"
	"\n"
	"Commands are read from standard input: dump, int ID VECTOR, int ID all, int all, help,\n"
	"?, quit. If the server is not there, the client tries again every second.\n";

/* What a command asks for. */
struct request {
	int id, vector;   /* either may be ALL */
	int64_t patience; /* SECONDS, in milliseconds */
	struct look look;
	char **program;
	struct rlimit descriptors; /* how many we might have had open, for the program */
};

/*
 * The commands status, list, ring, wait and watch
 */

static int status_show(struct mesh *m, const struct request *r)
{
	struct look look = r->look;

	if (m->device)
		quit(1, "a virtual machine cannot ask the server: ask for its status on the host");
	look.path = m->path;
	look.verbose = m->verbose;
	return status(&look);
}

static int list(struct mesh *m, const struct request *r)
{
	char size[SIZE_TEXT];

	(void)r;
	if (isatty(STDOUT_FILENO))
		size_text((uint64_t)m->size, size);
	else
		snprintf(size, sizeof(size), "%jd", (intmax_t)m->size);
	printf("id %d\nmemory %s\nvectors %d\n", m->id, size, mesh_own(m)->vectors);
	for (int id = -1; (id = peer_next(m, id)) >= 0;)
		printf("peer %d %d\n", id, m->peers[id].vectors);
	if (m->device)
		printf("rings %s\n", device_rings(m->device));
	return 0;
}

static int ring(struct mesh *m, const struct request *r)
{
	char why[WHY_SIZE];

	if (!mesh_ring(m, r->id, r->vector, why))
		quit(1, "%s", why);
	return 0;
}

/*
 * Doorbells need no server: one that ends is no reason to stop waiting. Where we have ended the
 * connection, the others have been told that we left, and nobody rings.
 */
static int wait_for(struct mesh *m, const struct request *r)
{
	const struct peer *own = mesh_own(m);
	int64_t deadline = clock_now() + r->patience;
	uint64_t count;

	if (r->vector >= own->vectors)
		quit(1, "there is no vector %d: each node has %d, numbered from 0", r->vector,
		     own->vectors);
	printf("id %d\n", m->id);
	output_flush();
	while ((count = bell_count(m, r->vector)) == 0) {
		struct pollfd polls[] = {
			{.fd = m->sock, .events = POLLIN},
			{.fd = own->fds[r->vector], .events = POLLIN},
		};
		int64_t left = deadline - clock_now();

		if (left <= 0)
			quit(1, "vector %d was not rung", r->vector);
		polls_wait(polls, 2, left);
		message_read(m);
		if (m->sock < 0 && !m->gone)
			quit(1, "%s", m->error);
	}
	printf("vector %d %" PRIu64 "\n", r->vector, count);
	return 0;
}

static int watch(struct mesh *m, const struct request *r)
{
	int64_t deadline = clock_now() + r->patience, left;
	enum news news;
	int id;

	if (m->device)
		quit(1,
		     "a virtual machine cannot know who joins and who leaves: watch on the host");
	list(m, r);
	news_skip(m); /* who is there has just been shown */
	while ((left = deadline - clock_now()) > 0) {
		struct pollfd poll = {.fd = m->sock, .events = POLLIN};

		output_flush();
		polls_wait(&poll, 1, left);
		for (int turn = 0; turn < TURN && message_read(m); turn++)
			while ((news = news_next(m, &id)) != NEWS_NONE)
				printf("%s %d\n", news == NEWS_JOIN ? "join" : "leave", id);
		if (m->sock < 0)
			quit(1, "%s", m->error);
	}
	return 0;
}

static int run_program(struct mesh *m, const struct request *r)
{
	return run(m, r->program, &r->descriptors);
}

/*
 * The command line
 */

/* Reads a whole number from 0 to max. */
static int number_parse(const char *what, const char *text, int max)
{
	char why[WHY_SIZE];
	int number = 0;

	if (!number_read(what, text, max, &number, why))
		quit(2, "%s", why);
	return number;
}

/* Behind all that a command takes. */
static void arguments_end(char **args, const char *why)
{
	if (args[0])
		quit(2, "unexpected argument '%s': %s, and options come first", args[0], why);
}

/* Reads seconds, whole or with a fraction. Returns milliseconds. */
static int64_t seconds_read(const char *text)
{
	char *end;
	double seconds = strtod(text, &end);

	if (end == text || text[strspn(text, "0123456789.")] || *end || seconds > SECONDS_MAX)
		quit(2, "SECONDS '%.40s': give a number from 0 to %d, such as 5 or 0.5", text,
		     SECONDS_MAX);
	return (int64_t)(seconds * 1000 + 0.5);
}

static void list_parse(char **args, struct request *r)
{
	(void)r;
	arguments_end(args, "'list' takes none");
}

static void status_parse(char **args, struct request *r)
{
	static const char watch[] = "--watch";
	const size_t n = strlen(watch);

	for (; args[0]; args++) {
		const char *every = NULL;

		if (!strcmp(args[0], "--json")) {
			r->look.json = true;
			continue;
		}
		if (strncmp(args[0], watch, n) != 0 || (args[0][n] && args[0][n] != '='))
			arguments_end(args, "'status' takes --json and --watch [SECONDS]");
		if (args[0][n])
			every = &args[0][n + 1];
		else if (args[1] && args[1][0] != '-')
			every = *++args;
		r->look.every_ms = every ? seconds_read(every) : WATCH_MS;
		if (r->look.every_ms < WATCH_MIN_MS)
			quit(2, "--watch '%.40s': give 0.1 seconds or more", every);
	}
}

static void ring_parse(char **args, struct request *r)
{
	char why[WHY_SIZE];

	if (!ring_read(args, &r->id, &r->vector, why))
		quit(2, "ring: %s", why);
}

/* What may stand last in a command. */
static void seconds_parse(char **args, struct request *r)
{
	if (!args[0])
		return;
	r->patience = seconds_read(args[0]);
	arguments_end(args + 1, "SECONDS is the last argument");
}

static void wait_parse(char **args, struct request *r)
{
	if (!args[0])
		quit(2, "wait: give VECTOR, or VECTOR SECONDS");
	r->vector = number_parse("VECTOR", args[0], VECTORS_MAX - 1);
	seconds_parse(args + 1, r);
}

static void run_parse(char **args, struct request *r)
{
	if (args[0] && !strcmp(args[0], "--")) /* as before a program elsewhere */
		args++;
	if (!args[0])
		quit(2, "run: give a program, and its arguments");
	r->program = args;
}

static const struct command {
	const char *name;
	void (*parse)(char **args, struct request *r);
	int (*run)(struct mesh *m, const struct request *r); /* returns the status to end with */
	bool joins;                                          /* the mesh, before */
	bool listens;                                        /* wants to be rung */
} commands[] = {
	{"status", status_parse, status_show, false, false},
	{"list", list_parse, list, true, false},
	{"ring", ring_parse, ring, true, false},
	{"wait", wait_parse, wait_for, true, true},
	{"watch", seconds_parse, watch, true, false},
	{"run", run_parse, run_program, true, true},
};

static const struct command *command_find(const char *name)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (strcmp(name, commands[i].name) == 0)
			return &commands[i];
	return NULL;
}

__attribute__((noreturn)) static void command_unknown(const char *name, const char *more)
{
	quit(2, "unknown command '%.40s'%s: give status, list, ring, wait, watch or run", name,
	     more);
}

/* Whether a word is meant as the path of a socket: it has a slash, or there is one of that name. */
static bool path_meant(const char *word)
{
	struct stat st;

	return strchr(word, '/') || (stat(word, &st) == 0 && S_ISSOCK(st.st_mode));
}

__attribute__((noreturn)) static void print_and_exit(const char *text)
{
	fputs(text, stdout);
	output_flush();
	exit(EXIT_SUCCESS);
}

/* What goes with a device, and what with a socket. */
static void device_check(const struct mesh *m, struct device *d)
{
	if (m->device && (m->path || m->given_vectors >= 0))
		quit(2, "-D takes a device in place of a socket: leave out -S and -n");
	if (!m->device && d->poll_ms)
		quit(2, "--poll is for the device of a virtual machine: give -D as well");
	if (!d->poll_ms)
		d->poll_ms = 1;
}

/* Ends the program over what getopt_long has found to be wrong with this word. */
__attribute__((noreturn)) static void option_mistake(int found, const char *letters,
						     const char *word)
{
	const char *more = as_qemu() ? "; QEMU's client has few, for ours run ivshmem_client" : "";

	if (found == ':')
		quit(2, "option '%s' needs a value", word);
	if (optopt && !strchr(letters, optopt))
		quit(2, "unknown option '-%c'%s", optopt, more);
	quit(2, "option '%s' is unknown, ambiguous, or takes no value%s", word, more);
}

/* Reads the options of QEMU's client, which has no others, and no arguments behind them. */
static void options_parse_qemu(struct mesh *m, int argc, char **argv)
{
	static const char qemu_letters[] = ":hvS:";
	static const struct option qemu_words[] = {
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int letter;

	while ((letter = getopt_long(argc, argv, qemu_letters, qemu_words, NULL)) != -1) {
		switch (letter) {
		case 'S': m->path = optarg; break;
		case 'v': m->verbose = true; break;
		case 'h': print_and_exit(qemu_help_text);
		default: option_mistake(letter, qemu_letters, argv[optind - 1]);
		}
	}
	if (argv[optind])
		quit(2,
		     "unexpected argument '%s': a socket goes with -S; for commands run "
		     "ivshmem_client",
		     argv[optind]);
}

enum { POLL = UCHAR_MAX + 1 }; /* options without a letter */

/* Reads the options. Returns the arguments behind them. */
static char **options_parse(struct mesh *m, int argc, char **argv)
{
	static const char short_options[] = "+:S:n:D::vVh";
	static const struct option options[] = {
		{"socket", required_argument, NULL, 'S'}, {"vectors", required_argument, NULL, 'n'},
		{"device", optional_argument, NULL, 'D'}, {"poll", required_argument, NULL, POLL},
		{"verbose", no_argument, NULL, 'v'},      {"version", no_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
	};
	static struct device device;
	int letter;

	while ((letter = getopt_long(argc, argv, short_options, options, NULL)) != -1) {
		switch (letter) {
		case 'S': m->path = optarg; break;
		case 'n':
			m->given_vectors = number_parse("-n/--vectors", optarg, VECTORS_MAX);
			break;
		case 'D':
			m->device = &device;
			device.wanted = optarg;
			break;
		case POLL:
			device.poll_ms = number_parse("--poll", optarg, POLL_MAX);
			if (device.poll_ms == 0)
				quit(2, "--poll '0': give milliseconds, 1 or more");
			break;
		case 'v': m->verbose = true; break;
		case 'V': print_and_exit("ivshmem_client " VERSION "\n");
		case 'h': print_and_exit(help_text);
		default: option_mistake(letter, short_options, argv[optind - 1]);
		}
	}
	device_check(m, &device);
	return argv + optind;
}

/* Reads the command line. Returns the command, or NULL for the dialog. */
static const struct command *arguments_parse(struct mesh *m, int argc, char **argv,
					     struct request *request)
{
	const struct command *command;
	char **args;

	m->given_vectors = -1;
	*request = (struct request){.patience = FOREVER};
	if (as_qemu()) {
		options_parse_qemu(m, argc, argv);
		args = argv + argc;
	} else {
		args = options_parse(m, argc, argv);
	}
	if (!m->path && !m->device && args[0] && !command_find(args[0])) {
		if (!path_meant(args[0]))
			command_unknown(args[0], ", and no socket of that name is here");
		m->path = *args++;
	}
	if (!m->path)
		m->path = DEFAULT_SOCKET;
	if (!*m->path || strlen(m->path) > PATH_LENGTH)
		quit(2, "socket '%.40s': give a path of 1 to %zu characters", m->path, PATH_LENGTH);
	command = args[0] ? command_find(args[0]) : NULL;
	if (m->device)
		m->device->listens = !command || command->listens;
	if (!args[0])
		return NULL;
	if (!command)
		command_unknown(args[0], "");
	command->parse(args + 1, request);
	return command;
}

/*
 * Makes room for the eventfds of a large mesh, and sure that none of ours is taken for 0 to 2. What
 * was closed of these can be written to no more than before. Returns the limit that was there.
 */
static struct rlimit descriptors_prepare(void)
{
	struct rlimit limit;
	int fd;

	do
		fd = open("/dev/null", O_RDONLY);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0 || getrlimit(RLIMIT_NOFILE, &limit) < 0)
		quit(1, "cannot open /dev/null: %s", strerror(errno));
	close(fd);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){limit.rlim_max, limit.rlim_max});
	return limit;
}

int main(int argc, char **argv)
{
	static struct mesh mesh;
	const struct command *command;
	struct request request;
	int status;

	command = arguments_parse(&mesh, argc, argv, &request);
	request.descriptors = descriptors_prepare();
	if (command && !command->joins)
		return command->run(&mesh, &request);
	if (!command)
		status = dialog(&mesh);
	else if (mesh_join(&mesh, request.patience))
		status = command->run(&mesh, &request);
	else
		quit(1, "%s", mesh.error);
	mesh_free(&mesh);
	output_flush();
	return status;
}
