/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A server in the background is killed, and its standby goes on in its place: nobody notices.
 * What its log says is in daemon.bats, the death between any two stores to the ledger in crash.t.c.
 *
 * SEED repeats a run.
 */
#define _GNU_SOURCE
#include "server/ledger.h"
#include "tests/lib/crowd.h"
#include "tests/lib/faults.h"
#include "tests/lib/look.h"
#include "tests/lib/mesh.h"
#include "tests/lib/node.h"
#include "tests/lib/program.h"
#include "tests/lib/supervisor.h"
#include "tests/lib/testing.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

/* KiB of memory that a standby may have for itself; a sanitizer takes some. */
#ifdef __SANITIZE_ADDRESS__
#define PRIVATE_MOST 100000
#else
#define PRIVATE_MOST 300
#endif

static unsigned int seed;
static char shm_name[32];

/* What a test has: the server that is in charge, and the ledger of all that come one after the
 * other. */
static struct server server;
static pid_t first; /* of these servers; the group of all of them has its number */
static struct ledger *ledger;
static size_t ledger_length;
static int idle; /* descriptors that a server has open without nodes */

/*
 * The server
 */

static void moment(unsigned int us)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000L * us}, NULL);
}

/* Maps the ledger of the server. */
static void ledger_find(void)
{
	int fd = server_ledger(&server);
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	ledger_length = (size_t)st.st_size;
	ledger = mmap(NULL, ledger_length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(ledger != MAP_FAILED);
	close(fd);
}

/* KiB of memory that a process has for itself alone. */
static long process_private(pid_t pid)
{
	char *text = process_text(pid, "smaps_rollup");
	long kib = -1;

	if (text && strstr(text, "Private_Dirty:"))
		kib = atol(strstr(text, "Private_Dirty:") + 14);
	free(text);
	return kib;
}

/* The state of a process, and the signals that it has still to take, a bit each. */
static char process_state(pid_t pid, uint64_t *pending)
{
	char *status = process_text(pid, "status"), *at;
	char state = 'X';

	*pending = 0;
	if (status && (at = strstr(status, "\nState:")))
		sscanf(at, "\nState: %c", &state);
	for (at = status; at && (at = strstr(at, "Pnd:")); at++)
		*pending |= strtoull(at + 4, NULL, 16);
	free(status);
	return state;
}

/* Whether a process lives, and is not about to be killed. */
static bool process_lives(pid_t pid)
{
	uint64_t pending;
	char state = process_state(pid, &pending);

	return state != 'Z' && state != 'X' && !(pending & UINT64_C(1) << (SIGKILL - 1));
}

/* The standby that lives now; 0: none. */
static pid_t standby_now(void)
{
	pid_t pid = *(volatile int32_t *)&ledger->standby;

	return pid > 0 && process_lives(pid) ? pid : 0;
}

/* Waits until there is one, but this. Returns it. */
static pid_t standby_wait(pid_t but)
{
	int64_t deadline = deadline_in(PATIENCE);
	pid_t pid;

	while (!(pid = standby_now()) || pid == but)
		assert_that(deadline_ahead(deadline), "there is no standby");
	return pid;
}

/* Asks for the status: what the server had to do before is done when it answers. */
static void server_answers(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	char *text;

	while (!(text = look(server.socket)))
		assert_that(errno == ETIME && deadline_ahead(deadline), "no status: %s",
			    strerror(errno));
	free(text);
}

/* Waits until the server has acted upon all signals, no trial runs, what one has said has been
 * done, and there is a standby. */
static void server_rests(void)
{
	volatile int64_t *trial = &ledger->timers[TIMER_TRIAL];
	uint64_t pending;

	do {
		int64_t deadline = deadline_in(PATIENCE);

		while (process_state(server.pid, &pending), pending)
			assert_that(deadline_ahead(deadline), "it does not take its signals");
		server_answers(); /* a trial that they ask for runs, or has ended */
		while (*trial)
			assert_that(deadline_ahead(deadline), "a trial never ends");
		server_answers(); /* the server stays as it is, or is the new program */
	} while (*trial);
	standby_wait(0);
}

/* Starts a server in the background. */
static void server_up(const char *const *args)
{
	const char *all[32] = {"-d", "-i", "pid"};
	size_t n = 3;

	while (*args)
		all[n++] = *args++;
	assert_that(server_spawn(&server, all), "%s", server.error);
	assert_that(server_wait(&server, PATIENCE) == 0, "%s", server_log(&server));
	first = server.pid = server_pidfile(&server); /* whose parent this process has become */
	ledger_find();
	standby_wait(0);
	idle = server_idle(&server);
}

/* Stops it. Returns its standby, which it has at any moment. */
static pid_t server_halt(void)
{
	pid_t standby;
	int status;

	server_signal(&server, SIGSTOP);
	assert_int_equal(waitpid(server.pid, &status, WUNTRACED), server.pid);
	assert_true(WIFSTOPPED(status));
	standby = standby_now();
	assert_that(standby, "there is no standby");
	return standby;
}

/* Kills it, where it stands. Crash loops are a test of their own. */
static void server_kill(void)
{
	memset(ledger->deaths, 0, sizeof(ledger->deaths));
	server_signal(&server, SIGKILL);
	assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
}

/* Waits until this process has taken the server's place. */
static void server_comes(pid_t standby)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (server_pidfile(&server) != standby)
		assert_that(deadline_ahead(deadline) && process_lives(standby),
			    "process %d does not take over", (int)standby);
	server.pid = standby;
}

