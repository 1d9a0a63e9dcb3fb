/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "node.h"

#include "deadline.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define QEMU "qemu-system-x86_64"

/* PCI configuration: mechanism 1, through two ports. */
#define PCI_ADDRESS      0xcf8
#define PCI_DATA         0xcfc
#define PCI_ENABLE       UINT32_C(0x80000000)
#define PCI_SLOTS        32
#define PCI_COMMAND      0x04
#define PCI_MEMORY       0x02 /* and no bus mastering: what an unmasked vector sends goes nowhere */
#define PCI_BAR(i)       (0x10 + 4 * (i))
#define PCI_CAPABILITIES 0x34
#define PCI_MSIX         0x11 /* the capability's number */
#define MSIX_ENABLE      UINT32_C(0x80000000)
#define MSIX_MASK        12 /* in an entry of the table: vector control, bit 0 is the mask */
#define MSIX_ENTRY       16
#define DEVICE           UINT32_C(0x11101af4)

/* Where the BARs are mapped. The memory has 64-bit addresses, far from everything else. */
#define REGISTERS UINT64_C(0xe0000000)
#define MSIX      UINT64_C(0xe0100000)
#define MEMORY    (UINT64_C(1) << 40)

/* The device's registers (ivshmem-spec, "Device registers"). */
#define IV_POSITION 8
#define DOORBELL    12

static struct node *nodes;

const char *node_missing(void)
{
	const char *path = getenv("PATH");
	size_t n;

	for (; path && *path; path += n + (path[n] == ':')) {
		char program[4096];

		n = strcspn(path, ":");
		snprintf(program, sizeof(program), "%.*s/" QEMU, (int)n, path);
		if (access(program, X_OK) == 0)
			return NULL;
	}
	return QEMU " is not installed (Debian: qemu-system-x86)";
}

/* Becomes QEMU. Its arguments name the descriptor of the qtest connection, which it inherits. */
__attribute__((noreturn)) static void qemu_exec(int qtest, int errors, const char *socket,
						unsigned int vectors, const char *properties)
{
	char control[64], fabric[256], device[256];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(control, sizeof(control), "socket,id=qtest,fd=%d", qtest);
	snprintf(fabric, sizeof(fabric), "socket,id=fam,path=%s", socket);
	snprintf(device, sizeof(device), "ivshmem-doorbell,chardev=fam,vectors=%u%s", vectors,
		 properties);
	fcntl(qtest, F_SETFD, 0);
	dup2(errors, STDERR_FILENO);
	execlp(QEMU, QEMU, "-machine", "pc", "-m", "16", "-S", "-display", "none", "-nodefaults",
	       "-no-user-config", "-chardev", control, "-qtest", "chardev:qtest", "-qtest-log",
	       "none", "-chardev", fabric, "-device", device, (char *)NULL);
	perror(QEMU);
	_exit(127);
}

/*
 * Forks, and becomes QEMU in the child. Returns its process ID when it has: its descriptors are its
 * own from then on. -1 with errno.
 */
static pid_t qemu_fork(int qtest, int errors, const char *socket, unsigned int vectors,
		       const char *properties)
{
	int closed_on_exec[2];
	pid_t pid;
	char byte;

	if (pipe2(closed_on_exec, O_CLOEXEC) < 0)
		return -1;
	pid = fork();
	if (pid == 0)
		qemu_exec(qtest, errors, socket, vectors, properties);
	close(closed_on_exec[1]);
	while (pid > 0 && read(closed_on_exec[0], &byte, 1) < 0 && errno == EINTR)
		;
	close(closed_on_exec[0]);
	return pid;
}

struct node *node_start(const char *socket, unsigned int vectors, const char *properties)
{
	struct node *n = calloc(1, sizeof(*n));
	int ends[2] = {-1, -1};

	if (!n)
		return NULL;
	n->vectors = vectors;
	n->qtest = -1;
	n->errors = memfd_create("stderr", MFD_CLOEXEC);
	if (n->errors >= 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0) {
		n->qtest = ends[0];
		n->pid = qemu_fork(ends[1], n->errors, socket, vectors, properties);
		close(ends[1]);
		if (n->pid > 0) {
			n->next = nodes;
			nodes = n;
			return n;
		}
	}
	if (n->qtest >= 0)
		close(n->qtest);
	if (n->errors >= 0)
		close(n->errors);
	free(n);
	return NULL;
}

const char *node_errors(struct node *n)
{
	static char text[4096];
	ssize_t len = pread(n->errors, text, sizeof(text) - 1, 0);

	text[len > 0 ? len : 0] = '\0';
	return text;
}

bool node_wait(struct node *n, int seconds)
{
	int64_t deadline = deadline_in(seconds);
	int status;

	if (!n->pid)
		return true;
	while (waitpid(n->pid, &status, WNOHANG) == 0)
		if (!deadline_ahead(deadline))
			return false;
	n->pid = 0;
	n->status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
	return true;
}

