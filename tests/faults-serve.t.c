/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every system call that a server makes fails once while it serves, restarts in place and ends.
 *
 * Serving: a client comes, rings and is rung, and goes, beside three that stay. The server lives,
 * the three see everything exactly once, their doorbells work, no descriptor is lost, and the log
 * says what failed, except where the rules say why not. Restarting: it happens, or the server goes
 * on without, and no client notices either. Ending: it ends, and leaves nothing behind.
 *
 * strace is attached for each fault anew, so that calls are counted from there. FULL=1 lets every
 * call fail with every errno that the table in lib/faults.c gives it; without, some of them do.
 */
#define _GNU_SOURCE
#include "tests/lib/client.h"
#include "tests/lib/deadline.h"
#include "tests/lib/faults.h"
#include "tests/lib/form.h"
#include "tests/lib/server.h"

#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define VECTORS   2
#define RESIDENTS 3

/* As many as a client can have, to need much memory. */
#define VECTORS_MAX      2048
#define VECTORS_MAX_TEXT "2048"

#define NEWCOMER RESIDENTS /* the place of the one that comes and goes */

/* How often something is done again if the call that is to fail was not made. */
#define ATTEMPTS 8

/* So few that the server limits the buffers of sockets. */
#define DESCRIPTORS 4096

/* What must come of a fault. */
static const struct rule rules[] = {
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
	 .calls = "newfstatat fstat",
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
	 .calls = "wait4",
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
	 .errors = "EAGAIN",
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
	 .calls = "wait4",
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
	 .text = "tm_ivshmem_server: ",
	 .outcome = RESTARTS,
	 .quiet = true,
	 .why = "a line of the log is lost"},
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

	{.phase = "ending",
	 .calls = "pselect6 select",
	 .outcome = NEVER,
	 .why = "the call that it waits in was made before"},
	{.phase = "ending",
	 .calls = "read accept4 write close munmap brk shutdown ioctl",
	 .outcome = ENDS,
	 .quiet = true,
	 .why = "it was not the last signal, nobody waits, a line of the log is lost"},
	{.phase = "ending",
	 .calls = "sendmsg",
	 .errors = "EAGAIN",
	 .outcome = ENDS,
	 .quiet = true,
	 .why = "the supervisor sees the end as well"},
	{.phase = "ending",
	 .calls = "newfstatat stat lstat fstat unlink unlinkat",
	 .outcome = LEAVES,
	 .why = "what is not known to be its own is not removed"},
	{.outcome = ENDS, .why = "the log says what was not done"},
};

/* A server, the clients that stay, and the one that comes and goes. */
struct world {
	struct server server;
	struct client clients[RESIDENTS + 1];
	size_t present; /* of these, as many have been connected */
	int descriptors;
	int leaked;    /* what strace keeps: a close that it lets fail does not happen */
	size_t logged; /* what had been logged before the fault */
};

static char strace_log[128];

/* Something that a server does while one of its calls fails. */
struct phase {
	const char *name;
	enum outcome (*act)(struct world *w);
	bool repeats; /* can be done again with the same server */
};

/* Whether it is connected and has not been turned away. */
static bool client_alive(const struct client *c)
{
	return c->sock >= 0 && !c->ended;
}

/* The clients that are there. */
static size_t clients_alive(const struct world *w)
{
	size_t alive = 0;

	for (size_t i = 0; i < w->present; i++)
		alive += client_alive(&w->clients[i]);
	return alive;
}

/* Whether everybody who is there knows all the others, and nobody else. */
static bool clients_agree(const struct world *w)
{
	size_t others = clients_alive(w) - 1;

	for (size_t i = 0; i < w->present; i++)
		if (client_alive(&w->clients[i]) && !client_knows(&w->clients[i], &others))
			return false;
	return true;
}

