/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tm_ivshmem_server: fabric-attached memory for QEMU nodes
 *
 * Theory of operation. The server owns one object of shared memory, a regular file, a POSIX shared
 * memory object or memory without a name, and one listening socket. Every QEMU process with an
 * ivshmem device that connects there becomes a peer: it gets an ID, the descriptor of the memory,
 * the eventfds of all other peers and its own; the others get its eventfds, and later word that it
 * left. Data and doorbells then flow between the nodes directly, the server sees neither.
 *
 * Nothing is queued for anybody. Peers stand in the order in which they joined, departures in the
 * order in which they left; a peer has a place in both, and what it is to be told next follows from
 * that (message_next). One round of the loop takes signals, notices who has gone, accepts
 * newcomers, and only then sends, to every peer as much as its socket takes. So nobody waits for
 * anybody, and one that does not read costs what any other costs.
 *
 * All that must outlive the process stands in the ledger, a memfd: upon SIGHUP the process executes
 * the program that is now on disk, which maps the ledger and goes on. Under a supervisor such as
 * systemd, which keeps descriptors for us, a new process can do that as well, however the old one
 * has ended.
 *
 * select looks at all its descriptors each time, so it has one that stands for the ends of all
 * peers, and else only those of peers whose sockets are full. Sockets must lie below FD_SETSIZE for
 * that, so eventfds are moved above it.
 *
 * The numbers of hazards in comments are those of the list of what breaks real clients, in the
 * README under "What a server must never do".
 */
#define _GNU_SOURCE
#include "send_scm.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <grp.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/syslog.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
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
#define QEMU_NAME        "ivshmem-server" /* under this one we take the options of QEMU's server */
#define QEMU_SIZE        (UINT64_C(4) << 20)
#define QEMU_PIDFILE     "/var/run/ivshmem-server.pid"
#define VECTORS_MAX      2048  /* what MSI-X has */
#define SYNC_MAX         86400 /* seconds: a day */
#define IDS              65536 /* the device's register has 16 bits for it */
#define PROTOCOL_VERSION 0
#define LEDGER_VARIABLE  "TM_IVSHMEM_SERVER_STATE" /* from one image of the program to the next */
#define REFUSED          (-1) /* a version that makes every QEMU exit with an error */
#define MEMORY           (-1) /* the value beside the descriptor of the shared memory */

#define NODES_FEW 16 /* a server for fewer is warned of */

/* How the loop is paced. */
#define ACCEPTS_PER_ROUND 64
#define SEND_RETRY_MS     20  /* until a send is tried again that the kernel had no room for */
#define ACCEPT_RETRY_MS   250 /* and an accept, each of which is logged */
#define SOCKET_LOST_MS                                                                            \
	500                   /* until a socket is made again that somebody removed: not at once, \
				 who removes a folder is to get through */
#define SOCKET_RETRY_MS 1000  /* and until that is tried again */
#define SOCKET_LOOK_MS  20000 /* between looks at it: not all that can be done to it is told */
#define STORE_RETRY_MS  1000  /* until a supervisor is told again that could not be */
#define STORE_MS        1000  /* that it gets to take something when the server ends */
#define FLUSH_RETRY_MS  1000  /* and a flush that was not made */
#define TRIAL_MS        10000 /* that a program gets to say that it can take over */
#define STOP_POLL_MS    10    /* between looks at who has read everything, when the server ends */
#define GREETING_MS     1000  /* that greetings under way get when the server ends */

struct options {
	const char *object;  /* absolute path of the backing store, or words for an unnamed one */
	const char *folder;  /* absolute: where an unnamed one has its file; NULL: it has none */
	const char *socket;  /* absolute */
	const char *pidfile; /* absolute; NULL: none */
	bool shm;            /* the object is no file that persists */
	bool anonymous;      /* it has no name, either: nobody else can open it */
	bool daemonize, truncate, allocate, legacy, verbose;
	bool check, version;   /* nothing is to be served: what of the command line is right? */
	bool sized;            /* -m was given */
	bool grow;             /* an object smaller than that is enlarged */
	bool pidfile_optional; /* nobody asked for it: goes on without, where it fails */
	const char *group;     /* name or number; NULL: the default, if there is one */
	uint64_t size;         /* bytes */
	unsigned int vectors;
	unsigned int sync; /* seconds; 0: never */
};

#define NOBODY ((gid_t)-1)

/* Peers stand below this: also a process that takes over, when all these numbers have been taken,
 * is to have some for what select is to look at. */
#define PEERS_END (FD_SETSIZE - 8)

/* What a peer has been told: it follows from this what it is to be told next (message_next). */
struct place {
	uint32_t head;       /* messages of the greeting's beginning: version, ID, memory */
	uint32_t vectors;    /* eventfds of the peer with the serial number reached */
	uint64_t reached;    /* of the newest peer of which it has been sent an eventfd; 0: none */
	uint64_t departures; /* how many of all it has dealt with */
};

/* A peer stands at the number of its socket. That and the eventfds are closed by peer_free. */
struct peer {
	uint64_t serial;   /* its number among all joins, from 1 on; 0: nobody is here */
	uint64_t missed;   /* the departures before it joined, of which it never hears */
	int64_t joined_ms; /* now_ms() when it joined */
	struct place place;
	int32_t process;
	uint16_t id;
	uint8_t sending;    /* a send is under way: how much of it went out is not known */
	uint8_t stored;     /* what the supervisor has of it: PARCEL_FIRST and so on; 0: nothing */
	int32_t eventfds[]; /* one for each vector */
};

struct departure {
	uint64_t serial;
	int64_t id;
};

/* When to do what, on the clock of now_ms; 0: not at all. */
enum timer {
	TIMER_ACCEPT, /* accept again, after the kernel had no room */
	TIMER_SEND,   /* send again to starved peers */
	TIMER_SYNC,   /* flush the object, for -y */
	TIMER_FLUSH,  /* flush it again, where that came to nothing */
	TIMER_SOCKET, /* look again whether our socket stands there: always running */
	TIMER_TRIAL,  /* give up a program that does not say whether it can take over */
	TIMER_STORE,  /* tell the supervisor what it had no room for */
	TIMERS,
};

#define SOCKET_NOWHERE UINT64_MAX

/* What of our own a supervisor keeps for us, and what that is called there. */
enum own { OWN_LEDGER, OWN_OBJECT, OWN_LOCK, OWN_LISTENER, OWNS };
static const char *const own_names[OWNS] = {"ledger", "object", "lock", "our-listener"};
#define PARCEL "node-" /* and a serial number: what the parcel of a peer is called */

/*
 * What is stored of a peer. Only by its name can the supervisor drop a parcel, so one that is to
 * take the place of another has another name, which means the same: a zero before the number.
 */
enum {
	PARCEL_FIRST = 1,
	PARCEL_SECOND = 2, /* by the name with the zero */
	PARCEL_KEPT = PARCEL_FIRST | PARCEL_SECOND,
	PARCEL_BOTH = 4, /* the one by the other name is to be dropped */
	PARCEL_ANEW = 8, /* it may have been lost: another is to take its place */
};

#define LEDGER_MAGIC         UINT64_C(0x72656764656c6d74)
#define LEDGER_LAYOUT        2
#define LEDGER_LAYOUT_BEFORE 1 /* of version 1.1: ledger_renew */
#define LEDGER_RING          200
#define LEDGER_HEAD          ((sizeof(struct ledger) + 63) / 64 * 64) /* the peers begin here, aligned */

/*
 * All that must outlive the process, in memory that the next image maps as well. Its descriptors
 * are closed at exit; -1: there is none. Behind it stand FD_SETSIZE peers, so many bytes each as
 * peer_length says; of pages that nobody has touched the kernel keeps none.
 */
struct ledger {
	uint64_t magic;
	uint32_t layout;
	uint32_t peer_length;
	uint32_t vectors, legacy;
	uint32_t group; /* who may connect; NOBODY: only the server's own user */
	uint64_t object_dev, object_ino;
	uint64_t size; /* of the object, in bytes */
	int32_t store; /* the object: passed to every node */
	int32_t lock;  /* the same, opened again for the lock alone */
	int32_t disk; /* and again to flush it: the kernel reports an error once for each opening */
	int32_t pidfile, listener;
	int32_t watch;                   /* the inotify descriptor that watches our socket's file */
	int32_t signals;                 /* the signalfd */
	int32_t ends;                    /* an epoll descriptor, readable when a peer has gone */
	int32_t flush_due;               /* the object is to be flushed, once no child does so */
	uint64_t socket_dev, socket_ino; /* which socket is ours, among all that may stand there; 0:
					    a supervisor's; SOCKET_NOWHERE: none, to be made */
	int64_t timers[8];
	int32_t flusher;            /* the child that flushes the object; 0: none */
	uint32_t slots;             /* no peer has stood at this number, or beyond */
	uint64_t joins;             /* so far; the newest may not have become true */
	uint64_t departures;        /* so far: each is true once it counts here */
	struct departure ring[IDS]; /* the last of them, the nth at n % IDS */
	uint64_t forgotten;         /* departures of which the supervisor has been told */
	uint64_t object_name;       /* text_hash of what the options call the object */
	uint8_t kept[OWNS]; /* what the supervisor has by this name, if anything, is right */
};

_Static_assert(TIMERS <= 8 && sizeof(struct place) == 24 && sizeof(struct peer) == 56 &&
		       offsetof(struct ledger, ring) == LEDGER_RING &&
		       LEDGER_HEAD == LEDGER_RING + IDS * sizeof(struct departure) + 56,
	       "another layout of the ledger wants another LEDGER_LAYOUT");

/* Who started us and wants to hear of us, such as systemd (sd_notify(3)). */
struct supervisor {
	int sock; /* connected to it, if it can be reached; closed at exit. -1: not opened yet */
	struct sockaddr_un address;
	socklen_t length;     /* of the address; 0: there is no supervisor */
	size_t room;          /* descriptors that it stores for us, at most */
	size_t flight;        /* and that parcels may hold, for the kernel to pass others as well */
	bool lost;            /* it cannot be reached, or lacks something, and the log says so */
	bool full;            /* it had no room for a message: select tells when it has */
	bool unready;         /* it has not been told yet that we are ready */
	bool stopping;        /* nor that we are ending */
	int64_t reloading_us; /* when a restart began of which it has not been told; 0: none */
	uint8_t own_step;     /* how far it has been told what is our own (own_update) */
	uint8_t drop_step;    /* and that it is to drop what it has of somebody who has left */
	bool doubtful;        /* what it was told of our own before, it may have lost */
	bool behind;          /* so it may be with peers, or there is room for more of them */
	int64_t ping_ms;      /* how often it is to hear that the loop goes round; 0: not at all */
	int64_t ping_at;      /* when it is to hear that next, on the clock of now_ms */
};

struct server {
	struct options opt;
	struct ledger *ledger;
	int ledger_fd;
	bool object_created;    /* by this start */
	uint64_t object_found;  /* bytes that the object had before this start */
	bool pidfile_created;   /* by this start */
	char pidfile_found[32]; /* what stood in the pidfile before */
	bool pidfile_written;   /* and may no longer stand there */
	char *stale; /* where the stale socket is that this start has found; NULL: none */
	char **argv;
	const char *program; /* absolute path of what HUP executes */
	int parent;          /* the pipe to a parent that waits until we are ready; else -1 */
	int null;  /* /dev/null: given to clients that are refused, and to ourselves in the
		      background */
	int spare; /* the same: given up where no descriptor is left, to refuse a client or to
		      restart; both may be -1 */
	bool socket_lost;    /* somebody removed our socket, and the log says so */
	bool socket_doubted; /* somebody has done something to it: it is looked at at the next timer
			      */
	int32_t looker; /* the child that looks whether it is still reached by its path; 0: none */
	struct supervisor supervisor;
	int32_t trial;              /* the child that tries the program on disk; 0: none */
	int64_t stop_at;            /* when to end at the latest; 0: not ending */
	bool handover;              /* and a successor is to take over */
	bool leave_waiting;         /* who waits to be accepted then is not ours to serve */
	size_t count;               /* of peers */
	uint16_t order[FD_SETSIZE]; /* their sockets, in the order in which they joined */
	fd_set present;             /* the same sockets */
	fd_set due;                 /* those that may be owed something */
	fd_set blocked;             /* those that are full: they wait for select */
	fd_set starved;             /* those for which the kernel lacked something: a timer */
};

/* Sees to it that we have a name to log by: one that is not empty, nor too long for a line. */
static void name_begin(void)
{
	static char name[NAME_MAX / 4];

	snprintf(name, sizeof(name), "%s", program_invocation_short_name);
	if (!*name)
		strcpy(name, "tm_ivshmem_server");
	program_invocation_short_name = name;
}

/*
 * Logging: one line for each event, on stderr or, in the background, to the system's log.
 *
 * A line is never waited for: nodes would wait with us. What whoever reads the log has no room for
 * waits here and is tried again by the loop; what does not fit here is dropped, and how many lines
 * that were is said when there is room again.
 */

#define LOG_LINE     PIPE_BUF /* bytes of a line at most: a pipe takes all of it or nothing */
#define LOG_RETRY_MS 250      /* until it is tried again to write what waits */

static bool background, muted;
static char log_reason[512]; /* the last error that was logged */

static struct {
	int own;      /* stderr opened once more, or a socket to the system's log; closed at exit.
			 -1: none */
	bool stream;  /* the system's log takes a stream, no datagrams */
	bool socket;  /* stderr is one */
	bool blocks;  /* stderr could not be opened once more, and a write there may wait */
	size_t bytes; /* of log_lines */
	size_t dropped;
} logging = {.own = -1};

static char log_lines[1 << 16]; /* that wait */

/* Takes a descriptor for the log, with a number that select does not need if there is one. */
static void log_take(int fd)
{
	int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FD_SETSIZE);

	if (high >= 0)
		close(fd);
	logging.own = high >= 0 ? high : fd;
}

/*
 * Looks what stderr is. A pipe or a terminal is opened once more, not to wait there: how it was
 * opened is shared with others. Where that may not be, it is asked whether there is room.
 */
static void log_open(void)
{
	struct stat st;

	if (fstat(STDERR_FILENO, &st) < 0)
		return;
	logging.socket = S_ISSOCK(st.st_mode);
	logging.blocks = S_ISFIFO(st.st_mode) || (S_ISCHR(st.st_mode) && isatty(STDERR_FILENO));
	if (logging.blocks)
		log_take(open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

/* Connects to the system's log, which takes datagrams or a stream. Returns false with errno. */
static bool log_connect(void)
{
	static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = _PATH_LOG};
	int error = 0;

	for (int i = 0; i < 2; i++) {
		int type = i == 0 ? SOCK_DGRAM : SOCK_STREAM;
		int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

		if (fd >= 0 &&
		    connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0) {
			log_take(fd);
			logging.stream = i == 1;
			return true;
		}
		error = errno;
		if (fd >= 0)
			close(fd);
		if (error != EPROTOTYPE)
			break;
	}
	errno = error;
	return false;
}

/* Whether a line that failed with this errno can be written later. */
static bool log_later(int error)
{
	static const int later[] = {EAGAIN, EINTR, ENOBUFS, ENOMEM, EMFILE, ENFILE, ENOSPC, EDQUOT};

	for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++)
		if (error == later[i])
			return true;
	return false;
}

/*
 * Sends a line to the system's log, which may have been started anew. In a datagram, its end is the
 * line's. Returns how many bytes are done, or -1 with errno.
 */
static ssize_t log_send(const char *line, size_t length)
{
	ssize_t n = -1;

	for (int tries = 0; tries < 2 && n < 0; tries++) {
		if (logging.own < 0 && !log_connect())
			return -1;
		n = send(logging.own, line, length - !logging.stream, MSG_NOSIGNAL);
		if (n >= 0)
			return n + !logging.stream;
		if (log_later(errno))
			return -1;
		close(logging.own);
		logging.own = -1;
	}
	return n;
}

