/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Under the real systemd, with the unit as it is installed: that nodes outlive the server, and when
 * they do not. For the container of takeover-systemd.bats, whose PID 1 it is that keeps the
 * descriptors; an instance of the unit for each test.
 *
 *	takeover PATTERN    the tests whose names match
 *
 * SEED repeats a run.
 */
#define _GNU_SOURCE
#include "tests/lib/crowd.h"
#include "tests/lib/mesh.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define OWN     4 /* descriptors of its own that a server with a file stores */
#define PROGRAM "/usr/sbin/tm_ivshmem_server"

static unsigned int seed;
static struct node *nodes[8];
static size_t nodes_count;

/* The instance that the test has. */
static struct service {
	char unit[64];
	char name[24];
	char socket[64];
	size_t successors; /* that the log has told of so far */
} service;

/*
 * Commands
 */

/* What a command prints, which must succeed; the caller frees it. */
__attribute__((format(printf, 1, 2))) static char *output(const char *format, ...)
{
	char command[512], *text = NULL;
	size_t room = 0;
	va_list args;
	FILE *f;

	va_start(args, format);
	vsnprintf(command, sizeof(command), format, args);
	va_end(args);
	f = popen(command, "re");
	assert_non_null(f);
	if (getdelim(&text, &room, '\0', f) < 0) {
		free(text);
		text = strdup("");
	}
	assert_that(pclose(f) == 0, "this failed: %s", command);
	assert_non_null(text);
	return text;
}

#define run(...) free(output(__VA_ARGS__))

/* A property of the unit, up to the next call. */
static const char *property(const char *name)
{
	static char value[128];
	char *text = output("systemctl show -P %s %s", name, service.unit);

	snprintf(value, sizeof(value), "%.*s", (int)strcspn(text, "\n"), text);
	free(text);
	return value;
}

static pid_t main_process(void)
{
	return atoi(property("MainPID"));
}

/* Waits until systemd keeps so many descriptors. */
static void stored_wait(int n)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (atoi(property("NFileDescriptorStore")) != n)
		assert_that(deadline_ahead(deadline), "systemd keeps %s descriptors, not %d",
			    property("NFileDescriptorStore"), n);
}

static void state_wait(const char *state)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (strcmp(property("ActiveState"), state) != 0)
		assert_that(deadline_ahead(deadline), "the unit is %s, not %s",
			    property("ActiveState"), state);
}

/*
 * The log
 */

/* All that the unit has in the journal; the caller frees it. */
static char *log_text(void)
{
	return output("journalctl --sync; exec journalctl -b -o cat --no-pager -u %s",
		      service.unit);
}

