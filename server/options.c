/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/options.h"
#include "server/log.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* The public interface: values that users and clients see. */
#define DEFAULT_SOCKET "/tmp/ivshmem_socket"

#define DEFAULT_SHM "ivshmem"

#define QEMU_SIZE (UINT64_C(4) << 20)

#define QEMU_PIDFILE "/var/run/ivshmem-server.pid"

#define SYNC_MAX 86400 /* seconds: a day */

int typed(int letter)
{
	static const char ours[] = "Asmpi", qemu[] = "mMlSp";
	const char *at = as_qemu() ? strchr(ours, letter) : NULL;

	return at ? qemu[at - ours] : letter;
}

const char *own_name(void)
{
	return as_qemu() ? "tm_ivshmem_server " : "";
}

static const char help_text[] =
	"Usage: tm_ivshmem_server [OPTION]...\n"
	"Serve fabric-attached memory to QEMU nodes: one shared memory object, an ID and\n"
	"doorbells for every ivshmem device that connects.\n"
	"\n"
	"  -d, --daemonize      go to the background once everything is ready\n"
	"  -f, --file PATH      regular file as backing store: the data persists\n"
	"  -s, --shm NAME       POSIX shared memory object instead (default " DEFAULT_SHM ")\n"
	"  -A, --anonymous[=DIR]  memory without a name, which disappears with its last user\n"
	"                       and which nobody can truncate; with DIR, an unnamed file in DIR\n"
	"  -m, --size N[K|M|G|T]  size, a power of two; plain numbers are MiB (default 1M for\n"
	"                       a new object; an existing object keeps its size)\n"
	"  -t, --truncate       resize an existing object to -m exactly\n"
	"  -a, --allocate       reserve every block of the object now\n"
	"  -n, --vectors N      MSI-X vectors of each node, 0 to 2048 (default 1)\n"
	"  -p, --socket PATH    UNIX socket to listen on (default " DEFAULT_SOCKET ")\n"
	"  -g, --group GROUP    group that may connect: name or number (default kvm, if it exists)\n"
	"  -L, --legacy         send the original stream, without the version message; allows any\n"
	"                       size of whole pages, and -m 0 for interrupts without memory\n"
	"  -i, --pidfile PATH   write the process ID to PATH, locked while the server runs\n"
	"  -o, --log FILE       append the log to FILE; HUP opens it again\n"
	"  -y, --sync SECONDS   flush the file to disk at this interval, not only when nodes leave\n"
	"  -v, --verbose        log every message\n"
	"      --default-file PATH  the same as -f, but -f, -s, -A and -m 0 override it\n"
	"      --check          check the command line, and exit\n"
	"  -V, --version        print the version and exit; after other options, --check them first\n"
	"  -h, --help           print this help and exit\n"
	"\n"
	"TERM, INT and QUIT end the server; the memory object stays. HUP restarts the server\n"
	"in place, for upgrades while nodes stay connected. USR1 logs a table of the nodes. USR2\n"
	"ends the server and leaves the nodes to the successor that systemd starts.\n"
	"Run as " QEMU_NAME ", this program takes the options of QEMU's program of that name.\n";

static const char qemu_help_text[] =
	"Usage: " QEMU_NAME " [OPTION]...\n"
	"Serve shared memory and doorbells to QEMU nodes with the options of QEMU's own\n"
	"server. Run tm_ivshmem_server for all other options.\n"
	"\n"
	"  -F              stay in the foreground (default: go to the background once\n"
	"                  everything is ready)\n"
	"  -p FILE         write the process ID to FILE when in the background\n"
	"                  (default " QEMU_PIDFILE ")\n"
	"  -S PATH         UNIX socket to listen on (default " DEFAULT_SOCKET ")\n"
	"  -M NAME         POSIX shared memory object (default " DEFAULT_SHM ")\n"
	"  -m DIR          an unnamed file in DIR instead; of -M and -m the last counts. A name\n"
	"                  without '/' that does not exist here is taken as that of -M\n"
	"  -l SIZE[B|K|M|G|T|P|E]  size, a power of two: plain numbers are bytes; 0.5G and\n"
	"                  0x100000 are valid, too (default 4M); a smaller object is\n"
	"                  enlarged, a larger object is served as it is\n"
	"  -n N            MSI-X vectors of each node, 0 to 2048 (default 1)\n"
	"  -v              log every message\n"
	"  -h, --help      print this help and exit\n"
	"\n"
	"TERM, INT and QUIT end the server; the named object stays. HUP restarts the server\n"
	"in place, for upgrades while nodes stay connected. USR1 logs a table of the nodes. USR2\n"
	"ends the server and leaves the nodes to the successor that systemd starts.\n";