/* Writes what it can of a line without waiting. Returns how many bytes, or -1 with errno. */
static ssize_t log_write(const char *line, size_t length)
{
	struct pollfd room = {.fd = STDERR_FILENO, .events = POLLOUT};

	if (background)
		return log_send(line, length);
	if (logging.own >= 0)
		return write(logging.own, line, length);
	if (logging.socket)
		return send(STDERR_FILENO, line, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	errno = EAGAIN;
	if (logging.blocks && poll(&room, 1, 0) <= 0)
		return -1;
	return write(STDERR_FILENO, line, length);
}

/* Writes what waits, as far as there is room for it. Where nobody reads a line, it is gone. */
static void log_flush(void)
{
	size_t done = 0;

	while (done < logging.bytes) {
		const char *line = log_lines + done;
		size_t length = strcspn(line, "\n") + 1;
		ssize_t n = log_write(line, length);

		if (n < 0 && log_later(errno))
			break;
		done += n < 0 ? length : (size_t)n;
	}
	if (done == 0)
		return;
	logging.bytes -= done;
	memmove(log_lines, log_lines + done, logging.bytes + 1);
}

/* Has a line written, now or later. */
static void log_add(const char *line, size_t length)
{
	if (logging.dropped || logging.bytes + length >= sizeof(log_lines)) {
		logging.dropped++;
		return;
	}
	memcpy(log_lines + logging.bytes, line, length);
	logging.bytes += length;
	log_lines[logging.bytes] = '\0';
	log_flush();
}

/* How many lines are gone if we are from here on. */
static size_t log_lost(void)
{
	size_t lost = logging.dropped;

	for (size_t i = 0; i < logging.bytes; i++)
		lost += log_lines[i] == '\n';
	return lost;
}

/* In another process than the one that is to write what waits. */
static void log_forget(void)
{
	logging.bytes = logging.dropped = 0;
}

/* The bytes at text that are one character, ASCII or UTF-8; 0: that is none, or one that controls
 * a terminal. */
static size_t character_length(const char *text)
{
	const unsigned char *c = (const unsigned char *)text;
	size_t length = c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;

	if (c[0] < 0x80)
		return c[0] >= ' ' && c[0] != 127;
	if (c[0] < 0xc2 || c[0] > 0xf4 || (c[0] == 0xc2 && c[1] < 0xa0) /* C1 */ ||
	    (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
	    (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f))
		return 0;
	for (size_t i = 1; i < length; i++)
		if ((c[i] & 0xc0) != 0x80)
			return 0;
	return length;
}

/*
 * Makes one line of a text, whatever a path in it is called: not too long, with its beginning and
 * its end, where the remedy stands. Returns its length.
 */
static size_t line_tidy(char *line)
{
	const size_t most = LOG_LINE - 1, half = most / 2;
	size_t length = strlen(line);

	if (length > most) {
		memmove(line + half, line + length - (most - half), most - half + 1);
		memset(line + half - 3, '.', 3);
		length = most;
	}
	for (char *at = line; *at;) {
		size_t n = character_length(at);

		if (n == 0)
			*at = '?';
		at += n ? n : 1;
	}
	line[length++] = '\n';
	return length;
}

/* Begins a line: on stderr, with the name of the program; for the system's log, as that wants it
 * (RFC 3164). Returns its length. */
static int line_begin(char *line, size_t room, int level)
{
	time_t now = time(NULL);
	struct tm local;
	char text[32] = "";

	if (!background)
		return snprintf(line, room, "%s: ", program_invocation_short_name);
	if (localtime_r(&now, &local))
		strftime(text, sizeof(text), "%b %e %T", &local);
	return snprintf(line, room, "<%d>%s %s[%d]: ", LOG_DAEMON | level, text,
			program_invocation_short_name, (int)getpid());
}

/* Writes what waits, and says how much has been dropped meanwhile, as far as there is room. */
static void log_settle(void)
{
	char line[256];
	int n;

	log_flush();
	if (logging.bytes || !logging.dropped)
		return;
	n = line_begin(line, sizeof(line), LOG_WARNING);
	snprintf(line + n, sizeof(line) - (size_t)n - 1,
		 "lines dropped here, since nobody read this log: %zu", logging.dropped);
	logging.dropped = 0;
	log_add(line, line_tidy(line));
}

/* Gives what waits a moment, and no more: the end of the process, or of its time on stderr. */
static void log_end(void)
{
	for (int tries = 10; (logging.bytes || logging.dropped) && tries > 0; tries--) {
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		log_settle();
	}
}

/* From here on the log is the system's. */
static void log_to_syslog(void)
{
	log_end();
	logging.dropped = log_lost();
	logging.bytes = 0;
	if (logging.own >= 0)
		close(logging.own);
	logging.own = -1;
	background = true;
}

/* Begins to log, for an image before which so many lines are lost. */
static void log_begin(bool in_background, size_t lost)
{
	if (in_background)
		log_to_syslog();
	else
		log_open();
	logging.dropped = lost;
	atexit(log_end);
}

/* Logs one line, with the text of error behind it unless that is 0. Keeps errno, returns false. */
__attribute__((format(printf, 3, 4))) static bool log_line(int level, int error, const char *format,
							   ...)
{
	int saved = errno;
	char line[4 * PATH_MAX];
	size_t n, length;
	va_list args;

	if (muted)
		return false;
	if (logging.dropped)
		log_settle();
	n = (size_t)line_begin(line, sizeof(line), level);
	va_start(args, format);
	vsnprintf(line + n, sizeof(line) - n - 1, format, args);
	va_end(args);
	length = strlen(line);
	if (error)
		snprintf(line + length, sizeof(line) - length - 1, ": %s", strerror(error));
	length = line_tidy(line);
	if (level == LOG_ERR)
		snprintf(log_reason, sizeof(log_reason), "%.*s", (int)(length - n - 1), line + n);
	log_add(line, length);
	errno = saved;
	return false;
}

/* Shows on a terminal how far something is, or does not where it takes nothing now. */
__attribute__((format(printf, 1, 2))) static void log_progress(const char *format, ...)
{
	char text[LOG_LINE];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (n > 0 && (size_t)n < sizeof(text) && !logging.bytes)
		log_write(text, (size_t)n);
}

/* Four verbs: what happened; what failed, with errno's text; what is wrong where errno has nothing
 * to add; a mistake in the command line, which ends the program. The middle two give their caller
 * false to return. */
#define say(...)      log_line(LOG_INFO, 0, __VA_ARGS__)
#define fail(...)     log_line(LOG_ERR, errno, __VA_ARGS__)
#define complain(...) log_line(LOG_ERR, 0, __VA_ARGS__)
#define VALUE         "'%.300s'" /* of the command line: the remedy behind it must not be cut off */
#define usage(format, ...)                                           \
	do {                                                         \
		complain(format " (see '%s --help')", ##__VA_ARGS__, \
			 program_invocation_short_name);             \
		exit(as_qemu() ? EXIT_FAILURE : 2);                  \
	} while (0)

/* What a function says in words, for a line of the log. */
struct text {
	char text[80];
};

/* A size, as -m takes it: in the largest unit of which it is a multiple. */
static struct text size_text(uint64_t bytes)
{
	const char *const units[] = {bytes == 1 ? " byte" : " bytes", "K", "M", "G", "T"};
	struct text out;
	int unit = 0;

	for (; bytes && bytes % 1024 == 0 && unit < 4; unit++)
		bytes /= 1024;
	snprintf(out.text, sizeof(out.text), "%" PRIu64 "%s", bytes, units[unit]);
	return out;
}

#define SIZE(bytes) (size_text(bytes).text)
#define S(number)   ((number) == 1 ? "" : "s") /* behind what is counted */

/*
 * Options
 */

/* Whether we were started by the name of QEMU's server. */
static bool as_qemu(void)
{
	return !strcmp(program_invocation_short_name, QEMU_NAME);
}

/* The letter to type for an option of ours: by QEMU's name, its own. */
static int typed(int letter)
{
	static const char ours[] = "Asmpi", qemu[] = "mMlSp";
	const char *at = as_qemu() ? strchr(ours, letter) : NULL;

	return at ? qemu[at - ours] : letter;
}

/* What to type before an option that QEMU's server lacks. */
static const char *own_name(void)
{
	return as_qemu() ? "tm_ivshmem_server " : "";
}

static const char help_text[] =
	"Usage: tm_ivshmem_server [OPTION]...\n"
	"Serve fabric-attached memory to QEMU nodes: one shared memory object, an ID and\n"
	"doorbells for every ivshmem device that connects.\n"
	"\n"
	"  -d, --daemonize      go to the background once everything is ready\n"
	"  -f, --file PATH      regular file as backing store: it persists\n"
	"  -s, --shm NAME       POSIX shared memory object instead (default " DEFAULT_SHM ")\n"
	"  -A, --anonymous[=DIR]  memory without a name, which goes with its last user and which\n"
	"                       nobody can cut; with DIR, an unnamed file there\n"
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
	"      --default-file PATH  the same as -f, but -f, -s, -A and -m 0 take its place\n"
	"      --check          look whether the command line is right, and exit\n"
	"  -V, --version        print the version and exit; behind options, --check them first\n"
	"  -h, --help           print this help and exit\n"
	"\n"
	"TERM, INT and QUIT end the server; the memory object stays. HUP restarts it in place,\n"
	"for upgrades under live nodes. USR1 logs a table of the nodes. USR2 ends it, and leaves\n"
	"the nodes to the successor that systemd starts.\n"
	"Run as " QEMU_NAME ", it takes the options of QEMU's program of that name.\n";

static const char qemu_help_text[] =
	"Usage: " QEMU_NAME " [OPTION]...\n"
	"Serve shared memory and doorbells to QEMU nodes with the options of QEMU's own\n"
	"server; those beyond them are for the name tm_ivshmem_server.\n"
	"\n"
	"  -F              stay in the foreground (default: go to the background once\n"
	"                  everything is ready)\n"
	"  -p FILE         write the process ID there when in the background\n"
	"                  (default " QEMU_PIDFILE ")\n"
	"  -S PATH         UNIX socket to listen on (default " DEFAULT_SOCKET ")\n"
	"  -M NAME         POSIX shared memory object (default " DEFAULT_SHM ")\n"
	"  -m DIR          an unnamed file in DIR instead; of -M and -m the last counts\n"
	"  -l SIZE[B|K|M|G|T|P|E]  size, a power of two: plain numbers are bytes, and 0.5G and\n"
	"                  0x100000 will do as well (default 4M); a smaller object is\n"
	"                  enlarged, a larger one served as it is\n"
	"  -n N            MSI-X vectors of each node, 0 to 2048 (default 1)\n"
	"  -v              log every message\n"
	"  -h, --help      print this help and exit\n"
	"\n"
	"TERM, INT and QUIT end the server; the named object stays. HUP restarts it in place,\n"
	"for upgrades under live nodes. USR1 logs a table of the nodes. USR2 ends it, and leaves\n"
	"the nodes to the successor that systemd starts.\n";

/* Options without a letter. */
enum { OPTION_CHECK = UCHAR_MAX + 1, OPTION_DEFAULT_FILE };

static const char short_options[] = ":df:s:A::m:tan:p:g:Li:y:vVh";
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
	{"sync", required_argument, NULL, 'y'},
	{"verbose", no_argument, NULL, 'v'},
	{"default-file", required_argument, NULL, OPTION_DEFAULT_FILE},
	{"check", no_argument, NULL, OPTION_CHECK},
	{"version", no_argument, NULL, 'V'},
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

static const char version_text[] = "tm_ivshmem_server " VERSION "\n";
static const char as_qemu_hint[] = "for QEMU's option letters run this as " QEMU_NAME;
static const char qemu_letters[] = ":hvFp:S:M:m:l:n:";
static const struct option qemu_words[] = {
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

/*
 * The name that people know an option of ours by, in all its forms; NULL: there is no such option.
 * By QEMU's name it is the letter that is typed there.
 */
static const char *option_name(int letter)
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
			usage("%s " VALUE ": this is the size; a folder goes with -A; %s",
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

/*
 * Finds the group of -g, a name or number, or the default. Without -g, or where nobody knows, only
 * our own user may connect. This may ask a network, but not for what /etc/group has.
 */
static bool group_find(const struct options *o, gid_t *gid)
{
	const char *name = o->group ? o->group : DEFAULT_GROUP;
	struct group *group;
	uint64_t number;
	int error, file;
	char *end;

	do {
		errno = 0;
		group = getgrnam(name);
		error = errno;
	} while (!group && error == EINTR);
	if (!group && (file = open("/etc/group", O_RDONLY | O_CLOEXEC)) >= 0)
		close(file);
	else if (!group && errno != ENOENT)
		error = errno; /* which another source of groups may have hidden */
	*gid = group ? group->gr_gid : NOBODY;
	if (group)
		return true;
	if (o->group && digits_parse(name, &number, &end) && !*end && number < NOBODY) {
		*gid = (gid_t)number;
		return true;
	}
	/* This is what getgrnam(3) may say of a group that does not exist. */
	if (error == 0 || error == ENOENT || error == ESRCH || error == EBADF || error == EPERM) {
		if (o->group)
			usage("%s " VALUE ": there is no such group", option_name('g'), name);
		return true;
	}
	errno = error;
	if (o->group)
		return fail("cannot look up the group %s: give its number with -g", name);
	fail("cannot look up the group %s, so only the server's own user may connect (%s-g says "
	     "who else)",
	     name, own_name());
	return true;
}

/*
 * Whether QEMU can map so many bytes (hazard 7). If not, *why gets the reason and the remedy; the
 * caller frees it.
 */
static bool size_fits(const struct options *o, uint64_t bytes, char **why)
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

/* Whether the server is to have no memory. */
static bool memoryless(const struct options *o)
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
		      ": give a size; only the original stream, %s-L, can do without memory",
		      option_name('m'), size, own_name());
	for (size_t i = 0; i < sizeof(pointless) / sizeof(pointless[0]); i++)
		if (pointless[i].given)
			usage("%s: there is no memory with %s %s", pointless[i].name, "-m/--size",
			      size);
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
	if (o->pidfile && !o->anonymous && !strcmp(o->pidfile, o->object))
		usage("%s " VALUE ": that is the backing store; give another path",
		      option_name('i'), o->pidfile);
	if (o->sync && o->shm)
		usage("%s '%u' needs %s: shared memory is never on disk", option_name('y'), o->sync,
		      "-f/--file");
}

/* What to do instead of giving our program an option that only QEMU's has; NULL: it has none. */
static const char *qemu_option_hint(int letter)
{
	switch (letter) {
	case 'F': return "in the foreground is the default";
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
		usage("unknown option " VALUE ": QEMU's server has letters only; for words run "
		      "tm_ivshmem_server",
		      word);
	if (!optopt)
		usage("unknown or ambiguous option " VALUE, word);
	if (as_qemu() ? optopt == 'h' : !!ours)
		usage(VALUE ": %s takes no value", word, ours);
	if (as_qemu() && ours)
		usage("unknown option '-%c': QEMU's server has none such; for ours run "
		      "tm_ivshmem_server",
		      optopt);
	if (!as_qemu() && hint)
		usage("unknown option '-%c': %s; %s", optopt, hint, as_qemu_hint);
	usage("unknown option '-%c'", optopt);
}

/* The backing store has no name: its file is in the folder in optarg or, without one, nowhere. */
static void anonymous_parse(struct options *o, char **arg)
{
	if (optarg && *optarg == '=' && !as_qemu())
		usage("-A " VALUE ": the folder follows at once, as in -A/tmp", optarg);
	o->folder = optarg ? path_parse('A', arg) : NULL;
	o->shm = o->anonymous = true;
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
		case 'y': o->sync = number_parse('y', 1, SYNC_MAX); break;
		case 'v': o->verbose = true; break;
		case OPTION_DEFAULT_FILE:
			default_file = path_parse(letter, &argv[optind - 1]);
			break;
		case OPTION_CHECK: o->check = true; break;
		case 'V':
			if (optind < argc)
				print_and_exit(version_text);
			o->version = true;
			break;
		case 'h': print_and_exit(help_text);
		default: option_mistake(letter, argv[optind - 1]);
		}
	}
	if (optind < argc && o->anonymous && !o->folder)
		usage("unexpected argument " VALUE
		      ": -A/--anonymous takes a folder without a space, as in -A/tmp",
		      argv[optind]);
	if (shm)
		o->object = shm_parse(shm);
	if (default_file && !file && !shm && !o->anonymous && !memoryless(o)) {
		o->object = default_file;
		o->shm = false;
	}
	options_check(o, file, shm, size);
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
			o->anonymous = false;
			break;
		case 'm': anonymous_parse(o, &argv[optind - 1]); break;
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

/*
 * Fills in the options; a mistake ends the program. Relative paths in argv become absolute, so that
 * a restart in place finds the same files.
 */
static void options_parse(struct options *o, int argc, char **argv)
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
}

/* Whether two texts are the same, or neither is there. */
static bool text_same(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

/* Whether a server would do the same by these options. */
static bool options_same(const struct options *a, const struct options *b)
{
	return text_same(a->object, b->object) && text_same(a->socket, b->socket) &&
	       text_same(a->pidfile, b->pidfile) && text_same(a->group, b->group) &&
	       a->shm == b->shm && a->anonymous == b->anonymous && a->daemonize == b->daemonize &&
	       a->truncate == b->truncate && a->allocate == b->allocate && a->legacy == b->legacy &&
	       a->verbose == b->verbose && a->sized == b->sized && a->size == b->size &&
	       a->vectors == b->vectors && a->sync == b->sync;
}

/* The command line of a process, ended by NULL, and how many words it has; 0: it cannot be read. */
static int words_read(uint64_t process, char **words, int room)
{
	char path[64];
	FILE *f;
	size_t size;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%" PRIu64 "/cmdline", process);
	f = fopen(path, "re");
	if (!f)
		return 0;
	for (; n < room - 1; n++) {
		words[n] = NULL;
		size = 0;
		if (getdelim(&words[n], &size, '\0', f) < 0)
			break;
	}
	free(words[n]);
	words[n] = NULL;
	fclose(f);
	return n;
}

/*
 * Says it if the server that is running was started with other options than these: a restart in
 * place keeps those. A supervisor tells us its process. A mistake ends a process: so a child reads
 * them.
 */
static void options_compare(const struct options *o)
{
	const char *server = getenv("MAINPID");
	static char *words[1024];
	struct options theirs;
	uint64_t process;
	int n, status;
	pid_t child;
	char *end;

	if (!server || !digits_parse(server, &process, &end) || *end)
		return;
	n = words_read(process, words, sizeof(words) / sizeof(words[0]));
	child = n > 0 ? fork() : -1;
	if (child == 0) {
		muted = true;
		optind = 0;
		options_parse(&theirs, n, words);
		_exit(options_same(o, &theirs) ? EXIT_SUCCESS : EXIT_FAILURE);
	}
	if (child > 0 && TEMP_FAILURE_RETRY(waitpid(child, &status, 0)) == child && status != 0)
		say("process %" PRIu64 " was started with other options, which a reload keeps: "
		    "these hold after systemctl restart",
		    process);
}

/* Ends the program as --check or --version is to: what of a start can be said without one is. */
__attribute__((noreturn)) static void options_answer(const struct options *o)
{
	gid_t group;

	if (o->group && !group_find(o, &group))
		exit(EXIT_FAILURE);
	if (o->version)
		print_and_exit(version_text);
	options_compare(o);
	exit(EXIT_SUCCESS);
}

/*
 * Limits
 */

/*
 * Opens the spare descriptor, after making sure that 0 to 2 exist and none of ours is taken for
 * them. Returns it or, after having said why, -1.
 */
static int spare_open(void)
{
	int fd;

	while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd <= STDERR_FILENO)
		fcntl(fd, F_SETFD, 0);
	if (fd < 0)
		fail("cannot open /dev/null");
	return fd;
}

/*
 * Sees to it that a descriptor has a number from this one on, as far as the limit of descriptors
 * allows that. Returns the number.
 */
static int descriptor_raise(int fd, int from)
{
	int high = fd < 0 || fd >= from ? fd : fcntl(fd, F_DUPFD_CLOEXEC, from);

	if (high < 0 || high == fd)
		return fd;
	close(fd);
	return high;
}

/* Sees to it that a descriptor has the lowest number that is free. Returns that. */
static int descriptor_lower(int fd)
{
	int low = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	if (low < 0)
		return fd;
	close(fd);
	return low;
}

static void spare_close(struct server *s)
{
	if (s->spare >= 0)
		close(s->spare);
	s->spare = -1;
}

/*
 * Raises the number of descriptors that we may have open, and in flight: as far as the kernel
 * allows if we are privileged, else to the hard limit. Without luck the limit stays as it is.
 */
static void descriptor_limit_raise(void)
{
	struct rlimit limit, most;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
		fail("cannot read the limit of open descriptors");
		return;
	}
	/* Where the kernel's own limit is, only trying shows: fs.nr_open need not be readable. */
	for (rlim_t n = 1 << 30; n > limit.rlim_max; n /= 2) {
		most = (struct rlimit){n, n};
		if (setrlimit(RLIMIT_NOFILE, &most) == 0)
			return;
	}
	most = (struct rlimit){limit.rlim_max, limit.rlim_max};
	if (limit.rlim_cur < limit.rlim_max && setrlimit(RLIMIT_NOFILE, &most) < 0)
		fail("cannot raise the limit of open descriptors to %ju",
		     (uintmax_t)limit.rlim_max);
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

/*
 * Removes what stands at a path if it is this very file; if not, errno is ENOENT, or says why
 * nobody knows. It looks and removes in one folder, wherever the path may lead in between; where no
 * descriptor is left for that, by the path.
 */
static bool path_remove(const char *path, uint64_t dev, uint64_t ino)
{
	const char *name = strrchr(path, '/') + 1;
	char *copy = strndup(path, (size_t)(name - path));
	int folder = copy ? open(copy, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	int at = folder < 0 ? AT_FDCWD : folder, error;
	struct stat st;

	if (folder < 0)
		name = path;
	errno = 0;
	if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
		if (st.st_dev != dev || st.st_ino != ino)
			errno = ENOENT;
		else if (unlinkat(at, name, 0) == 0)
			errno = 0;
	}
	error = errno;
	free(copy);
	if (folder >= 0)
		close(folder);
	errno = error;
	return error == 0;
}

/* Removes the path of a file of ours, if that still stands there. */
static void file_remove(int fd, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || (!path_remove(path, st.st_dev, st.st_ino) && errno != ENOENT))
		fail("cannot remove %s", path);
}

/* The path by which the file that a descriptor holds is reached, and no other, whatever has become
 * of its own path. */
static struct text descriptor_path(int fd)
{
	struct text path;

	snprintf(path.text, sizeof(path.text), "/proc/self/fd/%d", fd);
	return path;
}

/* Says what cannot be done with a path and, where that is for want of permission, what helps. */
static bool path_fail(const char *what, const char *path)
{
	int error = errno;
	struct stat st;
	bool there = lstat(path, &st) == 0;

	errno = error;
	if (error != EACCES && error != EPERM)
		return fail("%s %s", what, path);
	if (there)
		return fail("%s %s, which belongs to uid %u: start the server as that user, or "
			    "choose another path",
			    what, path, st.st_uid);
	return fail("%s %s: choose a folder that uid %u may use", what, path, geteuid());
}

/*
 * Opens a regular file, or creates it with the mode, and locks it until *fd is closed. If somebody
 * else has the lock, it calls taken to say so.
 */
static bool file_claim(struct server *s, const char *path, int flags, mode_t mode, int32_t *fd,
		       bool *created, void (*taken)(struct server *s, const char *path, int fd))
{
	struct stat st;

	/* To open a device or a FIFO may do something: look first. */
	if (fstatat(AT_FDCWD, path, &st, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) == 0 &&
	    !S_ISREG(st.st_mode))
		return complain("cannot use %s: it is not a regular file; choose another path",
				path);
	flags |= O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	*fd = open(path, flags);
	if (*fd < 0 && errno == ENOENT) {
		*fd = open(path, flags | O_CREAT | O_EXCL, mode);
		*created = *fd >= 0;
		if (*fd < 0 && errno == EEXIST) /* somebody was quicker, or a link leads nowhere */
			*fd = open(path, flags);
		if (*fd < 0 && errno == ENOENT && lstat(path, &st) == 0)
			return complain("cannot use %s: it is a link to a file that does not "
					"exist; create that, or remove the link",
					path);
	}
	if (*fd < 0)
		return path_fail("cannot open", path);
	if (flock(*fd, LOCK_EX | LOCK_NB) == 0 && file_stands_at(*fd, path)) {
		/* This kind of lock is that of QEMU's server, and tells others who has the file. */
		if (fcntl(*fd, F_SETLK, &(struct flock){.l_type = F_WRLCK}) == 0 ||
		    (errno != EAGAIN && errno != EACCES))
			return true;
		errno = EWOULDBLOCK;
	}
	if (errno == EWOULDBLOCK) {
		taken(s, path, *fd); /* even if we created it, it is theirs now */
	} else if (errno == ENOENT) {
		complain("%s was replaced while it was being opened: try again", path);
	} else {
		fail("cannot lock %s", path);
		if (*created)
			file_remove(*fd, path);
	}
	*created = false;
	return false;
}

/* Whether an errno of chown says that this user, or this file system, cannot do it at all. */
static bool group_unassignable(int error)
{
	return error == EPERM || error == EACCES || error == EINVAL /* unknown to a container */ ||
	       error == ENOSYS || error == EOPNOTSUPP;
}

/* Leaves the group out where what we have made cannot be reached but by its path, at which somebody
 * may have put something else. Returns whether that will do. */
static bool group_leave_out(const struct server *s, const char *path)
{
	complain("%s is for uid %u alone: without /proc no group can be let in safely; mount that",
		 path, geteuid());
	return !s->opt.group;
}

/*
 * Lets the group in: to the file that a descriptor holds, wherever its path leads by now. Until
 * then only the server's own user can open it. The default group is left out where we may not
 * assign it.
 */
static bool group_admit(const struct server *s, int fd, const char *path)
{
	struct text held = descriptor_path(fd);
	gid_t group = s->ledger->group;

	if (group == NOBODY)
		return true;
	/* What a default ACL of the folder says of others would come true with the mode. */
	if (removexattr(held.text, "system.posix_acl_access") < 0 && errno != ENODATA &&
	    errno != EOPNOTSUPP)
		return errno == ENOENT
			       ? group_leave_out(s, path)
			       : fail("cannot keep an ACL of the folder away from %s", path);
	if (chown(held.text, -1, group) < 0)
		return (!s->opt.group && group_unassignable(errno)) ||
		       fail("cannot give %s to group %u, of which the server must be a member",
			    path, group);
	if (chmod(held.text, 0660) < 0)
		return fail("cannot give %s mode 0660", path);
	return true;
}

/*
 * The process that has locked a file with flock, from the kernel's table; 0 where that does not
 * say it.
 */
static int flock_holder(int fd)
{
	FILE *table = fopen("/proc/locks", "re");
	unsigned int major, minor;
	unsigned long inode;
	struct stat st;
	char line[128];
	int pid, found = 0;

	while (table && fstat(fd, &st) == 0 && !found && fgets(line, sizeof(line), table))
		if (sscanf(line, "%*d: FLOCK %*s %*s %d %x:%x:%lu", &pid, &major, &minor, &inode) ==
			    4 &&
		    major == major(st.st_dev) && minor == minor(st.st_dev) && inode == st.st_ino)
			found = pid;
	if (table)
		fclose(table);
	return found > 0 ? found : 0;
}

/* What a process is called; empty where nobody knows. */
static struct text process_name(int pid)
{
	struct text path, name = {""};
	ssize_t n = -1;
	int fd;

	snprintf(path.text, sizeof(path.text), "/proc/%d/comm", pid);
	fd = open(path.text, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, name.text, 32);
		close(fd);
	}
	name.text[n > 0 ? n - 1 : 0] = '\0'; /* without the newline */
	return name;
}

/*
 * By whom a file is locked, where it is not by us: "served by another server, process N", with the
 * word that is given; "locked by another program, process N (name)"; or less, as far as we may know
 * it. Servers take both kinds of lock, one after the other.
 */
static struct text file_holder(int fd, const char *held)
{
	struct flock lock = {.l_type = F_WRLCK};
	bool posix = fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
	int pid = posix && lock.l_pid > 0 ? lock.l_pid : flock_holder(fd);
	struct text name = process_name(pid), who;
	bool server = !*name.text ? posix
				  : !strncmp(name.text, "tm_ivshmem_server", 15) ||
					    !strcmp(name.text, QEMU_NAME) ||
					    !strcmp(name.text, process_name(getpid()).text);
	int n = snprintf(who.text, sizeof(who.text), "%s by another %s", server ? held : "locked",
			 server ? "server" : "program");

