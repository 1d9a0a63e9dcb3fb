/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tm_ivshmem_server: fabric-attached memory for QEMU nodes
 *
 * Theory of operation. The server owns one object of shared memory, a regular file or a POSIX
 * shared memory object, and one listening socket. Every QEMU process with an ivshmem device that
 * connects there becomes a peer: it gets an ID, the descriptor of the memory, the eventfds of all
 * other peers and its own; the others get its eventfds, and later word that it left. Data and
 * doorbells then flow between the nodes directly, the server sees neither.
 *
 * Everything that is said to a peer goes through that peer's queue (send_scm.h). One round of the
 * loop takes signals, notices who has gone, queues word of that, accepts newcomers and queues their
 * greeting, and only then sends, from every queue as much as its socket takes. So nobody waits for
 * anybody, and no peer is freed while a list of peers is being walked.
 *
 * The rule that keeps queues bounded and right: when a peer leaves, its unsent eventfds are cut out
 * of every queue, and only those who had been sent at least one of them are told that it left
 * (scm_cut). Its eventfds are closed after that, so that no queue names a closed descriptor.
 *
 * Sockets must lie below FD_SETSIZE for select, so eventfds are moved above it.
 *
 * The numbers of hazards in comments are those of the list of what breaks real clients, in the
 * README under "What a server must never do".
 */
#define _GNU_SOURCE
#include "send_scm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <grp.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/sockios.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syslog.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

/* The public interface: values that users and clients see. */
#define DEFAULT_SOCKET   "/tmp/ivshmem_socket"
#define DEFAULT_SHM      "ivshmem"
#define DEFAULT_GROUP    "kvm"
#define DEFAULT_SIZE     (UINT64_C(1) << 20)
#define VECTORS_MAX      2048  /* what MSI-X has */
#define SYNC_MAX         86400 /* seconds: a day */
#define IDS              65536 /* the device's register has 16 bits for it */
#define PROTOCOL_VERSION 0
#define STATE_VARIABLE   "TM_IVSHMEM_SERVER_STATE" /* from one image of the program to the next */
#define REFUSED          (-1) /* a version that makes every QEMU exit with an error */
#define MEMORY           (-1) /* the value beside the descriptor of the shared memory */

/* How the loop is paced. */
#define ACCEPTS_PER_ROUND 64
#define SEND_RETRY_MS     20   /* until a send is tried again that the kernel had no room for */
#define ACCEPT_RETRY_MS   250  /* and an accept, each of which is logged */
#define STOP_POLL_MS      10   /* between looks at who has read everything, when the server ends */
#define GREETING_MS       1000 /* that greetings under way get when the server ends */

/* No queue may ever lack the room for one leave of each peer (peers_bury). */
_Static_assert(SCM_KEEP >= FD_SETSIZE, "an emptied queue must have room for a leave of each peer");

struct options {
	const char *object;  /* absolute path of the backing store */
	const char *socket;  /* absolute */
	const char *pidfile; /* absolute; NULL: none */
	bool shm;            /* the object is one of POSIX shared memory: it does not persist */
	bool daemonize, truncate, allocate, legacy, verbose;
	bool sized;        /* -m was given */
	const char *group; /* name or number; NULL: the default, if there is one */
	uint64_t size;     /* bytes */
	unsigned int vectors;
	unsigned int sync; /* seconds; 0: never */
};

#define NOBODY ((gid_t)-1)

/* The memory that all nodes share. With no memory at all (-L -m 0), fd is -1. */
struct store {
	int fd;        /* passed to every node; closed by store_close */
	int lock;      /* the same object, opened again for the lock alone; closed by store_close */
	uint64_t size; /* bytes */
	bool created;  /* by this start */
	uint64_t found; /* bytes that the object had before this start */
};

enum peer_state {
	PEER_READY,   /* to be sent whatever is queued */
	PEER_BLOCKED, /* its socket is full: waits for select */
	PEER_STARVED, /* the kernel lacked something: waits for the timer */
	PEER_GONE,    /* to be buried */
};

struct peer {
	int id;
	int sock;        /* closed by peer_free */
	uint64_t joined; /* its number among all joins */
	int64_t since;   /* now_ms() when it joined */
	enum peer_state state;
	struct scm_queue queue;
	int eventfds[]; /* one for each vector, closed by peer_free */
};

struct server {
	struct options opt;
	gid_t group; /* who may connect; NOBODY: only the server's own user */
	struct store store;
	int pidfile;             /* closed by pidfile_close; -1: none */
	bool pidfile_created;    /* by this start */
	bool pidfile_written;    /* by this start */
	char pidfile_before[32]; /* what it held: a start that fails gives it back */
	int listener;            /* closed by socket_close */
	dev_t socket_dev;        /* which socket is ours, among all that may stand at the path */
	ino_t socket_ino;
	char **argv;
	const char *program; /* absolute path of what HUP executes */
	pid_t checker;       /* the child that tries whether that can take over; 0: none */
	int parent;          /* the pipe to a parent that waits until we are ready; else -1 */
	int signals;         /* the signalfd, closed at exit */
	int spare;           /* /dev/null: given up to refuse a client when no descriptor is left */
	pid_t flusher;       /* the child that flushes the object to disk; 0: none */
	int flush_again;     /* when it has ended */
	int64_t flush_at;    /* when -y wants the next flush */
	int64_t accept_at;   /* when to accept again after the kernel had no room; 0: now */
	int64_t send_at;     /* when to send to starved peers again */
	int64_t stop_at;     /* when to end at the latest; 0: not ending */
	size_t count;
	struct peer *peers[FD_SETSIZE]; /* in the order in which they joined */
	uint64_t joins;                 /* so far */
	uint64_t retired[IDS];          /* by ID: the joins when its last peer left; IN_USE */
};

#define IN_USE UINT64_MAX

/*
 * Logging: one line for each event, on stderr or, in the background, to syslog.
 */

static bool background;

static void log_to_syslog(void)
{
	openlog(program_invocation_short_name, LOG_PID | LOG_NDELAY, LOG_DAEMON);
	background = true;
}

/* Logs one line, with the text of error behind it unless that is 0, and keeps errno. */
__attribute__((format(printf, 3, 4))) static void log_line(int level, int error, const char *format,
							   ...)
{
	int saved = errno, n;
	char line[2 * PATH_MAX];
	va_list args;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (error && n >= 0 && (size_t)n < sizeof(line))
		snprintf(line + n, sizeof(line) - (size_t)n, ": %s", strerror(error));
	for (char *c = line; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 127)
			*c = '?'; /* whatever a path or a process is called */
	if (background)
		syslog(level, "%s", line);
	else
		fprintf(stderr, "%s: %s\n", program_invocation_short_name, line);
	errno = saved;
}

static bool failure(void)
{
	return false;
}

/* Four verbs: what happened; what failed, with errno's text; what is wrong where errno has nothing
 * to add; a mistake in the command line, which ends the program. The middle two give their caller
 * false to return. */
