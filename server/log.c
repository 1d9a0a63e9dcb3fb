/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <paths.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE PIPE_BUF /* bytes of a line at most: a pipe takes all of it or nothing */

static bool background, muted;
static char reason[512]; /* the last error that was logged */

/* Where a line goes, and how it begins there. */
enum target { TO_STDERR, TO_JOURNAL, TO_SYSLOG, TO_FILE };

static struct {
	int own;  /* stderr opened once more, or a socket to the system's log; closed at exit.
		     -1: none */
	int file; /* the log file, whose number never changes while we serve; closed at exit.
		     -1: none */
	const char *path; /* of that */
	bool start;       /* what goes to stderr is copied there */
	size_t missed;    /* lines of which there is no copy */
	bool journal;     /* stderr is systemd's */
	bool stream;      /* the system's log takes a stream, no datagrams */
	bool socket;      /* stderr is one */
	bool blocks;      /* stderr could not be opened once more, and a write there may wait */
	size_t bytes;     /* of log_lines */
	size_t dropped;
} logging = {.own = -1, .file = -1};

static char log_lines[1 << 16]; /* that wait */

void name_begin(void)
{
	static char name[NAME_MAX / 4];

	snprintf(name, sizeof(name), "%s", program_invocation_short_name);
	if (!*name)
		strcpy(name, "tm_ivshmem_server");
	program_invocation_short_name = name;
}

bool as_qemu(void)
{
	return !strcmp(program_invocation_short_name, QEMU_NAME);
}

bool log_in_background(void)
{
	return background;
}

void log_mute(bool mute)
{
	muted = mute;
}

const char *log_reason(void)
{
	return reason;
}

bool log_waits(void)
{
	return logging.bytes > 0;
}

int *log_descriptor(void)
{
	return &logging.own;
}

int *log_file(void)
{
	return &logging.file;
}

/* Where lines go now. */
static enum target log_target(void)
{
	if (logging.file >= 0 && !logging.start)
		return TO_FILE;
	if (background)
		return TO_SYSLOG;
	return logging.journal ? TO_JOURNAL : TO_STDERR;
}

/* Gives a descriptor a number that select does not need, if there is one. Returns the number. */
static int log_high(int fd)
{
	int high = fd < 0 || fd >= FD_SETSIZE ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FD_SETSIZE);

	if (high >= 0)
		close(fd);
	return high >= 0 ? high : fd;
}

void log_raise(void)
{
	logging.own = log_high(logging.own);
	logging.file = log_high(logging.file);
}

/* Whether stderr is the stream to the journal that systemd has made it (systemd.exec(5)). */
static bool log_is_journal(const struct stat *st)
{
	const char *stream = getenv("JOURNAL_STREAM");
	uintmax_t dev, ino;
	char more;

	return stream && sscanf(stream, "%ju:%ju%c", &dev, &ino, &more) == 2 && dev == st->st_dev &&
	       ino == st->st_ino;
}

/*
 * Looks what stderr is. A pipe or a terminal is opened once more, not to wait there: how it was
 * opened is shared with others. Where that may not be, it is asked whether there is room.
 */
static void log_open(void)
{
	struct stat st;

	if (fstat(STDERR_FILENO, &st) < 0)
		return;
	logging.journal = log_is_journal(&st);
	logging.socket = S_ISSOCK(st.st_mode);
	logging.blocks = S_ISFIFO(st.st_mode) || (S_ISCHR(st.st_mode) && isatty(STDERR_FILENO));
	if (logging.blocks)
		logging.own = log_high(
			open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

/*
 * Connects to the system's log, which takes datagrams or a stream. Returns a socket that select
 * does not need to see, or -1 with errno.
 */
static int log_connect(bool *stream)
{
	static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = _PATH_LOG};
	int error = 0;

	for (int i = 0; i < 2; i++) {
		int type = i == 0 ? SOCK_DGRAM : SOCK_STREAM;
		int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

		if (fd >= 0 &&
		    connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0) {
			*stream = i == 1;
			return log_high(fd);
		}
		error = errno;
		if (fd >= 0)
			close(fd);
		if (error != EPROTOTYPE)
			break;
	}
	errno = error;
	return -1;
}

/* Whether a line that failed with this errno can be written later. */
static bool log_later(int error)
{
	static const int later[] = {EAGAIN, EINTR, ENOBUFS, ENOMEM, EMFILE, ENFILE, ENOSPC, EDQUOT};

	if (log_target() == TO_FILE)
		return true; /* whatever it lacks may come back, or another at HUP */
	for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++)
		if (error == later[i])
			return true;
	return false;
}

/*
 * Sends a line to the system's log, which may have been started anew. In a datagram, its end is the
 * line's. Returns how many bytes are done, or -1 with errno.
 */
