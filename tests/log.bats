#!/usr/bin/env bats
# Where the log is: a file (-o), which others move, fill or remove; the journal, with levels; and the
# warning where there is none. What goes to syslog is in daemon.bats.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2119,SC2153 # each test is a shell of its own

load lib/restart

# The descriptor of the log file, as its path.
log_descriptor() {
	find "/proc/$PID/fd" -lname "$1"
}

joined() { # FILE NUMBER: so many have joined, as the file says
	[ "$(grep -c 'ID [0-9]* joined' "$1")" = "$2" ]
}

# A /dev of its own for the server, in which nobody listens at /dev/log.
no_syslog() {
	need_namespace
	mkdir "$WORK/dev" "$WORK/dev/shm"
	: >"$WORK/dev/null"
	WRAP+=(unshare -m sh -c 'mount --bind /dev/null "$0/null" && mount --bind /dev/shm "$0/shm" &&
		mount --rbind "$0" /dev && exec "$@"' "$WORK/dev")
}

# --- what stands in the file

@test "-o: the start is told to stderr and the file, all else to the file alone" {
	start -f store -o file
	is 'what the file has of the start' "$(sed 's/^[^ ]* tm_ivshmem_server\[[0-9]*\]/tm_ivshmem_server/' file)" \
		"$(cat "$LOG")"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' file
	kill -USR1 "$PID"
	eventually grep -q 'joined so far' file
	stop
	grep -q ': Terminated: ending' file
	is 'lines on stderr' "$(wc -l <"$LOG")" 2
	is mode "$(stat -c %a file)" 640
}

@test "-o in the background: the same, and syslog gets nothing" {
	daemonize -f store --log=file
	is 'what the file has of the start' "$(sed 's/^[^ ]* tm_ivshmem_server\[[0-9]*\]/tm_ivshmem_server/' file)" \
		"$(cat "$WORK/err")"
	is 'lines on stderr' "$(wc -l <"$WORK/err")" 2
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' file
	# A node's is closed after its line in the log.
	only_the_listener() { [ "$(find "/proc/$PID/fd" -lname 'socket:*' | wc -l)" = 1 ]; }
	eventually only_the_listener
	stop_daemon
	eventually grep -q ': Terminated: ending' file
	is mode "$(stat -c %a file)" 640
}

@test "a line in the file has the time with its zone, the name and the process" {
	local zone offset
	while read -r zone offset; do
		TZ=$zone serves 'connect a node' -- -f store -o file
		is "lines of another form in $zone" "$(grep -vcE \
			"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}$offset tm_ivshmem_server\\[$PID\\]: [^ ]" file)" 0
		is "lines in $zone" "$(wc -l <file)" 5
		is 'the hour' "$(cut -c 1-13 <(tail -n 1 file))" "$(TZ=$zone date -d "$(cut -d ' ' -f 1 <(tail -n 1 file))" +%FT%H)"
		rm file
	done <<-'END'
		UTC \+00:00
		XYZ-5:30 \+05:30
		XYZ+3 -03:00
	END
}

@test "-o appends, keeps mode and owner of a file that is there, and follows the umask" {
	echo before >file
	chmod 604 file
	serves 'connect a node' -- -f store -o file
	is 'the first line' "$(head -n 1 file)" before
	is mode "$(stat -c %a file)" 604
	umask 077
	serves 'connect a node' -- -f store -o other
	is mode "$(stat -c %a other)" 600
	mkdir elsewhere
	ln -s elsewhere/link link
	serves 'connect a node' -- -f store -o link # as an administrator has laid it
	grep -q 'connect a node' elsewhere/link
}

@test "a start that fails leaves the reason on stderr and in the file" {
	local background
	for background in '' -d; do
		# shellcheck disable=SC2086
		try "$SERVER" -p "$SOCK" $background -f missing/store -o file
		is status "$STATUS" 1
		said_lines 1
		has "$WORK/err" "$DIR/missing/store" 'No such file'
		is 'the file' "$(cut -d ' ' -f 3- file)" "$(cut -d ' ' -f 2- "$WORK/err")"
		rm file
	done
}

