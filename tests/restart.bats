#!/usr/bin/env bats
# Restart in place, seen from around the process: the program on disk, a supervisor, signals. What
# clients see of it is in restart.t.c, and what can fail in restart-faults.bats.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2103,SC2119,SC2153 # each test is a shell of its own

load lib/restart

# --- the program on disk

@test "a newer build takes over, an older one too" {
	start -f mem
	peer
	newer "$WORK/newer"
	replace "$WORK/newer"
	restart "$NEWER"
	replace "$ORIGINAL"
	restart "$VERSION"
	is "restarts" "$(times_logged "restarted in place")" 2
	stop
}

@test "memory without a name is kept: nodes of before and after share it" {
	local option
	mkdir folder
	for option in --anonymous --anonymous=folder; do
		start "$option"
		peer
		greeting "$SOCK" 4 "what the first has written" >/dev/null
		restart
		greeting "$SOCK" 4 >"$WORK/greeting"
		has "$WORK/greeting" '-1 fd 1048576'
		is "bytes that are written" "$(tr -d '\0' <"$(memory_of "$PEER_PID")" | wc -c)" 26
		peer
		is "the memory of a node that came later" "$(stat -L -c %d:%i "$(memory_of "$PEER_PID")")" \
			"$(stat -L -c %d:%i "$(memory_of "$PID")")"
		is "the same" "$(tr -d '\0' <"$(memory_of "$PEER_PID")")" "what the first has written"
		stop
	done
}