static void server_dies(void)
{
	pid_t standby = server_halt();

	server_kill();
	server_comes(standby);
}

/* Whether nothing is left of server and standby. */
static bool server_gone(void)
{
	while (waitpid(-first, NULL, WNOHANG) > 0)
		;
	return kill(-first, 0) < 0 && errno == ESRCH;
}

static void gone_wait(void)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (!server_gone())
		assert_that(deadline_ahead(deadline), "processes are left");
	server.pid = 0;
}

/* Forgets all of it, also what a test that failed has left. */
static void all_forget(void)
{
	everybody_goes();
	if (first > 0) {
		kill(-first, SIGKILL);
		kill(-first, SIGCONT);
		gone_wait();
	}
	if (ledger)
		munmap(ledger, ledger_length);
	ledger = NULL;
	first = 0;
	server_remove(&server);
	server = (struct server){0};
}

/* All clients go, and then the server, in order. */
static void all_end(void)
{
	char path[128];

	everybody_goes();
	server_rests();
	assert_that(server_descriptors_wait(&server, idle, PATIENCE),
		    "%d descriptors instead of %d", server_descriptors(&server), idle);
	assert_int_equal(server_stop(&server), 0);
	snprintf(path, sizeof(path), "%s/pid", server.folder);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(access(server.socket, F_OK), -1);
	gone_wait();
	all_forget();
}

/*
 * Tests
 */

static const struct client_options two = {.vectors = 2, .keep = true};
#define TWO SERVER_ARGS("-f", "memory", "-n", "2")

struct kind {
	const char *const *args;
	struct client_options options;
};

/* People come and go before, while and after a server of this kind dies, twice. */
static void kind_check(const struct kind *kind)
{
	server_up(kind->args);
	for (int id = 0; id < 3; id++)
		assert_int_equal(somebody_is_greeted(kind->options)->id, id);
	for (int round = 1; round <= 2; round++) {
		pid_t standby = server_halt();

		somebody_goes(1);
		server_kill();
		somebody_connects(kind->options);
		server_comes(standby);
		everybody_agrees();
		assert_int_equal(clients[0].id, 0);
		assert_int_equal(clients[2].id, 2 + round);
	}
	somebody_is_greeted(kind->options);
	everybody_agrees();
	all_end();
}