@test "a log that cannot be opened: refused, in the background as well" {
	local background
	mkfifo pipe
	mkdir folder
	perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0); bind($s, pack_sockaddr_un("listener")) or die'
	for background in '' -d; do
		# shellcheck disable=SC2086
		{
			refused "$DIR/missing/file" 'No such file' -- $background -f store -o missing/file
			refused "$DIR/folder" 'Is a directory' -- $background -f store -o folder
			# A terminal, where there is none, is nothing that somebody could read.
			WRAP=(setsid -w)
			refused "cannot open the log /dev/tty: No such device" -- $background -f store -o /dev/tty
			WRAP=()
			refused "nobody reads the log $DIR/pipe" -- $background -f store -o pipe
			refused "the log $DIR/listener is a socket: give a file with -o" -- $background -f store -o listener
		}
	done
	need_root
	need_tool setpriv
	chmod 755 folder
	WRAP=(setpriv --reuid "$NOBODY" --regid "$NOBODY" --clear-groups)
	refused "$DIR/folder/file" "choose a folder that uid $NOBODY may use" -- -A -o folder/file
	: >folder/file
	refused "$DIR/folder/file" 'belongs to uid 0' -- -A -o folder/file
}

@test "-o: mistakes of the command line, and --check opens nothing" {
	misuse -o/--log 'give a path' -- -o ''
	misuse -o/--log 'needs a value' -- -o
	misuse -o/--log 'the socket has this path' -- -f store -o sock
	misuse -o/--log 'the backing store has this path' -- -f store -o store
	misuse -o/--log 'the pidfile has this path' -- -f store -i pid -o pid
	try "$SERVER" --check -f store -o file
	is status "$STATUS" 0
	try "$SERVER" --check -f store -o missing/file
	is status "$STATUS" 0
	is 'what stands here' "$(ls)" ''
	ln -s "$SERVER" "$WORK/ivshmem-server"
	try "$WORK/ivshmem-server" -o file
	is status "$STATUS" 1
	has "$WORK/err" "unknown option '-o'"
}

@test "-o: no link leads the log into the memory, the pidfile or the socket" {
	ln -s store link
	refused "$DIR/store is the log, too" -o -- -f store -o link
	truncate -s 1M store
	refused "$DIR/store is the log, too" -o -- -f store -o link
	ln store hard
	refused "$DIR/store is the log, too" -o -- -d -f store -o hard
	refused "$DIR/store is the log, too" -o -- -f store -o "../d/store"
	echo 4194304 >pid
	ln pid other
	refused "$DIR/pid is the log, too" -o -- -f store -i pid -o other
	refused "$DIR/sock is the log, too" -o -- -f store -o "../d/sock"
}

# --- HUP, and deaths

@test "HUP opens the file again, in the foreground and in the background" {
	local how
	for how in start daemonize; do
		"$how" -f store -o file
		peer
		mv file "file.$how"
		kill -HUP "$PID"
		eventually grep -qs 'restarted in place' file
		greeting "$SOCK" 4 >/dev/null
		eventually grep -q 'ID 1 left' file
		is mode "$(stat -c %a file)" 640
		hasnt "file.$how" restarted 'ID 1'
		is 'log files that are open' "$(log_descriptor "$DIR/file*" | wc -l)" 1
		kill "$PEER_PID"
		if [ "$how" = start ]; then stop; else stop_daemon; fi
		rm file
	done
}

@test "a HUP whose trial refuses opens it again all the same, and says why there" {
	daemonize -f store -o file
	printf '#!/bin/sh\nexit 3\n' >"$WORK/other"
	chmod 755 "$WORK/other"
	replace "$WORK/other"
	mv file old
	kill -HUP "$PID"
	eventually grep -qs 'cannot take over, going on without a restart' file
	hasnt old 'cannot take over'
	# What the trial itself has to say stands there, too.
	before_original '@ARGV = ("--no-such-option") if $purpose eq "check"'
	kill -HUP "$PID"
	eventually grep -q "unknown or ambiguous option '--no-such-option'" file
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' file
	stop_daemon
}

@test "what cannot be opened again: the log goes on as it was, and says so" {
	mkdir folder
	daemonize -f store -o folder/file
	mv folder old
	mkdir -p folder/file
	kill -HUP "$PID"
	eventually grep -q "cannot open $DIR/folder/file again, going on with the log as it was: Is a directory" old/file
	eventually grep -q 'restarted in place' old/file
	rm -r folder
	kill -HUP "$PID"
	eventually grep -q "cannot open $DIR/folder/file again.*: No such file" old/file
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' old/file
	mkdir folder
	kill -HUP "$PID"
	eventually grep -qs 'restarted in place' folder/file
	stop_daemon
}

