/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client/device.h"
#include "client/clock.h"
#include "client/report.h"
#include "client/vfio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/pci_regs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEVICES     "/sys/bus/pci/devices"
#define PCI_ID      "1af4:1110"
#define IV_POSITION 2 /* registers in BAR0, in words */
#define DOORBELL    3
#define ENTRY_WORDS (PCI_MSIX_ENTRY_SIZE / 4)
#define BAR_MSIX    1
#define KEEPER_MS   300 /* that somebody may take to put the device back */

/* The child that puts the device back, and a pipe that ends when we do. */
static pid_t keeper;
static int keep;

/*
 * Files of the device
 */

static int file_open(const struct device *d, const char *name, int flags)
{
	char path[128];

	snprintf(path, sizeof(path), DEVICES "/%s/%s", d->address, name);
	return open(path, flags | O_CLOEXEC);
}

/* Why a file of the device cannot be used, by errno. */
static bool file_wrong(const struct device *d, const char *name, const char *what, char *why)
{
	const char *remedy = "";

	if (errno == EACCES)
		remedy = ": it belongs to root";
	else if (errno == EPERM)
		remedy = ": root may, unless the kernel is locked down (secure boot)";
	return wrong(why, "cannot %s " DEVICES "/%s/%s: %s%s", what, d->address, name,
		     strerror(errno), remedy);
}

/* Reads a number from a file, or returns -1. */
static long file_number(const struct device *d, const char *name)
{
	char text[32];
	int fd = file_open(d, name, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	return strtol(text, NULL, 0);
}

/* Maps a BAR whole. Returns NULL with why. */
static volatile uint32_t *bar_map(const struct device *d, const char *name, char *why)
{
	int fd = file_open(d, name, O_RDWR);
	struct stat st;
	void *p = MAP_FAILED;

	if (fd < 0) {
		file_wrong(d, name, "open", why);
		return NULL;
	}
	if (fstat(fd, &st) == 0)
		p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED && d->vfio && errno == EINVAL)
		wrong(why,
		      "this kernel lets nobody map a device that vfio-pci has: unbind vfio-pci, and "
		      "the client polls for rings instead");
	else if (p == MAP_FAILED)
		file_wrong(d, name, "map", why);
	close(fd);
	return p == MAP_FAILED ? NULL : p;
}

