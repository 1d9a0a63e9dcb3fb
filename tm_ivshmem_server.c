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
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

/* The public interface: values that users and clients see. */
#define DEFAULT_SOCKET   "/tmp/ivshmem_socket"
#define DEFAULT_SHM      "ivshmem"
#define DEFAULT_SIZE     (UINT64_C(1) << 20)
#define VECTORS_MAX      2048  /* what MSI-X has */
#define IDS              65536 /* the device's register has 16 bits for it */
#define PROTOCOL_VERSION 0
#define REFUSED          (-1) /* a version that makes every QEMU exit with an error */
#define MEMORY           (-1) /* the value beside the descriptor of the shared memory */

/* How the loop is paced. */
#define ACCEPTS_PER_ROUND 64
#define RETRY_MS          20 /* until a send or an accept is tried again that the kernel had no room for */
#define GREETING_MS       1000 /* that greetings under way get when the server ends */

/* No queue may ever lack the room for one leave of each peer (peers_bury). */
_Static_assert(SCM_KEEP >= FD_SETSIZE, "an emptied queue must have room for a leave of each peer");

struct options {
	const char *file;   /* absolute; NULL: a shared memory object */
	const char *shm;    /* without a leading slash */
	const char *socket; /* absolute */
	uint64_t size;      /* bytes */
	bool sized;         /* -m was given */
	bool truncate, legacy, verbose;
	unsigned int vectors;
};

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
	int *eventfds;   /* one for each vector, closed by peer_free */
	uint64_t joined; /* its number among all joins */
	enum peer_state state;
	struct scm_queue queue;
};

struct server {
	struct options opt;
	struct store store;
	int listener;     /* closed by socket_close */
	dev_t socket_dev; /* which socket is ours, among all that may stand at the path */
	ino_t socket_ino;
	int signals;       /* the signalfd, closed at exit */
	int spare;         /* given up to refuse a client when no descriptor is left */
	int64_t accept_at; /* when to accept again after the kernel had no room; 0: now */
	int64_t send_at;   /* when to send to starved peers again */
	int64_t stop_at;   /* when to end at the latest; 0: not ending */
	size_t count;
	struct peer *peers[FD_SETSIZE]; /* in the order in which they joined */
	uint64_t joins;                 /* so far */
	uint64_t retired[IDS];          /* by ID: the joins when its last peer left; IN_USE */
};

#define IN_USE UINT64_MAX

/*
 * Logging: one line for each event, on stderr.
 */

static void log_line(const char *format, va_list args, int error)
{
	char line[2048];
	int n = vsnprintf(line, sizeof(line), format, args);

	if (error && n >= 0 && (size_t)n < sizeof(line))
		snprintf(line + n, sizeof(line) - (size_t)n, ": %s", strerror(error));
	fprintf(stderr, "%s: %s\n", program_invocation_short_name, line);
}

/* Says what happened. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	log_line(format, args, 0);
	va_end(args);
}

/* Says what failed and why, errno's text behind it; errno stays. Returns false, for its caller to
 * return. */
__attribute__((format(printf, 1, 2))) static bool fail(const char *format, ...)
{
	int error = errno;
	va_list args;

	va_start(args, format);
	log_line(format, args, error);
	va_end(args);
	errno = error;
	return false;
}

/* Says what is wrong where errno has nothing to add. Returns false, for its caller to return. */
__attribute__((format(printf, 1, 2))) static bool refuse(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	log_line(format, args, 0);
	va_end(args);
	return false;
}

