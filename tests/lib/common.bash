# shellcheck shell=bash
# What the shell tests share: a private folder for each test, a server in it that is surely gone
# afterwards, and checks that say what they saw. Loaded by every .bats file.
#
#   $DIR     the folder of the test, and its working directory: what tests look at
#   $SHM     the name of a shared memory object that no other test uses
#   $WORK    the folder around $DIR: logs and tools, which no test counts

bats_require_minimum_version 1.5.0

# shellcheck disable=SC2034 # for those who load this
NOBODY=65534 # an account that owns nothing

setup() {
	: "${SOURCE_DIR:=$(cd "$BATS_TEST_DIRNAME/.." && pwd)}"
	: "${SERVER:=$SOURCE_DIR/tm_ivshmem_server}"
	umask 022
	WORK=$(mktemp -d "${TEST_DIR:-${TMPDIR:-/tmp}}/tm.XXXXXX")
	[ -z "${TEST_DIR-}" ] || chmod 755 "$TEST_DIR"
	chmod 755 "$WORK"
	DIR=$WORK/d
	mkdir "$DIR"
	cd "$DIR" || return 1
	SHM=tm-test-$BASHPID-$BATS_TEST_NUMBER
	SOCK=$DIR/sock
	LOG=$WORK/log
	PIDS=()
	# What a sanitizer has to say of a server is found even if that runs in the background.
	mkdir -m 777 "$WORK/sanitizer"
	export ASAN_OPTIONS="${ASAN_OPTIONS-}:log_path=$WORK/sanitizer/log"
	export UBSAN_OPTIONS="${UBSAN_OPTIONS-}:log_path=$WORK/sanitizer/log"
	if declare -F setup_more >/dev/null; then
		setup_more
	fi
}