@test "-o /dev/stderr in the background: HUP does not lose it" {
	daemonize -f store -o /dev/stderr
	kill -HUP "$PID"
	eventually grep -q '/dev/stderr is another kind of file now, going on with the log as it was' "$WORK/err"
	eventually grep -q 'restarted in place' "$WORK/err"
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$WORK/err"
	stop_daemon
}

@test "the standby logs on in the same file, also in one that was moved before" {
	local died
	daemonize -f store -o file
	peer
	eventually standby_there
	# One that is no new image: its standby has seen the file open again.
	printf '#!/bin/sh\nexit 3\n' >"$WORK/other"
	chmod 755 "$WORK/other"
	cp "$PROGRAM" "$WORK/good"
	replace "$WORK/other"
	mv file old
	kill -HUP "$PID"
	eventually grep -qs 'cannot take over' file
	replace "$WORK/good"
	died=$PID
	kill -KILL "$PID"
	PID=$STANDBY
	PIDS+=("$PID")
	eventually grep -q "\\[$PID\\]: process $died died, and its standby goes on with 1 node" file
	eventually grep -q "\\[$PID\\]: restarted in place" file
	hasnt old died
	greeting "$SOCK" 4 >/dev/null
	eventually grep -q 'ID 1 left' file
	is 'log files that are open' "$(log_descriptor "$DIR/file" | wc -l)" 1
	eventually standby_there
	stop_daemon
}

@test "its descriptor is none that select or a node needs" {
	local number
	daemonize -f store -o file
	number=$(basename "$(log_descriptor "$DIR/file")")
	[ "$number" -ge 1024 ] || no "the log file is descriptor $number"
	kill -HUP "$PID"
	eventually grep -q 'restarted in place' file
	is 'after a restart' "$(basename "$(log_descriptor "$DIR/file")")" "$number"
	stop_daemon
	# Where there is no higher number, it does without.
	WRAP=(sh -c 'ulimit -n 60 && exec "$@"' sh)
	[ "$(id -u)" != 0 ] || WRAP=(setpriv --bounding-set -sys_resource --inh-caps -sys_resource "${WRAP[@]}")
	daemonize -A -o low
	greeting "$SOCK" >/dev/null
	kill -HUP "$PID"
	eventually grep -q 'restarted in place' low
	stop_daemon
}

# --- a log that takes nothing

@test "a full disk ends no server and delays no node; later the log says what it lacks" {
	need_root
	local i
	mkdir small
	mount -t tmpfs -o size=64k none small || skip "cannot mount a tmpfs"
	start -s "$SHM" -n 512 -o small/file -v
	head -c 1M /dev/zero >small/fill 2>/dev/null || true
	# Far more than what waits.
	for i in {1..4}; do
		greeting "$SOCK" 515 >"$WORK/greeting"
		is "messages of greeting $i" "$(wc -l <"$WORK/greeting")" 515
	done
	hasnt small/file dropped
	# Once there is room, what waited comes, though nothing else happens.
	mount -o remount,size=2M none small
	eventually grep -qE 'lines dropped here, since this log could not be written: [1-9][0-9]*$' small/file
	greeting "$SOCK" >/dev/null
	stop
	tail -n +2 <(sed -n '/dropped/,$p' small/file) >after
	has after ' joined: ' ' left: ' Terminated
	is 'what is not a whole line' "$(grep -vcE '^20.*\[[0-9]+\]: ' small/file)" 0
	umount small
}

@test "a disk that is full from the start on: it starts, and says later what the log lacks" {
	need_root
	mkdir small
	mount -t tmpfs -o size=16k none small || skip "cannot mount a tmpfs"
	head -c 1M /dev/zero >small/fill 2>/dev/null || true
	: >small/file
	start -s "$SHM" -o small/file
	has "$LOG" 'connect a node'
	rm small/fill
	eventually grep -q 'lines dropped here, since this log could not be written: 2$' small/file
	stop
	umount small
}

waits_for_writer() { # PROCESS
	[ "$(sed 's/^[0-9]* (\(.*\)) \(.\) .*/\1 \2/' "/proc/$1/stat")" = 'cat S' ]
}

