/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "supervisor.h"

#include "deadline.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define NAME_LENGTH   255  /* of a descriptor, in systemd */
#define MESSAGE_BYTES 4096 /* that systemd reads of one */
#define FDS_MAX       253  /* that the kernel passes with one */
#define FDS_FIRST     3    /* of a process, that it gets from its supervisor */

static const char *const states[] = {"READY=1", "RELOADING=1", "STOPPING=1", "WATCHDOG=1"};
#define STATES (sizeof(states) / sizeof(states[0]))

struct stored {
	char name[NAME_LENGTH + 1];
	int fd;
};

struct supervisor {
	char folder[96];
	char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	int sock, wake; /* an eventfd: something of the following has changed */
	pthread_t thread;

	pthread_mutex_t lock; /* of all that follows, and of taking messages */
	bool paused, over, announced, reexec;
	unsigned int slow_ms; /* after each message */
	struct stored *store; /* in the order in which they came */
	size_t n, limit, refused;
	size_t told[STATES];
	bool reloading;
	size_t messages;  /* that it has taken */
	char status[512]; /* the last one */
	FILE *journal;    /* of what it was to store and to drop */
	char *said;       /* what stands there */
	size_t length;
	char error[256];
};

/* One message: what its lines say, and the descriptors that came with it. */
struct message {
	bool store, remove, unpolled, ready, reloading, timed;
	const char *name;
	int fds[FDS_MAX];
	size_t n;
};

/* Notes the first thing that is wrong. */
__attribute__((format(printf, 2, 3))) static void wrong(struct supervisor *s, const char *format,
							...)
{
	va_list args;

	if (s->error[0])
		return;
	va_start(args, format);
	vsnprintf(s->error, sizeof(s->error), format, args);
	va_end(args);
}

/* Whether two descriptors are one opening of a file. */
static bool same_opening(int a, int b)
{
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b) == 0;
}

/* Keeps a descriptor, or closes it: one that it has already, or for which there is no room. */
static void fd_store(struct supervisor *s, const char *name, int fd)
{
	struct stored *more;
	bool known = false;

	for (size_t i = 0; i < s->n && !known; i++)
		known = same_opening(s->store[i].fd, fd);
	s->refused += s->n >= s->limit; /* before anybody looks whether it is there already */
	more = known || s->n >= s->limit ? NULL : reallocarray(s->store, s->n + 1, sizeof(*more));
	if (!more) {
		close(fd);
		return;
	}
	s->store = more;
	snprintf(more[s->n].name, sizeof(more[s->n].name), "%s", name);
	more[s->n++].fd = fd;
}

/* Closes all descriptors whose name matches. */
static void fds_remove(struct supervisor *s, const char *pattern)
{
	size_t kept = 0;

	for (size_t i = 0; i < s->n; i++)
		if (fnmatch(pattern, s->store[i].name, 0) == 0)
			close(s->store[i].fd);
		else
			s->store[kept++] = s->store[i];
	s->n = kept;
}

static void line_apply(struct supervisor *s, struct message *m, const char *line)
{
	for (size_t i = 0; i < STATES; i++)
		if (!strcmp(line, states[i])) {
			s->told[i]++;
			m->ready |= !strcmp(line, "READY=1");
			m->reloading |= !strcmp(line, "RELOADING=1");
			return;
		}
	if (!strcmp(line, "FDSTORE=1"))
		m->store = true;
	else if (!strcmp(line, "FDSTOREREMOVE=1"))
		m->remove = true;
	else if (!strcmp(line, "FDPOLL=0"))
		m->unpolled = true;
	else if (!strncmp(line, "FDNAME=", 7))
		m->name = line + 7;
	else if (!strncmp(line, "MONOTONIC_USEC=", 15))
		m->timed = true;
	else if (!strncmp(line, "STATUS=", 7))
		snprintf(s->status, sizeof(s->status), "%s", line + 7);
	else
		wrong(s, "'%s' is nothing that systemd knows", line);
}

/* Notes what is wrong with a message. */
static void message_check(struct supervisor *s, const struct message *m)
{
	const char *name = m->name ? m->name : "";

	if (m->reloading != m->timed)
		wrong(s, "a reload, and no time of it");
	if ((m->store || m->remove) && (!*name || strlen(name) > NAME_LENGTH || strchr(name, ':')))
		wrong(s, "'%s' cannot be the name of a descriptor", name);
	else if (m->store && (m->n == 0 || !m->unpolled))
		wrong(s, "%zu descriptors are to be stored as '%s'%s", m->n, name,
		      m->unpolled ? "" : " until somebody hangs up");
	else if (m->n > 0 && !m->store)
		wrong(s, "%zu descriptors came that are not to be stored", m->n);
}

