/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the process of the server can end. $CRASH_AT says at which of these points, by number. The
 * next image finds the ledger as it is then, and all descriptors that were open. Under a supervisor
 * the process is killed instead, and the next one gets what has been stored; and so it is with
 * $CRASH_KILL, for a standby to go on: that is the path of a file which says that it has happened.
 */
#define _GNU_SOURCE
#include "point.h"
#undef sendmmsg

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Lets all descriptors survive an exec. Returns that of the ledger. */
static int crash_descriptors_keep(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int ledger = -1;

	for (struct dirent *d; folder && (d = readdir(folder));) {
		char path[300], target[64];
		int fd = atoi(d->d_name);
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%s", d->d_name);
		n = readlink(path, target, sizeof(target) - 1);
		target[n < 0 ? 0 : n] = '\0';
		if (!strncmp(target, "/memfd:", 7))
			ledger = fd;
		if (fd > STDERR_FILENO && fd != dirfd(folder))
			fcntl(fd, F_SETFD, 0);
	}
	return ledger;
}

void crash_point(void)
{
	static long points;
	const char *at = getenv("CRASH_AT"), *mark = getenv("CRASH_KILL");
	char state[64], line[4096], *argv[64] = {line};
	FILE *f;
	size_t n;

	atomic_signal_fence(memory_order_seq_cst);
	if (!at || (mark && access(mark, F_OK) == 0) || ++points != atol(at))
		return;
	if (mark)
		close(open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	if (mark || getenv("NOTIFY_SOCKET"))
		raise(SIGKILL);
	unsetenv("CRASH_AT");
	snprintf(state, sizeof(state), "resume %d 0", crash_descriptors_keep());
	setenv("TM_IVSHMEM_SERVER_STATE", state, 1);
	f = fopen("/proc/self/cmdline", "re");
	n = f ? fread(line, 1, sizeof(line) - 1, f) : 0;
	line[n] = '\0';
	for (int i = 1; i < 63 && argv[i - 1] + strlen(argv[i - 1]) + 1 < line + n; i++)
		argv[i] = argv[i - 1] + strlen(argv[i - 1]) + 1;
	execv("/proc/self/exe", argv);
	abort();
}

int crash_sendmmsg(int sock, struct mmsghdr *messages, unsigned int n, int flags)
{
	unsigned int sent = 0;

	while (sent < n && sendmmsg(sock, &messages[sent], 1, flags) == 1) {
		sent++;
		crash_point();
	}
	return sent || !n ? (int)sent : -1;
}
