/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/restart.h"
#include "server/child.h"
#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/log.h"
#include "server/options.h"
#include "server/supervisor.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

char *program_path(void)
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

#define OWN_DESCRIPTORS 10

/* What the server has open itself, but for what each process has for itself; -1: not this. Returns
 * where the list ends. */
static int *own_list(const struct ledger *l, int *list)
{
	const int own[OWN_DESCRIPTORS] = {l->self,     l->store, l->lock,    l->disk, l->pidfile,
					  l->listener, l->watch, l->signals, l->ends, *log_file()};

	return mempcpy(list, own, sizeof(own));
}

bool descriptors_keep(struct restart *r, bool keep)
{
	const struct ledger *l = r->ledger;
	int own[OWN_DESCRIPTORS], flags = keep ? 0 : FD_CLOEXEC;
	bool open = true;

	for (const int *fd = own, *end = own_list(l, own); fd < end; fd++)
		if (*fd >= 0)
			open = fcntl(*fd, F_SETFD, flags) == 0 && open;
	set_each (sock, &r->mesh->present) {
		open = fcntl(sock, F_SETFD, flags) == 0 && open;
		for (unsigned int v = 0; v < l->vectors; v++)
			open = fcntl(peer_at(r->ledger, sock)->eventfds[v], F_SETFD, flags) == 0 &&
			       open;
	}
	return open;
}

static int number_compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

void descriptors_sweep(const struct restart *r, const fd_set *more)
{
	const struct ledger *l = r->ledger;
	size_t most = OWN_DESCRIPTORS + FD_SETSIZE + r->mesh->count * (1 + l->vectors);
	int *kept = malloc(most * sizeof(*kept)), *at, next = STDERR_FILENO + 1;

	if (!kept)
		return;
	at = own_list(l, kept);
	set_each (sock, more)
		*at++ = sock;
	set_each (sock, &r->mesh->present) {
		*at++ = sock;
		at = mempcpy(at, peer_at(l, sock)->eventfds, l->vectors * sizeof(*at));
	}
	qsort(kept, (size_t)(at - kept), sizeof(*kept), number_compare);
	for (const int *fd = kept; fd < at; fd++) {
		if (*fd > next)
			close_range((unsigned int)next, (unsigned int)*fd - 1, 0);
		if (*fd >= next)
			next = *fd + 1;
	}
	close_range((unsigned int)next, UINT_MAX, 0);
	free(kept);
}

/* Executes the program on disk with the ledger; returns only if that fails, having said so. */
static void program_execute(struct restart *r, const char *purpose)
{
	char value[96];

	snprintf(value, sizeof(value), "%s %d %d %zu %" PRId64 " %d", purpose, r->ledger->self,
		 log_in_background(), log_lost(), r->supervisor->reloading_us, *log_file());
	if (fcntl(r->ledger->self, F_SETFD, 0) == 0 &&
	    (*log_file() < 0 || fcntl(*log_file(), F_SETFD, 0) == 0) &&
	    setenv(LEDGER_VARIABLE, value, 1) == 0)
		execv(r->program, r->argv);
	fail("cannot execute %s, going on without a restart", r->program);
	unsetenv(LEDGER_VARIABLE);
}

/* What stands on disk; zeroes where there is nothing. */
static struct stat program_on_disk(const struct restart *r)
{
	struct stat st;

	return stat(r->program, &st) == 0 ? st : (struct stat){0};
}

bool program_runs(const struct restart *r)
{
	struct stat here, disk = program_on_disk(r);

	return stat("/proc/self/exe", &here) == 0 && here.st_dev == disk.st_dev &&
	       here.st_ino == disk.st_ino;
}

/* Whether the program on disk is the one that was tried. */
static bool program_tried(const struct restart *r)
{
	const struct stat *tried = &r->tried, now = program_on_disk(r);

	return now.st_dev == tried->st_dev && now.st_ino == tried->st_ino &&
	       now.st_ctim.tv_sec == tried->st_ctim.tv_sec &&
	       now.st_ctim.tv_nsec == tried->st_ctim.tv_nsec;
}

void trial_kill(struct restart *r)
{
	pid_t trial = r->trial;

	if (trial && kill(-trial, SIGKILL) < 0)
		kill(trial, SIGKILL); /* so young that it has no group of its own yet */
	r->trial = 0;
	r->ledger->timers[TIMER_TRIAL] = 0;
}

void trial_start(struct restart *r)
{
	pid_t child;

	trial_kill(r);
	supervisor_reload(r->supervisor);
	r->tried = program_on_disk(r);
	child = child_start("try the program on disk, going on without a restart");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever takes over does not know it */
		program_execute(r, "check");
		_exit(EXIT_FAILURE);
	}
	if (child < 0)
		return;
	r->trial = child;
	timer_start(r->ledger, TIMER_TRIAL, TRIAL_MS);
}

void trial_ended(struct restart *r, int status, bool wanted)
{
	bool again = false;

	if (status != W_EXITCODE(CAN_TAKE_OVER, 0)) {
		complain("%s cannot take over, going on without a restart: it ended with %s %d",
			 r->program, WIFEXITED(status) ? "status" : "signal",
			 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
		return;
	}
	if (!wanted)
		return;
	r->ledger->executing = true;
	if (!descriptors_keep(r, true))
		fail("cannot keep descriptors open, going on without a restart");
	else if (program_tried(r)) /* looked at last, since what stands there is executed */
		program_execute(r, "resume");
	else
		again = true;
	descriptors_keep(r, false);
	r->ledger->executing = false;
	if (again)
		trial_start(r);
}