	if (!posix && !*name.text) /* a server that runs has the other kind, too */
		snprintf(who.text, sizeof(who.text), "%s",
			 "locked for a server that has ended, or by an unknown program");
	else if (server && pid > 0)
		snprintf(who.text + n, sizeof(who.text) - (size_t)n, ", process %d", pid);
	else if (*name.text)
		snprintf(who.text + n, sizeof(who.text) - (size_t)n, ", process %d (%.20s)", pid,
			 name.text);
	return who;
}

static void pidfile_taken(struct server *s, const char *path, int fd)
{
	(void)s;
	complain("pidfile %s is %s: stop that one, or choose another path with -%c", path,
		 file_holder(fd, "held").text, typed('i'));
}

/* Opens and locks the pidfile; a file that holds anything but a number is left alone. */
static bool pidfile_claim(struct server *s)
{
	const char *path = s->opt.pidfile;
	char *text = s->pidfile_found;
	ssize_t n, digits;

	if (!path)
		return true;
	if (!file_claim(s, path, O_NOFOLLOW, 0644, &s->ledger->pidfile, &s->pidfile_created,
			pidfile_taken))
		return false;
	n = pread(s->ledger->pidfile, text, sizeof(s->pidfile_found) - 1, 0);
	if (n < 0)
		return fail("cannot read %s", path);
	/* More than one end of line is what a server left that died while it wrote (pidfile_put).
	 */
	digits = (ssize_t)strspn(text, "0123456789");
	if (n > 0 &&
	    (digits == 0 || digits == n || digits + (ssize_t)strspn(text + digits, "\n") != n ||
	     n == sizeof(s->pidfile_found) - 1))
		return complain("%s exists and is not a pidfile: choose another path with -%c",
				path, typed('i'));
	return true;
}

/*
 * Puts a line, or nothing, into the pidfile, over another: in one write, and cut only behind it.
 * So what stood there stays where there is no room, and at no moment half of it follows ours.
 */
static bool pidfile_put(const struct server *s, const char *line, const char *over)
{
	char text[sizeof(s->pidfile_found)];
	size_t n = strlen(line), all = strlen(over) > n ? strlen(over) : n;

	memset(text, '\n', all);
	for (size_t i = 0; i < n; i++)
		text[i] = line[i];
	return (n == 0 || pwrite(s->ledger->pidfile, text, all, 0) == (ssize_t)all) &&
	       (all == n || ftruncate(s->ledger->pidfile, (off_t)n) == 0);
}

/* Our process ID, as it stands in the pidfile. */
static struct text pidfile_line(void)
{
	struct text line;

	snprintf(line.text, sizeof(line.text), "%d\n", (int)getpid());
	return line;
}

static bool pidfile_write(struct server *s)
{
	if (s->ledger->pidfile < 0)
		return true;
	s->pidfile_written = true;
	return pidfile_put(s, pidfile_line().text, s->pidfile_found) ||
	       fail("cannot write pidfile %s", s->opt.pidfile);
}

/* Removes the pidfile; one that a start that fails has found is left as it was. */
static void pidfile_remove(const struct server *s, bool keep)
{
	int fd = s->ledger->pidfile;

	if (fd < 0)
		return;
	if (keep || s->pidfile_created)
		file_remove(fd, s->opt.pidfile);
	else if (s->pidfile_written && !pidfile_put(s, s->pidfile_found, pidfile_line().text))
		fail("cannot give pidfile %s back what stood in it", s->opt.pidfile);
}

/* Goes on without a pidfile that failed, if nobody has asked for it. */
static bool pidfile_forgo(struct server *s)
{
	if (!s->opt.pidfile_optional)
		return false;
	say("going on without a pidfile: -%c names another", typed('i'));
	pidfile_remove(s, false);
	if (s->ledger->pidfile >= 0)
		close(s->ledger->pidfile);
	s->ledger->pidfile = -1;
	return true;
}

/*
 * Backing store
 */

/* Whether this descriptor is the object that we serve; if not, errno is ENOENT, or says why nobody
 * knows. */
static bool store_is(const struct ledger *l, int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return false;
	errno = ENOENT;
	return st.st_dev == l->object_dev && st.st_ino == l->object_ino;
}

/* What the object and its file system are like. */
struct examination {
	struct stat st;
	struct statfs fs;
};

static void store_taken(struct server *s, const char *path, int fd)
{
	if (file_stands_at(s->ledger->pidfile, path))
		complain("%s is the pidfile, too: choose another path with -%c", path, typed('i'));
	else
		complain("%s is %s: stop that one, or choose another object with %s", path,
			 file_holder(fd, "served").text, as_qemu() ? "-M or -m" : "-f or -s");
}

/*
 * Opens the object three times: first for the lock, which dies with the server though nodes keep
 * the memory open, then for the nodes, and a file for flushing. Examines it for all who ask later.
 */
static bool store_claim(struct server *s, struct examination *e)
{
	struct ledger *l = s->ledger;
	const char *name = s->opt.object;
	int flags = (s->opt.shm ? O_NOFOLLOW : 0) | O_RDWR | O_CLOEXEC | O_NOCTTY;

	if (!file_claim(s, name, flags, 0600, &l->lock, &s->object_created, store_taken))
		return false;
	l->store = open(name, flags);
	if (l->store < 0 || (!s->opt.shm && (l->disk = open(name, flags)) < 0))
		return fail("cannot open %s", name);
	if (fstat(l->lock, &e->st) < 0)
		return fail("cannot examine %s", name);
	if (fstatfs(l->lock, &e->fs) < 0)
		return fail("cannot examine the file system of %s", name);
	l->object_dev = e->st.st_dev;
	l->object_ino = e->st.st_ino;
	s->object_found = l->size = (uint64_t)e->st.st_size;
	if (store_is(l, l->store) && (l->disk < 0 || store_is(l, l->disk)))
		return true;
	if (errno == ENOENT)
		return complain("%s was replaced while it was being opened: try again", name);
	return fail("cannot examine %s", name);
}

/*
 * Opens a new file without a name: one that has lost its name, where the file system makes no
 * other. Returns it, or -1 with errno.
 */
static int unnamed_open(const char *folder)
{
	int fd = open(folder, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
	struct stat st;
	char *path;

	if (fd >= 0 || errno != EOPNOTSUPP || asprintf(&path, "%s/ivshmem.XXXXXX", folder) < 0)
		return fd;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &st) < 0 || !path_remove(path, st.st_dev, st.st_ino))) {
		close(fd);
		fd = -1;
	}
	free(path);
	return fd;
}