#define say(...)    log_line(LOG_INFO, 0, __VA_ARGS__)
#define fail(...)   (log_line(LOG_ERR, errno, __VA_ARGS__), failure())
#define refuse(...) (log_line(LOG_ERR, 0, __VA_ARGS__), failure())
#define VALUE       "'%.300s'" /* of the command line: the remedy behind it must not be cut off */
#define usage(format, ...)                                                                         \
	do {                                                                                       \
		refuse(format " (see '%s --help')", ##__VA_ARGS__, program_invocation_short_name); \
		exit(2);                                                                           \
	} while (0)

/* The text of a size, as -m takes it: in the largest unit of which it is a multiple. */
struct size_text {
	char text[24];
};

static struct size_text size_text(uint64_t bytes)
{
	static const char units[] = "KMGT";
	struct size_text out;
	int unit = -1;

	while (bytes && bytes % 1024 == 0 && unit < 3) {
		bytes /= 1024;
		unit++;
	}
	if (unit < 0)
		snprintf(out.text, sizeof(out.text), "%" PRIu64 " bytes", bytes);
	else
		snprintf(out.text, sizeof(out.text), "%" PRIu64 "%c", bytes, units[unit]);
	return out;
}

#define SIZE(bytes) (size_text(bytes).text)

/*
 * Options
 */

static const char help_text[] =
	"Usage: tm_ivshmem_server [OPTION]...\n"
	"Serve fabric-attached memory to QEMU nodes: one shared memory object, an ID and\n"
	"doorbells for every ivshmem device that connects.\n"
	"\n"
	"  -d, --daemonize      go to the background once everything is ready\n"
	"  -f, --file PATH      regular file as backing store: it persists\n"
	"  -s, --shm NAME       POSIX shared memory object instead (default " DEFAULT_SHM ")\n"
	"  -m, --size N[K|M|G|T]  size, a power of two; plain numbers are MiB (default 1M for\n"
	"                       a new object; an existing one keeps its size)\n"
	"  -t, --truncate       resize an existing object to -m exactly\n"
	"  -a, --allocate       reserve every block of it now\n"
	"  -n, --vectors N      MSI-X vectors of each node, 0 to 2048 (default 1)\n"
	"  -p, --socket PATH    UNIX socket to listen on (default " DEFAULT_SOCKET ")\n"
	"  -g, --group GROUP    who may connect: name or number (default kvm, if there is one)\n"
	"  -L, --legacy         the original stream without the version message; any size of\n"
	"                       whole pages, and -m 0 for interrupts without memory\n"
	"  -i, --pidfile PATH   write the process ID there, locked while the server lives\n"
	"  -y, --sync SECONDS   flush the file to disk this often, not only when a node leaves\n"
	"  -v, --verbose        log every message\n"
	"  -V, --version        print the version and exit\n"
	"  -h, --help           print this help and exit\n"
	"\n"
	"TERM, INT and QUIT end the server; the memory object stays. HUP restarts it in place,\n"
	"for upgrades under live nodes. USR1 logs a table of the nodes.\n";

static const char short_options[] = ":df:s:m:tan:p:g:Li:y:vVh";
static const struct option long_options[] = {
	{"daemonize", no_argument, NULL, 'd'},     {"file", required_argument, NULL, 'f'},
	{"shm", required_argument, NULL, 's'},     {"size", required_argument, NULL, 'm'},
	{"truncate", no_argument, NULL, 't'},      {"allocate", no_argument, NULL, 'a'},
	{"vectors", required_argument, NULL, 'n'}, {"socket", required_argument, NULL, 'p'},
	{"group", required_argument, NULL, 'g'},   {"legacy", no_argument, NULL, 'L'},
	{"pidfile", required_argument, NULL, 'i'}, {"sync", required_argument, NULL, 'y'},
	{"verbose", no_argument, NULL, 'v'},       {"version", no_argument, NULL, 'V'},
	{"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
};

/* Writes to stdout and ends the program: successfully, if all of it could be written. */
__attribute__((noreturn)) static void print_and_exit(const char *text)
{
	if (fputs(text, stdout) < 0 || fflush(stdout) != 0) {
		fail("cannot write to standard output");
		exit(EXIT_FAILURE);
	}
	exit(EXIT_SUCCESS);
}

/* The name that people know an option by, both its forms; NULL: there is no such option. */
static const char *option_name(int letter)
{
	static char name[32];
	const struct option *o = long_options;

	while (o->name && o->val != letter)
		o++;
	if (!o->name)
		return NULL;
	snprintf(name, sizeof(name), "-%c/--%s", letter, o->name);
	return name;
}

/*
 * Reads the decimal digits that text begins with; *end is what follows them. More than 64 bits hold
 * become UINT64_MAX. Returns false where there are none.
 */
static bool digits_parse(const char *text, uint64_t *number, char **end)
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

/* A size in bytes: digits and one optional unit, MiB without. */
static uint64_t size_parse(void)
{
	static const char units[] = "KMGT";
	const char *unit = &units[1];
	uint64_t number;
	char *end;
	int shift;

	if (!digits_parse(optarg, &number, &end) ||
	    (*end && (!(unit = strchr(units, *end)) || end[1])))
		usage("%s " VALUE
		      ": give digits and at most one of K, M, G and T; plain numbers are MiB",
		      option_name('m'), optarg);
	shift = 10 * (int)(unit - units + 1);
	if (number > (uint64_t)INT64_MAX >> shift)
		usage("%s " VALUE ": more than a file can hold; give less", option_name('m'),
		      optarg);
	return number << shift;
}

/* The absolute form of a path, which the caller frees; NULL with errno. */
static char *path_absolute(const char *path)
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
		      ": the path of a socket has at most %zu bytes, this one has %zu; give a shorter one",
		      option_name('p'), path, max, strlen(path));
	return path;
}

/* The path of a shared memory object: shm_open(3) looks for it there as well. Stays allocated. */
static const char *shm_parse(void)
{
	const char *name = optarg + (*optarg == '/');
	char *path;

	if (!*name || strchr(name, '/') || strlen(name) > NAME_MAX || !strcmp(name, ".") ||
	    !strcmp(name, ".."))
		usage("%s " VALUE ": give a name of 1 to %d bytes without '/'; a path goes with -f",
		      option_name('s'), optarg, NAME_MAX);
	if (asprintf(&path, "/dev/shm/%s", name) < 0)
		usage("%s " VALUE ": %s", option_name('s'), optarg, strerror(errno));
	return path;
}

/* The group of that name or number, or without one the default; a mistake ends the program. */
static gid_t group_find(const char *name)
{
	struct group *group = getgrnam(name ? name : DEFAULT_GROUP);
	uint64_t number;
	char *end;

	if (group)
		return group->gr_gid;
	if (!name)
		return NOBODY;
	if (!digits_parse(name, &number, &end) || *end || number >= NOBODY)
		usage("%s " VALUE ": there is no such group", option_name('g'), name);
	return (gid_t)number;
}

static uint64_t page_size(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

/*
 * Whether QEMU can map so many bytes (hazard 7). If not, *why gets the reason and the remedy; the
 * caller frees it.
 */
static bool size_fits(const struct options *o, uint64_t bytes, char **why)
{
	uint64_t below = bytes ? UINT64_C(1) << (63 - __builtin_clzll(bytes)) : 0;
	int n;

	if (bytes < page_size())
		n = asprintf(why, "less than one page; give at least %s", SIZE(page_size()));
	else if (o->legacy && bytes % page_size())
		n = asprintf(why, "not a multiple of the page size; the nearest are %s and %s",
			     SIZE(bytes / page_size() * page_size()),
			     SIZE((bytes / page_size() + 1) * page_size()));
	else if (!o->legacy && bytes != below && below << 1 > INT64_MAX)
		n = asprintf(why, "not a power of two, which QEMU needs; the nearest is %s",
			     SIZE(below));
	else if (!o->legacy && bytes != below)
		n = asprintf(why, "not a power of two, which QEMU needs; the nearest are %s and %s",
			     SIZE(below), SIZE(below << 1));
	else
		return true;
	if (n < 0)
		*why = strdup("a size that QEMU cannot map");
	return false;
}

/* What holds for the options together, whatever their order; arguments as they were given. */
static void options_check(const struct options *o, const char *file, const char *shm,
			  const char *size)
{
	char *why;

	if (file && shm)
		usage("%s " VALUE " and %s " VALUE " exclude each other: give one backing store",
		      "-f/--file", file, "-s/--shm", shm);
	if (o->truncate && !o->sized)
		usage("%s needs %s: say which size", "-t/--truncate", "-m/--size");
	if (o->sized && o->size == 0 && !o->legacy)
		usage("%s " VALUE
		      ": give a size; only the original stream, -L, can do without memory",
		      option_name('m'), size);
	if (o->sized && o->size == 0 && (o->truncate || o->allocate))
		usage("%s: there is no memory with %s %s",
		      o->truncate ? "-t/--truncate" : "-a/--allocate", "-m/--size", size);
	if (o->sized && o->size > 0 && !size_fits(o, o->size, &why))
		usage("%s " VALUE ": %s", option_name('m'), size, why);
	if (o->pidfile && !strcmp(o->pidfile, o->object))
		usage("%s " VALUE ": that is the backing store; give another path",
		      option_name('i'), o->pidfile);
	if (o->sync && o->shm)
		usage("%s '%u' needs %s: shared memory is never on disk", option_name('y'), o->sync,
		      "-f/--file");
}

/*
 * Fills in the options; a mistake ends the program with status 2. Relative paths in argv become
 * absolute, so that a restart in place finds the same files.
 */
static void options_parse(struct options *o, int argc, char **argv)
{
	const char *file = NULL, *shm = NULL, *size = NULL;
	int letter;

	*o = (struct options){.object = "/dev/shm/" DEFAULT_SHM,
			      .shm = true,
			      .socket = DEFAULT_SOCKET,
			      .vectors = 1};
	opterr = 0;
	while ((letter = getopt_long(argc, argv, short_options, long_options, NULL)) != -1) {
		switch (letter) {
		case 'd':
			o->daemonize = true;
			break;
		case 'f':
			file = optarg;
			o->object = path_parse('f', &argv[optind - 1]);
			o->shm = false;
			break;
		case 's':
			shm = optarg;
			o->object = shm_parse();
			o->shm = true;
			break;
		case 'm':
			size = optarg;
			o->size = size_parse();
			o->sized = true;
			break;
		case 't':
			o->truncate = true;
			break;
		case 'a':
			o->allocate = true;
			break;
		case 'n':
			o->vectors = number_parse('n', 0, VECTORS_MAX);
			break;
		case 'p':
			o->socket = socket_parse(&argv[optind - 1]);
			break;
		case 'g':
			o->group = optarg;
			break;
		case 'L':
			o->legacy = true;
			break;
		case 'i':
			o->pidfile = path_parse('i', &argv[optind - 1]);
			break;
		case 'y':
			o->sync = number_parse('y', 1, SYNC_MAX);
			break;
		case 'v':
			o->verbose = true;
			break;
		case 'V':
			print_and_exit("tm_ivshmem_server " VERSION "\n");
		case 'h':
			print_and_exit(help_text);
		case ':':
			usage("%s needs a value", option_name(optopt));
		default:
			if (!optopt)
				usage("unknown or ambiguous option " VALUE, argv[optind - 1]);
			if (option_name(optopt))
				usage(VALUE ": %s takes no value", argv[optind - 1],
				      option_name(optopt));
			usage("unknown option '-%c'", optopt);
		}
	}
	if (optind < argc)
		usage("unexpected argument " VALUE, argv[optind]);
	options_check(o, file, shm, size);
}

/*
 * Limits
 */

/* Opens the spare descriptor, after making sure that 0 to 2 exist and none of ours is taken for
 * them. */
static bool spare_open(struct server *s)
{
	do {
		s->spare = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (s->spare >= 0 && s->spare <= STDERR_FILENO)
			fcntl(s->spare, F_SETFD, 0);
	} while (s->spare >= 0 && s->spare <= STDERR_FILENO);
	return s->spare >= 0 || fail("cannot open /dev/null");
}

/*
 * Raises the number of descriptors that we may have open, and in flight: as far as the kernel
 * allows if we are privileged, else to the hard limit. Without luck the limit stays as it is.
 */
static void descriptor_limit_raise(void)
{
	FILE *f = fopen("/proc/sys/fs/nr_open", "re");
	struct rlimit limit;
	unsigned long most = 0;

	if (f) {
		if (fscanf(f, "%lu", &most) != 1)
			most = 0;
		fclose(f);
	}
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
		fail("cannot read the limit of open descriptors");
		return;
	}
	if (most > limit.rlim_max &&
	    setrlimit(RLIMIT_NOFILE, &(struct rlimit){.rlim_cur = most, .rlim_max = most}) == 0)
		return;
	if (limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
			fail("cannot raise the limit of open descriptors to %lu",
			     (unsigned long)limit.rlim_max);
	}
}

