/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ivshmem device of a virtual machine, from its inside: through sysfs, for which Linux needs no
 * driver. QEMU's ivshmem-spec, "Device description", has the registers.
 *
 * Rings arrive by interrupts where the driver vfio-pci has the device. Where none has it, they are
 * looked for: MSI-X is on and all its vectors are masked, so that a ring sets the vector's pending
 * bit, and there it stays until device_look has seen it. To clear it the vector is unmasked for a
 * moment; then the device would send its message, but may not, since bus mastering is off.
 *
 * This room owns the registers, and what it has changed in the device: however the program ends, a
 * child of it, the keeper, puts that back. Several processes may use one device, but only one at a
 * time listens.
 */
#ifndef CLIENT_DEVICE_H
#define CLIENT_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct device {
	const char *wanted; /* its PCI address; NULL: the only one */
	int poll_ms;        /* between two looks */
	bool listens;       /* wants to be rung */

	char address[32];
	int id;
	int memory;      /* a descriptor; -1: none */
	off_t size;      /* of the memory, in bytes */
	int vectors;     /* of its MSI-X table; 0: it has none, and cannot be rung */
	bool interrupts; /* rings arrive by these */
	int *bells;      /* an eventfd for each vector */
	int timer;       /* readable when it is time for device_look */

	/* private */
	int config;                   /* the configuration space */
	bool vfio;                    /* the driver vfio-pci has it */
	bool older;                   /* it is that of QEMU up to 2.5, revision 0 */
	off_t msix;                   /* where its MSI-X capability is; 0: none */
	uint16_t command, control;    /* as found: the PCI command, MSI-X's */
	volatile uint32_t *registers; /* BAR0 */
	volatile uint32_t *table;     /* of MSI-X, in BAR1; NULL: not looked at */
	volatile uint32_t *pending;   /* there, too */
};

/* How rings arrive at a device that has been opened, in a word or more. */
const char *device_rings(const struct device *d);

/* Whether this machine has such a device. */
bool device_exists(void);

/*
 * Finds the device, switches it on, and if it listens has rings counted in its bells from now on.
 * To be called once. What it opens, timer, memory and bells, is the caller's to close. Returns
 * false with why, WHY_SIZE bytes.
 */
bool device_open(struct device *d, char *why);

/* Rings a doorbell of another; vector -1: as many as the own device has. Whether there is such a
 * doorbell nobody says. Returns false with why, WHY_SIZE bytes, where there surely is none. */
bool device_ring(const struct device *d, int id, int vector, char *why);

/* If it is time for that, looks who was rung, and adds to their bells. Several rings since the last
 * look are one. */
void device_look(const struct device *d);

#endif