/* Ends the program over a mistake in its command line. */
__attribute__((format(printf, 1, 2), noreturn)) static void usage(const char *format, ...)
{
	char line[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	say("%s (see '%s --help')", line, program_invocation_short_name);
	exit(2);
}

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
	"Serve fabric-attached memory to QEMU nodes: one shared memory object, an ID and "
	"doorbells\n"
	"for every ivshmem device that connects.\n"
	"\n"
	"  -f, --file PATH      regular file as backing store; it persists\n"
	"  -s, --shm NAME       POSIX shared memory object as backing store (default " DEFAULT_SHM
	")\n"
	"  -m, --size N[K|M|G|T]  size of the memory, a power of two; plain numbers are MiB\n"
	"                       (default 1M for a new object, an existing one keeps its size)\n"
	"  -t, --truncate       resize an existing object to -m exactly\n"
	"  -n, --vectors N      MSI-X vectors of each node, 0 to 2048 (default 1)\n"
	"  -p, --socket PATH    UNIX socket to listen on (default " DEFAULT_SOCKET ")\n"
	"  -L, --legacy         the original stream without the version message; any size of "
	"whole\n"
	"                       pages, and -m 0 for interrupts without memory\n"
	"  -v, --verbose        log every message\n"
	"  -V, --version        print the version and exit\n"
	"  -h, --help           print this help and exit\n"
	"\n"
	"TERM, INT and QUIT end the server; the memory object stays.\n";

static const char short_options[] = ":f:s:m:tn:p:LvVh";
static const struct option long_options[] = {
	{"file", required_argument, NULL, 'f'},
	{"shm", required_argument, NULL, 's'},
	{"size", required_argument, NULL, 'm'},
	{"truncate", no_argument, NULL, 't'},
	{"vectors", required_argument, NULL, 'n'},
	{"socket", required_argument, NULL, 'p'},
	{"legacy", no_argument, NULL, 'L'},
	{"verbose", no_argument, NULL, 'v'},
	{"version", no_argument, NULL, 'V'},
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
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

/* The name that people know an option by: both its forms. */
static const char *option_name(int letter)
{
	static char name[32];
	const struct option *o = long_options;

	while (o->name && o->val != letter)
		o++;
	assert(o->name);
	snprintf(name, sizeof(name), "-%c/--%s", letter, o->name);
	return name;
}

/*
 * Reads decimal digits, at least one, from text on; *end is what follows them. Returns false where
 * there are none or the number is more than 64 bits hold.
 */
static bool digits_parse(const char *text, uint64_t *number, char **end)
{
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*number = strtoull(text, end, 10);
	return errno == 0;
}

static unsigned int number_parse(int letter, const char *text, unsigned int min, unsigned int max)
{
	uint64_t number;
	char *end;

	if (!digits_parse(text, &number, &end) || *end || number < min || number > max)
		usage("%s '%s': give a whole number from %u to %u", option_name(letter), text, min,
		      max);
	return (unsigned int)number;
}

/* A size in bytes: digits and one optional unit, MiB without. */
static uint64_t size_parse(const char *text)
{
	static const char units[] = "KMGT";
	const char *name = option_name('m'), *unit = &units[1];
	uint64_t number;
	char *end;
	int shift;

	if (*text >= '0' && *text <= '9' && text[strspn(text, "0123456789KMGT")] == '\0' &&
	    !digits_parse(text, &number, &end))
		usage("%s '%s': more than a file can hold", name, text);
	if (!digits_parse(text, &number, &end) ||
	    (*end && (!(unit = strchr(units, *end)) || end[1])))
		usage("%s '%s': give digits and at most one of K, M, G and T; plain numbers are "
		      "MiB",
		      name, text);
	shift = 10 * (int)(unit - units + 1);
	if (number > (uint64_t)INT64_MAX >> shift)
		usage("%s '%s': more than a file can hold", name, text);
	return number << shift;
}

/* An absolute path, since the working directory changes. The caller owns it, for all its life. */
static const char *path_parse(int letter, const char *text)
{
	char *cwd = NULL, *path;

	if (!*text)
		usage("%s '': give a path", option_name(letter));
	if (*text != '/' && !(cwd = getcwd(NULL, 0)))
		usage("%s '%s': give a path that starts with '/'; the working directory is "
		      "unknown: %s",
		      option_name(letter), text, strerror(errno));
	if (asprintf(&path, "%s%s%s", cwd ? cwd : "", cwd ? "/" : "", text) < 0)
		usage("%s '%s': %s", option_name(letter), text, strerror(errno));
	free(cwd);
	return path;
}

static const char *socket_parse(const char *text)
{
	const char *path = path_parse('p', text);
	size_t max = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;

	if (strlen(path) > max)
		usage("%s '%s': the path of a socket has at most %zu bytes, this one has %zu; give "
		      "a "
		      "shorter one",
		      option_name('p'), path, max, strlen(path));
	return path;
}

/* The name of a shared memory object, without the slash that shm_open wants before it. */
static const char *shm_parse(const char *text)
{
	const char *name = text + (*text == '/');

	if (!*name || strchr(name, '/') || strlen(name) > NAME_MAX || !strcmp(name, ".") ||
	    !strcmp(name, ".."))
		usage("%s '%s': give a name of 1 to %d bytes without '/'; a path goes with -f",
		      option_name('s'), text, NAME_MAX);
	return name;
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
	else if (!o->legacy && bytes != below)
		n = asprintf(why, "not a power of two, which QEMU needs; the nearest are %s and %s",
			     SIZE(below), SIZE(below << 1));
	else
		return true;
	if (n < 0)
		*why = strdup("a size that QEMU cannot map");
	return false;
}

/* What holds for the options together, whatever their order. */
static void options_check(const struct options *o, const char *size)
{
	char *why;

	if (o->file && o->shm)
		usage("%s and %s exclude each other: give one backing store", "-f/--file",
		      "-s/--shm");
	if (o->truncate && !o->sized)
		usage("%s needs %s: say which size", "-t/--truncate", "-m/--size");
	if (o->sized && o->size == 0 && !o->legacy)
		usage("%s '%s': give a size; only the original stream, -L, can do without memory",
		      option_name('m'), size);
	if (o->sized && o->size == 0 && o->truncate)
		usage("%s: there is nothing to resize with %s %s", "-t/--truncate", "-m/--size",
		      size);
	if (o->sized && o->size > 0 && !size_fits(o, o->size, &why))
		usage("%s '%s': %s", option_name('m'), size, why);
}

/* Fills in the options; a mistake ends the program with status 2. */
static void options_parse(struct options *o, int argc, char **argv)
{
	const char *size = NULL;
	int letter;

	*o = (struct options){.socket = DEFAULT_SOCKET, .vectors = 1};
	opterr = 0;
	while ((letter = getopt_long(argc, argv, short_options, long_options, NULL)) != -1) {
		switch (letter) {
		case 'f':
			o->file = path_parse('f', optarg);
			break;
		case 's':
			o->shm = shm_parse(optarg);
			break;
		case 'm':
			o->size = size_parse(size = optarg);
			o->sized = true;
			break;
		case 't':
			o->truncate = true;
			break;
		case 'n':
			o->vectors = number_parse('n', optarg, 0, VECTORS_MAX);
			break;
		case 'p':
			o->socket = socket_parse(optarg);
			break;
		case 'L':
			o->legacy = true;
			break;
		case 'v':
			o->verbose = true;
			break;
		case 'V':
			print_and_exit("tm_ivshmem_server " VERSION "\n");
		case 'h':
			print_and_exit(help_text);
		case ':':
			usage("option '%s' needs a value", argv[optind - 1]);
		default:
			if (optopt && !strncmp(argv[optind - 1], "--", 2))
				usage("option '%s' takes no value", argv[optind - 1]);
			if (optopt)
				usage("unknown option '-%c'", optopt);
			usage("unknown or ambiguous option '%s'", argv[optind - 1]);
		}
	}
	if (optind < argc)
		usage("unexpected argument '%s'", argv[optind]);
	options_check(o, size);
	if (!o->file && !o->shm)
		o->shm = DEFAULT_SHM;
}

/*
 * Limits
 */

/* Makes sure that descriptors 0 to 2 exist, so that none of ours is taken for them. */
static bool standard_descriptors_open(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR);
		if (fd < 0)
			return fail("cannot open /dev/null");
	} while (fd <= STDERR_FILENO);
	close(fd);
	return true;
}