/* Options without a letter. */
enum { OPTION_CHECK = UCHAR_MAX + 1, OPTION_DEFAULT_FILE };

static const char short_options[] = ":df:s:A::m:tan:p:g:Li:o:y:vVh";

static const struct option long_options[] = {
	{"daemonize", no_argument, NULL, 'd'},
	{"file", required_argument, NULL, 'f'},
	{"shm", required_argument, NULL, 's'},
	{"anonymous", optional_argument, NULL, 'A'},
	{"size", required_argument, NULL, 'm'},
	{"truncate", no_argument, NULL, 't'},
	{"allocate", no_argument, NULL, 'a'},
	{"vectors", required_argument, NULL, 'n'},
	{"socket", required_argument, NULL, 'p'},
	{"group", required_argument, NULL, 'g'},
	{"legacy", no_argument, NULL, 'L'},
	{"pidfile", required_argument, NULL, 'i'},
	{"log", required_argument, NULL, 'o'},
	{"sync", required_argument, NULL, 'y'},
	{"verbose", no_argument, NULL, 'v'},
	{"default-file", required_argument, NULL, OPTION_DEFAULT_FILE},
	{"check", no_argument, NULL, OPTION_CHECK},
	{"version", no_argument, NULL, 'V'},
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

const char version_text[] = "tm_ivshmem_server " VERSION "\n";

static const char as_qemu_hint[] = "for QEMU's option letters run this as " QEMU_NAME;

static const char qemu_letters[] = ":hvFp:S:M:m:l:n:";

static const struct option qemu_words[] = {
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

void print_and_exit(const char *text)
{
	if (fputs(text, stdout) < 0 || fflush(stdout) != 0) {
		fail("cannot write to standard output");
		exit(EXIT_FAILURE);
	}
	exit(EXIT_SUCCESS);
}

const char *option_name(int letter)
{
	static char name[32];
	const struct option *o = long_options;

	while (o->name && o->val != letter)
		o++;
	if (!o->name)
		return NULL;
	if (as_qemu())
		snprintf(name, sizeof(name), "-%c", typed(letter));
	else if (letter > UCHAR_MAX)
		snprintf(name, sizeof(name), "--%s", o->name);
	else
		snprintf(name, sizeof(name), "-%c/--%s", letter, o->name);
	return name;
}

bool digits_parse(const char *text, uint64_t *number, char **end)
{
	if (*text < '0' || *text > '9')
		return false;
	*number = strtoull(text, end, 10);
	return true;
}

static unsigned int number_parse(int letter, unsigned int min, unsigned int max)
{
	uint64_t number;
	char *end;

	if (!digits_parse(optarg, &number, &end) || *end || number < min || number > max)
		usage("%s " VALUE ": give a whole number from %u to %u", option_name(letter),
		      optarg, min, max);
	return (unsigned int)number;
}

/* A product, or UINT64_MAX where that is more than 64 bits hold. */
static uint64_t product(uint64_t a, uint64_t b)
{
	uint64_t out;

	return __builtin_mul_overflow(a, b, &out) ? UINT64_MAX : out;
}

/* How many bytes a unit stands for, a letter of units in either case; 0: that is none. */
static uint64_t unit_bytes(const char *units, int letter)
{
	const char *at = letter ? strchr(units, toupper(letter)) : NULL;

	return at ? UINT64_C(1) << 10 * (strchr("BKMGTPE", *at) - "BKMGTPE") : 0;
}

/* Reads a size as we take it: digits and one optional unit, MiB without. */
static bool size_parse_own(const char *text, uint64_t *bytes)
{
	uint64_t number, unit;
	char *end;

	if (!digits_parse(text, &number, &end))
		return false;
	unit = unit_bytes("KMGT", *end ? *end : 'M');
	*bytes = product(number, unit);
	return unit && (!*end || !end[1]);
}

/*
 * Reads a size as QEMU does (qemu_strtosz): decimal, with a fraction where the unit has one, which
 * is rounded to bytes, or hexadecimal without a unit; bytes where there is none.
 */
static bool size_parse_qemu(const char *text, uint64_t *bytes)
{
	uint64_t number = 0, unit, part = 0, whole = 1;
	char *end = (char *)text + strspn(text, " \t\n\v\f\r");

	end += *end == '+';
	if (end[0] == '0' && toupper((unsigned char)end[1]) == 'X') {
		*bytes = strtoull(end, &end, 16);
		return !*end && toupper((unsigned char)end[-1]) != 'X';
	}
	if (!digits_parse(end, &number, &end) && (*end != '.' || !isdigit((unsigned char)end[1])))
		return false;
	if (*end == '.')
		for (end++; isdigit((unsigned char)*end); end++)
			if (whole < UINT64_C(1000000000000000000)) { /* more make no byte */
				part = 10 * part + (uint64_t)(*end - '0');
				whole *= 10;
			}
	unit = unit_bytes("BKMGTPE", *end ? *end : 'B');
	if (!unit || (*end && end[1]) || (part && unit == 1))
		return false;
	*bytes = product(number, unit);
	if (*bytes < UINT64_MAX)
		*bytes += (uint64_t)(((unsigned __int128)part * unit + whole / 2) / whole);
	return true;
}

/* The size in optarg, in bytes. */
static uint64_t size_parse(void)
{
	uint64_t bytes = 0;

	if (!(as_qemu() ? size_parse_qemu : size_parse_own)(optarg, &bytes)) {
		if (strchr(optarg, '/') && !as_qemu())
			usage("%s " VALUE ": this option takes a size; a folder goes with -A; %s",
			      option_name('m'), optarg, as_qemu_hint);
		if (as_qemu())
			usage("%s " VALUE
			      ": give a number and at most one of K, M, G, T, P and E; plain "
			      "numbers are bytes",
			      option_name('m'), optarg);
		usage("%s " VALUE
		      ": give digits and at most one of K, M, G and T; plain numbers are MiB",
		      option_name('m'), optarg);
	}
	if (bytes > INT64_MAX)
		usage("%s " VALUE ": more than a file can hold; give less", option_name('m'),
		      optarg);
	return bytes;
}

char *path_absolute(const char *path)
{
	char *cwd = getcwd(NULL, 0), *absolute = NULL;

	if (*path == '/')
		absolute = strdup(path);
	else if (cwd && asprintf(&absolute, "%s/%s", cwd, path) < 0)
		absolute = NULL;
	free(cwd);
	return absolute;
}

/*
 * The absolute form of the path in optarg, since the working directory changes. It also replaces
 * the path in *arg, the word of the command line that ends with it. Stays allocated.
 */
static const char *path_parse(int letter, char **arg)
{
	int before = (int)(optarg - *arg);
	char *path, *word;

	if (!*optarg)
		usage("%s '': give a path", option_name(letter));
	path = path_absolute(optarg);
	if (!path || asprintf(&word, "%.*s%s", before, *arg, path) < 0)
		usage("%s " VALUE
		      ": give a path that starts with '/', the working directory is unknown: %s",
		      option_name(letter), optarg, strerror(errno));
	free(path);
	*arg = word;
	return word + before;
}

static const char *socket_parse(char **arg)
{
	const char *path = path_parse('p', arg);
	size_t max = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;

	if (strlen(path) > max)
		usage("%s " VALUE
		      ": the path of a socket has at most %zu bytes, this path has %zu; give a shorter path",
		      option_name('p'), path, max, strlen(path));
	return path;
}

/* The path of a shared memory object: shm_open(3) looks for it there as well. Stays allocated. */
static const char *shm_parse(const char *given)
{
	const char *name = given + (*given == '/');
	char *path;

	if (!*name || strchr(name, '/') || strlen(name) > NAME_MAX || !strcmp(name, ".") ||
	    !strcmp(name, ".."))
		usage("%s " VALUE ": give a name of 1 to %d bytes without '/'; %s",
		      option_name('s'), given, NAME_MAX,
		      as_qemu() ? "a folder goes with -m" : "a path goes with -f");
	if (asprintf(&path, "/dev/shm/%s", name) < 0)
		usage("%s " VALUE ": %s", option_name('s'), given, strerror(errno));
	return path;
}

/* What a backing store without a name is called: it is in a folder, or in none. */
static const char *anonymous_text(const char *folder)
{
	char *text;

	if (!folder)
		return "anonymous memory";
	if (asprintf(&text, "an unnamed file in %s", folder) < 0)
		usage("%s " VALUE ": %s", option_name('A'), folder, strerror(errno));
	return text;
}

bool size_fits(const struct options *o, uint64_t bytes, char **why)
{
	uint64_t page = (uint64_t)getpagesize(), below, above;

	if (bytes < page) {
		if (asprintf(why, "less than one page; give at least %s", SIZE(page)) < 0)
			*why = NULL;
		return false;
	}
	below = o->legacy ? bytes / page * page : UINT64_C(1) << (63 - __builtin_clzll(bytes));
	above = below + (o->legacy ? page : below);
	if (bytes == below)
		return true;
	if (asprintf(why,
		     above > INT64_MAX ? "not a %s; the nearest is %s"
				       : "not a %s; the nearest are %s and %s",
		     o->legacy ? "multiple of the page size" : "power of two, which QEMU needs",
		     SIZE(below), SIZE(above)) < 0)
		*why = NULL;
	return false;
}

bool memoryless(const struct options *o)
{
	return o->sized && o->size == 0;
}

/* What must not be given where there is to be no memory. */
static void memoryless_check(const struct options *o, const char *file, const char *shm,
			     const char *size)
{
	const struct {
		bool given;
		const char *name;
	} pointless[] = {
		{o->anonymous, "-A/--anonymous"},
		{o->truncate, "-t/--truncate"},
		{o->allocate, "-a/--allocate"},
		{file, "-f/--file"},
		{shm, "-s/--shm"},
		{o->sync, "-y/--sync"},
	};

	if (!o->legacy)
		usage("%s " VALUE
		      ": give a size; only the original stream, %s-L, works without memory",
		      option_name('m'), size, own_name());
	for (size_t i = 0; i < sizeof(pointless) / sizeof(pointless[0]); i++)
		if (pointless[i].given)
			usage("%s: there is no memory with %s %s", pointless[i].name, "-m/--size",
			      size);
}

/* Four things cannot have one path. */
static void paths_check(const struct options *o)
{
	const struct {
		const char *path, *what;
		int letter;
	} paths[] = {
		{o->anonymous ? NULL : o->object, "backing store", 0},
		{o->socket, "socket", 'p'},
		{o->pidfile, "pidfile", 'i'},
		{o->log, "log", 'o'},
	};

	for (size_t i = 1; i < sizeof(paths) / sizeof(paths[0]); i++)
		for (size_t j = 0; j < i; j++)
			if (paths[i].path && paths[j].path && !strcmp(paths[i].path, paths[j].path))
				usage("%s " VALUE ": the %s has this path; give another path",
				      option_name(paths[i].letter), paths[i].path, paths[j].what);
}

/* What holds for the options together, whatever their order; arguments as they were given. */
static void options_check(const struct options *o, const char *file, const char *shm,
			  const char *size)
{
	char *why;

	if (file && shm)
		usage("%s " VALUE " and %s " VALUE " exclude each other: give one backing store",
		      "-f/--file", file, "-s/--shm", shm);
	if (o->anonymous && (file || shm))
		usage("%s and %s " VALUE " exclude each other: give one backing store",
		      "-A/--anonymous", option_name(file ? 'f' : 's'), file ? file : shm);
	if (o->anonymous && o->truncate)
		usage("%s and %s exclude each other: memory without a name is always new",
		      "-A/--anonymous", "-t/--truncate");
	if (o->truncate && !o->sized)
		usage("%s needs %s: say which size", "-t/--truncate", "-m/--size");
	if (memoryless(o))
		memoryless_check(o, file, shm, size);
	if (o->sized && o->size > 0 && !size_fits(o, o->size, &why))
		usage("%s " VALUE ": %s", option_name('m'), size, why);
	paths_check(o);
	if (o->sync && o->shm)
		usage("%s '%u' needs %s: shared memory is never on disk", option_name('y'), o->sync,
		      "-f/--file");
}

/* What to do instead of giving our program an option that only QEMU's has; NULL: it has none. */
static const char *qemu_option_hint(int letter)
{
	switch (letter) {
	case 'F': return "the server stays in the foreground by default";
	case 'S': return "the socket goes with -p";
	case 'M': return "a shared memory object goes with -s";
	case 'l': return "the size goes with -m";
	default: return NULL;
	}
}

/* Ends the program over what getopt_long has found to be wrong with this word. */
__attribute__((noreturn)) static void option_mistake(int found, const char *word)
{
	const char *ours = option_name(optopt), *hint = qemu_option_hint(optopt);

	if (found == ':' && as_qemu())
		usage("-%c needs a value", optopt);
	if (found == ':')
		usage("%s needs a value", ours);
	if (!optopt && as_qemu())
		usage("unknown option " VALUE
		      ": QEMU's server has only short options; for long options "
		      "run tm_ivshmem_server",
		      word);
	if (!optopt)
		usage("unknown or ambiguous option " VALUE, word);
	if (as_qemu() ? optopt == 'h' : !!ours)
		usage(VALUE ": %s takes no value", word, ours);
	if (as_qemu() && ours)
		usage("unknown option '-%c': QEMU's server does not have this option; run "
		      "tm_ivshmem_server to use it",
		      optopt);
	if (!as_qemu() && hint)
		usage("unknown option '-%c': %s; %s", optopt, hint, as_qemu_hint);
	usage("unknown option '-%c'", optopt);
}

/* The backing store has no name: its file is in the folder in optarg or, without one, nowhere. */
static void anonymous_parse(struct options *o, char **arg)
{
	if (optarg && *optarg == '=' && !as_qemu())
		usage("-A " VALUE ": the folder directly follows -A, as in -A/tmp", optarg);
	o->folder = optarg ? path_parse('A', arg) : NULL;
	o->shm = o->anonymous = true;
}

/* Whether the command line is only to be looked at. */
static bool check_asked(char **argv)
{
	while (*argv && strcmp(*argv, "--check") != 0)
		argv++;
	return *argv;
}

/* Takes our own options. */
static void options_parse_own(struct options *o, int argc, char **argv)
{
	const char *file = NULL, *shm = NULL, *size = NULL, *default_file = NULL;
	int letter;

	while ((letter = getopt_long(argc, argv, short_options, long_options, NULL)) != -1) {
		switch (letter) {
		case 'd': o->daemonize = true; break;
		case 'f':
			file = optarg;
			o->object = path_parse('f', &argv[optind - 1]);
			o->shm = false;
			break;
		case 's':
			shm = optarg;
			o->shm = true;
			break;
		case 'A': anonymous_parse(o, &argv[optind - 1]); break;
		case 'm':
			size = optarg;
			o->size = size_parse();
			o->sized = true;
			break;
		case 't': o->truncate = true; break;
		case 'a': o->allocate = true; break;
		case 'n': o->vectors = number_parse('n', 0, VECTORS_MAX); break;
		case 'p': o->socket = socket_parse(&argv[optind - 1]); break;
		case 'g': o->group = optarg; break;
		case 'L': o->legacy = true; break;
		case 'i': o->pidfile = path_parse('i', &argv[optind - 1]); break;
		case 'o': o->log = path_parse('o', &argv[optind - 1]); break;
		case 'y': o->sync = number_parse('y', 1, SYNC_MAX); break;
		case 'v': o->verbose = true; break;
		case OPTION_DEFAULT_FILE:
			default_file = path_parse(letter, &argv[optind - 1]);
			break;
		case OPTION_CHECK: o->check = true; break;
		case 'V':
			if (optind < argc && !check_asked(argv))
				print_and_exit(version_text);
			o->version = true;
			break;
		case 'h': print_and_exit(help_text);
		default: option_mistake(letter, argv[optind - 1]);
		}
	}
	if (optind < argc && o->anonymous && !o->folder)
		usage("unexpected argument " VALUE
		      ": -A/--anonymous takes a folder without a space before it, as in -A/tmp",
		      argv[optind]);
	if (shm)
		o->object = shm_parse(shm);
	if (default_file && !file && !shm && !o->anonymous && !memoryless(o)) {
		o->object = default_file;
		o->shm = false;
	}
	options_check(o, file, shm, size);
}

/*
 * Whether the value of -m names an object, which it does in QEMU 2.5 where it is no folder. A file
 * of that name may be what its user means; it is not served, and nothing else in its place.
 */
static bool object_meant(const char *value)
{
	struct stat st;

	return *value && !strchr(value, '/') && lstat(value, &st) < 0 && errno == ENOENT;
}

/* Makes -M of the -m whose value is in optarg: a restart in place reads the command line in another
 * working directory. */
static void letter_correct(char **argv)
{
	bool apart = optarg == argv[optind - 1];
	char *word = argv[optind - 1 - apart];

	word[(apart ? strlen(word) : (size_t)(optarg - word)) - 1] = 'M';
}

/* Takes the options of QEMU's server, whose defaults are others. */
static void options_parse_qemu(struct options *o, int argc, char **argv)
{
	const char *name = DEFAULT_SHM, *size = "4M";
	int letter;

	o->size = QEMU_SIZE;
	o->sized = o->grow = o->daemonize = true;
	o->pidfile = QEMU_PIDFILE;
	o->pidfile_optional = true;
	while ((letter = getopt_long(argc, argv, qemu_letters, qemu_words, NULL)) != -1) {
		switch (letter) {
		case 'F': o->daemonize = false; break;
		case 'p':
			o->pidfile = path_parse('i', &argv[optind - 1]);
			o->pidfile_optional = false;
			break;
		case 'S': o->socket = socket_parse(&argv[optind - 1]); break;
		case 'M':
			name = optarg;
			o->anonymous = o->shm_by_m = false;
			break;
		case 'm':
			o->shm_by_m = object_meant(optarg);
			if (o->shm_by_m) {
				name = optarg;
				o->anonymous = false;
				letter_correct(argv);
			} else {
				anonymous_parse(o, &argv[optind - 1]);
			}
			break;
		case 'l':
			size = optarg;
			o->size = size_parse();
			break;
		case 'n': o->vectors = number_parse('n', 0, VECTORS_MAX); break;
		case 'v': o->verbose = true; break;
		case 'h': print_and_exit(qemu_help_text);
		default: option_mistake(letter, argv[optind - 1]);
		}
	}
	if (!o->anonymous)
		o->object = shm_parse(name);
	if (!o->daemonize)
		o->pidfile = NULL; /* QEMU's server writes none then, whatever -p says */
	options_check(o, NULL, NULL, size);
}

void options_parse(struct options *o, int argc, char **argv)
{
	*o = (struct options){.object = "/dev/shm/" DEFAULT_SHM,
			      .shm = true,
			      .socket = DEFAULT_SOCKET,
			      .vectors = 1};
	opterr = 0;
	(as_qemu() ? options_parse_qemu : options_parse_own)(o, argc, argv);
	if (optind < argc)
		usage("unexpected argument " VALUE, argv[optind]);
	if (o->anonymous)
		o->object = anonymous_text(o->folder);
	if (o->shm_by_m)
		say("-m %s is taken as -M, a shared memory object: no folder of that name is here",
		    strrchr(o->object, '/') + 1);
}
