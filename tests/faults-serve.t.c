/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every system call that a server makes fails once while it serves, restarts in place, takes over
 * from one that was killed, and ends.
 *
 * Serving: a client comes, rings and is rung, and goes, beside three that stay; somebody asks for
 * the status. The server lives, the three see everything exactly once, their doorbells work, no
 * descriptor is lost, the supervisor has what it needs to pass on, and the log says what failed,
 * except where the rules say why not. Restarting: it happens, or the server goes on without, and no
 * client notices either. Taking over: nobody notices; or the start is refused, with status 1 and
 * the reason in the log, and the next one finds all as it was; or the log names the one client that
 * is let go. Ending: it ends, and leaves nothing behind.
 *
 * strace is attached for each fault anew, so that calls are counted from there. FULL=1 lets every
 * call fail with every errno that the table in lib/faults.c gives it; without, some of them do.
 */
#define _GNU_SOURCE
#include "tests/lib/client.h"
#include "tests/lib/deadline.h"
#include "tests/lib/faults.h"
#include "tests/lib/form.h"
#include "tests/lib/look.h"
#include "tests/lib/server.h"
#include "tests/lib/supervisor.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RESIDENTS 3
#define IDLER     (RESIDENTS - 1) /* the place of one of them, which may not read */

/* As many as a client can have, to need much memory. */
#define VECTORS_MAX      2048
#define VECTORS_MAX_TEXT "2048"

#define NEWCOMER RESIDENTS /* the place of the one that comes and goes */

/* How often something is done again if the call that is to fail was not made. */
#define ATTEMPTS 8