/* How many of its lines have both texts. */
static size_t logged_times(const char *one, const char *other)
{
	char *log = log_text(), *rest;
	size_t n = 0;

	for (char *line = strtok_r(log, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		n += strstr(line, one) && strstr(line, other);
	free(log);
	return n;
}

/* Waits for the line of a successor. Returns of how many nodes it says that it took them over. */
static size_t succession(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	size_t lines, taken = 0;

	do {
		char *log = log_text();

		lines = 0;
		for (const char *at = log; (at = strstr(at, "took over ")); lines++) {
			at += strlen("took over ");
			taken = strtoul(at, NULL, 10);
		}
		free(log);
		assert_that(deadline_ahead(deadline), "nobody took over");
	} while (lines == service.successors);
	assert_int_equal(lines, ++service.successors);
	return taken;
}

/* What neither the server nor systemd may have said. */
static void log_check(void)
{
	static const char *const complaints[] = {"Sanitizer",    "runtime error", "ssertion",
						 "Cannot store", "Unknown",       "Failed to add",
						 "cannot take"};
	char *log = log_text(), *rest;

	for (char *line = strtok_r(log, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		for (size_t i = 0; i < sizeof(complaints) / sizeof(complaints[0]); i++)
			assert_that(!strstr(line, complaints[i]), "this is in the log: %s", line);
	free(log);
}

/*
 * The service
 */

static void options_set(const char *options)
{
	char path[96];
	FILE *f;

	snprintf(path, sizeof(path), "/etc/tm_ivshmem_server/%s.conf", service.name);
	f = fopen(path, "we");
	assert_non_null(f);
	fprintf(f, "OPTIONS=-f /var/lib/tm_ivshmem_server/%s %s\n", service.name, options);
	assert_int_equal(fclose(f), 0);
}

/* Names the instance, without starting it. */
static void instance(const char *name, const char *options)
{
	service = (struct service){0};
	snprintf(service.name, sizeof(service.name), "%s", name);
	snprintf(service.unit, sizeof(service.unit), "tm_ivshmem_server@%s.service", name);
	snprintf(service.socket, sizeof(service.socket), "/run/tm_ivshmem_server/%s.sock", name);
	options_set(options);
}

/* Settings of the unit for this instance. */
static void drop_in(const char *settings)
{
	run("mkdir -p /run/systemd/system/%s.d && printf '%s' >/run/systemd/system/%s.d/test.conf && "
	    "systemctl daemon-reload",
	    service.unit, settings, service.unit);
}

static void start(void)
{
	run("systemctl start %s", service.unit);
	stored_wait(OWN);
}

static void restart(void)
{
	run("systemctl restart %s", service.unit);
}

static void die(void)
{
	pid_t process = main_process();

	assert_true(process > 0 && kill(process, SIGKILL) == 0);
}

/* As it is done by hand, or by earlyoom: a stop is for systemctl. */
static void end(void)
{
	pid_t process = main_process();

	assert_true(process > 0 && kill(process, SIGTERM) == 0);
	assert_int_equal(kill(process, SIGCONT), 0); /* the test may have stopped it */
}

/* As a package does it: the new program takes the place of the old one, which still runs. */
static void upgrade(void)
{
	run("install -m 755 " PROGRAM ".newer " PROGRAM ".tmp && mv " PROGRAM ".tmp " PROGRAM
	    " && systemctl daemon-reload");
	restart();
}

/* systemd itself is upgraded, and then the server dies. */
static void reexecute(void)
{
	run("systemctl daemon-reexec");
	die();
}

/* As one does from a version that stores nothing yet. */
static void reload(void)
{
	size_t before = logged_times("restarted in place", "");
	int64_t deadline = deadline_in(PATIENCE);

	run("systemctl reload %s", service.unit);
	while (logged_times("restarted in place", "") == before)
		assert_true(deadline_ahead(deadline));
	die();
}

/*
 * Tests
 */

static const struct client_options two = {.vectors = 2, .keep = true};

/* The end of a connection, as QEMU sees it; it goes on with what it has. */
static void node_check_end(struct node *n)
{
	int64_t deadline = deadline_in(PATIENCE);

	while (node_connected(n))
		assert_true(deadline_ahead(deadline));
	assert_true(node_alive(n));
}

static struct node *node_up(void)
{
	struct node *n = node_start(service.socket, 2, "");

	assert_non_null(n);
	assert_true(node_ready(n));
	return n;
}

/*
 * Real QEMU nodes. Before each death one leaves while the server cannot see that; after it, one
 * comes that is to meet those from before.
 */
static void nodes_notice_nothing(void **state)
{
	static void (*const deaths[])(void) = {restart, die, upgrade, reexecute, reload, end, die};
	int ids[8] = {0, 1, 2}, next = 3;
	size_t taken, eventfds;
	char *newer;

	(void)state;
	if (node_missing())
		skip_because("%s", node_missing());
	instance("qemu", "-m 4M -n 2");
	start();
	while (nodes_count < 3)
		nodes[nodes_count++] = node_up();
	eventfds = node_eventfds(nodes[0]);
	for (size_t death = 0; death < sizeof(deaths) / sizeof(deaths[0]); death++) {
		nodes_check_bells(nodes, nodes_count);
		nodes_check_memory(nodes, nodes_count, death);
		stored_wait(OWN + (int)nodes_count);

		assert_int_equal(kill(main_process(), SIGSTOP), 0);
		node_end(nodes[1]);
		nodes[1] = nodes[2];
		ids[1] = ids[2];
		if (deaths[death] == reload) /* which waits for the server */
			assert_int_equal(kill(main_process(), SIGCONT), 0);
		deaths[death]();
		taken = succession();
		assert_in_range(taken, nodes_count - 1, nodes_count);
		node_check_eventfds(nodes[0], eventfds - 2);
		node_check_eventfds(nodes[1], eventfds - 2);

		nodes[2] = node_up();
		ids[2] = next++;
		for (size_t i = 0; i < nodes_count; i++)
			assert_int_equal(node_id(nodes[i]), ids[i]);
		assert_int_equal(node_load(nodes[2], 8), (uint64_t)death << 32 | 0x1001);
	}
	nodes_check_bells(nodes, nodes_count);
	nodes_check_memory(nodes, nodes_count, 99);
	newer = output(PROGRAM ".newer --version");
	*strchrnul(newer, '\n') = '\0';
	assert_int_equal(logged_times("took over", strrchr(newer, ' ') + 1), 5);
	free(newer);
	assert_int_equal(logged_times("restart the node", ""), 0);
	assert_string_equal(property("NRestarts"), "4");
	log_check();

	run("systemctl stop %s", service.unit);
	for (size_t i = 0; i < nodes_count; i++)
		node_check_end(nodes[i]);
	nodes_check_bells(nodes, nodes_count);
	stored_wait(0);
	assert_int_equal(access(service.socket, F_OK), -1);
	start();
	nodes[nodes_count++] = node_up();
	assert_int_equal(node_id(nodes[3]), 0);
	assert_int_equal(node_load(nodes[3], 8), UINT64_C(99) << 32 | 0x1001);
}

/* A stop ends all, whether the server runs or is about to be started anew. */
static void a_stop_lets_all_go(void **state)
{
	(void)state;
	instance("stop", "-n 2");
	drop_in("[Service]\\nRestartSec=1h\\n");
	for (int dead = 0; dead < 2; dead++) {
		start();
		for (int i = 0; i < 3; i++)
			somebody_connects(two);
		everybody_agrees();
		assert_int_equal(clients[0].id, 0);
		stored_wait(OWN + 3);
		if (dead) {
			die();
			state_wait("activating");
			stored_wait(OWN + 3);
		}
		run("systemctl stop %s", service.unit);
		everybody_is_let_go();
		stored_wait(0);
		assert_string_equal(property("ActiveState"), "inactive");
		if (!dead)
			assert_int_equal(access(service.socket, F_OK), -1);
	}
	start();
	somebody_connects(two);
	everybody_agrees();
	assert_int_equal(clients[0].id, 0);
	log_check();
}

/* Of who left while no server ran systemd keeps nothing, also where that shows by a send. */
static void who_left_meanwhile_is_dropped(void **state)
{
	const struct client_options many = {.vectors = 300};

	(void)state;
	instance("meanwhile", "-n 300");
	start();
	somebody_connects(many);
	assert_mesh(clients, 1);
	somebody_connects(many); /* and does not read: its socket is full */
	assert_drive(clients, 1, client_knows, &(size_t){1});
	stored_wait(OWN + 2);
	assert_int_equal(kill(main_process(), SIGSTOP), 0);
	somebody_goes(1);
	die();
	assert_int_equal(succession(), 2);
	stored_wait(OWN + 1);
	assert_mesh(clients, 1);
	log_check();
}

/* Nodes do not fit another -n: they are let go and named, by a restart as well as by a death. */
static void other_options(void **state)
{
	static const char *const options[] = {"-n 3", "-n 2", "-n 1 -y 60"};
	struct client_options now = two;

	(void)state;
	instance("other", "-n 2");
	start();
	for (size_t change = 0; change < 3; change++) {
		int ids[3];

		for (int i = 0; i < 3; i++)
			somebody_connects(now);
		assert_mesh(clients, count);
		for (int i = 0; i < 3; i++)
			ids[i] = clients[i].id;
		stored_wait(OWN + 3);
		options_set(options[change]);
		if (change == 1)
			die();
		else
			restart();
		everybody_is_let_go();
		for (int i = 0; i < 3; i++) {
			char left[32];

			snprintf(left, sizeof(left), "ID %d left: ", ids[i]);
			assert_int_equal(logged_times(left, "with other options: restart the node"),
					 change + 1);
		}
		assert_int_equal(logged_times("cannot take over: the nodes have", ""), change + 1);
		now.vectors = change == 0 ? 3 : change == 1 ? 2 : 1;
		stored_wait(OWN);
	}
	somebody_connects(now);
	assert_mesh(clients, count);
	/* What does fit is taken over. */
	options_set("-n 1 -v");
	restart();
	assert_int_equal(succession(), 1);
	somebody_connects(now);
	assert_mesh(clients, count);
}

/* Makes an instance with two nodes. */
static void two_nodes(const char *name)
{
	instance(name, "-n 2");
	start();
	for (int i = 0; i < 2; i++)
		somebody_connects(two);
	everybody_agrees();
	stored_wait(OWN + 2);
}

/* They are still there, with one more; and then the service ends. */
static void two_nodes_stay(void)
{
	somebody_connects(two);
	everybody_agrees();
	assert_int_equal(clients[0].id, 0);
	assert_int_equal(logged_times("restart the node", ""), 0);
	run("systemctl stop %s", service.unit);
	everybody_is_let_go();
}

/* The same, where the log has no complaint, either. */
static void two_nodes_check(void)
{
	log_check();
	two_nodes_stay();
	log_check();
}

/* However often a program dies, all who were there still are, once it has been mended. */
static void a_crash_loop_is_survived(void **state)
{
	(void)state;
	two_nodes("loop");
	drop_in("[Service]\\nRestartSec=50ms\\n");
	run("mv " PROGRAM " " PROGRAM ".whole && printf '#!/bin/sh\\nkill -9 $$\\n' >" PROGRAM
	    " && chmod 755 " PROGRAM);
	die();
	while (atoi(property("NRestarts")) < 25)
		assert_string_not_equal(property("ActiveState"), "failed");
	run("mv " PROGRAM ".whole " PROGRAM);
	assert_int_equal(succession(), 2);
	two_nodes_check();
}

/* A mistake in the options fails reload and restart, says why, and is mended by mending it. */
static void a_mistake_is_survived(void **state)
{
	int64_t deadline;
	pid_t process;

	(void)state;
	two_nodes("mistake");
	process = main_process();
	options_set("-n 2 -m 3M");
	run("! systemctl reload %s 2>&1", service.unit);
	assert_int_equal(logged_times("not a power of two", ""), 1);
	assert_string_equal(property("ActiveState"), "active");
	assert_int_equal(main_process(), process);
	everybody_agrees();
	options_set("-n 2");
	run("systemctl reload %s", service.unit);
	while (!logged_times("restarted in place", ""))
		;

	options_set("-n 2 -m 3M");
	run("! systemctl restart %s 2>&1", service.unit);
	while (atoi(property("NRestarts")) < 2)
		assert_string_not_equal(property("ActiveState"), "failed");
	deadline = deadline_in(PATIENCE);
	while (!strstr(property("StatusText"), "not a power of two"))
		assert_that(deadline_ahead(deadline), "the status does not say why");
	options_set("-n 2");
	assert_int_equal(succession(), 2);
	two_nodes_check();
}

/* As packages and scripts do it that know of nothing. */
static void many_restarts_are_no_loop(void **state)
{
	(void)state;
	two_nodes("often");
	for (int i = 0; i < 25; i++)
		restart();
	service.successors = 24;
	assert_int_equal(succession(), 2);
	two_nodes_check();
}

/* When systemd last heard that the server goes round: microseconds. */
static int64_t pinged_at(void)
{
	return strtoll(property("WatchdogTimestampMonotonic"), NULL, 10);
}

/* One that does not go round any more is killed; one that does is not. */
static void a_hang_is_survived(void **state)
{
	const int64_t limit_us = 4000000; /* within which a slow machine goes round as well */
	int64_t deadline, first;
	pid_t process;

	(void)state;
	instance("hang", "-n 2");
	start();
	assert_string_equal(property("WatchdogUSec"), "30s");
	run("systemctl stop %s", service.unit);
	drop_in("[Service]\\nWatchdogSec=4\\n");
	start();
	for (int i = 0; i < 2; i++)
		somebody_connects(two);
	everybody_agrees();
	stored_wait(OWN + 2);
	process = main_process();
	deadline = deadline_in(PATIENCE);
	first = pinged_at();
	while (pinged_at() <= first + limit_us)
		assert_that(deadline_ahead(deadline), "systemd hears nothing of the server");
	assert_int_equal(main_process(), process);
	assert_int_equal(kill(process, SIGSTOP), 0);
	assert_int_equal(succession(), 2);
	assert_int_equal(logged_times("Watchdog timeout", ""), 1);
	two_nodes_check();
}

/* What only few units shall survive, such as the way to the rescue mode. */
static void isolate(void)
{
	run("printf '[Unit]\\nRequires=basic.target\\nAllowIsolate=yes\\n' "
	    ">/run/systemd/system/isolated.target && systemctl daemon-reload && "
	    "systemctl isolate isolated.target");
}

static void nobody_is_isolated(void **state)
{
	(void)state;
	two_nodes("isolated");
	isolate();
	assert_string_equal(property("ActiveState"), "active");
	two_nodes_check();
}

/* systemd forgets all that it keeps when a unit is masked for a moment. A reload stores it anew. */
static void a_store_that_is_lost(void **state)
{
	(void)state;
	two_nodes("lost");
	run("systemctl mask --runtime %s 2>&1", service.unit);
	run("systemctl unmask --runtime %s 2>&1", service.unit);
	stored_wait(0);
	run("systemctl reload %s", service.unit);
	stored_wait(OWN + 2);
	die();
	assert_int_equal(succession(), 2);
	two_nodes_stay(); /* systemd itself complains of what it could not keep */
}

/* The first node starts the server. */
static void a_socket_unit(void **state)
{
	struct stat st;

	(void)state;
	instance("unit", "-n 2");
	run("systemctl enable --now tm_ivshmem_server@unit.socket");
	assert_string_equal(property("ActiveState"), "inactive");
	assert_int_equal(stat(service.socket, &st), 0);
	assert_int_equal(st.st_mode, S_IFSOCK | 0660);
	somebody_connects(two);
	everybody_agrees();
	state_wait("active");
	for (int i = 0; i < 2; i++)
		somebody_connects(two);
	everybody_agrees();
	stored_wait(OWN - 1 + 3);
	for (int death = 0; death < 4; death++) {
		if (death % 2)
			die();
		else
			restart();
		somebody_connects(two);
		succession();
		somebody_goes(1);
		everybody_agrees();
		assert_int_equal(clients[0].id, 0);
		stored_wait(OWN - 1 + 3);
	}
	assert_int_equal(logged_times("listening on", ""), 0);
	isolate();
	assert_int_equal(access(service.socket, F_OK), 0);

	/* Somebody removes the socket, more often than systemd starts a unit with a limit. */
	for (int i = 0; i < 6; i++) {
		assert_int_equal(unlink(service.socket), 0);
		run("systemctl restart tm_ivshmem_server@unit.socket");
		assert_int_equal(succession(), 3);
		somebody_connects(two);
		everybody_agrees();
		assert_int_equal(clients[0].id, 0);
		somebody_goes(1);
		everybody_agrees();
	}
	stored_wait(OWN - 1 + 3);
	log_check();
	run("systemctl stop tm_ivshmem_server@unit.socket");
	everybody_is_let_go();
	stored_wait(0);
	assert_string_equal(property("ActiveState"), "inactive");
	assert_int_equal(access(service.socket, F_OK), -1);

	/* Options that are mended while somebody waits. */
	options_set("-m 3M -n 2");
	run("systemctl start tm_ivshmem_server@unit.socket");
	somebody_connects(two);
	while (atoi(property("NRestarts")) < 2)
		assert_string_not_equal(property("ActiveState"), "failed");
	options_set("-n 2");
	everybody_agrees();
	assert_int_equal(clients[0].id, 0);
	run("systemctl stop tm_ivshmem_server@unit.socket");
	everybody_is_let_go();

	/* From the service to the socket. */
	run("systemctl start %s", service.unit);
	for (int i = 0; i < 2; i++)
		somebody_connects(two);
	everybody_agrees();
	stored_wait(OWN + 2);
	run("systemctl restart tm_ivshmem_server@unit.socket");
	assert_int_equal(succession(), 2);
	somebody_connects(two);
	everybody_agrees();
	stored_wait(OWN - 1 + 3);
	run("systemctl stop tm_ivshmem_server@unit.socket");
}

/* systemd-socket-activate(1) passes a socket, too, and keeps nothing. */
static void a_socket_and_no_supervisor(void **state)
{
	char *process;

	(void)state;
	service = (struct service){.socket = "/run/activated.sock"};
	process = output("systemd-socket-activate -l %s " PROGRAM " -f /run/activated -n 2 "
			 ">/dev/null 2>&1 & echo $!",
			 service.socket);
	/* It stands there a moment before anybody listens. */
	run("timeout %d sh -c \"until grep -q ' 00010000 .* %s\\$' /proc/net/unix; do sleep 0.05; done\"",
	    PATIENCE, service.socket);
	for (int i = 0; i < 3; i++)
		somebody_connects(two);
	everybody_agrees();
	assert_int_equal(kill(atoi(process), SIGTERM), 0);
	free(process);
	everybody_is_let_go();
}

/*
 * Death at random moments
 */

#define KILLS 200
#define CROWD 12

static bool idle[CROWD]; /* who does not read for now */
static size_t ungreeted;

static void moment(unsigned int us)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000L * (rand_r(&seed) % (us + 1))}, NULL);
}

static void life_ends(size_t i)
{
	somebody_goes(i);
	memmove(&idle[i], &idle[i + 1], (count - i) * sizeof(idle[0]));
}

/* Lets one read a little. Who finds that the connection has ended is dealt with by lives_settle. */
static void life_reads(size_t i, int messages)
{
	while (messages-- > 0 && client_step(&clients[i]) > 0)
		;
	assert_that(clients[i].ended || !clients[i].error[0], "%s", clients[i].error);
}

/* Somebody comes, goes, reads or stops to. */
static void life_goes_on(void)
{
	size_t i = count ? (size_t)rand_r(&seed) % count : 0;
	int dice = rand_r(&seed) % 10;

	if ((count < 3 || dice < 4) && count < CROWD) {
		idle[count] = rand_r(&seed) % 3 == 0;
		somebody_connects((struct client_options){.vectors = 40});
	} else if (dice < 6 && i > 0) { /* the first stays: no ID is given out twice */
		life_ends(i);
	} else if (dice < 7) {
		idle[i] = !idle[i];
	} else {
		for (i = 0; i < count; i++)
			if (!idle[i])
				life_reads(i, rand_r(&seed) % 100);
	}
}

/* Lets all read until all agree. Whose connection has ended was taken from the queue of the
 * listener by a process that died over it, so that nobody has it. */
static void lives_settle(void)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool agreed;

	do {
		agreed = true;
		for (size_t i = count; i-- > 0;) {
			const struct client *c = &clients[i];

			life_reads(i, INT32_MAX);
			if (!c->ended)
				continue;
			assert_that(c->messages == 0, "client %d was cut off: %s", c->id, c->error);
			ungreeted++;
			life_ends(i);
		}
		for (size_t i = 0; i < count; i++)
			agreed = client_agrees(&clients[i], NULL) && agreed;
	} while (!agreed && deadline_ahead(deadline));
	for (size_t i = 0; i < count; i++)
		assert_that(client_agrees(&clients[i], NULL),
			    "client %d knows %zu others, %zu whole, and not %zu: %s", clients[i].id,
			    clients[i].here, clients[i].whole, count - 1, clients[i].error);
	stored_wait(OWN + (int)count);
}

