/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "program.h"

#include "testing.h"

#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

char program[PATH_MAX], tested[PATH_MAX];

bool program_begin(const char *name)
{
	const char *server = getenv("SERVER"), *folder = getenv("TEST_DIR");

	if (!realpath(server ? server : "./tm_ivshmem_server", tested) ||
	    !realpath(folder ? folder : "build", program)) {
		perror("no server to test");
		return false;
	}
	strncat(program, "/", sizeof(program) - strlen(program) - 1);
	strncat(program, name, sizeof(program) - strlen(program) - 1);
	return setenv("SERVER", program, 1) == 0;
}

bool daemons_begin(unsigned int *seed)
{
	setlinebuf(stdout);
	descriptors_allow();
	if (seed_choose(seed) && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0)
		return true;
	perror("cannot begin");
	return false;
}

void program_put(const char *from)
{
	char fresh[PATH_MAX + 8];
	int in = open(from, O_RDONLY | O_CLOEXEC), out;
	ssize_t n;

	snprintf(fresh, sizeof(fresh), "%s.new", program);
	out = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	do
		n = sendfile(out, in, NULL, 1 << 20);
	while (n > 0);
	assert_int_equal(n, 0);
	close(in);
	close(out);
	assert_int_equal(rename(fresh, program), 0);
}

bool program_runs(pid_t pid)
{
	char path[64];
	struct stat running, there;

	snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
	return stat(path, &running) == 0 && stat(program, &there) == 0 &&
	       running.st_dev == there.st_dev && running.st_ino == there.st_ino;
}
