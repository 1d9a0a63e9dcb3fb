/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/child.h"

#include "server/log.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t child_start(const char *purpose)
{
	pid_t child = fork();
	sigset_t none;

	if (child < 0)
		fail("cannot start a process to %s", purpose);
	if (child != 0)
		return child;
	log_forget();
	setpgid(0, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	return 0;
}

bool child_wait(pid_t child, int signals, int *status)
{
	struct pollfd poll_signals = {.fd = signals, .events = POLLIN};
	struct signalfd_siginfo info;
	pid_t ended;

	while ((ended = TEMP_FAILURE_RETRY(waitpid(child, status, WNOHANG))) == 0) {
		poll(&poll_signals, 1, -1);
		while (read(signals, &info, sizeof(info)) == sizeof(info))
			if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT ||
			    info.ssi_signo == SIGQUIT)
				return false;
	}
	return ended == child;
}