/* Makes memory without a name. There is no lock, since nobody else can open it. */
static bool store_make(struct server *s, struct examination *e)
{
	struct ledger *l = s->ledger;
	const char *name = s->opt.object;

	l->store = s->opt.folder ? unnamed_open(s->opt.folder)
				 : memfd_create("ivshmem", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (l->store < 0)
		return fail("cannot create %s%s", name,
			    as_qemu() ? ", for which -m names a folder (an object's name goes with "
					"-M)"
				      : "");
	if (fstat(l->store, &e->st) < 0 || fstatfs(l->store, &e->fs) < 0)
		return fail("cannot examine %s", name);
	l->object_dev = e->st.st_dev;
	l->object_ino = e->st.st_ino;
	return true;
}

/* Sees to it that no node can cut the memory under the others; a file's cannot be kept from that.
 */
static bool store_seal(const struct server *s)
{
	if (!s->opt.anonymous || s->opt.folder ||
	    fcntl(s->ledger->store, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		return true;
	return fail("cannot seal %s", s->opt.object);
}

/* Warns of an object that others can cut, which kills all nodes that touch what is gone. */
static void store_warn_foreign(const struct server *s, const struct examination *e)
{
	const struct stat *st = &e->st;
	bool foreign = st->st_uid != geteuid() && st->st_uid != 0;
	bool open = st->st_mode & S_IWOTH ||
		    (st->st_mode & S_IWGRP && st->st_gid != s->ledger->group && st->st_gid != 0);

	if (!s->object_created && !s->opt.anonymous && (foreign || open))
		say("warning: %s belongs to uid %u, gid %u and has mode %04o: others can cut it, "
		    "which kills the nodes; chown %u and chmod 0600 make it the server's own",
		    s->opt.object, st->st_uid, st->st_gid, st->st_mode & 07777, geteuid());
}

/*
 * Whether nobody has ever written to the object, as far as its file system can tell: one that knows
 * no holes takes all for data.
 */
static bool store_is_blank(const struct server *s)
{
	return lseek(s->ledger->lock, 0, SEEK_DATA) < 0 && errno == ENXIO;
}

/* Decides which size is served: that of the object, or the one that it is to get. */
static bool store_size_choose(struct server *s)
{
	const struct options *o = &s->opt;
	const char *name = o->object;
	uint64_t found = s->object_found, wanted = found;
	bool grows = o->sized && !o->truncate && found && o->size > found;
	char *why;

	if (found == 0) {
		wanted = o->sized ? o->size : DEFAULT_SIZE;
	} else if (o->truncate || (grows && (o->grow || store_is_blank(s)))) {
		wanted = o->size;
	} else if (grows) {
		return complain("%s has %s, less than -m %s: leave out -m to serve it as it is, or "
				"add -t to enlarge it",
				name, SIZE(found), SIZE(o->size));
	}
	if (size_fits(o, wanted, &why)) {
		s->ledger->size = wanted;
		if (o->sized && wanted > o->size)
			say("%s has %s, more than -%c %s: all of it is served", name, SIZE(found),
			    typed('m'), SIZE(o->size));
		if (grows)
			say("%s has %s, less than -%c %s%s: it is enlarged", name, SIZE(found),
			    typed('m'), SIZE(wanted), o->grow ? "" : ", and nothing in it");
		return true;
	}
	complain("cannot serve %s, which has %s: %s (%s-t with -m resizes it)", name, SIZE(found),
		 why, own_name());
	free(why);
	return false;
}

/* Whether the file system can hold the size. */
static bool store_size_check(const struct server *s, const struct examination *e)
{
	const char *name = s->opt.object;
	uint64_t size = s->ledger->size, block = (uint64_t)e->fs.f_bsize;
	uint64_t most = (uint64_t)e->fs.f_blocks * block;

	if (e->fs.f_type == HUGETLBFS_MAGIC && size % block)
		return complain("cannot serve %s with %s: its file system holds whole huge pages; "
				"give a multiple of %s with -%c",
				name, SIZE(size), SIZE(block), typed('m'));
	if (e->fs.f_type == TMPFS_MAGIC && most && size > most)
		return complain("cannot serve %s with %s: its tmpfs holds %s; enlarge that with "
				"mount -o remount,size=, or give less with -%c",
				name, SIZE(size), SIZE(most), typed('m'));
	return true;
}

/* Whether the user wants the start to end. */
static bool signals_pending(void)
{
	sigset_t set;

	return sigpending(&set) == 0 && (sigismember(&set, SIGTERM) || sigismember(&set, SIGINT) ||
					 sigismember(&set, SIGQUIT) || sigismember(&set, SIGUSR2));
}

/* The number behind a word at the start of a line, in a file such as /proc/meminfo; UINT64_MAX:
 * there is none. */
static uint64_t file_number(const char *folder, const char *name, const char *word)
{
	uint64_t number = UINT64_MAX;
	char path[PATH_MAX], line[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	f = fopen(path, "re");
	while (f && number == UINT64_MAX && fgets(line, sizeof(line), f))
		if (!strncmp(line, word, strlen(word)))
			digits_parse(line + strlen(word) + strspn(line + strlen(word), " "),
				     &number, &(char *){NULL});
	if (f)
		fclose(f);
	return number;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* What is left up to the limit that a cgroup has in a file; UINT64_MAX: it has none. */
static uint64_t limit_left(const char *cgroup, const char *limit, const char *usage)
{
	uint64_t most = file_number(cgroup, limit, ""), used = file_number(cgroup, usage, "");

	if (most == UINT64_MAX || used == UINT64_MAX)
		return UINT64_MAX;
	return most > used ? most - used : 0;
}

/*
 * Bytes that a cgroup of version 1 or 2 lets us have: what is free in it, or cached, or can be
 * swapped. UINT64_MAX: it has no limit.
 */
static uint64_t cgroup_left(const char *cgroup, uint64_t swap)
{
	uint64_t left = least(limit_left(cgroup, "memory.max", "memory.current"),
			      limit_left(cgroup, "memory.high", "memory.current"));
	uint64_t both =
		limit_left(cgroup, "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes");
	uint64_t cached = 0, bytes;

	left = least(left, limit_left(cgroup, "memory.limit_in_bytes", "memory.usage_in_bytes"));
	if (left == UINT64_MAX)
		return left;
	for (int i = 0; i < 2; i++) {
		static const char *const words[][2] = {{"total_inactive_file ", "inactive_file "},
						       {"total_active_file ", "active_file "}};

		bytes = file_number(cgroup, "memory.stat", words[i][0]);
		if (bytes == UINT64_MAX)
			bytes = file_number(cgroup, "memory.stat", words[i][1]);
		cached += bytes == UINT64_MAX ? 0 : bytes;
	}
	swap = least(swap, limit_left(cgroup, "memory.swap.max", "memory.swap.current"));
	return least(left + swap, both) + cached;
}

/*
 * Bytes of memory that we can still get before the kernel kills processes for more, of the machine
 * and in each cgroup in which we are. *of gets what it is that has no more: "this machine", or the
 * folder of a cgroup.
 */
static uint64_t memory_left(char of[PATH_MAX])
{
	uint64_t left = file_number("/proc", "meminfo", "MemAvailable:"), swap, here;
	char line[PATH_MAX - 64], folder[PATH_MAX], *controllers, *path, *end;
	FILE *cgroups = fopen("/proc/self/cgroup", "re");
	size_t root;

	swap = file_number("/proc", "meminfo", "SwapFree:");
	swap = swap == UINT64_MAX ? 0 : swap * 1024;
	left = left == UINT64_MAX ? left : left * 1024 + swap;
	strcpy(of, "this machine");
	while (cgroups && fgets(line, sizeof(line), cgroups)) {
		path = line;
		strsep(&path, ":");
		controllers = strsep(&path, ":\n");
		if (!path || (*controllers && strcmp(controllers, "memory") != 0))
			continue;
		root = (size_t)snprintf(folder, sizeof(folder), "/sys/fs/cgroup%s%s",
					*controllers ? "/" : "", controllers);
		snprintf(folder + root, sizeof(folder) - root, "%s", strsep(&path, "\n"));
		/* From ours up to the root, which in a container is the container's. */
		do {
			here = cgroup_left(folder, swap);
			if (here < left)
				strcpy(of, folder);
			left = least(left, here);
			end = strrchr(folder + root, '/');
			if (end)
				*end = '\0';
		} while (end);
	}
	if (cgroups)
		fclose(cgroups);
	return left;
}

/*
 * Whether there is as much memory as the object lacks, where that is memory: what has been asked
 * for beyond that, the kernel takes from whom it likes, such as a virtual machine.
 */
static bool store_memory_check(const struct server *s, const struct examination *e)
{
	uint64_t size = s->ledger->size, there = (uint64_t)e->st.st_blocks * 512, left;
	char of[PATH_MAX];

	if (e->fs.f_type != TMPFS_MAGIC && e->fs.f_type != RAMFS_MAGIC)
		return true;
	left = memory_left(of);
	return there >= size || size - there <= left ||
	       complain("cannot reserve %s for %s: %s has only %s of memory left, and for more the "
			"kernel would kill a process; give less with -%c, or %s",
			SIZE(size - there), s->opt.object, of, SIZE(left >> 20 << 20), typed('m'),
			*of == '/' ? "raise the limit of that cgroup" : "add memory");
}

/* Reserves every block, in steps, so that it can be seen and ended. */
static bool store_allocate(const struct server *s, const struct examination *e)
{
	static const char failed[] =
		"cannot reserve %s for %s (without -a, blocks are taken as they are written)";
	const uint64_t size = s->ledger->size, step = UINT64_C(64) << 20;
	bool tell = isatty(STDERR_FILENO);
	uint64_t left = geteuid() == 0 ? e->fs.f_bfree : e->fs.f_bavail; /* some are root's alone */

	/* A file system without a limit, such as a hugetlbfs, says that it has 0 blocks. */
	if (e->fs.f_blocks &&
	    size > left * (uint64_t)e->fs.f_bsize + (uint64_t)e->st.st_blocks * 512) {
		errno = ENOSPC; /* seen before the disk is full */
		return fail(failed, SIZE(size), s->opt.object);
	}
	for (uint64_t at = 0; at < size; at += step) {
		off_t length = (off_t)(size - at < step ? size - at : step);
		int error = signals_pending() ? EINTR : 0;

		while (!error && fallocate(s->ledger->store, 0, (off_t)at, length) < 0)
			if (errno != EINTR || signals_pending())
				error = errno; /* else it was only stopped for a while */
		if (tell)
			log_progress("\r%s: reserving %.1000s: %3d %%%s",
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
static void store_warn_sparse(const struct server *s, const struct examination *e)
{
	uint64_t left = (uint64_t)e->fs.f_bavail * (uint64_t)e->fs.f_bsize;
	uint64_t size = s->ledger->size, blocks = (uint64_t)e->st.st_blocks * 512;

	if (e->fs.f_blocks && e->fs.f_type != HUGETLBFS_MAGIC && blocks < size &&
	    size - blocks > left)
		say("warning: %s lacks %s of its blocks and only %s are free: a node that writes "
		    "when they are used up is killed; %s-a reserves them now",
		    s->opt.object, SIZE(size - blocks), SIZE(left >> 20 << 20), own_name());
}

/*
 * Maps as QEMU will, to learn now whether the file system can: all, where that takes huge pages,
 * which then stay the file's.
 */
static bool store_map_try(const struct server *s)
{
	size_t bytes = (size_t)getpagesize();
	struct statfs fs;
	void *memory;

	if (s->ledger->store < 0)
		return true;
	if (fstatfs(s->ledger->store, &fs) < 0)
		return fail("cannot examine the file system of %s", s->opt.object);
	if (fs.f_type == HUGETLBFS_MAGIC)
		bytes = s->ledger->size;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->ledger->store, 0);
	if (memory == MAP_FAILED)
		return fail("cannot map %s of %s: choose a file system that can share memory, with "
			    "enough of it",
			    SIZE(bytes), s->opt.object);
	munmap(memory, bytes);
	return true;
}

/* Opens or creates the object and sizes it; store_leave undoes what a failed start has done. */
static bool store_open(struct server *s)
{
	const struct ledger *l = s->ledger;
	struct examination e = {0};

	if (memoryless(&s->opt))
		return true;
	if (!(s->opt.anonymous ? store_make : store_claim)(s, &e) || !store_size_choose(s) ||
	    !store_size_check(s, &e))
		return false;
	if (l->size > s->object_found && ftruncate(l->store, (off_t)l->size) < 0)
		return fail("cannot give %s a size of %s", s->opt.object, SIZE(l->size));
	if (s->opt.allocate && !(store_memory_check(s, &e) && store_allocate(s, &e)))
		return false;
	if (!s->opt.allocate)
		store_warn_sparse(s, &e);
	store_warn_foreign(s, &e);
	return store_seal(s) && (!s->object_created || group_admit(s, l->store, s->opt.object));
}

/*
 * Takes the steps of a start that cannot be undone, once nothing else can fail: takes huge pages,
 * and shrinks the object.
 */
static bool store_settle(struct server *s)
{
	uint64_t size = s->ledger->size;

	if (!store_map_try(s))
		return false;
	if (size >= s->object_found)
		return true;
	if (ftruncate(s->ledger->store, (off_t)size) < 0)
		return fail("cannot shrink %s to %s", s->opt.object, SIZE(size));
	say("%s shrank from %s to %s", s->opt.object, SIZE(s->object_found), SIZE(size));
	return true;
}

/* Leaves the object behind, as it was found if it is not to be kept. */
static void store_leave(const struct server *s, bool keep)
{
	const struct ledger *l = s->ledger;
	const char *name = s->opt.object;

	if (!keep && s->object_created)
		file_remove(l->lock, name);
	else if (!keep && l->lock >= 0 && l->size > s->object_found &&
		 ftruncate(l->lock, (off_t)s->object_found) < 0)
		fail("cannot give %s its size back", name);
	if (l->lock < 0)
		return;
	/* Before the pidfile goes, after which somebody may start anew: who has the descriptor as
	 * well, such as a supervisor, has the lock otherwise. */
	if (flock(l->lock, LOCK_UN) < 0)
		fail("cannot unlock %s", name);
	close(l->lock);
}

/* Whether the object has the size still that it had when it was opened, and says it if not. */
static bool store_has_size(const struct server *s)
{
	const struct ledger *l = s->ledger;
	struct statx st;

	if (l->store < 0)
		return true;
	/* As the kernel knows it: a file server that does not answer is not waited for. */
	if (statx(l->store, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &st) < 0)
		return fail("cannot examine %s", s->opt.object);
	return st.stx_size == l->size ||
	       complain("%s was %s and has been resized to %s, on which QEMU would crash: give it "
			"back its size with truncate -s %ju, or end the nodes and start the server "
			"anew",
			s->opt.object, SIZE(l->size), SIZE(st.stx_size), (uintmax_t)l->size);
}

/*
 * The ledger
 *
 * Death can come between any two machine instructions, and the next image must make sense of what
 * it finds. So each change of the ledger has one store that makes it true, and ledger_order()
 * stands between that store and those before and after it: a join is true once the peer has its
 * serial number; a leave once it counts among the departures, whether or not the peer's place has
 * been given free; a send that is marked may have happened or not.
 */

/* Keeps the compiler from moving stores past this point. (A process sees its own in order.) */
#ifndef ledger_order
#define ledger_order() atomic_signal_fence(memory_order_seq_cst)
#endif

/* Bytes from one peer to the next: whole cache lines. */
static uint32_t peer_length(unsigned int vectors)
{
	size_t bytes = sizeof(struct peer) + vectors * sizeof(int32_t);

	return (uint32_t)((bytes + 63) / 64 * 64);
}

static size_t ledger_length(unsigned int vectors)
{
	return LEDGER_HEAD + FD_SETSIZE * (size_t)peer_length(vectors);
}

static bool ledger_map(struct server *s, size_t length, int protection)
{
	s->ledger = mmap(NULL, length, protection, MAP_SHARED, s->ledger_fd, 0);
	return s->ledger != MAP_FAILED;
}

/* A number that another text hardly has (FNV-1a). */
static uint64_t text_hash(const char *text)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (; *text; text++)
		hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
	return hash;
}

/* Makes the ledger of a server that starts. Nobody can cut it, whoever gets hold of it. */
static bool ledger_create(struct server *s)
{
	size_t length = ledger_length(s->opt.vectors);

	s->ledger_fd = memfd_create("tm_ivshmem_server", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (s->ledger_fd < 0 || ftruncate(s->ledger_fd, (off_t)length) < 0 ||
	    fcntl(s->ledger_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ||
	    !ledger_map(s, length, PROT_READ | PROT_WRITE))
		return fail("cannot create the ledger of peers, a file of %s in memory",
			    SIZE(length));
	s->ledger->magic = LEDGER_MAGIC;
	s->ledger->layout = LEDGER_LAYOUT;
	s->ledger->peer_length = peer_length(s->opt.vectors);
	s->ledger->vectors = s->opt.vectors;
	s->ledger->legacy = s->opt.legacy;
	s->ledger->object_name = text_hash(s->opt.object);
	s->ledger->store = s->ledger->lock = s->ledger->disk = s->ledger->pidfile = -1;
	s->ledger->listener = s->ledger->watch = s->ledger->signals = -1;
	return true;
}

/*
 * Maps the ledger that another process or image has left, if it is one that we can read. If it is
 * not, errno is EINVAL; any other errno, such as ENOMEM, says nothing about it.
 */
static bool ledger_open(struct server *s, int protection)
{
	const struct ledger *l;
	struct stat st;

	if (fstat(s->ledger_fd, &st) < 0 ||
	    (st.st_size > 0 && !ledger_map(s, (size_t)st.st_size, protection)))
		return fail("cannot take over: cannot map the ledger of peers");
	l = s->ledger;
	errno = EINVAL;
	return ((size_t)st.st_size >= sizeof(*l) && l->magic == LEDGER_MAGIC &&
		(l->layout == LEDGER_LAYOUT || l->layout == LEDGER_LAYOUT_BEFORE) &&
		l->vectors <= VECTORS_MAX && l->slots <= FD_SETSIZE &&
		l->peer_length == peer_length(l->vectors) &&
		(size_t)st.st_size == ledger_length(l->vectors)) ||
	       complain("cannot take over: the server before keeps no ledger of peers that this "
			"program can read: put another version there");
}

/* Whether the peers in the ledger are as our options want them. */
static bool ledger_fits(const struct server *s)
{
	const struct options *o = &s->opt;
	const struct ledger *l = s->ledger;

	return (l->vectors == o->vectors && l->legacy == o->legacy) ||
	       complain("cannot take over: the nodes have %u vector%s%s, this program's options "
			"make it %u%s",
			l->vectors, S(l->vectors), l->legacy ? ", -L" : "", o->vectors,
			o->legacy ? ", -L" : "");
}

/* The peer in a ledger with this socket, or the place of the one that is to be. */
static struct peer *ledger_peer(const struct ledger *l, int sock)
{
	assert(sock >= 0 && sock < FD_SETSIZE);
	return (struct peer *)((char *)l + LEDGER_HEAD + (size_t)sock * l->peer_length);
}

static struct peer *peer_at(const struct server *s, int sock)
{
	return ledger_peer(s->ledger, sock);
}

/* Notes that somebody has left, which is true from then on. */
static void departure_note(struct ledger *l, uint64_t serial, int64_t id)
{
	l->ring[l->departures % IDS] = (struct departure){serial, id};
	ledger_order();
	l->departures++;
	ledger_order();
}

/* Who left last, by serial number; 0: nobody. Where the process ended just then, that one's place
 * has not been given free. */
static uint64_t departed_last(const struct ledger *l)
{
	return l->departures ? l->ring[(l->departures - 1) % IDS].serial : 0;
}

/* Which process, of which user, has connected by this socket. */
static struct ucred client_process(int sock)
{
	struct ucred who = {.pid = 0, .uid = (uid_t)-1};
	socklen_t length = sizeof(who);

	getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &who, &length);
	return who;
}

/* Brings a ledger of version 1.1 up to date, which has no process where one stands now. */
static void ledger_renew(struct server *s)
{
	struct ledger *l = s->ledger;

	if (l->layout == LEDGER_LAYOUT)
		return;
	for (int sock = 0; sock < (int)l->slots; sock++)
		peer_at(s, sock)->process = client_process(sock).pid;
	l->forgotten = l->departures;
	l->object_name = text_hash(s->opt.object);
	l->layout = LEDGER_LAYOUT;
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

/*
 * The process that listens on a path, found without connecting to it: ", process N", or nothing
 * where we may not know.
 */
static void socket_owner(const char *path, char *who, size_t room)
{
	unsigned long inode = 0;
	char wanted[64], link[64];
	glob_t fds = {0};

	*who = '\0';
	for (int i = 0; i < 5 && !inode; i++) /* who comes and goes can hide it from a reader */
		inode = socket_inode(path);
	snprintf(wanted, sizeof(wanted), "socket:[%lu]", inode);
	if (!inode || glob("/proc/[0-9]*/fd/*", GLOB_NOSORT, NULL, &fds) != 0)
		return;
	for (size_t i = 0; i < fds.gl_pathc && !*who; i++) {
		ssize_t n = readlink(fds.gl_pathv[i], link, sizeof(link) - 1);

		link[n < 0 ? 0 : n] = '\0';
		if (!strcmp(link, wanted))
			snprintf(who, room, ", process %d",
				 atoi(fds.gl_pathv[i] + strlen("/proc/")));
	}
	globfree(&fds);
}

/*
 * Finds out whether somebody has the socket at a path, by connecting a datagram socket, which no
 * server notices. Returns the errno: EPROTOTYPE where it lives, ECONNREFUSED where it is stale.
 */
static int socket_probe(const char *path)
{
	struct sockaddr_un address = socket_address(path);
	int probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), error = 0;

	if (probe < 0 || connect(probe, (struct sockaddr *)&address, sizeof(address)) < 0)
		error = errno;
	if (probe >= 0)
		close(probe);
	return error;
}

/* Moves a stale socket out of the way, until it is known whether ours takes its place. */
static bool stale_set_aside(struct server *s)
{
	const char *path = s->opt.socket;
	int error;

	if (asprintf(&s->stale, "%s.%d", path, (int)getpid()) < 0)
		s->stale = NULL;
	else if (rename(path, s->stale) == 0)
		return true;
	error = errno;
	free(s->stale);
	s->stale = NULL;
	errno = error;
	return path_fail("cannot replace the stale socket", path);
}

/* Removes the stale socket that was set aside; or puts it back, if nobody else has taken its place.
 */
static void stale_leave(struct server *s, bool replaced)
{
	if (!s->stale)
		return;
	if (!replaced &&
	    renameat2(AT_FDCWD, s->stale, AT_FDCWD, s->opt.socket, RENAME_NOREPLACE) < 0) {
		replaced = true;
		if (errno != EEXIST)
			fail("cannot put back the stale socket %s", s->opt.socket);
	}
	if (replaced && unlink(s->stale) < 0)
		fail("cannot remove the stale socket %s", s->stale);
	free(s->stale);
	s->stale = NULL;
}

/* Makes the path free for our socket: sets a stale one aside, refuses everything else. */
static bool socket_path_free(struct server *s)
{
	const char *path = s->opt.socket;
	struct stat st;
	int error;
	char who[32];

	if (lstat(path, &st) < 0)
		return errno == ENOENT || path_fail("cannot examine", path);
	if (!S_ISSOCK(st.st_mode))
		return complain("%s exists and is not a socket: choose another path with -%c", path,
				typed('p'));
	errno = error = socket_probe(path);
	if (error == 0 || error == EPROTOTYPE) {
		socket_owner(path, who, sizeof(who));
		return complain(
			"%s belongs to a server that is running%s: stop that one, or choose "
			"another path with -%c",
			path, who, typed('p'));
	}
	if (error != ECONNREFUSED && error != ENOENT)
		return path_fail("cannot find out whether a server listens on", path);
	return error == ENOENT || stale_set_aside(s);
}

/*
 * Locks the folder of the socket, so that two servers that start at the same moment do not take
 * each other's socket for a stale one; waits for others, a second at most. Returns a descriptor to
 * close, or -1: it goes without as well, where the folder cannot be read.
 */
static int socket_folder_lock(const char *path, bool wait)
{
	char *copy = strdup(path);
	int folder = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int tries = wait ? 100 : 0, done = 0;

	while (folder >= 0 && (done = flock(folder, LOCK_EX | LOCK_NB)) < 0 &&
	       (errno == EINTR || (errno == EWOULDBLOCK && tries-- > 0)))
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	if (done < 0)
		fail("cannot lock the folder of %s, going on without", path);
	free(copy);
	return folder;
}

/*
 * Has the kernel tell us when somebody removes or moves the socket's file, which shows as a change
 * of its link count, or its folder. Where that fails, HUP and USR1 look all the same.
 */
static bool socket_watch(struct server *s)
{
	char *copy = strdup(s->opt.socket);
	bool done;
	int fd;

	if (s->ledger->watch < 0)
		s->ledger->watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	fd = s->ledger->watch;
	done = copy && fd >= 0 &&
	       inotify_add_watch(fd, s->opt.socket, IN_ATTRIB | IN_MOVE_SELF | IN_DONT_FOLLOW) >= 0;

	if (done) /* that of the folder is a help only: we may have no right to read it */
		inotify_add_watch(fd, dirname(copy), IN_MOVE_SELF | IN_ONLYDIR);
	free(copy);
	return done || fail("cannot watch %s: should somebody remove it, send HUP", s->opt.socket);
}

/*
 * Whether a descriptor holds the file of a socket on which this process listens: whoever connects
 * there then sees that. If not, errno says why; ENOENT: there is no /proc. Our look waits to be
 * accepted then, for client_accept to pass over.
 */
static bool socket_is_ours(int held)
{
	struct sockaddr_un address = socket_address(descriptor_path(held).text);
	int look = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error = 0;

	if (look < 0 || connect(look, (struct sockaddr *)&address, sizeof(address)) < 0)
		error = errno;
	else if (client_process(look).pid != getpid())
		error = ECONNREFUSED;
	if (look >= 0)
		close(look);
	errno = error;
	return error == 0;
}

/*
 * Lets the group connect, to our own socket alone: whoever may write to its folder can have put
 * something else there. *foreign: so it is.
 */
static bool socket_admit(const struct server *s, int held, bool *foreign)
{
	const char *path = s->opt.socket;

	if (s->ledger->group == NOBODY)
		return true;
	if (socket_is_ours(held))
		return group_admit(s, held, path);
	if (errno == ENOENT)
		return group_leave_out(s, path);
	*foreign = errno == ECONNREFUSED || errno == EPROTOTYPE;
	if (!*foreign)
		return fail("cannot find out whether %s is ours", path);
	return complain("%s was replaced while it was being made: choose a folder that only uid %u "
			"may write to",
			path, geteuid());
}

/* Creates the socket and listens: first only for ourselves, whatever the umask. */
static bool socket_bind(struct server *s, int listener)
{
	const char *path = s->opt.socket;
	struct sockaddr_un address = socket_address(path);
	mode_t mask = umask(0177);
	int error = bind(listener, (struct sockaddr *)&address, sizeof(address)), held;
	struct stat st;
	bool known, done, foreign = false;

	umask(mask);
	if (error < 0)
		return path_fail("cannot create socket", path);
	held = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	known = held >= 0 ? fstat(held, &st) == 0 : lstat(path, &st) == 0;
	done = ((held >= 0 && known) || fail("cannot examine %s", path)) &&
	       (listen(listener, SOMAXCONN) == 0 || fail("cannot listen on %s", path)) &&
	       socket_admit(s, held, &foreign);
	if (held >= 0)
		close(held);
	if (done) {
		s->ledger->socket_dev = st.st_dev;
		s->ledger->socket_ino = st.st_ino;
	} else if (known && !foreign) {
		path_remove(path, st.st_dev, st.st_ino);
	}
	return done;
}

/* Makes the socket and listens on it. *fd is what listens, also if it failed; -1: nothing. */
static bool socket_make(struct server *s, int32_t *fd)
{
	int folder = socket_folder_lock(s->opt.socket, s->ledger->listener < 0);
	bool done;

	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	done = (*fd >= 0 || fail("cannot create a socket")) && socket_path_free(s) &&
	       socket_bind(s, *fd);
	if (!done)
		stale_leave(s, false);
	if (folder >= 0)
		close(folder);
	return done;
}

/*
 * Whether our socket stands at its path; if not, errno is ENOENT, or says why nobody knows. A
 * socket that a supervisor has made is its own matter.
 */
static bool socket_stands(const struct server *s)
{
	struct stat st;

	if (!s->ledger->socket_ino)
		return true;
	if (lstat(s->opt.socket, &st) < 0)
		return false;
	errno = ENOENT;
	return st.st_dev == s->ledger->socket_dev && st.st_ino == s->ledger->socket_ino;
}

/*
 * Removes the socket if it is still ours. Nobody else can connect from here on; who waits already
 * is kept.
 */
static void socket_remove(struct server *s)
{
	if (!s->ledger->socket_ino)
		return;
	if (!path_remove(s->opt.socket, s->ledger->socket_dev, s->ledger->socket_ino) &&
	    errno != ENOENT)
		fail("cannot remove socket %s", s->opt.socket);
	s->ledger->socket_ino = 0;
	shutdown(s->ledger->listener, SHUT_RDWR);
}

/* The path of a listening socket, "@name" where it is no file; the caller frees it. NULL with
 * errno. */
static char *listener_path(int fd)
{
	struct sockaddr_un address = {0};
	socklen_t length = sizeof(address) - 1; /* a 0 stays behind it */

	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		return NULL;
	if (!address.sun_path[0])
		address.sun_path[0] = '@';
	return strdup(address.sun_path);
}

/*
 * Timers
 */

/* Milliseconds on a clock that nobody sets. */
static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Has something done after so many milliseconds, if it is not to be done sooner already. */
static void timer_start(struct server *s, enum timer timer, int64_t ms)
{
	int64_t *at = &s->ledger->timers[timer], when = now_ms() + ms;

	if (!*at || *at > when)
		*at = when;
}

/* Whether it is time for that; if so, the timer ends. */
static bool timer_ended(struct server *s, enum timer timer)
{
	if (!s->ledger->timers[timer] || now_ms() < s->ledger->timers[timer])
		return false;
	s->ledger->timers[timer] = 0;
	return true;
}

/*
 * The supervisor
 *
 * It keeps descriptors for us, and passes them to the process that it starts when this one has
 * ended: what is our own, and for each peer a parcel, one end of a pair of sockets in whose queue
 * the peer's socket and eventfds lie in order. So it holds one descriptor for a peer, however many
 * vectors that has. The other end of the pair lies there first: to close the last descriptor of a
 * socket would cost more than all the rest. We never wait for the supervisor: what it has no room
 * for is told when it has. Where it has no room, one message at a time may find some, so none is
 * sent twice: else there would never be an end of it.
 *
 * Nobody tells us when the supervisor loses what it has, as systemd does when a unit is masked for
 * a moment. So at each restart all is stored anew. Of our own it notices that it has it already.
 * A parcel is another one each time, and takes the place of the one before by another name; never
 * is there none. The lock makes room for that in a store that is just large enough: a successor can
 * do without.
 */

/* Descriptors in a parcel, at most, and which of them are what; the eventfds come last. */
#define PARCEL_MAX (2 + VECTORS_MAX)
enum { PARCEL_END, PARCEL_SOCKET, PARCEL_EVENTFDS };

#define PINGS 4 /* in the time after which a supervisor that hears of none ends us */

/* How often it wants to hear of this very process; 0: not at all (sd_watchdog_enabled(3)). */
static int64_t supervisor_ping_ms(void)
{
	const char *process = getenv("WATCHDOG_PID"), *us = getenv("WATCHDOG_USEC");
	uint64_t number;
	char *end;

	if (process &&
	    (!digits_parse(process, &number, &end) || *end || number != (uint64_t)getpid()))
		return 0;
	if (!us || !digits_parse(us, &number, &end) || *end || number == 0)
		return 0;
	return (int64_t)(number / 1000 / PINGS) + 1;
}

/*
 * How many more descriptors than nodes a store should have room for: our own, and the parcels of
 * those who leave while as many others join that all are accepted in one round.
 */
#define STORE_MORE (OWNS + ACCEPTS_PER_ROUND + 2)

#define FIRST_USER_NAMESPACE UINT64_C(0xeffffffd) /* what its file's number is, on every Linux */

/*
 * Whether the kernel limits how many descriptors we have in flight: it does not for the privileged,
 * unless they are so in a namespace of their own only.
 */
static bool flight_limited(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
	struct stat st;

	return syscall(SYS_capget, &header, sets) < 0 ||
	       !(sets[0].effective &
		 (CAP_TO_MASK(CAP_SYS_RESOURCE) | CAP_TO_MASK(CAP_SYS_ADMIN))) ||
	       stat("/proc/self/ns/user", &st) < 0 || st.st_ino != FIRST_USER_NAMESPACE;
}

/* Finds out whether there is a supervisor, and how much it can store. */
static void supervisor_open(struct server *s)
{
	struct supervisor *v = &s->supervisor;
	const char *path = getenv("NOTIFY_SOCKET"), *most = getenv("FDSTORE");
	struct rlimit limit;
	uint64_t number;
	char *end;

	if (!path || !*path || strlen(path) >= sizeof(v->address.sun_path))
		return;
	v->address = socket_address(path);
	v->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (*path == '@')
		v->address.sun_path[0] = '\0';
	v->room = most && digits_parse(most, &number, &end) && !*end ? number : SIZE_MAX;
	v->flight = SIZE_MAX;
	/* Messages need room as well (socket_buffer_limit). */
	if (flight_limited() && getrlimit(RLIMIT_NOFILE, &limit) == 0)
		v->flight = limit.rlim_cur / 2;
	v->unready = true;
	v->ping_ms = supervisor_ping_ms();
}

/* Whether there is one. */
static bool supervised(const struct server *s)
{
	return s->supervisor.length > 0;
}

/* Makes the socket to tell it anything, where there is none yet. Returns false with errno. */
static bool supervisor_socket(struct server *s)
{
	struct supervisor *v = &s->supervisor;

	if (supervised(s) && v->sock < 0)
		v->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return v->sock >= 0;
}

/* Connects that to the socket that stands at the address by now. Returns false with errno. */
static bool supervisor_connect(const struct supervisor *v)
{
	return connect(v->sock, (const struct sockaddr *)&v->address, v->length) == 0;
}

/* Sends the supervisor a message. Returns false with errno. */
static bool supervisor_send(struct server *s, const char *state, size_t length, int fd)
{
	const struct supervisor *v = &s->supervisor;

	if (!supervisor_socket(s))
		return false;
	if (scm_pass(v->sock, NULL, 0, state, length, &fd, fd >= 0))
		return true;
	return (errno == ENOTCONN || errno == ECONNREFUSED) && supervisor_connect(v) &&
	       scm_pass(v->sock, NULL, 0, state, length, &fd, fd >= 0);
}

/*
 * Tells the supervisor a state, with a descriptor unless that is -1. If it cannot be told, whatever
 * is still to be told is tried again when there is room, or later; the log says so once. Returns
 * whether it was told.
 */
__attribute__((format(printf, 3, 4))) static bool supervisor_tell(struct server *s, int fd,
								  const char *format, ...)
{
	struct supervisor *v = &s->supervisor;
	char state[128];
	va_list args;
	int n;

	if (!supervised(s))
		return false;
	va_start(args, format);
	n = vsnprintf(state, sizeof(state), format, args);
	va_end(args);
	if (supervisor_send(s, state, (size_t)n, fd))
		return true;
	timer_start(s, TIMER_STORE, STORE_RETRY_MS);
	if (errno == EAGAIN) {
		v->full = true;
	} else if (!v->lost) {
		for (char *at = state; *at; at++)
			if (*at == '\n')
				*at = ' ';
		v->lost =
			!fail("cannot tell %s at %s, trying again", state, getenv("NOTIFY_SOCKET"));
	}
	return false;
}

/* Notes what has come of something that is stored or dropped. A successor is worth waiting for it.
 */
static bool supervisor_took(struct server *s, bool done)
{
	if (done && s->handover)
		s->stop_at = now_ms() + STORE_MS;
	return done;
}

/* Has a descriptor stored by this name. FDPOLL=0: it is not to be dropped when its end comes. */
static bool supervisor_store(struct server *s, int fd, const char *name)
{
	return supervisor_took(s, supervisor_tell(s, fd, "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name));
}

/* Has all descriptors dropped that are stored by this name. */
static bool supervisor_drop(struct server *s, const char *name)
{
	return supervisor_took(s, supervisor_tell(s, -1, "FDSTOREREMOVE=1\nFDNAME=%s", name));
}

/* What the parcel of the peer with this serial number is called, by its first name or its second.
 */
static struct text parcel_name(uint64_t serial, bool second)
{
	struct text name;

	snprintf(name.text, sizeof(name.text), PARCEL "%s%" PRIu64, second ? "0" : "", serial);
	return name;
}

/* There can be no parcel now, for the reason in errno. */
static bool parcel_fail(struct server *s)
{
	timer_start(s, TIMER_STORE, STORE_RETRY_MS);
	if (!s->supervisor.lost)
		s->supervisor.lost = !fail("cannot have a node's descriptors stored, trying again");
	return false;
}

/*
 * Whether a parcel of this peer fits: into what the supervisor stores, if it says how much that is;
 * and into what may be in flight, for that is what lies in parcels. Beyond the limit of that nobody
 * could be sent anything. If it does not, the log says so, and somebody has to leave first.
 */
static bool parcel_fits(struct server *s, const struct peer *p)
{
	const struct ledger *l = s->ledger;
	struct supervisor *v = &s->supervisor;
	size_t each = PARCEL_EVENTFDS + l->vectors, all = s->count + 1;

	if (p->stored || (all + OWNS <= v->room && all <= v->flight / each))
		return true;
	for (size_t i = 0; i < s->count; i++)
		all -= !peer_at(s, s->order[i])->stored;
	if (all + OWNS <= v->room && all <= v->flight / each)
		return true;
	if (v->lost)
		return false;
	v->lost = true;
	if (all + OWNS > v->room)
		return complain("ID %d is not stored, and ends with the server: the supervisor "
				"stores %zu descriptors and no more; raise FileDescriptorStoreMax= "
				"to the number of nodes and %d",
				p->id, v->room, STORE_MORE);
	return complain("ID %d is not stored, and ends with the server: no more than %zu "
			"descriptors may be in flight; raise LimitNOFILE= to %zu for each node",
			p->id, 2 * v->flight, 2 * each);
}

/* Has the supervisor drop what it has of those who have left, by whatever name. */
static bool parcels_drop(struct server *s)
{
	struct ledger *l = s->ledger;
	struct supervisor *v = &s->supervisor;

	if (l->departures - l->forgotten > IDS)
		l->forgotten = l->departures - IDS;
	for (; l->forgotten < l->departures; l->forgotten++) {
		uint64_t serial = l->ring[l->forgotten % IDS].serial;

		for (; v->drop_step < 2; v->drop_step++)
			if (!supervisor_drop(s, parcel_name(serial, v->drop_step).text))
				return false;
		v->drop_step = 0;
		v->behind = true; /* there may be room for somebody else */
	}
	return true;
}

/*
 * Has the parcel of a peer stored that has this socket, and is to have this serial number. Returns
 * false if it is still to be stored by supervisor_update.
 */
static bool parcel_store(struct server *s, int sock, uint64_t serial, bool second)
{
	const struct peer *p = peer_at(s, sock);
	size_t count = PARCEL_EVENTFDS + s->ledger->vectors;
	int all[PARCEL_MAX], ends[2];
	bool done = true;

	if (!supervised(s) || s->ledger->timers[TIMER_STORE])
		return false;
	if (s->supervisor.own_step < 2 * OWNS) {
		s->supervisor.behind = true;
		return false;
	}
	/* Those who have left make room first: the ledger that says so is stored by now. */
	if (!parcels_drop(s) || !parcel_fits(s, p))
		return false;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return parcel_fail(s);
	all[PARCEL_END] = ends[1];
	all[PARCEL_SOCKET] = sock;
	memcpy(&all[PARCEL_EVENTFDS], p->eventfds, s->ledger->vectors * sizeof(all[0]));
	for (size_t at = 0; done && at < count; at += SCM_DESCRIPTORS)
		done = scm_pass(ends[1], NULL, 0, "", 1, &all[at],
				count - at < SCM_DESCRIPTORS ? count - at : SCM_DESCRIPTORS) ||
		       parcel_fail(s);
	done = done && supervisor_store(s, ends[0], parcel_name(serial, second).text);
	close(ends[0]);
	close(ends[1]);
	return done;
}

/* Whether the supervisor has room for a message: to ask costs less than a parcel made in vain. */
static bool supervisor_has_room(struct server *s)
{
	struct pollfd room = {.fd = s->supervisor.sock, .events = POLLOUT};

	if (room.fd < 0 || poll(&room, 1, 0) != 0)
		return true; /* or the message will say what is wrong */
	timer_start(s, TIMER_STORE, STORE_RETRY_MS);
	s->supervisor.full = true;
	return false;
}

/* Has stored what is to be of a peer, and dropped what is too much. False: it is not done yet. */
static bool parcel_update(struct server *s, int sock)
{
	struct peer *p = peer_at(s, sock);

	for (;;) {
		bool second = p->stored & PARCEL_SECOND;

		if (p->stored & PARCEL_BOTH) {
			if (!supervisor_drop(s, parcel_name(p->serial, !second).text))
				return false;
			p->stored &= (uint8_t)~PARCEL_BOTH;
		} else if (p->stored & PARCEL_ANEW) {
			if (!supervisor_has_room(s) || !parcel_store(s, sock, p->serial, !second))
				return false;
			p->stored = PARCEL_BOTH | (second ? PARCEL_FIRST : PARCEL_SECOND);
		} else if (!p->stored) {
			if (!supervisor_has_room(s) || !parcel_store(s, sock, p->serial, false))
				return false;
			p->stored = PARCEL_FIRST;
		} else {
			return true;
		}
	}
}

/* Does so for all. Returns false if there is more to do once the supervisor, or the kernel, can. */
static bool parcels_update(struct server *s)
{
	bool all = true;

	for (size_t i = 0; i < s->count; i++) {
		if (!all && !peer_at(s, s->order[i])->stored)
			continue; /* where one does not fit, the next does not, either */
		all = parcel_update(s, s->order[i]) && all;
		if (s->ledger->timers[TIMER_STORE])
			return false;
	}
	s->supervisor.behind = false;
	s->supervisor.lost = s->supervisor.lost && !all;
	return true;
}

/*
 * Tells the supervisor what is our own, but for the lock, of which it is told last. Returns whether
 * all was told.
 */
static bool own_update(struct server *s)
{
	struct ledger *l = s->ledger;
	struct supervisor *v = &s->supervisor;
	const int own[OWNS] = {s->ledger_fd, l->store, l->lock, l->socket_ino ? l->listener : -1};

	for (; v->own_step < 2 * OWNS; v->own_step++) {
		enum own i = v->own_step % OWNS;

		if (v->own_step < OWNS) {
			if (i == OWN_LOCK && v->doubtful)
				l->kept[i] = false;
			if (!l->kept[i] && !supervisor_drop(s, own_names[i]))
				return false;
		} else if (i != OWN_LOCK && (!l->kept[i] || v->doubtful)) {
			if (own[i] >= 0 && !supervisor_store(s, own[i], own_names[i]))
				return false;
			l->kept[i] = true;
		}
	}
	v->doubtful = false;
	return true;
}

/* Tells the supervisor that a restart has begun, if it has. Returns whether it knows. */
static bool reload_tell(struct server *s)
{
	struct supervisor *v = &s->supervisor;

	if (v->reloading_us &&
	    !supervisor_tell(s, -1, "RELOADING=1\nMONOTONIC_USEC=%" PRId64, v->reloading_us))
		return false;
	v->reloading_us = 0;
	return true;
}

/* A restart begins, which READY=1 ends, whatever comes of it. */
static void supervisor_reload(struct server *s)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t); /* in full: it must not seem to be before the request */
	s->supervisor.reloading_us = (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
	s->supervisor.unready = true;
	reload_tell(s);
}

/* Tells the supervisor that we are ending, if so. Returns whether it knows. */
static bool stop_tell(struct server *s)
{
	struct supervisor *v = &s->supervisor;

	v->stopping = v->stopping && !supervisor_tell(s, -1, "STOPPING=1");
	return !v->stopping;
}

/* We are ending. */
static void supervisor_stop(struct server *s)
{
	s->supervisor.stopping = true;
	stop_tell(s);
}

/* Tells the supervisor how we are, and what is our own. Returns whether it has been told. */
static bool supervisor_begin(struct server *s)
{
	struct supervisor *v = &s->supervisor;

	if (!reload_tell(s) || !stop_tell(s) || !own_update(s))
		return false;
	if (v->unready && !s->trial && !s->stop_at)
		v->unready = !supervisor_tell(s, -1, "READY=1");
	return !s->ledger->timers[TIMER_STORE];
}

/* Has all stored anew that has been, since it may have been lost. */
static void supervisor_doubt(struct server *s)
{
	for (size_t i = 0; i < s->count; i++)
		if (peer_at(s, s->order[i])->stored)
			peer_at(s, s->order[i])->stored |= PARCEL_ANEW;
	s->supervisor.own_step = 0;
	s->supervisor.doubtful = s->supervisor.behind = true;
}

/*
 * Tells the supervisor what it does not know yet, as far as it has room: of us, of who has left,
 * and of who is there.
 */
static void supervisor_update(struct server *s)
{
	struct ledger *l = s->ledger;
	struct supervisor *v = &s->supervisor;

	if (!supervised(s))
		return;
	if (timer_ended(s, TIMER_STORE)) {
		/* It has taken nothing for so long: the socket at its address may be another. */
		if (v->sock >= 0)
			supervisor_connect(v);
		v->full = false;
		v->behind = true;
	}
	if (l->timers[TIMER_STORE] || !supervisor_begin(s) || !parcels_drop(s) ||
	    (v->behind && !parcels_update(s)) || l->kept[OWN_LOCK])
		return;
	l->kept[OWN_LOCK] = l->lock < 0 || supervisor_store(s, l->lock, own_names[OWN_LOCK]);
}

/* Has select look whether the supervisor has room, if it had none. */
static void supervisor_watch(const struct server *s, fd_set *writable)
{
	if (s->supervisor.full && s->supervisor.sock < FD_SETSIZE)
		FD_SET(s->supervisor.sock, writable);
}

/* Notices that it has room, and takes it out of the set, for others are peers. */
static void supervisor_wake(struct server *s, fd_set *writable)
{
	struct supervisor *v = &s->supervisor;

	if (!v->full || v->sock >= FD_SETSIZE || !FD_ISSET(v->sock, writable))
		return;
	FD_CLR(v->sock, writable);
	v->full = false;
	v->behind = true;
	s->ledger->timers[TIMER_STORE] = 0;
}

/* Lets the supervisor know that the loop goes round, when it is to hear that. */
static void supervisor_ping(struct server *s)
{
	struct supervisor *v = &s->supervisor;

	if (!v->ping_ms || now_ms() < v->ping_at)
		return;
	v->ping_at = now_ms() + v->ping_ms;
	supervisor_tell(s, -1, "WATCHDOG=1");
}

/*
 * At an exit: tells the supervisor why we could not start. Its status shows that while it waits to
 * try again, and of the log only what came after the end.
 */
static void supervisor_explain(int status, void *server)
{
	struct server *s = server;
	char state[sizeof(log_reason) + 8];
	int n = snprintf(state, sizeof(state), "STATUS=%s", log_reason);

	if (status == EXIT_SUCCESS)
		return;
	if (!supervised(s))
		supervisor_open(s);
	if (supervised(s))
		supervisor_send(s, state, (size_t)n, -1);
}

/*
 * Sets of sockets
 */

/* The lowest descriptor of a set from this one on; FD_SETSIZE if there is none. */
static int set_next(const fd_set *set, int fd)
{
	for (int word = fd / NFDBITS; word < FD_SETSIZE / NFDBITS; word++) {
		unsigned long bits = (unsigned long)set->fds_bits[word];

		if (word == fd / NFDBITS)
			bits &= ~0UL << fd % NFDBITS;
		if (bits)
			return word * NFDBITS + __builtin_ctzl(bits);
	}
	return FD_SETSIZE;
}

/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration takes none */
#define set_each(fd, set) for (int fd = -1; (fd = set_next(set, fd + 1)) < FD_SETSIZE;)

/*
 * Places
 */

/* How many peers have a serial number of at most this one: the index of the first peer behind. */
static size_t peers_up_to(const struct server *s, uint64_t serial)
{
	size_t low = 0, high = s->count;

	/* Most often it is the youngest's, or that of the one before. */
	for (int i = 0; i < 2 && low < high; i++, high--)
		if (peer_at(s, s->order[high - 1])->serial <= serial)
			return high;
	while (low < high) {
		size_t middle = (low + high) / 2;

		if (peer_at(s, s->order[middle])->serial <= serial)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* A place that moves, and the index of the first peer behind the one that it has reached. */
struct cursor {
	struct place at;
	size_t behind;
};

/* Where the greeting's first messages end: a server without memory has no third. */
static uint32_t head_end(const struct server *s)
{
	return s->ledger->store < 0 ? 2 : 3;
}

/*
 * What a peer is to be told next (ivshmem-spec, "Client-Server protocol"), and moves the cursor
 * there. Returns false if there is nothing.
 *
 * Departures come before introductions. So when one is dealt with, the peer has reached what it had
 * reached when that one left, and "its serial number is at most reached" says exactly whether it
 * had been introduced: who had not been is never mentioned (hazard 2), who had been is told to have
 * left once (hazard 1), and nothing of its eventfds is due any more. All older peers come before
 * its own eventfds, all younger ones behind, since it stands in that order itself.
 */
static bool message_next(const struct server *s, const struct peer *p, struct cursor *c,
			 struct scm_msg *m)
{
	const struct ledger *l = s->ledger;
	const struct scm_msg head[] = {{PROTOCOL_VERSION, -1}, {p->id, -1}, {MEMORY, l->store}};
	struct place *at = &c->at;
	const struct peer *next;

	if (at->head < head_end(s)) {
		*m = head[at->head++];
		return true;
	}
	while (at->departures < l->departures) {
		const struct departure *d = &l->ring[at->departures++ % IDS];

		if (d->serial > at->reached)
			continue;
		if (d->serial == at->reached)
			at->vectors = l->vectors;
		*m = (struct scm_msg){d->id, -1};
		return true;
	}
	if (at->vectors == l->vectors) {
		if (l->vectors == 0 || c->behind == s->count)
			return false;
		at->reached = peer_at(s, s->order[c->behind++])->serial;
		at->vectors = 0;
	}
	next = peer_at(s, s->order[c->behind - 1]);
	*m = (struct scm_msg){next->id, next->eventfds[at->vectors++]};
	return true;
}

/* How many messages a peer is still to be sent: as many as message_next would give. */
static size_t peer_owed(const struct server *s, const struct peer *p)
{
	const struct ledger *l = s->ledger;
	const struct place *at = &p->place;
	size_t owed = head_end(s) - at->head, vectors = l->vectors - at->vectors;

	for (uint64_t d = at->departures; d < l->departures; d++) {
		owed += l->ring[d % IDS].serial <= at->reached;
		if (l->ring[d % IDS].serial == at->reached)
			vectors = 0;
	}
	return owed + vectors + l->vectors * (s->count - peers_up_to(s, at->reached));
}

/*
 * Peers
 */

/*
 * The ID of the next peer: the lowest that is free and was retired before every peer now connected
 * had joined, since clients break over an ID that they have seen leave (hazard 1). So no ID departs
 * twice while anybody is there who has not dealt with the first time, and the ring of departures is
 * long enough. With nobody connected that is 0. Returns -1 if there is none.
 */
static int id_pick(const struct server *s)
{
	const struct ledger *l = s->ledger;
	uint64_t taken[IDS / 64] = {0}, d = l->departures;

	if (s->count > 0)
		d = peer_at(s, s->order[0])->missed;
	for (int id; d < l->departures; d++) {
		id = (int)l->ring[d % IDS].id;
		taken[id / 64] |= UINT64_C(1) << id % 64;
	}
	for (size_t i = 0; i < s->count; i++) {
		int id = peer_at(s, s->order[i])->id;

		taken[id / 64] |= UINT64_C(1) << id % 64;
	}
	for (int word = 0; word < IDS / 64; word++)
		if (~taken[word])
			return word * 64 + __builtin_ctzll(~taken[word]);
	return -1;
}

/*
 * Makes the eventfds of a peer, out of select's range if the limit of descriptors allows. Returns
 * false with errno, and there are none.
 */
static bool eventfds_open(struct peer *p, unsigned int vectors)
{
	for (unsigned int v = 0; v < vectors; v++) {
		int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), error = errno;

		if (fd < 0) {
			while (v > 0)
				close(p->eventfds[--v]);
			errno = error;
			return false;
		}
		p->eventfds[v] = descriptor_raise(fd, FD_SETSIZE);
	}
	return true;
}

/* Has select told when the peer with this socket has gone. Returns false with errno. */
static bool end_watch(const struct server *s, int sock)
{
	struct epoll_event end = {.events = EPOLLIN, .data.fd = sock};

	return epoll_ctl(s->ledger->ends, EPOLL_CTL_ADD, sock, &end) == 0;
}

/* Takes a peer into the order of peers. */
static void peer_enter(struct server *s, int sock)
{
	size_t at = peers_up_to(s, peer_at(s, sock)->serial);

	memmove(&s->order[at + 1], &s->order[at], (s->count++ - at) * sizeof(s->order[0]));
	s->order[at] = (uint16_t)sock;
	FD_SET(sock, &s->present);
	s->due = s->present;
}

/* Who a peer is: "process 123 (qemu-system-x86), uid 64055", as far as it is known. */
static struct text peer_text(int sock)
{
	struct ucred who = client_process(sock);
	struct text out;
	char path[32], comm[32] = "?";
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)who.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, comm, sizeof(comm) - 1);
		close(fd);
	}
	comm[n > 0 ? n - 1 : 1] = '\0';  /* without the newline */
	for (char *at = comm; *at; at++) /* whatever it calls itself, the line is ours */
		if (*at < ' ' || *at > '~' || *at == '(' || *at == ')')
			*at = '?';
	snprintf(out.text, sizeof(out.text), "process %d (%s), uid %u", (int)who.pid, comm,
		 (unsigned int)who.uid);
	return out;
}

/*
 * Makes a peer of a client, which is greeted and told to all others when it is their turn. Its
 * parcel may have been stored before.
 */
static void peer_join(struct server *s, int sock, int id, bool stored)
{
	struct ledger *l = s->ledger;
	struct peer *p = peer_at(s, sock);
	uint64_t serial = ++l->joins;

	if ((uint32_t)sock >= l->slots)
		l->slots = (uint32_t)sock + 1;
	p->id = (uint16_t)id;
	p->joined_ms = now_ms();
	p->process = client_process(sock).pid;
	p->missed = l->departures;
	p->sending = 0;
	p->place = (struct place){
		.head = l->legacy ? 1 : 0, .vectors = l->vectors, .departures = l->departures};
	ledger_order();
	p->stored = 0;
	p->stored = stored || parcel_store(s, sock, serial, false) ? PARCEL_FIRST : 0;
	ledger_order();
	p->serial = serial;
	ledger_order();
	peer_enter(s, sock);
	say("ID %d joined: %s", id, peer_text(sock).text);
}

/* Gives a peer's place free, and closes all that was its own. */
static void peer_free(struct server *s, int sock)
{
	struct peer *p = peer_at(s, sock);

	p->serial = 0;
	ledger_order();
	for (unsigned int v = 0; v < s->ledger->vectors; v++)
		close(p->eventfds[v]);
	/* Others may have it open as well: then closing it ends neither the watch nor the stream.
	 */
	epoll_ctl(s->ledger->ends, EPOLL_CTL_DEL, sock, NULL);
	if (p->stored & PARCEL_KEPT)
		shutdown(sock, SHUT_RDWR);
	close(sock);
}

/* A peer has left: takes it off the list, and notes that for the others to be told. */
static void peer_leave(struct server *s, int sock, const char *why)
{
	struct ledger *l = s->ledger;
	struct peer *p = peer_at(s, sock);
	size_t at = peers_up_to(s, p->serial) - 1;

	say("ID %d left: %s", p->id, why);
	s->count--;
	memmove(&s->order[at], &s->order[at + 1], (s->count - at) * sizeof(s->order[0]));
	FD_CLR(sock, &s->present);
	FD_CLR(sock, &s->blocked);
	FD_CLR(sock, &s->starved);
	s->due = s->present;
	l->flush_due = true;

	departure_note(l, p->serial, p->id);
	peer_free(s, sock);
}

/* Lets a peer go that would not know for sure who lives. */
static void peer_let_go(struct server *s, int sock, const char *why)
{
	char line[256];

	snprintf(line, sizeof(line), "%s: restart the node, process %d", why,
		 (int)peer_at(s, sock)->process);
	peer_leave(s, sock, line);
}

/* Takes over the peers that stand in the ledger, but for those that cannot be. */
static void peers_restore(struct server *s)
{
	const struct ledger *l = s->ledger;
	uint64_t last = departed_last(l);
	int cut = -1;

	for (int sock = 0; sock < (int)l->slots; sock++) {
		const struct peer *p = peer_at(s, sock);

		if (p->serial && p->serial == last)
			peer_free(s, sock); /* it has left, and then the server before ended */
		else if (p->serial)
			peer_enter(s, sock);
		if (p->serial && p->sending)
			cut = sock; /* there is one at most */
	}
	if (cut >= 0)
		peer_let_go(s, cut,
			    "the server died while it sent to this node, and nobody knows how "
			    "much arrived");
}

/* Sends a peer a batch of what it is owed. Returns whether there is more that it could take. */
static bool peer_send_batch(struct server *s, int sock)
{
	struct peer *p = peer_at(s, sock);
	struct cursor c = {p->place, peers_up_to(s, p->place.reached)};
	struct scm_msg batch[SCM_BATCH];
	struct place after[SCM_BATCH];
	size_t n = 0;
	int sent;

	while (n < SCM_BATCH && message_next(s, p, &c, &batch[n]))
		after[n++] = c.at;
	if (n == 0) {
		p->place.departures = c.at.departures; /* it need not hear of these */
		return false;
	}
	p->sending = true;
	ledger_order();
	sent = scm_send(sock, batch, n);
	assert(sent <= (int)n);
	if (sent > 0)
		p->place = after[sent - 1];
	ledger_order();
	p->sending = false;
	ledger_order();
	for (int i = 0; i < sent && s->opt.verbose; i++)
		say("to ID %d: %" PRId64 "%s", p->id, batch[i].value,
		    batch[i].fd < 0 ? "" : " with a descriptor");
	if (sent == (int)n)
		return n == SCM_BATCH;
	if (sent >= 0 || errno == EAGAIN || errno == EINTR) {
		FD_SET(sock, &s->blocked);
	} else if (errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM) {
		/* Unread descriptors of all sockets together, say: select would not wait for that.
		 */
		FD_SET(sock, &s->starved);
		timer_start(s, TIMER_SEND, SEND_RETRY_MS);
	} else {
		peer_leave(s, sock, errno == EPIPE ? "closed the connection" : strerror(errno));
	}
	return false;
}

/* Sends what is owed, to everybody that can take it. */
static void peers_send(struct server *s)
{
	while (set_next(&s->due, 0) < FD_SETSIZE)
		set_each (sock, &s->due) {
			FD_CLR(sock, &s->due); /* before it sends: a leave makes all due again */
			if (!FD_ISSET(sock, &s->blocked) && !FD_ISSET(sock, &s->starved))
				while (peer_send_batch(s, sock))
					;
		}
}

/* Whether a peer has read all that was for it. QEMU drops the rest when the connection ends. */
static bool peer_has_read(const struct server *s, int sock)
{
	int unread;

	return peer_owed(s, peer_at(s, sock)) == 0 &&
	       (ioctl(sock, SIOCOUTQ, &unread) < 0 || unread == 0);
}

/* The next client that waits at a socket, or -1 with errno. Our own look is none (socket_is_ours).
 */
static int client_accept(int listener)
{
	int sock;

	while ((sock = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0 &&
	       client_process(sock).pid == getpid())
		close(sock);
	return sock;
}

/*
 * Turns a client away, and says why. After an early end of the stream QEMU would spin for ever;
 * three messages, each -1 with a descriptor of size 0, make every device exit: as a version, as
 * its own ID, or as a memory that is too small (hazard 3). Closes the socket.
 */
#define client_refuse(s, sock, ...) \
	(say("a client is refused: " __VA_ARGS__), client_dismiss(s, sock))

static void client_dismiss(const struct server *s, int sock)
{
	const struct scm_msg no = {REFUSED, s->null}, bare = {REFUSED, -1};
	int sent = scm_send(sock, (const struct scm_msg[]){no, no, no}, 3);

	/* Where no more descriptors may be in flight, most devices are content with the version. */
	if (sent < 3 && scm_send(sock, (const struct scm_msg[]){bare, bare, bare},
				 sent > 0 ? 3 - (size_t)sent : 3) < 0)
		fail("a refused client could not be told");
	close(sock);
}

/*
 * Why a client counts as gone, NULL if it does not: it never writes, so the end of the stream says
 * so, and any byte.
 */
static const char *client_ended(int sock)
{
	char byte;
	ssize_t n = recv(sock, &byte, 1, MSG_DONTWAIT | MSG_PEEK); /* for the next look as well */

	if (n == 0)
		return "closed the connection";
	if (n > 0)
		return "sent data, which no ivshmem client does";
	if (errno == EAGAIN || errno == EINTR || errno == ENOMEM || errno == ENOBUFS)
		return NULL;
	return errno == ECONNRESET ? "ended before it had read all (Connection reset by peer)"
				   : strerror(errno);
}

static void client_welcome(struct server *s, int sock)
{
	const char *ended = client_ended(sock);
	int id;

	if (ended) {
		say("a client has gone before it was greeted: %s", ended);
		close(sock);
		return;
	}
	if (sock >= PEERS_END) {
		client_refuse(s, sock, "no more peers fit into one server");
		return;
	}
	if (!store_has_size(s)) {
		client_refuse(s, sock, "%s has another size than the nodes know", s->opt.object);
		return;
	}
	id = id_pick(s);
	if (id < 0) {
		client_refuse(s, sock,
			      "no ID is left until ID %d leaves, which has seen all others leave",
			      peer_at(s, s->order[0])->id);
		return;
	}
	socket_buffer_limit(sock);
	/* Urgent data is data: else some kernels would report it and not let it be read. */
	if (setsockopt(sock, SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)) < 0)
		fail("cannot prepare a socket");
	if (!end_watch(s, sock) || !eventfds_open(peer_at(s, sock), s->ledger->vectors)) {
		client_refuse(s, sock, "%s", strerror(errno));
		return;
	}
	peer_join(s, sock, id, false);
}

/*
 * Welcomes those who wait, some or all. Where no descriptor is left, the spare one is given up for
 * a moment to refuse a client; if the kernel has no room even so, accepting pauses. Returns whether
 * nobody waits any more.
 */
static bool peers_accept(struct server *s, bool all)
{
	if (s->null < 0)
		s->null = spare_open();
	if (s->spare < 0)
		s->spare = spare_open();
	for (int i = 0; i < ACCEPTS_PER_ROUND || all; i++) {
		int sock = client_accept(s->ledger->listener), error = errno;
		bool full = sock < 0 && (error == EMFILE || error == ENFILE);

		if (full) {
			spare_close(s);
			sock = client_accept(s->ledger->listener);
			if (sock >= 0)
				client_refuse(s, sock, "%s", strerror(error));
			error = errno;
			s->spare = spare_open();
		} else if (sock >= 0) {
			client_welcome(s, sock);
		}
		if (sock >= 0 || error == ECONNABORTED || error == EINTR)
			continue;
		if (error == EAGAIN || error == EINVAL /* shut down, and empty */ || s->stop_at)
			return true;
		errno = error;
		if (!full)
			fail("cannot accept a client");
		timer_start(s, TIMER_ACCEPT, ACCEPT_RETRY_MS);
		return false;
	}
	return false;
}

/* Turns away who has connected to a listening socket that nobody will serve (hazard 3). */
static void clients_turn_away(const struct server *s, int listener, const char *why)
{
	int sock;

	while ((sock = client_accept(listener)) >= 0)
		client_refuse(s, sock, "%s", why);
}

/* Notices who has gone. */
static void peers_read(struct server *s)
{
	struct epoll_event ends[FD_SETSIZE];
	int n = epoll_wait(s->ledger->ends, ends, FD_SETSIZE, 0);

	for (int i = 0; i < n; i++) {
		int sock = ends[i].data.fd;
		const char *why = client_ended(sock);

		if (!FD_ISSET(sock, &s->present))
			close(sock); /* the image before was about to make or to free a peer */
		else if (why)
			peer_leave(s, sock, why);
	}
}

/* Notices who can be sent more. */
static void peers_wake(struct server *s, const fd_set *writable)
{
	set_each (sock, writable) {
		FD_CLR(sock, &s->blocked);
		FD_SET(sock, &s->due);
	}
	if (timer_ended(s, TIMER_SEND)) {
		set_each (sock, &s->starved)
			FD_SET(sock, &s->due);
		FD_ZERO(&s->starved);
	}
}

/* Logs who is connected. */
static void peers_list(const struct server *s)
{
	size_t waiting = 0;

	for (size_t i = 0; i < s->count; i++) {
		const struct peer *p = peer_at(s, s->order[i]);
		size_t owed = peer_owed(s, p);

		say("ID %d: %s, connected for %" PRId64 " s, %zu message%s waiting%s", p->id,
		    peer_text(s->order[i]).text, (now_ms() - p->joined_ms) / 1000, owed, S(owed),
		    !supervised(s)            ? ""
		    : !p->stored              ? ", not stored yet"
		    : p->stored & PARCEL_ANEW ? ", not stored anew yet"
					      : "");
		waiting += owed;
	}
	say("%zu node%s connected, %" PRIu64 " joined so far, %zu message%s waiting", s->count,
	    S(s->count), s->ledger->joins, waiting, S(waiting));
	if (store_has_size(s) && s->ledger->store >= 0 && !s->opt.anonymous &&
	    !file_stands_at(s->ledger->store, s->opt.object))
		fail("what the nodes share does not stand at %s any more", s->opt.object);
}

/*
 * Children: what they do, and what comes of it. The loop never waits for one.
 */

/* Starts a child that does some work, which purpose names; its process becomes *pid. */
static bool child_start(struct server *s, int32_t *pid, void (*work)(struct server *s),
			const char *purpose)
{
	pid_t child = fork();
	sigset_t none;

	if (child == 0) {
		log_forget();
		setpgid(0, 0); /* a group with all that it starts */
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		work(s);
		_exit(EXIT_FAILURE);
	}
	if (child < 0)
		return fail("cannot start a process to %s", purpose);
	*pid = child;
	return true;
}

/* In a child: nothing of ours but the object may outlive us in here, above all not the locks. */
static void flush_work(struct server *s)
{
	int fd = s->ledger->disk;

	close_range(0, (unsigned int)fd - 1, 0);
	close_range((unsigned int)fd + 1, UINT_MAX, 0);
	_exit(fdatasync(fd) < 0 ? errno : 0);
}

/* Has the object flushed once more after a while, for it may not have been. */
static void flush_again(struct server *s)
{
	s->ledger->flush_due = true;
	timer_start(s, TIMER_FLUSH, FLUSH_RETRY_MS);
}

/* Flushes the object to disk if that is due. While a child is at work, the next waits for it. */
static void flush_start(struct server *s)
{
	struct ledger *l = s->ledger;

	if (s->opt.sync) {
		l->flush_due |= timer_ended(s, TIMER_SYNC);
		timer_start(s, TIMER_SYNC, (int64_t)s->opt.sync * 1000);
	}
	timer_ended(s, TIMER_FLUSH);
	if (!l->flush_due || l->flusher || l->timers[TIMER_FLUSH])
		return;
	l->flush_due = false;
	if (l->disk >= 0 && !child_start(s, &l->flusher, flush_work, "flush the object to disk"))
		flush_again(s);
}

static void flush_ended(struct server *s, int status)
{
	s->ledger->flusher = 0;
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
	if (errno)
		fail("cannot flush %s to disk", s->opt.object);
	if (errno == EINTR)
		flush_again(s);
}

/* In a child: what the socket's path leads through may be on a file system that does not answer. */
static void look_work(struct server *s)
{
	close_range(0, UINT_MAX, 0); /* what is ours must not stay open here */
	_exit(socket_stands(s) ? EXIT_SUCCESS : EXIT_FAILURE);
}

static void look_ended(struct server *s, int status)
{
	s->looker = 0;
	s->socket_doubted |= WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FAILURE;
	if (s->socket_doubted)
		timer_start(s, TIMER_SOCKET, 0);
}

/*
 * Waits for a child when the server ends; whoever sends another signal to end it has waited long
 * enough. Returns whether the child has ended.
 */
static bool child_wait(const struct server *s, pid_t child, int *status)
{
	struct pollfd signals = {.fd = s->ledger->signals, .events = POLLIN};
	struct signalfd_siginfo info;
	pid_t ended;

	while ((ended = TEMP_FAILURE_RETRY(waitpid(child, status, WNOHANG))) == 0) {
		poll(&signals, 1, -1);
		while (read(signals.fd, &info, sizeof(info)) == sizeof(info))
			if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT ||
			    info.ssi_signo == SIGQUIT)
				return false;
	}
	return ended == child;
}

/* Waits for the flush under way, if there is one: the kernel tells of an error but once. */
static bool flush_wait(struct server *s)
{
	int status;

	if (!s->ledger->flusher)
		return true;
	if (!child_wait(s, s->ledger->flusher, &status))
		return complain("ending before %s is on disk, which still goes on: a power cut "
				"could lose what nodes have written",
				s->opt.object);
	flush_ended(s, status);
	return true;
}

/* Flushes the object for the last time, in a child all the same: a disk may be dead. */
static void flush_finish(struct server *s)
{
	struct ledger *l = s->ledger;

	if (!flush_wait(s) || l->disk < 0)
		return;
	if (child_start(s, &l->flusher, flush_work, "flush the object to disk, doing so here"))
		flush_wait(s);
	else if (fdatasync(l->disk) < 0)
		fail("cannot flush %s to disk", s->opt.object);
}

/*
 * Restart in place: the process executes the program that is now on disk, which takes over all that
 * is open, and the ledger. First a child tries whether that program can be executed, takes our
 * options and knows our ledger: exec cannot be undone, and a program that fails then would take the
 * nodes' server with it.
 */

/* The status with which a program says that it can take over; no other program is likely to. */
#define CAN_TAKE_OVER 86

/*
 * The absolute path of this program, as it was started: that is where an upgrade puts the next one.
 * A program that was started by a descriptor is found by the kernel's word for it. NULL with errno;
 * stays allocated.
 */
static char *program_path(void)
{
	static const char self[] = "/proc/self/exe";
	const char *started = (const char *)getauxval(AT_EXECFN);
	char path[PATH_MAX];
	ssize_t n;

	if (strncmp(started, "/dev/fd/", 8) != 0)
		return path_absolute(started);
	n = readlink(self, path, sizeof(path) - 1);
	path[n < 0 ? 0 : n] = '\0';
	return strdup(access(path, X_OK) == 0 ? path : self);
}

/* Lets everything that is served survive an exec, or not. Returns false if any is not open. */
static bool descriptors_keep(struct server *s, bool keep)
{
	const struct ledger *l = s->ledger;
	const int own[] = {s->ledger_fd, l->store, l->lock,    l->disk, l->pidfile,
			   l->listener,  l->watch, l->signals, l->ends};
	int flags = keep ? 0 : FD_CLOEXEC;
	bool open = true;

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		if (own[i] >= 0)
			open = fcntl(own[i], F_SETFD, flags) == 0 && open;
	set_each (sock, &s->present) {
		open = fcntl(sock, F_SETFD, flags) == 0 && open;
		for (unsigned int v = 0; v < l->vectors; v++)
			open = fcntl(peer_at(s, sock)->eventfds[v], F_SETFD, flags) == 0 && open;
	}
	return open;
}

/* Executes the program on disk with the ledger; returns only if that fails, having said so. */
static void program_execute(struct server *s, const char *purpose)
{
	char value[64];

	snprintf(value, sizeof(value), "%s %d %d %zu %" PRId64, purpose, s->ledger_fd, background,
		 log_lost(), s->supervisor.reloading_us);
	if (fcntl(s->ledger_fd, F_SETFD, 0) == 0 && setenv(LEDGER_VARIABLE, value, 1) == 0)
		execv(s->program, s->argv);
	fail("cannot execute %s, going on without a restart", s->program);
	unsetenv(LEDGER_VARIABLE);
}

/* Kills the program that is being tried, if there is one, with all that it has started. */
static void trial_kill(struct server *s)
{
	pid_t trial = s->trial;

	if (trial && kill(-trial, SIGKILL) < 0)
		kill(trial, SIGKILL); /* so young that it has no group of its own yet */
	s->trial = 0;
	s->ledger->timers[TIMER_TRIAL] = 0;
}

/* In a child. */
static void trial_work(struct server *s)
{
	program_execute(s, "check");
}

/* Tries whether the program on disk can take over. */
static void trial_start(struct server *s)
{
	if (s->stop_at)
		return;
	trial_kill(s);
	supervisor_reload(s);
	if (child_start(s, &s->trial, trial_work,
			"try the program on disk, going on without a restart"))
		timer_start(s, TIMER_TRIAL, TRIAL_MS);
}

/* Executes the program, if the trial has found that it can take over. */
static void trial_ended(struct server *s, int status)
{
	if (status != W_EXITCODE(CAN_TAKE_OVER, 0)) {
		complain("%s cannot take over, going on without a restart: it ended with %s %d",
			 s->program, WIFEXITED(status) ? "status" : "signal",
			 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
		return;
	}
	if (s->stop_at)
		return;
	if (descriptors_keep(s, true))
		program_execute(s, "resume");
	else
		fail("cannot keep descriptors open, going on without a restart");
	descriptors_keep(s, false);
}

/*
 * Takes what has come of children that have ended. Others may be there that are not ours. What a
 * trial has left behind is killed while the child's number is still its own: once it has been
 * waited for, another process may get that.
 */
static void children_reap(struct server *s)
{
	for (;;) {
		siginfo_t child = {.si_pid = 0};
		bool tried;
		int status;

		if (TEMP_FAILURE_RETRY(waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT)) < 0 ||
		    !child.si_pid)
			return;
		tried = child.si_pid == s->trial;
		if (tried)
			trial_kill(s);
		if (TEMP_FAILURE_RETRY(waitpid(child.si_pid, &status, WNOHANG)) <= 0)
			return;
		if (child.si_pid == s->ledger->flusher)
			flush_ended(s, status);
		else if (tried)
			trial_ended(s, status);
		else if (child.si_pid == s->looker)
			look_ended(s, status);
	}
}

/*
 * The loop
 */

/* Blocks the signals that we act upon and gets them as a descriptor instead. */
static bool signals_open(struct server *s)
{
	static const int ours[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD};
	struct ledger *l = s->ledger;
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
		signal(ours[i], SIG_DFL); /* an ignored signal would never reach the descriptor */
		sigaddset(&set, ours[i]);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	l->signals = signalfd(l->signals, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return l->signals >= 0 || fail("cannot create a signalfd");
}

/*
 * Starts to end: nobody can connect any more, who has connected is greeted, and the greetings under
 * way get a moment to be sent and read (hazard 3). Where a supervisor has made the socket, who
 * waits there is for the next server.
 */
static void server_stop(struct server *s, const char *why)
{
	if (s->stop_at && !s->handover)
		return;
	s->handover = false;
	s->leave_waiting = !s->ledger->socket_ino;
	if (s->ledger->store < 0)
		say("%s: ending", why);
	else
		say("%s: ending, %s %s", why, s->opt.object,
		    s->opt.anonymous ? "goes with its last user" : "stays");
	supervisor_stop(s);
	socket_remove(s);
	s->stop_at = now_ms() + GREETING_MS;
}

/*
 * Ends as well, but for a successor that gets from the supervisor what this one serves, and so
 * changes nothing, once all has been stored: that is waited for as long as anything comes of it.
 */
static void server_hand_over(struct server *s, const char *why)
{
	if (!supervised(s)) {
		server_stop(s, why);
	} else if (!s->stop_at) {
		say("%s: ending, a successor is to take over %zu node%s", why, s->count,
		    S(s->count));
		supervisor_stop(s);
		supervisor_doubt(s);
		s->leave_waiting = s->handover = true;
		s->stop_at = now_ms() + STORE_MS;
	}
}

/* Somebody has done something to our socket: have it looked at. */
static void socket_changed(struct server *s)
{
	char events[1024];

	while (read(s->ledger->watch, events, sizeof(events)) > 0)
		;
	if (socket_stands(s))
		return;
	s->socket_doubted = true;
	timer_start(s, TIMER_SOCKET, SOCKET_LOST_MS);
}

/*
 * Listens on another socket from here on. By the old one, which may have been moved, nobody can
 * connect any more, and who waits there is served before it is closed.
 */
static bool listener_replace(struct server *s, int fd)
{
	shutdown(s->ledger->listener, SHUT_RDWR);
	peers_accept(s, true);
	s->ledger->kept[OWN_LISTENER] = false;
	s->supervisor.own_step = 0;
	return dup3(fd, s->ledger->listener, O_CLOEXEC) >= 0 ||
	       fail("cannot replace the socket %s", s->opt.socket);
}

/* Makes the socket anew. */
static bool socket_renew(struct server *s, bool quiet)
{
	int32_t fd;
	bool done;

	muted = quiet;
	done = socket_make(s, &fd);
	muted = false;
	if (done) {
		stale_leave(s, true);
		done = listener_replace(s, fd);
		socket_watch(s);
	} else if (fd >= 0) {
		clients_turn_away(s, fd, "the socket could not be made");
	}
	if (fd >= 0)
		close(fd);
	return done;
}

/* Makes our socket again if somebody has removed it. Says so once, and tries until it works. */
static void socket_check(struct server *s)
{
	bool lost = s->socket_lost;

	s->socket_doubted = false;
	s->socket_lost = !s->stop_at && !socket_stands(s);
	if (!s->socket_lost)
		return;
	if (!lost)
		fail("our socket is gone, making it again: %s", s->opt.socket);
	s->socket_lost = !socket_renew(s, lost);
	if (!s->socket_lost) {
		say("listening on %s again", s->opt.socket);
		return;
	}
	if (!lost)
		complain("nobody can connect: trying again every second");
	timer_start(s, TIMER_SOCKET, SOCKET_RETRY_MS);
}

/*
 * Looks after our socket. The kernel tells what is done to it or to its folder; but not that a
 * folder further up has been moved, a link on the way leads elsewhere, or something is mounted over
 * it: a child looks for that, now and then.
 */
static void socket_look(struct server *s)
{
	if (s->socket_lost || s->socket_doubted)
		socket_check(s);
	else if (!s->looker && s->ledger->socket_ino && !s->stop_at)
		child_start(s, &s->looker, look_work, "look after the socket");
	timer_start(s, TIMER_SOCKET, SOCKET_LOOK_MS);
}

static void signals_take(struct server *s)
{
	struct signalfd_siginfo info;

	while (read(s->ledger->signals, &info, sizeof(info)) == sizeof(info)) {
		switch (info.ssi_signo) {
		case SIGUSR1:
			socket_check(s);
			peers_list(s);
			break;
		case SIGHUP:
			socket_check(s);
			trial_start(s);
			break;
		case SIGUSR2: server_hand_over(s, strsignal((int)info.ssi_signo)); break;
		case SIGCHLD: children_reap(s); break;
		default: server_stop(s, strsignal((int)info.ssi_signo));
		}
	}
}

/* Whether the server is to end, and what is under way has been done or has had its time. */
static bool server_stopped(const struct server *s)
{
	if (!s->stop_at)
		return false;
	if (s->handover)
		return !s->ledger->timers[TIMER_STORE] || now_ms() >= s->stop_at;
	set_each (sock, &s->present)
		if (now_ms() < s->stop_at && !peer_has_read(s, sock))
			return false;
	return true;
}

/* Milliseconds until the next timer ends; -1: none is running. */
static int64_t timers_wait(const struct server *s)
{
	const int64_t *timers = s->ledger->timers;
	int64_t next = s->stop_at ? now_ms() + STOP_POLL_MS : INT64_MAX;

	if (s->supervisor.ping_ms && s->supervisor.ping_at < next)
		next = s->supervisor.ping_at;
	for (enum timer timer = 0; timer < TIMERS; timer++)
		if (timers[timer] && timers[timer] < next)
			next = timers[timer];
	if (logging.bytes && now_ms() + LOG_RETRY_MS < next)
		next = now_ms() + LOG_RETRY_MS;
	if (next == INT64_MAX)
		return -1;
	next -= now_ms();
	return next > 0 ? next : 0;
}

/* Waits until there is something to do. */
static void server_wait(struct server *s, fd_set *readable, fd_set *writable)
{
	const struct ledger *l = s->ledger;
	int64_t wait = timers_wait(s);
	struct timeval timeout = {.tv_sec = wait / 1000, .tv_usec = wait % 1000 * 1000};

	FD_ZERO(readable);
	*writable = s->blocked;
	supervisor_watch(s, writable);
	FD_SET(l->signals, readable);
	FD_SET(l->ends, readable);
	if (l->watch >= 0)
		FD_SET(l->watch, readable);
	/* One that was retired is readable for ever, and nobody comes. */
	if (!l->timers[TIMER_ACCEPT] && !s->stop_at && l->socket_ino != SOCKET_NOWHERE)
		FD_SET(l->listener, readable);
	if (select(FD_SETSIZE, readable, writable, NULL, wait < 0 ? NULL : &timeout) >= 0)
		return;
	fail("cannot wait for clients");
	FD_ZERO(readable);
	FD_ZERO(writable);
	nanosleep(&(struct timespec){.tv_nsec = SEND_RETRY_MS * 1000000L}, NULL);
}

/* Serves until a signal ends it. Sends first: after a restart, messages are waiting. */
static void serve(struct server *s)
{
	const struct ledger *l = s->ledger;
	fd_set readable, writable;

	assert(l->signals >= 0 && l->listener >= 0);
	timer_start(s, TIMER_SOCKET, SOCKET_LOOK_MS);
	for (;;) {
		peers_send(s); /* first: that somebody has gone may only show here */
		flush_start(s);
		supervisor_update(s);
		supervisor_ping(s);
		if (server_stopped(s))
			return;
		if (logging.bytes)
			log_settle();
		server_wait(s, &readable, &writable);
		if (FD_ISSET(l->signals, &readable))
			signals_take(s);
		if (timer_ended(s, TIMER_TRIAL)) {
			complain("%s did not say in %d s that it can take over and was killed, "
				 "going on without a restart",
				 s->program, TRIAL_MS / 1000);
			trial_kill(s);
		}
		supervisor_wake(s, &writable);
		peers_wake(s, &writable); /* first: who has gone shows as writable, too */
		if (FD_ISSET(l->ends, &readable))
			peers_read(s);
		if (l->watch >= 0 && FD_ISSET(l->watch, &readable))
			socket_changed(s);
		if (timer_ended(s, TIMER_SOCKET))
			socket_look(s);
		/* Whoever waits when the server ends is greeted: nobody can join them any more. */
		if (s->stop_at ? !s->leave_waiting
			       : timer_ended(s, TIMER_ACCEPT) || FD_ISSET(l->listener, &readable))
			peers_accept(s, s->stop_at);
	}
}

/*
 * Taking over from a process that has ended
 *
 * What the supervisor has kept are the ledger and the descriptors; the numbers that these had are
 * in the ledger. A peer's socket gets its number again, since that is where the peer stands, and
 * all else makes room for it. Everything is only looked at, not taken out of what the supervisor
 * keeps, so the next process finds the same if this one dies as well.
 *
 * Where no node is left, or our options are not theirs, a start is a start, with a ledger of its
 * own: only the listening socket goes on, the serial numbers, since parcels are called by them, and
 * the departures of which the supervisor has yet to be told. The old ledger stays as it is, and
 * with the supervisor, until the start has succeeded.
 */

/* The parcel of a peer, which may have left, or may not have become one. */
struct parcel {
	uint64_t serial;
	int fd;      /* -1: done with */
	int sock;    /* where the peer stands; -1: nowhere */
	bool second; /* it has the second of its names */
	bool both;   /* and there is one by the other name, too */
};

/* What a supervisor passes to us; -1: nothing. */
struct passed {
	int own[OWNS];
	int listener; /* of a socket unit */
	size_t count;
	struct parcel *parcels;
	const struct parcel *ungreeted; /* that of a client still to be welcomed, or NULL */
	int waiting;                    /* his socket, for a start to welcome him */
	bool regained;                  /* the object was not passed, and has been opened again */
	bool nodes;                     /* somebody is there still */
	bool fits;                      /* and is taken over, since our options are his */
	const char *why;                /* if not: why nodes are let go */
	const struct ledger *old;       /* in which they stand then, or NULL */
};

/* How many descriptors have been passed to this very process, from 3 on (sd_listen_fds(3)). */
static unsigned int passed_count(void)
{
	const char *process = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	uint64_t number;
	char *end;

	if (!process || !digits_parse(process, &number, &end) || *end ||
	    number != (uint64_t)getpid() || !count || !digits_parse(count, &number, &end) || *end ||
	    number > INT_MAX / 2)
		return 0;
	for (unsigned int i = 0; i < number; i++) /* before any of ours can get such a number */
		if (fcntl(STDERR_FILENO + 1 + (int)i, F_SETFD, FD_CLOEXEC) < 0 && errno == EBADF)
			return i; /* there are no more */
	return (unsigned int)number;
}

/* Whether a descriptor is a UNIX socket that listens for streams. */
static bool is_listener(int fd)
{
	static const int options[] = {SO_DOMAIN, SO_TYPE, SO_ACCEPTCONN};
	static const int wanted[] = {AF_UNIX, SOCK_STREAM, 1};
	socklen_t length = sizeof(int);
	int value;

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (getsockopt(fd, SOL_SOCKET, options[i], &value, &length) < 0 ||
		    value != wanted[i])
			return false;
	return true;
}

/* Takes one descriptor that has been passed by this name. Whatever is not for us is closed. */
static bool passed_take(struct passed *in, int fd, const char *name)
{
	struct stat st;
	char *end;

	for (enum own i = 0; i < OWNS; i++)
		if (!strcmp(name, own_names[i])) {
			if (in->own[i] >= 0)
				close(fd); /* the same once more */
			else
				in->own[i] = fd;
			return true;
		}
	if (!strncmp(name, PARCEL, strlen(PARCEL)) &&
	    digits_parse(name + strlen(PARCEL), &in->parcels[in->count].serial, &end) && !*end &&
	    in->parcels[in->count].serial > 0) {
		in->parcels[in->count].sock = -1;
		in->parcels[in->count].second = name[strlen(PARCEL)] == '0';
		in->parcels[in->count++].fd = fd;
		return true;
	}
	if (in->listener < 0 && is_listener(fd)) {
		fcntl(fd, F_SETFL, O_NONBLOCK);
		in->listener = fd;
		return true;
	}
	if (fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode))
		return complain("cannot use the socket %s that was passed: a socket unit has one "
				"ListenStream=, which is a path, and not Accept=yes",
				name);
	close(fd);
	return true;
}

/* Sorts what has been passed. */
static bool passed_sort(struct passed *in, unsigned int count)
{
	char *names = getenv("LISTEN_FDNAMES"), *name;
	bool fine = true;

	*in = (struct passed){.own = {-1, -1, -1, -1}, .listener = -1, .waiting = -1};
	in->parcels = calloc(count + 1, sizeof(in->parcels[0]));
	if (!in->parcels)
		return fail("cannot take over %u descriptors", count);
	for (unsigned int i = 0; i < count; i++) {
		int fd = STDERR_FILENO + 1 + (int)i;

		name = strsep(&names, ":");
		fine = passed_take(in, fd, name ? name : "") && fine;
	}
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return fine;
}

/* Names a node that is let go, since it would not know for sure who lives. */
static void node_name(const struct peer *p, const char *why)
{
	say("ID %d left: %s: restart the node, process %d", p->id, why, (int)p->process);
}

/* How many peers can be taken over with so many open descriptors: each takes first its socket and
 * its parcel, and in the end its socket and its eventfds; a parcel that is looked into takes some
 * as well, and so does what is our own. */
static size_t peers_room(const struct server *s, rlim_t limit)
{
	size_t vectors = s->ledger->vectors, own = 24 + PARCEL_EVENTFDS + vectors;

	return limit < own ? 0 : (limit - own) / (1 + (vectors ? vectors : 1));
}

/* Closes a parcel that is done with: the supervisor has it still. */
static void parcel_close(struct parcel *parcel)
{
	if (parcel->fd >= 0)
		close(parcel->fd);
	parcel->fd = -1;
}

/* Closes all parcels but those of peers that can be taken over where only so many descriptors may
 * be open. Adds to the sets the sockets of these peers, and of those for whom that is too few. */
static void parcels_choose(const struct server *s, struct passed *in, fd_set *kept, fd_set *few)
{
	struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
	size_t room;

	getrlimit(RLIMIT_NOFILE, &limit);
	room = peers_room(s, limit.rlim_cur);
	for (size_t i = 0; i < in->count; i++) {
		struct parcel *parcel = &in->parcels[i];

		if (parcel->sock >= 0 && room > 0 && (rlim_t)parcel->sock < limit.rlim_cur) {
			FD_SET(parcel->sock, kept);
			room--;
		} else if (parcel != in->ungreeted) {
			if (parcel->sock >= 0)
				FD_SET(parcel->sock, few);
			parcel_close(parcel);
		}
	}
}

/* Why there is no parcel of a peer. */
static const char *parcel_missing(const struct peer *p)
{
	return p->stored ? "it had been stored, and the supervisor has lost that (is "
			   "FileDescriptorStoreMax= large enough?)"
			 : "it had not been stored when the server died";
}

/* Gives up the peers that cannot be taken over: nothing stands at their numbers. */
static void peers_give_up(struct server *s, struct passed *in)
{
	static const char many[] = "too few descriptors may be open to take it over (ulimit -n, "
				   "LimitNOFILE=)";
	struct ledger *l = s->ledger;
	fd_set kept, few;

	FD_ZERO(&kept);
	FD_ZERO(&few);
	parcels_choose(s, in, &kept, &few);
	/* Who has left already does not do so once more: first, while that can be told. */
	for (int sock = 0; sock < (int)l->slots; sock++)
		if (peer_at(s, sock)->serial == departed_last(l))
			peer_at(s, sock)->serial = 0;
	for (int sock = 0; sock < (int)l->slots; sock++) {
		struct peer *p = peer_at(s, sock);

		if (!p->serial || FD_ISSET(sock, &kept))
			continue;
		node_name(p, FD_ISSET(sock, &few) ? many : parcel_missing(p));
		departure_note(l, p->serial, p->id);
		p->serial = 0;
		l->flush_due = true;
	}
}

/* Gives a descriptor another number if its own is that of a peer, which /dev/null then holds. */
static bool descriptor_vacate(const struct server *s, int *fd)
{
	int number = *fd, other;

	if (number < 0 || number >= FD_SETSIZE || !peer_at(s, number)->serial)
		return true;
	other = fcntl(number, F_DUPFD_CLOEXEC, 0);
	if (other < 0)
		return fail("cannot take over: there is no room for the descriptors of the nodes");
	*fd = other;
	return dup3(s->null, number, O_CLOEXEC) >= 0 ||
	       fail("cannot take over: cannot hold the number of a node's socket");
}

/*
 * Moves all that is open to numbers at which no peer stands now, out of select's range if possible:
 * what stayed there would be taken for that peer's. /dev/null holds these until the sockets come.
 */
static bool passed_make_room(struct server *s, struct passed *in)
{
	int *const own[] = {&in->own[OWN_LISTENER],
			    &in->listener,
			    &s->null,
			    &s->spare,
			    &s->supervisor.sock,
			    &logging.own,
			    &in->own[OWN_LEDGER],
			    &in->own[OWN_OBJECT],
			    &in->own[OWN_LOCK]};
	const size_t listeners = 2; /* at which select is to look */
	const size_t owns = sizeof(own) / sizeof(own[0]), all = owns + in->count;

	for (size_t i = listeners; i < all; i++) {
		int *fd = i < owns ? own[i] : &in->parcels[i - owns].fd;

		*fd = descriptor_raise(*fd, FD_SETSIZE);
	}
	for (int sock = 0; sock < (int)s->ledger->slots; sock++)
		if (peer_at(s, sock)->serial && fcntl(sock, F_GETFD) < 0 &&
		    dup3(s->null, sock, O_CLOEXEC) < 0)
			return fail("cannot take over: cannot hold the number of a node's socket");
	for (size_t i = 0; i < all; i++)
		if (!descriptor_vacate(s, i < owns ? own[i] : &in->parcels[i - owns].fd))
			return false;
	s->ledger_fd = in->own[OWN_LEDGER];
	return true;
}

/*
 * Opens the socket that lies in a parcel, or the eventfds, or both, and leaves them there; NULL:
 * not this. Returns false with errno, and nothing is open.
 */
static bool parcel_open(const struct server *s, int parcel, int *sock, int32_t *eventfds)
{
	int all[PARCEL_MAX + SCM_DESCRIPTORS] = {0}, n = 1;
	size_t count = 0, wanted = PARCEL_EVENTFDS + s->ledger->vectors;
	bool done;

	if (setsockopt(parcel, SOL_SOCKET, SO_PEEK_OFF, &(int){0}, sizeof(int)) < 0)
		return false;
	while (count < wanted && (n = scm_peek(parcel, &all[count])) > 0)
		count += (size_t)n;
	done = count == wanted;
	if (!done)
		errno = n < 0 ? errno : EPROTO;
	for (size_t i = 0; i < count; i++)
		if (done && i == PARCEL_SOCKET && sock)
			*sock = all[i];
		else if (done && i >= PARCEL_EVENTFDS && eventfds)
			eventfds[i - PARCEL_EVENTFDS] = descriptor_raise(all[i], FD_SETSIZE);
		else
			close(all[i]);
	return done;
}

/* Where the peer with this serial number stands; -1: nowhere. */
static int peer_find(const struct server *s, uint64_t serial)
{
	for (int sock = 0; sock < (int)s->ledger->slots; sock++)
		if (peer_at(s, sock)->serial == serial)
			return sock;
	return -1;
}

/* Whether a peer with this serial number has left. */
static bool peer_departed(const struct ledger *l, uint64_t serial)
{
	uint64_t d = l->departures > IDS ? l->departures - IDS : 0;

	while (d < l->departures && l->ring[d % IDS].serial != serial)
		d++;
	return d < l->departures;
}

/* Whether the peer that a parcel is of is there still; if that cannot be seen, it counts. */
static bool parcel_lives(const struct server *s, const struct parcel *parcel)
{
	int sock = -1;
	bool lives;

	if (!parcel_open(s, parcel->fd, &sock, NULL))
		return true;
	lives = !client_ended(sock);
	close(sock);
	return lives;
}

/*
 * Has the supervisor drop a parcel that is nobody's. It counts as that of a departure, of which
 * nobody is told who has not reached that serial number; of what was lost in some other way, and
 * somebody may have heard of, the supervisor is told once.
 */
static void parcel_disown(struct server *s, uint64_t serial)
{
	struct ledger *l = s->ledger;

	for (uint64_t d = l->forgotten; d < l->departures; d++)
		if (l->ring[d % IDS].serial == serial)
			return;
	if (serial > l->joins)
		l->joins = serial; /* so no other gets its name */
	set_each (sock, &s->present)
		if (peer_at(s, sock)->place.reached >= serial) {
			supervisor_drop(s, parcel_name(serial, false).text);
			supervisor_drop(s, parcel_name(serial, true).text);
			return;
		}
	departure_note(l, serial, 0);
}

/* Gives a peer back its socket, at the number where it stands. Returns false with errno. */
static bool parcel_place(const struct server *s, const struct parcel *parcel)
{
	int fd = -1, error;
	bool done;

	if (!parcel_open(s, parcel->fd, &fd, NULL))
		return false;
	done = dup3(fd, parcel->sock, O_CLOEXEC) >= 0;
	error = errno;
	close(fd);
	errno = error;
	return done;
}

/* Makes a peer of a client that was about to become one when the server before ended. */
static void parcel_join(struct server *s, const struct parcel *parcel)
{
	int32_t eventfds[VECTORS_MAX];
	int fd = -1, id = id_pick(s);

	if (!parcel_open(s, parcel->fd, &fd, eventfds)) {
		fail("cannot welcome a client that had connected to the server before");
		return;
	}
	assert(id >= 0); /* one had been found */
	fd = descriptor_lower(fd);
	if (fd >= PEERS_END) {
		client_refuse(s, fd, "no more peers fit into one server");
		for (unsigned int v = 0; v < s->ledger->vectors; v++)
			close(eventfds[v]);
		return;
	}
	memcpy(peer_at(s, fd)->eventfds, eventfds, s->ledger->vectors * sizeof(eventfds[0]));
	s->ledger->joins = parcel->serial - 1;
	peer_join(s, fd, id, true);
	if (!end_watch(s, fd))
		peer_let_go(s, fd, strerror(errno));
}

/* Finds out whose the parcels are, and whether any of these peers is there still. */
static void parcels_find(const struct server *s, struct passed *in)
{
	const struct ledger *l = s->ledger;
	struct parcel *found[FD_SETSIZE] = {NULL};

	for (size_t i = 0; i < in->count; i++) {
		struct parcel *parcel = &in->parcels[i], **first;

		if (parcel->serial != departed_last(l))
			parcel->sock = peer_find(s, parcel->serial);
		first = parcel->sock < 0 ? NULL : &found[parcel->sock];
		if (first && *first) { /* by its other name */
			(*first)->both = true;
			parcel->sock = -1;
			parcel_close(parcel);
			continue;
		}
		if (first)
			*first = parcel;
		if (parcel->sock < 0 && parcel->serial == l->joins &&
		    !peer_departed(l, parcel->serial))
			in->ungreeted = parcel;
		in->nodes = in->nodes || (parcel->sock >= 0 && parcel_lives(s, parcel));
	}
}

/*
 * Takes over the peers, but for those of which we cannot get all. First all sockets get their
 * numbers; then eventfds may have any.
 */
static void peers_inherit(struct server *s, struct passed *in)
{
	peers_restore(s);
	for (size_t i = 0; i < in->count; i++) {
		const struct parcel *parcel = &in->parcels[i];

		if (parcel->sock < 0 || !FD_ISSET(parcel->sock, &s->present))
			continue;
		if (parcel_place(s, parcel))
			peer_at(s, parcel->sock)->stored =
				(parcel->second ? PARCEL_SECOND : PARCEL_FIRST) |
				(parcel->both ? PARCEL_BOTH : 0);
		else
			peer_let_go(s, parcel->sock, strerror(errno));
		s->supervisor.behind |= parcel->both;
	}
	for (size_t i = 0; i < in->count; i++) {
		struct parcel *parcel = &in->parcels[i];

		if (parcel->sock < 0)
			continue;
		if (FD_ISSET(parcel->sock, &s->present) &&
		    !parcel_open(s, parcel->fd, NULL, peer_at(s, parcel->sock)->eventfds))
			peer_let_go(s, parcel->sock, strerror(errno));
		parcel_close(parcel);
	}
}

/* Has the ends of all peers watched: a server that takes over has some. */
static bool peers_watch(struct server *s)
{
	s->ledger->ends = epoll_create1(EPOLL_CLOEXEC);
	if (s->ledger->ends < 0)
		return fail("cannot create an epoll descriptor");
	set_each (sock, &s->present)
		if (!end_watch(s, sock))
			peer_let_go(s, sock, strerror(errno));
	return true;
}

/* Whether the object of the ledger stands at the path in our options; if not, errno is ENOENT, or
 * says why nobody knows. */
static bool object_stands(const struct server *s)
{
	const struct ledger *l = s->ledger;
	struct stat st;

	if (stat(s->opt.object, &st) < 0)
		return false;
	errno = ENOENT;
	return st.st_dev == l->object_dev && st.st_ino == l->object_ino;
}

/*
 * Sees to it that what was passed as the object, and as its lock, is that; and opens the object
 * again if it was lost, where it stands at its path. Returns false with errno, as object_stands.
 */
static bool object_regain(const struct server *s, struct passed *in)
{
	const struct options *o = &s->opt;
	int *object = &in->own[OWN_OBJECT];

	for (enum own i = OWN_OBJECT; i <= OWN_LOCK; i++) {
		if (in->own[i] < 0 || store_is(s->ledger, in->own[i]))
			continue;
		if (errno != ENOENT)
			return false;
		flock(in->own[i], LOCK_UN);
		close(in->own[i]);
		in->own[i] = -1;
	}
	if (!s->ledger->object_ino || *object >= 0)
		return true;
	errno = ENOENT;
	if (o->anonymous || !object_stands(s))
		return false;
	*object = open(o->object, (o->shm ? O_NOFOLLOW : 0) | O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (*object < 0)
		return false;
	in->regained = store_is(s->ledger, *object);
	if (in->regained) {
		say("%s was not passed, and has been opened again", o->object);
		return true;
	}
	close(*object);
	*object = -1;
	errno = ENOENT;
	return false;
}

/*
 * Whether the nodes have the object that our options name, by this name or another, and we have it,
 * too. If not, errno is ENOENT, or says why nobody knows.
 */
static bool object_fits(const struct server *s, struct passed *in)
{
	const struct options *o = &s->opt;
	const struct ledger *l = s->ledger;
	bool fits = !l->object_ino == memoryless(o);

	errno = ENOENT;
	if (fits && l->object_ino)
		fits = l->object_name == text_hash(o->object) || object_stands(s);
	if (fits && object_regain(s, in))
		return true;
	if (errno != ENOENT)
		return fail("cannot take over: cannot examine or open %s", o->object);
	if (!fits)
		return complain("cannot take over: the nodes have another object than %s",
				memoryless(o) ? "none" : o->object);
	in->why = "the supervisor has lost the memory of the nodes";
	return complain("cannot take over: the supervisor has lost the memory of the nodes%s%s",
			o->anonymous ? "" : ", which does not stand at ",
			o->anonymous ? "" : o->object);
}

/*
 * Finds out whether there is somebody to take over, and whether our options are his. Returns false
 * if nobody knows.
 */
static bool passed_judge(struct server *s, struct passed *in)
{
	ledger_renew(s);
	parcels_find(s, in);
	if (!in->nodes)
		return true;
	in->why = "the server was started anew with other options";
	errno = ENOENT;
	in->fits = ledger_fits(s) && object_fits(s, in);
	return in->fits || errno == ENOENT;
}

/* Puts what has been passed into the ledger, instead of what the process had that has ended. */
static void ledger_adopt(struct server *s, const struct passed *in)
{
	struct ledger *l = s->ledger;

	l->store = in->own[OWN_OBJECT];
	l->lock = in->own[OWN_LOCK];
	l->listener = in->own[OWN_LISTENER];
	l->disk = l->pidfile = l->watch = l->signals = l->ends = -1;
	l->object_name = text_hash(s->opt.object);
	l->flush_due |= l->flusher != 0;
	l->flusher = 0;
	for (enum own i = 0; i < OWNS; i++)
		l->kept[i] = in->own[i] >= 0 && !(i == OWN_OBJECT && in->regained);
	memset(l->timers, 0, sizeof(l->timers));
	for (int sock = 0; sock < (int)l->slots; sock++) {
		peer_at(s, sock)->stored = 0;
		memset(peer_at(s, sock)->eventfds, -1, l->vectors * sizeof(int32_t));
	}
	if (!l->socket_ino) /* it was removed at the end */
		l->socket_ino = SOCKET_NOWHERE;
}

/*
 * Notes which file is that of the listening socket, and for whom, where the ledger does not say it:
 * the one at its path, if nobody else listens there.
 */
static void listener_identify(struct server *s)
{
	struct ledger *l = s->ledger;
	char *path = listener_path(l->listener);
	struct stat ours, file;

	l->socket_ino = SOCKET_NOWHERE;
	if (path && fstat(l->listener, &ours) == 0 && socket_inode(path) == ours.st_ino &&
	    lstat(path, &file) == 0 && S_ISSOCK(file.st_mode)) {
		l->socket_dev = file.st_dev;
		l->socket_ino = file.st_ino;
		l->group = file.st_mode & S_IWGRP ? file.st_gid : NOBODY;
	}
	free(path);
}

/*
 * Makes a ledger for our options, instead of the old one; NULL: there is none, or nobody can read
 * it. Also of the parcels of peers only the supervisor is still to know something: to drop them.
 */
static bool ledger_replace(struct server *s, struct passed *in, const struct ledger *old)
{
	struct ledger *l;

	if (in->ungreeted && !parcel_open(s, in->ungreeted->fd, &in->waiting, NULL))
		fail("cannot welcome a client that had connected to the server before");
	if (!ledger_create(s))
		return false;
	in->old = old;
	in->ungreeted = NULL;
	for (enum own i = OWN_LEDGER; i <= OWN_OBJECT; i++)
		if (in->own[i] >= 0)
			close(in->own[i]);
	for (size_t i = 0; i < in->count; i++)
		parcel_close(&in->parcels[i]);
	l = s->ledger;
	l->listener = in->own[OWN_LISTENER];
	l->kept[OWN_LISTENER] = l->listener >= 0;
	if (old) {
		l->joins = old->joins;
		l->departures = old->departures;
		l->forgotten = old->forgotten;
		for (uint64_t d = l->forgotten; d < l->departures; d++)
			l->ring[d % IDS] = old->ring[d % IDS];
		l->socket_dev = old->socket_dev;
		l->socket_ino = old->socket_ino;
		if (!l->socket_ino && l->listener >= 0) /* it was removed at the end */
			l->socket_ino = SOCKET_NOWHERE;
		l->group = old->group;
		flush_again(s); /* what nodes have written that left, or do so now */
	} else if (l->listener >= 0) {
		listener_identify(s);
	}
	return true;
}

/*
 * Names those who are let go, once that is true: they stand in the old ledger, and all that we had
 * of them the supervisor is to drop.
 */
static void nodes_let_go(const struct passed *in)
{
	const struct ledger *old = in->old;

	if (!old && in->count > 0)
		complain("%zu %s let go: restart %s", in->count,
			 in->count == 1 ? "node is" : "nodes are", in->count == 1 ? "it" : "them");
	for (int sock = 0; old && sock < (int)old->slots; sock++) {
		const struct peer *p = ledger_peer(old, sock);
		const char *why = parcel_missing(p);

		if (!p->serial || p->serial == departed_last(old))
			continue;
		for (size_t i = 0; i < in->count; i++)
			if (in->parcels[i].sock == sock)
				why = in->why;
		if (why)
			node_name(p, why);
		else
			say("ID %d left: it ended while no server ran", p->id);
	}
}

/*
 * Takes over what has been passed, as far as somebody is there whose options are ours; else makes a
 * ledger for a start.
 */
static bool server_inherit(struct server *s, struct passed *in)
{
	const struct ledger *old = NULL;

	supervisor_open(s);
	s->ledger_fd = in->own[OWN_LEDGER];
	if (s->ledger_fd >= 0 && ledger_open(s, PROT_READ | PROT_WRITE))
		old = s->ledger;
	else if (s->ledger_fd >= 0 && errno != EINVAL)
		return false; /* nothing is wrong with the ledger: for the next try */
	in->nodes = !old && in->count > 0;
	if (old && !passed_judge(s, in))
		return false;
	if (in->fits) {
		peers_give_up(s, in);
		if (!passed_make_room(s, in))
			return false;
		ledger_adopt(s, in);
		peers_inherit(s, in);
		in->fits = s->count > 0; /* some of them could be taken over */
	}
	if (!in->fits && !ledger_replace(s, in, old))
		return false;
	if (!peers_watch(s))
		return false;
	if (in->ungreeted)
		parcel_join(s, in->ungreeted);
	for (size_t i = 0; i < in->count; i++) {
		parcel_close(&in->parcels[i]);
		if (!in->fits || peer_find(s, in->parcels[i].serial) < 0)
			parcel_disown(s, in->parcels[i].serial);
	}
	return true;
}

/* Opens the object once more, wherever it stands by now. Returns the descriptor or -1, having said
 * why. */
static int store_reopen(const struct server *s)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->ledger->store);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail("cannot open %s once more", s->opt.object);
	return fd;
}

/* Warns of what the nodes share where it is not what stands at the path of the object. */
static void store_warn_gone(const struct server *s)
{
	const char *name = s->opt.object;

	if (s->opt.anonymous || object_stands(s))
		return;
	if (errno != ENOENT)
		fail("cannot examine %s", name);
	else
		say("warning: the nodes have a file that does not stand at %s any more, and what "
		    "they write goes with the last of them: cp /proc/%d/fd/%d saves it; end the "
		    "nodes and restart the server to serve what stands there",
		    name, (int)getpid(), s->ledger->store);
}

/* Says which options of the object cannot hold while nodes have it. */
static void store_warn_options(const struct server *s)
{
	const struct options *o = &s->opt;
	uint64_t size = s->ledger->size, wanted = size, blocks;
	struct statfs fs;
	struct stat st;

	if (o->sized || o->anonymous)
		wanted = o->sized ? o->size : DEFAULT_SIZE;
	if (wanted < size && !o->truncate && !o->anonymous)
		say("%s has %s, more than -%c %s: all of it is served", o->object, SIZE(size),
		    typed('m'), SIZE(wanted));
	else if (wanted != size)
		say("%s keeps its size of %s while nodes have it, whatever %s-%c says", o->object,
		    SIZE(size), o->truncate ? "-t with " : "", typed('m'));
	if (!o->allocate || fstat(s->ledger->store, &st) < 0 ||
	    fstatfs(s->ledger->store, &fs) < 0 || fs.f_type == HUGETLBFS_MAGIC)
		return;
	blocks = (uint64_t)st.st_blocks * 512;
	if (blocks < size)
		say("%s lacks %s of its blocks, which -a does not reserve while nodes have it",
		    o->object, SIZE(size - blocks));
}

/* Makes complete what was taken over of the object. */
static bool store_inherit(struct server *s)
{
	const struct options *o = &s->opt;
	struct ledger *l = s->ledger;

	if (l->store < 0)
		return true;
	if (!o->shm && (l->disk = store_reopen(s)) < 0)
		l->disk = l->store; /* nodes may have it, too, and be told of an error instead */
	if (!o->anonymous) {
		if (l->lock < 0 && (l->lock = store_reopen(s)) < 0)
			return false;
		/* The one lasts as long as the descriptor, the other had gone with the process. */
		if (flock(l->lock, LOCK_EX | LOCK_NB) < 0 ||
		    fcntl(l->lock, F_SETLK, &(struct flock){.l_type = F_WRLCK}) < 0)
			fail("cannot lock %s", o->object);
	}
	store_warn_gone(s);
	store_warn_options(s);
	return true;
}

/* Opens the object that our options name, though the server before may have had it: the supervisor
 * has that one's lock still. */
static bool store_open_anew(struct server *s, const struct passed *in)
{
	if (in->own[OWN_LOCK] >= 0 && flock(in->own[OWN_LOCK], LOCK_UN) < 0)
		return fail("cannot unlock what the server before has served");
	return store_open(s);
}

/* Says of a socket that a supervisor has made where it stands; -p does not count then. */
static void socket_name(struct server *s)
{
	const char *path = listener_path(s->ledger->listener);

	if (path && strcmp(path, s->opt.socket) != 0)
		say("listening on %s, which was passed to us, and not on %s", path, s->opt.socket);
	if (path)
		s->opt.socket = path;
}

/* Listens on a socket that a supervisor has made. */
static void socket_adopt(struct server *s, int passed)
{
	if (s->ledger->listener >= 0) {
		listener_replace(s, passed);
		close(passed);
	} else {
		s->ledger->listener = descriptor_lower(passed);
	}
	s->ledger->socket_ino = 0;
	socket_name(s);
}

/*
 * Whether the listening socket that was taken over is where the options want it, and for whom:
 * group could connect there. It may have been shut down, or the file be that of one which was lost.
 */
static bool listener_fits(const struct server *s, uint32_t group)
{
	char *path = listener_path(s->ledger->listener);
	struct pollfd ended = {.fd = s->ledger->listener};
	bool fits = path && !strcmp(path, s->opt.socket) && s->ledger->group == group &&
		    socket_stands(s) && socket_probe(path) == EPROTOTYPE && poll(&ended, 1, 0) == 0;

	free(path);
	return fits;
}

/* Removes the listening socket that was taken over, and serves who waits there. */
static void listener_retire(struct server *s)
{
	const char *wanted = s->opt.socket;
	char *path = listener_path(s->ledger->listener);

	if (path)
		s->opt.socket = path;
	socket_remove(s);
	s->opt.socket = wanted;
	s->ledger->socket_ino = SOCKET_NOWHERE;
	free(path);
	peers_accept(s, true);
}

/*
 * Listens: on the socket of a socket unit; on the one that was taken over, if that fits; or on a
 * new one. Where there is one to go on with that cannot be made again, it is tried again later.
 */
static bool socket_open(struct server *s, int passed, uint32_t group)
{
	struct ledger *l = s->ledger;
	bool inherited = l->listener >= 0, fits;

	if (inherited)
		l->listener = descriptor_lower(l->listener);
	fits = inherited && passed < 0 && listener_fits(s, group);
	if (inherited && !fits)
		listener_retire(s);
	if (passed >= 0)
		socket_adopt(s, passed);
	else if (inherited && !fits)
		socket_check(s);
	else if (inherited || socket_make(s, &l->listener))
		socket_watch(s);
	else
		return false;
	return l->listener < FD_SETSIZE ||
	       complain("cannot listen: no descriptor below %d is left", FD_SETSIZE);
}

/*
 * Process
 */

/*
 * Prints the path as QEMU's option parser wants it, where a comma is doubled, and as it stands
 * between single quotes for a shell. Returns whether a shell needs these.
 */
static bool path_for_qemu(const char *path, char *out)
{
	bool quotes = false;

	for (; *path; path++) {
		quotes = quotes || !(isalnum((unsigned char)*path) || strchr("/._-+,:@%", *path));
		if (*path == ',')
			*out++ = ',';
		if (*path == '\'')
			out = stpcpy(out, "'\\'");
		*out++ = *path;
	}
	*out = '\0';
	return quotes;
}

/* Says what is served, and how to connect a node to it. */
static void server_announce(const struct server *s)
{
	char path[4 * sizeof(((struct sockaddr_un *)NULL)->sun_path)], memory[96] = "";
	unsigned int vectors = s->opt.vectors;
	const char *quote = path_for_qemu(s->opt.socket, path) ? "'" : "";

	if (s->ledger->store < 0) {
		say("serving interrupts without memory, vectors %u, socket %s", vectors,
		    s->opt.socket);
	} else {
		say("serving %s, size %s, vectors %u, socket %s", s->opt.object,
		    SIZE(s->ledger->size), vectors, s->opt.socket);
		snprintf(memory, sizeof(memory), ",size=%s", SIZE(s->ledger->size));
	}
	say("connect a node: -chardev %ssocket,path=%s,id=fam%s -device %s,chardev=fam%s,vectors=%u",
	    quote, path, quote, s->opt.legacy ? "ivshmem" : "ivshmem-doorbell",
	    s->opt.legacy ? memory : "", vectors ? vectors : 1);
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
	log_forget();
	close(ends[1]);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (TEMP_FAILURE_RETRY(read(ends[0], &ready, 1)) == 1)
		_exit(EXIT_SUCCESS);
	if (waitpid(child, &status, 0) == child && WIFEXITED(status))
		_exit(WEXITSTATUS(status));
	complain("ended by %s before it was ready", strsignal(WTERMSIG(status)));
	_exit(EXIT_FAILURE);
}

/*
 * With -d, says that all is ready, leaves terminal and working directory, and lets the parent exit.
 * A parent that has gone meanwhile is no reason to end.
 */
static bool background_enter(struct server *s)
{
	if (!s->opt.daemonize)
		return true;
	server_announce(s);
	setsid();
	if (chdir("/") < 0)
		fail("cannot change to /");
	log_to_syslog();
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		dup2(s->null, fd);
	if (write(s->parent, "", 1) != 1 && errno != EPIPE)
		return fail("cannot tell the parent process that all is ready");
	close(s->parent);
	s->parent = -1;
	return true;
}

/* Ends all that others can see of us; keep says whether the start succeeded and the object stays.
 */
static void server_end(struct server *s, bool keep)
{
	/* What a start that fails has been passed is for the next one. */
	bool leave = !keep && s->ledger->kept[OWN_LISTENER];
	pid_t trial = s->trial;
	int status;

	if (s->handover) {
		trial_kill(s);
		pidfile_remove(s, keep);
		return;
	}
	set_each (sock, &s->present)
		if (keep)
			close(sock);
		else
			client_refuse(s, sock, "the server could not start");
	if (!leave)
		socket_remove(s);
	if (!keep && !leave && s->ledger->listener >= 0)
		clients_turn_away(s, s->ledger->listener, "the server could not start");
	trial_kill(s);
	if (trial)
		child_wait(s, trial, &status); /* it may have our locks open still */
	if (keep)
		flush_finish(s);
	store_leave(s, keep);
	pidfile_remove(s, keep);
}

/* Whether a path is in a folder that systemd has made for this unit alone (PrivateTmp=). */
static bool path_private(const char *path)
{
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	char *line = NULL, root[PATH_MAX], at[PATH_MAX];
	size_t room = 0, length, longest = 0;
	bool private = false;

	while (mounts && getline(&line, &room, mounts) > 0) {
		if (sscanf(line, "%*s %*s %*s %4095s %4095s", root, at) != 2)
			continue;
		length = strlen(at);
		if (length < longest || strncmp(path, at, length) != 0 || path[length] != '/')
			continue;
		longest = length; /* of those at one place, the last is seen */
		private = strstr(root, "/systemd-private-");
	}
	free(line);
	if (mounts)
		fclose(mounts);
	return private;
}

/* Warns of what starts well in a unit of systemd and then serves nobody. */
static void unit_warn(const struct server *s, bool own_socket)
{
	const struct options *o = &s->opt;
	const char *process = getenv("SYSTEMD_EXEC_PID");

	if (o->daemonize && supervised(s) && process && atoi(process) == (int)getpid())
		say("warning: a supervisor takes the end of this process, which goes to the "
		    "background, for the end of the server: %s",
		    as_qemu() ? "give -F" : "leave out -d");
	if (!getenv("INVOCATION_ID"))
		return;
	if (own_socket && path_private(o->socket))
		say("warning: nobody outside of this unit can connect to %s, since that folder is "
		    "private (PrivateTmp=): choose a path in /run with -%c",
		    o->socket, typed('p'));
	if (!o->shm && path_private(o->object))
		say("warning: %s is lost when this unit stops, since that folder is private "
		    "(PrivateTmp=): choose a path in /var/lib with -f",
		    o->object);
}

/*
 * Whether the limit of descriptors leaves room for nodes; says how many if they are few. What is
 * open is counted only where the limit is so low that it matters; to come are the socket and what
 * watches it, to go is the pipe to the parent.
 */
static bool nodes_fit(const struct server *s)
{
	struct pollfd all[FD_SETSIZE];
	struct rlimit limit;
	rlim_t each = 1 + s->opt.vectors, used = s->parent < 0 ? 2 : 1, nodes, n;

	if (s->count > 0 || getrlimit(RLIMIT_NOFILE, &limit) < 0 ||
	    limit.rlim_cur >= FD_SETSIZE + NODES_FEW * each)
		return true;
	n = limit.rlim_cur < FD_SETSIZE ? limit.rlim_cur : FD_SETSIZE;
	for (rlim_t fd = 0; fd < n; fd++)
		all[fd] = (struct pollfd){.fd = (int)fd};
	if (poll(all, n, 0) < 0)
		return true;
	for (rlim_t fd = 0; fd < n; fd++)
		used += !(all[fd].revents & POLLNVAL);
	nodes = used < limit.rlim_cur ? (limit.rlim_cur - used) / each : 0;
	if (nodes == 0)
		return complain("no node fits: it takes %ju descriptor%s, and of the %ju that the "
				"limit allows the server itself needs %ju; raise it with ulimit -n "
				"or LimitNOFILE=",
				(uintmax_t)each, S(each), (uintmax_t)limit.rlim_cur,
				(uintmax_t)used);
	if (nodes < NODES_FEW)
		say("warning: only %ju node%s of %u vector%s will fit: the limit of descriptors is "
		    "%ju; raise it with ulimit -n or LimitNOFILE=",
		    (uintmax_t)nodes, S(nodes), s->opt.vectors, S(s->opt.vectors),
		    (uintmax_t)limit.rlim_cur);
	return true;
}

/* Starts to serve, once it is known what has been taken over. */
static bool server_begin(struct server *s, const struct passed *in)
{
	uint32_t group = s->ledger->group;
	size_t count = s->count; /* without those who wait at a socket that is replaced */

	supervisor_socket(s);
	unit_warn(s, in->listener < 0);
	if (!group_find(&s->opt, &s->ledger->group) || !signals_open(s) || !background_begin(s) ||
	    !(pidfile_claim(s) || pidfile_forgo(s)) ||
	    !(in->fits ? store_inherit(s) : store_open_anew(s, in)) || !nodes_fit(s) ||
	    !socket_open(s, in->listener, group) || !(pidfile_write(s) || pidfile_forgo(s)) ||
	    !(in->fits || store_settle(s)))
		return false;
	stale_leave(s, true);
	if (!background_enter(s))
		return false;
	if (!in->fits)
		nodes_let_go(in);
	if (in->waiting >= 0)
		client_welcome(s, descriptor_lower(in->waiting));
	server_announce(s);
	if (in->fits)
		say("took over %zu node%s from a server that had ended, version " VERSION, count,
		    S(count));
	return true;
}

/*
 * Starts, with what a supervisor has passed. If that fails, leaves everything as it was; also the
 * nodes that it has taken over, which are for the next try.
 */
static bool server_start(struct server *s, unsigned int passed)
{
	struct passed in;
	bool done;

	umask(umask(0) & 0077); /* what we make is our own, at least */
	descriptor_limit_raise();
	log_take(logging.own); /* higher up */
	done = passed_sort(&in, passed) && server_inherit(s, &in);
	if (done && !server_begin(s, &in)) {
		done = false;
		if (s->ledger->listener < 0) {
			s->ledger->listener = in.listener; /* who waits there is turned away */
			s->ledger->socket_ino = 0;
		}
		if (in.fits)
			pidfile_remove(s, false);
		else
			server_end(s, false);
		if (in.nodes && in.own[OWN_LOCK] >= 0 && /* as long as that is so */
		    flock(in.own[OWN_LOCK], LOCK_EX | LOCK_NB) < 0)
			fail("cannot lock again what the nodes have");
		stale_leave(s, false);
	}
	if (!in.fits && in.own[OWN_LOCK] >= 0)
		close(in.own[OWN_LOCK]);
	free(in.parcels);
	return done;
}

/*
 * Goes on serving where the image before has left off. A trial has found that this fits, and there
 * is no way back: what fails for want of memory is tried again.
 */
static bool server_resume(struct server *s)
{
	while (!ledger_open(s, PROT_READ | PROT_WRITE)) {
		if (errno != ENOMEM && errno != EAGAIN)
			return false;
		sleep(1);
	}
	ledger_renew(s);
	supervisor_open(s);
	peers_restore(s);
	s->ledger->timers[TIMER_STORE] = 0; /* room may have come while nobody looked */
	supervisor_doubt(s);
	if (!descriptors_keep(s, false) || !signals_open(s))
		return fail("cannot take over");
	if (!s->ledger->socket_ino)
		socket_name(s);
	children_reap(s); /* the signal may be gone */
	say("restarted in place, version " VERSION ", %zu node%s connected", s->count, S(s->count));
	return true;
}

int main(int argc, char **argv)
{
	static struct server s;
	const char *variable = getenv(LEDGER_VARIABLE);
	unsigned int passed = passed_count();
	char purpose[16] = "";
	int in_background = 0;
	size_t lost = 0;

	name_begin();
	if (variable && sscanf(variable, "%15s %d %d %zu %" SCNd64, purpose, &s.ledger_fd,
			       &in_background, &lost, &s.supervisor.reloading_us) < 3)
		variable = NULL;
	unsetenv(LEDGER_VARIABLE);
	if (!variable)
		close_range(STDERR_FILENO + 1 + passed, UINT_MAX, 0); /* what the caller had open */
	log_begin(in_background, !strcmp(purpose, "resume") ? lost : 0);
	s.argv = argv;
	s.parent = s.supervisor.sock = -1;
	s.program = program_path();
	if (!s.program) {
		fail("cannot tell the path of this program, for restarts: start it by an absolute path");
		return EXIT_FAILURE;
	}
	if (!variable)
		on_exit(supervisor_explain, &s);
	options_parse(&s.opt, argc, argv);
	if (s.opt.check || s.opt.version)
		options_answer(&s.opt);
	s.null = spare_open();
	s.spare = s.null < 0 ? -1 : spare_open();
	if (!variable && s.spare < 0)
		return EXIT_FAILURE;
	/* A log that nobody reads, and a size beyond a limit, are errors. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	if (variable && strcmp(purpose, "resume") != 0)
		return ledger_open(&s, PROT_READ) && ledger_fits(&s) ? CAN_TAKE_OVER : EXIT_FAILURE;
	if (variable ? !server_resume(&s) : !server_start(&s, passed))
		return EXIT_FAILURE;
	serve(&s);
	server_end(&s, true);
	return EXIT_SUCCESS;
}
