/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Starts what is measured, and looks at its CPU time and memory from outside. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of the memory that a server is told to serve. */
#define SIZE "1048576"

#define READY_MS 10000
#define STOP_MS  10000
#define IDLE_MS  20 /* who computes nothing for so long has nothing to do */
#define PAUSE_MS 5

static void pause_ms(int ms)
{
	usleep((useconds_t)ms * 1000);
}

double clock_seconds(clockid_t clock)
{
	struct timespec t = {0};

	clock_gettime(clock, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void program_pin(bool server)
{
	static cpu_set_t allowed;
	static bool known;
	cpu_set_t one;
	int cpu = 0, skip = !server;

	if (!known)
		known = sched_getaffinity(0, sizeof(allowed), &allowed) == 0;
	if (!known || CPU_COUNT(&allowed) < 2)
		return;
	while (!CPU_ISSET(cpu, &allowed) || skip-- > 0)
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

/* Becomes the command, in the child. */
static void command_exec(const struct bench_program *p, const char *command, unsigned int vectors)
{
	char text[16], log[80], *shell;
	int fd;

	snprintf(text, sizeof(text), "%u", vectors);
	snprintf(log, sizeof(log), "%s/log", p->folder);
	fd = open(log, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0 && dup2(fd, STDOUT_FILENO) >= 0 && dup2(fd, STDERR_FILENO) >= 0 &&
	    setenv("SOCKET", p->socket, 1) == 0 && setenv("NAME", p->memory + 1, 1) == 0 &&
	    setenv("SIZE", SIZE, 1) == 0 && setenv("VECTORS", text, 1) == 0 &&
	    asprintf(&shell, "exec %s", command) > 0)
		execl("/bin/sh", "sh", "-c", shell, (char *)NULL);
	_exit(127);
}

/* Opens the socket that the plain sender listens on. Returns -1 with errno. */
static int sender_listen(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(listener, SOMAXCONN) < 0)
		return -1;
	return listener;
}

/* Whether somebody listens on a path. A server does not notice the question. */
static bool socket_listens(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool listens;

	strcpy(address.sun_path, path);
	listens = connect(probe, (struct sockaddr *)&address, sizeof(address)) < 0 &&
		  errno == EPROTOTYPE;
	close(probe);
	return listens;
}

/* Shows what a program has printed that did not start. */
static void log_show(const struct bench_program *p)
{
	char path[80], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/log", p->folder);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		fprintf(stderr, "bench: it said: %s", line);
	if (f)
		fclose(f);
}

/* Waits until a command listens. */
static bool command_wait(struct bench_program *p, const char *command)
{
	for (int waited = 0; !socket_listens(p->socket); waited += PAUSE_MS) {
		bool over = waitpid(p->pid, NULL, WNOHANG) != 0;

		if (over || waited >= READY_MS) {
			fprintf(stderr, "bench: '%s' %s\n", command,
				over ? "has ended" : "does not listen on $SOCKET");
			if (over)
				p->pid = 0;
			log_show(p);
			return false;
		}
		pause_ms(PAUSE_MS);
	}
	/* It runs, so it has a clock. */
	if (clock_getcpuclockid(p->pid, &p->clock) != 0)
		return false;
	program_cpu_idle(p);
	return true;
}

bool program_start(struct bench_program *p, const char *command, const struct bench_case *c)
{
	int listener = -1;

	*p = (struct bench_program){.folder = "/tmp/tm-bench.XXXXXX"};
	if (!mkdtemp(p->folder)) {
		perror("bench: cannot make a folder in /tmp");
		return false;
	}
	snprintf(p->socket, sizeof(p->socket), "%s/socket", p->folder);
	snprintf(p->memory, sizeof(p->memory), "/tm_ivshmem_bench_%d", getpid());
	if (!command) {
		listener = sender_listen(p->socket);
		p->spent = mmap(NULL, sizeof(*p->spent), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (p->spent == MAP_FAILED)
			p->spent = NULL;
		if (listener < 0 || !p->spent) {
			perror("bench: cannot start the plain sender");
			return false;
		}
	}
	p->pid = fork();
	if (p->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		program_pin(true);
		if (command)
			command_exec(p, command, c->vectors);
		sender_run(c, listener, p->spent);
		_exit(EXIT_SUCCESS);
	}
	if (listener >= 0)
		close(listener);
	if (p->pid < 0) {
		perror("bench: cannot fork");
		return false;
	}
	return !command || command_wait(p, command);
}

double program_cpu(const struct bench_program *p)
{
	return p->spent ? *p->spent : clock_seconds(p->clock);
}

double program_cpu_idle(struct bench_program *p)
{
	double before, now = program_cpu(p);

	/* A server that never rests is not waited for. */
	for (int tries = 0; tries < 100; tries++) {
		before = now;
		pause_ms(IDLE_MS);
		now = program_cpu(p);
		if (now - before <= 0)
			break;
	}
	return now;
}

long program_peak(const struct bench_program *p)
{
	char path[32], line[128];
	long peak = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", p->pid);
	f = fopen(path, "re");
	while (f && !peak && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmHWM: %ld", &peak) != 1)
			peak = 0;
	if (f)
		fclose(f);
	return peak;
}

void program_stop(struct bench_program *p)
{
	bool over = p->pid <= 0;
	char log[80];

	if (!over)
		kill(p->pid, SIGTERM);
	for (int waited = 0; !over && waited < STOP_MS; waited += PAUSE_MS) {
		pause_ms(PAUSE_MS);
		over = waitpid(p->pid, NULL, WNOHANG) != 0;
	}
	if (!over) {
		kill(p->pid, SIGKILL);
		waitpid(p->pid, NULL, 0);
	}
	if (p->spent)
		munmap(p->spent, sizeof(*p->spent));
	snprintf(log, sizeof(log), "%s/log", p->folder);
	unlink(log);
	unlink(p->socket);
	rmdir(p->folder);
	shm_unlink(p->memory);
}
