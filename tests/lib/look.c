/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "look.h"

#include "deadline.h"
#include "send_scm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

int look_ask(const char *path)
{
	static unsigned int number;
	struct sockaddr_un own = {.sun_family = AF_UNIX}, server = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), n, error;

	snprintf(server.sun_path, sizeof(server.sun_path), "%s", path);
	n = snprintf(own.sun_path + 1, sizeof(own.sun_path) - 1, "ivshmem-status/test-%d-%u",
		     (int)getpid(), number++);
	if (sock < 0 ||
	    bind(sock, (struct sockaddr *)&own, (socklen_t)(sizeof(sa_family_t) + 1 + n)) < 0 ||
	    connect(sock, (struct sockaddr *)&server, sizeof(server)) < 0) {
		error = errno;
		if (sock >= 0)
			close(sock);
		errno = error;
		return -1;
	}
	return sock;
}

/* The text in the descriptor that came with its length. NULL with EPROTO. */
static char *text_get(int fd, int64_t length)
{
	struct stat st;
	char *text = NULL;

	errno = EPROTO;
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size != length || length <= 0 ||
	    fcntl(fd, F_GET_SEALS) != SEALS)
		return NULL;
	text = calloc(1, (size_t)length + 1);
	if (text && pread(fd, text, (size_t)length, 0) == length &&
	    strlen(text) == (size_t)length && text[length - 1] == '\n')
		return text;
	free(text);
	errno = EPROTO;
	return NULL;
}

/* Whether something comes, or the end, within so many seconds. If not, errno is ETIME. */
static bool comes(int sock, int seconds)
{
	int n = poll(&(struct pollfd){.fd = sock, .events = POLLIN}, 1, seconds * 1000);

	if (n >= 0)
		errno = n == 0 ? ETIME : 0;
	return n > 0;
}

char *look_take(int sock)
{
	int64_t value, none;
	int fd, nothing, n = comes(sock, PATIENCE) ? scm_recv(sock, &value, &fd) : -1, error;
	char *text = NULL;

	error = n == 0 || (n < 0 && errno == ECONNRESET) ? 0 : errno;
	if (n > 0) {
		text = text_get(fd, value);
		error = errno;
		if (fd >= 0)
			close(fd);
		if (text && (!comes(sock, PATIENCE) || scm_recv(sock, &none, &nothing) != 0)) {
			error = errno == ETIME ? ETIME : EPROTO;
			free(text);
			text = NULL;
		}
	}
	close(sock);
	errno = error;
	return text;
}

char *look(const char *path)
{
	int sock = look_ask(path);

	return sock < 0 ? NULL : look_take(sock);
}

long look_number(const char *text, const char *name)
{
	char member[64];
	const char *nodes = strstr(text, "\"nodes\":["), *end = nodes ? strchr(nodes, ']') : NULL;
	const char *at;

	snprintf(member, sizeof(member), "\"%s\":", name);
	at = strstr(text, member);
	if (!end || !at)
		return -1;
	if (at > nodes && at < end)
		at = strstr(end, member);
	return at ? strtol(at + strlen(member), NULL, 10) : -1;
}

size_t look_nodes(const char *text)
{
	size_t n = 0;

	while ((text = strstr(text, "{\"id\":"))) {
		n++;
		text++;
	}
	return n;
}
