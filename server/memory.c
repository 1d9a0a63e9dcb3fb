/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/memory.h"
#include "server/log.h"
#include "server/options.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* The number behind a word at the start of a line, in a file such as /proc/meminfo; UINT64_MAX:
 * there is none. */
static uint64_t file_number(const char *folder, const char *name, const char *word)
{
	uint64_t number = UINT64_MAX;
	char path[PATH_MAX], line[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	f = fopen(path, "re");
	while (f && number == UINT64_MAX && fgets(line, sizeof(line), f))
		if (!strncmp(line, word, strlen(word)))
			digits_parse(line + strlen(word) + strspn(line + strlen(word), " "),
				     &number, &(char *){NULL});
	if (f)
		fclose(f);
	return number;
}

/* The smaller of two. */
static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* What is left up to the limit that a cgroup has in a file; UINT64_MAX: it has none. */
static uint64_t limit_left(const char *cgroup, const char *limit, const char *usage)
{
	uint64_t most = file_number(cgroup, limit, ""), used = file_number(cgroup, usage, "");

	if (most == UINT64_MAX || used == UINT64_MAX)
		return UINT64_MAX;
	return most > used ? most - used : 0;
}

/*
 * Bytes that a cgroup of version 1 or 2 lets us have: what is free in it, or cached, or can be
 * swapped. UINT64_MAX: it has no limit.
 */
static uint64_t cgroup_left(const char *cgroup, uint64_t swap)
{
	uint64_t left = least(limit_left(cgroup, "memory.max", "memory.current"),
			      limit_left(cgroup, "memory.high", "memory.current"));
	uint64_t both =
		limit_left(cgroup, "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes");
	uint64_t cached = 0, bytes;

	left = least(left, limit_left(cgroup, "memory.limit_in_bytes", "memory.usage_in_bytes"));
	if (left == UINT64_MAX)
		return left;
	for (int i = 0; i < 2; i++) {
		static const char *const words[][2] = {{"total_inactive_file ", "inactive_file "},
						       {"total_active_file ", "active_file "}};

		bytes = file_number(cgroup, "memory.stat", words[i][0]);
		if (bytes == UINT64_MAX)
			bytes = file_number(cgroup, "memory.stat", words[i][1]);
		cached += bytes == UINT64_MAX ? 0 : bytes;
	}
	swap = least(swap, limit_left(cgroup, "memory.swap.max", "memory.swap.current"));
	return least(left + swap, both) + cached;
}

uint64_t memory_left(char of[PATH_MAX])
{
	uint64_t left = file_number("/proc", "meminfo", "MemAvailable:"), swap, here;
	char line[PATH_MAX - 64], folder[PATH_MAX], *controllers, *path, *end;
	FILE *cgroups = fopen("/proc/self/cgroup", "re");
	size_t root;

	swap = file_number("/proc", "meminfo", "SwapFree:");
	swap = swap == UINT64_MAX ? 0 : swap * 1024;
	left = left == UINT64_MAX ? left : left * 1024 + swap;
	strcpy(of, "this machine");
	while (cgroups && fgets(line, sizeof(line), cgroups)) {
		path = line;
		strsep(&path, ":");
		controllers = strsep(&path, ":\n");
		if (!path || (*controllers && strcmp(controllers, "memory") != 0))
			continue;
		root = (size_t)snprintf(folder, sizeof(folder), "/sys/fs/cgroup%s%s",
					*controllers ? "/" : "", controllers);
		snprintf(folder + root, sizeof(folder) - root, "%s", strsep(&path, "\n"));
		/* From ours up to the root, which in a container is the container's. */
		do {
			here = cgroup_left(folder, swap);
			if (here < left)
				strcpy(of, folder);
			left = least(left, here);
			end = strrchr(folder + root, '/');
			if (end)
				*end = '\0';
		} while (end);
	}
	if (cgroups)
		fclose(cgroups);
	return left;
}
