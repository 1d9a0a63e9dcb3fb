/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The only program of a test guest: its /init. It maps the BARs of the ivshmem device through
 * sysfs, for which Linux needs no driver, does what fam= on the kernel's command line says, and
 * powers off.
 *
 *   fam=STEP,STEP,...     each step prints one line that starts with "fam: " on the console
 *
 *   id                    the device's own ID and the size of its memory
 *   write:SEED            fill the memory with the pattern of SEED
 *   check:SEED            the memory must hold the pattern of SEED
 *   ring:ID:VECTOR        ring the doorbell of a peer
 *   wait:VECTOR           until that vector of ours has been rung
 *   quiet:VECTOR          that vector must not have been rung
 *
 * The last line is "fam: done" if all went well. Run on the host, it takes the file behind the
 * memory in place of the device, and the steps as arguments: init FILE STEP...
 *
 * Rings are seen without an interrupt: every vector is masked, as it is after a reset, so that a
 * ring sets its bit among the pending ones (PCI 3.0, 6.8.2.5), and there it stays until the guest
 * ends.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define DEVICES     "/sys/bus/pci/devices"
#define VENDOR      0x1af4
#define DEVICE      0x1110
#define MSIX        0x11   /* the capability */
#define MSIX_ENABLE 0x8000 /* in its control word */
#define IV_POSITION 2      /* registers in BAR0, in words */
#define DOORBELL    3

struct device {
	char path[300];
	volatile uint32_t *registers; /* BAR0 */
	volatile uint64_t *pending;   /* in BAR1 */
	uint64_t *memory;             /* BAR2 */
	size_t size;                  /* of it, in bytes */
};

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("fam: ");
	vprintf(format, args);
	printf("\n");
	fflush(stdout);
	va_end(args);
}

