#!/usr/bin/env bats
# The server as a daemon: the background, the pidfile, syslog, the word to a supervisor, what signals
# make it say, and when it writes its file to disk.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2119,SC2153,SC2314 # each test is a shell of its own

load lib/common

# Prints what comes in on a datagram socket, a line each, for good. With a third argument: whether a
# client can connect there when the first datagram comes.
LISTEN='
	use strict; use warnings; use Socket;
	my ($at, $server) = @ARGV;
	$| = 1;
	my $name = $at; $name =~ s/^@/\0/;
	socket(my $s, PF_UNIX, SOCK_DGRAM, 0) or die "socket: $!\n";
	# Of an abstract name every byte counts: no padding.
	bind($s, pack("S a*", PF_UNIX, $name)) or die "bind: $!\n";
	chmod 0777, $at;
	print "listening\n";
	while (defined recv($s, my $data, 65536, 0)) {
		next if $data =~ /^FDSTORE/; # what is stored is looked at elsewhere
		$data =~ s/\n/ /g;
		print "$data\n";
		if (defined $server) {
			socket(my $c, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
			print "client: ", (connect($c, pack_sockaddr_un($server)) ? "connected" : "$!"), "\n";
			undef $server;
		}
	}
'

listen() { # PATH FILE [SERVER]
	: >"$2"
	perl -e "$LISTEN" "$1" "${@:3}" >"$2" 2>&1 3>&- &
	PIDS+=($!)
	eventually grep -q . "$2"
	has "$2" listening
}

# The server gets a /dev of its own, with a /dev/log to which we listen.
private_syslog() {
	need_namespace
	mkdir "$WORK/dev" "$WORK/dev/shm"
	: >"$WORK/dev/null"
	listen "$WORK/dev/log" "$WORK/syslog"
	WRAP+=(unshare -m sh -c 'mount --bind /dev/null "$0/null" && mount --bind /dev/shm "$0/shm" &&
		mount --rbind "$0" /dev && exec "$@"' "$WORK/dev")
}

# --- the background

@test "-d: when it returns, a client can connect at once" {
	local round
	for round in {1..20}; do
		daemonize -f store
		greeting "$SOCK" >"$WORK/greeting"
		is "the greeting in round $round" "$(head -n 2 "$WORK/greeting")" $'0\n0'
		stop_daemon
	done
}

@test "-d says what it serves before it returns, and on stdout nothing" {
	private_syslog
	daemonize -s "$SHM" -n 3
	is stdout "$(cat "$WORK/out")" ''
	has "$WORK/err" "$SHM" 'size 1M' "-chardev socket,path=$SOCK,id=fam" vectors=3
	is 'lines on stderr' "$(wc -l <"$WORK/err")" 2
	stop_daemon
	[ -e "/dev/shm/$SHM" ]
}

@test "-d: failures are said on stderr, with the status that they have in the foreground" {
	misuse "'-x'" -- -d -x
	misuse -m/--size -- -d -m 3
	refused "$DIR/missing/store" 'No such file' -- -d -f missing/store
	refused /dev/null -- -d -f /dev/null
	refused "$DIR/missing/sock" 'No such file' -- --daemonize -f store -p missing/sock
	refused "$DIR/missing/pid" 'No such file' -- -d -f store -i missing/pid
	misuse "$DIR/store" -- -d -f store -m 1 -p store
	head -c 4M /dev/zero >store
	refused "$DIR/store" 4M 8M -- -d -f store -m 8M -i pid
	refused "$DIR" -- -d -f store -t -m 1M -i pid -p .
}

@test "-d: failures are said also where the parent ignores signals of its children" {
	WRAP=(perl -e '$SIG{$_} = "IGNORE" for qw(CHLD PIPE HUP); exec @ARGV')
	refused "$DIR/missing/store" 'No such file' -- -d -f missing/store
	daemonize -f store -y 1
	greeting "$SOCK" >/dev/null
	stop_daemon
}

@test "a daemon has left the folder, the terminal and the session behind" {
	need_tool script
	local stat
	"$SERVER" -p "$SOCK" -d -i pid -f store 2>"$WORK/err" 3>&- # not under a time limit: in our session
	PID=$(cat pid)
	PIDS+=("$PID")
	is 'working directory' "$(readlink "/proc/$PID/cwd")" /
	is 'descriptors 0 to 2' "$(readlink "/proc/$PID/fd/"{0,1,2} | sort -u)" /dev/null
	stat=$(sed 's/.*) //' "/proc/$PID/stat")
	is session "$(cut -d' ' -f4 <<<"$stat")" "$PID"
	[ "$(cut -d' ' -f2 <<<"$stat")" != $$ ]
	is 'terminal' "$(cut -d' ' -f5 <<<"$stat")" 0
	stop_daemon
	# On a terminal, which then closes.
	script -qefc "exec '$SERVER' -p '$SOCK' -d -i '$DIR/pid' -f store" /dev/null >"$WORK/err" 2>&1 3>&- </dev/null
	PID=$(cat pid)
	PIDS+=("$PID")
	is 'terminal' "$(sed 's/.*) //' "/proc/$PID/stat" | cut -d' ' -f5)" 0
	greeting "$SOCK" >/dev/null
	stop_daemon
}

@test "-d keeps no pipe open: who reads what it says comes to an end" {
	"$SERVER" -p "$SOCK" -d -i pid -f store 2>&1 3>&- | timeout 60 cat >"$WORK/err"
	PID=$(cat pid)
	PIDS+=("$PID")
	has "$WORK/err" 'connect a node:'
	stop_daemon
}

@test "what the caller has open stays its own, and its signal mask" {
	local number
	exec {number}>"$WORK/lock"
	flock "$number"
	"$SERVER" -p "$SOCK" -d -i pid -f store 2>/dev/null 3>&-
	PID=$(cat pid)
	PIDS+=("$PID")
	exec {number}>&-
	flock -n "$WORK/lock" true # nobody holds it any more
	greeting "$SOCK" >/dev/null
	stop_daemon
	# The same with all signals blocked: those that end it reach it nevertheless.
	perl -MPOSIX -e 'sigprocmask(SIG_BLOCK, POSIX::SigSet->new(1 .. 31)); exec @ARGV' \
		"$SERVER" -p "$SOCK" -d -i pid -f store -y 1 2>/dev/null 3>&-
	PID=$(cat pid)
	PIDS+=("$PID")
	greeting "$SOCK" >/dev/null
	stop_daemon
}

# Starts a server in the background whose parent is killed while the child, $CHILD, makes a system call.
orphan() { # CALL ARGUMENT...
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e "trace=$1" "--inject=$1:$HELD:when=1")
	launch -d -i pid -f store "${@:2}"
	eventually grep -qs "$1" "$WORK/trace"
	CHILD=$(awk -v call="$1" 'index($0, call) { print $1; exit }' "$WORK/trace")
	PIDS+=("$CHILD")
	kill -KILL "$PID"
	wait "$PID" || true
	let_go "$CHILD"
}

@test "-d whose parent is killed in the middle: it serves, or nothing is left" {
	orphan fallocate -a -m 256M
	decided() {
		! alive "$CHILD" || { [ -S "$SOCK" ] && greeting "$SOCK" 1 >/dev/null 2>&1; }
	}
	eventually decided
	if [ -e pid ] && alive "$(cat pid)"; then
		PID=$(cat pid)
		PIDS+=("$PID")
		greeting "$SOCK" >/dev/null
		stop_daemon
	else
		is 'what is left' "$(ls)" ''
	fi
}

@test "a log that nobody reads any more does not end the server" {
	mkfifo "$WORK/pipe"
	"$SERVER" -p "$SOCK" -f store 2>"$WORK/pipe" 3>&- &
	PID=$!
	PIDS+=("$PID")
	head -n 2 "$WORK/pipe" >"$WORK/said"
	has "$WORK/said" 'connect a node:'
	greeting "$SOCK" >/dev/null
	greeting "$SOCK" >/dev/null
	alive "$PID"
	stop
	missing "$SOCK"
}

# Starts the server with its log in a pipe, on a terminal that has been stopped (Ctrl-S) or in a
# socket, from which nobody reads until read_log is called; then $WORK/said has what was.
READER='
import os, pty, socket, subprocess, sys, termios, time
kind, work, *command = sys.argv[1:]
if kind == "pipe":
	ours, theirs = os.pipe()
elif kind == "terminal":
	ours, theirs = pty.openpty()
	termios.tcflow(theirs, termios.TCOOFF)
else:
	ours, theirs = (end.detach() for end in socket.socketpair())
server = subprocess.Popen(command, stderr=theirs)
open(work + "/server", "w").write(str(server.pid))
while not os.path.exists(work + "/go"):
	time.sleep(0.05)
if kind == "terminal" and server.poll() is None:
	termios.tcflow(theirs, termios.TCOON)
os.close(theirs)
cut = b""
with open(work + "/said", "wb", 0) as said:
	while True:
		try:
			data = os.read(ours, 65536)
		except OSError:
			break
		if not data:
			break
		whole, newline, cut = (cut + data).rpartition(b"\n") # nobody sees half of a line
		said.write((whole + newline).replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
	said.write(cut)
sys.exit(server.wait())
'

start_unread() { # KIND ARGUMENT...
	need_tool python3
	rm -f "$WORK/server" "$WORK/go" "$WORK/said"
	python3 -c "$READER" "$1" "$WORK" "${WRAP[@]}" "$SERVER" -p "$SOCK" "${@:2}" 3>&- &
	READER_PID=$!
	PIDS+=("$READER_PID")
	eventually test -s "$WORK/server"
	PID=$(cat "$WORK/server")
	PIDS+=("$PID")
	eventually listens_at "$SOCK"
}

read_log() {
	: >"$WORK/go"
}

lines_said() { # PATTERN
	grep -c "$1" "$WORK/said" || true
}

# A node comes and goes, which are so many lines with -v -n 512.
LINES_FOR_NODE=$((1 + 515 + 1))
node_comes() {
	greeting "$SOCK" 515 >"$WORK/greeting"
	is 'messages' "$(wc -l <"$WORK/greeting")" 515
}

@test "a log that nobody reads for a while delays nobody, and says how many lines are missing" {
	local kind i dropped
	for kind in pipe terminal socket pipe-of-another; do
		if [ "$kind" = pipe-of-another ]; then # which may not be opened once more
			need_root
			need_tool setpriv
			chown "$NOBODY" "$DIR"
			cp "$SERVER" "$WORK/tm_ivshmem_server"
			SERVER=$WORK/tm_ivshmem_server
			WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
			rm store
		fi
		start_unread "${kind%-of*}" -v -n 512 -f store -a -m 64M
		for i in {1..8}; do node_comes; done
		all_left() { [ "$(find "/proc/$PID/fd" | wc -l)" -lt 200 ]; }
		eventually all_left
		read_log
		eventually grep -q 'lines dropped here' "$WORK/said"
		dropped=$(sed -n 's/^tm_ivshmem_server: lines dropped here, since nobody read this log: //p' "$WORK/said")
		[ "$dropped" -gt 100 ]
		is "lines of a $kind" $(($(lines_said '^tm_ivshmem_server: .*[a-z0-9]$') + dropped - \
			$(lines_said 'reserving\|lines dropped'))) $((2 + 8 * LINES_FOR_NODE))
		is 'the first' "$(grep -v reserving "$WORK/said" | head -n 1)" \
			"tm_ivshmem_server: serving $DIR/store, size 64M, vectors 512, socket $SOCK"
		is 'lines that are none' "$(grep -vc '^tm_ivshmem_server: ' "$WORK/said")" 0
		greeting "$SOCK" 1 >/dev/null
		left_last() { tail -n 1 "$WORK/said" | grep -q 'ID 0 left'; }
		eventually left_last
		kill "$PID"
		wait "$READER_PID"
		missing "$SOCK"
	done
}

@test "a log that nobody reads any more keeps no server from ending, nor from a restart" {
	local kind lines
	for kind in pipe terminal socket; do
		start_unread "$kind" -v -n 512 -f store
		for _ in {1..8}; do node_comes; done
		kill -HUP "$PID"
		peer
		kill "$PID"
		eventually ended_or_zombie "$PID"
		read_log
		wait "$READER_PID"
		missing "$SOCK"
	done
	# What had no room before the restart is counted after it.
	start_unread pipe -v -n 512 -f store
	for _ in {1..8}; do node_comes; done
	kill -HUP "$PID"
	restarted() { tr '\0' ' ' <"/proc/$PID/cmdline" | grep -qF "$DIR/store"; }
	eventually restarted
	read_log
	eventually grep -q 'restarted in place' "$WORK/said"
	lines=$(sed -n 's/^tm_ivshmem_server: lines dropped here, since nobody read this log: //p' "$WORK/said")
	is lines $(($(lines_said '^tm_ivshmem_server: .*[a-z0-9]$') - $(lines_said 'dropped here\|restarted') + lines)) \
		$((2 + 8 * LINES_FOR_NODE))
	kill "$PID"
	wait "$READER_PID"
}

ended_or_zombie() { # PID
	ended "$1" || grep -q '^State:.Z' "/proc/$1/status"
}

# --- names

@test "whatever the program is called, it says what it has to say" {
	local name text
	for name in "$(printf 'n%.0s' {1..254})" "$(printf 'n%.0s' {1..255})" "$(printf 'n%.0s' {1..9000})" \
		"/$(printf 'n%.0s' {1..9000})" ''; do
		STATUS=0
		(exec -a "$name" "$SERVER" -m 3G) >"$WORK/out" 2>"$WORK/err" 3>&- || STATUS=$?
		is "status as ${#name} bytes" "$STATUS" 2
		said_lines 1 "${#name} bytes"
		has "$WORK/err" "'3G': not a power of two" 2G 4G --help
		: >"$LOG"
		(exec -a "$name" "$SERVER" -p "$SOCK" -f store) >"$LOG" 2>&1 3>&- &
		PID=$!
		PIDS+=("$PID")
		ready
		greeting "$SOCK" >/dev/null
		eventually grep -q 'ID 0 left' "$LOG"
		kill -HUP "$PID"
		eventually grep -q 'restarted in place' "$LOG"
		has "$LOG" "$DIR/store" 'ID 0 joined'
		stop
	done
	is 'who has no name' "$(grep -vc '^tm_ivshmem_server: ' "$LOG")" 0
}

@test "a program that was started without a single word" {
	need_namespace
	mkdir tmp shm
	cp "$SERVER" tmp/tm_ivshmem_server
	unshare -m sh -c 'mount --bind shm /dev/shm && mount --bind tmp /tmp && exec perl -e "$1"' sh '
		require "sys/syscall.ph";
		my ($program, $nothing) = ("/tmp/tm_ivshmem_server", pack("Q", 0));
		syscall(&SYS_execve, $program, $nothing, $nothing);
		die "execve: $!\n"' >"$LOG" 2>&1 3>&- &
	PID=$!
	PIDS+=("$PID")
	ready
	has "$LOG" 'tm_ivshmem_server: serving /dev/shm/ivshmem'
	greeting tmp/ivshmem_socket >/dev/null
	kill -HUP "$PID"
	eventually grep -q 'tm_ivshmem_server: restarted in place' "$LOG"
	stop
}

@test "what a process or a path is called cannot make a line say something else" {
	local name shown bytes long
	need_tool python3
	gone() { [ "$(grep -c ' joined: ' "$LOG")" = "$(grep -c ' left: ' "$LOG")" ]; }
	start -f store
	while IFS='|' read -r name shown; do
		python3 -c '
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, eval("b\"" + sys.argv[1] + "\""), 0, 0, 0)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[2])
s.recv(8)' "$name" "$SOCK" 3>&-
		eventually grep -qF "($shown), uid " "$LOG"
		eventually gone
	done <<-'END'
		x), uid 0 (y|x?, uid 0 ?y
		\x9b31mred|?31mred
		\xc2\x9b1m|??1m
		a\nb|a?b
		\xc3\xa4|??
		CPU 0/KVM|CPU 0/KVM
	END
	is 'lines of another form' \
		"$(grep joined "$LOG" | grep -vcE '^tm_ivshmem_server: ID 0 joined: process [0-9]+ \([^()]+\), uid 0$')" 0
	is 'bytes that are no text' "$(LC_ALL=C grep -c '[^ -~]' "$LOG")" 0
	stop
	# A path in UTF-8 stays as it is; what is none, and what controls a terminal, does not.
	for bytes in 'Gedächtnis-記憶-🧠:Gedächtnis-記憶-🧠' $'a\xc2\x9bm:a??m' $'a\x9b:a?' $'a\xc3:a?' $'\xc0\xaf:??' \
		$'\xe0\x80\xaf:???' $'\xed\xa0\x80:???' $'\xf4\x90\x80\x80:????' $'\xff\xe2\x82:???' $'\xc2\xa0:\xc2\xa0'; do
		serves "serving $DIR/${bytes#*:}, size 1M" -- -f "$DIR/${bytes%:*}"
	done
	# The remedy stands at the end of a line, which is cut in its middle.
	long=$(printf 'n%.0s' {1..249})
	long=$(printf "/$long%.0s" {1..16})
	long=${long:0:$((4080 - ${#DIR}))}
	mkdir -p "$DIR$long"
	echo something >"$DIR$long/store"
	truncate -s 1M "$DIR$long/store"
	try "$SERVER" -p "$SOCK" -f "$DIR$long/store" -m 4M
	is status "$STATUS" 1
	has "$WORK/err" "$DIR" ... 'add -t to enlarge it'
	[ "$(wc -c <"$WORK/err")" -le 4096 ]
}

# --- the pidfile

@test "the pidfile: the process ID, locked while it lives, gone at the end" {
	need_tool flock
	local signal
	for signal in TERM INT QUIT; do
		start -f store -i pid
		is 'the pidfile' "$(cat pid)" "$PID"
		is 'its mode' "$(stat -c %a pid)" 644
		run -1 flock -n pid true
		stop "$signal"
		missing pid
	done
	daemonize -f store
	is 'bytes of the pidfile' "$(bytes_of pid)" $((${#PID} + 1))
	tr '\0' ' ' <"/proc/$PID/cmdline" | grep -qF "$SOCK"
	run -1 flock -n pid true
	stop_daemon
}

bytes_of() {
	stat -c %s "$1"
}

@test "a pidfile that is taken: its holder is named, nothing happens to it" {
	local first
	start -f store --pidfile=pid
	first=$PID
	refused "$DIR/pid" "$first" -i -- -s "$SHM" -i pid -p other
	refused "$DIR/pid" "$first" -- -d -f new -i pid -p other
	ln pid same
	refused "$DIR/same" "$first" -- -d -f new -i same -p other
	stop
	missing pid
}

@test "a pidfile of a process that is gone is taken over" {
	local text
	start -f store -i pid
	kill -KILL "$PID"
	wait "$PID" || true
	start -f store -i pid
	is 'the pidfile' "$(cat pid)" "$PID"
	stop
	missing pid
	# Whatever became of the number. An empty file will do as well.
	for text in 1 999999999 $$ ''; do
		printf '%s' "${text:+$text$'\n'}" >pid
		start -f store -i pid
		is 'the pidfile' "$(cat pid)" "$PID"
		stop
		missing pid
	done
}

@test "a start that fails leaves a stale pidfile as it was" {
	local before
	echo 999999999 >pid
	head -c 1M /dev/zero >store
	refused "$DIR/store" -- -f store -i pid -m 4M
	refused "$DIR/missing" -- -f store -i pid -p missing/sock
	refused "$DIR/store" -- -f new -i pid -p store
	is 'the pidfile' "$(cat pid)" 999999999
	# Up to the last step: the shrinking of the object.
	need_strace
	truncate -s 4M store
	echo 1 >pid
	WRAP=(strace -D -o /dev/null -e trace=ftruncate --inject=ftruncate:error=EIO)
	before=$(state)
	try "${WRAP[@]}" "$SERVER" -p "$SOCK" -f store -t -m 1M -i pid
	is status "$STATUS" 1
	has "$WORK/err" 'Input/output error'
	grep -qxE '[0-9]+' <(head -n 1 pid) # nothing can be cut here
	is 'everything but the pidfile' "$(state | grep -v ' pid$\|/pid$\|/pid ')" "$(grep -v ' pid$\|/pid$\|/pid ' <<<"$before")"
	missing "$SOCK"
	# Where the pidfile can be cut, it is as it was; also where it cannot be written.
	for text in 1 4194303; do
		echo "$text" >pid
		WRAP=(strace -D -o /dev/null -P "$DIR/store" -e trace=ftruncate --inject=ftruncate:error=EIO)
		refused "cannot shrink $DIR/store" -- -f store -t -m 1M -i pid
		WRAP=(strace -D -o /dev/null -e trace=pwrite64 --inject=pwrite64:error=ENOSPC:when=1)
		refused "cannot write pidfile $DIR/pid" -- -f store -i pid
	done
}

@test "a pidfile that was being written when its server died is one" {
	printf '77\n\n\n\n' >pid
	start -f store -i pid
	is 'the pidfile' "$(cat pid)" "$PID"
	stop
	missing pid
}

@test "a file with anything else in it is no pidfile: refused, and untouched" {
	local text
	for text in hello '1 2' -5 12x $'1\n2' $'\n\n' ' 7' "$(printf '1%.0s' {1..31})x" \
		"$(printf '1%.0s' {1..40})" "$(printf '1%.0s' {1..5000})"; do
		printf '%s\n' "$text" >file
		refused "$DIR/file" pidfile -i -- -f store -i file
	done
	# Exactly as many digits as a buffer may have.
	for text in {15..17} {31..33} {63..65}; do
		printf "%0${text}d" 1 >file
		refused "$DIR/file" pidfile -- -f store -i file
	done
	head -c 100000 /dev/urandom >file
	refused "$DIR/file" pidfile -- -f store -i file
	echo >file
	refused "$DIR/file" pidfile -- -f store -i file
	printf '\0\0\0\0\0\0' >file
	refused "$DIR/file" pidfile -- -f store -i file
}

@test "what cannot be a pidfile" {
	mkdir folder
	mkfifo fifo
	ln -s nothing dangling
	refused "$DIR/folder" -- -f store -i folder
	refused "$DIR/fifo" -- -f store -i fifo
	refused /dev/null -- -f store -i /dev/null
	refused "$DIR/dangling" 'not a regular file' -- -f store -i dangling
	refused "$DIR/missing/pid" 'No such file' -- -f store -i missing/pid
	refused "$DIR/folder/" -- -f store -i folder/
	# The socket cannot be it; neither can the object, by whatever name.
	ln -s both linked
	refused "$DIR/linked" -- -f linked -i both
	SOCK=$DIR/both misuse "$DIR/both" -- -f store -i both
	need_root
	need_tool setpriv
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	SERVER=$WORK/tm_ivshmem_server
	chown "$NOBODY" "$DIR"
	echo 1 >roots
	WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
	refused "$DIR/roots" 'Permission denied' -- -f store -i roots
	refused "$DIR/folder/pid" 'Permission denied' -- -f store -i folder/pid
	refused "$DIR/folder/pid" 'Permission denied' -- -d -f store -i folder/pid
}

@test "a full file system: no pidfile, no start" {
	need_root
	mkdir small
	mount -t tmpfs -o size=64K tmpfs small || skip "no tmpfs can be mounted here"
	head -c 1M /dev/zero >small/filler 2>/dev/null || true
	refused "$DIR/small/pid" 'No space left on device' -- -s "$SHM" -i small/pid
	refused "$DIR/small/pid" 'No space left on device' -- -d -s "$SHM" -i small/pid
}

@test "at the end the pidfile is removed only if it is still ours" {
	start -f store -i pid
	rm pid
	echo 4711 >pid
	stop
	is 'the pidfile' "$(cat pid)" 4711
	rm pid
	start -f store -i pid
	rm pid
	stop
	hasnt "$LOG" 'cannot remove'
}

@test "servers started at the same moment with one pidfile: exactly one lives" {
	local round i
	for round in {1..10}; do
		rm -f "$WORK"/log?
		for i in 1 2 3; do
			"$SERVER" -p "sock$i" -s "$SHM-$i" -i pid >"$WORK/log$i" 2>&1 3>&- &
			PIDS+=($!)
		done
		eventually at_most_one_alive "${PIDS[@]: -3}"
		eventually grep -q 'connect a node:' "$WORK"/log?
		is "servers ready in round $round" "$(cat "$WORK"/log? | grep -c 'connect a node:')" 1
		alive "$(cat pid)"
		kill "$(cat pid)"
		wait
		missing pid
	done
}

# --- the standby: what becomes of nodes is in standby.t.c

@test "what the log says of the standby" {
	local deaths now given_up began=()
	private_syslog
	daemonize -f store
	peer
	eventually standby_there
	kill -KILL "$STANDBY"
	eventually grep -q "tm_ivshmem_server\[$PID\]: the standby, process $STANDBY, ended with signal 9: starting another in a second" \
		"$WORK/syslog"
	eventually standby_there
	# Until five of them have died within ten seconds, be it after some more on a slow machine.
	given_up="<27>.*tm_ivshmem_server\[.*\]: the server has died 5 times in 10 s and is given up"
	goes_on_or_is_given_up() {
		grep -qE "tm_ivshmem_server\[$STANDBY\]: process $PID died, and its standby goes on with 1 node, after [0-9]+ ms$" \
			"$WORK/syslog" || grep -q "$given_up" "$WORK/syslog"
	}
	for ((deaths = 1; deaths <= 50; deaths++)); do
		began[deaths]=$(date +%s%N)
		kill -KILL "$PID"
		PIDS+=("$STANDBY")
		eventually goes_on_or_is_given_up
		! grep -q "$given_up" "$WORK/syslog" || break
		now=$(date +%s%N)
		[ "$deaths" -lt 5 ] || [ $((now - began[deaths - 4])) -gt 10000000000 ] ||
			no "not given up, $deaths deaths after $((now - began[deaths - 4])) ns"
		PID=$STANDBY
		eventually grep -qx "$PID" pid
		eventually standby_there
	done
	[ "$deaths" -ge 5 ] || no "given up after $deaths deaths"
	grep -q "tm_ivshmem_server\[$STANDBY\]: the server has died" "$WORK/syslog"
	eventually ended "$STANDBY"
	missing "$SOCK" pid
}

@test "who names the server means its standby as well, and ps tells them apart" {
	need_tool killall pgrep
	local name
	ln -s "$SERVER" "$WORK/ivshmem-server"
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	for name in tm_ivshmem_server ivshmem-server; do
		SERVER=$WORK/$name
		if [ "$name" = ivshmem-server ]; then
			try "$SERVER" -S "$SOCK" -p "$DIR/pid" -M "$SHM"
			PID=$(cat pid)
			PIDS+=("$PID")
		else
			daemonize -f store
		fi
		eventually standby_there
		# Nothing is sent: who would be killed?
		killall -0 -v "$name" >"$WORK/killall" 2>&1 || true
		has "$WORK/killall" "($PID)" "($STANDBY)"
		pgrep -x "${name:0:15}" >"$WORK/pgrep"
		grep -qx "$PID" "$WORK/pgrep"
		grep -qx "$STANDBY" "$WORK/pgrep"
		is 'what ps says' "$(ps -o args= -p "$STANDBY")" "standby of $name, process $PID"
		kill -STOP "$PID" # else it might start another standby
		kill -KILL "$STANDBY" "$PID"
		eventually ended "$PID"
		eventually ended "$STANDBY"
		rm -f pid
	done
}

@test "where systemd waits for a process in the background, that one has no standby" {
	WRAP=(sh -c 'SYSTEMD_EXEC_PID=$$ exec "$@"' sh)
	daemonize -A
	greeting "$SOCK" >/dev/null # by then it would have one
	is 'its children' "$(pgrep -P "$PID")" ''
	stop_daemon
	WRAP=(env SYSTEMD_EXEC_PID=1)
	daemonize -A
	eventually standby_there
	stop_daemon
}

# --- syslog

@test "in the background it logs to syslog, with its name and pid" {
	private_syslog
	daemonize -s "$SHM"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$WORK/syslog"
	kill -USR1 "$PID"
	eventually grep -q 'joined so far' "$WORK/syslog"
	stop_daemon
	eventually grep -q ' ending' "$WORK/syslog"
	has "$WORK/syslog" "tm_ivshmem_server[$PID]: serving" "tm_ivshmem_server[$PID]: connect a node:" \
		"tm_ivshmem_server[$PID]: ID 0 joined" "tm_ivshmem_server[$PID]: ID 0 left"
	# The facility is daemon, the level info: 3 * 8 + 6.
	is 'lines of another kind' "$(grep -v '^<30>\|^listening$' "$WORK/syslog")" ''
}

@test "failures of a daemon reach syslog as errors" {
	private_syslog
	need_strace
	WRAP+=(strace -D -f -o /dev/null -e trace=fdatasync --inject=fdatasync:error=EIO)
	daemonize -f store
	greeting "$SOCK" >/dev/null
	eventually grep -q 'Input/output error' "$WORK/syslog"
	grep "tm_ivshmem_server\[$PID\]: cannot flush $DIR/store.*Input/output error" "$WORK/syslog" | grep -q '^<27>'
	kill "$PID"
	eventually ended "$PID"
}

@test "a daemon whose syslog comes and goes serves on" {
	private_syslog
	kill "${PIDS[0]}"
	wait "${PIDS[0]}" 2>/dev/null || true
	daemonize -s "$SHM"
	greeting "$SOCK" >/dev/null
	rm "$WORK/dev/log"
	greeting "$SOCK" >/dev/null
	listen "$WORK/dev/log" "$WORK/syslog"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID [0-9]* joined' "$WORK/syslog"
	stop_daemon
}

@test "a system's log that has stopped delays nobody, and misses nothing for a while" {
	local i listener
	private_syslog
	listener=${PIDS[0]}
	kill -STOP "$listener"
	daemonize -s "$SHM"
	greetings 30
	kill -CONT "$listener"
	all_there() { [ "$(grep -c 'ID [0-9]* left' "$WORK/syslog")" = 30 ]; }
	eventually all_there # though nothing else happens
	is 'those that joined' "$(grep -c 'ID [0-9]* joined' "$WORK/syslog")" 30
	is 'those that are dropped' "$(grep -c dropped "$WORK/syslog")" 0
	# Those that select could not do without: a node's is closed after its line in the log.
	only_the_listener() { [ "$(find "/proc/$PID/fd" -lname 'socket:*' | grep -cE '/[0-9]{1,3}$')" = 1 ]; }
	eventually only_the_listener
	# Nor does it keep the server from ending.
	kill -STOP "$listener"
	for i in {1..10}; do greeting "$SOCK" >/dev/null; done
	stop_daemon
	kill -CONT "$listener"
}

@test "a system's log that takes no datagrams, and one that is started anew" {
	local i
	need_namespace
	mkdir "$WORK/dev" "$WORK/dev/shm"
	: >"$WORK/dev/null"
	WRAP=(unshare -m sh -c 'mount --bind /dev/null "$0/null" && mount --bind /dev/shm "$0/shm" &&
		mount --rbind "$0" /dev && exec "$@"' "$WORK/dev")
	streams() {
		perl -MSocket -e '
			$| = 1;
			socket(my $l, PF_UNIX, SOCK_STREAM, 0) or die;
			bind($l, pack_sockaddr_un($ARGV[0])) or die;
			listen($l, 5) or die;
			print "listening\n";
			accept(my $s, $l) or die;
			print while <$s>' "$WORK/dev/log" >"$WORK/syslog" 2>&1 3>&- &
		LISTENER=$!
		PIDS+=("$LISTENER")
		eventually grep -q listening "$WORK/syslog"
	}
	streams
	daemonize -s "$SHM"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$WORK/syslog"
	is 'lines of another form' "$(tail -n +2 "$WORK/syslog" |
		grep -vcE "^<30>[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8} tm_ivshmem_server\[$PID\]: [a-zI]")" 0
	kill "$LISTENER"
	wait "$LISTENER" || true
	rm "$WORK/dev/log"
	listen "$WORK/dev/log" "$WORK/syslog"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$WORK/syslog"
	has "$WORK/syslog" 'ID 0 joined'
	kill -HUP "$PID"
	eventually grep -q "tm_ivshmem_server\[$PID\]: restarted in place" "$WORK/syslog"
	stop_daemon
	eventually grep -q ': ending' "$WORK/syslog"
}

@test "in the foreground nothing goes to syslog, and in the background nothing elsewhere" {
	private_syslog
	start -s "$SHM"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$LOG"
	stop
	is 'what syslog got' "$(cat "$WORK/syslog")" listening
	refused "$DIR/missing" -- -d -f missing/store
	is 'what syslog got' "$(cat "$WORK/syslog")" listening
}

# --- a supervisor

@test "NOTIFY_SOCKET: ready when clients can connect, and word of the end" {
	local at
	for at in "$DIR/notify" "@tm-test-$BASHPID"; do
		listen "$at" "$WORK/notified" "$SOCK"
		export NOTIFY_SOCKET=$at
		start -f store
		eventually grep -q client: "$WORK/notified"
		is 'what was told' "$(cat "$WORK/notified")" \
			$'listening\nREADY=1 STATUS=serving '"$DIR/store, 1M, 0 nodes"$'\nclient: connected'
		stop
		eventually grep -qx STOPPING=1 "$WORK/notified"
		is 'how often' "$(wc -l <"$WORK/notified")" 4
		unset NOTIFY_SOCKET
	done
}

@test "NOTIFY_SOCKET: told by a daemon too, and only the reason by starts that fail" {
	listen "$WORK/failing" "$WORK/failed"
	export NOTIFY_SOCKET=$WORK/failing
	refused "$DIR/missing" -- -f missing/store
	refused "$DIR/missing" -- -d -f missing/store
	misuse "'-x'" -- -x
	"$SERVER" --help >/dev/null
	eventually grep -q "^STATUS=.*'-x'" "$WORK/failed"
	is 'how often why' "$(grep -c "^STATUS=.*$DIR/missing/store" "$WORK/failed")" 2
	is 'how often anything' "$(grep -c = "$WORK/failed")" 3
	listen "$WORK/notify" "$WORK/notified" "$SOCK"
	export NOTIFY_SOCKET=$WORK/notify
	daemonize -f store
	eventually grep -q client: "$WORK/notified"
	stop_daemon
	eventually grep -qx STOPPING=1 "$WORK/notified"
	is 'what was told' "$(cat "$WORK/notified")" \
		$'listening\nREADY=1 STATUS=serving '"$DIR/store, 1M, 0 nodes"$'\nclient: connected\nSTOPPING=1'
}

@test "a unit whose server serves nobody is warned of, with the remedy" {
	local private=$WORK/systemd-private-0123456789abcdef-x.service-AbCdEf/tmp
	listen "$WORK/notify" "$WORK/notified"
	export NOTIFY_SOCKET=$WORK/notify
	# What systemd itself has started: its process is told.
	serves 'connect a node' -- -f store
	hasnt "$LOG" warning
	WRAP=(bash -c 'SYSTEMD_EXEC_PID=$$ exec "$@"' bash)
	serves 'connect a node' -- -f store
	hasnt "$LOG" warning
	daemonize -f store
	has "$WORK/err" 'warning: a supervisor takes the end of this process' 'leave out -d'
	stop_daemon
	# A script in some unit, which starts one in the background, does well.
	WRAP=(env SYSTEMD_EXEC_PID=1)
	daemonize -f store
	hasnt "$WORK/err" supervisor
	stop_daemon
	unset NOTIFY_SOCKET
	need_namespace
	mkdir -p "$private"
	WRAP=(unshare -m sh -c 'mount --bind "$0" /var/tmp && exec "$@"' "$private")
	export INVOCATION_ID=0123456789abcdef0123456789abcdef
	SOCK=/var/tmp/sock launch -f store
	ready
	has "$LOG" 'warning: nobody outside of this unit can connect to /var/tmp/sock' '/run with -p'
	is 'warnings' "$(grep -c warning "$LOG")" 1
	stop
	serves 'warning: /var/tmp/store is lost when this unit stops' '/var/lib with -f' -- -f /var/tmp/store
	is 'warnings' "$(grep -c warning "$LOG")" 1
	serves 'connect a node' -- -f "/var/tmp$SHM"
	hasnt "$LOG" warning
	rm "/var/tmp$SHM"
	unset INVOCATION_ID
	serves 'connect a node' -- -f /var/tmp/store
	hasnt "$LOG" warning
}

@test "NOTIFY_SOCKET that leads nowhere does not keep it from serving" {
	local at
	for at in "$DIR/missing" /dev/null @nobody-listens-here '' relative "/$(printf 'n%.0s' {1..200})"; do
		NOTIFY_SOCKET=$at start -f store
		greeting "$SOCK" >/dev/null
		stop
	done
}

# --- USR1

@test "USR1: a table of who is connected" {
	local first_pid
	need_root
	need_tool setpriv
	start -s "$SHM" -n 600
	kill -USR1 "$PID"
	eventually grep -q '0 nodes connected, 0 joined so far, 0 messages waiting' "$LOG"
	peer
	first_pid=$PEER_PID
	# One of another account that reads nothing: what its socket does not hold waits.
	chmod 777 "$SOCK"
	setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups perl -MSocket -e '
		socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die;
		connect($s, pack_sockaddr_un($ARGV[0])) or die; sleep 1000' "$SOCK" 3>&- &
	PEER_PID=$!
	PIDS+=("$PEER_PID")
	eventually grep -q 'ID 1 joined' "$LOG"
	all_sent_to_first() {
		kill -USR1 "$PID"
		eventually grep -q '2 nodes connected' "$LOG"
		grep '^[^ ]* ID 0: ' "$LOG" | tail -n 1 | grep -q ' 0 messages waiting'
	}
	eventually all_sent_to_first
	has "$LOG" "ID 0: process $first_pid (perl), uid 0, " "ID 1: process $PEER_PID (perl), uid $NOBODY, "
	grep -E 'ID 1: .*connected for [0-9]+ s, [1-9][0-9]+ messages waiting' "$LOG"
	grep -E '2 nodes connected, 2 joined so far, [1-9][0-9]+ messages waiting' "$LOG"
	kill -KILL "$PEER_PID"
	eventually grep -q 'ID 1 left' "$LOG"
	kill -USR1 "$PID"
	eventually grep -q '1 nodes\? connected, 2 joined so far' "$LOG"
	stop
}

# --- durability

# How many flushes strace has seen.
flushes() {
	grep -c 'fdatasync(' "$WORK/trace" || true
}

traced() { # [STRACE ARGUMENT...]
	need_strace
	: >"$WORK/trace"
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync "$@")
}

flushed() { # NUMBER
	[ "$(flushes)" -ge "$1" ]
}

@test "a file is flushed to disk when a node leaves, in another process, and at the end" {
	traced
	start -f store
	peer
	is 'flushes while the node is there' "$(flushes)" 0
	kill "$PEER_PID"
	eventually flushed 1
	greeting "$SOCK" >/dev/null
	eventually flushed 2
	stop
	is 'flushes' "$(flushes)" 3
	run -1 grep "^$PID .*fdatasync" "$WORK/trace"
	hasnt "$LOG" 'cannot flush'
}

@test "-y flushes as often as said, without a node as well" {
	traced
	start -f store -y 1
	eventually flushed 4
	run -1 grep "^$PID .*fdatasync" "$WORK/trace"
	hasnt "$LOG" flush
	stop
}

@test "shared memory is never flushed, it is on no disk" {
	traced
	start -s "$SHM"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$LOG"
	stop
	is flushes "$(flushes)" 0
}

@test "a flush that fails is logged, and the server serves on" {
	traced --inject=fdatasync:error=EIO
	start -f store
	greeting "$SOCK" >/dev/null
	eventually grep -q 'cannot flush' "$LOG"
	has "$LOG" "$DIR/store" 'Input/output error'
	greeting "$SOCK" >/dev/null
	kill "$PID"
	wait "$PID" || true
	is 'the last that it says' "$(grep -c 'cannot flush' <(tail -n 1 "$LOG"))" 1
	missing "$SOCK"
}

@test "a flush that hangs delays nobody: one at a time, with nothing but the store in its hands" {
	local flusher
	# Long enough to outlast the test.
	traced --inject=fdatasync:delay_enter=600000000
	start -f store -y 1
	flusher_at_work() {
		flusher=$(pgrep -P "$PID") && [ "$(find "/proc/$flusher/fd" -mindepth 1 2>/dev/null | wc -l)" = 1 ]
	}
	eventually flusher_at_work
	PIDS+=("$(awk '/^TracerPid/ { print $2 }' "/proc/$flusher/status")") # it would wait as long
	is 'what it has open' "$(readlink "/proc/$flusher/fd"/*)" "$DIR/store"
	greeting "$SOCK" >"$WORK/greeting"
	is 'the greeting' "$(head -n 2 "$WORK/greeting")" $'0\n0'
	sleep 3 # more are due by then
	is 'flushes' "$(flushes)" 1
	# The lock is not in its hands: when the server is killed, the next can start.
	kill -KILL "$PID"
	wait "$PID" || true
	WRAP=()
	start -f store
	alive "$flusher"
	stop
}

@test "a disk that answers no more: the end waits for it, until it is told a second time" {
	local flusher when
	for when in before after; do
		traced --inject=fdatasync:delay_enter=600000000
		start -f store -i pid
		flusher_at_work() {
			flusher=$(pgrep -P "$PID") && grep -q 'fdatasync(' "$WORK/trace"
		}
		if [ "$when" = before ]; then
			greeting "$SOCK" >/dev/null
			eventually flusher_at_work
		fi
		kill "$PID"
		eventually flusher_at_work
		PIDS+=("$(awk '/^TracerPid/ { print $2 }' "/proc/$flusher/status")" "$flusher")
		eventually test ! -e "$SOCK"
		sleep 1.5 # more than greetings under way would get
		alive "$PID"
		kill -USR1 "$PID"
		sleep 0.2
		alive "$PID"
		kill -INT "$PID"
		eventually ended_or_zombie "$PID"
		wait "$PID"
		has "$LOG" "ending before $DIR/store is on disk"
		missing pid
		kill -KILL "${PIDS[@]: -2}"
	done
}

# --- a start in the background

@test "-d: an object that cannot be shrunk is an error like all others" {
	need_strace
	truncate -s 8M store
	WRAP=(strace -D -f -o /dev/null -P "$DIR/store" -e trace=ftruncate --inject=ftruncate:error=EIO)
	refused "cannot shrink $DIR/store" 'Input/output error' -- -d -f store -t -m 4M -i pid
}

@test "a limit of descriptors that leaves no room for a node is an error, for few a warning" {
	need_root
	need_tool setpriv prlimit
	local few
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	SERVER=$WORK/tm_ivshmem_server
	chown "$NOBODY" "$DIR"
	as_nobody_with() { # LIMIT
		WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups prlimit "--nofile=$1:$1")
	}
	for few in 11 12; do
		as_nobody_with "$few"
		refused "no node fits: a node takes 2 descriptors" "of the $few that the limit allows" \
			'the server itself needs 11' LimitNOFILE= -- -A
	done
	as_nobody_with 100
	refused 'no node fits: a node takes 101 descriptors' -- -A -n 100
	refused 'no node fits' -- -d -i pid -A -n 100
	# As many as it says fit, and not one more.
	for few in 13 15 20; do
		as_nobody_with "$few"
		start -A
		few=$(sed -n 's/.*warning: only \([0-9]*\) nodes\? of 1 vector will fit.*/\1/p' "$LOG")
		[ "$few" -ge 1 ]
		while [ "$((few -= 1))" -ge 0 ]; do
			peer
		done
		is 'one more' "$(greeting "$SOCK" | tail -n 1)" end
		hasnt "$LOG" 'cannot'
		has "$LOG" 'a client is refused: Too many open files'
		stop
	done
	as_nobody_with 60
	serves 'serving' -- -A
	hasnt "$LOG" warning
}

@test "a parent that is gone does not end the server, nor the shrinking that comes last" {
	truncate -s 8M store
	orphan flock -t -m 4M
	eventually test -s pid
	PID=$(cat pid)
	PIDS+=("$PID")
	eventually sh -c "[ \$(stat -c %s store) = 4194304 ]"
	greeting "$SOCK" >/dev/null
	kill "$PID"
	eventually ended "$PID"
	missing "$SOCK" pid
}
