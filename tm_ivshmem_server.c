/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tm_ivshmem_server: fabric-attached memory for QEMU nodes
 *
 * Theory of operation. The server owns one object of shared memory, a regular file, a POSIX shared
 * memory object or memory without a name, and one listening socket. Every QEMU process with an
 * ivshmem device that connects there becomes a peer: it gets an ID, the descriptor of the memory,
 * the eventfds of all other peers and its own; the others get its eventfds, and later word that it
 * left. Data and doorbells then flow between the nodes directly, the server sees neither.
 *
 * Nothing is queued for anybody. Peers stand in the order in which they joined, departures in the
 * order in which they left; a peer has a place in both, and what it is to be told next follows from
 * that (message_next). One round of the loop takes signals, notices who has gone, accepts a few
 * newcomers, and sends a share of what is owed: greetings first, since QEMU stands still in its
 * own, and news to all others when no greeting can go on, or some time later at most (peers_send).
 * So nobody waits for anybody, and one that does not read costs what any other costs.
 *
 * All that must outlive the process stands in the ledger, a memfd: upon SIGHUP the process executes
 * the program that is now on disk, which maps the ledger and goes on. However the process ends,
 * another can do that as well: under a supervisor such as systemd, which keeps descriptors for us,
 * a new one; else, in the background, a standby, which shares the table of descriptors.
 *
 * select looks at all its descriptors each time, so it has one that stands for the ends of all
 * peers, and else only those of peers whose sockets are full. Sockets must lie below FD_SETSIZE for
 * that, so eventfds are moved above it.
 *
 * This file is the program: start, loop, signals, the end. Each matter has a room of its own in
 * server/, whose header says what it is for; server/README.md is the map.
 *
 * The numbers of hazards in comments are those of the list of what breaks real clients, in
 * doc/compatibility.md under "What a server must never do".
 */
#define _GNU_SOURCE
#include "server/check.h"
#include "server/child.h"
#include "server/client.h"
#include "server/descriptor.h"
#include "server/file.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/mesh.h"
#include "server/options.h"
#include "server/passed.h"
#include "server/restart.h"
#include "server/server.h"
#include "server/standby.h"
#include "server/status.h"
#include "server/store.h"
#include "server/supervisor.h"
#include "server/takeover.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syslog.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STOP_POLL_MS 10   /* between looks at who has read everything, when the server ends */
#define GREETING_MS  1000 /* that greetings under way get when the server ends */

/*
 * Takes what has come of children that have ended. Others may be there that are not ours. What a
 * trial has left behind is killed while the child's number is still its own: once it has been
 * waited for, another process may get that.
 */
static void children_reap(struct server *s)
{
	for (;;) {
		siginfo_t child = {.si_pid = 0};
		bool tried;
		int status;

		if (TEMP_FAILURE_RETRY(waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT)) < 0 ||
		    !child.si_pid)
			return;
		tried = child.si_pid == s->restart.trial;
		if (tried)
			trial_kill(&s->restart);
		if (TEMP_FAILURE_RETRY(waitpid(child.si_pid, &status, WNOHANG)) <= 0)
			return;
		if (child.si_pid == s->ledger->standby)
			standby_ended(&s->standby, status);
		else if (child.si_pid == s->ledger->flusher)
			flush_ended(&s->store, status);
		else if (tried)
			trial_ended(&s->restart, status, !s->stop_at);
		else if (child.si_pid == s->listener.looker)
			look_ended(&s->listener, status);
	}
}