/* A guest's init must not exit, the kernel would panic. */
__attribute__((noreturn)) static void end(int status)
{
	if (getpid() != 1)
		exit(status);
	tcdrain(STDOUT_FILENO);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* Ends the program for what errno says. */
__attribute__((noreturn)) static void die(const char *what, const char *on)
{
	say("cannot %s %s: %s", what, on, strerror(errno));
	end(EXIT_FAILURE);
}

static int device_open(const struct device *d, const char *name)
{
	char path[400];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", d->path, name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("open", path);
	return fd;
}

/* Maps a file whole; *size gets its size in bytes. */
static void *file_map(int fd, const char *name, size_t *size)
{
	struct stat st;
	void *p;

	if (fstat(fd, &st) < 0)
		die("examine", name);
	*size = (size_t)st.st_size;
	p = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("map", name);
	close(fd);
	return p;
}

/* The number in a file of a device in sysfs. */
static unsigned long device_number(const char *device, const char *name)
{
	char path[400], text[32] = "";
	FILE *f;

	snprintf(path, sizeof(path), DEVICES "/%s/%s", device, name);
	f = fopen(path, "re");
	if (!f || !fgets(text, sizeof(text), f))
		die("read", path);
	fclose(f);
	return strtoul(text, NULL, 0);
}

static void device_find(struct device *d)
{
	DIR *devices = opendir(DEVICES);
	struct dirent *e;

	if (!devices)
		die("read", DEVICES);
	while ((e = readdir(devices))) {
		if (e->d_name[0] == '.' || device_number(e->d_name, "vendor") != VENDOR ||
		    device_number(e->d_name, "device") != DEVICE)
			continue;
		snprintf(d->path, sizeof(d->path), DEVICES "/%s", e->d_name);
		closedir(devices);
		return;
	}
	errno = ENODEV;
	die("find", "an ivshmem device");
}

/*
 * Enables MSI-X, with every vector masked, and maps the pending bits. A device without the
 * capability, ivshmem-plain, has no doorbells: its pending stays NULL.
 */
static void device_doorbells(struct device *d)
{
	int config = device_open(d, "config");
	uint8_t at = 0x34, capability[2];
	uint16_t control;
	uint32_t table;
	size_t size;
	char *bar;

	if (pread(config, &at, 1, at) != 1)
		die("read", "the configuration space");
	while (at) {
		if (pread(config, capability, 2, at) != 2)
			die("read", "the configuration space");
		if (capability[0] == MSIX)
			break;
		at = capability[1];
	}
	if (at) {
		if (pread(config, &control, 2, at + 2) != 2 ||
		    pread(config, &table, 4, at + 8) != 4)
			die("read", "the MSI-X capability");
		control |= MSIX_ENABLE;
		if (pwrite(config, &control, 2, at + 2) != 2)
			die("enable", "MSI-X");
		bar = file_map(device_open(d, "resource1"), "BAR1", &size);
		d->pending = (volatile uint64_t *)(bar + (table & ~7U));
	}
	close(config);
}

static void device_map(struct device *d)
{
	size_t size;
	int fd;

	device_find(d);
	fd = device_open(d, "enable");
	if (write(fd, "1", 1) != 1)
		die("enable", d->path);
	close(fd);
	device_doorbells(d);
	d->registers = file_map(device_open(d, "resource0"), "BAR0", &size);
	d->memory = file_map(device_open(d, "resource2"), "BAR2", &d->size);
}

/* What the pattern has at word i: no two words alike, so that memory out of place is noticed. */
static uint64_t pattern(uint64_t seed, size_t i)
{
	return (seed << 48 | i) * UINT64_C(0x9e3779b97f4a7c15);
}

static void pattern_write(const struct device *d, uint64_t seed)
{
	for (size_t i = 0; i < d->size / 8; i++)
		d->memory[i] = pattern(seed, i);
	say("wrote %" PRIu64 " over %zu bytes", seed, d->size);
}

static bool pattern_check(const struct device *d, uint64_t seed)
{
	for (size_t i = 0; i < d->size / 8; i++) {
		uint64_t found = d->memory[i];

		if (found == pattern(seed, i))
			continue;
		say("at %#zx stands %#" PRIx64 ", not %#" PRIx64 " of pattern %" PRIu64, i * 8,
		    found, pattern(seed, i), seed);
		return false;
	}
	say("found %" PRIu64 " over %zu bytes", seed, d->size);
	return true;
}

static bool rung(const struct device *d, unsigned int vector)
{
	return d->pending[vector / 64] >> (vector % 64) & 1;
}

/* Does one step. Returns whether it went well. */
static bool step(const struct device *d, const char *text)
{
	unsigned int a, b;
	int all = 0;

#define IS(format, ...) (sscanf(text, format "%n", __VA_ARGS__, &all) > 0 && all && !text[all])
	if (IS("write:%u", &a)) {
		pattern_write(d, a);
		return true;
	}
	if (IS("check:%u", &a))
		return pattern_check(d, a);
	if (!strcmp(text, "id") && d->registers) {
		say("id %" PRIu32 ", %zu bytes", d->registers[IV_POSITION], d->size);
		return true;
	}
	if (IS("ring:%u:%u", &a, &b) && d->registers) {
		d->registers[DOORBELL] = a << 16 | b;
		say("rang %u:%u", a, b);
		return true;
	}
	if (IS("wait:%u", &a) && d->pending) {
		while (!rung(d, a))
			usleep(10000);
		say("was rung on %u", a);
		return true;
	}
	if (IS("quiet:%u", &a) && d->pending) {
		say("was %srung on %u", rung(d, a) ? "" : "not ", a);
		return !rung(d, a);
	}
#undef IS
	say("cannot do %s here", text);
	return false;
}

/* Does the steps on the file that the memory of guests is. */
static void host_run(struct device *d, int argc, char **argv)
{
	int fd;

	if (argc < 3) {
		fprintf(stderr, "Usage: %s FILE STEP...\n", argv[0]);
		exit(2);
	}
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("open", argv[1]);
	d->memory = file_map(fd, argv[1], &d->size);
	for (int i = 2; i < argc; i++)
		if (!step(d, argv[i]))
			end(EXIT_FAILURE);
}

/* Does the steps on the device. */
static void guest_run(struct device *d)
{
	char *steps = getenv("fam"); /* the kernel hands on what it does not know */

	if (mkdir("/sys", 0755) < 0 || mount("sysfs", "/sys", "sysfs", 0, NULL) < 0)
		die("mount", "/sys");
	device_map(d);
	for (char *s = strtok(steps, ","); s; s = strtok(NULL, ","))
		if (!step(d, s))
			end(EXIT_FAILURE);
}

int main(int argc, char **argv)
{
	static struct device d;

	if (getpid() == 1)
		guest_run(&d);
	else
		host_run(&d, argc, argv);
	say("done");
	end(EXIT_SUCCESS);
}
