/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client/vfio.h"
#include "client/report.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define CONTAINER "/dev/vfio/vfio"

/* Of the device that has been opened. The container is never used again, but must stay open. */
static int device;

/* The path by which vfio offers the IOMMU group of a device. Returns false with why. */
static bool group_find(const char *address, char *path, size_t size, char *why)
{
	char link[128], target[256];
	ssize_t n;

	snprintf(link, sizeof(link), "/sys/bus/pci/devices/%s/iommu_group", address);
	n = readlink(link, target, sizeof(target) - 1);
	if (n < 0)
		return wrong(why,
			     "vfio-pci has %s, and this machine has no IOMMU for its interrupts: "
			     "unbind vfio-pci, and the client polls for rings instead",
			     address);
	target[n] = '\0';
	snprintf(path, size, "/dev/vfio/%s",
		 strrchr(target, '/') ? strrchr(target, '/') + 1 : target);
	return true;
}

/* What somebody may do about it that a group cannot be opened. */
static const char *group_remedy(int error)
{
	switch (error) {
	case EBUSY: return ": another process has it, maybe a client that waits for rings";
	case EACCES:
	case EPERM: return ": it belongs to root, or to the user to whom root gave it with chown";
	default: return "";
	}
}

/* Opens the IOMMU group, whose other devices nobody may use. Returns it, or -1 with why. */
static int group_open(const char *address, char *why)
{
	struct vfio_group_status status = {.argsz = sizeof(status)};
	char path[300];
	int group;

	if (!group_find(address, path, sizeof(path), why))
		return -1;
	group = open(path, O_RDWR | O_CLOEXEC);
	if (group < 0) {
		wrong(why, "cannot open %s: %s%s", path, strerror(errno), group_remedy(errno));
		return -1;
	}
	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) < 0 ||
	    !(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		wrong(why,
		      "%s has other devices as well, with drivers of their own: list them with "
		      "'ls /sys/bus/pci/devices/%s/iommu_group/devices', and unbind the drivers",
		      path, address);
		close(group);
		return -1;
	}
	return group;
}

bool vfio_open(const char *address, char *why)
{
	int group = group_open(address, why);
	int container;

	if (group < 0)
		return false;
	container = open(CONTAINER, O_RDWR | O_CLOEXEC);
	if (container < 0)
		return wrong(why, "cannot open " CONTAINER ": %s", strerror(errno));
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0)
		return wrong(why, "cannot use " CONTAINER ": %s", strerror(errno));
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) < 0)
		return wrong(why, "vfio cannot use the IOMMU: %s: try 'modprobe vfio_iommu_type1'",
			     strerror(errno));
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
	return device >= 0 || wrong(why, "cannot get %s from vfio: %s", address, strerror(errno));
}

/* An interrupt is a message that the device sends, as the master of the bus. */
static bool master_enable(char *why)
{
	struct vfio_region_info config = {.argsz = sizeof(config),
					  .index = VFIO_PCI_CONFIG_REGION_INDEX};
	uint16_t command;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) < 0 ||
	    pread(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		return wrong(why, "cannot read the PCI command through vfio: %s", strerror(errno));
	command |= PCI_COMMAND_MASTER;
	return pwrite(device, &command, 2, (off_t)config.offset + PCI_COMMAND) == 2 ||
	       wrong(why, "cannot write the PCI command through vfio: %s", strerror(errno));
}

bool vfio_listen(const int *bells, int vectors, char *why)
{
	size_t size = sizeof(struct vfio_irq_set) + (size_t)vectors * sizeof(*bells);
	struct vfio_irq_set *set = calloc(1, size);
	bool done;

	if (!set)
		return wrong(why, "not enough memory for interrupts");
	set->argsz = (uint32_t)size;
	set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	set->index = VFIO_PCI_MSIX_IRQ_INDEX;
	set->count = (uint32_t)vectors;
	memcpy(set->data, bells, (size_t)vectors * sizeof(*bells));
	done = ioctl(device, VFIO_DEVICE_SET_IRQS, set) == 0 ||
	       wrong(why, "vfio cannot provide %d interrupts: %s", vectors, strerror(errno));
	free(set);
	return done && master_enable(why);
}