/*
 * Unread messages count against the limit of descriptors in flight, over all our sockets together,
 * unless we are privileged; beyond it nobody can be sent any. So where the limit is low, sockets
 * hold less, and 64 peers that do not read still leave room for the others. A socket holds 278
 * messages by default, which take 768 bytes each; the kernel doubles what SO_SNDBUF says.
 */
static void socket_buffer_limit(int sock)
{
	struct rlimit limit;
	rlim_t messages;
	int bytes;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	messages = limit.rlim_cur / 64;
	if (messages >= 278)
		return;
	bytes = (int)messages * 768 / 2;
	if (setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) < 0)
		fail("cannot limit the buffer of a socket");
}

/*
 * Files that we hold: the object and the pidfile
 */

/* Whether this very file stands at the path; if not, errno is ENOENT, or says why nobody knows. */
static bool file_stands_at(int fd, const char *path)
{
	struct stat ours, theirs;

	if (fstat(fd, &ours) < 0 || stat(path, &theirs) < 0)
		return false;
	errno = ENOENT;
	return ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

/* Removes the path of a file of ours, if that still stands there. */
static void file_remove(int fd, const char *path)
{
	if (file_stands_at(fd, path) ? unlink(path) < 0 : errno != ENOENT)
		fail("cannot remove %s", path);
}

/*
 * Opens a regular file, or creates it with the mode, and locks it until the descriptor is closed.
 * Returns that or, after having said why, -1; if somebody else has the lock, it calls taken to say
 * so.
 */
static int file_claim(const char *path, int flags, mode_t mode, bool *created,
		      void (*taken)(const char *path, int fd))
{
	struct stat st;
	int fd;

	/* To open a device or a FIFO may do something: look first. */
	if ((flags & O_NOFOLLOW ? lstat(path, &st) : stat(path, &st)) == 0 &&
	    !S_ISREG(st.st_mode)) {
		refuse("cannot use %s: it is not a regular file; choose another path", path);
		return -1;
	}
	flags |= O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	fd = open(path, flags);
	if (fd < 0 && errno == ENOENT) {
		fd = open(path, flags | O_CREAT | O_EXCL, mode);
		*created = fd >= 0;
		if (fd < 0 && errno == EEXIST) { /* somebody was quicker, or a link leads nowhere */
			fd = open(path, flags);
			if (fd < 0 && errno == ENOENT) {
				refuse("cannot use %s: it is a link to a file that does not exist; "
				       "create that, or remove the link",
				       path);
				return -1;
			}
		}
	}
	if (fd < 0) {
		fail("cannot open %s", path);
		return -1;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) == 0 && file_stands_at(fd, path))
		return fd;
	if (errno == EWOULDBLOCK) {
		taken(path, fd); /* even if we created it, it is theirs now */
	} else if (errno == ENOENT) {
		refuse("%s was replaced while it was being opened: try again", path);
	} else {
		fail("cannot lock %s", path);
		if (*created)
			unlink(path);
	}
	*created = false;
	close(fd);
	return -1;
}

/* Whether an errno of chown says that this user, or this file system, cannot do it at all. */
static bool group_unassignable(int error)
{
	return error == EPERM || error == EACCES || error == EINVAL /* unknown to a container */ ||
	       error == ENOSYS || error == EOPNOTSUPP;
}

/*
 * Lets the group in: to the file fd or, if that is -1, the socket at the path. Until then only the
 * server's own user can open it. The default group is left out where we may not assign it.
 */
static bool group_admit(const struct server *s, int fd, const char *path)
{
	if (s->group == NOBODY)
		return true;
	if ((fd < 0 ? lchown(path, -1, s->group) : fchown(fd, -1, s->group)) < 0)
		return (!s->opt.group && group_unassignable(errno)) ||
		       fail("cannot give %s to group %u, of which the server must be a member",
			    path, (unsigned int)s->group);
	if ((fd < 0 ? chmod(path, 0660) : fchmod(fd, 0660)) < 0)
		return fail("cannot give %s mode 0660", path);
	return true;
}

static void pidfile_taken(const char *path, int fd)
{
	char holder[16] = "";

	if (read(fd, holder, sizeof(holder) - 1) < 0)
		fail("cannot read %s", path);
	refuse("pidfile %s is held by process %.*s: stop that one, or choose another path with -i",
	       path, (int)strcspn(holder, "\n"), holder);
}

/* Makes this what the pidfile holds. */
static bool pidfile_write(struct server *s, const char *text)
{
	size_t n = strlen(text);

	/* Emptied first: half of an old number must not follow ours. */
	if (ftruncate(s->pidfile, 0) < 0 || pwrite(s->pidfile, text, n, 0) != (ssize_t)n)
		return fail("cannot write pidfile %s", s->opt.pidfile);
	return true;
}

/* Opens, locks and writes the pidfile; a file that holds anything but a number is left alone. */
static bool pidfile_open(struct server *s)
{
	const char *path = s->opt.pidfile;
	char *text = s->pidfile_before, number[16];
	ssize_t n;

	if (!path)
		return true;
	s->pidfile = file_claim(path, O_NOFOLLOW, 0644, &s->pidfile_created, pidfile_taken);
	if (s->pidfile < 0)
		return false;
	n = read(s->pidfile, text, sizeof(s->pidfile_before) - 1);
	if (n < 0)
		return fail("cannot read %s", path);
	if (n > 0 && (strspn(text, "0123456789") != (size_t)n - 1 || n == 1 || text[n - 1] != '\n'))
		return refuse("%s exists and is not a pidfile: choose another path with -i", path);
	s->pidfile_written = true;
	snprintf(number, sizeof(number), "%d\n", (int)getpid());
	return pidfile_write(s, number);
}

/* Removes the pidfile, or gives it back what it held before a start that fails, and closes it. */
static void pidfile_close(struct server *s, bool keep)
{
	if (s->pidfile < 0)
		return;
	if (keep || s->pidfile_created)
		file_remove(s->pidfile, s->opt.pidfile);
	else if (s->pidfile_written)
		pidfile_write(s, s->pidfile_before);
	close(s->pidfile);
	s->pidfile = -1;
}

/*
 * Backing store
 */

static void store_taken(const char *path, int fd)
{
	(void)fd;
	refuse("%s is served by another server: stop that one, or choose another object with -f or "
	       "-s",
	       path);
}

/*
 * Opens the object twice: first for the lock, which dies with the server though nodes keep the
 * memory open, then for the nodes.
 */