static void any_moment_may_be_the_last(void **state)
{
	pid_t last = 0;
	int early = 0;

	(void)state;
	printf("# SEED=%u\n", seed);
	instance("mortal", "-n 40");
	drop_in("[Service]\\nRestartSec=0\\nLogRateLimitIntervalSec=0\\n");
	start();
	for (int kills = 0; kills < KILLS;) {
		bool patient = rand_r(&seed) % 4;
		pid_t process;

		if (patient)
			state_wait("active");
		process = main_process();
		for (int n = rand_r(&seed) % 6; n > 0; n--) {
			life_goes_on();
			moment(patient ? 1000 : 10000);
		}
		if (process <= 0 || process == last || kill(process, SIGKILL) < 0)
			continue; /* or systemd has not seen yet that it died */
		last = process;
		early += !patient;
		if (++kills % 20 == 0)
			lives_settle();
	}
	lives_settle();
	printf("# %d deaths, %d of them perhaps at a start: %zu times a client had not been "
	       "greeted\n",
	       KILLS, early, ungreeted);
	assert_int_equal(logged_times("restart the node", ""), 0);
	assert_in_range(ungreeted, 0, KILLS / 10);
	assert_int_equal(atoi(property("NRestarts")), KILLS);
	log_check();
	run("systemctl stop %s", service.unit);
	everybody_is_let_go();
	stored_wait(0);
}

