/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ivshmem_client: a peer of an ivshmem server for host programs, scripts and people
 *
 * Theory of operation. The client connects as a node would, and from the server's stream keeps a
 * table of the mesh: for each ID the eventfds that ring that peer's doorbells, its own among them,
 * on which it waits. A command is then done with that table: list, ring, wait and watch; a dialog
 * in the words of QEMU's ivshmem-client; or run, which makes another program a peer.
 *
 * That program is a child, which gets the memory as a descriptor and two pipes of text lines: one
 * tells it what happens in the mesh, the other takes what it wants rung. It must be able to read
 * late or never, without memory growing here or the server's stream standing still. So nothing is
 * queued: a line is only made when the pipe has room, from what then is true. Rings add up in
 * the counter of the eventfd, which is not read before; joins and leaves are the difference between
 * the table and what each entry says that the child has been told.
 */
#define _GNU_SOURCE
#include "send_scm.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unversioned"
#endif

#define DEFAULT_SOCKET "/tmp/ivshmem_socket"
#define IDS            65536
#define VECTORS_MAX    2048
#define MEMORY         (-1) /* the value beside the descriptor of the shared memory */
#define REFUSED        (-1) /* a version: the server turns us away */
#define ALL            (-1) /* every vector, or every other peer */
#define PATH_LENGTH    (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)
#define FOREVER        (INT64_MAX / 2) /* as long as a time in milliseconds can be */
#define SECONDS_MAX    (INT_MAX / 1000)
#define TURN           2048 /* messages that are read before something else has its turn */

/* Nothing ends a greeting but the last of our own vectors, and how many those are the server never
 * says. If no other peer shows it, none comes behind them, and nobody gave -n, a server that is
 * silent has told all. */
#define SILENCE_MS 300
/* After its first message a server without memory and vectors says nothing at all; any other that
 * is silent there so long is not well. */
#define LONE_MS  3000
#define QUIET_MS 10000 /* when a greeting that goes on no more is given up */
#define RETRY_MS 1000  /* between two attempts to connect, in a dialog */

/* What the program of `run` finds. */
#define CHILD_MEMORY   3
#define CHILD_EVENTS   4
#define CHILD_REQUESTS 5
#define DRAIN_READS    1024 /* of a page each: what a pipe can hold when the program has ended */

#define WHY_SIZE 256

static const char default_socket[] = DEFAULT_SOCKET;

static const char help_text[] =
	"Usage: ivshmem_client [OPTION]... [SOCKET] [COMMAND]\n"
	"Connect to an ivshmem server as a node would. Others see it join, and leave at the end.\n"
	"\n"
	"  list                   show the own ID, the size of the memory in bytes, the own\n"
	"                         vectors, and each peer with its vectors\n"
	"  ring ID VECTOR         ring a doorbell of that peer\n"
	"  ring ID all, ring all  ring all of that peer, or all of all others\n"
	"  wait VECTOR [SECONDS]  show the own ID, wait until that doorbell is rung, show how often\n"
	"  watch [SECONDS]        list, and then show who joins and who leaves (SECONDS: 5, 0.5)\n"
	"  run PROGRAM [ARG]...   run a program as a peer: memory, events and requests are its\n"
	"                         descriptors 3, 4 and 5 (see the manual page)\n"
	"Without a command, words are read from standard input: dump, int ID VECTOR, int ID all,\n"
	"int all, help, quit.\n"
	"\n"
	"  -S, --socket PATH      the server's socket (default " DEFAULT_SOCKET ")\n"
	"  -n, --vectors N        the server gives N vectors to each node: checked, and nothing\n"
	"                         needs to be waited for to be sure that the greeting is complete\n"
	"  -v, --verbose          show every message of the server on standard error\n"
	"  -V, --version          print the version and exit\n"
	"  -h, --help             print this help and exit\n"
	"\n"
	"Exit status: 0, done; 1, not done, for the reason given; 2, a mistake in the command line;\n"
	"of run: that of the program, or 128 and the number of the signal that ended it.\n";

/* A peer, or the client itself. It is there if it has vectors. */
struct peer {
	int vectors; /* eventfds received */
	int *fds;    /* those; closed by peer_free */
	bool told;   /* its join has been told of */
	bool left;   /* since then it has left, of which has not been told */
};

/* What the next message must be. */
enum head { HEAD_FIRST, HEAD_SECOND, HEAD_MEMORY, HEAD_DONE };

/* The mesh as the server's messages describe it. */
struct mesh {
	const char *path;
	int given_vectors; /* by -n; -1: not given */
	bool verbose;
	int64_t patience; /* how long the server may be silent until it has greeted us, in ms */
	int sock;         /* closed when the connection ends; -1: that has happened */
	bool gone;        /* then: the server has ended it, not we */
	enum head head;
	int id;
	int memory;           /* closed by mesh_free; -1: none */
	off_t size;           /* of the memory, in bytes */
	int vectors;          /* that a whole peer has; -1: not known yet */
	int most;             /* eventfds that one peer has had: vectors are no fewer */
	int group;            /* the ID whose eventfds are coming in; -1: none */
	int ids;              /* one above the highest ID that has been seen */
	int news, news_end;   /* no ID below, nor from the second on, has anything to be told */
	char error[WHY_SIZE]; /* why the connection ended */
	struct peer peers[IDS];
};

/* What a command asks for. */
struct request {
	int id, vector;   /* either may be ALL */
	int64_t patience; /* SECONDS, in milliseconds */
	char **program;
};

/*
 * Saying what is wrong
 */

/* Says something on standard error. */
__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
	char text[2 * WHY_SIZE];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fflush(stdout);
	fprintf(stderr, "ivshmem_client: %s\n", text);
}