/* Blocks the signals that we act upon and gets them as a descriptor instead. */
static bool signals_open(struct server *s)
{
	static const int ours[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD};
	struct ledger *l = s->ledger;
	sigset_t set;
	int fd;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
		signal(ours[i], SIG_DFL); /* an ignored signal would never reach the descriptor */
		sigaddset(&set, ours[i]);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(l->signals, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return fail("cannot create a signalfd");
	l->signals = fd;
	return true;
}

/*
 * Starts to end: nobody can connect any more, who has connected is greeted, and the greetings under
 * way get a moment to be sent and read (hazard 3). Where a supervisor has made the socket, who
 * waits there is for the next server.
 */
static void server_stop(struct server *s, const char *why)
{
	if (s->stop_at && !s->handover)
		return;
	standby_end(&s->standby);
	s->handover = false;
	s->leave_waiting = !s->ledger->socket_ino;
	if (s->ledger->store < 0)
		say("%s: ending", why);
	else
		say("%s: ending, %s %s", why, s->opt.object,
		    s->opt.anonymous ? "disappears with its last user" : "stays");
	supervisor_stop(&s->supervisor);
	socket_remove(&s->listener);
	s->clients.ending = true;
	s->stop_at = now_ms() + GREETING_MS;
}

/*
 * Ends as well, but for a successor that gets from the supervisor what this one serves, and so
 * changes nothing, once all has been stored: that is waited for as long as anything comes of it.
 */
static void server_hand_over(struct server *s, const char *why)
{
	if (!supervised(&s->supervisor)) {
		server_stop(s, why);
	} else if (!s->stop_at) {
		say("%s: ending, a successor is to take over %zu node%s", why, s->mesh.count,
		    S(s->mesh.count));
		supervisor_stop(&s->supervisor);
		supervisor_doubt(&s->supervisor);
		s->clients.ending = s->leave_waiting = s->handover = true;
		s->stop_at = now_ms() + STORE_MS;
	}
}

static void signals_take(struct server *s)
{
	struct signalfd_siginfo info;

	while (read(s->ledger->signals, &info, sizeof(info)) == sizeof(info)) {
		switch (info.ssi_signo) {
		case SIGUSR1:
			socket_check(&s->clients);
			status_log(&s->status);
			store_report(&s->store);
			break;
		case SIGHUP:
			log_reopen();
			socket_check(&s->clients);
			if (!s->stop_at)
				trial_start(&s->restart);
			break;
		case SIGUSR2: server_hand_over(s, strsignal((int)info.ssi_signo)); break;
		case SIGCHLD: children_reap(s); break;
		default: server_stop(s, strsignal((int)info.ssi_signo));
		}
	}
}

/* Whether the server is to end, and what is under way has been done or has had its time. */
static bool server_stopped(const struct server *s)
{
	if (!s->stop_at)
		return false;
	if (s->handover)
		return !s->ledger->timers[TIMER_STORE] ||
		       (now_ms() >= s->stop_at && now_ms() >= s->supervisor.took_ms + STORE_MS);
	set_each (sock, &s->mesh.present)
		if (now_ms() < s->stop_at && !peer_has_read(&s->mesh, sock))
			return false;
	return true;
}

/*
 * Goes on in the place of the server that has died, whose standby this process was: all that was
 * open is open. Returns false if the server is to end.
 */
static bool server_succeed(struct server *s, fd_set *waiting)
{
	s->restart.trial = s->listener.looker = 0;
	s->ledger->timers[TIMER_TRIAL] = 0;
	status_begin(&s->status);
	flush_inherit(&s->store);
	peers_restore(&s->mesh);
	if (s->ledger->executing)
		descriptors_keep(&s->restart, false); /* as they were for that */
	clients_find(&s->clients, waiting);
	descriptors_sweep(&s->restart, waiting);
	s->reserve = (struct reserve){-1, -1};
	reserve_fill(&s->reserve);
	if (standby_despairs(&s->standby))
		return false;
	signals_open(s); /* the descriptor is there, whatever comes of that */
	standby_want(&s->standby);
	return true;
}

/* Takes the locks again, since the process, or its table of descriptors, is another by now. */
static void locks_inherit(const struct server *s)
{
	file_inherit(s->ledger->lock, s->opt.object);
	file_inherit(s->ledger->pidfile, s->opt.pidfile);
}

/*
 * Shows that this is the server now, which has a standby of its own already: who finds it by its
 * pidfile and kills it finds that. If the program on disk is another by now, that is tried, as at
 * HUP, unless the server died of that.
 */
static void server_appear(struct server *s, const fd_set *waiting)
{
	locks_inherit(s);
	pidfile_inherit(&s->pidfile);
	warn("process %d died, and its standby goes on with %zu node%s, after %" PRId64 " ms",
	     (int)s->standby.server, s->mesh.count, S(s->mesh.count),
	     now_ms() - s->standby.died_ms);
	set_each (sock, waiting)
		client_welcome(&s->clients, sock);
	if (s->ledger->executing) /* what has died of it once is not tried again */
		complain("%s died when it took over, going on without a restart",
			 s->restart.program);
	else if (!program_runs(&s->restart))
		trial_start(&s->restart);
}

/*
 * Starts a standby, where one is wanted; that goes on from here when the server has died. Returns
 * false if the server is to end.
 */
static bool server_guard(struct server *s)
{
	bool succeeded = false;
	fd_set waiting;

	while (standby_start(&s->standby)) {
		succeeded = true;
		if (!server_succeed(s, &waiting))
			return false;
	}
	if (succeeded)
		server_appear(s, &waiting);
	if (standby_retire(&s->standby))
		locks_inherit(s);
	s->ledger->executing = false; /* whoever was executed has a standby of its own now */
	return true;
}

/* Milliseconds until the next timer ends; -1: none is running. */
static int64_t timers_wait(const struct server *s)
{
	const int64_t *timers = s->ledger->timers;
	int64_t next = s->stop_at ? now_ms() + STOP_POLL_MS : INT64_MAX;

	if (s->supervisor.ping_ms && s->supervisor.ping_at < next)
		next = s->supervisor.ping_at;
	for (enum timer timer = 0; timer < TIMERS; timer++)
		if (timers[timer] && timers[timer] < next)
			next = timers[timer];
	if (s->status.text >= 0 && s->status.until_ms < next)
		next = s->status.until_ms;
	if (log_waits() && now_ms() + LOG_RETRY_MS < next)
		next = now_ms() + LOG_RETRY_MS;
	if (next == INT64_MAX)
		return -1;
	next -= now_ms();
	return next > 0 ? next : 0;
}

/* Waits until there is something to do, and at most so many milliseconds; -1: as long as it takes.
 */
static void server_wait(struct server *s, int64_t most, fd_set *readable, fd_set *writable)
{
	const struct ledger *l = s->ledger;
	bool takes = supervisor_takes(&s->supervisor);
	int64_t wait = timers_wait(s);
	struct timeval timeout;

	if (most >= 0 && (wait < 0 || most < wait))
		wait = most;
	timeout = (struct timeval){.tv_sec = wait / 1000, .tv_usec = wait % 1000 * 1000};

	FD_ZERO(readable);
	*writable = peers_waiting(&s->mesh);
	supervisor_watch(&s->supervisor, writable);
	FD_SET(l->signals, readable);
	FD_SET(l->ends, readable);
	if (l->watch >= 0)
		FD_SET(l->watch, readable);
	/* One that was retired is readable for ever, and nobody comes. */
	if (!l->timers[TIMER_ACCEPT] && !s->stop_at && l->socket_ino != SOCKET_NOWHERE && takes)
		FD_SET(l->listener, readable);
	if (select(FD_SETSIZE, readable, writable, NULL, wait < 0 ? NULL : &timeout) >= 0)
		return;
	fail("cannot wait for clients");
	FD_ZERO(readable);
	FD_ZERO(writable);
	nanosleep(&(struct timespec){.tv_nsec = SEND_RETRY_MS * 1000000L}, NULL);
}

/*
 * Serves until a signal ends it. What is sent counts in a ledger that a supervisor has: it may have
 * another one still, so it gets that first.
 */
static void serve(struct server *s)
{
	const struct ledger *l = s->ledger;
	fd_set readable, writable;
	bool clients = false;
	int64_t most;

	assert(l->signals >= 0 && l->listener >= 0);
	timer_start(s->ledger, TIMER_SOCKET, SOCKET_LOOK_MS);
	if (!s->ledger->kept[OWN_LEDGER])
		supervisor_update(&s->supervisor, false);
	for (;;) {
		if (!server_guard(s))
			return;
		/* First: that somebody has gone may only show here. */
		most = peers_send(&s->mesh, clients);
		flush_start(&s->store);
		supervisor_update(&s->supervisor, !s->restart.trial && !s->stop_at);
		supervisor_ping(&s->supervisor);
		status_settle(&s->status);
		if (server_stopped(s))
			return;
		if (log_waits())
			log_settle();
		server_wait(s, most, &readable, &writable);
		if (FD_ISSET(l->signals, &readable))
			signals_take(s);
		if (timer_ended(s->ledger, TIMER_TRIAL)) {
			complain("%s did not say within %d s whether it can take over and has been "
				 "killed, going on without a restart",
				 s->restart.program, TRIAL_MS / 1000);
			trial_kill(&s->restart);
		}
		supervisor_wake(&s->supervisor, &writable);
		peers_wake(&s->mesh, &writable); /* first: who has gone shows as writable, too */
		if (FD_ISSET(l->ends, &readable))
			peers_read(&s->mesh);
		if (l->watch >= 0 && FD_ISSET(l->watch, &readable))
			socket_changed(&s->clients);
		if (timer_ended(s->ledger, TIMER_SOCKET))
			socket_look(&s->clients);
		/* Whoever waits when the server ends is greeted: nobody can join them any more. */
		clients = (s->stop_at ? !s->leave_waiting
				      : timer_ended(s->ledger, TIMER_ACCEPT) ||
						FD_ISSET(l->listener, &readable)) &&
			  clients_accept(&s->clients, s->stop_at);
	}
}

/*
 * Forks, and goes on in the child; the parent waits until that is ready or has failed, and exits as
 * it should, so that whatever goes wrong is said before the command returns.
 */
static bool background_begin(struct server *s)
{
	int ends[2], status;
	sigset_t none;
	pid_t child;
	char ready;

	if (!s->opt.daemonize)
		return true;
	if (pipe2(ends, O_CLOEXEC) < 0)
		return fail("cannot create a pipe");
	child = fork();
	if (child < 0)
		return fail("cannot go to the background");
	if (child == 0) {
		close(ends[0]);
		s->parent = ends[1];
		return true;
	}
	log_forget();
	close(ends[1]);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (TEMP_FAILURE_RETRY(read(ends[0], &ready, 1)) == 1)
		_exit(EXIT_SUCCESS);
	if (waitpid(child, &status, 0) == child && WIFEXITED(status))
		_exit(WEXITSTATUS(status));
	complain("ended by %s before it was ready", strsignal(WTERMSIG(status)));
	_exit(EXIT_FAILURE);
}

/*
 * With -d, says that all is ready, leaves terminal and working directory, and lets the parent exit.
 * A parent that has gone meanwhile is no reason to end.
 */
static bool background_enter(struct server *s)
{
	if (!s->opt.daemonize)
		return true;
	status_announce(&s->status);
	setsid();
	if (chdir("/") < 0)
		fail("cannot change to /");
	log_leave_stderr(true);
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		dup2(s->reserve.null, fd);
	if (write(s->parent, "", 1) != 1 && errno != EPIPE)
		return fail("cannot tell the parent process that all is ready");
	close(s->parent);
	s->parent = -1;
	return true;
}

/* Ends all that others can see of us; keep says whether the start succeeded and the object stays.
 */
static void server_end(struct server *s, bool keep)
{
	/* What a start that fails has been passed is for the next one. */
	bool leave = !keep && s->ledger->kept[OWN_LISTENER];
	pid_t trial = s->restart.trial;
	int status;

	if (s->handover) {
		trial_kill(&s->restart);
		pidfile_remove(&s->pidfile, keep);
		return;
	}
	set_each (sock, &s->mesh.present)
		if (keep)
			close(sock);
		else
			client_refuse(&s->clients, sock, "the server could not start");
	if (!leave)
		socket_remove(&s->listener);
	if (!keep && !leave && s->ledger->listener >= 0)
		clients_turn_away(&s->clients, s->ledger->listener, "the server could not start");
	trial_kill(&s->restart);
	if (trial)
		child_wait(trial, s->ledger->signals,
			   &status); /* it may have our locks open still */
	if (keep)
		flush_finish(&s->store);
	store_leave(&s->store, keep);
	pidfile_remove(&s->pidfile, keep);
}

/* Starts to serve, once it is known what has been taken over. */
static bool server_begin(struct server *s, const struct passed *in)
{
	uint32_t group = s->ledger->group;
	size_t count = s->mesh.count; /* without those who wait at a socket that is replaced */

	supervisor_socket(&s->supervisor);
	unit_warn(&s->supervisor, &s->opt, in->listener < 0);
	standby_allow(&s->standby, s->opt.daemonize && !supervised(&s->supervisor) &&
					   !unit_started() /* systemd ends that, too */);
	if (!group_find(&s->opt, &s->ledger->group) || !signals_open(s) || !background_begin(s) ||
	    /* One that can be missing comes last: what ends the start anyway is said alone. */
	    !(s->opt.pidfile_optional || pidfile_claim(&s->pidfile)) ||
	    !(in->fits ? store_inherit(&s->store) : store_open_anew(s, in)) ||
	    !peers_fit(&s->mesh, s->parent < 0 ? 2 : 1) ||
	    !socket_open(&s->clients, in->listener, group) ||
	    !(pidfile_write(&s->pidfile) || pidfile_forgo(&s->pidfile)) ||
	    !(in->fits || store_settle(&s->store)))
		return false;
	stale_leave(&s->listener, true);
	if (!background_enter(s))
		return false;
	if (!in->fits)
		nodes_let_go(in);
	if (in->waiting >= 0)
		client_welcome(&s->clients, descriptor_lower(in->waiting));
	if (!s->opt.daemonize || !s->opt.log) /* else the file has it already */
		status_announce(&s->status);
	standby_want(&s->standby);
	if (in->fits)
		say("took over %zu node%s from a server that had ended, version " VERSION, count,
		    S(count));
	log_leave_stderr(false);
	return true;
}

/*
 * Starts, with what a supervisor has passed. If that fails, leaves everything as it was; also the
 * nodes that it has taken over, which are for the next try.
 */
static bool server_start(struct server *s, unsigned int passed)
{
	struct passed in;
	bool done;

	umask(umask(0) & 0077); /* what we make is our own, at least */
	descriptor_limit_raise();
	log_raise();
	done = passed_sort(&in, passed) && server_inherit(s, &in);
	if (done && !server_begin(s, &in)) {
		done = false;
		if (s->ledger->listener < 0) {
			s->ledger->listener = in.listener; /* who waits there is turned away */
			s->ledger->socket_ino = 0;
		}
		if (in.fits)
			pidfile_remove(&s->pidfile, false);
		else
			server_end(s, false);
		if (in.nodes && in.own[OWN_LOCK] >= 0 && /* as long as that is so */
		    flock(in.own[OWN_LOCK], LOCK_EX | LOCK_NB) < 0)
			fail("cannot lock the object of the nodes again");
		stale_leave(&s->listener, false);
	}
	if (!in.fits && in.own[OWN_LOCK] >= 0)
		close(in.own[OWN_LOCK]);
	free(in.parcels);
	return done;
}

/*
 * Goes on serving where the image before has left off. A trial has found that this fits, and there
 * is no way back: what fails for want of memory is tried again.
 */
static bool server_resume(struct server *s, int ledger)
{
	struct ledger *l;

	spare_close(&s->reserve); /* the ledger of another version is made anew */
	while (!(l = ledger_open(ledger, false))) {
		if (errno != ENOMEM && errno != EAGAIN && errno != EMFILE && errno != ENFILE)
			return false;
		sleep(1);
	}
	s->reserve.spare = spare_open();
	server_use(s, l);
	supervisor_open(&s->supervisor);
	peers_restore(&s->mesh);
	s->ledger->timers[TIMER_STORE] = 0; /* room may have come while nobody looked */
	supervisor_doubt(&s->supervisor);
	if (!descriptors_keep(&s->restart, false) || !signals_open(s))
		return fail("cannot take over");
	if (!s->ledger->socket_ino)
		socket_name(&s->listener);
	children_reap(s); /* the signal may be gone */
	if (s->ledger->standby == 0)
		locks_inherit(s); /* a standby may have died meanwhile, and given them up */
	if (!log_in_background() || supervised(&s->supervisor))
		standby_allow(&s->standby, false);
	standby_want(&s->standby);
	say("restarted in place, version " VERSION ", %zu node%s connected", s->mesh.count,
	    S(s->mesh.count));
	return true;
}

/* Whether this program can take over the ledger in this descriptor, with these options. */
static bool ledger_suits(int fd, const struct options *o)
{
	const struct ledger *l = ledger_open(fd, true);

	return l && ledger_fits(l, o);
}

/*
 * Opens the log file, if there is to be one, and is not open yet. It may be no other file of ours,
 * whatever links lead there: lines would stand in the memory that the nodes share. Returns false,
 * having said why.
 */
static bool log_start(const struct options *o)
{
	const char *const others[] = {o->anonymous ? NULL : o->object, o->socket, o->pidfile};
	int *file = log_file();
	struct stat st;
	bool inherited = *file >= 0, there = !inherited && o->log && stat(o->log, &st) == 0;

	if (!log_file_open(o->log)) {
		if (there && S_ISSOCK(st.st_mode))
			return complain("the log %s is a socket: give a file with -%c", o->log,
					typed('o'));
		return path_fail(errno == ENXIO && there && S_ISFIFO(st.st_mode)
					 ? "nobody reads the log"
					 : "cannot open the log",
				 o->log);
	}
	if (!o->log || inherited)
		return true;
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		if (!others[i] || !file_stands_at(*file, others[i]))
			continue;
		if (!there)
			file_remove(*file, others[i]);
		close(*file); /* this is not said there */
		*file = -1;
		return complain("%s is the log, too: choose another path with -%c", others[i],
				typed('o'));
	}
	return true;
}