/*
 * Many nodes
 */

/* When the newest line was logged that has this text: microseconds on the clock of CLOCK_MONOTONIC.
 */
static int64_t logged_at(const char *text)
{
	char *line = output("journalctl --sync; journalctl -b -o short-monotonic --no-pager -u %s "
			    "| grep '%s' | tail -n 1",
			    service.unit, text);
	double seconds = 0;

	assert_int_equal(sscanf(line, "[%lf]", &seconds), 1);
	free(line);
	return (int64_t)(seconds * 1e6);
}

static void a_thousand_nodes(void **state)
{
	static void (*const deaths[])(void) = {restart, die};
	int64_t begin, asked;

	(void)state;
	if (descriptors_allow() < 1100)
		skip_because("the limit of descriptors is too low");
	instance("many", "");
	start();
	begin = clock_ms();
	while (count < 990)
		somebody_connects((struct client_options){.vectors = 1});
	assert_mesh(clients, count);
	stored_wait(OWN + (int)count);
	printf("# %zu nodes joined in %d ms, and systemd keeps %s descriptors\n", count,
	       (int)(clock_ms() - begin), property("NFileDescriptorStore"));
	for (size_t death = 0; death < 2; death++) {
		asked = clock_ms();
		deaths[death]();
		assert_int_equal(succession(), count);
		printf("# after %s they were taken over within %d ms, and systemd keeps %s "
		       "descriptors\n",
		       death ? "kill -9" : "systemctl restart",
		       (int)(logged_at("took over") / 1000 - asked),
		       property("NFileDescriptorStore"));
		stored_wait(OWN + (int)count);
		somebody_connects((struct client_options){.vectors = 1});
		assert_mesh(clients, count);
		assert_int_equal(clients[0].id, 0);
		assert_int_equal(clients[count - 1].id, count - 1);
		stored_wait(OWN + (int)count);
	}
	begin = clock_ms();
	while (count > 500)
		somebody_goes(0);
	assert_mesh(clients, count);
	printf("# half of them left in %d ms\n", (int)(clock_ms() - begin));
	stored_wait(OWN + (int)count);
	assert_int_equal(logged_times("restart the node", ""), 0);
	log_check();
	run("systemctl stop %s", service.unit);
	everybody_is_let_go();
	stored_wait(0);
}

