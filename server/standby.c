/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/standby.h"
#include "server/ledger.h"
#include "server/log.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STANDBY_RETRY_MS 1000  /* until another is started */
#define DEATHS_MS        10000 /* in which the last deaths that the ledger holds are too many */
#define MOMENT_MS        20    /* that who kills processes one by one gets to come to the standby */

void standby_title(struct standby *b, char **argv)
{
	char *end = b->title = argv[0];

	for (char **at = argv; *at == end; at++)
		end += strlen(*at) + 1;
	for (char **at = environ; *at == end; at++)
		end += strlen(*at) + 1;
	b->room = (size_t)(end - b->title);
}

void standby_allow(struct standby *b, bool allow)
{
	b->ledger->standby = allow ? 0 : -1;
}

void standby_want(struct standby *b)
{
	if (b->ledger->standby >= 0)
		timer_start(b->ledger, TIMER_STANDBY, 0);
}

/*
 * Sleeps until the server has died, which the kernel tells by SIGCHLD. Who means the server by a
 * signal that ends it does not mean us. Ends the process if this cannot be, or another goes on.
 */
static void server_await(struct standby *b)
{
	static const int others[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2};
	sigset_t death, before;

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		signal(others[i], SIG_IGN);
	sigemptyset(&death);
	sigaddset(&death, SIGCHLD);
	sigprocmask(SIG_SETMASK, &death, &before); /* what is blocked is not ignored */
	if (prctl(PR_SET_PDEATHSIG, SIGCHLD) < 0)
		_exit(errno);
	while (getppid() == b->server)
		sigwaitinfo(&death, NULL);
	/* At once: whoever goes on instead takes the locks that this process may still have. */
	if (b->ledger->standby != getpid())
		_exit(EXIT_SUCCESS);
	b->died_ms = now_ms();
	nanosleep(&(struct timespec){.tv_nsec = MOMENT_MS * 1000000L}, NULL);
	sigprocmask(SIG_SETMASK, &before, NULL);
}

/* What the standby does until it takes the server's place. */
static void standby_live(struct standby *b, pid_t server)
{
	char *title = malloc(b->room);

	*log_descriptor() = -1; /* by its number the server may soon have another */
	log_forget();
	b->server = server;
	b->before = 0;
	if (title) {
		memcpy(title, b->title, b->room);
		memset(b->title, 0, b->room);
		snprintf(b->title, b->room, "standby of %s, process %d",
			 program_invocation_short_name, (int)server);
	}
	server_await(b);
	if (title)
		memcpy(b->title, title, b->room);
	free(title);
	b->ledger->standby = 0;
}

bool standby_start(struct standby *b)
{
	struct ledger *l = b->ledger;
	pid_t server = getpid(), child;

	if (!timer_ended(l, TIMER_STANDBY))
		return false;
	b->before = l->standby;
	/* The kernel names it in the ledger before it runs: at no time are two named, or none. */
	child = (pid_t)syscall(SYS_clone, CLONE_FILES | CLONE_PARENT_SETTID | SIGCHLD, NULL,
			       &l->standby, NULL, NULL);
	if (child == 0) {
		standby_live(b, server);
		return true;
	}
	if (child < 0) {
		fail("cannot start a standby, trying again");
		l->standby = 0; /* what the one before has open is no longer what we have */
		timer_start(l, TIMER_STANDBY, STANDBY_RETRY_MS);
	}
	return false;
}

bool standby_retire(struct standby *b)
{
	pid_t before = b->before;

	b->before = 0;
	if (before <= 0)
		return false;
	kill(before, SIGKILL);
	TEMP_FAILURE_RETRY(waitpid(before, NULL, 0));
	return true;
}

void standby_end(struct standby *b)
{
	b->ledger->timers[TIMER_STANDBY] = 0;
	if (b->ledger->standby <= 0)
		return;
	b->before = b->ledger->standby;
	b->ledger->standby = 0; /* first: whoever it names there lives */
	standby_retire(b);
}

void standby_ended(struct standby *b, int status)
{
	warn("the standby, process %d, ended with %s %d: starting another in a second",
	     (int)b->ledger->standby, WIFEXITED(status) ? "status" : "signal",
	     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	b->ledger->standby = 0;
	timer_start(b->ledger, TIMER_STANDBY, STANDBY_RETRY_MS);
}

bool standby_despairs(struct standby *b)
{
	int64_t *deaths = b->ledger->deaths, now = now_ms();

	memmove(&deaths[0], &deaths[1], (DEATHS - 1) * sizeof(deaths[0]));
	deaths[DEATHS - 1] = now;
	if (!deaths[0] || now - deaths[0] > DEATHS_MS)
		return false;
	complain(
		"the server has died %d times in %d s and is given up: its nodes are disconnected; "
		"find out why it died, and start the server and the nodes again",
		DEATHS, DEATHS_MS / 1000);
	return true;
}