/* Its driver, or "" for none. */
static void driver_name(const struct device *d, char *name, size_t size)
{
	char path[128], target[256];
	ssize_t n;

	snprintf(path, sizeof(path), DEVICES "/%s/driver", d->address);
	n = readlink(path, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = '\0';
	snprintf(name, size, "%.63s", strrchr(target, '/') ? strrchr(target, '/') + 1 : target);
}

/*
 * Finding it
 */

static bool is_ivshmem(const struct device *d)
{
	return file_number(d, "vendor") == 0x1af4 && file_number(d, "device") == 0x1110;
}

/* Lists the addresses of ivshmem devices, with blanks between them, as far as there is room, and
 * puts the last one into d. Returns how many, or -1 with errno. */
static int devices_list(struct device *d, char *list, size_t size)
{
	struct dirent **entries;
	int n = scandir(DEVICES, &entries, NULL, alphasort);
	size_t length = 0;
	int found = 0;

	*list = '\0';
	for (int i = 0; i < n; i++) {
		struct device candidate;

		snprintf(candidate.address, sizeof(candidate.address), "%.31s", entries[i]->d_name);
		free(entries[i]);
		if (candidate.address[0] == '.' || !is_ivshmem(&candidate))
			continue;
		memcpy(d->address, candidate.address, sizeof(d->address));
		found++;
		if (length < size)
			length += (size_t)snprintf(list + length, size - length, "%s%s",
						   length ? " " : "", d->address);
	}
	if (n < 0)
		return -1;
	free(entries);
	return found;
}

bool device_exists(void)
{
	struct device d;
	char list[1];

	return devices_list(&d, list, sizeof(list)) > 0;
}

/* Finds the one that is wanted. Its address may lack the domain, as lspci shows it. */
static bool wanted_find(struct device *d, char *why)
{
	bool domain = strchr(d->wanted, ':') != strrchr(d->wanted, ':');

	snprintf(d->address, sizeof(d->address), "%s%.24s", domain ? "" : "0000:", d->wanted);
	if (file_number(d, "vendor") < 0)
		return wrong(why,
			     "there is no PCI device '%.40s': 'ivshmem_client -D list' finds "
			     "the ivshmem device, or names all of them",
			     d->wanted);
	return is_ivshmem(d) ||
	       wrong(why, "%s is no ivshmem device: its PCI ID is not " PCI_ID, d->address);
}

static bool device_find(struct device *d, char *why)
{
	char list[WHY_SIZE / 2];
	int n;

	if (d->wanted)
		return wanted_find(d, why);
	n = devices_list(d, list, sizeof(list));
	if (n < 0)
		return wrong(why, "cannot read " DEVICES ": %s: is /sys mounted?", strerror(errno));
	if (n == 0)
		return wrong(why, "this machine has no ivshmem device, PCI ID " PCI_ID);
	return n == 1 || wrong(why, "this machine has %d ivshmem devices: %s: name one, -D%s", n,
			       list, d->address);
}

/*
 * What it is
 */

/* Finds the MSI-X capability, if it has one. Returns false with errno. */
static bool msix_find(struct device *d)
{
	uint8_t at = PCI_CAPABILITY_LIST, capability[2];

	if (pread(d->config, &at, 1, at) != 1)
		return false;
	for (int i = 0; at && i < 48; i++, at = capability[1]) {
		if (pread(d->config, capability, 2, at) != 2)
			return false;
		if (capability[0] != PCI_CAP_ID_MSIX)
			continue;
		if (pread(d->config, &d->control, 2, at + PCI_MSIX_FLAGS) != 2)
			return false;
		d->msix = at;
		d->vectors = (d->control & PCI_MSIX_FLAGS_QSIZE) + 1;
		return true;
	}
	return true;
}

/* Reads what can be read before the device is switched on. */
static bool device_examine(struct device *d, char *why)
{
	char driver[64];

	driver_name(d, driver, sizeof(driver));
	d->vfio = strcmp(driver, "vfio-pci") == 0;
	if (*driver && !d->vfio)
		return wrong(why,
			     "the driver %s has %s: unbind it, 'echo %s >" DEVICES
			     "/%s/driver/unbind', or bind vfio-pci",
			     driver, d->address, d->address, d->address);
	d->older = file_number(d, "revision") == 0;
	d->config = file_open(d, "config", O_RDWR);
	if (d->config < 0)
		return file_wrong(d, "config", "open", why);
	if (!msix_find(d))
		return file_wrong(d, "config", "read", why);
	d->interrupts = d->vfio && d->vectors > 0;
	return true;
}

/*
 * Switching it on, and putting it back. Between lock and unlock no other process does.
 */

static bool command_set(const struct device *d, uint16_t command)
{
	return pwrite(d->config, &command, 2, PCI_COMMAND) == 2;
}

static bool control_set(const struct device *d, uint16_t control)
{
	return pwrite(d->config, &control, 2, d->msix + PCI_MSIX_FLAGS) == 2;
}

/* The kernel counts who has switched a device on. */
static bool enable_set(const struct device *d, bool on)
{
	int fd = file_open(d, "enable", O_WRONLY);
	bool done = fd >= 0 && write(fd, on ? "1" : "0", 1) == 1;

	if (fd >= 0)
		close(fd);
	return done;
}

/* Puts the device back. Only who listens has touched MSI-X. */
static void device_restore(const struct device *d)
{
	uint16_t command = 0;

	flock(d->config, LOCK_EX);
	if (d->listens && d->msix)
		control_set(d, d->control);
	enable_set(d, false);
	/* Who else has it switched on still reads its memory. */
	if (file_number(d, "enable") != 0 && pread(d->config, &command, 2, PCI_COMMAND) == 2)
		command &= PCI_COMMAND_IO | PCI_COMMAND_MEMORY;
	command_set(d, d->command | command);
	flock(d->config, LOCK_UN);
}

/* Lets the keeper put the device back, and waits for that. */
static void keeper_end(void)
{
	close(keep);
	waitpid(keeper, NULL, 0);
}

/*
 * Whatever ends this process from now on, another one puts the device back: a child, which reads
 * from a pipe until that ends.
 */
static bool keeper_start(const struct device *d, char *why)
{
	int ends[2];
	sigset_t signals;
	char none;

	if (pipe2(ends, O_CLOEXEC) < 0 || (keeper = fork()) < 0)
		return wrong(why, "cannot start the process that restores %s: %s", d->address,
			     strerror(errno));
	if (keeper == 0) {
		sigfillset(&signals);
		sigprocmask(SIG_BLOCK, &signals, NULL);
		setsid(); /* what kills our group does not reach it */
		close(ends[1]);
		while (read(ends[0], &none, 1) < 0 && errno == EINTR)
			;
		device_restore(d);
		_exit(EXIT_SUCCESS);
	}
	close(ends[0]);
	keep = ends[1];
	atexit(keeper_end);
	return true;
}

/*
 * Only one process may clear pending bits: it has a lock on a file, and so has its keeper. One
 * whose client has just been killed is waited for.
 */
static bool listener_lock(const struct device *d, char *why)
{
	int fd;

	if (!d->listens || d->vfio || d->vectors == 0)
		return true;
	fd = file_open(d, "resource1", O_RDWR);
	if (fd < 0)
		return file_wrong(d, "resource1", "open", why);
	for (int i = 0; i < KEEPER_MS; i += 10) {
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return true;
		polls_wait(NULL, 0, 10);
	}
	close(fd);
	return wrong(why, "another process waits for rings of %s already: only one can at a time",
		     d->address);
}

/* Switches the device on, so that its registers and its memory can be mapped. */
static bool device_enable(struct device *d, char *why)
{
	if (pread(d->config, &d->command, 2, PCI_COMMAND) != 2)
		return file_wrong(d, "config", "read", why);
	if (d->vfio)
		return (!d->listens && d->command & PCI_COMMAND_MEMORY) ||
		       vfio_open(d->address, why);
	if (!enable_set(d, true))
		return file_wrong(d, "enable", "write to", why);
	if (keeper_start(d, why))
		return true;
	device_restore(d);
	return false;
}

/* Maps registers and memory. */
static bool device_map(struct device *d, char *why)
{
	struct stat st;
	uint32_t id;

	d->registers = bar_map(d, "resource0", why);
	if (!d->registers)
		return false;
	id = d->registers[IV_POSITION];
	if (id > UINT16_MAX)
		return wrong(why, "%s has no ID: QEMU has received no memory from a server for it",
			     d->address);
	d->id = (int)id;
	d->memory = file_open(d, "resource2_wc", O_RDWR);
	if (d->memory < 0)
		d->memory = file_open(d, "resource2", O_RDWR);
	if (d->memory < 0 && errno == ENOENT)
		return wrong(why, "%s has no memory: its server offers none", d->address);
	if (d->memory < 0 || fstat(d->memory, &st) < 0)
		return file_wrong(d, "resource2", "open", why);
	d->size = st.st_size;
	return true;
}

/*
 * Being rung
 */

/* Unmasks a vector for a moment, or only masks it. */
static void vector_mask(const struct device *d, int vector, bool moment)
{
	volatile uint32_t *control =
		&d->table[vector * ENTRY_WORDS + PCI_MSIX_ENTRY_VECTOR_CTRL / 4];

	if (moment)
		*control = 0;
	*control = PCI_MSIX_ENTRY_CTRL_MASKBIT;
}

/* Looks at all vectors, and adds to their bells, or not. */
static void vectors_look(const struct device *d, bool tell)
{
	const uint64_t once = 1;

	for (int first = 0; first < d->vectors; first += 32) {
		for (uint32_t rung = d->pending[first / 32]; rung; rung &= rung - 1) {
			int vector = first + __builtin_ctz(rung);

			/* Cleared, then told: who hears of a ring sees what was done before it. */
			vector_mask(d, vector, true);
			if (tell && write(d->bells[vector], &once, sizeof(once)) < 0)
				continue; /* its counter is full: it has been told */
		}
	}
}

void device_look(const struct device *d)
{
	uint64_t times;

	if (read(d->timer, &times, sizeof(times)) == sizeof(times))
		vectors_look(d, true);
}

/* Finds table and pending bits of MSI-X, in BAR1. */
static bool msix_map(struct device *d, char *why)
{
	volatile uint32_t *bar = bar_map(d, "resource1", why);
	uint32_t table, pending;

	if (!bar)
		return false;
	if (pread(d->config, &table, 4, d->msix + PCI_MSIX_TABLE) != 4 ||
	    pread(d->config, &pending, 4, d->msix + PCI_MSIX_PBA) != 4)
		return file_wrong(d, "config", "read", why);
	if ((table & PCI_MSIX_TABLE_BIR) != BAR_MSIX || (pending & PCI_MSIX_PBA_BIR) != BAR_MSIX)
		return wrong(why, "the MSI-X table of %s is not where QEMU's device has it",
			     d->address);
	d->pending = bar + (pending & PCI_MSIX_PBA_OFFSET) / 4;
	d->table = bar + (table & PCI_MSIX_TABLE_OFFSET) / 4;
	return true;
}

/* Lets rings set pending bits, and looks for them from now on. What came before is not told. */
static bool look_start(struct device *d, char *why)
{
	struct itimerspec often = {.it_interval = {.tv_sec = d->poll_ms / 1000,
						   .tv_nsec = d->poll_ms % 1000 * 1000000L}};
	uint16_t command;

	if (!msix_map(d, why))
		return false;
	for (int v = 0; v < d->vectors; v++)
		vector_mask(d, v, false);
	if (pread(d->config, &command, 2, PCI_COMMAND) != 2 ||
	    !command_set(d, command & ~PCI_COMMAND_MASTER) ||
	    !control_set(d, (d->control & ~PCI_MSIX_FLAGS_MASKALL) | PCI_MSIX_FLAGS_ENABLE))
		return file_wrong(d, "config", "write to", why);
	vectors_look(d, false);
	often.it_value = often.it_interval;
	return timerfd_settime(d->timer, 0, &often, NULL) == 0 ||
	       wrong(why, "cannot create a timer: %s", strerror(errno));
}

/* Makes the bells and the timer. */
static bool bells_make(struct device *d, char *why)
{
	d->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	d->bells = calloc((size_t)d->vectors + 1, sizeof(*d->bells));
	if (d->timer < 0 || !d->bells)
		return wrong(why, "cannot create a timer: %s", strerror(errno));
	for (int v = 0; v < d->vectors; v++) {
		d->bells[v] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (d->bells[v] < 0)
			return wrong(why, "cannot create an eventfd for vector %d of %d: %s", v,
				     d->vectors, strerror(errno));
	}
	return true;
}

const char *device_rings(const struct device *d)
{
	if (d->interrupts)
		return "interrupts";
	return d->vectors ? "polled" : "none, there is no MSI-X";
}

static bool device_listen(struct device *d, char *why)
{
	if (!d->listens)
		return true;
	if (d->vectors == 0) {
		complain("%s cannot be rung: it has no MSI-X%s", d->address,
			 d->older ? "" : ", as ivshmem-plain");
		return true;
	}
	return d->interrupts ? vfio_listen(d->bells, d->vectors, why) : look_start(d, why);
}

bool device_open(struct device *d, char *why)
{
	bool done;

	if (!device_find(d, why) || !device_examine(d, why) || !bells_make(d, why) ||
	    !listener_lock(d, why))
		return false;
	flock(d->config, LOCK_EX);
	done = device_enable(d, why) && device_map(d, why) && device_listen(d, why);
	/* Whoever needs vfio for a moment has it until the end; the next one waits for that. */
	if (d->listens || !d->vfio)
		flock(d->config, LOCK_UN);
	return done;
}

/*
 * Ringing
 */

bool device_ring(const struct device *d, int id, int vector, char *why)
{
	int first = vector < 0 ? 0 : vector, last = vector < 0 ? d->vectors - 1 : vector;

	/* An older one without MSI-X may have doorbells, with one vector. */
	if (d->vectors == 0 && !(d->older && vector == 0))
		return wrong(why, "%s has no doorbells: it is ivshmem-plain, or has msi=off",
			     d->address);
	if (vector >= d->vectors && d->vectors > 0)
		return wrong(
			why,
			"there is no vector %d: this device and all others have %d, numbered from 0",
			vector, d->vectors);
	__sync_synchronize(); /* what was written to the memory is there when it rings */
	for (int v = first; v <= last; v++)
		d->registers[DOORBELL] = (uint32_t)id << 16 | (uint32_t)v;
	return true;
}