int main(int argc, char **argv)
{
	static struct server s;
	const char *variable = getenv(LEDGER_VARIABLE);
	unsigned int passed = passed_count();
	int ledger = -1, in_background = 0, log = -1;
	char purpose[16] = "";
	size_t lost = 0;

	name_begin();
	standby_title(&s.standby, argv);
	if (variable && sscanf(variable, "%15s %d %d %zu %" SCNd64 " %d", purpose, &ledger,
			       &in_background, &lost, &s.supervisor.reloading_us, &log) < 3)
		variable = NULL;
	unsetenv(LEDGER_VARIABLE);
	if (!variable)
		close_range(STDERR_FILENO + 1 + passed, UINT_MAX, 0); /* what the caller had open */
	log_begin(in_background, log, !strcmp(purpose, "resume") ? lost : 0);
	server_connect(&s);
	s.parent = s.supervisor.sock = -1;
	status_begin(&s.status);
	s.restart.argv = argv;
	s.restart.program = program_path();
	if (!s.restart.program) {
		fail("cannot find the path of this program, which a restart needs: start it by an absolute path");
		return EXIT_FAILURE;
	}
	if (!variable)
		on_exit(supervisor_explain, &s.supervisor);
	options_parse(&s.opt, argc, argv);
	if (s.opt.check || s.opt.version)
		check_answer(&s.opt);
	s.reserve.null = spare_open();
	s.reserve.spare = s.reserve.null < 0 ? -1 : spare_open();
	if (!variable && s.reserve.spare < 0)
		return EXIT_FAILURE;
	/* A log that nobody reads, and a size beyond a limit, are errors. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	if (!log_start(&s.opt))
		return EXIT_FAILURE;
	if (variable && strcmp(purpose, "resume") != 0)
		return ledger_suits(ledger, &s.opt) ? CAN_TAKE_OVER : EXIT_FAILURE;
	if (variable ? !server_resume(&s, ledger) : !server_start(&s, passed))
		return EXIT_FAILURE;
	serve(&s);
	server_end(&s, true);
	return EXIT_SUCCESS;
}