/* Gives up on a node, and says why for people. Returns false. */
static bool node_lose(struct node *n, const char *why)
{
	if (n->failed)
		return false;
	n->failed = true;
	if (node_wait(n, 1))
		fprintf(stderr, "a node ended with status %d (%s): %s\n", n->status, why,
			node_errors(n));
	else
		fprintf(stderr, "node %d: %s: %s\n", (int)n->pid, why, node_errors(n));
	close(n->qtest);
	n->qtest = -1;
	return false;
}

/* Reads QEMU's answer, one line, without the newline. Returns whether there was one. */
static bool answer_read(struct node *n, char *answer, size_t size)
{
	int64_t deadline = deadline_in(PATIENCE);
	size_t len = 0;

	while (len == 0 || answer[len - 1] != '\n') {
		struct pollfd p = {.fd = n->qtest, .events = POLLIN};
		int64_t left = deadline - clock_ms();
		ssize_t got;

		if (len == size || left <= 0 || poll(&p, 1, (int)left) <= 0)
			return node_lose(n, "no answer over qtest");
		got = recv(n->qtest, answer + len, size - len, 0);
		if (got <= 0)
			return node_lose(n, "the qtest connection is closed");
		len += (size_t)got;
	}
	answer[len - 1] = '\0';
	return true;
}

/* Has QEMU do one command. Returns the number that it answers, 0 for none; all ones if it died. */
__attribute__((format(printf, 2, 3))) static uint64_t qtest_do(struct node *n, const char *format,
							       ...)
{
	char line[128];
	va_list args;
	int len;

	if (n->failed)
		return UINT64_MAX;
	va_start(args, format);
	len = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	line[len++] = '\n';
	if (send(n->qtest, line, (size_t)len, MSG_NOSIGNAL) != len) {
		node_lose(n, "cannot send over qtest");
		return UINT64_MAX;
	}
	if (!answer_read(n, line, sizeof(line)))
		return UINT64_MAX;
	if (strncmp(line, "OK", 2) != 0) {
		node_lose(n, line);
		return UINT64_MAX;
	}
	return strtoull(line + 2, NULL, 0);
}

static uint32_t config_read(struct node *n, unsigned int offset)
{
	qtest_do(n, "outl %#x %#" PRIx32, PCI_ADDRESS, PCI_ENABLE | n->slot << 11 | offset);
	return (uint32_t)qtest_do(n, "inl %#x", PCI_DATA);
}

static void config_write(struct node *n, unsigned int offset, uint32_t value)
{
	qtest_do(n, "outl %#x %#" PRIx32, PCI_ADDRESS, PCI_ENABLE | n->slot << 11 | offset);
	qtest_do(n, "outl %#x %#" PRIx32, PCI_DATA, value);
}

static uint32_t msix_read(struct node *n, uint64_t offset)
{
	return (uint32_t)qtest_do(n, "readl %#" PRIx64, MSIX + offset);
}

static void msix_write(struct node *n, uint64_t offset, uint32_t value)
{
	qtest_do(n, "writel %#" PRIx64 " %#" PRIx32, MSIX + offset, value);
}

/* Finds the device on the bus. Returns whether it is there. */
static bool device_find(struct node *n)
{
	for (n->slot = 0; n->slot < PCI_SLOTS && !n->failed; n->slot++)
		if (config_read(n, 0) == DEVICE)
			return true;
	return node_lose(n, "no ivshmem device on its bus");
}

/* Maps the BARs, and finds how large the memory is: the bits of BAR2 that can be set. */
static void bars_map(struct node *n)
{
	config_write(n, PCI_BAR(0), (uint32_t)REGISTERS);
	config_write(n, PCI_BAR(1), (uint32_t)MSIX);
	config_write(n, PCI_BAR(2), UINT32_MAX);
	config_write(n, PCI_BAR(3), UINT32_MAX);
	n->size = (uint64_t)config_read(n, PCI_BAR(3)) << 32;
	n->size |= config_read(n, PCI_BAR(2)) & ~UINT32_C(15);
	n->size = -n->size;
	config_write(n, PCI_BAR(2), (uint32_t)MEMORY);
	config_write(n, PCI_BAR(3), (uint32_t)(MEMORY >> 32));
	config_write(n, PCI_COMMAND, PCI_MEMORY);
}

/* Enables MSI-X, whose vectors are all masked at first. Its table is at the start of BAR1. */
static bool msix_enable(struct node *n)
{
	unsigned int at = config_read(n, PCI_CAPABILITIES) & 0xff;
	uint32_t head;

	while (at && !n->failed && (config_read(n, at) & 0xff) != PCI_MSIX)
		at = config_read(n, at) >> 8 & 0xff;
	if (!at)
		return node_lose(n, "no MSI-X capability");
	head = config_read(n, at);
	n->pba = config_read(n, at + 8) & ~UINT32_C(7);
	config_write(n, at, head | MSIX_ENABLE);
	if ((head >> 16 & 0x7ff) + 1 != n->vectors || config_read(n, at + 4) != 1 ||
	    msix_read(n, MSIX_MASK) != 1)
		return node_lose(n, "not the MSI-X vectors that were asked for");
	return !n->failed;
}