/* Ends the program: with 1, not done, or 2, a mistake in the command line. */
__attribute__((format(printf, 2, 3), noreturn)) static void quit(int status, const char *format,
								 ...)
{
	char text[2 * WHY_SIZE];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	complain("%s%s", text, status == 2 ? " (see 'ivshmem_client --help')" : "");
	exit(status);
}

/* Writes out what has been printed, or ends the program: who cannot be heard need not go on. */
static void output_flush(void)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		quit(1, "cannot write to standard output: %s", strerror(errno));
}

/* Notes why something cannot be. Returns false, for its caller to return. */
__attribute__((format(printf, 2, 3))) static bool wrong(char *why, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, WHY_SIZE, format, args);
	va_end(args);
	return false;
}

/* Reads a whole number from 0 to max. Returns false with why. */
static bool number_read(const char *what, const char *text, int max, int *number, char *why)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > max)
		return wrong(why, "%s '%.40s': give a whole number from 0 to %d", what, text, max);
	*number = (int)value;
	return true;
}

/* The same for the command line. */
static int number_parse(const char *what, const char *text, int max)
{
	char why[WHY_SIZE];
	int number = 0;

	if (!number_read(what, text, max, &number, why))
		quit(2, "%s", why);
	return number;
}

/*
 * Time
 */

/* The moment that lies so many milliseconds ahead, on a clock that nobody sets. */
static int64_t clock_ahead(int64_t ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000 + ms;
}

/* Waits for one of them, or for the deadline; it may end early. */
static void polls_wait(struct pollfd *polls, size_t n, int64_t deadline)
{
	int64_t wait = deadline - clock_ahead(0);

	if (wait < 0)
		wait = 0;
	if (poll(polls, n, wait > INT_MAX ? INT_MAX : (int)wait) >= 0)
		return;
	if (errno != EINTR)
		quit(1, "cannot wait: %s", strerror(errno));
	for (size_t i = 0; i < n; i++)
		polls[i].revents = 0;
}

/*
 * Doorbells. Whether an eventfd blocks is up to all who have it open, so it is asked first.
 */

/* Rings once. One whose counter is full has been rung, and not heard. */
static bool bell_ring(int fd)
{
	uint64_t once = 1;

	if (poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, 0) == 0)
		return true;
	return write(fd, &once, sizeof(once)) == sizeof(once) || errno == EAGAIN;
}

/* How often it was rung since the last call. */
static uint64_t bell_count(int fd)
{
	uint64_t count;

	if (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) != 1 ||
	    read(fd, &count, sizeof(count)) != sizeof(count))
		return 0;
	return count;
}

/*
 * The mesh
 */

static void peer_free(struct peer *p)
{
	for (int i = 0; i < p->vectors; i++)
		close(p->fds[i]);
	free(p->fds);
	p->fds = NULL;
	p->vectors = 0;
}

static void mesh_disconnect(struct mesh *m)
{
	if (m->sock >= 0)
		close(m->sock);
	m->sock = -1;
}

/* Forgets everything but what the command line said. */
static void mesh_free(struct mesh *m)
{
	mesh_disconnect(m);
	for (int id = 0; id < m->ids; id++) {
		peer_free(&m->peers[id]);
		m->peers[id] = (struct peer){0};
	}
	if (m->memory >= 0)
		close(m->memory);
	m->memory = -1;
	m->size = 0;
	m->ids = 0;
}

static struct peer *mesh_own(struct mesh *m)
{
	return &m->peers[m->id];
}

/* Whether all doorbells of a peer are known: before, and after it has left, it is not there. */
static bool peer_whole(const struct mesh *m, int id)
{
	const struct peer *p = &m->peers[id];

	return p->vectors > 0 && (id == m->id || (m->vectors >= 0 && p->vectors >= m->vectors));
}

/* What somebody may do about it that the socket cannot be connected to. */
static const char *connect_remedy(int error)
{
	switch (error) {
	case ENOENT:
	case ECONNREFUSED: return ": start the server first, or give its socket with -S";
	case EACCES:
		return ": your user must be in the group of the socket, and may enter its folder";
	case EAGAIN: return ": the server takes nobody in; it is stopped, or hangs";
	default: return "";
	}
}

/* Connects, and reads nothing yet. Returns false with m->error. */
static bool mesh_connect(struct mesh *m)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = m->patience / 1000,
				   .tv_usec = m->patience % 1000 * 1000};
	int flags, connected;

	m->gone = false;
	m->head = HEAD_FIRST;
	m->vectors = m->given_vectors;
	m->most = 0;
	m->group = -1;
	m->news = IDS;
	m->news_end = 0;
	strcpy(address.sun_path, m->path); /* arguments_parse has looked at its length */
	m->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (m->sock < 0)
		return wrong(m->error, "no socket: %s", strerror(errno));
	/* Where as many wait to be accepted as may, the kernel lets the next one wait to wait. */
	setsockopt(m->sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	do
		connected = connect(m->sock, (struct sockaddr *)&address, sizeof(address));
	while (connected < 0 && errno == EINTR);
	flags = fcntl(m->sock, F_GETFL);
	if (connected == 0 && flags >= 0 && fcntl(m->sock, F_SETFL, flags | O_NONBLOCK) == 0)
		return true;
	wrong(m->error, "cannot connect to %s: %s%s", m->path, strerror(errno),
	      connect_remedy(errno));
	mesh_disconnect(m);
	return false;
}

static void news_note(struct mesh *m, int id)
{
	if (id < m->news)
		m->news = id;
	if (id >= m->news_end)
		m->news_end = id + 1;
}

/* Takes the descriptor of the memory. Returns false with m->error, and has not taken it. */
static bool memory_take(struct mesh *m, int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return wrong(m->error, "what the server sent as memory is no file");
	m->memory = fd;
	m->size = st.st_size;
	return true;
}

/*
 * The eventfds of the group, our own as well, are complete when those of another come; not when it
 * leaves: then those that were not sent yet never come, and of what it had nothing can be learned.
 */