teardown() {
	local pid children mount status=0
	[ -n "${WORK-}" ] || return 0 # setup failed, and everything below would be ours
	if [ -z "${BATS_TEST_COMPLETED-}" ] && [ -s "$LOG" ]; then
		echo "the server's log:"
		tail -n 30 "$LOG"
	fi
	if declare -F teardown_more >/dev/null; then
		teardown_more
	fi
	for pid in "${PIDS[@]}"; do
		# All stand still before one is killed: a standby would go on for its server, a client would
		# end with its program, and a sanitizer, which looks for leaks from a child process as a
		# program ends, would complain in the log that the program is gone.
		kill -STOP "$pid" 2>/dev/null || continue
		mapfile -t children < <(pgrep -P "$pid")
		kill -STOP "${children[@]}" 2>/dev/null || true
		kill -KILL "$pid" "${children[@]}" 2>/dev/null || true
	done
	wait 2>/dev/null
	if [ -n "$(ls "$WORK/sanitizer")" ]; then
		head -n 40 "$WORK/sanitizer"/*
		status=1
	fi
	cd /
	awk -v work="$WORK/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
		while read -r mount; do umount -l "$mount"; done
	rm -f "/dev/shm/$SHM"*
	rm -rf "$WORK"
	return "$status"
}

# --- saying what is wrong

no() { # TEXT: ends the test
	printf '%s\n' "$@"
	false
}

is() { # WHAT IS WANTED
	[ "$2" = "$3" ] || no "$1: is '$2', wanted '$3'"
}

has() { # FILE TEXT...: all texts stand in it
	local text content
	content=$(<"$1")
	for text in "${@:2}"; do
		[[ $content == *"$text"* ]] || no "no '$text' in what was said:" "$content" || return
	done
}

hasnt() { # FILE TEXT...
	local text content
	content=$(<"$1")
	for text in "${@:2}"; do
		[[ $content != *"$text"* ]] || no "'$text' in what was said:" "$content" || return
	done
}

missing() { # PATH...
	local path
	for path in "$@"; do
		[ ! -e "$path" ] && [ ! -L "$path" ] || no "$path is there: $(ls -ld "$path")" || return
	done
}

# --- what the machine must be able to do

need_root() {
	[ "$(id -u)" = 0 ] || skip "needs root"
}

need_tool() { # COMMAND...
	local tool
	for tool in "$@"; do
		command -v "$tool" >/dev/null || skip "needs $tool"
	done
}

# What is mounted can be made private, or be put into a container, from a root on that is mounted itself.
need_mounted_root() {
	awk '$5 == "/" { found = 1 } END { exit !found }' /proc/self/mountinfo ||
		skip "the root is no mount point, as in a plain chroot; pivot_root makes one that is"
}

# Who enters a mount namespace gets its root, and leaves a chroot by that; libvirt does it for devices.
need_own_root() {
	need_root
	need_tool nsenter
	need_mounted_root
	[ "$(nsenter --mount=/proc/self/ns/mnt stat -c %d:%i / 2>&1)" = "$(stat -c %d:%i /)" ] ||
		skip "this is a chroot, and not the root of a mount namespace; pivot_root makes one"
}

need_namespace() {
	need_root
	need_tool unshare
	need_mounted_root
	unshare -m true 2>/dev/null || skip "this machine has no mount namespaces: $(unshare -m true 2>&1)"
}

need_strace() {
	ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=0 # leaks cannot be looked for under a tracer
	need_tool strace
	strace -o /dev/null true 2>/dev/null || skip "strace may not trace here: $(strace true 2>&1 | tail -n 1)"
}

# --- huge pages: a file system of them is mounted on the folder huge

# One user at a time: the pages are the machine's.
huge_pages_take() { # NUMBER
	need_root
	local file=/proc/sys/vm/nr_hugepages i
	[ -w $file ] || skip "this machine has no huge pages to set"
	exec {HUGE_LOCK}<$file
	flock -w 300 "$HUGE_LOCK"
	HUGE_BEFORE=$(cat $file)
	HUGE_SIZE=$(awk '/^Hugepagesize:/ { print $2 }' /proc/meminfo)
	# More than are needed, if there are: others on the machine may take some, too.
	for ((i = 0; i < 20; i++)); do
		echo $((HUGE_BEFORE + $1 + 4)) >$file
		[ "$(cat $file)" -lt $((HUGE_BEFORE + $1)) ] || break
		sleep 0.5
	done
	[ "$(cat $file)" -ge $((HUGE_BEFORE + $1)) ] ||
		skip "the machine grants no $1 huge pages, only $(($(cat $file) - HUGE_BEFORE))"
	[ "$HUGE_SIZE" = 2048 ] || skip "huge pages are not 2M here but ${HUGE_SIZE}K"
	mkdir huge
	mount -t hugetlbfs -o "size=$((2 * $1))M" none huge || skip "no hugetlbfs can be mounted here"
}

huge_pages_return() {
	[ -n "${HUGE_BEFORE-}" ] || return 0
	rm -f huge/*
	umount -l huge || true
	echo "$HUGE_BEFORE" >/proc/sys/vm/nr_hugepages
	exec {HUGE_LOCK}<&-
}

# --- the server

# What stands in the folder, and the shared memory object: everything that a failed start must leave
# as it was.
state() {
	find "$DIR" "/dev/shm/$SHM" -printf '%p %y %m %U:%G %s %i %l\n' 2>/dev/null | sort
	find "$DIR" "/dev/shm/$SHM" -type f -readable -size -65M -exec sha256sum {} + 2>/dev/null | sort
}

# strace holds whoever makes a system call that it is to delay so: until let_go, longer than any test.
# With signal=STOP, whoever has made one is stopped: until he gets CONT.
# shellcheck disable=SC2034
HELD=delay_enter=3600000000

# A process that strace holds goes on, traced no more, as does all that is traced with it.
let_go() { # PID
	kill -KILL "$(awk '/^TracerPid/ { print $2 }' "/proc/$1/status")"
}

# strace has stopped a process by a signal, as it says in $WORK/trace.
stopped() {
	grep -qs 'stopped by SIGSTOP' "$WORK/trace"
}

# Runs a command that is to end by itself: its status in $STATUS, what it said in $WORK/out and
# $WORK/err.
try() { # COMMAND...
	STATUS=0
	timeout --kill-after=5 120 "$@" >"$WORK/out" 2>"$WORK/err" 3>&- || STATUS=$?
}

said_lines() { # NUMBER ARGUMENT...
	local lines
	is "stdout of: ${*:2}" "$(<"$WORK/out")" ''
	mapfile -t lines <"$WORK/err"
	is "lines on stderr of: ${*:2}: ${lines[*]}" "${#lines[@]}" "$1"
}

# Puts what stands before -- into the array texts of its caller.
texts_before_dashes() { # TEXT... -- ARGUMENT...
	texts=()
	while [ "$1" != -- ]; do
		texts+=("$1")
		shift
	done
}

# A mistake in the command line: status 2, one line on stderr that has the texts and points to
# --help; nothing on stdout, and nothing left behind.
misuse() { # TEXT... -- ARGUMENT...
	local texts before
	texts_before_dashes "$@"
	shift $((${#texts[@]} + 1))
	before=$(echo "$DIR"/* "/dev/shm/$SHM"*)
	try "$SERVER" -p "$SOCK" "$@"
	is "status of: $*: $(<"$WORK/err")" "$STATUS" 2
	said_lines 1 "$@"
	has "$WORK/err" --help "${texts[@]}"
	is "what stands here after: $*" "$(echo "$DIR"/* "/dev/shm/$SHM"*)" "$before"
}

# A start that fails: status 1, one line on stderr (or as many as $SAID) that has the texts, and
# everything as it was. What runs before the server, e.g. setpriv, stands in the array WRAP; where
# the socket does not go with -p, $SOCKET_OPTION says with what.
refused() { # TEXT... -- ARGUMENT...
	local texts before
	texts_before_dashes "$@"
	shift $((${#texts[@]} + 1))
	before=$(state)
	try "${WRAP[@]}" "$SERVER" "${SOCKET_OPTION:--p}" "$SOCK" "$@"
	is "status of: $*: $(<"$WORK/err")" "$STATUS" 1
	said_lines "${SAID:-1}" "$@"
	has "$WORK/err" "${texts[@]}"
	is "what stands here after: $*" "$(state)" "$before"
}

alive() { # PID
	local line
	{ read -r line <"/proc/$1/stat"; } 2>/dev/null || return
	[[ ${line##*) } != [ZX]* ]]
}

at_most_one_alive() { # PID...
	local n=0 pid
	for pid in "$@"; do ! alive "$pid" || n=$((n + 1)); done
	[ "$n" -le 1 ]
}

# Waits until a command succeeds, for two minutes at least.
eventually() { # COMMAND...
	local tries_left=2400
	until "$@"; do
		[ $((tries_left -= 1)) -gt 0 ] || no "never came true: $*" || return
		sleep 0.05
	done
}

ready_or_ended() {
	grep -q 'connect a node:' "$LOG" || ! alive "$PID"
}

# Starts the server in the background, with its log in $LOG and its process ID in $PID; what it is
# run by (which must keep the process ID) stands in the array WRAP.
launch() { # ARGUMENT...
	: >"$LOG"
	"${WRAP[@]}" "$SERVER" -p "$SOCK" "$@" >"$LOG" 2>&1 3>&- &
	PID=$!
	PIDS+=("$PID")
}

ready() {
	eventually ready_or_ended
	grep -q 'connect a node:' "$LOG" || no "the server has ended:" "$(cat "$LOG")"
}

start() { # ARGUMENT...
	launch "$@"
	ready
}

# Ends the server with a signal, waits, and checks that it went well; its object stays.
# shellcheck disable=SC2120
stop() { # [SIGNAL]
	local status=0
	kill -s "${1:-TERM}" "$PID"
	wait "$PID" || status=$?
	is "status of the server" "$status" 0
}

# Starts the server in the background, as a user would, with a pidfile, and says its process ID in
# $PID; what it said before is in $WORK/err.
daemonize() { # ARGUMENT...
	try "${WRAP[@]}" "$SERVER" -p "$SOCK" -d -i "$DIR/pid" "$@"
	is "status of -d: $(cat "$WORK/err")" "$STATUS" 0
	PID=$(cat "$DIR/pid")
	PIDS+=("$PID")
}

# A command that others are to see done as a whole, so that the server sees nothing of it in between.
unseen() { # COMMAND...
	kill -s STOP "$PID"
	"$@"
	kill -s CONT "$PID"
}

# Somebody listens at a path, as it was given.
listens_at() { # PATH
	grep -q " 00010000 .* $1\$" /proc/net/unix
}

# The server has a standby, $STANDBY.
# shellcheck disable=SC2034
standby_there() {
	STANDBY=$(pgrep -f "^standby of [^ ]*, process $PID\$")
}

ended() { # PID
	! alive "$1"
}

# Ends a server that is no child of ours.
stop_daemon() { # [SIGNAL]
	kill -s "${1:-TERM}" "$PID"
	eventually ended "$PID"
	missing "$SOCK" "$DIR/pid"
}

# A start that works, seen through a client that gets its greeting (of as many messages as $MESSAGES
# says, where not 4), and the end: the log has the texts, the socket is gone.
# shellcheck disable=SC2119
serves() { # TEXT... -- ARGUMENT...
	local texts=()
	while [ "$1" != -- ]; do
		texts+=("$1")
		shift
	done
	shift
	start "$@"
	greeting "$SOCK" "${MESSAGES:-4}" >"$WORK/greeting"
	stop
	has "$LOG" "${texts[@]}"
	missing "$SOCK"
}

# --- clients

# Connects, prints every message as it comes (`VALUE` or `VALUE fd SIZE`), and stays until it is
# ended, with the descriptors open. With a count: ends after so many messages. The program is given
# to Perl as text, for accounts that cannot read this file.
# shellcheck disable=SC2016
PEER='
	use strict; use warnings; use Socket;
	require "sys/syscall.ph";
	my ($path, $count, $memory) = @ARGV;
	$| = 1;
	socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
	connect($s, pack_sockaddr_un($path)) or die "connect: $!\n";
	my @held;
	while (!defined $count || $count-- > 0) {
		my ($data, $control, $none) = (pack("q", 0), pack("x24"), pack("x8"));
		my $iov = pack("P Q", $data, 8);
		my $message = pack("Q L x4 P Q P Q L x4", 0, 0, $iov, 1, $control, 24, 0);
		my $n = syscall(&SYS_recvmsg, fileno($s), $message, 0);
		die "recvmsg: $!\n" if $n < 0;
		if ($n == 0) { print "end\n"; last }
		my $length = (unpack "Q7", $message)[5];
		my $value = unpack "q", $data;
		if ($length >= 20) {
			my $fd = unpack "x16 l", $control;
			open(my $file, "+<&=", $fd) or die "fdopen: $!\n";
			binmode $file;
			print "$value fd ", (stat $file)[7], "\n";
			if ($value == -1 && defined $memory) {
				syswrite($file, $memory) == length $memory or die "write: $!\n";
			}
			push @held, $file;
		} else {
			print "$value\n";
		}
	}
	exit 0 if defined $count;
	sleep 1000;
'

# The greeting that a newcomer gets from a server without other peers: version, ID, memory and one
# vector, or as many messages as said.
greeting() { # SOCKET [COUNT [TEXT TO WRITE TO THE MEMORY]]
	timeout 120 perl -e "$PEER" "$1" "${2:-4}" "${@:3:1}" 3>&-
}

# So many newcomers, one after the other, get all of their greeting.
greetings() { # COUNT
	local i
	for ((i = 1; i <= $1; i++)); do
		greeting "$SOCK" >"$WORK/greeting"
		is "messages of greeting $i" "$(wc -l <"$WORK/greeting")" 4
	done
}

# A client that stays, in the background; what it hears is in $WORK/peer.NUMBER. Waits until it has
# got a vector of its own, which come last, or the end.
peer() { # [SOCKET]
	PEERS=$((${PEERS:-0} + 1))
	HEARD=$WORK/peer.$PEERS
	perl -e "$PEER" "${1:-$SOCK}" >"$HEARD" 2>&1 3>&- &
	PEER_PID=$!
	PIDS+=("$PEER_PID")
	eventually greeted_or_ended "$HEARD"
}

greeted_or_ended() { # FILE
	awk '/^end|:/ { done = 1 } / fd / { fds = 1 } !fds { id = $1 } / fd / && $1 == id { done = 1 }
		END { exit !done }' "$1" 2>/dev/null
}
