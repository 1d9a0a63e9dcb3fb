/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client/connect.h"
#include "client/device.h"
#include "client/report.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* What somebody may do about it that the socket cannot be connected to. */
static const char *connect_remedy(int error)
{
	switch (error) {
	case ENOENT:
	case ECONNREFUSED:
		return device_exists()
			       ? ": ivshmem_client -D takes the ivshmem device of this machine"
			       : ": start the server first, or give its socket with -S";
	case EACCES:
		return ": your user must be in the group of the socket, and must be able to enter its folder";
	case EAGAIN: return ": the server accepts nobody; it is stopped, or hangs";
	default: return "";
	}
}

/* Binds the own end to an address that nobody else has. Returns false with errno. */
static bool end_bind(int sock, const char *purpose)
{
	struct sockaddr_un own = {.sun_family = AF_UNIX};
	uint64_t number;
	int length;

	if (getrandom(&number, sizeof(number), 0) != sizeof(number))
		return false;
	length = snprintf(own.sun_path + 1, sizeof(own.sun_path) - 1, "%s%016" PRIx64, purpose,
			  number);
	return bind(sock, (struct sockaddr *)&own,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length)) == 0;
}

int server_connect(const char *path, const char *purpose, int64_t patience, char *why)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = patience / 1000, .tv_usec = patience % 1000 * 1000};
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), flags, connected, error;

	if (sock < 0 || (purpose && !end_bind(sock, purpose))) {
		error = errno;
		wrong(why, "cannot create a socket: %s", strerror(error));
		if (sock >= 0)
			close(sock);
		errno = error;
		return -1;
	}
	strcpy(address.sun_path, path);
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	do
		connected = connect(sock, (struct sockaddr *)&address, sizeof(address));
	while (connected < 0 && errno == EINTR);
	flags = fcntl(sock, F_GETFL);
	if (connected == 0 && flags >= 0 && fcntl(sock, F_SETFL, flags | O_NONBLOCK) == 0)
		return sock;
	error = errno;
	wrong(why, "cannot connect to %s: %s%s", path, strerror(error), connect_remedy(error));
	close(sock);
	errno = error;
	return -1;
}