static bool group_end(struct mesh *m)
{
	const struct peer *p = m->group >= 0 ? &m->peers[m->group] : NULL;

	if (!p)
		return true;
	if (m->vectors < 0) {
		m->vectors = p->vectors;
		news_note(m, m->group);
	}
	return p->vectors >= m->given_vectors ||
	       wrong(m->error, "the server gives each node %d vector%s, not %d, as -n says",
		     p->vectors, p->vectors == 1 ? "" : "s", m->given_vectors);
}

/* Takes the next eventfd of a peer. Returns false with m->error, and has not taken it. */
static bool join_take(struct mesh *m, int64_t value, int fd)
{
	struct peer *p;
	int id, *fds;

	if (value < 0 || value >= IDS)
		return wrong(m->error,
			     "the server sent a descriptor of %" PRId64 ", which is no ID", value);
	id = (int)value;
	p = &m->peers[id];
	if (id != m->group && !group_end(m))
		return false;
	m->group = id;
	if (p->vectors == (m->given_vectors < 0 ? VECTORS_MAX : m->given_vectors))
		return wrong(m->error, "the server gives more than %d vector%s%s", p->vectors,
			     p->vectors == 1 ? "" : "s",
			     m->given_vectors < 0 ? "" : ", as -n says");
	fds = reallocarray(p->fds, (size_t)p->vectors + 1, sizeof(*fds));
	if (!fds)
		return wrong(m->error, "no memory for an eventfd");
	p->fds = fds;
	fds[p->vectors++] = fd;
	if (id >= m->ids)
		m->ids = id + 1;
	if (p->vectors > m->most)
		m->most = p->vectors;
	news_note(m, id);
	return true;
}

/* A peer that was not known, since it had no vectors, has nothing to leave with. */
static bool leave_take(struct mesh *m, int64_t value)
{
	struct peer *p;

	if (value < 0 || value >= IDS || value == m->id)
		return wrong(m->error, "the server says that %" PRId64 " left, which cannot be",
			     value);
	p = &m->peers[value];
	p->left = p->told;
	peer_free(p);
	if (m->group == (int)value)
		m->group = -1;
	news_note(m, (int)value);
	return true;
}

/*
 * The first messages: version, ID and memory. The original stream has no version, and no memory
 * where the server has none; its second message tells it by its descriptor.
 */
static bool head_take(struct mesh *m, int64_t value, int fd)
{
	bool id = fd < 0 && value >= 0 && value < IDS;

	switch (m->head) {
	case HEAD_FIRST:
		if (value == REFUSED)
			return wrong(m->error, "the server at %s refused us; its log says why",
				     m->path);
		if (!id)
			break;
		m->id = (int)value;
		m->head = HEAD_SECOND;
		return true;
	case HEAD_SECOND:
		if (fd >= 0) {
			m->head = HEAD_DONE;
			return value == MEMORY ? memory_take(m, fd) : join_take(m, value, fd);
		}
		if (m->id != 0)
			return wrong(m->error, "the server speaks version %d of the protocol, we 0",
				     m->id);
		if (!id)
			break;
		m->id = (int)value;
		m->head = HEAD_MEMORY;
		return true;
	default:
		if (fd < 0 || value != MEMORY)
			break;
		m->head = HEAD_DONE;
		return memory_take(m, fd);
	}
	return wrong(m->error,
		     "%s is no ivshmem server: it began with %" PRId64 " with%s a descriptor",
		     m->path, value, fd < 0 ? "out" : "");
}

static bool message_take(struct mesh *m, int64_t value, int fd)
{
	if (m->verbose)
		complain("message %" PRId64 "%s", value, fd < 0 ? "" : " with a descriptor");
	if (m->head != HEAD_DONE)
		return head_take(m, value, fd);
	return fd < 0 ? leave_take(m, value) : join_take(m, value, fd);
}

/*
 * Reads one message, if there is one. Returns whether there was. When the connection ends, m->sock
 * is -1, m->error says why, and m->gone whether it was the server that ended it.
 */
static bool message_read(struct mesh *m)
{
	int64_t value;
	int fd, n;

	if (m->sock < 0)
		return false;
	n = scm_recv(m->sock, &value, &fd);
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n > 0 && message_take(m, value, fd))
		return true;
	m->gone = n == 0 || (n < 0 && errno == ECONNRESET);
	if (n > 0 && fd >= 0)
		close(fd);
	else if (m->gone)
		wrong(m->error, "the server closed the connection");
	else if (n < 0 && errno == EPROTO)
		wrong(m->error, "a message is broken, or there was no descriptor left for it: "
				"raise 'ulimit -n'");
	else if (n < 0)
		wrong(m->error, "cannot read from the server: %s", strerror(errno));
	mesh_disconnect(m);
	return false;
}

/* Whether the greeting is complete beyond doubt. */
static bool greeting_certain(const struct mesh *m)
{
	return m->head == HEAD_DONE && m->vectors >= 0 && m->peers[m->id].vectors >= m->vectors;
}

/* Whether a server that has been silent so long will say no more. */
static bool greeting_over(const struct mesh *m, int64_t silence)
{
	if (m->head == HEAD_SECOND && m->given_vectors <= 0)
		return silence >= LONE_MS;
	return m->head == HEAD_DONE && m->vectors < 0 && m->peers[m->id].vectors >= m->most &&
	       silence >= SILENCE_MS;
}

/* Reads the greeting. Returns false with m->error. */
static bool greeting_read(struct mesh *m)
{
	int64_t heard = clock_ahead(0);

	while (!greeting_certain(m)) {
		struct pollfd poll = {.fd = m->sock, .events = POLLIN};
		/* Taken before the look: if we are stopped behind it, that is no silence. */
		int64_t silence = clock_ahead(0) - heard;

		if (message_read(m)) {
			heard = clock_ahead(0);
			continue;
		}
		if (m->sock < 0)
			return false;
		if (greeting_over(m, silence))
			break;
		if (silence >= m->patience)
			return wrong(
				m->error,
				"the greeting of %s is not complete, and the server is silent%s",
				m->path, m->given_vectors < 0 ? "" : ": is -n right?");
		polls_wait(&poll, 1, clock_ahead(SILENCE_MS / 3));
	}
	m->head = HEAD_DONE;
	if (m->id >= m->ids)
		m->ids = m->id + 1;
	return true;
}