/*
 * Raises the number of descriptors that we may have open, and in flight: as far as the kernel
 * allows if we are privileged, else to the hard limit. Without luck the limit stays as it is.
 */
static void descriptor_limit_raise(void)
{
	struct rlimit limit, wanted;
	FILE *f = fopen("/proc/sys/fs/nr_open", "re");
	unsigned long most;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
		fail("cannot read the limit of open descriptors");
		return;
	}
	if (f && fscanf(f, "%lu", &most) == 1 && most > limit.rlim_max) {
		wanted = (struct rlimit){.rlim_cur = most, .rlim_max = most};
		if (setrlimit(RLIMIT_NOFILE, &wanted) == 0)
			limit = wanted;
	}
	if (f)
		fclose(f);
	wanted = (struct rlimit){.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
	if (limit.rlim_cur < limit.rlim_max && setrlimit(RLIMIT_NOFILE, &wanted) < 0)
		fail("cannot raise the limit of open descriptors to %lu",
		     (unsigned long)limit.rlim_max);
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
 * Backing store
 */

/* What messages call the object. */
static const char *store_name(const struct options *o)
{
	static char name[sizeof("shared memory object ") + NAME_MAX];

	if (o->file)
		return o->file;
	snprintf(name, sizeof(name), "shared memory object %s", o->shm);
	return name;
}

/* Opens the object for reading and writing; flags as for open. Returns the descriptor or -1. */
static int object_open(const struct options *o, int flags)
{
	char name[NAME_MAX + 2];

	flags |= O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	if (o->file)
		return open(o->file, flags, 0600);
	snprintf(name, sizeof(name), "/%s", o->shm);
	return shm_open(name, flags, 0600);
}

static int object_unlink(const struct options *o)
{
	char name[NAME_MAX + 2];

	if (o->file)
		return unlink(o->file);
	snprintf(name, sizeof(name), "/%s", o->shm);
	return shm_unlink(name);
}

/* Refuses what is no regular file, before opening it could wake a device. */
static bool object_is_file(const struct options *o)
{
	struct stat st;

	if (!o->file || stat(o->file, &st) < 0 || S_ISREG(st.st_mode))
		return true;
	return refuse("cannot use %s as backing store: it is %s, not a regular file", o->file,
		      S_ISDIR(st.st_mode)    ? "a directory"
		      : S_ISBLK(st.st_mode)  ? "a block device"
		      : S_ISCHR(st.st_mode)  ? "a character device"
		      : S_ISFIFO(st.st_mode) ? "a FIFO"
					     : "a socket");
}

/*
 * Opens the object twice: first for the lock, which dies with the server though nodes keep the
 * memory open, then for the nodes.
 */
static bool store_lock(struct server *s)
{
	const char *name = store_name(&s->opt);
	struct stat locked, st;

	s->store.lock = object_open(&s->opt, 0);
	if (s->store.lock < 0 && errno == ENOENT) {
		s->store.lock = object_open(&s->opt, O_CREAT | O_EXCL);
		s->store.created = s->store.lock >= 0;
	}
	if (s->store.lock < 0)
		return fail("cannot %s %s", errno == EEXIST ? "create" : "open", name);
	if (flock(s->store.lock, LOCK_EX | LOCK_NB) < 0) {
		if (errno == EWOULDBLOCK)
			return refuse("%s is served by another server: stop that one, or choose "
				      "another object with -f or -s",
				      name);
		return fail("cannot lock %s", name);
	}
	s->store.fd = object_open(&s->opt, 0);
	if (s->store.fd < 0)
		return fail("cannot open %s", name);
	if (fstat(s->store.lock, &locked) < 0 || fstat(s->store.fd, &st) < 0)
		return fail("cannot examine %s", name);
	if (locked.st_dev != st.st_dev || locked.st_ino != st.st_ino)
		return refuse("%s was replaced while it was being opened: try again", name);
	if (!S_ISREG(st.st_mode))
		return refuse("cannot use %s as backing store: it is not a regular file", name);
	s->store.found = (uint64_t)st.st_size;
	return true;
}

/* Decides which size is served: that of the object, or the one that it is to get. */
static bool store_size_choose(struct server *s)
{
	const struct options *o = &s->opt;
	const char *name = store_name(o);
	uint64_t found = s->store.found;
	char *why;

	if (found == 0) {
		s->store.size = o->sized ? o->size : DEFAULT_SIZE;
	} else if (o->truncate) {
		s->store.size = o->size;
		if (o->size < found)
			say("%s shrinks from %s to %s", name, SIZE(found), SIZE(o->size));
	} else if (o->sized && o->size > found) {
		return refuse("%s has %s, less than -m %s: leave out -m to serve it as it is, or "
			      "add -t to enlarge it",
			      name, SIZE(found), SIZE(o->size));
	} else {
		s->store.size = found;
		if (o->sized && o->size < found)
			say("%s has %s, more than -m %s: all of it is served", name, SIZE(found),
			    SIZE(o->size));
	}
	if (size_fits(o, s->store.size, &why))
		return true;
	refuse("cannot serve %s, which has %s: %s (-t -m resizes it)", name, SIZE(found), why);
	free(why);
	return false;
}

/* Maps one page as QEMU will map all, to learn now whether the file system can. */
static bool store_map_try(struct server *s)
{
	void *page = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_SHARED, s->store.fd, 0);

	if (page == MAP_FAILED)
		return fail("cannot map %s: choose a file system that can share memory",
			    store_name(&s->opt));
	munmap(page, page_size());
	return true;
}