/* Does what a message says, and takes its descriptors. */
static void message_apply(struct supervisor *s, struct message *m, char *text)
{
	char *rest, *line = strtok_r(text, "\n", &rest);

	for (; line; line = strtok_r(NULL, "\n", &rest))
		line_apply(s, m, line);
	s->reloading = m->reloading || (s->reloading && !m->ready);
	message_check(s, m);
	if ((m->store || m->remove) && m->name)
		fprintf(s->journal, "%s %s\n", m->store ? "store" : "drop", m->name);
	for (size_t i = 0; i < m->n; i++)
		if (m->store && !s->error[0])
			fd_store(s, m->name, m->fds[i]);
		else
			close(m->fds[i]);
	if (m->remove && !s->error[0])
		fds_remove(s, m->name);
}

/* Takes one message, if there is one. The lock is held. */
static bool message_take(struct supervisor *s)
{
	static char text[MESSAGE_BYTES + 1];
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int[FDS_MAX]))];
	} control;
	struct iovec data = {text, MESSAGE_BYTES};
	struct msghdr header = {.msg_iov = &data,
				.msg_iovlen = 1,
				.msg_control = &control,
				.msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(s->sock, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct message m = {0};

	if (n < 0)
		return false;
	s->messages++;
	text[n] = '\0';
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			m.n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(m.fds, CMSG_DATA(c), m.n * sizeof(int));
		}
	if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		wrong(s, "a message was too long, or this process has too many descriptors");
	message_apply(s, &m, text);
	return true;
}

/* Makes the socket, which a server of another user can reach. */
static bool socket_bind(struct supervisor *s)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	memcpy(address.sun_path, s->path, sizeof(s->path));
	s->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return s->sock >= 0 && bind(s->sock, (struct sockaddr *)&address, sizeof(address)) == 0 &&
	       chmod(s->path, 0777) == 0;
}

/* Does so once more. In its thread: while that waits for the old one, the kernel keeps that alive.
 */
static void socket_renew(struct supervisor *s)
{
	close(s->sock);
	unlink(s->path);
	if (!socket_bind(s))
		s->sock = -1;
	s->reexec = false;
}

static void *supervise(void *argument)
{
	struct supervisor *s = argument;
	struct pollfd polls[] = {{.fd = s->wake, .events = POLLIN}, {.events = POLLIN}};
	bool over = false;
	uint64_t count;
	int wait;

	while (!over) {
		pthread_mutex_lock(&s->lock);
		if (polls[0].revents)
			(void)!read(s->wake, &count, sizeof(count));
		if (s->reexec)
			socket_renew(s);
		while (!s->paused && message_take(s) && !s->slow_ms)
			;
		polls[1].fd = s->paused || s->slow_ms ? -1 : s->sock;
		wait = s->slow_ms && !s->paused ? (int)s->slow_ms : -1;
		over = s->over;
		pthread_mutex_unlock(&s->lock);
		if (!over)
			poll(polls, 2, wait);
	}
	return NULL;
}

/* Has the thread look at what has changed, and gives the lock back. */
static void changed(struct supervisor *s)
{
	uint64_t once = 1;

	(void)!write(s->wake, &once, sizeof(once));
	pthread_mutex_unlock(&s->lock);
}

/* Makes the folder and the socket in it. */
static bool socket_make(struct supervisor *s)
{
	const char *parent = getenv("TEST_DIR");

	snprintf(s->folder, sizeof(s->folder), "%s/supervisor.XXXXXX", parent ? parent : "/tmp");
	if (!mkdtemp(s->folder)) {
		s->folder[0] = '\0';
		return false;
	}
	snprintf(s->path, sizeof(s->path), "%s/notify", s->folder);
	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return s->wake >= 0 && socket_bind(s) && chmod(s->folder, 0755) == 0;
}

/* Closes and removes what socket_make has made. */
static void socket_end(struct supervisor *s)
{
	if (s->journal)
		fclose(s->journal);
	free(s->said);
	if (s->sock >= 0)
		close(s->sock);
	if (s->wake >= 0)
		close(s->wake);
	if (s->path[0])
		unlink(s->path);
	if (s->folder[0])
		rmdir(s->folder);
	free(s);
}