bool node_ready(struct node *n)
{
	if (!device_find(n))
		return false;
	bars_map(n);
	return msix_enable(n);
}

bool node_alive(struct node *n)
{
	return !node_wait(n, 0) && config_read(n, 0) == DEVICE;
}

void node_end(struct node *n)
{
	struct node **link = &nodes;

	while (*link != n)
		link = &(*link)->next;
	*link = n->next;
	if (n->pid) {
		kill(n->pid, SIGKILL);
		waitpid(n->pid, NULL, 0);
	}
	if (n->qtest >= 0)
		close(n->qtest);
	close(n->errors);
	free(n);
}

void nodes_end(void)
{
	while (nodes)
		node_end(nodes);
}

int node_id(struct node *n)
{
	return (int)(uint32_t)qtest_do(n, "readl %#" PRIx64, REGISTERS + IV_POSITION);
}

void node_ring(struct node *n, int id, unsigned int vector)
{
	qtest_do(n, "writel %#" PRIx64 " %#" PRIx32, REGISTERS + DOORBELL,
		 (uint32_t)id << 16 | vector);
}

uint64_t node_load(struct node *n, uint64_t offset)
{
	return qtest_do(n, "readq %#" PRIx64, MEMORY + offset);
}

void node_store(struct node *n, uint64_t offset, uint64_t value)
{
	qtest_do(n, "writeq %#" PRIx64 " %#" PRIx64, MEMORY + offset, value);
}

bool node_rung(struct node *n, unsigned int vector)
{
	uint32_t word = msix_read(n, n->pba + vector / 32 * 4);

	return !n->failed && (word >> vector % 32 & 1);
}

unsigned int node_rung_count(struct node *n)
{
	unsigned int count = 0;

	for (unsigned int word = 0; word * 32 < n->vectors; word++)
		count += (unsigned int)__builtin_popcount(msix_read(n, n->pba + word * 4));
	return count;
}

/*
 * QEMU takes a command in a turn of its main loop, and the next one in a later turn, since it is
 * not sent before the first is answered. A doorbell rung before is an eventfd readable by then: it
 * is dealt with in the turn of the first command, if perhaps after it, so before the second is
 * taken.
 */
void node_settle(struct node *n)
{
	for (int i = 0; i < 2; i++)
		msix_read(n, n->pba);
}

/* A vector that is unmasked is sent, to nowhere, and not pending any more. */
void node_quiet(struct node *n)
{
	node_settle(n);
	for (unsigned int word = 0; word * 32 < n->vectors; word++) {
		uint32_t pending = msix_read(n, n->pba + word * 4);

		for (unsigned int bit = 0; !n->failed && bit < 32; bit++) {
			uint64_t entry = (word * 32 + bit) * MSIX_ENTRY;

			if (!(pending >> bit & 1))
				continue;
			msix_write(n, entry + MSIX_MASK, 0);
			msix_write(n, entry + MSIX_MASK, 1);
		}
	}
}

/* How many of the descriptors that the node has open are of a kind, by what the links in /proc say.
 */
static size_t descriptors_of_kind(const struct node *n, bool (*kind)(const char *link))
{
	char path[64], link[64];
	size_t count = 0;
	DIR *folder;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)n->pid);
	folder = n->pid ? opendir(path) : NULL;
	if (!folder)
		return 0;
	for (struct dirent *d; (d = readdir(folder));) {
		ssize_t len = readlinkat(dirfd(folder), d->d_name, link, sizeof(link) - 1);

		link[len > 0 ? len : 0] = '\0';
		count += kind(link);
	}
	closedir(folder);
	return count;
}

static bool link_is_eventfd(const char *link)
{
	return strcmp(link, "anon_inode:[eventfd]") == 0;
}

static bool link_is_connected_socket(const char *link)
{
	unsigned long wanted, inode;
	bool connected = false;
	char line[512], state[3];
	FILE *f = sscanf(link, "socket:[%lu]", &wanted) == 1 ? fopen("/proc/net/unix", "re") : NULL;

	while (f && !connected && fgets(line, sizeof(line), f))
		connected = sscanf(line, "%*s %*s %*s %*s %*s %2s %lu", state, &inode) == 2 &&
			    inode == wanted && strcmp(state, "03") == 0;
	if (f)
		fclose(f);
	return connected;
}

size_t node_eventfds(const struct node *n)
{
	return descriptors_of_kind(n, link_is_eventfd);
}

/* Beside the connection to the server there is the one for qtest. */
bool node_connected(const struct node *n)
{
	return descriptors_of_kind(n, link_is_connected_socket) == 2;
}