static void every_kind_of_server(void **state)
{
	const struct kind kinds[] = {
		{TWO, two},
		{SERVER_ARGS("-s", shm_name, "-n2", "-am2M"), two},
		{SERVER_ARGS("-A", "-n2", "-g0"), two},
		{SERVER_ARGS("-f", "memory", "-n0"), {.vectors = 0, .keep = true}},
		{SERVER_ARGS("-fmemory", "-vy1", "-n64"), {.vectors = 64, .keep = true}},
		{SERVER_ARGS("-L", "-f", "memory", "-m", "1M", "-n2"),
		 {.vectors = 2, .keep = true, .legacy = true}},
		{SERVER_ARGS("-L", "-m0", "-n2"),
		 {.vectors = 2, .keep = true, .legacy = true, .memoryless = true}},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		kind_check(&kinds[i]);
}

#define KILLS 200
#define CROWD 10

static bool resting[CROWD]; /* who does not read for now */

/* Somebody comes, goes, reads or stops to; nobody is cut off. */
static void life_goes_on(void)
{
	size_t i = count ? (size_t)rand_r(&seed) % count : 0;
	int dice = rand_r(&seed) % 10;

	if ((count < 2 || dice < 3) && count < CROWD) {
		resting[count] = rand_r(&seed) % 3 == 0;
		somebody_connects((struct client_options){.vectors = 40});
	} else if (dice < 5) {
		somebody_goes(i);
		memmove(&resting[i], &resting[i + 1], (count - i) * sizeof(resting[0]));
	} else if (dice < 6) {
		resting[i] = !resting[i];
	}
	for (i = 0; i < count; i++) {
		for (int n = resting[i] ? 0 : rand_r(&seed) % 100; n > 0; n--)
			if (client_step(&clients[i]) <= 0)
				break;
		assert_that(!clients[i].ended && !clients[i].error[0],
			    "client %d is cut off after %zu messages: %s", clients[i].id,
			    clients[i].messages, clients[i].error);
	}
}

/* Also those of a restart in place. */
static void any_moment_may_be_the_last(void **state)
{
	(void)state;
	printf("# SEED=%u\n", seed);
	server_up(SERVER_ARGS("-f", "memory", "-n", "40"));
	for (int kill = 1; kill <= KILLS; kill++) {
		pid_t standby;

		for (int n = rand_r(&seed) % 6; n > 0; n--) {
			life_goes_on();
			moment((unsigned int)rand_r(&seed) % 300);
		}
		if (rand_r(&seed) % 2) {
			server_signal(&server, SIGHUP);
			moment((unsigned int)rand_r(&seed) % 5000);
		}
		standby = server_halt();
		server_kill();
		for (int n = rand_r(&seed) % 4; n > 0; n--)
			life_goes_on();
		server_comes(standby);
		if (kill % 10 == 0)
			everybody(client_agrees, NULL);
	}
	all_end();
}

/* They ring each other before and after; one connects meanwhile, and one leaves. */
static void qemu_nodes(void **state)
{
	const char *missing = node_missing();
	struct node *nodes[3];
	pid_t standby;

	(void)state;
	if (missing)
		skip_because("%s", missing);
	server_up(TWO);
	for (int i = 0; i < 2; i++) {
		nodes[i] = node_start(server.socket, 2, "");
		assert_true(node_ready(nodes[i]));
	}
	nodes_check_bells(nodes, 2);
	for (int round = 1; round <= 2; round++) {
		standby = server_halt();
		server_kill();
		nodes[2] = node_start(server.socket, 2, "");
		server_comes(standby);
		assert_true(node_ready(nodes[2]));
		nodes_check_bells(nodes, 3);
		nodes_check_memory(nodes, 3, (uint64_t)round);
		assert_int_equal(node_id(nodes[0]), 0);
		assert_int_equal(node_id(nodes[2]), 1 + round);
		node_end(nodes[1]);
		nodes[1] = nodes[2];
	}
	nodes_end();
	all_end();
}

/* What is locked stays so all the time, and nobody else can listen. Who is refused is told of the
 * server that has the locks now. */
static void nobody_comes_between(void **state)
{
	const char *const *const others[] = {
		SERVER_ARGS("-f", "memory", "-p", "other"),
		SERVER_ARGS("-f", "another", "-i", "pid", "-p", "other"),
		SERVER_ARGS("-f", "another"), /* at the same socket */
	};
	char served[64], held[64];
	pid_t standby;

	(void)state;
	server_up(TWO);
	somebody_is_greeted(two);
	somebody_is_greeted(two);
	for (int round = 0; round < 2; round++) {
		standby = server_halt();
		snprintf(served, sizeof(served),
			 "served by another server, process %d:", (int)standby);
		snprintf(held, sizeof(held), "held by another server, process %d:", (int)standby);
		kill(standby, SIGSTOP);
		server_kill();
		for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
			assert_true(server_spawn(&server, others[i]));
			assert_int_equal(server_wait(&server, PATIENCE), 1);
		}
		kill(standby, SIGCONT);
		server_comes(standby);
		for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
			assert_true(server_spawn(&server, others[i]));
			assert_int_equal(server_wait(&server, PATIENCE), 1);
		}
		server.pid = standby;
		assert_true(server_logged(&server, served));
		assert_true(server_logged(&server, held));
		assert_true(server_logged(&server, "belongs to a server that is running"));
		everybody_agrees();
	}
	all_end();
}