struct supervisor *supervisor_start(void)
{
	struct supervisor *s = calloc(1, sizeof(*s));
	int error;

	if (!s)
		return NULL;
	s->sock = s->wake = -1;
	s->limit = SIZE_MAX;
	pthread_mutex_init(&s->lock, NULL);
	s->journal = open_memstream(&s->said, &s->length);
	if (s->journal && socket_make(s)) {
		error = pthread_create(&s->thread, NULL, supervise, s);
		if (error == 0)
			return s;
		errno = error;
	}
	error = errno;
	socket_end(s);
	errno = error;
	return NULL;
}

void supervisor_free(struct supervisor *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->over = true;
	changed(s);
	pthread_join(s->thread, NULL);
	supervisor_empty(s);
	free(s->store);
	pthread_mutex_destroy(&s->lock);
	socket_end(s);
}

const char *supervisor_path(const struct supervisor *s)
{
	return s->path;
}

void supervisor_pause(struct supervisor *s)
{
	pthread_mutex_lock(&s->lock);
	s->paused = true;
	changed(s);
}

void supervisor_resume(struct supervisor *s)
{
	pthread_mutex_lock(&s->lock);
	s->paused = false;
	changed(s);
}

void supervisor_slow(struct supervisor *s, unsigned int ms)
{
	pthread_mutex_lock(&s->lock);
	s->slow_ms = ms;
	changed(s);
}

bool supervisor_reexec(struct supervisor *s)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool done;

	pthread_mutex_lock(&s->lock);
	s->reexec = true;
	changed(s);
	do {
		pthread_mutex_lock(&s->lock);
		done = !s->reexec;
		pthread_mutex_unlock(&s->lock);
	} while (!done && deadline_ahead(deadline));
	return done && s->sock >= 0;
}

void supervisor_settle(struct supervisor *s)
{
	pthread_mutex_lock(&s->lock);
	while (message_take(s))
		;
	pthread_mutex_unlock(&s->lock);
}

void supervisor_limit(struct supervisor *s, size_t descriptors)
{
	pthread_mutex_lock(&s->lock);
	s->limit = descriptors;
	pthread_mutex_unlock(&s->lock);
}

void supervisor_announce(struct supervisor *s)
{
	pthread_mutex_lock(&s->lock);
	s->announced = true;
	pthread_mutex_unlock(&s->lock);
}

/* A number of it, once everything is taken that was sent. */
static size_t number_settled(struct supervisor *s, const size_t *number)
{
	size_t n;

	supervisor_settle(s);
	pthread_mutex_lock(&s->lock);
	n = *number;
	pthread_mutex_unlock(&s->lock);
	return n;
}

size_t supervisor_refused(struct supervisor *s)
{
	return number_settled(s, &s->refused);
}

size_t supervisor_messages(struct supervisor *s)
{
	return number_settled(s, &s->messages);
}

size_t supervisor_heard(struct supervisor *s, const char *state)
{
	for (size_t i = 0; i < STATES; i++)
		if (!strcmp(state, states[i]))
			return number_settled(s, &s->told[i]);
	return 0;
}

char *supervisor_journal(struct supervisor *s)
{
	char *said;

	supervisor_settle(s);
	pthread_mutex_lock(&s->lock);
	fflush(s->journal);
	said = strdup(s->said);
	pthread_mutex_unlock(&s->lock);
	return said;
}

void supervisor_lose(struct supervisor *s, const char *pattern)
{
	supervisor_settle(s);
	pthread_mutex_lock(&s->lock);
	fds_remove(s, pattern);
	pthread_mutex_unlock(&s->lock);
}

void supervisor_empty(struct supervisor *s)
{
	supervisor_lose(s, "*");
}

size_t supervisor_count(struct supervisor *s, const char *pattern)
{
	size_t n = 0;

	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < s->n; i++)
		n += fnmatch(pattern, s->store[i].name, 0) == 0;
	pthread_mutex_unlock(&s->lock);
	return n;
}

bool supervisor_wait(struct supervisor *s, const char *pattern, size_t n, int seconds)
{
	int64_t deadline = deadline_in(seconds);
	bool equal;

	while (!(equal = supervisor_count(s, pattern) == n) && deadline_ahead(deadline))
		;
	return equal;
}