/* What must come of a fault. */
static const struct rule rules[] = {
	/* Who asks for the status, and says himself where there is no answer. */
	{.phase = "serving",
	 .calls = "memfd_create fcntl write sendmmsg close",
	 .text = "ivshmem-status",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "who asks for the status gets none, and says so"},
	{.phase = "serving",
	 .calls = "accept4",
	 .errors = "EMFILE ENFILE",
	 .text = "accept4(",
	 .first = true,
	 .outcome = TURNS_AWAY,
	 .why = "there is no descriptor for it"},
	{.phase = "serving",
	 .calls = "accept4",
	 .text = "accept4(",
	 .errors = "ENOBUFS ENOMEM EPERM EPROTO",
	 .outcome = JOINS,
	 .why = "it is tried again soon"},
	{.phase = "serving",
	 .calls = "accept4",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "nobody was waiting, or it is tried again at once"},
	{.phase = "serving",
	 .calls = "poll",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "whether the supervisor has room shows when it is told something"},
	{.phase = "serving",
	 .calls = "recvfrom",
	 .errors = "ECONNRESET",
	 .outcome = EITHER,
	 .why = "it says that the client has gone: the one that comes, or goes anyway"},
	{.phase = "serving",
	 .calls = "recvfrom",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it is tried again"},
	{.phase = "serving",
	 .calls = "newfstatat fstat statx",
	 .text = "/memory>",
	 .outcome = EITHER,
	 .why = "a client is turned away where nobody knows whether the memory has its size"},
	{.phase = "serving",
	 .calls = "epoll_ctl",
	 .text = "EPOLL_CTL_ADD",
	 .outcome = TURNS_AWAY,
	 .why = "nobody would hear of its end"},
	{.phase = "serving",
	 .calls = "epoll_ctl epoll_wait epoll_pwait",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the descriptor is closed anyway, or it is tried again"},
	{.phase = "serving",
	 .calls = "eventfd2",
	 .outcome = TURNS_AWAY,
	 .why = "it would have no doorbell"},
	{.phase = "serving",
	 .calls = "fcntl",
	 .text = "F_DUPFD",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the eventfd stays where it is, and takes the place of a socket"},
	{.phase = "serving",
	 .calls = "prlimit64",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the buffer of its socket stays as large as it is"},
	{.phase = "serving",
	 .calls = "getsockopt",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the log does not know who it is"},
	{.phase = "serving",
	 .calls = "openat read",
	 .text = "/comm",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the log does not know who it is"},
	{.phase = "serving",
	 .calls = "sendmmsg",
	 .errors = "EPIPE",
	 .outcome = DROPS,
	 .quiet = true,
	 .why = "it says that the client has gone"},
	{.phase = "serving",
	 .calls = "sendmmsg",
	 .errors = "ECONNRESET",
	 .outcome = DROPS,
	 .why = "it says that the client has gone"},
	{.phase = "serving",
	 .calls = "sendmmsg",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it is tried again"},
	{.phase = "serving",
	 .calls = "close_range",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the child that flushes keeps open what it does not need"},
	{.phase = "serving",
	 .calls = "read",
	 .text = "signalfd",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the signal is still there in the next round"},

	{.phase = "serving",
	 .calls = "read",
	 .text = "inotify",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "what it says is read to forget it"},
	{.phase = "serving",
	 .calls = "wait4 waitid",
	 .errors = "EINTR",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it is tried again at once"},
	{.phase = "serving",
	 .calls = "setpgid",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the child that flushes starts nothing"},
	{.phase = "serving",
	 .calls = "ioctl",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "how much was sent and not read is not known"},
	{.phase = "serving",
	 .calls = "close munmap brk",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "Linux closes the descriptor even then"},
	{.phase = "serving",
	 .calls = "shutdown",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it is for a client that has not gone"},
	{.phase = "serving",
	 .calls = "sendmsg",
	 .text = "iov_base=\"\\0\"",
	 .outcome = JOINS,
	 .why = "its parcel is made a second later"},
	{.phase = "serving",
	 .calls = "sendmsg",
	 .errors = "EAGAIN ECONNREFUSED",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the supervisor is told when it has room, or by another connection"},
	{.phase = "serving",
	 .calls = "connect",
	 .text = "/notify\"",
	 .errors = "EAGAIN",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it is tried again at once"},
	{.phase = "serving",
	 .calls = "write",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "a line of the log is lost"},
	{.phase = "serving", .outcome = JOINS, .why = "it is done without, or tried again"},

	/* The server, until it executes the program on disk. */
	{.phase = "restarting",
	 .calls = "read",
	 .text = "signalfd",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "the signal is still there in the next round"},
	{.phase = "restarting",
	 .calls = "sendmsg",
	 .errors = "EAGAIN ECONNREFUSED",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "the supervisor hears of what matters when it has room"},
	{.phase = "restarting",
	 .calls = "socket",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "it is made when there is something to tell"},
	{.phase = "restarting",
	 .calls = "sendmsg",
	 .outcome = RESTARTS,
	 .why = "the supervisor is told a second later"},
	{.phase = "restarting",
	 .calls = "pselect6 select",
	 .outcome = RESTARTS,
	 .why = "it is tried again"},
	{.phase = "restarting",
	 .calls = "read",
	 .text = "inotify",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "what it says is read to forget it"},
	{.phase = "restarting",
	 .calls = "newfstatat lstat",
	 .text = "/socket\"",
	 .outcome = RESTARTS,
	 .why = "where the socket cannot be seen, it is looked for again soon"},
	{.phase = "restarting",
	 .calls = "poll",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "whether the supervisor has room shows when it is told something"},
	{.phase = "restarting",
	 .calls = "newfstatat stat",
	 .text = "tm_ivshmem_server\"",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "where it is not known whether the program is another by now, it is tried again"},
	{.phase = "restarting",
	 .calls = "wait4 waitid",
	 .errors = "EINTR",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "it is tried again at once"},
	{.phase = "restarting",
	 .calls = "close munmap brk",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "Linux closes the descriptor even then"},
	{.phase = "restarting",
	 .calls = "kill",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "the program that was tried has left nothing behind"},
	{.phase = "restarting",
	 .calls = "openat",
	 .text = "/dev/null",
	 .outcome = RESTARTS,
	 .why = "the spare descriptor is opened again when somebody comes"},
	{.phase = "restarting",
	 .calls = "write",
	 .text = "/log>, \"20",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "a line of the log is written later"},
	{.phase = "restarting",
	 .calls = "openat",
	 .text = "/log\"",
	 .outcome = RESTARTS,
	 .why = "the log goes on as it was"},
	{.phase = "restarting",
	 .calls = "dup3",
	 .text = "/log>",
	 .outcome = RESTARTS,
	 .why = "the log goes on as it was"},
	{.phase = "restarting",
	 .calls = "newfstatat fstat",
	 .text = "/log>",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "the log is opened again, whatever it is"},
	{.phase = "restarting", .outcome = STAYS, .why = "no restart is better than half of one"},

	/* The child that tries the program: where it cannot fail, it is the server's turn. */
	{.phase = "checking",
	 .calls = "fcntl execve",
	 .outcome = STAYS,
	 .why = "the program on disk cannot take over"},
	{.phase = "checking",
	 .calls = "setpgid",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "what the program starts could not be ended with it"},
	{.phase = "checking",
	 .calls = "newfstatat fstat mmap",
	 .text = "memfd:",
	 .outcome = STAYS,
	 .why = "the program on disk cannot take over"},
	{.phase = "checking",
	 .outcome = NEVER,
	 .why = "the program goes on in spite of it, and so it does when it resumes"},

	/* The program on disk, which has to go on: there is no way back. */
	{.phase = "resuming",
	 .calls = "fcntl",
	 .outcome = NEVER,
	 .why = "what it does with descriptors cannot fail if they are open"},
	{.phase = "resuming",
	 .calls = "newfstatat fstat",
	 .text = "memfd:",
	 .outcome = NEVER,
	 .why = "what is open can be examined"},
	{.phase = "resuming",
	 .calls = "mmap",
	 .errors = "EACCES ENFILE EPERM ENODEV",
	 .text = "memfd:",
	 .outcome = NEVER,
	 .why = "the trial could map it"},
	{.phase = "resuming",
	 .calls = "mmap",
	 .text = "memfd:",
	 .outcome = RESTARTS,
	 .why = "it is tried again, for nobody else could serve the nodes"},
	{.phase = "resuming",
	 .calls = "signalfd4",
	 .text = "anon_inode:",
	 .outcome = NEVER,
	 .why = "it says which signals to a descriptor that is there already"},
	{.phase = "resuming",
	 .calls = "read",
	 .text = "signalfd",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "the signal is still there in the next round"},
	{.phase = "resuming",
	 .calls = "pselect6 select",
	 .outcome = RESTARTS,
	 .why = "waiting is tried again"},
	{.phase = "resuming",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "it does without: a line of the log is lost"},

	/* A process that takes over from a dead one, until it serves. */
	{.phase = "takeover",
	 .calls = "close",
	 .before = "epoll_create1",
	 .outcome = NEVER,
	 .why = "Linux closes the descriptor even then; here it would keep the number of a node's"},
	{.phase = "takeover",
	 .calls = "close munmap brk",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "Linux closes the descriptor even then"},
	{.phase = "takeover",
	 .calls = "newfstatat fstat",
	 .text = "/log>",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the log is written to as if it were a file"},
	{.phase = "takeover",
	 .calls = "close_range",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "what the caller had left open stays open"},
	{.phase = "takeover",
	 .calls = "getcwd",
	 .outcome = EITHER,
	 .quiet = true,
	 .why = "paths of which some are absolute need no working directory, the others do"},
	{.phase = "takeover",
	 .calls = "prlimit64",
	 .text = "RLIMIT_NOFILE, {",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the limit of descriptors stays the hard one"},
	{.phase = "takeover",
	 .calls = "prlimit64",
	 .after = "recvmsg",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it is tried whether there is room for all"},
	{.phase = "takeover",
	 .calls = "prlimit64",
	 .after = "capget",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "what is in flight counts as not limited"},
	{.phase = "takeover",
	 .calls = "prlimit64",
	 .outcome = JOINS,
	 .why = "the limit of descriptors stays as it is"},
	{.phase = "takeover",
	 .calls = "capget",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "what is in flight counts as limited"},
	{.phase = "takeover",
	 .calls = "newfstatat stat",
	 .text = "/proc/self/ns/user",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "what is in flight counts as limited"},
	{.phase = "takeover",
	 .calls = "fcntl",
	 .text = "F_SETFD",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "what a child must not have is closed in it"},
	{.phase = "takeover",
	 .calls = "fcntl",
	 .text = "pidfile>, F_SETLK",
	 .errors = "EAGAIN",
	 .outcome = REFUSES,
	 .quiet = true,
	 .why = "that means that another program has the pidfile"},
	{.phase = "takeover",
	 .calls = "fcntl",
	 .text = "F_SETLK",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it only tells others who has the file"},
	{.phase = "takeover",
	 .calls = "fcntl",
	 .text = "F_DUPFD_CLOEXEC, 1024",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the eventfd takes the place of a socket, but of none that is there"},
	{.phase = "takeover",
	 .calls = "fcntl",
	 .text = "F_DUPFD_CLOEXEC",
	 .after = "epoll_create1",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the socket to listen on stays where it is"},
	{.phase = "takeover",
	 .calls = "fcntl",
	 .text = "F_DUPFD_CLOEXEC",
	 .after = "recvmsg",
	 .outcome = DROPS,
	 .why = "one node that cannot be taken over must not keep all others waiting"},
	{.phase = "takeover",
	 .calls = "fcntl",
	 .text = "F_GETFD",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the number counts as free, which is all that is asked"},
	{.phase = "takeover",
	 .calls = "socket",
	 .before = "epoll_create1",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the supervisor is told by another one"},
	{.phase = "takeover",
	 .calls = "socket connect openat newfstatat fstat read lseek",
	 .after = "epoll_create1",
	 .before = "signalfd4",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "the group kvm is a default where it is known; for another, the socket is made anew"},
	{.phase = "takeover",
	 .calls = "setsockopt recvmsg recvfrom",
	 .before = "dup3",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "who cannot be looked at counts as somebody who is there"},
	{.phase = "takeover",
	 .calls = "dup3",
	 .text = "</dev/null>, O_CLOEXEC",
	 .outcome = DROPS,
	 .why = "one node that cannot be taken over must not keep all others waiting"},
	{.phase = "takeover",
	 .calls = "dup3",
	 .outcome = REFUSES,
	 .why = "what is open must not stand where a node's socket is to stand"},
	{.phase = "takeover",
	 .calls = "setsockopt recvmsg epoll_ctl",
	 .outcome = DROPS,
	 .why = "one node that cannot be taken over must not keep all others waiting"},
	{.phase = "takeover",
	 .calls = "newfstatat stat lstat",
	 .text = "memory\"",
	 .outcome = JOINS,
	 .why = "the nodes have the object, whatever stands at its path"},
	{.phase = "takeover",
	 .calls = "newfstatat stat lstat",
	 .text = "pidfile\"",
	 .first = true,
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it looks before it opens, which would have failed as well"},
	{.phase = "takeover",
	 .calls = "flock",
	 .text = "/memory>",
	 .errors = "EINTR EAGAIN",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "a child of the server before may have it for a moment: it is tried again"},
	{.phase = "takeover",
	 .calls = "flock",
	 .text = "/memory>",
	 .outcome = JOINS,
	 .why = "the nodes are served all the same, and the lock is for those who come later"},
	{.phase = "takeover",
	 .calls = "flock",
	 .errors = "EAGAIN",
	 .outcome = REFUSES,
	 .quiet = true,
	 .why = "that means that another server has the pidfile"},
	{.phase = "takeover",
	 .calls = "socket connect poll",
	 .after = "signalfd4",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "where it is not known whether a socket is alive, another is made there"},
	{.phase = "takeover",
	 .calls = "openat",
	 .text = "/proc/self/fd/",
	 .outcome = JOINS,
	 .why = "the object is flushed by the descriptor that nodes have as well"},
	{.phase = "takeover",
	 .calls = "getsockname",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "where it is not known which path a socket has, another is made there"},
	{.phase = "takeover",
	 .calls = "newfstatat lstat",
	 .text = "/socket\"",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "where the socket cannot be seen, another is made there"},
	{.phase = "takeover",
	 .calls = "inotify_add_watch",
	 .text = "IN_ONLYDIR",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "it may be forbidden to read the folder; that of the socket's file is watched"},
	{.phase = "takeover",
	 .calls = "inotify_init1 inotify_add_watch",
	 .outcome = JOINS,
	 .why = "the socket is looked at upon HUP and USR1 all the same"},
	{.phase = "takeover",
	 .calls = "write",
	 .outcome = JOINS,
	 .quiet = true,
	 .why = "a line of the log is lost"},
	{.phase = "takeover",
	 .outcome = REFUSES,
	 .why = "the next start finds everything as it was"},

	{.phase = "ending",
	 .calls = "pselect6 select",
	 .outcome = NEVER,
	 .why = "the call that it waits in was made before"},
	{.phase = "ending",
	 .calls = "read accept4 write close munmap brk shutdown ioctl poll wait4",
	 .outcome = ENDS,
	 .quiet = true,
	 .why = "it was not the last signal, nobody waits, a line of the log is lost"},
	{.phase = "ending",
	 .calls = "sendmsg",
	 .errors = "EAGAIN ECONNREFUSED",
	 .outcome = ENDS,
	 .quiet = true,
	 .why = "the supervisor sees the end as well"},
	{.phase = "ending",
	 .calls = "openat",
	 .text = "O_PATH|O_DIRECTORY",
	 .outcome = ENDS,
	 .quiet = true,
	 .why = "without a descriptor for the folder it is removed by its path"},
	{.phase = "ending",
	 .calls = "newfstatat stat lstat fstat unlink unlinkat",
	 .outcome = LEAVES,
	 .why = "what is not known to be its own is not removed"},
	{.outcome = ENDS, .why = "the log says what was not done"},
};

/* What a server and its clients are like. */
struct setting {
	const char *vectors;
	rlim_t descriptors; /* so few that the server limits the buffers of sockets */
	bool unprivileged;  /* or else it raises that limit */
	bool log_file;      /* its log is a file (-o): the same as what it says on stderr */
	bool idle; /* one resident has not read its greeting, which its socket cannot hold */
};

/* A server, the clients that stay, and the one that comes and goes. */
struct world {
	const struct setting *setting;
	struct server server;
	struct client clients[RESIDENTS + 1];
	size_t present; /* of these, as many have been connected */
	bool idle;      /* the one at IDLER reads nothing for now */
	int descriptors;
	int leaked;    /* what strace keeps: a close that it lets fail does not happen */
	size_t logged; /* what had been logged before the fault */
	int status;    /* with which the server has ended, if it did */
};

static char strace_log[128];
static struct supervisor *supervisor;

/* Something that a server does while one of its calls fails. */
struct phase {
	const char *name;
	const struct setting *setting;
	void (*prepare)(struct world *w); /* what comes before, with another server each time */
	enum outcome (*act)(struct world *w);
	bool repeats;  /* can be done again with the same clients */
	bool children; /* they may fail as well */
};

/* How many each client has. */
static int vectors(const struct world *w)
{
	return atoi(w->setting->vectors);
}

/* Whether it is connected and has not been turned away. */
static bool client_alive(const struct client *c)
{
	return c->sock >= 0 && !c->ended;
}

/* Whether a client takes what is for it. */
static bool client_reads(const struct world *w, size_t place)
{
	return client_alive(&w->clients[place]) && !(w->idle && place == IDLER);
}

/* The clients that are there. */
static size_t clients_alive(const struct world *w)
{
	size_t alive = 0;

	for (size_t i = 0; i < w->present; i++)
		alive += client_alive(&w->clients[i]);
	return alive;
}

/* Whether everybody who is there knows all the others, and nobody else: where one has left and one
 * has come, who has heard of neither knows as many. */
static bool clients_agree(const struct world *w)
{
	size_t others = clients_alive(w) - 1;

	for (size_t i = 0; i < w->present; i++) {
		if (client_reads(w, i) && !client_knows(&w->clients[i], &others))
			return false;
		for (size_t k = 0; k < w->present; k++)
			if (i != k && client_reads(w, i) && client_reads(w, k) &&
			    !client_sees(&w->clients[i], &w->clients[k].id))
				return false;
	}
	return true;
}

/*
 * Whether a client has lost its connection, and was not turned away. If it did because the call
 * that failed said that it had gone, it is no error that this came in its greeting.
 */
static bool client_dropped(struct client *c)
{
	if (c->sock < 0 || !c->ended || c->phase == CLIENT_REFUSED)
		return false;
	if (strstr(c->error, "the stream ended"))
		c->error[0] = '\0';
	return true;
}

/* Lets the one that does not read do so once its connection has ended. */
static void idler_look(struct world *w)
{
	struct client *c = &w->clients[IDLER];
	struct pollfd end = {.fd = c->sock, .events = POLLRDHUP};

	if (!w->idle || poll(&end, 1, 0) <= 0)
		return;
	w->idle = false;
	while (client_step(c) > 0)
		;
	client_dropped(c);
}

/* Lets all clients read until they agree. Whatever is not exact is noted. */
static bool clients_settle(struct world *w)
{
	int64_t deadline = deadline_in(PATIENCE);

	do {
		idler_look(w);
		for (size_t i = 0; i < w->present; i++)
			while (client_reads(w, i) && client_step(&w->clients[i]) > 0)
				;
		if (clients_error(w->clients, w->present))
			break;
		if (clients_agree(w))
			return true;
	} while (deadline_ahead(deadline));
	for (size_t i = 0; i < w->present; i++)
		test_fail("client %d knows %zu others, %zu whole; %s", w->clients[i].id,
			  w->clients[i].here, w->clients[i].whole, w->clients[i].error);
	return false;
}

/* All who read ring each other, on every vector; each bell rings as often as it was rung. */
static void bells_check(struct world *w)
{
	size_t others = clients_alive(w) - 1 - w->idle;

	for (int v = 0; v < vectors(w); v++) {
		for (size_t i = 0; i < w->present; i++)
			for (size_t k = 0; k < w->present; k++)
				if (i != k && client_reads(w, i) && client_reads(w, k) &&
				    !client_ring(&w->clients[i], w->clients[k].id, v))
					test_fail("%d cannot ring %d", w->clients[i].id,
						  w->clients[k].id);
		for (size_t i = 0; i < w->present; i++)
			if (client_reads(w, i) && client_rung(&w->clients[i], v) != others)
				test_fail("the bell of %d was not rung %zu times", w->clients[i].id,
					  others);
	}
}

/* Connects the client of that place. */
static void client_come(struct world *w, size_t place)
{
	if (!client_connect(&w->clients[place], w->server.socket,
			    (struct client_options){.vectors = vectors(w), .keep = true}))
		test_fail("%s", w->clients[place].error);
	if (w->present <= place)
		w->present = place + 1;
}

/* The log since the fault; the caller frees it. */
static char *log_new(const struct world *w)
{
	char *log = server_log(&w->server), *text;

	text = strdup(log && strlen(log) >= w->logged ? log + w->logged : "");
	free(log);
	if (!text)
		test_abort("no memory");
	return text;
}

/* Waits until the log says something, since the fault. */
static bool log_wait(const struct world *w, const char *text)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool found = false;

	do {
		char *log = log_new(w);

		found = strstr(log, text);
		free(log);
	} while (!found && deadline_ahead(deadline));
	return found;
}

/* The supervisor has all who are there, and nobody else: what was not told at once is told soon. */
static void store_check(const struct world *w)
{
	size_t here = clients_alive(w);

	if (!supervisor_wait(supervisor, "node-*", here, PATIENCE))
		test_fail("%zu nodes are there, and %zu stored", here,
			  supervisor_count(supervisor, "node-*"));
	if (supervisor_error(supervisor))
		test_fail("the supervisor was told: %s", supervisor_error(supervisor));
}

/* The same for one of the residents, which the log has to name then. */
static bool resident_dropped(struct world *w, size_t place)
{
	struct client *c = &w->clients[place];
	char named[32];

	if (!client_dropped(c))
		return false;
	snprintf(named, sizeof(named), "ID %d left: ", c->id);
	if (!log_wait(w, c->id < 0 ? " left: " : named))
		test_fail("%d was cut off without a word", c->id);
	return true;
}

/*
 * Somebody asks for the status: he is told who is there; or nothing, and then he asks again. No
 * node has come by that.
 */
static void status_check(const struct world *w)
{
	char *text = NULL;

	for (int i = 0; i < 3 && !text; i++) {
		text = look(w->server.socket);
		/* What strace has not let it close stays open. */
		if (!text && errno != 0 && errno != ETIME) {
			test_fail("who asks for the status: %s", strerror(errno));
			return;
		}
	}
	if (!text)
		test_fail("the status is never told");
	else if (look_nodes(text) != clients_alive(w))
		test_fail("%zu nodes are there, and the status is %s", clients_alive(w), text);
	free(text);
}

/* Who has connected rings everybody and is rung, and goes. */
static enum outcome newcomer_meets(struct world *w)
{
	struct client *newcomer = &w->clients[NEWCOMER];
	enum outcome outcome;
	size_t dropped;

	clients_drive(newcomer, 1, client_answered, NULL, PATIENCE);
	dropped = client_dropped(newcomer);
	clients_settle(w);
	bells_check(w);
	store_check(w);
	status_check(w);
	outcome = newcomer->phase == CLIENT_REFUSED ? TURNS_AWAY : JOINS;
	client_free(newcomer);
	w->present = RESIDENTS;
	clients_settle(w);
	for (size_t i = 0; i < RESIDENTS; i++)
		dropped += resident_dropped(w, i);
	store_check(w);
	if (dropped > 1)
		test_fail("%zu clients were dropped", dropped);
	return dropped > 0 ? DROPS : outcome;
}

/* A client comes, rings everybody and is rung, and goes. */
static enum outcome visit(struct world *w)
{
	server_signal(&w->server, SIGUSR1);
	client_come(w, NEWCOMER);
	return newcomer_meets(w);
}

static bool server_alive(struct world *w)
{
	return w->server.pid > 0 && waitpid(w->server.pid, NULL, WNOHANG) == 0;
}

/* Restarts the server in place, or not. */
static enum outcome restart(struct world *w)
{
	int64_t deadline = deadline_in(PATIENCE);
	enum outcome outcome = DIES;
	bool alive, told;

	server_signal(&w->server, SIGHUP);
	do {
		char *log;

		told = supervisor_ready(); /* should the line be lost, which comes first */
		log = log_new(w);
		alive = server_alive(w);
		if (strstr(log, "going on without"))
			outcome = STAYS;
		else if (strstr(log, "restarted in place") || told)
			outcome = RESTARTS;
		free(log);
	} while (alive && outcome == DIES && deadline_ahead(deadline));
	if (!alive) {
		w->server.pid = 0;
		return DIES;
	}
	return outcome;
}

/* Ends the server. */
static enum outcome end(struct world *w)
{
	char path[256];
	int status = server_stop(&w->server);

	if (status != 0)
		test_fail("ends with status %d", status);
	for (size_t i = 0; i < w->present; i++)
		while (client_step(&w->clients[i]) > 0)
			;
	snprintf(path, sizeof(path), "%s/pidfile", w->server.folder);
	return access(w->server.socket, F_OK) == 0 || access(path, F_OK) == 0 ? LEAVES : ENDS;
}

/* Whether it has children that it will wait for: those that flush the file. */
static bool server_has_children(const struct world *w)
{
	char path[64], *text, word[16];
	const char *list;
	int children = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", w->server.pid, w->server.pid);
	text = file_text(path);
	list = text ? text : "";
	while (*word_next(&list, word, sizeof(word)))
		children++;
	free(text);
	return children > 0;
}

/* Waits until it has waited for them. */
static void children_await(const struct world *w)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (server_has_children(w) && deadline_ahead(deadline))
		;
}

/* Starts the server, which may be one that takes over, with or without waiting for it. */
static bool world_start(struct world *w, bool (*start)(struct server *s, const char *const *args))
{
	struct group *group = getgrgid(getegid());
	const char *args[] = {"-f", "memory",  "-n", w->setting->vectors,          "-y", "86400",
			      "-i", "pidfile", "-g", group ? group->gr_name : "0", NULL, "log",
			      NULL};

	if (w->setting->log_file)
		args[10] = "-o";
	if (w->setting->unprivileged) /* no member of it */
		args[8] = NULL;
	return start(&w->server, args);
}

/* Another takes the place of the client that may not read, and does not. */
static void idler_come(struct world *w)
{
	if (!w->setting->idle)
		return;
	client_free(&w->clients[IDLER]);
	clients_settle(w);
	client_come(w, IDLER);
	w->idle = true;
	clients_settle(w);
}

/* Starts a server, and the clients that stay. */
static void world_open(struct world *w, const struct setting *setting)
{
	*w = (struct world){.setting = setting,
			    .server = {.descriptors = {setting->descriptors, setting->descriptors},
				       .unprivileged = setting->unprivileged,
				       .supervisor = supervisor}};
	supervisor_forget();
	if (!world_start(w, server_start))
		test_abort(w->server.error);
	for (size_t i = 0; i < RESIDENTS; i++)
		client_come(w, i);
	clients_settle(w);
	visit(w);
	idler_come(w);
	children_await(w);
	w->descriptors = server_idle(&w->server);
}

static void world_close(struct world *w)
{
	clients_free(w->clients, w->present);
	server_remove(&w->server);
}

static void world_renew(struct world *w)
{
	world_close(w);
	world_open(w, w->setting);
}

/*
 * Taking over
 */

/* Kills the server while nothing is under way, and holds the next at its first instruction. */
static void successor_hold(struct world *w)
{
	char *log = server_log(&w->server);

	w->logged = log ? strlen(log) : 0;
	free(log);
	store_check(w);
	/* Signals are taken when all is sent that can be. */
	server_signal(&w->server, SIGUSR1);
	if (!log_wait(w, "joined so far"))
		test_fail("USR1 is not answered");
	log = log_new(w);
	if (w->idle && strstr(log, " joined so far, 0 messages waiting"))
		test_fail("the socket of the client that does not read is not full: %s", log);
	free(log);
	server_signal(&w->server, SIGKILL);
	server_wait(&w->server, PATIENCE);
	client_come(w, NEWCOMER);
	w->server.held = true;
	if (!world_start(w, server_spawn))
		test_abort(w->server.error);
	w->server.held = false;
}

/* Lets it take over, or be refused. Who has connected meanwhile is served then. */
static enum outcome take_over(struct world *w)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool ready = false;
	int status;

	server_signal(&w->server, SIGCONT);
	do {
		char *log = log_new(w);

		if (waitpid(w->server.pid, &status, WNOHANG) == w->server.pid) {
			w->server.pid = 0;
			w->status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
			free(log);
			return w->status > 0 ? REFUSES : DIES;
		}
		ready = strstr(log, "connect a node:") || supervisor_ready();
		free(log);
	} while (!ready && deadline_ahead(deadline));
	if (!ready)
		test_fail("it neither serves nor ends");
	return ready ? newcomer_meets(w) : DIES;
}

/* After a start that was refused, the next must find all that the first did. */
static void take_over_next(struct world *w)
{
	char *log = server_log(&w->server), text[64];

	w->logged = log ? strlen(log) : 0;
	free(log);
	if (!world_start(w, server_start)) {
		test_fail("after a start that was refused, none can take over: %s",
			  w->server.error);
		return;
	}
	if (newcomer_meets(w) != JOINS)
		test_fail("after a start that was refused, not all are taken over");
	snprintf(text, sizeof(text), "took over %d nodes", RESIDENTS);
	log = log_new(w);
	if (!strstr(log, text) || strstr(log, "restart the node"))
		test_fail("after a start that was refused: %s", log);
	free(log);
}

/*
 * Faults
 */

/* Waits until it has no more descriptors than before: one that is only useful may be missing. */
static bool descriptors_settle(const struct world *w)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool fine;

	while (!(fine = server_descriptors(&w->server) <= w->descriptors + w->leaked) &&
	       deadline_ahead(deadline))
		;
	return fine;
}

/* After a fault: whoever was dropped comes back, and then all must be as ever. */
static void world_check(struct world *w)
{
	if (!server_alive(w)) {
		test_fail("the server is gone");
		world_renew(w);
		return;
	}
	w->idle = false;
	for (size_t i = 0; i < RESIDENTS; i++)
		if (!client_alive(&w->clients[i])) {
			client_free(&w->clients[i]);
			client_come(w, i);
		}
	if (visit(w) != JOINS)
		test_fail("afterwards, no client can join");
	idler_come(w);
	children_await(w);
	if (!descriptors_settle(w))
		test_fail("%d descriptors, before there were %d", server_descriptors(&w->server),
			  w->descriptors + w->leaked);
}

static bool injected(size_t *times)
{
	struct calls calls;
	bool found;

	if (!calls_read(&calls, strace_log))
		test_abort(strace_log);
	found = calls_injected(&calls, times);
	calls_free(&calls);
	return found;
}

/* Does what the phase is about while a call fails. The caller frees the calls. */
static enum outcome phase_run(const struct phase *phase, struct world *w, const struct fault *fault,
			      struct calls *calls)
{
	struct strace strace;
	enum outcome outcome;
	char *log;
	size_t times;

	if (phase->prepare)
		phase->prepare(w);
	log = server_log(&w->server);
	w->logged = log ? strlen(log) : 0;
	free(log);
	supervisor_ready();
	if (!strace_attach(&strace, w->server.pid, strace_log, fault))
		test_abort("cannot attach strace");
	for (int i = 0; i < ATTEMPTS; i++) {
		outcome = phase->act(w);
		children_await(w);
		/* What comes of another restart could not be told from what came of this one. */
		if (!fault->call || phase->act != visit || outcome == DIES || injected(&times))
			break;
	}
	strace_detach(&strace);
	if (server_alive(w))
		server_idle(&w->server); /* it has said what it had to say */
	if (!calls_read(calls, strace_log))
		test_abort(strace_log);
	return outcome;
}

/* What is going on while a call is made, in the words of the rules. */
static const char *phase_now(const struct phase *phase, const struct calls *calls,
			     const struct call *c, bool child)
{
	if (phase->act == restart)
		return child ? "checking" : c->after_exec ? "resuming" : "restarting";
	if (phase->act != take_over)
		return phase->name;
	for (const struct call *i = calls->list; i < c; i++)
		if (i->own && (strstr(i->text, ": took over ") || !strcmp(i->name, "accept4")))
			return "serving";
	return phase->name;
}

/*
 * Lets one call fail. Returns false if another was hit, one that cannot fail or is not the server's
 * own: how often it makes a call depends on how fast others are; or if the machine was so slow that
 * a trial was given up, unless that is no excuse any more.
 */
static bool fault_try(const struct phase *phase, struct world *w, const struct fault *fault,
		      bool excuse)
{
	struct result r = {0};
	struct calls calls;
	const struct call *c;
	const char *now;
	char *log;
	size_t times;
	bool hit;

	r.outcome = phase_run(phase, w, fault, &calls);
	c = calls_injected(&calls, &times);
	now = c ? phase_now(phase, &calls, c, fault->children) : phase->name;
	hit = c && times == 1 && c->own &&
	      rule_find(rules, now, &calls, c, fault->error)->outcome != NEVER;
	r.status = w->status;
	r.log = log = log_new(w);
	hit = hit && !(excuse && strstr(log, "did not say within"));
	if (hit)
		fault_check(rules, now, &calls, fault, &r);
	if (r.outcome == REFUSES && r.status != (strstr(log, "--help") ? 2 : EXIT_FAILURE))
		test_fail("%s %u %s: ends with status %d", fault->call, fault->nth, fault->error,
			  r.status);
	if (r.outcome == DROPS && !strcmp(now, "takeover") && !strstr(log, "restart the node"))
		test_fail("nobody was told to restart a node: %s", log);
	/* An exec closes what was left open before, as an end does. */
	w->leaked = c && !strcmp(c->name, "close") && (r.outcome != RESTARTS || c->after_exec) &&
		    r.outcome != REFUSES;
	if (r.outcome == REFUSES)
		take_over_next(w);
	if (phase->repeats && (hit || server_alive(w)))
		world_check(w);
	if (!phase->repeats || !server_alive(w) || w->leaked)
		world_renew(w);
	calls_free(&calls);
	free(log);
	return hit;
}

/*
 * The calls that a server makes in a phase in which nothing fails: those of its children, or its
 * own. strace follows children only for theirs, since who is traced is slower, and how often the
 * server makes some calls depends on that.
 */
static void phase_learn(const struct phase *phase, struct world *w, bool children,
			struct calls *calls)
{
	calls_free(calls);
	phase_run(phase, w, &(struct fault){.children = children}, calls);
	if (phase->repeats)
		world_check(w);
	else
		world_renew(w);
}

/* The nth call of that name which the program makes itself. NULL: there is none. */
static const struct call *call_at(const struct calls *calls, bool children, const char *name,
				  unsigned int nth)
{
	pid_t server = calls->n ? calls->list[0].pid : 0;

	for (size_t i = 0; i < calls->n; i++) {
		const struct call *c = &calls->list[i];

		if (c->own && (c->pid != server) == children && !strcmp(c->name, name) &&
		    --nth == 0)
			return c;
	}
	return NULL;
}

/*
 * Whether a call can fail, and alone. strace counts in each process anew: the nth call of a child
 * cannot fail alone if the server, which is then traced as well, makes as many.
 */
static bool call_fails_alone(const struct phase *phase, const struct calls *calls, bool children,
			     const struct call *c, const char *error)
{
	const char *now = phase_now(phase, calls, c, children);
	unsigned int others = 0;

	for (size_t i = 0; i < calls->n; i++)
		others += children && calls->list[i].pid == calls->list[0].pid &&
			  !strcmp(calls->list[i].name, c->name);
	return rule_find(rules, now, calls, c, error)->outcome != NEVER &&
	       (c->nth > others || !strcmp(now, "checking"));
}

/* Lets a call fail, learning anew where it is if another was hit. Returns whether it did. */
static bool fault_try_at(const struct phase *phase, struct world *w, struct calls *calls,
			 bool children, const char *name, unsigned int place, const char *error)
{
	for (int i = 0; i < ATTEMPTS; i++) {
		const struct call *c = call_at(calls, children, name, place);
		struct fault fault = {
			.call = name, .error = error, .nth = c ? c->nth : 0, .children = children};

		if (!c || !call_fails_alone(phase, calls, children, c, error))
			return false;
		if (fault_try(phase, w, &fault, i < ATTEMPTS - 1))
			return true;
		phase_learn(phase, w, children, calls);
	}
	return false;
}

/* All faults of one kind of call in a phase. */
static void calls_try(const struct phase *phase, struct world *w, struct calls *calls,
		      bool children, const char *name)
{
	const char *errors = fault_errors(name);
	unsigned int tried = 0;
	char error[32];

	for (unsigned int place = 1; call_at(calls, children, name, place); place++) {
		const char *list = errors;

		for (unsigned int e = 0; *word_next(&list, error, sizeof(error)); e++)
			if (faults_chosen(place, e))
				tried +=
					fault_try_at(phase, w, calls, children, name, place, error);
	}
	if (tried)
		test_end("%s%s: %s fails, %u faults", phase->name, children ? " (child)" : "", name,
			 tried);
}

/* Runs a phase without any fault, and then with each, in the server or in its children. */
static void phase_test(const struct phase *phase, bool children)
{
	struct world w;
	struct calls calls = {0}, all = {0};

	world_open(&w, phase->setting);
	phase_learn(phase, &w, children, &all);
	calls_name(&all);
	test_end("%s%s: every call is in the table", phase->name, children ? " (child)" : "");
	phase_learn(phase, &w, children, &calls);
	for (size_t i = 0; i < all.n; i++)
		if (calls_first(&all, &all.list[i]) && fault_errors(all.list[i].name))
			calls_try(phase, &w, &calls, children, all.list[i].name);
	calls_free(&calls);
	calls_free(&all);
	world_close(&w);
}

static const struct setting logged = {.vectors = "2", .descriptors = 4096, .log_file = true};
static const struct setting usual = {.vectors = "2", .descriptors = 4096};

/* A socket holds 17 messages then, and a greeting has 3 + 6 * 3. */
static const struct setting narrow = {
	.vectors = "6", .descriptors = 17 * 64, .unprivileged = true, .idle = true};

static const struct phase phases[] = {
	{.name = "serving", .setting = &usual, .act = visit, .repeats = true, .children = true},
	{.name = "restarting",
	 .setting = &logged,
	 .act = restart,
	 .repeats = true,
	 .children = true},
	{.name = "takeover",
	 .setting = &narrow,
	 .prepare = successor_hold,
	 .act = take_over,
	 .repeats = true},
	{.name = "ending", .setting = &usual, .act = end},
};

/*
 * Where one attempt to get memory fails, the C library makes another. So here all fail, for a while
 * in which a client comes that has many vectors: it is served, since nothing is allocated for that.
 */
static void memory_test_join(void)
{
	const size_t residents = 2, others = 2;
	const struct client_options options = {.vectors = VECTORS_MAX};
	struct fault fault = {.call = "brk mmap", .error = "ENOMEM", .nth = 1, .onwards = true};
	struct world w = {0};
	struct strace strace;

	if (!server_start(&w.server, SERVER_ARGS("-f", "memory", "-n", VECTORS_MAX_TEXT)))
		test_abort(w.server.error);
	for (size_t i = 0; i < residents; i++)
		if (!client_connect(&w.clients[i], w.server.socket, options) ||
		    !clients_drive(w.clients, i + 1, client_knows, &i, PATIENCE))
			test_fail("%s", w.clients[i].error);
	if (!strace_attach(&strace, w.server.pid, strace_log, &fault))
		test_abort("cannot attach strace");
	client_connect(&w.clients[residents], w.server.socket, options);
	if (!clients_drive(w.clients, residents + 1, client_knows, &others, PATIENCE))
		test_fail("%s", clients_error(w.clients, residents + 1)->error);
	strace_detach(&strace);
	clients_free(w.clients, residents + 1);
	if (server_stop(&w.server) != 0)
		test_fail("it does not end as it should");
	server_remove(&w.server);
}

/* The same while it restarts: then the program on disk cannot even be tried. */
static void memory_test_restart(void)
{
	struct fault fault = {
		.call = "brk mmap", .error = "ENOMEM", .nth = 1, .onwards = true, .children = true};
	const struct phase phase = {.name = "restarting", .act = restart};
	struct calls calls;
	struct world w;

	world_open(&w, &usual);
	if (phase_run(&phase, &w, &fault, &calls) != STAYS)
		test_fail("it does not go on without a restart");
	world_check(&w);
	calls_free(&calls);
	world_close(&w);
}

static void memory_test(void)
{
	/* A sanitizer ends the program where there is no memory. */
	if (sanitized())
		return;
	memory_test_join();
	test_end("serving: no memory");
	memory_test_restart();
	test_end("restarting: no memory");
}

int main(void)
{
	const char *folder = getenv("TEST_DIR");

	descriptors_allow();
	/* What we were started with is not for servers that fail to close it. */
	close_range(STDERR_FILENO + 1, UINT_MAX, CLOSE_RANGE_CLOEXEC);
	if (!strace_works())
		return matrix_close();
	if (!folder || snprintf(strace_log, sizeof(strace_log), "%s/strace", folder) >=
			       (int)sizeof(strace_log))
		test_abort("no $TEST_DIR");
	matrix_open("faults-serve");
	supervisor = supervisor_begin();
	for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++) {
		phase_test(&phases[i], false);
		if (phases[i].children)
			phase_test(&phases[i], true);
	}
	memory_test();
	return matrix_close();
}