/* Who kills both has ended it: all see that, and another can start. The second death has to come
 * within the 20 ms that the standby waits, so where this test was held up, it is done again. */
static void both_are_killed(void **state)
{
	int64_t deadline = deadline_in(PATIENCE);

	(void)state;
	for (int round = 0; round < 4; round++) {
		bool in_time;
		int64_t start;
		pid_t standby;

		server_up(TWO);
		somebody_is_greeted(two);
		standby = server_halt();
		start = clock_ms();
		server_signal(&server, SIGKILL);
		moment(round * 8000U);
		kill(standby, SIGKILL);
		in_time = clock_ms() - start < 19;
		assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
		if (round < 2 && !in_time) {
			assert_that(deadline_ahead(deadline), "this test gets no time");
			all_forget();
			round--;
		} else if (round < 2) {
			gone_wait();
			some_drive(0, 1, client_ended, NULL);
			somebody_goes(0);
			server_up(TWO);
			somebody_is_greeted(two);
			everybody_agrees();
			all_end();
		} else {
			all_forget(); /* if it was quicker, its own standby goes on */
		}
	}
}

/* Who finds the server by its pidfile finds one that has a standby, however soon. */
static void whom_the_pidfile_names(void **state)
{
	(void)state;
	server_up(TWO);
	somebody_is_greeted(two);
	for (int round = 0; round < 50; round++) {
		pid_t standby;
		int status;

		/* It stops first, so that what is read is its standby, and not that one's own. */
		server_signal(&server, SIGSTOP);
		assert_int_equal(waitpid(server.pid, &status, WUNTRACED), server.pid);
		standby = standby_now();
		server_kill();
		assert_that(standby, "round %d: it had no standby", round);
		server_comes(standby);
	}
	somebody_is_greeted(two);
	everybody_agrees();
	all_end();
}

/* The first goes, and the server has noticed. */
static void first_leaves(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	uint64_t departures = ledger->departures;

	somebody_goes(0);
	while (*(volatile uint64_t *)&ledger->departures == departures)
		assert_that(deadline_ahead(deadline), "that somebody has gone is not noticed");
}

/* Where each descriptor is taken, it goes on, too. */
static void no_descriptor_is_left(void **state)
{
	(void)state;
	server.unraised = true;
	server.descriptors = (struct rlimit){40, 40};
	server_up(TWO);
	do
		somebody_connects(two);
	while (clients_drive(&clients[count - 1], 1, client_greeted, NULL, PATIENCE));
	somebody_goes(count - 1);
	for (int round = 0; round < 3; round++) {
		server_dies();
		everybody_agrees();
		somebody_connects(two);
		assert_false(clients_drive(&clients[count - 1], 1, client_greeted, NULL, PATIENCE));
		somebody_goes(count - 1);
	}
	first_leaves(); /* else there would be no room */
	somebody_is_greeted(two);
	everybody_agrees();
	all_end();
}

/* The program that stands there by then is executed if that can take over. */
static void the_program_on_disk(void **state)
{
	static const char *const others[] = {"/bin/false", "/etc/passwd", NULL};
	pid_t standby;

	(void)state;
	server_up(TWO);
	somebody_is_greeted(two);
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		unlink(program);
		if (others[i])
			program_put(others[i]);
		for (int round = 0; round < 2; round++) {
			server_dies();
			somebody_is_greeted(two);
			everybody_agrees();
			server_rests();
			assert_false(program_runs(server.pid));
		}
	}
	program_put(tested);
	server_dies();
	for (int64_t deadline = deadline_in(PATIENCE); !program_runs(server.pid);)
		assert_that(deadline_ahead(deadline), "the program on disk is not executed");
	everybody_agrees();
	/* If that is what runs, nothing is executed, for which the standby would have to end. */
	server_rests();
	server_dies();
	standby = standby_wait(server.pid);
	server_rests();
	assert_int_equal(standby_now(), standby);
	everybody_agrees();
	all_end();
}

/* However long this test has needed for the deaths so far, they came five seconds ago. */
static void deaths_hurry(void)
{
	for (size_t i = 0; i < DEATHS; i++)
		if (ledger->deaths[i])
			ledger->deaths[i] = clock_ms() - 5000;
}