char *supervisor_status(struct supervisor *s)
{
	char *status;

	supervisor_settle(s);
	pthread_mutex_lock(&s->lock);
	status = strdup(s->status);
	pthread_mutex_unlock(&s->lock);
	return status;
}

bool supervisor_reloads(struct supervisor *s)
{
	bool reloads;

	supervisor_settle(s);
	pthread_mutex_lock(&s->lock);
	reloads = s->reloading;
	pthread_mutex_unlock(&s->lock);
	return reloads;
}

const char *supervisor_error(struct supervisor *s)
{
	supervisor_settle(s);
	return s->error[0] ? s->error : NULL;
}

/* Whether a line of the environment is the supervisor's to write. */
static bool line_is_ours(const char *line)
{
	return !strncmp(line, "NOTIFY_SOCKET=", 14) || !strncmp(line, "LISTEN_", 7) ||
	       !strncmp(line, "FDSTORE=", 8);
}

/* Begins another line of the environment, whose place is noted; the one before is complete. */
static void line_begin(FILE *out, long *starts, size_t *own)
{
	if (*own > 0)
		fputc('\0', out);
	starts[(*own)++] = ftell(out);
}

/* Writes the lines that tell of the descriptors, and of what each is called. */
static void listen_write(struct supervised *given, const struct supervisor *s, FILE *out,
			 long *starts, size_t *own)
{
	line_begin(out, starts, own);
	fprintf(out, "LISTEN_FDS=%zu", s->n);
	line_begin(out, starts, own);
	fprintf(out, "LISTEN_FDNAMES=");
	/* The newest first, as systemd does it. */
	for (size_t i = s->n; i-- > 0;) {
		given->fds[given->n++] = s->store[i].fd;
		fprintf(out, "%s%s", s->store[i].name, i ? ":" : "");
	}
	line_begin(out, starts, own);
	fprintf(out, "LISTEN_PID=%20s", "");
}

bool supervised_prepare(struct supervised *given, struct supervisor *s)
{
	size_t lines = 0, kept = 0, room = 0, own = 0;
	long starts[5] = {0};
	FILE *out;

	*given = (struct supervised){0};
	while (environ[lines])
		lines++;
	given->environment = calloc(lines + 6, sizeof(*given->environment));
	out = open_memstream(&given->text, &room);
	if (!given->environment || !out)
		return false;
	for (size_t i = 0; i < lines; i++)
		if (!s || !line_is_ours(environ[i]))
			given->environment[kept++] = environ[i];
	if (s) {
		supervisor_settle(s);
		pthread_mutex_lock(&s->lock);
		given->fds = calloc(s->n + 1, sizeof(*given->fds));
		line_begin(out, starts, &own);
		fprintf(out, "NOTIFY_SOCKET=%s", s->path);
		if (s->announced) {
			line_begin(out, starts, &own);
			fprintf(out, "FDSTORE=%zu", s->limit);
		}
		if (s->n > 0 && given->fds)
			listen_write(given, s, out, starts, &own);
		pthread_mutex_unlock(&s->lock);
	}
	if (fclose(out) != 0 || (s && !given->fds))
		return false;
	for (size_t i = 0; i < own; i++)
		given->environment[kept++] = given->text + starts[i];
	if (given->n > 0)
		given->pid = given->text + starts[own - 1] + strlen("LISTEN_PID=");
	return true;
}

bool supervised_enter(struct supervised *given)
{
	int behind = FDS_FIRST + (int)given->n;
	char digits[20];
	size_t n = 0;

	for (size_t i = 0; i < given->n; i++)
		if (given->fds[i] < behind) {
			given->fds[i] = fcntl(given->fds[i], F_DUPFD_CLOEXEC, behind);
			if (given->fds[i] < 0)
				return false;
		}
	for (size_t i = 0; i < given->n; i++)
		if (dup2(given->fds[i], FDS_FIRST + (int)i) < 0)
			return false;
	if (!given->pid)
		return true;
	for (unsigned int pid = (unsigned int)getpid(); pid; pid /= 10)
		digits[n++] = (char)('0' + pid % 10);
	for (char *at = given->pid; n > 0; *at = '\0')
		*at++ = digits[--n];
	return true;
}

void supervised_free(struct supervised *given)
{
	free((void *)given->environment);
	free(given->text);
	free(given->fds);
	*given = (struct supervised){0};
}