@test "a named pipe as the log: who reads it gets all, and who stops delays nobody" {
	local reader
	mkfifo pipe
	cat pipe >"$WORK/read" 3>&- &
	reader=$!
	PIDS+=("$reader")
	eventually waits_for_writer "$reader"
	start -s "$SHM" -o pipe
	eventually grep -q 'connect a node' "$WORK/read"
	kill -STOP "$reader"
	greetings 20
	kill -CONT "$reader"
	eventually joined "$WORK/read" 20
	# A reader that ends, and another one.
	kill "$reader"
	wait "$reader" || true
	greeting "$SOCK" >/dev/null
	cat pipe >"$WORK/again" 3>&- &
	PIDS+=($!)
	eventually joined "$WORK/again" 1
	stop
}

# --- where there is none

@test "-d without a log file and a syslog warns before it returns" {
	no_syslog
	daemonize -f store
	has "$WORK/err" '/dev/log' 'give -o FILE, or start a syslog daemon' 'No such file'
	is 'lines on stderr' "$(wc -l <"$WORK/err")" 3
	stop_daemon
	daemonize -f store -o file
	is 'lines on stderr' "$(wc -l <"$WORK/err")" 2
	stop_daemon
	# A socket that nobody listens on is none.
	perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_DGRAM, 0); bind($s, pack_sockaddr_un($ARGV[0])) or die' \
		"$WORK/dev/log"
	daemonize -f store
	has "$WORK/err" 'warning: nothing is logged from here on' 'Connection refused'
	stop_daemon
	rm "$WORK/dev/log"
	ln -s "$SERVER" "$WORK/ivshmem-server"
	try "${WRAP[@]}" "$WORK/ivshmem-server" -S "$SOCK" -p "$DIR/pid" -M "$SHM"
	is status "$STATUS" 0
	has "$WORK/err" 'give tm_ivshmem_server -o FILE, or start a syslog daemon'
	PID=$(cat pid)
	PIDS+=("$PID")
	stop_daemon
	# In the foreground nobody needs one.
	serves 'connect a node' -- -f store
	hasnt "$LOG" warning
}

# --- the journal

@test "in the journal a line has its level, and not the program's name" {
	WRAP=(sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"' sh)
	start -f store -v
	greeting "$SOCK" >/dev/null
	eventually grep -q 'ID 0 left' "$LOG"
	truncate -s 2M store
	greeting "$SOCK" 3 >/dev/null 2>&1
	truncate -s 1M store
	kill -HUP "$PID"
	eventually grep -q 'restarted in place' "$LOG"
	perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0); connect($s, pack_sockaddr_un($ARGV[0])) or die;
		sysread($s, my $data, 8); syswrite($s, "hello"); 1 while sysread($s, $data, 8)' "$SOCK" 3>&- &
	PIDS+=($!)
	eventually grep -q 'ID 0 left: sent data' "$LOG"
	stop
	is 'lines without a level, or with a name' "$(grep -vcE '^<[3467]>' "$LOG")" 0
	hasnt "$LOG" 'tm_ivshmem_server:'
	has "$LOG" "<6>serving $DIR/store" '<6>ID 0 joined' '<6>ID 0 left: closed' '<7>to ID 0: 0' \
		"<3>$DIR/store was 1M and has been resized to 2M" '<4>a client is refused' \
		'<6>restarted in place' '<4>ID 0 left: sent data' '<6>Terminated: ending'
	# Errors of a start, too.
	try "${WRAP[@]}" "$SERVER" -p "$SOCK" -f missing/store
	has "$WORK/err" "<3>cannot"
}

@test "what JOURNAL_STREAM names is not what we write to, or nothing: a line begins with the name" {
	local stream
	for stream in 1:1 '' 1 : x:y "$(stat -c %d:%i /dev/null)" "$(stat -c %d:%i "$DIR")x"; do
		WRAP=(env "JOURNAL_STREAM=$stream")
		serves 'connect a node' -- -f store
		is "lines of another form with '$stream'" "$(grep -vc '^tm_ivshmem_server: ' "$LOG")" 0
	done
	WRAP=(sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"' sh)
	serves 'connect a node' -- -f store -o file
	is 'lines with a level in the file' "$(grep -c '<' file)" 0
}