/* It is given up after some deaths in a short time, and leaves nothing behind. */
static void crash_loop(void **state)
{
	char path[128];

	(void)state;
	server_up(TWO);
	somebody_is_greeted(two);
	snprintf(path, sizeof(path), "%s/pid", server.folder);
	for (int death = 1; death <= DEATHS; death++) {
		pid_t standby = server_halt();

		assert_int_equal(server_pidfile(&server), server.pid);
		deaths_hurry();
		server_signal(&server, SIGKILL);
		assert_int_equal(server_wait(&server, PATIENCE), -SIGKILL);
		if (death < DEATHS) {
			server_comes(standby);
			everybody_agrees();
		}
	}
	gone_wait();
	some_drive(0, 1, client_ended, NULL);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(access(server.socket, F_OK), -1);
	somebody_goes(0);
	server_up(TWO);
	somebody_is_greeted(two);
	all_end();
}

static void standby_sleeps(pid_t standby)
{
	int64_t deadline = deadline_in(PATIENCE);
	uint64_t pending;

	while (process_state(standby, &pending) != 'S')
		assert_that(deadline_ahead(deadline), "the standby does not sleep");
}

/* A standby that ends is replaced; what ends a server does nothing to it. */
static void the_standby_itself(void **state)
{
	static const int harmless[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2};
	char *title, *status, wanted[64];
	pid_t standby;

	(void)state;
	server_up(TWO);
	somebody_is_greeted(two);
	standby = standby_wait(0);
	for (size_t i = 0; i < sizeof(harmless) / sizeof(harmless[0]); i++)
		assert_int_equal(kill(standby, harmless[i]), 0);
	server_dies();
	assert_int_equal(server.pid, standby);
	everybody_agrees();
	server_rests();
	standby = standby_wait(0);
	kill(standby, SIGKILL);
	standby = standby_wait(standby);
	snprintf(wanted, sizeof(wanted), "standby of tm_ivshmem_server, process %d",
		 (int)server.pid);
	for (int64_t deadline = deadline_in(PATIENCE);; free(title)) {
		title = process_text(standby, "cmdline");
		if (title && strstr(title, wanted))
			break;
		assert_that(deadline_ahead(deadline), "it is called '%s'", title ? title : "");
	}
	free(title);
	standby_sleeps(standby);
	assert_in_range(process_private(standby), 1, PRIVATE_MOST);
	status = process_text(standby, "status");
	assert_non_null(status);
	title = strdup(strstr(status, "voluntary_ctxt_switches"));
	free(status);
	moment(900000);
	status = process_text(standby, "status");
	assert_non_null(status);
	assert_string_equal(title, strstr(status, "voluntary_ctxt_switches")); /* it sleeps */
	free(status);
	free(title);
	server_dies();
	everybody_agrees();
	all_end();
}

/* After a restart in place there is one standby, that of the program that runs. */
static void a_restart_in_place(void **state)
{
	pid_t standby;

	(void)state;
	server_up(TWO);
	somebody_is_greeted(two);
	for (int round = 0; round < 2; round++) {
		server_rests(); /* who took over has executed what is there by now */
		standby = standby_wait(0);
		program_put(round ? "/bin/false" : tested);
		server_signal(&server, SIGHUP);
		if (!round)
			standby_wait(standby);
		server_rests();
		assert_int_equal(program_runs(server.pid), !round);
		somebody_is_greeted(two);
		server_dies();
		everybody_agrees();
	}
	program_put(tested);
	all_end();
}

/* The server dies, and its standby goes on, while one of its calls fails; only from there to its
 * first look at who waits do calls count. */
static void fault_run(const struct fault *fault, struct calls *calls)
{
	struct strace strace;
	char log[128];
	pid_t standby;

	server_up(TWO);
	somebody_is_greeted(two);
	somebody_is_greeted(two);
	everybody_agrees();
	server_rests(); /* what it had still to do, the standby would do, by calls of its own */
	standby = standby_wait(0);
	standby_sleeps(standby);
	snprintf(log, sizeof(log), "%s/strace", server.folder);
	assert_true(strace_attach(&strace, standby, log, fault));
	standby_sleeps(standby); /* again, and strace has seen that */
	server_kill();
	server.pid = standby; /* its pidfile may be what fails */
	somebody_connects(two);
	everybody_agrees();
	strace_detach(&strace);
	assert_true(calls_read(calls, log));
	for (size_t i = 0; i < calls->n; i++)
		if (!strcmp(calls->list[i].name, "pselect6"))
			calls->n = i;
	everybody_goes();
	server_rests();
	assert_int_equal(server_stop(&server), 0);
	assert_int_equal(access(server.socket, F_OK), -1);
	gone_wait();
	all_forget();
}