/*
 * Packages: those in /packages/old and new, and two whose program is no good: that in broken does
 * not start at all, that in refusing takes the options and nothing else
 */

/* Installs the package in a folder, and says what that said; the caller frees it. */
static char *package_install(const char *folder)
{
	return output("dpkg --no-triggers -i /packages/%s/tm-ivshmem-server_*.deb 2>&1", folder);
}

/* The version of the package in a folder; the caller frees it. */
static char *package_version(const char *folder)
{
	char *version = output("dpkg-deb -f /packages/%s/tm-ivshmem-server_*.deb Version", folder);

	*strchrnul(version, '\n') = '\0';
	return version;
}

static void assert_said(const char *text, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
static void assert_said(const char *text, const char *format, ...)
{
	char wanted[256];
	va_list args;

	va_start(args, format);
	vsnprintf(wanted, sizeof(wanted), format, args);
	va_end(args);
	assert_that(strstr(text, wanted), "no '%s' in what was said: %s", wanted, text);
}

/* The instance with real QEMU nodes, and that with strict clients, which its socket has started. */
static struct service instances[2];

/* Nobody was let go, each has its ID, all hear each other and who comes now. */
static void instances_check(uint64_t salt)
{
	for (size_t i = 0; i < nodes_count; i++)
		assert_int_equal(node_id(nodes[i]), i);
	nodes_check_bells(nodes, nodes_count);
	nodes_check_memory(nodes, nodes_count, salt);
	service = instances[0];
	nodes[nodes_count++] = node_up();
	nodes_meet(nodes, nodes_count);

	everybody_agrees();
	for (size_t i = 0; i < count; i++)
		assert_int_equal(clients[i].id, i);
	service = instances[1];
	somebody_connects(two);
	everybody_agrees();
}

/* Waits until the log has told of so many restarts in place. */
static void restarts_wait(const char *version, size_t n)
{
	int64_t deadline = deadline_in(PATIENCE);
	char *log;

	while (logged_times("restarted in place, version", version) < n && deadline_ahead(deadline))
		;
	log = log_text();
	assert_that(logged_times("restarted in place, version", version) == n,
		    "not %zu restarts with version %s: %s", n, version, log);
	free(log);
}

/* Installs the package, and starts both instances; a third one cannot start. Returns with three and
 * five nodes. */
static void instances_start(void)
{
	char *said;

	run("! systemctl cat tm_ivshmem_server@qemu 2>&1");
	free(package_install("old"));
	said = output("systemctl list-units -q --all 'tm_ivshmem_server@*'; "
		      "find /etc/systemd -name 'tm_ivshmem_server*'; ls /etc/tm_ivshmem_server");
	assert_string_equal(said, "");
	free(said);

	instance("mistaken", "-n 9999");
	run("systemctl start --no-block %s", service.unit);
	state_wait("activating");
	instance("strict", "-n 2");
	run("systemctl start tm_ivshmem_server@strict.socket");
	instances[1] = service;
	while (count < 5)
		somebody_connects(two);
	instance("qemu", "-m 4M -n 2");
	run("systemctl enable %s 2>&1", service.unit);
	start();
	instances[0] = service;
	while (nodes_count < 3)
		nodes[nodes_count++] = node_up();
}

/* Removes the package: who has nodes then is named, and everything is stopped. */
static void instances_end(void)
{
	char *said = output("dpkg --no-triggers -r tm-ivshmem-server 2>&1");

	for (size_t i = 0; i < 2; i++) {
		service = instances[i];
		assert_said(said, "stopping tm_ivshmem_server@%s", service.name);
		assert_said(said, "socket %s", service.socket);
		assert_string_equal(property("ActiveState"), "inactive");
		assert_int_equal(access(service.socket, F_OK), -1);
	}
	assert_said(said, "%zu nodes connected", count);
	assert_null(strstr(said, "ivshmem_client:"));
	for (size_t i = 0; i < nodes_count; i++) {
		assert_said(said, " %zu %8d qemu-system-x86 ", i, (int)nodes[i]->pid);
		node_check_end(nodes[i]);
	}
	free(said);
	everybody_is_let_go();
	run("! systemctl is-active tm_ivshmem_server@mistaken");
	assert_int_equal(access(PROGRAM, F_OK), -1);
}

static void a_package_is_upgraded(void **state)
{
	static const struct {
		const char *folder;
		bool good;
	} upgrades[] = {{"new", true}, {"refusing", false}, {"broken", false}, {"new", true}};
	char *said, *newest = package_version("new");
	pid_t processes[2];
	size_t restarts = 0;

	(void)state;
	if (node_missing())
		skip_because("%s", node_missing());
	instances_start();
	for (size_t i = 0; i < 2; i++) {
		service = instances[i];
		processes[i] = main_process();
	}
	instances_check(0);

	for (size_t upgrade = 0; upgrade < sizeof(upgrades) / sizeof(upgrades[0]); upgrade++) {
		said = package_install(upgrades[upgrade].folder);
		restarts += upgrades[upgrade].good;
		for (size_t i = 0; i < 2; i++) {
			service = instances[i];
			assert_int_equal(main_process(), processes[i]);
			restarts_wait(newest, restarts);
			assert_int_equal(logged_times("restart the node", ""), 0);
			if (upgrades[upgrade].good)
				continue;
			assert_said(said, "tm_ivshmem_server@%s has not been upgraded",
				    service.name);
			assert_said(said, "systemctl reload tm_ivshmem_server@%s", service.name);
		}
		assert_true(!upgrades[upgrade].good || !strstr(said, "upgraded"));
		assert_null(strstr(said, "mistaken"));
		free(said);
		instances_check(upgrade + 1);
	}
	free(newest);
	instances_end();
	run("test -L /etc/systemd/system/multi-user.target.wants/tm_ivshmem_server@qemu.service");

	said = output("dpkg -P tm-ivshmem-server 2>&1");
	assert_said(said, "/var/lib/tm_ivshmem_server stays");
	assert_said(said, "qemu");
	free(said);
	assert_int_equal(access("/var/lib/tm_ivshmem_server/qemu", F_OK), 0);
	said = output("find /etc/tm_ivshmem_server /etc/systemd/system /run/tm_ivshmem_server "
		      "-name '*tm_ivshmem_server*' 2>&1 | grep -v 'No such file' || :");
	assert_string_equal(said, "");
	free(said);
}

static int teardown(void **state)
{
	(void)state;
	nodes_end();
	nodes_count = 0;
	everybody_goes();
	return 0;
}

#define takeover_test(test) cmocka_unit_test_teardown(test, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		takeover_test(nodes_notice_nothing),
		takeover_test(a_stop_lets_all_go),
		takeover_test(who_left_meanwhile_is_dropped),
		takeover_test(other_options),
		takeover_test(a_crash_loop_is_survived),
		takeover_test(a_mistake_is_survived),
		takeover_test(many_restarts_are_no_loop),
		takeover_test(a_hang_is_survived),
		takeover_test(nobody_is_isolated),
		takeover_test(a_store_that_is_lost),
		takeover_test(a_socket_unit),
		takeover_test(a_socket_and_no_supervisor),
		takeover_test(any_moment_may_be_the_last),
		takeover_test(a_thousand_nodes),
		takeover_test(a_package_is_upgraded),
	};

	if (!seed_choose(&seed))
		return 1;
	setlinebuf(stdout);
	crowd_at(service.socket, NULL);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