static bool store_claim(struct server *s)
{
	const char *name = s->opt.object;
	int flags = s->opt.shm ? O_NOFOLLOW : 0;
	struct stat st, opened;

	s->store.lock = file_claim(name, flags, 0600, &s->store.created, store_taken);
	if (s->store.lock < 0)
		return false;
	s->store.fd = open(name, flags | O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (s->store.fd < 0)
		return fail("cannot open %s", name);
	if (fstat(s->store.lock, &st) < 0 || fstat(s->store.fd, &opened) < 0)
		return fail("cannot examine %s", name);
	if (st.st_dev != opened.st_dev || st.st_ino != opened.st_ino)
		return refuse("%s was replaced while it was being opened: try again", name);
	s->store.found = s->store.size = (uint64_t)st.st_size;
	return true;
}

/* Decides which size is served: that of the object, or the one that it is to get. */
static bool store_size_choose(struct server *s)
{
	const struct options *o = &s->opt;
	const char *name = o->object;
	uint64_t found = s->store.found, wanted = found;
	char *why;

	if (found == 0) {
		wanted = o->sized ? o->size : DEFAULT_SIZE;
	} else if (o->truncate) {
		wanted = o->size;
	} else if (o->sized && o->size > found) {
		return refuse("%s has %s, less than -m %s: leave out -m to serve it as it is, or "
			      "add -t to enlarge it",
			      name, SIZE(found), SIZE(o->size));
	}
	if (size_fits(o, wanted, &why)) {
		s->store.size = wanted;
		if (o->sized && wanted > o->size)
			say("%s has %s, more than -m %s: all of it is served", name, SIZE(found),
			    SIZE(o->size));
		return true;
	}
	refuse("cannot serve %s, which has %s: %s (-t with -m resizes it)", name, SIZE(found), why);
	free(why);
	return false;
}

/*
 * Whether the file system can hold the size. *map, how many bytes must be mapped to know that nodes
 * can map all, becomes all of it where mapping reserves huge pages.
 */
static bool store_size_check(struct server *s, size_t *map)
{
	const char *name = s->opt.object;
	uint64_t size = s->store.size, most;
	struct statfs fs;

	if (fstatfs(s->store.fd, &fs) < 0)
		return fail("cannot examine the file system of %s", name);
	most = (uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize;
	if (fs.f_type == HUGETLBFS_MAGIC) {
		*map = size;
		if (size % (uint64_t)fs.f_bsize)
			return refuse("cannot serve %s with %s: its file system holds whole huge "
				      "pages; give a multiple of %s with -m",
				      name, SIZE(size), SIZE((uint64_t)fs.f_bsize));
	} else if (fs.f_type == TMPFS_MAGIC && most && size > most) {
		return refuse(
			"cannot serve %s with %s: its tmpfs holds %s; enlarge that with mount -o "
			"remount,size=, or give less with -m",
			name, SIZE(size), SIZE(most));
	}
	return true;
}

/* Whether the user wants the start to end. */
static bool signals_pending(void)
{
	sigset_t set;

	return sigpending(&set) == 0 && (sigismember(&set, SIGTERM) || sigismember(&set, SIGINT) ||
					 sigismember(&set, SIGQUIT));
}

/* Reserves every block, in steps, so that it can be seen and ended. */
static bool store_allocate(struct server *s)
{
	static const char failed[] =
		"cannot reserve %s for %s (without -a, blocks are taken as they are written)";
	const uint64_t size = s->store.size, step = UINT64_C(64) << 20;
	bool tell = isatty(STDERR_FILENO);
	uint64_t left;
	struct statfs fs;
	struct stat st;

	if (fstat(s->store.fd, &st) < 0 || fstatfs(s->store.fd, &fs) < 0)
		return fail("cannot examine %s", s->opt.object);
	left = geteuid() == 0 ? fs.f_bfree : fs.f_bavail; /* some blocks may be root's alone */
	/* A file system without a limit, such as a hugetlbfs, says that it has 0 blocks. */
	if (fs.f_blocks && size > left * (uint64_t)fs.f_bsize + (uint64_t)st.st_blocks * 512) {
		errno = ENOSPC; /* seen before the disk is full */
		return fail(failed, SIZE(size), s->opt.object);
	}
	for (uint64_t at = 0; at < size; at += step) {
		off_t length = (off_t)(size - at < step ? size - at : step);
		int error = signals_pending() ? EINTR : 0;

		if (!error && fallocate(s->store.fd, 0, (off_t)at, length) < 0)
			error = errno;

		if (tell)
			fprintf(stderr, "\r%s: reserving %s: %3d %%%s",
				program_invocation_short_name, s->opt.object,
				(int)(100 * (at / step + 1) / ((size + step - 1) / step)),
				error || at + step >= size ? "\n" : "");
		errno = error;
		if (error)
			return fail(failed, SIZE(size), s->opt.object);
	}
	return true;
}

/* A node that writes to a hole on a full file system is killed: warn of that. */
static bool store_warn_sparse(struct server *s)
{
	struct statfs fs;
	struct stat st;
	uint64_t missing, left;

	if (fstat(s->store.fd, &st) < 0 || fstatfs(s->store.fd, &fs) < 0)
		return fail("cannot examine %s", s->opt.object);
	left = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
	missing = s->store.size - (uint64_t)st.st_blocks * 512;
	if (fs.f_blocks && fs.f_type != HUGETLBFS_MAGIC &&
	    (uint64_t)st.st_blocks * 512 < s->store.size && missing > left)
		say("warning: %s lacks %s of its blocks and only %s are free: a node that writes "
		    "when they are used up is killed; -a reserves them now",
		    s->opt.object, SIZE(missing), SIZE(left >> 20 << 20));
	return true;
}

/* Maps as QEMU will, to learn now whether the file system can. */
static bool store_map_try(struct server *s, size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->store.fd, 0);

	if (memory == MAP_FAILED)
		return fail("cannot map %s of %s: choose a file system that can share memory, with "
			    "enough of it",
			    SIZE(bytes), s->opt.object);
	munmap(memory, bytes);
	return true;
}

/* Opens or creates the object and enlarges it; store_close undoes what a failed start has done. */
static bool store_open(struct server *s)
{
	size_t map = page_size();

	if (s->opt.sized && s->opt.size == 0)
		return true;
	if (!store_claim(s) || !store_size_choose(s) || !store_size_check(s, &map))
		return false;
	if (s->store.size > s->store.found && ftruncate(s->store.fd, (off_t)s->store.size) < 0)
		return fail("cannot give %s a size of %s", s->opt.object, SIZE(s->store.size));
	if (!store_map_try(s, map) || (s->opt.allocate && !store_allocate(s)) ||
	    !store_warn_sparse(s))
		return false;
	return !s->store.created || group_admit(s, s->store.fd, s->opt.object);
}

/* Shrinks the object, as the last step of a start: the only one that cannot be undone. */
static bool store_shrink(struct server *s)
{
	if (s->store.size >= s->store.found)
		return true;
	if (ftruncate(s->store.fd, (off_t)s->store.size) < 0)
		return fail("cannot shrink %s to %s", s->opt.object, SIZE(s->store.size));
	say("%s shrank from %s to %s", s->opt.object, SIZE(s->store.found), SIZE(s->store.size));
	return true;
}

/*
 * Flushes a file to disk in a child, so that the loop never waits for the disk; while one is at
 * work, the next waits for it. flusher_reap hears of the outcome.
 */
static void store_flush(struct server *s)
{
	if (s->opt.shm || s->store.fd < 0)
		return;
	s->flush_again = s->flusher > 0;
	if (s->flusher > 0)
		return;
	s->flusher = fork();
	if (s->flusher == 0) {
		/* Nothing of ours but the object may outlive us in here, above all not the locks.
		 */
		close_range(0, (unsigned int)s->store.fd - 1, 0);
		close_range((unsigned int)s->store.fd + 1, UINT_MAX, 0);
		_exit(fdatasync(s->store.fd) < 0 ? errno : 0);
	}
	if (s->flusher < 0) {
		fail("cannot start a process to flush %s to disk", s->opt.object);
		s->flusher = 0;
	}
}

/* Says how a child of store_flush ended, and starts the next if there is one to be. */
static void flusher_reap(struct server *s)
{
	int status;
	pid_t ended = s->flusher ? waitpid(s->flusher, &status, WNOHANG) : 0;

	if (ended == 0)
		return;
	s->flusher = 0;
	if (ended > 0)
		errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
	if (errno)
		fail("cannot flush %s to disk", s->opt.object);
	if (s->flush_again)
		store_flush(s);
}

/* Closes the object: flushed to disk, or as it was found if it is not to be kept. */
static void store_close(struct server *s, bool keep)
{
	const char *name = s->opt.object;

	if (keep && !s->opt.shm && s->store.fd >= 0 && fdatasync(s->store.fd) < 0)
		fail("cannot flush %s to disk", name);
	if (!keep && s->store.created)
		file_remove(s->store.lock, name);
	if (!keep && !s->store.created && s->store.size > s->store.found &&
	    ftruncate(s->store.fd, (off_t)s->store.found) < 0)
		fail("cannot give %s its size back", name);
	if (s->store.fd >= 0)
		close(s->store.fd);
	if (s->store.lock >= 0)
		close(s->store.lock);
}

/*
 * The listening socket
 */

static struct sockaddr_un socket_address(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	assert(strlen(path) < sizeof(address.sun_path));
	strcpy(address.sun_path, path);
	return address;
}

/*
 * The inode of the socket that listens on a path, from the kernel's table; 0 if it is not there, or
 * not alone: others keep the path though their file has been removed.
 */
static unsigned long socket_inode(const char *path)
{
	FILE *table = fopen("/proc/net/unix", "re");
	char line[512], at[256];
	unsigned long inode, found = 0;
	unsigned int flags, count = 0;

	while (table && fgets(line, sizeof(line), table))
		if (sscanf(line, "%*s %*s %*s %x %*s %*s %lu %255[^\n]", &flags, &inode, at) == 3 &&
		    flags & 0x10000 /* it listens */ && !strcmp(at, path) && inode != found) {
			found = inode;
			count++;
		}
	if (table)
		fclose(table);
	return count == 1 ? found : 0;
}

/* The process that listens on a path, found without connecting to it; 0 if we may not know. */
static int socket_owner(const char *path)
{
	unsigned long inode = 0;
	char wanted[64], link[64];
	glob_t fds = {0};
	int pid = 0;

	for (int i = 0; i < 5 && !inode;
	     i++) /* others that come and go can hide it from a reader */
		inode = socket_inode(path);
	snprintf(wanted, sizeof(wanted), "socket:[%lu]", inode);
	if (inode && glob("/proc/[0-9]*/fd/*", GLOB_NOSORT, NULL, &fds) == 0) {
		for (size_t i = 0; i < fds.gl_pathc && !pid; i++) {
			ssize_t n = readlink(fds.gl_pathv[i], link, sizeof(link) - 1);

			link[n < 0 ? 0 : n] = '\0';
			if (!strcmp(link, wanted))
				sscanf(fds.gl_pathv[i], "/proc/%d", &pid);
		}
		globfree(&fds);
	}
	return pid;
}

/*
 * Makes the path free for our socket: removes a stale one, refuses everything else. A server that
 * lives is found by connecting a datagram socket, which its clients do not notice: the kernel says
 * EPROTOTYPE where somebody listens, ECONNREFUSED where nobody does.
 */
static bool socket_path_free(const char *path)
{
	struct sockaddr_un address = socket_address(path);
	struct stat st;
	int probe, error = 0;

	if (lstat(path, &st) < 0)
		return errno == ENOENT || fail("cannot examine %s", path);
	if (!S_ISSOCK(st.st_mode))
		return refuse("%s exists and is not a socket: choose another path with -p", path);
	probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (probe < 0)
		return fail("cannot create a socket");
	if (connect(probe, (struct sockaddr *)&address, sizeof(address)) < 0)
		error = errno;
	close(probe);
	errno = error;
	if (error == 0 || error == EPROTOTYPE) {
		int pid = socket_owner(path);
		char who[32] = "";

		if (pid)
			snprintf(who, sizeof(who), ", process %d", pid);
		return refuse("%s belongs to a server that is running%s: stop that one, or choose "
			      "another path with -p",
			      path, who);
	}
	if (error != ECONNREFUSED && error != ENOENT)
		return fail("cannot find out whether a server listens on %s", path);
	if (error == ECONNREFUSED && unlink(path) < 0)
		return fail("cannot remove the stale socket %s", path);
	return true;
}

/*
 * Locks the folder of the socket, so that two servers that start at the same moment do not take
 * each other's socket for a stale one. Waits a second at most for others to be done. Returns a
 * descriptor to close, or -1: it goes without as well, where the folder cannot be read.
 */
static int socket_folder_lock(const char *path)
{
	char *copy = strdup(path);
	int folder = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	for (int i = 0; folder >= 0 && flock(folder, LOCK_EX | LOCK_NB) < 0 && i < 100; i++)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	free(copy);
	return folder;
}

/* Creates the socket: first only for ourselves, whatever the umask. */
static bool socket_bind(struct server *s)
{
	struct sockaddr_un address = socket_address(s->opt.socket);
	mode_t mask = umask(0177);
	int error = bind(s->listener, (struct sockaddr *)&address, sizeof(address));
	struct stat st;

	umask(mask);
	if (error < 0)
		return fail("cannot create socket %s", s->opt.socket);
	if (lstat(s->opt.socket, &st) < 0) {
		fail("cannot examine %s", s->opt.socket);
		unlink(s->opt.socket); /* it is ours: we hold the folder's lock */
		return false;
	}
	s->socket_dev = st.st_dev;
	s->socket_ino = st.st_ino;
	return group_admit(s, -1, s->opt.socket);
}

static bool socket_listen(struct server *s)
{
	int folder = socket_folder_lock(s->opt.socket);
	bool done;

	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listener < 0)
		done = fail("cannot create a socket");
	else
		done = socket_path_free(s->opt.socket) && socket_bind(s);
	if (done && listen(s->listener, SOMAXCONN) < 0)
		done = fail("cannot listen on %s", s->opt.socket);
	if (folder >= 0)
		close(folder);
	return done;
}