/* Opens or creates the object and enlarges it. What had to be undone, store_undo undoes. */
static bool store_open(struct server *s)
{
	if (s->opt.sized && s->opt.size == 0)
		return true;
	if (!object_is_file(&s->opt) || !store_lock(s) || !store_size_choose(s))
		return false;
	if (s->store.size > s->store.found && ftruncate(s->store.fd, (off_t)s->store.size) < 0)
		return fail("cannot give %s a size of %s", store_name(&s->opt),
			    SIZE(s->store.size));
	return store_map_try(s);
}

/* Shrinks the object, as the last step of a start: the only one that cannot be undone. */
static bool store_shrink(struct server *s)
{
	if (s->store.size < s->store.found && ftruncate(s->store.fd, (off_t)s->store.size) < 0)
		return fail("cannot shrink %s to %s", store_name(&s->opt), SIZE(s->store.size));
	return true;
}

static void store_close(struct server *s)
{
	if (s->store.fd >= 0)
		close(s->store.fd);
	if (s->store.lock >= 0)
		close(s->store.lock);
}

/* After a failed start: leaves the object as it was found. */
static void store_undo(struct server *s)
{
	if (s->store.created && object_unlink(&s->opt) < 0)
		fail("cannot remove %s", store_name(&s->opt));
	else if (!s->store.created && s->store.fd >= 0 && s->store.size > s->store.found &&
		 ftruncate(s->store.fd, (off_t)s->store.found) < 0)
		fail("cannot give %s its size back", store_name(&s->opt));
	store_close(s);
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
	if (error == 0 || error == EPROTOTYPE)
		return refuse("%s belongs to a server that is running: stop that one, or choose "
			      "another path with -p",
			      path);
	if (error != ECONNREFUSED && error != ENOENT)
		return fail("cannot find out whether a server listens on %s", path);
	if (error == ECONNREFUSED && unlink(path) < 0)
		return fail("cannot remove the stale socket %s", path);
	return true;
}

