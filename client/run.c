/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client/run.h"
#include "client/clock.h"
#include "client/lines.h"
#include "client/mesh.h"
#include "client/report.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the program finds. */
#define CHILD_MEMORY   3
#define CHILD_EVENTS   4
#define CHILD_REQUESTS 5
#define DRAIN_READS    1024 /* of a page each: what a pipe can hold when the program has ended */

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

static void descriptor_move(int fd, int to)
{
	if (fd >= 0 && dup2(fd, to) < 0) {
		complain("cannot open descriptor %d: %s", to, strerror(errno));
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
__attribute__((noreturn)) static void child_become(const struct mesh *m, int events, int requests,
						   char **program, const sigset_t *signals,
						   const struct rlimit *descriptors)
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
	setrlimit(RLIMIT_NOFILE, descriptors);
	sigprocmask(SIG_SETMASK, signals, NULL);
	execvp(program[0], program);
	complain("cannot run '%s': %s", program[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Starts the program, and waits for nothing. */
static void run_start(struct run *r, char **program, const struct rlimit *descriptors)
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
		child_become(r->m, events[0], requests[1], program, &before, descriptors);
	close(events[0]);
	close(requests[1]);
	r->events = events[1];
	r->requests.fd = requests[0];
}

#define EVENT_MAX 40 /* "ring", a vector, a count of 64 bits */

/* Adds a line of less than EVENT_MAX to the text that waits, which has room for it. */
__attribute__((format(printf, 2, 3))) static void event_add(struct run *r, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	r->length += (size_t)vsnprintf(r->text + r->length, EVENT_MAX, format, args);
	va_end(args);
}

/* Puts into words how often a doorbell was rung, the next of those that run_wait has found. Returns
 * false where none is left. */
static bool ring_make(struct run *r)
{
	for (int v = 0; v < mesh_own(r->m)->vectors; v++) {
		short *found = &r->polls[POLL_BELLS + v].revents;
		uint64_t count = *found & POLLIN ? bell_count(r->m, v) : 0;

		*found = 0;
		if (count == 0)
			continue;
		event_add(r, "ring %d %" PRIu64 "\n", v, count);
		return true;
	}
	return false;
}

/* Puts into words the next thing that the child has not been told. Returns false where it knows
 * all. */
static bool event_make(struct run *r)
{
	int id;
	enum news news = news_next(r->m, &id);

	if (news != NEWS_NONE) {
		event_add(r, "%s %d\n", news == NEWS_JOIN ? "join" : "leave", id);
	} else if (!r->ready) {
		event_add(r, "ready\n");
		r->ready = true;
	} else if (!r->ended && r->m->sock < 0) {
		event_add(r, "end\n");
		r->ended = true;
	} else {
		return ring_make(r);
	}
	return true;
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
			while (sizeof(r->text) - r->length >= EVENT_MAX && event_make(r))
				;
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
	int id, vector;

	snprintf(asked, sizeof(asked), "%s", line);
	words_split(line, words);
	if (!words[0])
		return;
	if (strcmp(words[0], "ring") != 0)
		wrong(why, "unknown; give 'ring ID VECTOR', 'ring ID all' or 'ring all'");
	else if (ring_read(words + 1, &id, &vector, why) && mesh_ring(m, id, vector, why))
		return;
	complain("request '%s': %s", asked, why);
}

/* Nothing more is asked for. */
static void requests_close(struct run *r)
{
	const char *rest = lines_rest(&r->requests);

	if (rest)
		complain("request '%.60s': not done, its line has no end", rest);
	close(r->requests.fd);
	r->requests.fd = -1;
}

/* Reads once, and does every whole line. */
static void requests_read(struct run *r)
{
	char *line;

	if (r->requests.fd < 0)
		return;
	if (!lines_fill(&r->requests)) {
		requests_close(r);
		return;
	}
	while ((line = lines_next(&r->requests)))
		request_do(r->m, line);
}

/* What the child asked for last is done, even if it has ended. */
static void requests_finish(struct run *r)
{
	struct pollfd poll_in = {.fd = r->requests.fd, .events = POLLIN};

	for (int i = 0; i < DRAIN_READS && r->requests.fd >= 0 && poll(&poll_in, 1, 0) > 0; i++)
		requests_read(r);
	if (r->requests.fd >= 0)
		requests_close(r);
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
	bool room = r->events >= 0 && r->length == 0;
	struct pollfd *polls = r->polls;

	polls[POLL_SIGNALS] = (struct pollfd){.fd = r->signals, .events = POLLIN};
	polls[POLL_SERVER] = (struct pollfd){.fd = r->m->sock, .events = POLLIN};
	polls[POLL_REQUESTS] = (struct pollfd){.fd = r->requests.fd, .events = POLLIN};
	polls[POLL_EVENTS] = (struct pollfd){.fd = r->events, .events = room ? 0 : POLLOUT};
	polls_wait(polls, POLL_BELLS + bells_poll(r->m, polls + POLL_BELLS, room), FOREVER);
	if (polls[POLL_EVENTS].revents & POLLERR)
		events_close(r);
}

int run(struct mesh *m, char **program, const struct rlimit *descriptors)
{
	struct run r = {.m = m};
	int status = 0;

	run_start(&r, program, descriptors);
	while (!signals_take(&r, &status)) {
		if (!messages_read(m))
			complain("%s", m->error);
		requests_read(&r);
		events_send(&r);
		run_wait(&r);
	}
	requests_finish(&r);
	return status;
}