/* Each call of the way from one to the other fails once: nobody notices even so. */
static void each_call_fails(void **state)
{
	struct calls way, calls;
	size_t faults = 0, times;

	(void)state;
	if (!strace_works())
		skip_because("needs strace");
	fault_run(NULL, &way);
	for (size_t i = 0; i < way.n; i++) {
		const struct call *c = &way.list[i];
		bool its = c->pid == way.list[0].pid; /* and no child's */
		const char *errors = its && (calls_first(&way, c) || !strcmp(c->name, "clone"))
					     ? fault_errors(c->name)
					     : NULL;
		char error[32];

		assert_that(!c->own || fault_errors(c->name),
			    "%s: lib/faults.c does not say how it can fail", c->text);
		for (int e = 0; errors && e < 2 && *word_next(&errors, error, sizeof(error)); e++) {
			const struct fault fault = {c->name, error, c->nth, false, false};

			fault_run(&fault, &calls);
			assert_that(calls_injected(&calls, &times), "%s was not made", c->name);
			calls_free(&calls);
			faults++;
		}
	}
	calls_free(&way);
	printf("# %zu faults\n", faults);
	assert_true(faults >= 10);
}

/* How long it takes with many nodes is printed, and no part of the test. */
static void a_thousand_nodes(void **state)
{
	const struct client_options one = {.vectors = 1};
	int64_t start;
	pid_t standby;

	(void)state;
	if (descriptors_allow() < 3000)
		skip_because("the limit of descriptors is too low");
	server_up(SERVER_ARGS("-f", "memory", "-n", "1"));
	while (count < 999)
		somebody_connects(one);
	everybody(client_knows, &(size_t){count - 1});
	server_rests();
	standby = server_halt();
	start = clock_ms();
	server_kill();
	somebody_is_greeted(one);
	printf("# %zu nodes: somebody is greeted %d ms after the death\n", count - 1,
	       (int)(clock_ms() - start));
	server_comes(standby);
	everybody(client_knows, &(size_t){count - 1});
	all_end();
}

/* In the foreground, and under a supervisor, there is none. */
static void who_has_none(void **state)
{
	(void)state;
	for (int supervised = 0; supervised <= 1; supervised++) {
		server.supervisor = supervised ? supervisor_start() : NULL;
		assert_true(server_start(&server, TWO));
		ledger_find();
		somebody_is_greeted(two);
		server_signal(&server, SIGHUP);
		assert_true(server_log_wait(&server, "restarted in place", PATIENCE));
		somebody_is_greeted(two);
		everybody_agrees();
		assert_int_equal(ledger->standby, -1);
		everybody_goes();
		assert_int_equal(server_stop(&server), 0);
		supervisor_free(server.supervisor);
		all_forget();
	}
}

static int setup(void **state)
{
	(void)state;
	program_put(tested);
	return 0;
}

static int teardown(void **state)
{
	char path[64];

	(void)state;
	nodes_end();
	all_forget();
	snprintf(path, sizeof(path), "/dev/shm/%s", shm_name);
	unlink(path);
	return 0;
}

#define standby_test(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		standby_test(every_kind_of_server),
		standby_test(any_moment_may_be_the_last),
		standby_test(qemu_nodes),
		standby_test(nobody_comes_between),
		standby_test(both_are_killed),
		standby_test(whom_the_pidfile_names),
		standby_test(no_descriptor_is_left),
		standby_test(the_program_on_disk),
		standby_test(crash_loop),
		standby_test(the_standby_itself),
		standby_test(a_restart_in_place),
		standby_test(who_has_none),
		standby_test(each_call_fails),
		standby_test(a_thousand_nodes),
	};

	if (!program_begin("tm_ivshmem_server") || !daemons_begin(&seed))
		return 1;
	snprintf(shm_name, sizeof(shm_name), "tm-standby-%d", (int)getpid());
	crowd_at(server.socket, server.log);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