static ssize_t log_send(const char *line, size_t length)
{
	ssize_t n = -1;

	for (int tries = 0; tries < 2 && n < 0; tries++) {
		if (logging.own < 0)
			logging.own = log_connect(&logging.stream);
		if (logging.own < 0)
			return -1;
		n = send(logging.own, line, length - !logging.stream, MSG_NOSIGNAL);
		if (n >= 0)
			return n + !logging.stream;
		if (log_later(errno))
			return -1;
		close(logging.own);
		logging.own = -1;
	}
	return n;
}

/* Writes what it can of a line without waiting. Returns how many bytes, or -1 with errno. */
static ssize_t log_write(const char *line, size_t length)
{
	struct pollfd room = {.fd = STDERR_FILENO, .events = POLLOUT};

	if (log_target() == TO_FILE)
		return write(logging.file, line, length);
	if (background)
		return log_send(line, length);
	if (logging.own >= 0)
		return write(logging.own, line, length);
	if (logging.socket)
		return send(STDERR_FILENO, line, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	errno = EAGAIN;
	if (logging.blocks && poll(&room, 1, 0) <= 0)
		return -1;
	return write(STDERR_FILENO, line, length);
}

/* Writes what waits, as far as there is room for it. Where nobody reads a line, it is gone. */
static void log_flush(void)
{
	size_t done = 0;

	while (done < logging.bytes) {
		const char *line = log_lines + done;
		size_t length = strcspn(line, "\n") + 1;
		ssize_t n = log_write(line, length);

		if (n < 0 && log_later(errno))
			break;
		done += n < 0 ? length : (size_t)n;
	}
	if (done == 0)
		return;
	logging.bytes -= done;
	memmove(log_lines, log_lines + done, logging.bytes + 1);
}

/* Has a line written, now or later. */
static void log_add(const char *line, size_t length)
{
	if (logging.dropped || logging.bytes + length >= sizeof(log_lines)) {
		logging.dropped++;
		return;
	}
	memcpy(log_lines + logging.bytes, line, length);
	logging.bytes += length;
	log_lines[logging.bytes] = '\0';
	log_flush();
}

size_t log_lost(void)
{
	size_t lost = logging.dropped;

	for (size_t i = 0; i < logging.bytes; i++)
		lost += log_lines[i] == '\n';
	return lost;
}

void log_forget(void)
{
	logging.bytes = logging.dropped = 0;
}

size_t character_length(const char *text)
{
	const unsigned char *c = (const unsigned char *)text;
	size_t length = c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;

	if (c[0] < 0x80)
		return c[0] >= ' ' && c[0] != 127;
	if (c[0] < 0xc2 || c[0] > 0xf4 || (c[0] == 0xc2 && c[1] < 0xa0) /* C1 */ ||
	    (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
	    (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f))
		return 0;
	for (size_t i = 1; i < length; i++)
		if ((c[i] & 0xc0) != 0x80)
			return 0;
	return length;
}

void text_tidy(char *text)
{
	for (char *at = text; *at;) {
		size_t n = character_length(at);

		if (n == 0)
			*at = '?';
		at += n ? n : 1;
	}
}

/*
 * Makes one line of a text, whatever a path in it is called: not too long, with its beginning and
 * its end, where the remedy stands. Returns its length.
 */
static size_t line_tidy(char *line)
{
	const size_t most = LOG_LINE - 1, half = most / 2;
	size_t length = strlen(line);

	if (length > most) {
		memmove(line + half, line + length - (most - half), most - half + 1);
		memset(line + half - 3, '.', 3);
		length = most;
	}
	text_tidy(line);
	line[length++] = '\n';
	return length;
}

/*
 * Begins a line: on stderr, with the name of the program, which the journal knows, but not the
 * level (sd-daemon(3)); for the system's log, as that wants it (RFC 3164); in a file, with the time
 * (RFC 3339). Returns its length.
 */
static int line_begin(char *line, size_t room, enum target target, int level)
{
	const char *name = program_invocation_short_name;
	time_t now = time(NULL);
	struct tm local;
	char text[32] = "", zone[8] = "";

	if (target == TO_STDERR)
		return snprintf(line, room, "%s: ", name);
	if (target == TO_JOURNAL)
		return snprintf(line, room, "<%d>", level);
	if (localtime_r(&now, &local)) {
		strftime(text, sizeof(text), target == TO_FILE ? "%FT%T" : "%b %e %T", &local);
		strftime(zone, sizeof(zone), "%z", &local); /* +0100 */
	}
	if (target == TO_FILE)
		return snprintf(line, room, "%s%.3s:%s %s[%d]: ", text, zone, zone + 3, name,
				(int)getpid());
	return snprintf(line, room, "<%d>%s %s[%d]: ", LOG_DAEMON | level, text, name,
			(int)getpid());
}

void log_settle(void)
{
	enum target target = log_target();
	char line[256];
	int n;

	log_flush();
	if (logging.bytes || !logging.dropped)
		return;
	n = line_begin(line, sizeof(line), target, LOG_WARNING);
	snprintf(line + n, sizeof(line) - (size_t)n - 1, "lines dropped here, since %s: %zu",
		 target == TO_FILE ? "this log could not be written" : "nobody read this log",
		 logging.dropped);
	logging.dropped = 0;
	log_add(line, line_tidy(line));
}

/* Gives what waits a moment, and no more: the end of the process, or of its time on stderr. */
static void log_end(void)
{
	for (int tries = 10; (logging.bytes || logging.dropped) && tries > 0; tries--) {
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		log_settle();
	}
}

/* Connects to the system's log, where that is to be ours. Returns the socket or, having said that
 * there will be no log, -1. */
static int log_prepare(void)
{
	int fd = log_connect(&logging.stream);

	if (fd < 0 && errno != EAGAIN) /* a stream that is busy */
		log_line(
			LOG_WARNING, errno,
			"warning: nothing is logged from here on, since nobody listens at " _PATH_LOG
			": give %s-o FILE, or start a syslog daemon",
			as_qemu() ? "tm_ivshmem_server " : "");
	return fd;
}

void log_leave_stderr(bool for_background)
{
	int fd = -1;

	if (background || (!for_background && logging.file < 0))
		return;
	if (logging.file < 0)
		fd = log_prepare();
	log_end();
	logging.dropped = logging.file >= 0 ? logging.missed : log_lost();
	logging.bytes = 0;
	if (logging.own >= 0)
		close(logging.own);
	logging.own = fd;
	logging.start = false;
	background = for_background;
	log_settle();
}

void log_begin(bool in_background, int file, size_t lost)
{
	if (file >= 0 && fcntl(file, F_SETFD, FD_CLOEXEC) == 0)
		logging.file = file;
	else if (!in_background)
		log_open();
	background = in_background;
	logging.dropped = lost;
	atexit(log_end);
}

/* Opens the log file. It is never waited for, be it a pipe. Returns it, or -1 with errno. */
static int file_open(const char *path)
{
	return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
}

bool log_file_open(const char *path)
{
	logging.path = path;
	if (!path || logging.file >= 0)
		return true;
	logging.file = log_high(file_open(path));
	logging.start = true;
	return logging.file >= 0;
}

/* Whether a file is not of the kind of the log, as /dev/stderr when we are in the background. */
static bool log_differs(int fd)
{
	struct stat old, new;

	return fstat(logging.file, &old) == 0 && fstat(fd, &new) == 0 &&
	       ((old.st_mode & S_IFMT) != (new.st_mode &S_IFMT) || old.st_rdev != new.st_rdev);
}

void log_reopen(void)
{
	int fd;

	if (logging.file < 0 || !logging.path)
		return;
	fd = file_open(logging.path);
	if (fd >= 0 && log_differs(fd))
		warn("%s is another kind of file now, going on with the log as it was",
		     logging.path);
	else if (fd < 0 || dup3(fd, logging.file, O_CLOEXEC) < 0)
		fail("cannot open %s again, going on with the log as it was", logging.path);
	if (fd >= 0)
		close(fd);
}

/* Copies what is said on stderr to the log file, while the server starts. */
static void log_copy(int level, const char *text)
{
	char line[4 * PATH_MAX];
	int n = line_begin(line, sizeof(line), TO_FILE, level);
	size_t length;

	snprintf(line + n, sizeof(line) - (size_t)n - 1, "%s", text);
	length = line_tidy(line);
	logging.missed += write(logging.file, line, length) != (ssize_t)length;
}

bool log_line(int level, int error, const char *format, ...)
{
	int saved = errno;
	char line[4 * PATH_MAX];
	size_t n, length;
	va_list args;

	if (muted)
		return false;
	if (logging.dropped)
		log_settle();
	n = (size_t)line_begin(line, sizeof(line), log_target(), level);
	va_start(args, format);
	vsnprintf(line + n, sizeof(line) - n - 1, format, args);
	va_end(args);
	length = strlen(line);
	if (error)
		snprintf(line + length, sizeof(line) - length - 1, ": %s", strerror(error));
	if (logging.start)
		log_copy(level, line + n);
	length = line_tidy(line);
	if (level == LOG_ERR)
		snprintf(reason, sizeof(reason), "%.*s", (int)(length - n - 1), line + n);
	log_add(line, length);
	errno = saved;
	return false;
}

void log_progress(const char *format, ...)
{
	char text[LOG_LINE];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (n > 0 && (size_t)n < sizeof(text) && !logging.bytes)
		log_write(text, (size_t)n);
}

struct text size_text(uint64_t bytes)
{
	const char *const units[] = {bytes == 1 ? " byte" : " bytes", "K", "M", "G", "T"};
	struct text out;
	int unit = 0;

	for (; bytes && bytes % 1024 == 0 && unit < 4; unit++)
		bytes /= 1024;
	snprintf(out.text, sizeof(out.text), "%" PRIu64 "%s", bytes, units[unit]);
	return out;
}