/*
 * Removes the socket if it is still ours. Nobody else can connect from here on; who waits already
 * is kept.
 */
static void socket_remove(struct server *s)
{
	struct stat st;

	if (!s->socket_ino)
		return;
	if (lstat(s->opt.socket, &st) < 0
		    ? errno != ENOENT
		    : st.st_dev == s->socket_dev && st.st_ino == s->socket_ino &&
			      unlink(s->opt.socket) < 0)
		fail("cannot remove socket %s", s->opt.socket);
	s->socket_ino = 0;
	shutdown(s->listener, SHUT_RDWR);
}

static void socket_close(struct server *s)
{
	socket_remove(s);
	if (s->listener >= 0)
		close(s->listener);
	s->listener = -1;
}

/*
 * Peers
 */

/* Milliseconds on a clock that nobody sets. */
static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Moves a descriptor out of select's range if the limit of descriptors allows. */
static int descriptor_lift(int fd)
{
	int high = fcntl(fd, F_DUPFD_CLOEXEC, FD_SETSIZE);

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

/*
 * The ID of the next peer: the lowest that is free and was retired before every peer now connected
 * had joined, since clients break over an ID that they have seen leave (hazard 1). With nobody
 * connected that is 0. Returns -1 if there is none.
 */
static int id_pick(const struct server *s)
{
	uint64_t oldest = s->count ? s->peers[0]->joined : IN_USE;

	for (int id = 0; id < IDS; id++)
		if (s->retired[id] < oldest)
			return id;
	return -1;
}

/* Closes all that is a peer's: its socket, and so many eventfds. Keeps errno. */
static void peer_free(struct peer *p, unsigned int vectors)
{
	int error = errno;

	for (unsigned int i = 0; i < vectors; i++)
		close(p->eventfds[i]);
	scm_free(&p->queue);
	if (p->sock >= 0)
		close(p->sock);
	free(p);
	errno = error;
}

/* Makes a peer, who owns the socket from then on. Returns NULL with errno, and the socket is not
 * owned. */
static struct peer *peer_new(int sock, unsigned int vectors)
{
	struct peer *p = calloc(1, sizeof(*p) + vectors * sizeof(int));

	if (!p)
		return NULL;
	p->sock = -1;
	for (unsigned int i = 0; i < vectors; i++) {
		p->eventfds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (p->eventfds[i] < 0) {
			peer_free(p, i);
			return NULL;
		}
		p->eventfds[i] = descriptor_lift(p->eventfds[i]);
	}
	p->sock = sock;
	return p;
}

/* Queues one message, for which the room has been reserved. */
static void peer_tell(struct server *s, struct peer *p, int64_t value, int fd)
{
	int pushed = scm_push(&p->queue, value, fd);

	assert(pushed == 0);
	(void)pushed;
	if (s->opt.verbose)
		say("to ID %d: %" PRId64 "%s", p->id, value, fd < 0 ? "" : " with a descriptor");
}

/* Queues the eventfds of one peer for another. */
static void peer_introduce(struct server *s, struct peer *to, const struct peer *p)
{
	for (unsigned int i = 0; i < s->opt.vectors; i++)
		peer_tell(s, to, p->id, p->eventfds[i]);
}

/*
 * Makes room in every queue for a join, and beyond that for a leave of every other peer, so that
 * word of a leave never fails for want of memory.
 */
static bool peers_reserve(struct server *s, struct peer *p)
{
	size_t vectors = s->opt.vectors;

	if (scm_reserve(&p->queue, 3 + (s->count + 1) * vectors + s->count) < 0)
		return false;
	for (size_t i = 0; i < s->count; i++)
		if (scm_reserve(&s->peers[i]->queue, vectors + s->count) < 0)
			return false;
	return true;
}

/* Queues the greeting (ivshmem-spec, "Client-Server protocol") and tells all others of the peer. */
static void peer_join(struct server *s, struct peer *p)
{
	s->retired[p->id] = IN_USE;
	p->joined = ++s->joins;
	p->since = now_ms();
	if (!s->opt.legacy)
		peer_tell(s, p, PROTOCOL_VERSION, -1);
	peer_tell(s, p, p->id, -1);
	if (s->store.fd >= 0)
		peer_tell(s, p, MEMORY, s->store.fd);
	for (size_t i = 0; i < s->count; i++) {
		peer_introduce(s, p, s->peers[i]);
		peer_introduce(s, s->peers[i], p);
	}
	peer_introduce(s, p, p);
	s->peers[s->count++] = p;
}

/* Whether a peer has read all that was for it. QEMU drops the rest when the connection ends. */
static bool peer_has_read(const struct peer *p)
{
	int unread;

	return p->queue.len == 0 && (ioctl(p->sock, SIOCOUTQ, &unread) < 0 || unread == 0);
}

/* Who a peer is: "process 123 (qemu-system-x86), uid 64055", as far as it is known. */
struct peer_text {
	char text[80];
};

static struct peer_text peer_text(const struct peer *p)
{
	struct ucred who = {.pid = 0, .uid = (uid_t)-1};
	socklen_t length = sizeof(who);
	struct peer_text out;
	char path[32], comm[32] = "?";
	int fd;

	getsockopt(p->sock, SOL_SOCKET, SO_PEERCRED, &who, &length);
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)who.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		ssize_t n = read(fd, comm, sizeof(comm) - 1);

		comm[n > 0 ? n - 1 : 0] = '\0'; /* without the newline */
		close(fd);
	}
	snprintf(out.text, sizeof(out.text), "process %d (%s), uid %u", (int)who.pid, comm,
		 (unsigned int)who.uid);
	return out;
}

static void peer_gone(struct peer *p, const char *why)
{
	say("ID %d left: %s", p->id, why);
	p->state = PEER_GONE;
}

/*
 * Turns a client away: every QEMU exits when the version is -1, while after an early end of the
 * stream it would spin for ever (hazard 3). Closes the socket.
 */
static void client_refuse(int sock, const char *why)
{
	struct scm_queue q = {0};

	say("a client is refused: %s", why);
	if (scm_push(&q, REFUSED, -1) < 0 || scm_flush(&q, sock) != SCM_EMPTY)
		fail("a refused client could not be told");
	scm_free(&q);
	close(sock);
}

