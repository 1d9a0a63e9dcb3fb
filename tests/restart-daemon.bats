#!/usr/bin/env bats
# Restart in place of a server in the background: how it finds its program and its files again, and
# what it holds. Its log is not ours to read: that another file is executed shows the restart.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2103,SC2119,SC2153 # each test is a shell of its own

load lib/restart

@test "started by a relative path, through PATH, and through a symbolic link" {
	local how
	newer "$WORK/newer"
	mkdir v1 v2
	ln -s v1/server link
	for how in ./v1/server v1/../v1/server server link/server ./link; do
		cp "$ORIGINAL" v1/server
		ln -sfn v1/server link
		case $how in
		server) SERVER=$how PATH=$DIR/v1:$PATH daemonize -f mem ;;
		link/server) SERVER=server PATH=v1:$PATH daemonize -f mem ;;
		*) SERVER=$how daemonize -f mem ;;
		esac
		peer
		is "working directory" "$(readlink "/proc/$PID/cwd")" /
		cp "$WORK/newer" v2/server
		if [ "$how" = ./link ]; then
			ln -sfn v2/server link
		else
			mv -f v2/server v1/server
		fi
		kill -s HUP "$PID"
		if [ "$how" = ./link ]; then
			eventually runs v2/server
		else
			eventually runs v1/server
		fi
		served
		stop_daemon
		kill "$PEER_PID"
	done
}

@test "started by a relative path from a folder that is gone" {
	mkdir gone
	cd gone
	rmdir ../gone
	try ../../bin/original --version
	cd ..
	[ "$STATUS" = 0 ] || [ -s "$WORK/err" ] || no "it failed without a word"
}

@test "in the background: files, locks and socket stay as they are, and go at the end" {
	local before
	daemonize -f mem
	peer
	before=$(state; descriptors)
	restart_daemon
	restart_daemon
	is "what is there" "$(state; descriptors)" "$before"
	is "pidfile" "$(cat pid)" "$PID"
	SOCK=$DIR/other refused "mem is served by another server" -- -f mem
	SOCK=$DIR/other refused "$DIR/pid is held by another server, process $PID" -- -i pid -s "$SHM"
	refused "$SOCK belongs to a server that is running" "process $PID" -- -s "$SHM"
	is "what is there" "$(state; descriptors)" "$before"
	served
	stop_daemon
	[ -f mem ]
	start -f mem -i pid
	stop
}

# A file has the lock that QEMU's server looks for.
posix_locked() { # FILE
	is "lock of fcntl(2) on $1" "$(perl -e 'use Fcntl; open(my $f, "+<", $ARGV[0]) or die;
		my $lock = pack("s s l! l! i", F_WRLCK, 0, 0, 0, 0);
		print fcntl($f, F_SETLK, $lock) ? "free" : $!{EAGAIN} || $!{EACCES} ? "held" : "$!"' "$1")" held
}

# Another process is the server, as the pidfile says.
succeeded() { # PROCESS
	[ "$(cat pid)" != "$1" ] && alive "$(cat pid)"
}

@test "in the background: a program that dies as it takes over costs nobody anything" {
	local before
	daemonize -f mem -o log
	peer
	before=$PID
	before_original "if (\$purpose eq 'resume' && mkdir('$WORK/died')) { kill 'KILL', \$\$ }"
	kill -s HUP "$PID"
	eventually succeeded "$before"
	PID=$(cat pid)
	PIDS+=("$PID")
	eventually grep -q "$PROGRAM died when it took over, going on without a restart" log
	has log "process $before died, and its standby goes on with 1 node,"
	served
	# It tries that only when it is told to.
	hasnt log 'restarted in place'
	kill -s HUP "$PID"
	eventually grep -q 'restarted in place' log
	served
	stop_daemon
}

# The standby has the locks of fcntl(2) when the new program begins, and gives them up as it dies.
@test "in the background: the new program has all locks, also where the standby dies meanwhile" {
	local how code
	code='my $child = 0;
		if ($purpose eq "resume") {
			open(my $standby, "-|", "pgrep", "-f", "^standby of [^ ]*, process $$\$");
			$child = 0 + <$standby> or die;
			kill "KILL", $child;
		}
		for (1 .. 1000) {
			last if !$child;
			open(my $stat, "<", "/proc/$child/stat");
			last if <$stat> =~ /\) Z/;
			select(undef, undef, undef, 0.05);
		}'
	for how in retired dead; do
		daemonize -f mem
		peer
		if [ "$how" = dead ]; then
			before_original "$code"
		else
			before_original ''
		fi
		eventually standby_there
		kill -s HUP "$PID"
		eventually runs "$ORIGINAL"
		served
		posix_locked mem
		posix_locked pid
		eventually standby_there
		stop_daemon
		kill "$PEER_PID"
		replace "$ORIGINAL"
	done
}

@test "in the background as another user" {
	need_root
	need_tool setpriv
	WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
	chmod 777 "$DIR"
	daemonize -f mem
	peer
	restart_daemon
	restart_daemon
	is "owners" "$(stat -c %u sock pid mem | uniq)" "$NOBODY"
	is "user" "$(stat -c %u "/proc/$PID")" "$NOBODY"
	stop_daemon
	[ -f mem ]
}

@test "in the background it goes on logging to syslog" {
	need_strace
	daemonize -f mem
	peer
	trace -o "$WORK/trace" -e trace=connect,sendto,sendmsg
	restart_daemon
	trace_end
	# Either to a socket that is open, or to one that it looks for.
	grep -q '/dev/log\|restarted in place' "$WORK/trace" || no "no word to syslog" "$(cat "$WORK/trace")"
	stop_daemon
}

@test "relative paths, given at the start in all forms, are still right" {
	local args
	mkdir sub
	for args in '-f sub/mem -p sub/sock -i sub/pid' '-fsub/mem -psub/sock -isub/pid' \
		'--file=sub/mem --socket=sub/sock --pidfile=sub/pid' \
		'--file sub/mem --sock sub/sock --pid=sub/pid' '-Ldfsub/mem -dpsub/../sub/sock -vi sub/pid'; do
		# shellcheck disable=SC2086 # one word an argument
		try "$SERVER" -d $args
		is "status of: $args: $(cat "$WORK/err")" "$STATUS" 0
		PID=$(cat sub/pid)
		PIDS+=("$PID")
		SOCK=$DIR/sub/sock
		peer
		# In the second round the options come from a server that has restarted before.
		restart_daemon
		restart_daemon
		kill -s TERM "$PID"
		eventually ended "$PID"
		missing sub/sock sub/pid
		[ -f sub/mem ]
		kill "$PEER_PID"
	done
}