enum news { NEWS_NONE, NEWS_JOIN, NEWS_LEAVE };

/* The next thing that has not been told yet, and of whom; from now on it has. */
static enum news news_next(struct mesh *m, int *id)
{
	for (; m->news < m->news_end; m->news++) {
		struct peer *p = &m->peers[m->news];

		*id = m->news;
		if (p->told && p->left) {
			p->told = p->left = false;
			return NEWS_LEAVE;
		}
		if (!p->told && m->news != m->id && peer_whole(m, m->news)) {
			p->told = true;
			return NEWS_JOIN;
		}
	}
	m->news = IDS;
	m->news_end = 0;
	return NEWS_NONE;
}

/* Rings one doorbell of a peer, or ALL. Returns false with errno where it cannot. */
static bool peer_ring(const struct peer *p, int vector)
{
	for (int v = 0; v < p->vectors; v++)
		if ((vector == ALL || vector == v) && !bell_ring(p->fds[v]))
			return false;
	return true;
}

/* Rings what is asked for. Returns false with why, where there is no such doorbell. */
static bool mesh_ring(const struct mesh *m, const struct request *r, char *why)
{
	const struct peer *p;

	if (r->id == ALL) {
		for (int id = 0; id < m->ids; id++)
			if (id != m->id && peer_whole(m, id))
				peer_ring(&m->peers[id], ALL);
		return true;
	}
	p = &m->peers[r->id];
	if (!peer_whole(m, r->id))
		return wrong(why, "there is no peer %d", r->id);
	if (r->vector >= p->vectors)
		return wrong(why, "peer %d has no vector %d, only %d of them", r->id, r->vector,
			     p->vectors);
	return peer_ring(p, r->vector) ||
	       wrong(why, "cannot ring peer %d: %s", r->id, strerror(errno));
}

/* Reads "ID VECTOR", "ID all" or "all", up to a NULL. Returns false with why. */
static bool ring_read(char *const *words, struct request *r, char *why)
{
	bool all = words[0] && strcmp(words[0], "all") == 0;
	bool known = words[0] && (all ? !words[1] : words[1] && !words[2]);

	*r = (struct request){.id = ALL, .vector = ALL};
	if (!known)
		return wrong(why, "give ID VECTOR, ID all, or all");
	if (all)
		return true;
	return number_read("ID", words[0], IDS - 1, &r->id, why) &&
	       (strcmp(words[1], "all") == 0 ||
		number_read("VECTOR", words[1], VECTORS_MAX - 1, &r->vector, why));
}

/*
 * Lines of text
 */

#define LINE_WORDS 5 /* one more than any request has, and the NULL */

/* Text that comes in, in pieces. A line that does not fit is taken for several. */
struct lines {
	int fd;
	size_t start, end; /* of what has been read, and not been given out */
	char text[4096];
};

/* Reads once. Returns false at the end of the text. */
static bool lines_fill(struct lines *l)
{
	ssize_t n;

	memmove(l->text, l->text + l->start, l->end - l->start);
	l->end -= l->start;
	l->start = 0;
	do
		n = read(l->fd, l->text + l->end, sizeof(l->text) - 1 - l->end);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		l->end += (size_t)n;
	return n > 0 || (n < 0 && errno == EAGAIN);
}

/* The next whole line, which stands until lines_fill; NULL: there is none. */
static char *lines_next(struct lines *l)
{
	char *line = l->text + l->start;
	char *end = memchr(line, '\n', l->end - l->start);

	if (end) {
		l->start += (size_t)(end - line) + 1;
	} else {
		if (l->start > 0 || l->end < sizeof(l->text) - 1)
			return NULL;
		end = l->text + l->end;
		l->start = l->end;
	}
	*end = '\0';
	return line;
}

/* At the end of the text: what stands behind the last line; NULL: nothing. */
static char *lines_rest(struct lines *l)
{
	char *rest = l->text + l->start;

	l->text[l->end] = '\0';
	return l->start < l->end ? rest : NULL;
}

/* Cuts a line into words, with a NULL behind the last. What are too many stand in the last. */
static void words_split(char *line, char **words)
{
	size_t n = 0;
	char *rest = NULL;

	for (char *word = strtok_r(line, " \t\r", &rest); word && n < LINE_WORDS - 1;
	     word = strtok_r(NULL, " \t\r", &rest))
		words[n++] = word;
	words[n] = NULL;
}

/*
 * The commands list, ring, wait and watch
 */

static int list(struct mesh *m, const struct request *r)
{
	(void)r;
	printf("id %d\nmemory %jd\nvectors %d\n", m->id, (intmax_t)m->size, mesh_own(m)->vectors);
	for (int id = 0; id < m->ids; id++)
		if (id != m->id && peer_whole(m, id))
			printf("peer %d %d\n", id, m->peers[id].vectors);
	return 0;
}

static int ring(struct mesh *m, const struct request *r)
{
	char why[WHY_SIZE];

	if (!mesh_ring(m, r, why))
		quit(1, "%s", why);
	return 0;
}

/*
 * Doorbells need no server: one that ends is no reason to stop waiting. Where we have ended the
 * connection, the others have been told that we left, and nobody rings.
 */
