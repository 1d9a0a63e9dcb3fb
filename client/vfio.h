/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A PCI device that the driver vfio-pci has: its interrupts go to eventfds. That needs an IOMMU.
 *
 * This room owns the descriptors of vfio. They stay open until the process ends, however it does;
 * then the kernel takes the device back, switched off. While they are open nobody else gets them.
 */
#ifndef CLIENT_VFIO_H
#define CLIENT_VFIO_H

#include <stdbool.h>

/* Takes the device at a PCI address, and switches it on. Returns false with why, WHY_SIZE bytes. */
bool vfio_open(const char *address, char *why);

/* From now on MSI-X vector v adds to the eventfd bells[v]. Returns false with why, WHY_SIZE bytes.
 */
bool vfio_listen(const int *bells, int vectors, char *why);

#endif