/*
 * Why a client counts as gone, NULL if it does not: it never writes, so the end of the stream says
 * so, and any byte.
 */
static const char *client_ended(int sock)
{
	char byte;
	ssize_t n = recv(sock, &byte, 1, MSG_DONTWAIT);

	if (n == 0)
		return "closed the connection";
	if (n > 0)
		return "sent data, which no ivshmem client does";
	if (errno == EAGAIN || errno == EINTR || errno == ENOMEM || errno == ENOBUFS)
		return NULL;
	return strerror(errno);
}

static void client_welcome(struct server *s, int sock)
{
	const char *ended = client_ended(sock);
	int id = id_pick(s);
	struct peer *p;

	if (ended) {
		say("a client has gone before it was greeted: %s", ended);
		close(sock);
		return;
	}
	if (sock >= FD_SETSIZE || s->count == FD_SETSIZE) {
		client_refuse(sock, "no more peers fit into one server");
		return;
	}
	if (id < 0) {
		char why[128];

		snprintf(why, sizeof(why),
			 "no ID is left until ID %d leaves, which has seen all others leave",
			 s->peers[0]->id);
		client_refuse(sock, why);
		return;
	}
	socket_buffer_limit(sock);
	/* Urgent data is data: else some kernels would report it and not let it be read. */
	if (setsockopt(sock, SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)) < 0)
		fail("cannot prepare a socket");
	p = peer_new(sock, s->opt.vectors);
	if (!p) {
		client_refuse(sock, strerror(errno));
		return;
	}
	p->id = id;
	if (!peers_reserve(s, p)) {
		p->sock = -1;
		peer_free(p, s->opt.vectors);
		client_refuse(sock, strerror(ENOMEM));
		return;
	}
	peer_join(s, p);
	say("ID %d joined: %s", id, peer_text(p).text);
}

/*
 * Gives up the spare descriptor for a moment, to refuse a client when there is no other. Returns
 * whether there was one; if the kernel has no room even so, accepting pauses.
 */
static bool client_refuse_with_spare(struct server *s)
{
	const char *why = strerror(errno);
	int sock;

	if (s->spare >= 0)
		close(s->spare);
	sock = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (sock >= 0)
		client_refuse(sock, why);
	else if (errno != EAGAIN)
		s->accept_at = now_ms() + ACCEPT_RETRY_MS;
	s->spare = open("/dev/null", O_RDWR | O_CLOEXEC);
	return sock >= 0;
}

static void peers_accept(struct server *s)
{
	/* Whoever waits when the server ends is greeted: once the socket is removed, nobody joins
	 * them. */
	for (int i = 0; i < ACCEPTS_PER_ROUND || s->stop_at; i++) {
		int sock = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (sock >= 0) {
			client_welcome(s, sock);
		} else if (errno == EMFILE || errno == ENFILE) {
			if (!client_refuse_with_spare(s))
				return;
		} else if (errno == EAGAIN || s->stop_at) {
			return;
		} else if (errno != ECONNABORTED && errno != EINTR) {
			fail("cannot accept a client");
			s->accept_at = now_ms() + ACCEPT_RETRY_MS;
			return;
		}
	}
}