/* Lets all clients read until they agree. Whatever is not exact is noted. */
static bool clients_settle(struct world *w)
{
	int64_t deadline = deadline_in(PATIENCE);

	do {
		for (size_t i = 0; i < w->present; i++)
			while (client_alive(&w->clients[i]) && client_step(&w->clients[i]) > 0)
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

/* Everybody rings everybody, on every vector; each bell rings as often as it was rung. */
static void bells_check(struct world *w)
{
	size_t others = clients_alive(w) - 1;

	for (int v = 0; v < VECTORS; v++) {
		for (size_t i = 0; i < w->present; i++)
			for (size_t k = 0; k < w->present; k++)
				if (i != k && client_alive(&w->clients[i]) &&
				    client_alive(&w->clients[k]) &&
				    !client_ring(&w->clients[i], w->clients[k].id, v))
					test_fail("%d cannot ring %d", w->clients[i].id,
						  w->clients[k].id);
		for (size_t i = 0; i < w->present; i++)
			if (client_alive(&w->clients[i]) &&
			    client_rung(&w->clients[i], v) != others)
				test_fail("the bell of %d was not rung %zu times", w->clients[i].id,
					  others);
	}
}

/* Connects the client of that place. */
static void client_come(struct world *w, size_t place)
{
	if (!client_connect(&w->clients[place], w->server.socket,
			    (struct client_options){.vectors = VECTORS, .keep = true}))
		test_fail("%s", w->clients[place].error);
	if (w->present <= place)
		w->present = place + 1;
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

/* A client comes, rings everybody and is rung, and goes. */
static enum outcome visit(struct world *w)
{
	struct client *newcomer = &w->clients[NEWCOMER];
	enum outcome outcome;
	size_t dropped;

	server_signal(&w->server, SIGUSR1);
	client_come(w, NEWCOMER);
	clients_drive(newcomer, 1, client_answered, NULL, PATIENCE);
	dropped = client_dropped(newcomer);
	clients_settle(w);
	bells_check(w);
	outcome = newcomer->phase == CLIENT_REFUSED ? TURNS_AWAY : JOINS;
	client_free(newcomer);
	w->present = RESIDENTS;
	clients_settle(w);
	for (size_t i = 0; i < RESIDENTS; i++)
		dropped += client_dropped(&w->clients[i]);
	if (dropped > 1)
		test_fail("%zu clients were dropped", dropped);
	return dropped > 0 ? DROPS : outcome;
}

/* The log since the fault; the caller frees it. */
static char *log_new(const struct world *w)
{
	char *log = server_log(&w->server), *text;

	text = strdup(log && strlen(log) >= w->logged ? log + w->logged : "");
	free(log);
	return text;
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
		char *log = log_new(w);

		told = supervisor_ready(); /* should the line be lost */
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

/* Starts a server, and the clients that stay. */
static void world_open(struct world *w)
{
	struct group *group = getgrgid(getegid());

	*w = (struct world){.server.descriptors = {DESCRIPTORS, DESCRIPTORS}};
	if (!server_start(&w->server, SERVER_ARGS("-f", "memory", "-n", "2", "-y", "86400", "-i",
						  "pidfile", "-g", group ? group->gr_name : "0")))
		test_abort(w->server.error);
	for (size_t i = 0; i < RESIDENTS; i++)
		client_come(w, i);
	clients_settle(w);
	visit(w);
	children_await(w);
	w->descriptors = server_descriptors(&w->server);
	supervisor_forget();
}

static void world_close(struct world *w)
{
	clients_free(w->clients, w->present);
	server_remove(&w->server);
}

/* After a fault: whoever was dropped comes back, and then all must be as ever. */
static void world_check(struct world *w)
{
	if (!server_alive(w)) {
		test_fail("the server is gone");
		world_close(w);
		world_open(w);
		return;
	}
	for (size_t i = 0; i < RESIDENTS; i++)
		if (!client_alive(&w->clients[i])) {
			client_free(&w->clients[i]);
			client_come(w, i);
		}
	if (visit(w) != JOINS)
		test_fail("afterwards, no client can join");
	children_await(w);
	if (!server_descriptors_wait(&w->server, w->descriptors + w->leaked, PATIENCE))
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
	char *log = server_log(&w->server);
	size_t times;

	w->logged = log ? strlen(log) : 0;
	free(log);
	supervisor_forget();
	if (!strace_attach(&strace, w->server.pid, strace_log, fault))
		test_abort("cannot attach strace");
	for (int i = 0; i < ATTEMPTS; i++) {
		outcome = phase->act(w);
		children_await(w);
		if (!fault->call || !phase->repeats || outcome == DIES || injected(&times))
			break;
	}
	strace_detach(&strace);
	if (!calls_read(calls, strace_log))
		test_abort(strace_log);
	return outcome;
}

/* What is going on while a call is made, in the words of the rules. */
static const char *phase_now(const struct phase *phase, const struct call *c, bool child)
{
	if (phase->act != restart)
		return phase->name;
	return child ? "checking" : c->after_exec ? "resuming" : "restarting";
}

/*
 * Lets one call fail. Returns false if another was hit, one that cannot fail or is not the server's
 * own: how often it makes a call depends on how fast others are.
 */
static bool fault_try(const struct phase *phase, struct world *w, const struct fault *fault)
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
	now = c ? phase_now(phase, c, fault->children) : phase->name;
	hit = c && times == 1 && c->own &&
	      rule_find(rules, now, &calls, c, fault->error)->outcome != NEVER;
	r.log = log = log_new(w);
	if (hit)
		fault_check(rules, now, &calls, fault, &r);
	/* An exec closes what was left open before. */
	w->leaked = c && !strcmp(c->name, "close") && (r.outcome != RESTARTS || c->after_exec);
	if (phase->repeats && (hit || server_alive(w)))
		world_check(w);
	if (!phase->repeats || !server_alive(w) || w->leaked) {
		world_close(w);
		world_open(w);
	}
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
	if (phase->repeats) {
		world_check(w);
	} else {
		world_close(w);
		world_open(w);
	}
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
	const char *now = phase_now(phase, c, children);
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
		if (fault_try(phase, w, &fault))
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

	world_open(&w);
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

static const struct phase phases[] = {
	{"serving", visit, true},
	{"restarting", restart, true},
	{"ending", end, false},
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
	const struct phase phase = {"restarting", restart, false};
	struct calls calls;
	struct world w;

	world_open(&w);
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
	if (!strace_works())
		return matrix_close();
	if (!folder || snprintf(strace_log, sizeof(strace_log), "%s/strace", folder) >=
			       (int)sizeof(strace_log))
		test_abort("no $TEST_DIR");
	matrix_open("faults-serve");
	supervisor_begin();
	for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++) {
		phase_test(&phases[i], false);
		if (phases[i].act != end)
			phase_test(&phases[i], true);
	}
	memory_test();
	return matrix_close();
}