static int wait_for(struct mesh *m, const struct request *r)
{
	int64_t deadline = clock_ahead(r->patience);
	uint64_t count;

	if (r->vector >= mesh_own(m)->vectors)
		quit(1, "there is no vector %d, only %d of them", r->vector, mesh_own(m)->vectors);
	printf("id %d\n", m->id);
	output_flush();
	while ((count = bell_count(mesh_own(m)->fds[r->vector])) == 0) {
		struct pollfd polls[] = {
			{.fd = m->sock, .events = POLLIN},
			{.fd = mesh_own(m)->fds[r->vector], .events = POLLIN},
		};

		if (clock_ahead(0) >= deadline)
			quit(1, "vector %d was not rung", r->vector);
		polls_wait(polls, 2, deadline);
		message_read(m);
		if (m->sock < 0 && !m->gone)
			quit(1, "%s", m->error);
	}
	printf("vector %d %" PRIu64 "\n", r->vector, count);
	return 0;
}

static int watch(struct mesh *m, const struct request *r)
{
	int64_t deadline = clock_ahead(r->patience);
	enum news news;
	int id;

	list(m, r);
	while (news_next(m, &id) != NEWS_NONE)
		; /* who is there has just been shown */
	while (clock_ahead(0) < deadline) {
		struct pollfd poll = {.fd = m->sock, .events = POLLIN};

		output_flush();
		polls_wait(&poll, 1, deadline);
		for (int turn = 0; turn < TURN && message_read(m); turn++)
			while ((news = news_next(m, &id)) != NEWS_NONE)
				printf("%s %d\n", news == NEWS_JOIN ? "join" : "leave", id);
		if (m->sock < 0)
			quit(1, "%s", m->error);
	}
	return 0;
}

/*
 * The command run
 */

enum { POLL_SIGNALS, POLL_SERVER, POLL_REQUESTS, POLL_EVENTS, POLL_BELLS };

struct run {
	struct mesh *m;
	pid_t child;
	int signals;           /* a signalfd */
	int events;            /* where events go; -1: the child reads no more */
	struct lines requests; /* fd -1: the child writes no more */
	bool ready, ended;     /* has been told so */
	size_t length;         /* of the text that waits for room in the pipe */
	char text[PIPE_BUF];   /* so that it goes out at once or not at all */
	struct pollfd polls[POLL_BELLS + VECTORS_MAX];
};