/*
 * Opens the folder of the socket and locks it, so that two servers that start at the same moment do
 * not take each other's socket for a stale one. Waits a second at most for others to be done.
 * Returns the descriptor that holds the lock, or -1.
 */
static int socket_folder_lock(const char *path)
{
	char *copy = strdup(path);
	int folder = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	if (folder < 0)
		fail("cannot open the folder of socket %s", path);
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
	if (lstat(s->opt.socket, &st) < 0)
		return fail("cannot examine %s", s->opt.socket);
	s->socket_dev = st.st_dev;
	s->socket_ino = st.st_ino;
	return true;
}

static bool socket_listen(struct server *s)
{
	const char *path = s->opt.socket;
	int folder = socket_folder_lock(path);
	bool done;

	if (folder < 0)
		return false;
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listener < 0)
		done = fail("cannot create a socket");
	else
		done = socket_path_free(path) && socket_bind(s);
	if (done && listen(s->listener, SOMAXCONN) < 0)
		done = fail("cannot listen on %s", path);
	close(folder);
	return done;
}

/* Removes the socket if it is still ours. New clients cannot connect from here on. */
static void socket_remove(struct server *s)
{
	struct stat st;

	if (s->socket_ino && lstat(s->opt.socket, &st) == 0 && st.st_dev == s->socket_dev &&
	    st.st_ino == s->socket_ino && unlink(s->opt.socket) < 0)
		fail("cannot remove socket %s", s->opt.socket);
	s->socket_ino = 0;
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

static void peer_free(struct peer *p, unsigned int vectors)
{
	for (unsigned int i = 0; p->eventfds && i < vectors; i++)
		if (p->eventfds[i] >= 0)
			close(p->eventfds[i]);
	free(p->eventfds);
	scm_free(&p->queue);
	close(p->sock);
	free(p);
}

/* Makes a peer of a socket, which it owns from then on. Returns NULL with errno. */
static struct peer *peer_new(int sock, unsigned int vectors)
{
	struct peer *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->sock = -1;
	p->eventfds = calloc(vectors + 1, sizeof(*p->eventfds));
	for (unsigned int i = 0; p->eventfds && i < vectors; i++)
		p->eventfds[i] = -1;
	for (unsigned int i = 0; p->eventfds && i < vectors; i++) {
		int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

		if (fd < 0) {
			peer_free(p, vectors);
			return NULL;
		}
		p->eventfds[i] = descriptor_lift(fd);
	}
	if (!p->eventfds) {
		peer_free(p, 0);
		return NULL;
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

/* Whether part of the greeting is unsent: the peer's own ID or vectors, or the memory. */
static bool peer_in_greeting(const struct peer *p)
{
	for (size_t i = 0; i < p->queue.len; i++) {
		int64_t value = scm_at(&p->queue, i)->value;

		if (value == p->id || value == MEMORY)
			return true;
	}
	return false;
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

/* Whether a client that has only just been accepted has gone already. */
static bool client_vanished(int sock)
{
	char byte;

	return recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN;
}

static void client_welcome(struct server *s, int sock)
{
	int id = id_pick(s);
	struct peer *p;

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
	say("ID %d joined, %zu connected", id, s->count);
}

/* Gives up the spare descriptor for a moment, to refuse a client when there is no other. */
static void client_refuse_with_spare(struct server *s)
{
	const char *why = strerror(errno);
	int sock;

	close(s->spare);
	sock = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (sock >= 0)
		client_refuse(sock, why);
	else
		s->accept_at = now_ms() + RETRY_MS;
	s->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void peers_accept(struct server *s)
{
	for (int i = 0; i < ACCEPTS_PER_ROUND; i++) {
		int sock = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (sock >= 0 && client_vanished(sock)) {
			close(sock);
		} else if (sock >= 0) {
			client_welcome(s, sock);
		} else if (errno == EMFILE || errno == ENFILE) {
			client_refuse_with_spare(s);
			return;
		} else if (errno != ECONNABORTED && errno != EINTR) {
			if (errno == EAGAIN)
				return;
			fail("cannot accept a client");
			s->accept_at = now_ms() + RETRY_MS;
			return;
		}
	}
}

/* Notices who has gone: a client never writes, so the end of the stream says so, and any byte. */
static void peers_read(struct server *s, const fd_set *readable)
{
	for (size_t i = 0; i < s->count; i++) {
		struct peer *p = s->peers[i];
		char byte;
		ssize_t n;

		if (!FD_ISSET(p->sock, readable))
			continue;
		n = recv(p->sock, &byte, 1, MSG_DONTWAIT);
		if (n == 0)
			peer_gone(p, "closed the connection");
		else if (n > 0)
			peer_gone(p, "sent data, which no ivshmem client does");
		else if (errno != EAGAIN && errno != EINTR && errno != ENOMEM && errno != ENOBUFS)
			peer_gone(p, strerror(errno));
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
			s->send_at = now_ms() + RETRY_MS;
			break;
		case SCM_DEAD:
			peer_gone(p, strerror(errno));
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
	return dead > 0;
}

/*
 * The loop
 */

/* Blocks the signals that we act upon and gets them as a descriptor instead. */
static bool signals_open(struct server *s)
{
	static const int ours[] = {SIGTERM, SIGINT, SIGQUIT};
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
		signal(ours[i], SIG_DFL); /* an ignored signal would never reach the descriptor */
		sigaddset(&set, ours[i]);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return s->signals >= 0 || fail("cannot create a signalfd");
}

/*
 * Starts to end: nobody can connect any more, who has connected is greeted, and the greetings under
 * way get a moment to be sent (hazard 3).
 */
static void server_stop(struct server *s, const char *why)
{
	if (s->stop_at)
		return;
	say("%s: ending, %s stays", why, s->store.fd < 0 ? "nothing" : store_name(&s->opt));
	socket_remove(s);
	s->stop_at = now_ms() + GREETING_MS;
}

static void signals_take(struct server *s)
{
	struct signalfd_siginfo info;

	while (read(s->signals, &info, sizeof(info)) == sizeof(info))
		server_stop(s, strsignal((int)info.ssi_signo));
}

/* Whether all greetings are sent, or have had their time. */
static bool server_stopped(struct server *s)
{
	if (!s->stop_at)
		return false;
	for (size_t i = 0; i < s->count && now_ms() < s->stop_at; i++)
		if (peer_in_greeting(s->peers[i]))
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
	else
		descriptor_watch(s->listener, readable, &most);
	if (s->stop_at)
		timer_add(&wait, s->stop_at);
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
	nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000}, NULL);
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

/* Serves until a signal ends it. */
static void serve(struct server *s)
{
	while (!server_stopped(s)) {
		fd_set readable, writable;

		server_wait(s, &readable, &writable);
		peers_wake(s, &writable);
		if (FD_ISSET(s->signals, &readable))
			signals_take(s);
		peers_read(s, &readable);
		peers_bury(s);
		if (s->accept_at && now_ms() >= s->accept_at)
			s->accept_at = 0;
		if (FD_ISSET(s->listener, &readable) || s->stop_at)
			peers_accept(s);
		do
			peers_flush(s);
		while (peers_bury(s));
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
	if (s->store.fd >= 0)
		say("serving %s, size %s, vectors %u, socket %s", store_name(&s->opt),
		    SIZE(s->store.size), vectors, s->opt.socket);
	else
		say("serving interrupts without memory, vectors %u, socket %s", vectors,
		    s->opt.socket);
	if (s->store.fd >= 0)
		snprintf(memory, sizeof(memory), ",size=%s", SIZE(s->store.size));
	say("connect a node: -chardev socket,path=%s,id=fam -device %s,chardev=fam%s,vectors=%u",
	    path, s->opt.legacy ? "ivshmem" : "ivshmem-doorbell", s->opt.legacy ? memory : "",
	    vectors ? vectors : 1);
}

int main(int argc, char **argv)
{
	static struct server s = {
		.store = {.fd = -1, .lock = -1},
		.listener = -1,
		.signals = -1,
		.spare = -1,
	};

	if (!standard_descriptors_open())
		return EXIT_FAILURE;
	options_parse(&s.opt, argc, argv);
	descriptor_limit_raise();
	s.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (!signals_open(&s) || !store_open(&s) || !socket_listen(&s) || !store_shrink(&s)) {
		socket_close(&s);
		store_undo(&s);
		return EXIT_FAILURE;
	}
	server_announce(&s);
	serve(&s);
	for (size_t i = 0; i < s.count; i++)
		peer_free(s.peers[i], s.opt.vectors);
	socket_close(&s);
	store_close(&s);
	close(s.spare);
	close(s.signals);
	return EXIT_SUCCESS;
}