# The descriptor of memory without a name that a process has.
memory_of() { # PID
	local fd
	for fd in "/proc/$1/fd"/*; do
		case $(readlink "$fd") in
		*memfd:ivshmem* | "$DIR/folder/"*)
			echo "$fd"
			return
			;;
		esac
	done
}

# Builds the server from this source, changed by a line of Perl.
build() { # CODE [MAKE ARGUMENT...]
	need_tool make
	rm -rf "$WORK/source"
	mkdir "$WORK/source"
	cp -r "$SOURCE_DIR"/Makefile "$SOURCE_DIR"/*.[ch] "$SOURCE_DIR"/server "$WORK/source"
	perl -0777 -i -pe "($1) or die 'the source is another'" "$WORK/source/server/ledger.h"
	make -s -C "$WORK/source" "${@:2}" tm_ivshmem_server
}

@test "a newer build from source, and one that keeps another ledger" {
	start -f mem
	peer
	build 1 VERSION=99.0-rc1
	replace "$WORK/source/tm_ivshmem_server"
	restart 99.0-rc1
	restart 99.0-rc1
	build 's/(define LEDGER_LAYOUT +)3/${1}4/' VERSION=99.0-rc2
	replace "$WORK/source/tm_ivshmem_server"
	no_restart "no ledger of peers that this program can read" "cannot take over"
	replace "$ORIGINAL"
	restart "$VERSION"
	stop
}

@test "a file that cannot be executed is not" {
	start -f mem
	peer
	echo 'this is no program' >"$WORK/file"
	chmod 755 "$WORK/file"
	replace "$WORK/file"
	no_restart "cannot execute $PROGRAM" "Exec format error"
	: >"$WORK/file"
	replace "$WORK/file"
	no_restart "cannot execute $PROGRAM" "Exec format error"
	cp "$ORIGINAL" "$WORK/file"
	chmod 644 "$WORK/file"
	replace "$WORK/file"
	no_restart "cannot execute $PROGRAM" "Permission denied"
	printf '#!/nowhere/interpreter\n' >"$WORK/file"
	chmod 755 "$WORK/file"
	replace "$WORK/file"
	no_restart "cannot execute $PROGRAM" "No such file"
	head -c 1000 "$ORIGINAL" >"$WORK/file"
	replace "$WORK/file"
	no_restart "going on without a restart"
	head -c 20000 "$ORIGINAL" >"$WORK/file"
	replace "$WORK/file"
	no_restart "going on without a restart"
	rm "$PROGRAM"
	mkdir "$PROGRAM"
	no_restart "Permission denied"
	rmdir "$PROGRAM"
	mkfifo "$PROGRAM"
	no_restart "Permission denied"
	rm "$PROGRAM"
	ln -s "$PROGRAM" "$PROGRAM"
	no_restart "Too many levels"
	rm "$PROGRAM"
	no_restart "cannot execute $PROGRAM" "No such file"
	replace "$ORIGINAL"
	restart
	stop
}

@test "a build without its libraries or its loader does not take over" {
	start -f mem
	peer
	perl -0777 -pe 's/ld-linux/ld-1inux/g' "$ORIGINAL" >"$WORK/file"
	chmod 755 "$WORK/file"
	! cmp -s "$ORIGINAL" "$WORK/file" || skip "a program without a loader"
	replace "$WORK/file"
	no_restart "cannot execute $PROGRAM" "No such file"
	perl -0777 -pe 's/libc\.so\.6/libq.so.6/g' "$ORIGINAL" >"$WORK/file"
	replace "$WORK/file"
	no_restart "$PROGRAM cannot take over" "libq.so.6"
	replace "$ORIGINAL"
	restart
	stop
}

@test "a program that is still being written does not take over" {
	start -f mem
	peer
	replace "$ORIGINAL"
	exec 8>>"$PROGRAM"
	no_restart "cannot execute $PROGRAM" "Text file busy"
	exec 8>&-
	restart
	stop
}

@test "a program that is not this server does not take over" {
	local program
	start -f mem
	peer
	for program in /bin/true /bin/false; do
		cp "$program" "$WORK/file"
		replace "$WORK/file"
		no_restart "$PROGRAM cannot take over"
	done
	# The exit status of a program that can take over, but as a signal.
	for program in 'exit 0' 'exit 2' 'exit 85' 'exit 214' 'kill -KILL $$' 'kill -SEGV $$'; do
		printf '#!/bin/sh\n%s\n' "$program" >"$WORK/file"
		chmod 755 "$WORK/file"
		replace "$WORK/file"
		no_restart "$PROGRAM cannot take over"
	done
	# A server that knows nothing of restarts, and starts: it finds the socket in use.
	printf '#!/bin/sh\nunset TM_IVSHMEM_SERVER_STATE\nexec %s "$@"\n' "$ORIGINAL" >"$WORK/file"
	replace "$WORK/file"
	no_restart "$PROGRAM cannot take over"
	# One without our options.
	printf '#!/bin/sh\nexec %s --colour "$@"\n' "$ORIGINAL" >"$WORK/file"
	replace "$WORK/file"
	no_restart "$PROGRAM cannot take over" "--colour"
	replace "$ORIGINAL"
	restart
	stop
}

@test "a program that is replaced while it is tried: the next is tried as well" {
	start -f mem
	peer
	printf '#!/bin/sh\nexit 3\n' >"$WORK/fails"
	chmod 755 "$WORK/fails"
	before_original "if (\$purpose eq 'check') { rename('$WORK/fails', '$PROGRAM') or die }"
	no_restart "ended with status 3"
	newer "$WORK/newer"
	before_original "if (\$purpose eq 'check') { rename('$WORK/newer', '$PROGRAM') or die }"
	restart "$NEWER"
	before_original "if (\$purpose eq 'check') { unlink('$PROGRAM') or die }"
	no_restart "No such file"
	stop
}

# The server tries a program that hangs: $HUNG is its process.
hangs() {
	HUNG=$(pgrep -P "$PID") && perl_runs "$HUNG"
}

@test "a program that hangs is given up at the next signal, and at the end, whatever that is" {
	local first
	start -f mem
	peer
	printf '#!%s\nsleep 1000;\n' "$(command -v perl)" >"$WORK/file"
	chmod 755 "$WORK/file"
	replace "$WORK/file"
	kill -s HUP "$PID"
	eventually hangs
	PIDS+=("$HUNG")
	served
	first=$HUNG
	kill -s HUP "$PID"
	eventually ended "$first"
	eventually hangs
	PIDS+=("$HUNG")
	served
	replace "$ORIGINAL"
	restart
	eventually ended "$HUNG"
	replace "$WORK/file"
	kill -s HUP "$PID"
	eventually hangs
	PIDS+=("$HUNG")
	stop
	eventually ended "$HUNG"
	replace "$ORIGINAL"
	start -f mem
	replace "$WORK/file"
	kill -s HUP "$PID"
	eventually hangs
	PIDS+=("$HUNG")
	kill -s KILL "$PID"
	eventually ended "$HUNG"
}

# All that the program has started.
group_gone() {
	! pgrep -g "$1" >/dev/null
}

@test "a program that does not say that it can take over is killed, with all that it has started" {
	local started=$SECONDS
	start -f mem
	peer
	printf '#!/bin/sh\n(sleep 1000) &\nsleep 1000\n' >"$WORK/file"
	chmod 755 "$WORK/file"
	replace "$WORK/file"
	kill -s HUP "$PID"
	HUNG=
	tried() { HUNG=$(pgrep -P "$PID") && [ "$(pgrep -c -g "$HUNG")" -ge 3 ]; }
	eventually tried
	served
	eventually grep -q "$PROGRAM did not say within 10 s whether it can take over and has been killed" "$LOG"
	[ $((SECONDS - started)) -ge 9 ]
	eventually group_gone "$HUNG"
	eventually no_child
	is restarts "$(times_logged "restarted in place")" 0
	replace "$ORIGINAL"
	restart
	stop
}

@test "a program with other options than the nodes were served with" {
	start -f mem -n 1
	peer
	before_original 'push @ARGV, "-n2"'
	no_restart "the nodes have 1 vector," "$PROGRAM cannot take over"
	before_original 'push @ARGV, "-L"'
	no_restart "options say 1, -L" "$PROGRAM cannot take over"
	before_original 'push @ARGV, "-v"'
	restart
	stop
}

@test "a server that was started by a descriptor" {
	local how
	# An upgrade lies at the path of the program; of a file in memory there is no path.
	for how in file memory; do
		# shellcheck disable=SC2016
		WRAP=(perl -e 'require "sys/syscall.ph"; my $how = shift; my $fd;
			open(my $f, "<:raw", $ARGV[0]) or die;
			if ($how eq "memory") {
				$fd = syscall(319, my $name = "program", 0);
				open(my $m, ">&=", $fd) or die;
				binmode $m;
				local $/; print {$m} <$f>; $m->flush;
				$^F = 99; open($f, "<", "/proc/self/fd/$fd") or die; close $m;
			}
			# execveat(fd, "", argv, environment, AT_EMPTY_PATH)
			my @argv = map { "$_\0" } @ARGV; my @env = map { "$_=$ENV{$_}\0" } keys %ENV;
			my $argv = pack("p*x8", @argv); my $env = pack("p*x8", @env);
			syscall(322, fileno $f, my $empty = "", $argv, $env, 0x1000);
			die "execveat: $!"' "$how")
		start -f mem
		peer
		[ "$how" = memory ] || newer "$WORK/newer" && replace "$WORK/newer"
		if [ "$how" = file ]; then
			restart "$NEWER"
			replace "$ORIGINAL"
		fi
		restart
		restart
		stop
		kill "$PEER_PID"
	done
}

# --- what the server holds

@test "a socket or a pidfile that is no longer its own stays at the end" {
	start -f mem -i pid
	peer
	restart
	others_come() {
		rm sock pid
		echo mine >sock
		echo mine >pid
	}
	unseen others_come
	hup_until "restarted in place"
	stop
	is "sock" "$(cat sock)" mine
	is "pid" "$(cat pid)" mine
}

@test "-y goes on counting over restarts that are more frequent" {
	local i
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync)
	start -f mem -y 2
	WRAP=()
	for ((i = 0; i < 60; i++)); do
		hup_until "restarted in place"
		! grep -qs fdatasync "$WORK/trace" || break
		sleep 0.1
	done
	grep fdatasync "$WORK/trace"
	stop
}

@test "a supervisor is told" {
	supervise
	start -f mem
	peer
	restart
	rm "$PROGRAM"
	no_restart "No such file"
	stop
	supervised "READY=1" "RELOADING=1" "READY=1" "RELOADING=1" "READY=1" "STOPPING=1"
}

# Microseconds since the machine was started, as a supervisor counts them.
monotonic_us() {
	perl -MTime::HiRes=clock_gettime,CLOCK_MONOTONIC -e 'printf "%d\n", 1e6 * clock_gettime(CLOCK_MONOTONIC)'
}

# systemctl reload waits for word of the restart that came after its signal, and then of its end.
@test "a supervisor is told of the newest request, before it is tried, and of its end" {
	local before between
	supervise
	start -f mem
	peer
	# The first trial takes longer than the second.
	before_original "if (\$purpose eq 'check' && mkdir('$WORK/tried')) { sleep 30 }"
	before=$(monotonic_us)
	kill -s HUP "$PID"
	eventually test -d "$WORK/tried"
	supervised "READY=1" "RELOADING=1"
	between=$(monotonic_us)
	hup_until "restarted in place"
	served
	stop
	supervised "READY=1" "RELOADING=1" "RELOADING=1" "READY=1" "STOPPING=1"
	sed -n 's/^RELOADING=1 MONOTONIC_USEC=//p' "$WORK/notified" >"$WORK/times"
	is "in order" "$(printf '%s\n' "$before" "$(sed -n 1p "$WORK/times")" "$between" \
		"$(sed -n 2p "$WORK/times")" | sort -nc && echo yes)" yes
}

@test "a supervisor is told when a trial never ends" {
	supervise
	start -f mem
	peer
	before_original "if (\$purpose eq 'check') { sleep 30 }"
	kill -s HUP "$PID"
	eventually grep -q RELOADING=1 "$WORK/notified"
	supervised "READY=1" "RELOADING=1"
	eventually grep -q "did not say within 10 s" "$LOG"
	eventually notifications_are 3
	stop
	supervised "READY=1" "RELOADING=1" "READY=1" "STOPPING=1"
}

# --- signals

# The server, which has been told to, ends as it should.
ends() {
	local status=0
	eventually ended "$PID"
	wait "$PID" || status=$?
	is "status of the server" "$status" 0
}

@test "TERM at once after HUP ends the server" {
	local i
	for i in 1 2 3 4 5 6 7 8 9 10; do
		start -f mem
		kill -s HUP "$PID"
		[ $((i % 2)) = 0 ] || sleep "0.00$i"
		stop
		missing sock
	done
}

# A server in the middle of its restart, with one image gone and the next not there: until go_on.
start_restart() {
	rm -f "$WORK/go"
	replace "$ORIGINAL"
	start -f mem
	peer
	if [ -n "${1-}" ]; then
		"$1"
	fi
	before_original 'while ($purpose eq "resume" && ! -e "'"$WORK/go"'") { select(undef, undef, undef, 0.02) }'
	kill -s HUP "$PID"
	eventually perl_runs
}

go_on() {
	touch "$WORK/go"
}

@test "signals that come during a restart are not lost" {
	local signal
	start_restart
	kill -s USR1 "$PID"
	go_on
	eventually logged_more "joined so far" 0
	served
	stop
	start_restart
	kill -s HUP "$PID"
	go_on
	eventually logged_more "restarted in place" 1
	served
	stop
	for signal in TERM INT QUIT; do
		start_restart
		kill -s USR1 "$PID"
		kill -s "$signal" "$PID"
		go_on
		ends
		missing sock
		has "$LOG" "restarted in place" "ending" "joined so far"
	done
}

# So many sockets have the path of ours: the one that listens, and one for each client.
sockets_are() { # NUMBER
	[ "$(grep -c " $SOCK\$" /proc/net/unix)" = "$1" ]
}

@test "who comes or goes during a restart is served or missed" {
	start_restart peer
	kill "$PEER_PID"
	sockets_are 3
	perl -e "$PEER" "$SOCK" >"$WORK/late" 2>&1 3>&- &
	PIDS+=("$!")
	eventually sockets_are 4
	go_on
	eventually grep -q '^2 fd' "$WORK/late"
	eventually grep -q '^2 fd' "$WORK/peer.1"
	is "what the first heard" "$(cut -d ' ' -f 1,2 "$WORK/peer.1" | tr '\n' ' ')" \
		"0 0 -1 fd 0 fd 1 fd 1 2 fd "
	is "what the newcomer heard" "$(cut -d ' ' -f 1,2 "$WORK/late" | tr '\n' ' ')" \
		"0 2 -1 fd 0 fd 2 fd "
	stop
}

# A client that is not reading: for its greeting, a server that ends waits a moment.
mute_peer() {
	perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die;
		connect($s, pack_sockaddr_un($ARGV[0])) or die;
		sleep 1000' "$SOCK" 3>&- &
	PIDS+=("$!")
	eventually grep -q 'ID 0 joined' "$LOG"
}

@test "HUP is too late for a server that ends" {
	need_strace
	start -f mem -n 700
	mute_peer
	# It is stopped when it has begun to end, and removed its socket.
	trace -o "$WORK/trace" -e trace=unlinkat -e inject=unlinkat:signal=STOP:when=1
	kill -s TERM "$PID"
	eventually stopped
	has "$LOG" ending
	kill -s HUP "$PID"
	kill -s USR1 "$PID"
	kill -s CONT "$PID"
	ends
	hasnt "$LOG" "restarted in place" "going on without"
	missing sock
}

@test "a server that is to end while a program is tried ends" {
	local i
	for i in 1 2 3 4 5; do
		start -f mem -n 700
		mute_peer
		kill -s HUP "$PID"
		kill -s TERM "$PID"
		ends
		missing sock
	done
}