/* Signals that the child gets as well, if only we were sent them. */
static const int passed_on[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/* What was there when we started, for the child. */
static struct rlimit descriptors_limit;

static void descriptor_move(int fd, int to)
{
	if (fd >= 0 && dup2(fd, to) < 0) {
		complain("no descriptor %d: %s", to, strerror(errno));
		_exit(126);
	}
}

static void environment_set(const char *name, intmax_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%jd", value);
	setenv(name, text, 1);
}

/*
 * In the child: everything that is ours closes when the program is executed, but for these. None of
 * them stands below or in the place of one that is moved after it, since the socket and the
 * signalfd were opened before the pipes.
 */
__attribute__((noreturn)) static void child_become(struct mesh *m, int events, int requests,
						   char **program, const sigset_t *signals)
{
	close(CHILD_MEMORY);
	descriptor_move(m->memory, CHILD_MEMORY);
	descriptor_move(events, CHILD_EVENTS);
	descriptor_move(requests, CHILD_REQUESTS);
	environment_set("IVSHMEM_ID", m->id);
	environment_set("IVSHMEM_SIZE", m->size);
	environment_set("IVSHMEM_VECTORS", mesh_own(m)->vectors);
	environment_set("IVSHMEM_EVENTS", CHILD_EVENTS);
	environment_set("IVSHMEM_REQUESTS", CHILD_REQUESTS);
	if (m->memory >= 0)
		environment_set("IVSHMEM_MEMORY", CHILD_MEMORY);
	else
		unsetenv("IVSHMEM_MEMORY");
	setrlimit(RLIMIT_NOFILE, &descriptors_limit);
	sigprocmask(SIG_SETMASK, signals, NULL);
	execvp(program[0], program);
	complain("cannot run '%s': %s", program[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Starts the program, and waits for nothing. */
static void run_start(struct run *r, char **program)
{
	sigset_t signals, before;
	int events[2], requests[2];

	sigemptyset(&signals);
	for (size_t i = 0; i < sizeof(passed_on) / sizeof(*passed_on); i++)
		sigaddset(&signals, passed_on[i]);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGPIPE); /* never read: a write fails with EPIPE */
	signal(SIGCHLD, SIG_DFL);
	sigprocmask(SIG_BLOCK, &signals, &before);
	sigdelset(&signals, SIGPIPE);
	r->signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (r->signals < 0 || pipe2(events, O_CLOEXEC) < 0 || pipe2(requests, O_CLOEXEC) < 0 ||
	    fcntl(events[1], F_SETFL, O_NONBLOCK) < 0 ||
	    fcntl(requests[0], F_SETFL, O_NONBLOCK) < 0)
		quit(1, "cannot run '%s': %s", program[0], strerror(errno));
	r->child = fork();
	if (r->child < 0)
		quit(1, "cannot run '%s': %s", program[0], strerror(errno));
	if (r->child == 0)
		child_become(r->m, events[0], requests[1], program, &before);
	close(events[0]);
	close(requests[1]);
	r->events = events[1];
	r->requests.fd = requests[0];
}

/* Adds a line to the text that waits. Returns false where that is full. */
__attribute__((format(printf, 2, 3))) static bool event_add(struct run *r, const char *format, ...)
{
	size_t room = sizeof(r->text) - r->length;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(r->text + r->length, room, format, args);
	va_end(args);
	if (n < 0 || (size_t)n >= room)
		return false;
	r->length += (size_t)n;
	return true;
}

#define EVENT_MAX 40 /* "ring", a vector, a count of 64 bits */

static bool event_fits(const struct run *r)
{
	return r->events >= 0 && sizeof(r->text) - r->length > EVENT_MAX;
}

/* Puts into words what the child has not been told, as far as there is room. */
static void events_make(struct run *r)
{
	const struct peer *own = mesh_own(r->m);
	enum news news = NEWS_JOIN;
	int id;

	while (event_fits(r) && (news = news_next(r->m, &id)) != NEWS_NONE)
		event_add(r, "%s %d\n", news == NEWS_JOIN ? "join" : "leave", id);
	if (news != NEWS_NONE)
		return;
	if (!r->ready)
		r->ready = event_fits(r) && event_add(r, "ready\n");
	if (r->ready && !r->ended && r->m->sock < 0)
		r->ended = event_fits(r) && event_add(r, "end\n");
	for (int v = 0; r->ready && v < own->vectors && event_fits(r); v++) {
		bool rung = r->polls[POLL_BELLS + v].revents & POLLIN;
		uint64_t count = rung ? bell_count(own->fds[v]) : 0;

		if (count > 0)
			event_add(r, "ring %d %" PRIu64 "\n", v, count);
	}
}

/* The child has closed its end. */
static void events_close(struct run *r)
{
	close(r->events);
	r->events = -1;
	r->length = 0;
}

/* Tells the child all that is new, as far as its pipe has room. */
static void events_send(struct run *r)
{
	while (r->events >= 0) {
		if (r->length == 0)
			events_make(r);
		if (r->length == 0)
			return;
		if (write(r->events, r->text, r->length) > 0) {
			r->length = 0;
		} else if (errno == EAGAIN) {
			return;
		} else {
			events_close(r);
		}
	}
}

/* Does what one line asks for, or says why not. */
static void request_do(const struct mesh *m, char *line)
{
	char why[WHY_SIZE], asked[64], *words[LINE_WORDS];
	struct request request;

	snprintf(asked, sizeof(asked), "%s", line);
	words_split(line, words);
	if (!words[0])
		return;
	if (strcmp(words[0], "ring") != 0)
		wrong(why, "unknown; there is 'ring ID VECTOR', 'ring ID all' and 'ring all'");
	else if (ring_read(words + 1, &request, why) && mesh_ring(m, &request, why))
		return;
	complain("request '%s': %s", asked, why);
}

/* Reads once, and does every whole line. Returns whether there may be more. */
static bool requests_read(struct run *r)
{
	char *line;

	if (r->requests.fd < 0)
		return false;
	if (!lines_fill(&r->requests)) {
		close(r->requests.fd);
		r->requests.fd = -1;
		line = lines_rest(&r->requests);
		if (line)
			complain("request '%.60s': not done, its line has no end", line);
		return false;
	}
	while ((line = lines_next(&r->requests)))
		request_do(r->m, line);
	return true;
}

/* What the child asked for last is done, even if it has ended. */
static void requests_finish(struct run *r)
{
	struct pollfd poll_in = {.fd = r->requests.fd, .events = POLLIN};

	for (int i = 0; i < DRAIN_READS && poll(&poll_in, 1, 0) > 0 && requests_read(r); i++)
		;
	if (r->requests.fd >= 0 && lines_rest(&r->requests))
		complain("request '%.60s': not done, its line has no end",
			 lines_rest(&r->requests));
}

/* Takes signals. Returns whether the child has ended, and the status to end with. */
static bool signals_take(struct run *r, int *status)
{
	struct signalfd_siginfo info;
	int how;

	while (read(r->signals, &info, sizeof(info)) == sizeof(info)) {
		/* What the kernel sends, for a key, goes to the child as well. */
		if (info.ssi_signo != SIGCHLD && info.ssi_code <= 0)
			kill(r->child, (int)info.ssi_signo);
	}
	if (waitpid(r->child, &how, WNOHANG) != r->child)
		return false;
	*status = WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
	return true;
}

/* Waits for something to do. Doorbells are left alone while the child has no room for word of them.
 */
static void run_wait(struct run *r)
{
	const struct peer *own = mesh_own(r->m);
	bool room = r->events >= 0 && r->length == 0;
	struct pollfd *polls = r->polls;

	polls[POLL_SIGNALS] = (struct pollfd){.fd = r->signals, .events = POLLIN};
	polls[POLL_SERVER] = (struct pollfd){.fd = r->m->sock, .events = POLLIN};
	polls[POLL_REQUESTS] = (struct pollfd){.fd = r->requests.fd, .events = POLLIN};
	polls[POLL_EVENTS] =
		(struct pollfd){.fd = r->events, .events = r->length > 0 ? POLLOUT : 0};
	for (int v = 0; v < own->vectors; v++)
		polls[POLL_BELLS + v] =
			(struct pollfd){.fd = room ? own->fds[v] : -1, .events = POLLIN};
	polls_wait(polls, POLL_BELLS + (size_t)own->vectors, clock_ahead(FOREVER));
	if (polls[POLL_EVENTS].revents & POLLERR)
		events_close(r);
}

static int run(struct mesh *m, const struct request *request)
{
	struct run r = {.m = m, .requests = {.fd = -1}};
	int status = 0;

	run_start(&r, request->program);
	while (!signals_take(&r, &status)) {
		bool connected = m->sock >= 0;

		for (int turn = 0; turn < TURN && message_read(m); turn++)
			;
		if (connected && m->sock < 0)
			complain("%s", m->error);
		requests_read(&r);
		events_send(&r);
		run_wait(&r);
	}
	requests_finish(&r);
	return status;
}

/*
 * The dialog
 */

struct dialog {
	struct mesh *m;
	bool terminal; /* a person types; else words come from a file or a program */
	bool prompted; /* the cursor stands behind the prompt */
	bool failed;   /* something could not be done */
	bool over;
};

/* Begins a line of output. */
static void dialog_line(struct dialog *d)
{
	if (d->prompted)
		putchar('\n');
	d->prompted = false;
}

static void dump_peer(const char *what, int id, const struct peer *p)
{
	printf("%s: %d\n", what, id);
	for (int v = 0; v < p->vectors; v++)
		printf("  vector %d (fd %d)\n", v, p->fds[v]);
}

static void dump(struct mesh *m)
{
	dump_peer("our_id", m->id, mesh_own(m));
	for (int id = 0; id < m->ids; id++)
		if (id != m->id && peer_whole(m, id))
			dump_peer("peer_id", id, &m->peers[id]);
}

/* Does what one line says. Returns false with why. */
static bool dialog_do(struct dialog *d, char *line, char *why)
{
	char *words[LINE_WORDS];
	struct request request;
	bool alone, connected;

	words_split(line, words);
	if (!words[0])
		return true;
	alone = !words[1];
	connected = d->m->sock >= 0 ||
		    wrong(why, "not connected to %s, which is tried every second", d->m->path);
	if (strcmp(words[0], "quit") == 0 && alone) {
		d->over = true;
	} else if ((strcmp(words[0], "help") == 0 || strcmp(words[0], "?") == 0) && alone) {
		puts("dump           show the own ID and the peers, with their vectors\n"
		     "int ID VECTOR  ring a doorbell of that peer\n"
		     "int ID all     ring all doorbells of that peer\n"
		     "int all        ring all doorbells of all others\n"
		     "help, ?        show this\n"
		     "quit           end, as the end of the input does");
	} else if (strcmp(words[0], "dump") == 0 && alone) {
		if (connected)
			dump(d->m);
		return connected;
	} else if (strcmp(words[0], "int") == 0) {
		return connected && ring_read(words + 1, &request, why) &&
		       mesh_ring(d->m, &request, why);
	} else {
		return wrong(why, "'%.40s': unknown; 'help' shows what there is", words[0]);
	}
	return true;
}

static void dialog_answer(struct dialog *d, char *line)
{
	char why[WHY_SIZE];

	d->prompted = false;
	if (dialog_do(d, line, why))
		return;
	d->failed = true;
	complain("%s", why);
}

/* Shows what the mesh has done: joins, leaves, doorbells. */
static void dialog_show(struct dialog *d)
{
	struct mesh *m = d->m;
	enum news news;
	int id;

	while ((news = news_next(m, &id)) != NEWS_NONE) {
		dialog_line(d);
		printf("peer %d %s\n", id, news == NEWS_JOIN ? "joined" : "left");
	}
	for (int v = 0; v < mesh_own(m)->vectors; v++) {
		uint64_t count = bell_count(mesh_own(m)->fds[v]);

		if (count == 0)
			continue;
		dialog_line(d);
		printf("receive notification: vector=%d count=%" PRIu64 "\n", v, count);
	}
}

/*
 * Connects, and reads the greeting. Who is there by then is for `dump` to show. Returns false with
 * d->m->error where there is no server, or no longer; one that greets wrongly, or refuses us, would
 * do so again.
 */
static bool dialog_connect(struct dialog *d)
{
	int id;

	if (!mesh_connect(d->m))
		return false;
	if (!greeting_read(d->m)) {
		if (!d->m->gone)
			quit(1, "%s", d->m->error);
		return false;
	}
	while (news_next(d->m, &id) != NEWS_NONE)
		;
	if (d->terminal) {
		dialog_line(d);
		printf("connected to %s: our_id=%d memory=%jd vectors=%d\n", d->m->path, d->m->id,
		       (intmax_t)d->m->size, mesh_own(d->m)->vectors);
	}
	return true;
}

/* There is no server, or no longer. A person may start it again; a script has lost what it works
 * on. */
static void dialog_disconnected(struct dialog *d)
{
	if (!d->terminal)
		quit(1, "%s", d->m->error);
	dialog_line(d);
	complain("%s; trying to connect again, every second", d->m->error);
	mesh_free(d->m);
}

/* Waits for words, messages and doorbells; without a server, for a second. */
static bool dialog_wait(struct dialog *d, int input)
{
	enum { INPUT, SERVER, BELLS };
	static struct pollfd polls[BELLS + VECTORS_MAX];
	const struct peer *own = mesh_own(d->m);
	bool connected = d->m->sock >= 0;

	polls[INPUT] = (struct pollfd){.fd = input, .events = POLLIN};
	polls[SERVER] = (struct pollfd){.fd = d->m->sock, .events = POLLIN};
	for (int v = 0; v < own->vectors; v++)
		polls[BELLS + v] = (struct pollfd){.fd = own->fds[v], .events = POLLIN};
	polls_wait(polls, BELLS + (size_t)own->vectors,
		   clock_ahead(connected ? FOREVER : RETRY_MS));
	return polls[INPUT].revents != 0;
}

/* Reads once, and answers every line. The last need not be a whole one. */
static void dialog_read(struct dialog *d, struct lines *input)
{
	bool more = lines_fill(input);
	char *line;

	while (!d->over && (line = lines_next(input)))
		dialog_answer(d, line);
	if (more || d->over)
		return;
	line = lines_rest(input);
	if (line)
		dialog_answer(d, line);
	d->over = true;
}

/* Hears what the server says, and shows what is new. */
static void dialog_hear(struct dialog *d)
{
	if (d->m->sock < 0) {
		if (!dialog_connect(d))
			mesh_free(d->m);
		return;
	}
	for (int turn = 0; turn < TURN && message_read(d->m); turn++)
		;
	dialog_show(d);
	if (d->m->sock < 0)
		dialog_disconnected(d);
}

/* Without a command: words come from standard input. Returns the status to end with. */
static int dialog(struct mesh *m)
{
	struct dialog d = {.m = m, .terminal = isatty(STDIN_FILENO)};
	struct lines input = {.fd = STDIN_FILENO};

	if (!dialog_connect(&d))
		dialog_disconnected(&d);
	while (!d.over) {
		if (d.terminal && !d.prompted)
			printf("cmd> ");
		d.prompted = d.terminal;
		output_flush();
		if (dialog_wait(&d, input.fd))
			dialog_read(&d, &input);
		if (!d.over)
			dialog_hear(&d);
	}
	if (d.prompted)
		putchar('\n');
	return d.failed && !d.terminal ? 1 : 0;
}

/*
 * The command line
 */

static void list_parse(char **args, struct request *r)
{
	(void)r;
	if (args[0])
		quit(2, "unexpected argument '%s': 'list' takes none, and options come first",
		     args[0]);
}

static void ring_parse(char **args, struct request *r)
{
	char why[WHY_SIZE];

	if (!ring_read(args, r, why))
		quit(2, "ring: %s", why);
}

/* Reads seconds, whole or with a fraction. Returns milliseconds. */
static int64_t seconds_read(const char *text)
{
	const char *at = text;
	int64_t ms = 0;
	int digits = 0;

	for (; *at >= '0' && *at <= '9' && ms <= SECONDS_MAX; at++, digits++)
		ms = ms * 10 + (*at - '0');
	ms *= 1000;
	if (*at == '.')
		for (int64_t unit = 100; *++at >= '0' && *at <= '9'; unit /= 10, digits++)
			ms += unit * (*at - '0');
	if (digits == 0 || *at || ms > SECONDS_MAX * INT64_C(1000))
		quit(2, "SECONDS '%.40s': give a number from 0 to %d, such as 5 or 0.5", text,
		     SECONDS_MAX);
	return ms;
}

/* What may stand last in a command. */
static void seconds_parse(char **args, struct request *r)
{
	if (!args[0])
		return;
	r->patience = seconds_read(args[0]);
	if (args[1])
		quit(2, "unexpected argument '%s': SECONDS is the last, and options come first",
		     args[1]);
}

/* How long a greeting may pause: no longer than the command may take, but as long as a lone one. */
static int64_t greeting_patience(int64_t patience)
{
	if (patience > QUIET_MS)
		return QUIET_MS;
	return patience > LONE_MS ? patience : LONE_MS;
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
	if (!args[0])
		quit(2, "run: give a program, and its arguments");
	r->program = args;
}

static const struct command {
	const char *name;
	void (*parse)(char **args, struct request *r);
	int (*run)(struct mesh *m, const struct request *r); /* returns the status to end with */
} commands[] = {
	{"list", list_parse, list},      {"ring", ring_parse, ring}, {"wait", wait_parse, wait_for},
	{"watch", seconds_parse, watch}, {"run", run_parse, run},
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
	quit(2, "unknown command '%.40s'%s: give list, ring, wait, watch or run", name, more);
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

/* Reads the options. Returns the arguments behind them. */
static char **options_parse(struct mesh *m, int argc, char **argv)
{
	static const char short_options[] = "+:S:n:vVh";
	static const struct option options[] = {
		{"socket", required_argument, NULL, 'S'}, {"vectors", required_argument, NULL, 'n'},
		{"verbose", no_argument, NULL, 'v'},      {"version", no_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
	};
	int letter;

	while ((letter = getopt_long(argc, argv, short_options, options, NULL)) != -1) {
		switch (letter) {
		case 'S': m->path = optarg; break;
		case 'n':
			m->given_vectors = number_parse("-n/--vectors", optarg, VECTORS_MAX);
			break;
		case 'v': m->verbose = true; break;
		case 'V': print_and_exit("ivshmem_client " VERSION "\n");
		case 'h': print_and_exit(help_text);
		case ':': quit(2, "option '%s' needs a value", argv[optind - 1]);
		default:
			if (optopt && !strchr(short_options, optopt))
				quit(2, "unknown option '-%c'", optopt);
			quit(2, "option '%s' is unknown, ambiguous, or takes no value",
			     argv[optind - 1]);
		}
	}
	return argv + optind;
}

/* Reads the command line. Returns the command, or NULL for the dialog. */
static const struct command *arguments_parse(struct mesh *m, int argc, char **argv,
					     struct request *request)
{
	const struct command *command;
	char **args;

	args = options_parse(m, argc, argv);
	*request = (struct request){.patience = FOREVER};
	if (m->path == default_socket && args[0] && !command_find(args[0])) {
		if (!path_meant(args[0]))
			command_unknown(args[0], ", and no socket of that name is here");
		m->path = *args++;
	}
	if (!*m->path || strlen(m->path) > PATH_LENGTH)
		quit(2, "socket '%.40s': give a path of 1 to %zu characters", m->path, PATH_LENGTH);
	if (!args[0])
		return NULL;
	command = command_find(args[0]);
	if (!command)
		command_unknown(args[0], "");
	command->parse(args + 1, request);
	return command;
}

/* Makes room for the eventfds of a large mesh, and sure that none of ours is taken for 0 to 2. What
 * was closed of these can be written to no more than before. */
static void descriptors_prepare(void)
{
	struct rlimit limit;
	int fd;

	do
		fd = open("/dev/null", O_RDONLY);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0 || getrlimit(RLIMIT_NOFILE, &descriptors_limit) < 0)
		quit(1, "cannot open /dev/null: %s", strerror(errno));
	close(fd);
	limit = (struct rlimit){descriptors_limit.rlim_max, descriptors_limit.rlim_max};
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	static struct mesh mesh = {
		.path = default_socket,
		.given_vectors = -1,
		.patience = QUIET_MS,
		.sock = -1,
		.memory = -1,
	};
	const struct command *command;
	struct request request;
	int status;

	command = arguments_parse(&mesh, argc, argv, &request);
	descriptors_prepare();
	if (!command) {
		status = dialog(&mesh);
	} else {
		mesh.patience = greeting_patience(request.patience);
		if (!mesh_connect(&mesh) || !greeting_read(&mesh))
			quit(1, "%s", mesh.error);
		status = command->run(&mesh, &request);
	}
	mesh_free(&mesh);
	output_flush();
	return status;
}