/* Turns away who has connected to a server that cannot start after all (hazard 3). */
static void clients_turn_away(struct server *s)
{
	int sock;

	socket_remove(s);
	while ((sock = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		client_refuse(sock, "the server could not start");
}

/* Notices who has gone. */
static void peers_read(struct server *s, const fd_set *readable)
{
	for (size_t i = 0; i < s->count; i++) {
		struct peer *p = s->peers[i];
		const char *why = FD_ISSET(p->sock, readable) ? client_ended(p->sock) : NULL;

		if (why)
			peer_gone(p, why);
	}
}

/* Sends what is queued, to everybody that can take it. */
static void peers_flush(struct server *s)
{
	for (size_t i = 0; i < s->count; i++) {
		struct peer *p = s->peers[i];

		if (p->state != PEER_READY || p->queue.len == 0)
			continue;
		switch (scm_flush(&p->queue, p->sock)) {
		case SCM_EMPTY:
			break;
		case SCM_BLOCKED:
			p->state = PEER_BLOCKED;
			break;
		case SCM_STARVED:
			p->state = PEER_STARVED;
			s->send_at = now_ms() + SEND_RETRY_MS;
			break;
		case SCM_DEAD:
			peer_gone(p, errno == EPIPE ? "closed the connection" : strerror(errno));
			break;
		}
	}
}

/*
 * Takes the peers that have gone off the list, queues word of that for the others, and only then
 * closes what was theirs. Returns whether there were any.
 */
static bool peers_bury(struct server *s)
{
	struct peer *gone[FD_SETSIZE];
	size_t dead = 0, alive = 0;

	for (size_t i = 0; i < s->count; i++) {
		struct peer *p = s->peers[i];

		if (p->state == PEER_GONE)
			gone[dead++] = p;
		else
			s->peers[alive++] = p;
	}
	s->count = alive;
	for (size_t d = 0; d < dead; d++) {
		for (size_t i = 0; i < alive; i++) {
			int cut = scm_cut(&s->peers[i]->queue, gone[d]->id, s->opt.vectors);

			assert(cut == 0); /* peers_reserve made the room */
			(void)cut;
		}
		s->retired[gone[d]->id] = s->joins;
		peer_free(gone[d], s->opt.vectors);
	}
	if (dead > 0)
		store_flush(s);
	return dead > 0;
}

/* Logs who is connected. */
static void peers_list(const struct server *s)
{
	size_t waiting = 0;

	for (size_t i = 0; i < s->count; i++) {
		const struct peer *p = s->peers[i];

		say("ID %d: %s, connected for %" PRId64 " s, %zu messages waiting", p->id,
		    peer_text(p).text, (now_ms() - p->since) / 1000, p->queue.len);
		waiting += p->queue.len;
	}
	say("%zu nodes connected, %" PRIu64 " joined so far, %zu messages waiting", s->count,
	    s->joins, waiting);
}

/*
 * Restart in place: the process executes the program that is now on disk, which takes over all that
 * is open. What it must know is text in a memfd: lines of a word and numbers. Descriptors keep
 * their numbers. A line whose word is unknown is skipped, so that versions may differ.
 */

/* The status with which a program says that it can take over; no other program is likely to. */
#define CAN_TAKE_OVER 86

/* Tells a supervisor that waits for it (sd_notify(3)). */
static void supervisor_notify(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t length;
	int fd;

	if (!path || strlen(path) >= sizeof(address.sun_path))
		return;
	strcpy(address.sun_path, path);
	length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (*path == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 ||
	    sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address, length) < 0)
		fail("cannot tell %s at %s", state, path);
	if (fd >= 0)
		close(fd);
}

/* What stands on a line of its own: a word, and one number. */
static const struct {
	const char *word;
	size_t offset; /* in struct server */
	bool wide;     /* 64 bits, not an int */
} state_fields[] = {
	{"listener", offsetof(struct server, listener), false},
	{"socket_dev", offsetof(struct server, socket_dev), true},
	{"socket_ino", offsetof(struct server, socket_ino), true},
	{"store", offsetof(struct server, store.fd), false},
	{"lock", offsetof(struct server, store.lock), false},
	{"size", offsetof(struct server, store.size), true},
	{"pidfile", offsetof(struct server, pidfile), false},
	{"signals", offsetof(struct server, signals), false},
	{"spare", offsetof(struct server, spare), false},
	{"flusher", offsetof(struct server, flusher), false},
	{"flush_again", offsetof(struct server, flush_again), false},
	{"flush_at", offsetof(struct server, flush_at), true},
	{"joins", offsetof(struct server, joins), true},
};

#define STATE_FIELDS (sizeof(state_fields) / sizeof(state_fields[0]))

static void state_write(const struct server *s, FILE *f)
{
	uint64_t oldest = s->count ? s->peers[0]->joined : IN_USE;

	for (size_t i = 0; i < STATE_FIELDS; i++) {
		const void *at = (const char *)s + state_fields[i].offset;

		fprintf(f, "%s %" PRId64 "\n", state_fields[i].word,
			state_fields[i].wide ? *(const int64_t *)at : *(const int *)at);
	}
	for (int id = 0; id < IDS; id++)
		if (s->retired[id] != IN_USE && s->retired[id] >= oldest)
			fprintf(f, "retired %d %" PRIu64 "\n", id, s->retired[id]);
	for (size_t i = 0; i < s->count; i++) {
		const struct peer *p = s->peers[i];

		fprintf(f, "peer %d %" PRIu64 " %" PRId64 " %d %u", p->id, p->joined, p->since,
			p->sock, s->opt.vectors);
		for (unsigned int v = 0; v < s->opt.vectors; v++)
			fprintf(f, " %d", p->eventfds[v]);
		fprintf(f, " %zu", p->queue.len);
		for (size_t m = 0; m < p->queue.len; m++)
			fprintf(f, " %" PRId64 " %d", scm_at(&p->queue, m)->value,
				scm_at(&p->queue, m)->fd);
		fputc('\n', f);
	}
}

/* Writes the state to a memfd. Returns that, or -1 after having said why. */
static int state_save(const struct server *s)
{
	int fd = memfd_create("tm_ivshmem_server", MFD_CLOEXEC);
	int copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	FILE *f = copy < 0 ? NULL : fdopen(copy, "w");
	bool written;

	if (f) {
		state_write(s, f);
		written = fflush(f) == 0 && !ferror(f); /* fclose knows of the last write only */
		if (fclose(f) == 0 && written && lseek(fd, 0, SEEK_SET) == 0)
			return fd;
	} else if (copy >= 0) {
		close(copy);
	}
	fail("cannot save the state for a restart, going on without");
	if (fd >= 0)
		close(fd);
	return -1;
}

/* The next number of a line, from min to max; else *fine becomes false. */
static int64_t state_number(char **at, int64_t min, int64_t max, bool *fine)
{
	char *end = *at;
	int64_t number;

	errno = 0;
	number = strtoll(*at, &end, 10);
	if (end == *at || errno || number < min || number > max) {
		*fine = false;
		return min;
	}
	*at = end;
	return number;
}

/* Takes over a peer from its line. Returns false where the line is wrong or memory is short. */
static bool state_peer(struct server *s, char *at)
{
	struct peer *p;
	bool fine = true;
	int64_t messages;

	if (s->count == FD_SETSIZE || !(p = calloc(1, sizeof(*p) + s->opt.vectors * sizeof(int))))
		return false;
	s->peers[s->count++] = p;
	p->id = (int)state_number(&at, 0, IDS - 1, &fine);
	p->joined = (uint64_t)state_number(&at, 1, INT64_MAX, &fine);
	p->since = state_number(&at, 0, INT64_MAX, &fine);
	p->sock = (int)state_number(&at, 0, FD_SETSIZE - 1, &fine);
	state_number(&at, s->opt.vectors, s->opt.vectors, &fine);
	for (unsigned int v = 0; v < s->opt.vectors; v++)
		p->eventfds[v] = (int)state_number(&at, 0, INT_MAX, &fine);
	messages = state_number(&at, 0, INT_MAX, &fine);
	while (fine && messages-- > 0) {
		int64_t value = state_number(&at, -1, IDS - 1, &fine);
		int fd = (int)state_number(&at, -1, INT_MAX, &fine);

		fine = fine && scm_push(&p->queue, value, fd) == 0;
	}
	if (s->retired[p->id] == IN_USE ||
	    (s->count > 1 && p->joined <= s->peers[s->count - 2]->joined))
		return false; /* two of one ID, or not in the order in which they joined */
	s->retired[p->id] = IN_USE;
	return fine;
}

/* Takes over what one line says; an unknown word says nothing. Returns false for a wrong line. */
static bool state_line(struct server *s, char *line)
{
	char *word = strsep(&line, " \n"), nothing[] = "";
	bool fine = true;

	if (!line)
		line = nothing;

	for (size_t i = 0; fine && i < STATE_FIELDS; i++) {
		void *at = (char *)s + state_fields[i].offset;

		if (strcmp(word, state_fields[i].word) != 0)
			continue;
		if (state_fields[i].wide)
			*(int64_t *)at = state_number(&line, INT64_MIN, INT64_MAX, &fine);
		else
			*(int *)at = (int)state_number(&line, -1, INT_MAX, &fine);
	}
	if (fine && !strcmp(word, "retired")) {
		int64_t id = state_number(&line, 0, IDS - 1, &fine);

		s->retired[id] = (uint64_t)state_number(&line, 0, INT64_MAX, &fine);
	}
	if (fine && !strcmp(word, "peer"))
		fine = state_peer(s, line);
	return fine;
}

/* Takes over the state that the image before has left in fd, which is closed. */
static bool state_restore(struct server *s, int fd)
{
	FILE *f = fdopen(fd, "re");
	char *line = NULL;
	size_t size = 0;
	bool fine = true;
	int number = 0;

	if (!f)
		return fail("cannot take over: no way to read the state");
	errno = 0;
	while (fine && getline(&line, &size, f) > 0) {
		number++;
		fine = state_line(s, line);
	}
	if (fine ? !feof(f) : errno == ENOMEM)
		fine = fail("cannot take over: cannot read the state after line %d", number);
	else if (!fine)
		refuse("cannot take over: line %d of the state is wrong: %.200s", number,
		       line ? line : "");
	else if (s->listener < 0)
		fine = refuse("cannot take over: the state, of %d lines, names no socket", number);
	for (size_t i = 0; fine && i < s->count; i++)
		if (scm_reserve(&s->peers[i]->queue, s->count) < 0)
			fine = fail("cannot take over");
	free(line);
	fclose(f);
	return fine;
}

/* Lets everything that is served survive an exec, or not. Returns false if any is not open. */
static bool descriptors_keep(struct server *s, bool keep)
{
	const int own[] = {s->store.fd, s->store.lock, s->listener,
			   s->pidfile,  s->signals,    s->spare};
	int flags = keep ? 0 : FD_CLOEXEC;
	bool open = true;

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		if (own[i] >= 0)
			open = fcntl(own[i], F_SETFD, flags) == 0 && open;
	for (size_t i = 0; i < s->count; i++) {
		open = fcntl(s->peers[i]->sock, F_SETFD, flags) == 0 && open;
		for (unsigned int v = 0; v < s->opt.vectors; v++)
			open = fcntl(s->peers[i]->eventfds[v], F_SETFD, flags) == 0 && open;
	}
	return open;
}

/* Executes the program on disk with the state in fd; returns only if that fails, having said so. */
static void program_execute(struct server *s, const char *purpose, int fd)
{
	char value[64];

	snprintf(value, sizeof(value), "%s %d %d", purpose, fd, background);
	if (fcntl(fd, F_SETFD, 0) == 0 && setenv(STATE_VARIABLE, value, 1) == 0)
		execv(s->program, s->argv);
	fail("cannot execute %s, going on without a restart", s->program);
	unsetenv(STATE_VARIABLE);
}

/* Gives up a trial that is under way. */
static void checker_end(struct server *s)
{
	if (s->checker <= 0)
		return;
	kill(s->checker, SIGKILL);
	waitpid(s->checker, NULL, 0);
	s->checker = 0;
}

/*
 * First a child tries whether the program on disk can be executed, takes our options and reads our
 * state: exec cannot be undone, and a program that fails then would take the nodes' server with it.
 */
static void restart_begin(struct server *s)
{
	int state;

	if (s->stop_at)
		return;
	checker_end(s);
	state = state_save(s);
	if (state < 0)
		return;
	s->checker = fork();
	if (s->checker == 0) {
		program_execute(s, "check", state);
		_exit(EXIT_FAILURE);
	}
	if (s->checker < 0) {
		fail("cannot start a process to check %s, going on without a restart", s->program);
		s->checker = 0;
	}
	close(state);
}

/* Executes the program, if the child of restart_begin has found that it can take over. */
static void checker_reap(struct server *s)
{
	char reloading[64];
	int status, state;
	pid_t ended = s->checker ? waitpid(s->checker, &status, WNOHANG) : 0;

	if (ended == 0)
		return;
	s->checker = 0;
	if (ended < 0) {
		fail("cannot tell whether %s can take over, going on without a restart",
		     s->program);
		return;
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != CAN_TAKE_OVER) {
		refuse("%s cannot take over, going on without a restart: it ended with %s %d",
		       s->program, WIFEXITED(status) ? "status" : "signal",
		       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
		return;
	}
	if (s->stop_at || (state = state_save(s)) < 0)
		return;
	snprintf(reloading, sizeof(reloading), "RELOADING=1\nMONOTONIC_USEC=%" PRId64,
		 now_ms() * 1000);
	supervisor_notify(reloading);
	if (descriptors_keep(s, true))
		program_execute(s, "resume", state);
	else
		fail("cannot keep descriptors open, going on without a restart");
	descriptors_keep(s, false);
	close(state);
	supervisor_notify("READY=1");
}

/*
 * The loop
 */

/* Blocks the signals that we act upon and gets them as a descriptor instead. */
static bool signals_open(struct server *s)
{
	static const int ours[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGCHLD};
	sigset_t set;

	signal(SIGPIPE,
	       SIG_IGN); /* a log that nobody reads, and a size beyond a limit, are errors */
	signal(SIGXFSZ, SIG_IGN);
	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
		signal(ours[i], SIG_DFL); /* an ignored signal would never reach the descriptor */
		sigaddset(&set, ours[i]);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signals = signalfd(s->signals, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signals >= FD_SETSIZE)
		return refuse("cannot watch descriptor %d: too many are open", s->signals);
	return s->signals >= 0 || fail("cannot create a signalfd");
}

/*
 * Starts to end: nobody can connect any more, who has connected is greeted, and the greetings under
 * way get a moment to be sent and read (hazard 3).
 */
static void server_stop(struct server *s, const char *why)
{
	if (s->stop_at)
		return;
	say("%s: ending%s%s%s", why, s->store.fd < 0 ? "" : ", ",
	    s->store.fd < 0 ? "" : s->opt.object, s->store.fd < 0 ? "" : " stays");
	supervisor_notify("STOPPING=1");
	socket_remove(s);
	s->stop_at = now_ms() + GREETING_MS;
}

static void signals_take(struct server *s)
{
	struct signalfd_siginfo info;

	while (read(s->signals, &info, sizeof(info)) == sizeof(info)) {
		switch (info.ssi_signo) {
		case SIGUSR1:
			peers_list(s);
			break;
		case SIGHUP:
			restart_begin(s);
			break;
		case SIGCHLD:
			flusher_reap(s);
			checker_reap(s);
			break;
		default:
			server_stop(s, strsignal((int)info.ssi_signo));
		}
	}
}

/* Whether the server is to end, and all greetings have been read or have had their time. */
static bool server_stopped(struct server *s)
{
	if (!s->stop_at)
		return false;
	for (size_t i = 0; i < s->count && now_ms() < s->stop_at; i++)
		if (!peer_has_read(s->peers[i]))
			return false;
	return true;
}

/* Milliseconds until a timer is due, at most so many as *wait says, which they replace. */
static void timer_add(int64_t *wait, int64_t at)
{
	int64_t left = at - now_ms();

	if (left < 0)
		left = 0;
	if (*wait < 0 || left < *wait)
		*wait = left;
}

static void descriptor_watch(int fd, fd_set *set, int *most)
{
	assert(fd >= 0 && fd < FD_SETSIZE);
	FD_SET(fd, set);
	if (fd > *most)
		*most = fd;
}

/* Waits until there is something to do. */
static void server_wait(struct server *s, fd_set *readable, fd_set *writable)
{
	struct timeval timeout;
	int64_t wait = -1;
	int most = -1;

	FD_ZERO(readable);
	FD_ZERO(writable);
	descriptor_watch(s->signals, readable, &most);
	if (s->accept_at)
		timer_add(&wait, s->accept_at);
	else if (!s->stop_at)
		descriptor_watch(s->listener, readable, &most);
	if (s->stop_at)
		timer_add(&wait, now_ms() + STOP_POLL_MS);
	if (s->opt.sync)
		timer_add(&wait, s->flush_at);
	for (size_t i = 0; i < s->count; i++) {
		descriptor_watch(s->peers[i]->sock, readable, &most);
		if (s->peers[i]->state == PEER_BLOCKED)
			descriptor_watch(s->peers[i]->sock, writable, &most);
		if (s->peers[i]->state == PEER_STARVED)
			timer_add(&wait, s->send_at);
	}
	timeout = (struct timeval){.tv_sec = wait / 1000, .tv_usec = wait % 1000 * 1000};
	if (select(most + 1, readable, writable, NULL, wait < 0 ? NULL : &timeout) >= 0)
		return;
	fail("cannot wait for clients");
	FD_ZERO(readable);
	FD_ZERO(writable);
	nanosleep(&(struct timespec){.tv_nsec = SEND_RETRY_MS * 1000000L}, NULL);
}

/* Lets those send again for whom the wait is over. */
static void peers_wake(struct server *s, const fd_set *writable)
{
	bool due = now_ms() >= s->send_at;

	for (size_t i = 0; i < s->count; i++) {
		struct peer *p = s->peers[i];

		if ((p->state == PEER_BLOCKED && FD_ISSET(p->sock, writable)) ||
		    (p->state == PEER_STARVED && due))
			p->state = PEER_READY;
	}
}

/* Serves until a signal ends it. Sends first: after a restart, messages are waiting. */
static void serve(struct server *s)
{
	assert(s->signals >= 0 && s->listener >= 0);
	for (;;) {
		fd_set readable, writable;

		do
			peers_flush(s);
		while (peers_bury(s));
		if (server_stopped(s))
			return;
		server_wait(s, &readable, &writable);
		peers_wake(s, &writable);
		if (FD_ISSET(s->signals, &readable))
			signals_take(s);
		if (s->opt.sync && now_ms() >= s->flush_at) {
			store_flush(s);
			s->flush_at = now_ms() + (int64_t)s->opt.sync * 1000;
		}
		peers_read(s, &readable);
		peers_bury(s);
		if (s->accept_at && now_ms() >= s->accept_at)
			s->accept_at = 0;
		if (FD_ISSET(s->listener, &readable) || s->stop_at)
			peers_accept(s);
	}
}

/*
 * Process
 */

/* Prints the path as QEMU's option parser wants it: a comma is doubled. */
static void path_for_qemu(const char *path, char *out)
{
	for (; *path; path++) {
		if (*path == ',')
			*out++ = ',';
		*out++ = *path;
	}
	*out = '\0';
}

/* Says what is served, and how to connect a node to it. */
static void server_announce(const struct server *s)
{
	char path[2 * sizeof(((struct sockaddr_un *)NULL)->sun_path)], memory[32] = "";
	unsigned int vectors = s->opt.vectors;

	path_for_qemu(s->opt.socket, path);
	if (s->store.fd < 0) {
		say("serving interrupts without memory, vectors %u, socket %s", vectors,
		    s->opt.socket);
	} else {
		say("serving %s, size %s, vectors %u, socket %s", s->opt.object,
		    SIZE(s->store.size), vectors, s->opt.socket);
		snprintf(memory, sizeof(memory), ",size=%s", SIZE(s->store.size));
	}
	say("connect a node: -chardev socket,path=%s,id=fam -device %s,chardev=fam%s,vectors=%u",
	    path, s->opt.legacy ? "ivshmem" : "ivshmem-doorbell", s->opt.legacy ? memory : "",
	    vectors ? vectors : 1);
}

/*
 * Forks, and goes on in the child; the parent waits until that is ready or has failed, and exits as
 * it should, so that whatever goes wrong is said before the command returns.
 */
static bool background_begin(struct server *s)
{
	int ends[2], status;
	sigset_t none;
	pid_t child;
	char ready;

	if (!s->opt.daemonize)
		return true;
	if (pipe2(ends, O_CLOEXEC) < 0)
		return fail("cannot create a pipe");
	child = fork();
	if (child < 0)
		return fail("cannot go to the background");
	if (child == 0) {
		close(ends[0]);
		s->parent = ends[1];
		return true;
	}
	close(ends[1]);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (TEMP_FAILURE_RETRY(read(ends[0], &ready, 1)) == 1)
		_exit(EXIT_SUCCESS);
	if (waitpid(child, &status, 0) == child && WIFEXITED(status))
		_exit(WEXITSTATUS(status));
	refuse("ended by %s before it was ready", strsignal(WTERMSIG(status)));
	_exit(EXIT_FAILURE);
}

/* Leaves the terminal and the working directory, and lets the parent exit. */
static bool background_enter(struct server *s)
{
	if (!s->opt.daemonize)
		return true;
	setsid();
	if (chdir("/") < 0)
		fail("cannot change to /");
	log_to_syslog();
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		dup2(s->spare, fd);
	server_announce(s);
	if (write(s->parent, "", 1) != 1)
		return fail("cannot tell the parent process that all is ready");
	close(s->parent);
	s->parent = -1;
	return true;
}

/* Closes what the server has open; keep says whether its start succeeded and the object stays. */
static void server_close(struct server *s, bool keep)
{
	for (size_t i = 0; i < s->count; i++)
		peer_free(s->peers[i], s->opt.vectors);
	if (!keep && s->listener >= 0)
		clients_turn_away(s);
	socket_close(s);
	store_close(s, keep);
	pidfile_close(s, keep);
	checker_end(s);
	if (s->flusher > 0)
		waitpid(s->flusher, NULL, 0);
	close(s->spare);
	close(s->signals);
}

/* Starts to serve; if that fails, leaves everything as it was. */
static bool server_start(struct server *s)
{
	bool started;

	s->group = group_find(s->opt.group);
	descriptor_limit_raise();
	started = signals_open(s) && background_begin(s) && pidfile_open(s) && store_open(s) &&
		  socket_listen(s) && store_shrink(s);
	if (started)
		server_announce(s);
	started = started && background_enter(s);
	if (!started)
		server_close(s, false);
	return started;
}

/* Goes on serving where the image before has left off, unless it only asks whether we could. */
static bool server_resume(struct server *s, const char *purpose, int state)
{
	if (!state_restore(s, state))
		return false;
	if (!strcmp(purpose, "check"))
		exit(CAN_TAKE_OVER);
	if (!descriptors_keep(s, false) || !signals_open(s))
		return fail("cannot take over");
	flusher_reap(s); /* its signal may be gone */
	say("restarted in place, version " VERSION ", %zu nodes connected", s->count);
	return true;
}

int main(int argc, char **argv)
{
	static struct server s = {
		.store = {.fd = -1, .lock = -1},
		.pidfile = -1,
		.listener = -1,
		.parent = -1,
		.signals = -1,
		.spare = -1,
	};
	const char *variable = getenv(STATE_VARIABLE);
	char purpose[16] = "";
	int state, in_background = 0;

	if (variable && sscanf(variable, "%15s %d %d", purpose, &state, &in_background) != 3)
		variable = NULL;
	unsetenv(STATE_VARIABLE);
	if (in_background)
		log_to_syslog();
	if (!variable)
		close_range(STDERR_FILENO + 1, UINT_MAX,
			    0); /* nothing of the caller's stays open */
	s.argv = argv;
	s.program = path_absolute((const char *)getauxval(AT_EXECFN));
	if (!s.program) {
		fail("cannot tell the path of this program, for restarts: start it by an absolute path");
		return EXIT_FAILURE;
	}
	if (!variable && !spare_open(&s))
		return EXIT_FAILURE;
	options_parse(&s.opt, argc, argv);
	if (variable ? !server_resume(&s, purpose, state) : !server_start(&s))
		return EXIT_FAILURE;
	supervisor_notify("READY=1");
	if (!s.flush_at)
		s.flush_at = now_ms() + (int64_t)s.opt.sync * 1000;
	serve(&s);
	server_close(&s, true);
	return EXIT_SUCCESS;
}
