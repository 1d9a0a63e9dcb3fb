#!/usr/bin/env bats
# The programs by the names of QEMU's: command lines of its server start as they stand, and do what
# they did there; and what people and scripts type at its client works at ours.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2053,SC2119,SC2153,SC2314 # each test is a shell of its own

load lib/common

setup_more() {
	CLIENT=$SOURCE_DIR/client/ivshmem_client
	mkdir "$WORK/bin"
	ln -s "$CLIENT" "$WORK/bin/ivshmem-client"
	cp "$SERVER" "$WORK/bin/tm_ivshmem_server"
	ln -s tm_ivshmem_server "$WORK/bin/ivshmem-server"
	OWN=$WORK/bin/tm_ivshmem_server
	SERVER=$WORK/bin/ivshmem-server
}

teardown_more() {
	huge_pages_return
}

# --- what clients see

# The process that listens, as every client can ask for it; when it has been said, the server knows
# that this client has gone.
listener() { # SOCKET
	timeout 120 perl -MSocket -e '
		socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
		connect($s, pack_sockaddr_un($ARGV[0])) or die "connect: $!\n";
		print unpack("l", getsockopt($s, SOL_SOCKET, SO_PEERCRED)), "\n";
		shutdown($s, SHUT_WR);
		1 while sysread($s, my $data, 4096)' "$1" 3>&-
}

listens() { # SOCKET
	listener "$1" >/dev/null 2>&1
}

# The server listens; its process is $PID, and it serves memory of this size and so many vectors.
listening() { # SOCKET BYTES VECTORS
	local id i
	eventually listens "$1"
	PID=$(listener "$1")
	PIDS+=("$PID")
	is "the program" "$(tr '\0' '\n' <"/proc/$PID/cmdline" | sed '1!d; s,.*/,,')" ivshmem-server
	greeting "$1" $((3 + $3)) >"$WORK/greeting"
	id=$(sed -n 2p "$WORK/greeting")
	is "the greeting" "$(<"$WORK/greeting")" \
		"$(printf '0\n%s\n-1 fd %s' "$id" "$2"; for ((i = 0; i < $3; i++)); do printf '\n%s fd 0' "$id"; done)"
	# Nothing else comes: what follows the vectors is the word that this client has left.
	peer "$1"
	heard() { [ "$(wc -l <"$HEARD")" -ge "$1" ]; }
	eventually heard $((3 + $3))
	is "messages" "$(wc -l <"$HEARD")" $((3 + $3))
}

# What the server has open as its memory.
memory_of() { # PID
	local fd target
	for fd in "/proc/$1/fd"/*; do
		target=$(readlink "$fd")
		case $target in
		/memfd:* | *socket:* | *signalfd* | *inotify* | *eventfd* | /dev/null | *.pid | "$WORK/"* | pipe:*) ;;
		*' (deleted)' | /dev/shm/*) echo "$target" && return ;;
		esac
	done
}

# --- command lines as they are typed

# Runs a line in a shell where /dev, /run and /tmp are the test's own: the latter two stand here, with
# the programs in tmp/bin, and the working directory in tmp/work.
type_line() { # LINE
	need_namespace
	rm -rf dev run tmp
	mkdir -p dev run tmp/bin tmp/work
	cp -P "$WORK/bin"/* tmp/bin
	printf '#!/bin/sh\n[ "$1" != -b ] || { shift; "$@" & exit; }\n[ "$1" != -u ] || shift 2\nexec "$@"\n' >tmp/bin/sudo
	chmod 755 tmp/bin/sudo
	unshare -m sh -e -c '
		mount -t tmpfs -o mode=755 none dev
		: >dev/null
		mount --bind /dev/null dev/null
		mkdir dev/shm dev/hugepages
		mount -t tmpfs -o size=4G none dev/shm
		mount -t "$2" none dev/hugepages
		mount --rbind dev /dev
		mount --bind run /run
		mount --bind tmp /tmp
		cd /tmp/work
		PATH=/tmp/bin:$PATH
		mkdir -p /tmp/shmem
		exec sh -c "$1"' sh "$1" "${HUGE_TYPE:-tmpfs}" >"$LOG" 2>&1 3>&- &
	SHELL_PID=$!
}

# A line that goes to the background: when it returns the server is ready, and the pidfile has its
# number.
in_background() { # SOCKET BYTES VECTORS MEMORY PIDFILE LINE
	type_line "$6"
	wait "$SHELL_PID" || no "status $? of: $6:" "$(cat "$LOG")"
	listening "$1" "$2" "$3"
	is "the pidfile of: $6" "$(cat "$5")" "$PID"
	[[ $(memory_of "$PID") == $4 ]] || no "the memory of: $6: $(memory_of "$PID")"
	ended_well "$1"
	missing "$5"
}

in_foreground() { # SOCKET BYTES VECTORS MEMORY LINE
	type_line "$5"
	listening "$1" "$2" "$3"
	[[ $(memory_of "$PID") == $4 ]] || no "the memory of: $5: $(memory_of "$PID")"
	is "pidfiles of: $5" "$(find run -name '*.pid')" ''
	ended_well "$1"
	wait "$SHELL_PID" || no "status $? of: $5:" "$(cat "$LOG")"
}

ended_well() { # SOCKET
	kill "$PID"
	eventually ended "$PID"
	kill "$PEER_PID"
	missing "$1"
}

M=1048576

@test "command lines that are all over the place start as they stand" {
	local socket=tmp/ivshmem_socket shm=/dev/shm/ivshmem pid=run/ivshmem-server.pid
	in_background $socket $((4 * M)) 2 $shm $pid 'ivshmem-server -n 2'
	in_background $socket 4096 2 $shm $pid 'ivshmem-server -n 2 -l 4096'
	in_foreground $socket $M 1 '/dev/shm/#* (deleted)' \
		'ivshmem-server -v -F -S /tmp/ivshmem_socket -M ivshmem -m /dev/shm -l 1M -n 1'
	in_foreground $socket $((4 * M)) 4 /dev/shm/fg-doorbell 'ivshmem-server -l 4M -M fg-doorbell -n 4 -F -v'
	in_foreground $socket $((1024 * M)) 1 '/dev/hugepages/#* (deleted)' \
		'sudo -b nohup ivshmem-server -Fv -m /dev/hugepages -l 1G </dev/null >/dev/null 2>&1 &'
	in_background $socket $((16 * M)) 2 '/dev/hugepages/#* (deleted)' tmp/work/FILE \
		'ivshmem-server -p FILE -n 2 -m /dev/hugepages/ -l 16M'
	in_foreground tmp/work/ivshmem-file $((2048 * M)) 1 $shm 'ivshmem-server -F -S ivshmem-file -l 2G'
}

@test "command lines of public scripts start as they stand" {
	local socket=tmp/ivshmem_socket shm=/dev/shm/ivshmem pid=run/ivshmem-server.pid
	in_background $socket $((4 * M)) 1 $shm $pid 'ivshmem-server'
	in_foreground $socket $((4 * M)) 1 $shm 'ivshmem-server -F -v &'
	in_foreground $socket $((4 * M)) 2 $shm 'ivshmem-server -vF -n 2'
	in_background $socket $((1024 * M)) 1 $shm $pid 'sudo ivshmem-server -l 1024M &
		wait'
	in_foreground $socket 4096 1 /dev/shm/ivshmem1 \
		'/tmp/bin/ivshmem-server -M ivshmem1 -p /var/run/ivshmem-server1.pid -S /tmp/ivshmem_socket -vF -l 4K -n 1'
	in_background tmp/nahanni $((2 * M)) 1 '/dev/shm/#* (deleted)' $pid \
		'sudo ivshmem-server -S /tmp/nahanni  -m /dev/shm/ -l 2M'
	in_background tmp/work/shmpath $M 1 $shm tmp/work/pidfile \
		'rm -f shmpath; ivshmem-server -S shmpath -p pidfile -l 1M -n 1'
	in_foreground tmp/sock-01 $((4 * M)) 4 '/tmp/shmem/#* (deleted)' 'nohup ivshmem-server \
		-l 4M -n 4 -F -v \
		-M fg-doorbell-01 \
		-m /tmp/shmem \
		-S /tmp/sock-01 \
		>/dev/null &'
	in_background $socket $((32 * M)) 8 $shm tmp/ivshmem.pid \
		'sudo -u qemu ivshmem-server -p /tmp/ivshmem.pid -S /tmp/ivshmem_socket -l "32M" -n 8 > /dev/null'
	in_foreground tmp/frpc.sock $((4 * M)) 1 /dev/shm/frpc-smem \
		'dd if=/dev/null of=/dev/shm/frpc-smem bs=1M seek=1
		ivshmem-server -F -S /tmp/frpc.sock -M /frpc-smem -l 4m -n 1'
	in_background $socket $((16 * M)) 2 '/dev/#* (deleted)' tmp/pid 'ivshmem-server -p /tmp/pid -n 2 -m /dev -l 16777216'
	# As QEMU's documentation has it: -m with a name.
	in_background tmp/work/path $((2 * M)) 3 /dev/shm/shm-name tmp/work/pidfile \
		'ivshmem-server -p pidfile -S path -m shm-name -l 2M -n 3'
	has "$LOG" '-m shm-name is taken as -M' 'serving /dev/shm/shm-name, size 2M'
}

@test "a hugetlbfs as it is" {
	HUGE_TYPE=hugetlbfs
	huge_pages_take 8
	in_background tmp/ivshmem_socket $((16 * M)) 2 '/dev/hugepages/#* (deleted)' tmp/work/FILE \
		'ivshmem-server -p FILE -n 2 -m /dev/hugepages/ -l 16M'
}

# --- mistakes: status 1, one line, and nothing left behind

wrong() { # TEXT... -- ARGUMENT...
	SOCKET_OPTION=-S refused 'ivshmem-server: ' "$@"
}

@test "mistakes are as many as ours, and their status is 1" {
	local size
	wrong "unknown option '-x'" "see 'ivshmem-server --help'" -- -F -x
	wrong "unknown option '-d'" 'run tm_ivshmem_server to use it' -- -d
	wrong "unknown option '-A'" 'run tm_ivshmem_server to use it' -- -A
	wrong "unknown option '--verbose'" 'for long options run tm_ivshmem_server' -- -F --verbose
	wrong "unknown option '--check'" 'for long options run tm_ivshmem_server' -- -F --check
	wrong "'--help=1': -h takes no value" -- --help=1
	wrong "unexpected argument 'more'" -- -F more
	wrong '-l needs a value' -- -F -l
	wrong '-S needs a value' -- -FS
	wrong "-S ''" -- -S ''
	wrong "-m ''" -- -m ''
	wrong "-p ''" -- -p ''
	wrong "-M ''" -- -M ''
	wrong "-M '/dev/shm/x'" 'a folder goes with -m' -- -M /dev/shm/x
	for size in 4X -1 -0 4KB M 1kk '' . .M + 1.5 0.5B 1.5e3 0x 0xK 0x1000K 0x1.8 0b100 1e3 4M.5 1..5M '4 M'; do
		wrong "-l '$size'" 'plain numbers are bytes' -- -l "$size"
	done
	wrong "-l '1.5G'" 'power of two' 1G 2G -- -l 1.5G
	for size in 8E 16E 0x10000000000000000 99999999999999999999.5K 8191.9999999999999999999P; do
		wrong "-l '$size'" 'more than' -- -l "$size"
	done
	wrong "-l '0'" 'give a size' 'tm_ivshmem_server -L' -- -F -l 0
	wrong "-l '30M'" 'power of two' 16M 32M -- -l 30M -n 8
	wrong "-l '4'" 'at least 4K' -- -l 4
	wrong "-l '9999999999G'" 'more than' -- -l 9999999999G
	wrong "-n '2049'" 2048 -- -n 2049
	wrong "-n 'x'" 2048 -- -n x
	wrong "-S '$(printf '/%.0s' {1..200})'" 107 -- -S "$(printf '/%.0s' {1..200})"
}

@test "what cannot be served names the options as they are typed here" {
	: >taken
	wrong "$DIR/taken" '-S' -- -F -M "$SHM" -S taken
	echo text >pid
	wrong "$DIR/pid exists and is not a pidfile" 'with -p' -- -M "$SHM" -p pid
	wrong "an unnamed file in $DIR/./$SHM" "an object's name goes with -M" 'No such file' -- -F -m "./$SHM"
	wrong "an unnamed file in /$SHM" "an object's name goes with -M" 'No such file' -- -F -m "/$SHM"
	wrong "an unnamed file in $DIR/pid" "an object's name goes with -M" 'Not a directory' -- -F -m pid
	ln -s nowhere dangling
	wrong "an unnamed file in $DIR/dangling" 'No such file' -- -F -m dangling
	wrong "unexpected argument 'more'" -- -F -m "$SHM" more
	missing "/dev/shm/$SHM" /dev/shm/pid /dev/shm/dangling
	truncate -s 3M "/dev/shm/$SHM"
	wrong "$SHM" 3M 2M 4M 'tm_ivshmem_server -t' -- -F -M "$SHM" -l 1M
	truncate -s 4M "/dev/shm/$SHM"
	launch_own -s "$SHM"
	wrong "$SHM is served by another server, process $PID" '-M or -m' -- -F -M "$SHM" -S other
	wrong "process $PID" 'with -S' -- -F -M "$SHM-other" -S "$SOCK"
	stop
}

launch_own() { # ARGUMENT...
	: >"$LOG"
	"$OWN" -p "$SOCK" "$@" >"$LOG" 2>&1 3>&- &
	PID=$!
	PIDS+=("$PID")
	ready
}

start_here() { # ARGUMENT...
	: >"$LOG"
	"${WRAP[@]}" "$SERVER" -F -S "$SOCK" "$@" >"$LOG" 2>&1 3>&- &
	PID=$!
	PIDS+=("$PID")
	ready
}

@test "--help goes to stdout and ends well" {
	local option
	for option in -h --help; do
		try "$SERVER" -F "$option"
		is status "$STATUS" 0
		is stderr "$(cat "$WORK/err")" ''
		has "$WORK/out" 'Usage: ivshmem-server' '-l SIZE' /var/run/ivshmem-server.pid
		is "lines too long for a terminal" "$(awk 'length > 90' "$WORK/out")" ''
	done
}

@test "sizes that QEMU's server takes" {
	local size bytes
	while read -r size bytes; do
		# QEMU itself has the last word; up to 8.0 it wants a digit first.
		if [[ $size != .* ]] && command -v qemu-img >/dev/null; then
			qemu-img create -q -f raw image "$size"
			is "bytes of $size for QEMU" "$(stat -c %s image)" "$bytes"
		fi
		start_here -M "$SHM" -l "$size"
		stop
		is "bytes of -l $size" "$(stat -c %s "/dev/shm/$SHM")" "$bytes"
		rm "/dev/shm/$SHM"
	done <<-END
		4194304B 4194304
		4194304b 4194304
		0x400000 4194304
		0X1000 4096
		0.5M 524288
		.5M 524288
		2.M 2097152
		0.0009765625g 1048576
		0.000000953674316T 1048576
		0.00390625M 4096
		00004096 4096
		+4M 4194304
	END
}

# --- the object

@test "an object that is smaller than -l is enlarged, a larger one is served as it is" {
	truncate -s 1M "/dev/shm/$SHM"
	printf something | dd of="/dev/shm/$SHM" conv=notrunc status=none
	start_here -M "$SHM"
	has "$LOG" "/dev/shm/$SHM has 1M, less than -l 4M: it is enlarged" 'size 4M'
	stop
	is size "$(stat -c %s "/dev/shm/$SHM")" $((4 * M))
	is 'what was there' "$(head -c 9 "/dev/shm/$SHM")" something
	start_here -M "$SHM" -l 8192K
	has "$LOG" 'less than -l 8M' 'size 8M'
	stop
	start_here -M "$SHM" -l 1M
	has "$LOG" 'has 8M, more than -l 1M: all of it is served' 'size 8M'
	stop
	is size "$(stat -c %s "/dev/shm/$SHM")" $((8 * M))
	# A start that fails gives it its size back.
	: >taken
	try "$SERVER" -F -M "$SHM" -l 16M -S taken
	is status "$STATUS" 1
	is size "$(stat -c %s "/dev/shm/$SHM")" $((8 * M))
}

@test "of -M and -m the last counts" {
	mkdir folder
	start_here -M "$SHM" -m folder -l 1m
	has "$LOG" "serving an unnamed file in $DIR/folder, size 1M"
	stop
	missing "/dev/shm/$SHM"
	start_here -m folder -M "$SHM" -l 1048576
	has "$LOG" "serving /dev/shm/$SHM, size 1M"
	stop
}

@test "-m with the name of no folder is -M, and stays so in another working directory" {
	local i taken="ivshmem-server: -m $SHM is taken as -M, a shared memory object: no folder"
	start_here -m "$SHM" -l 1M
	has "$LOG" "$taken" "serving /dev/shm/$SHM, size 1M"
	stop
	is size "$(stat -c %s "/dev/shm/$SHM")" "$M"
	# The last counts here as well.
	start_here -m "$SHM" -M "$SHM-other" -l 1M
	hasnt "$LOG" 'is taken as'
	has "$LOG" "serving /dev/shm/$SHM-other, size 1M"
	stop
	# A folder of that name is what it says, whatever objects there are.
	mkdir "$SHM"
	start_here -m "$SHM" -l 1M
	hasnt "$LOG" 'is taken as'
	has "$LOG" "serving an unnamed file in $DIR/$SHM, size 1M"
	stop
	rmdir "$SHM"
	for i in "-m $SHM" "-m$SHM" "-vm $SHM" "-vm$SHM"; do
		# shellcheck disable=SC2086 # one word or two
		start_here $i -l 1M
		has "$LOG" "$taken"
		mkdir "$SHM" # a restart in place must not take that
		upgrade
		kill -HUP "$PID"
		eventually restarted 1
		greeting "$SOCK" 4 >"$WORK/greeting"
		has "$WORK/greeting" "-1 fd $M"
		is "the command line of $i" "$(tr '\0' ' ' <"/proc/$PID/cmdline")" "$SERVER -F -S $SOCK ${i/m/M} -l 1M "
		stop
		rmdir "$SHM"
		is "how often it is said of $i" "$(grep -c 'is taken as' "$LOG")" 1
	done
}

# --- the pidfile

# With a /run that is the folder run, or whatever stands there.
own_run() {
	need_namespace
	mkdir -p run
	WRAP=(unshare -m sh -c 'mount --bind run /run && exec "$@"' sh)
}

@test "a default pidfile that cannot be written is done without, one that was asked for is not" {
	own_run
	mkdir run/ivshmem-server.pid
	try "${WRAP[@]}" "$SERVER" -S "$SOCK" -M "$SHM"
	is status "$STATUS" 0
	has "$WORK/err" 'cannot use /var/run/ivshmem-server.pid' 'going on without a pidfile: choose another path with -p'
	listening "$SOCK" $((4 * M)) 1
	ended_well "$SOCK"
	[ -d run/ivshmem-server.pid ]
	wrong "$DIR/run" -- -M "$SHM" -p run
	wrong "$DIR/missing/pid" 'No such file' -- -M "$SHM" -p missing/pid
	# Nor does anybody else's account need it.
	rmdir run/ivshmem-server.pid
	need_tool setpriv
	chown "$NOBODY" "$DIR"
	chmod 755 "$WORK/bin"
	try "${WRAP[@]}" setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups "$SERVER" -S "$SOCK" -m "$DIR"
	is "status: $(cat "$WORK/err")" "$STATUS" 0
	has "$WORK/err" '/var/run/ivshmem-server.pid' 'Permission denied' 'going on without a pidfile'
	listening "$SOCK" $((4 * M)) 1
	ended_well "$SOCK"
}

@test "a second server leaves the default pidfile to the first" {
	local first
	own_run
	try "${WRAP[@]}" "$SERVER" -S "$SOCK" -M "$SHM"
	is status "$STATUS" 0
	is 'lines' "$(grep -c pidfile "$WORK/err")" 0
	first=$(listener "$SOCK")
	PIDS+=("$first")
	is pidfile "$(cat run/ivshmem-server.pid)" "$first"
	try "${WRAP[@]}" "$SERVER" -S other -M "$SHM-2"
	is status "$STATUS" 0
	has "$WORK/err" "held by another server" "process $first" 'with -p' 'going on without a pidfile'
	listening other $((4 * M)) 1
	ended_well other
	is pidfile "$(cat run/ivshmem-server.pid)" "$first"
	kill "$first"
	eventually ended "$first"
	missing run/ivshmem-server.pid
}

@test "a second server that cannot start says only why, and leaves all to the first" {
	local first rest
	own_run
	try "${WRAP[@]}" "$SERVER" -S "$SOCK" -M "$SHM"
	is status "$STATUS" 0
	first=$(listener "$SOCK")
	PIDS+=("$first")
	for rest in "-S other -M $SHM|/dev/shm/$SHM is served by another server" \
		"-S $SOCK -M $SHM-2|$SOCK belongs to a server that is running"; do
		# shellcheck disable=SC2086 # several words
		try "${WRAP[@]}" "$SERVER" ${rest%|*}
		is "status: $rest" "$STATUS" 1
		is "lines: $(cat "$WORK/err")" "$(wc -l <"$WORK/err")" 1
		has "$WORK/err" "ivshmem-server: ${rest#*|}, process $first: stop"
		missing other "/dev/shm/$SHM-2"
	done
	is 'who listens' "$(listener "$SOCK")" "$first"
	is pidfile "$(cat run/ivshmem-server.pid)" "$first"
	kill "$first"
	eventually ended "$first"
	missing run/ivshmem-server.pid
}

@test "in the foreground there is no pidfile, not even the one of -p" {
	own_run
	echo 'something else' >pid
	start_here -M "$SHM" -p pid
	is 'what is in /run' "$(ls run)" ''
	is 'what stands there' "$(cat pid)" 'something else'
	stop
}

# --- restart in place

runs() { # PATH
	[ "$(stat -L -c %d:%i "/proc/$PID/exe")" = "$(stat -L -c %d:%i "$1")" ]
}

restarted() { # TIMES
	[ "$(grep -c '^ivshmem-server: restarted in place' "$LOG")" -ge "$1" ]
}

upgrade() {
	cp "$OWN" "$OWN.new"
	mv "$OWN.new" "$OWN"
}

@test "HUP keeps the name, its options and relative paths" {
	local i
	ln -s ../bin "$WORK/d/bin"
	mkdir folder elsewhere
	SERVER=bin/ivshmem-server SOCK=sock start_here -m folder -n 2 -l 2M
	peer
	for i in 1 2; do
		upgrade
		kill -HUP "$PID"
		eventually restarted "$i"
		runs "$OWN"
		is 'its name' "$(cat "/proc/$PID/comm")" ivshmem-server
		is 'its command line' "$(tr '\0' ' ' <"/proc/$PID/cmdline")" \
			"bin/ivshmem-server -F -S $DIR/sock -m $DIR/folder -n 2 -l 2M "
		greeting sock 5 >"$WORK/greeting"
		has "$WORK/greeting" '-1 fd 2097152'
	done
	stop
	has "$LOG" 'ivshmem-server: restarted in place' 'disappears with its last user'
}

@test "HUP in the background, found by the name in PATH: program, pidfile and process stay" {
	local pid
	own_run
	PATH=$WORK/bin:$PATH
	try "${WRAP[@]}" ivshmem-server -S sock -M "$SHM" -p pid
	is status "$STATUS" 0
	pid=$(cat pid)
	PID=$pid
	PIDS+=("$PID")
	peer
	upgrade
	kill -HUP "$PID"
	eventually runs "$OWN"
	greeting sock 4 >"$WORK/greeting"
	is 'its command line' "$(tr '\0' ' ' <"/proc/$PID/cmdline")" \
		"ivshmem-server -S $DIR/sock -M $SHM -p $DIR/pid "
	is 'who listens' "$(listener sock)" "$pid"
	is pidfile "$(cat pid)" "$pid"
	kill "$PID"
	eventually ended "$PID"
	missing sock pid
}

# --- our own name

@test "by our own name, options that only QEMU has are answered with the word for them" {
	SERVER=$OWN
	local rest="for QEMU's option letters run this as ivshmem-server"
	misuse "unknown option '-F': the server stays in the foreground by default; $rest" -- -F
	misuse "unknown option '-F'" "$rest" -- -vF -n 2
	misuse "unknown option '-S': the socket goes with -p; $rest" -- -S /tmp/ivshmem_socket
	misuse "unknown option '-M': a shared memory object goes with -s; $rest" -- -M "$SHM"
	misuse "unknown option '-l': the size goes with -m; $rest" -- -n 2 -l 4096
	misuse "-m/--size '/dev/hugepages'" "a folder goes with -A; $rest" -- -m /dev/hugepages
	misuse "-m/--size 'huge/'" "a folder goes with -A; $rest" -- -m huge/
}

# --- QEMU's client

client_declines() { # TEXT ARGUMENT...
	try "$WORK/bin/ivshmem-client" "${@:2}" </dev/null
	is "status of: ${*:2}: $(cat "$WORK/err")" "$STATUS" 1
	is "lines about: ${*:2}" "$(wc -l <"$WORK/err")" 1
	has "$WORK/err" 'ivshmem-client: ' "$1"
}

# Starts QEMU's client, to which lines for descriptor 8 are typed through a pipe, as by a script.
client_typed() { # ARGUMENT...
	rm -f words
	mkfifo words
	"$WORK/bin/ivshmem-client" "$@" <words >"$WORK/shown" 2>"$WORK/err" 3>&- &
	CLIENT_PID=$!
	PIDS+=("$CLIENT_PID")
	exec 8>words
}

client_ends() { # STATUS
	local status=0
	exec 8>&-
	wait "$CLIENT_PID" || status=$?
	is "status of QEMU's client: $(cat "$WORK/err")" "$status" "$1"
}

@test "QEMU's client: its options, and no others" {
	local option
	for option in -h --help -vh; do
		try "$WORK/bin/ivshmem-client" "$option"
		is "status of $option" "$STATUS" 0
		is 'stderr' "$(cat "$WORK/err")" ''
		has "$WORK/out" 'Usage: ivshmem-client' '-S PATH' /tmp/ivshmem_socket
		is 'lines too long for a terminal' "$(awk 'length > 90' "$WORK/out")" ''
	done
	for option in -n -D -V -x; do
		client_declines "unknown option '$option'; QEMU's client has few, for ours run ivshmem_client" -S "$SOCK" "$option" 1
	done
	client_declines "option '--verbose' is unknown" --verbose
	client_declines "option '--help=1'" --help=1
	client_declines "option '-S' needs a value" -S
	client_declines "see 'ivshmem-client --help'" -vS
	client_declines "unexpected argument '/tmp/ivshmem_socket': a socket goes with -S" /tmp/ivshmem_socket
	client_declines "unexpected argument 'list'" -S "$SOCK" list
	client_declines 'give a path of 1 to' -S ''
}

@test "QEMU's client: what a script types at it is done, and shown as scripts expect it" {
	start_here -M "$SHM" -n 2
	"$CLIENT" -n 2 "$SOCK" wait 1 >"$WORK/waiting" 2>&1 3>&- &
	local waiting=$!
	PIDS+=("$waiting")
	eventually grep -q '^id 0' "$WORK/waiting"
	client_typed -v -S "$SOCK"
	echo 'int 0 1' >&8
	wait "$waiting"
	has "$WORK/waiting" 'vector 1 1'
	eventually grep -q 'peer 0 left' "$WORK/shown"
	printf 'int 1 all;dump\r?\n;\nlost;int 1 2\nint 0 0\nquit;int 1 1\n' >&8
	client_ends 0 # as QEMU's, whatever was not done
	sed -i 's/fd=[0-9]*/fd=N/; s/socket [0-9]*/socket N/' "$WORK/shown"
	has "$WORK/shown" $'dump           show' 'listen on server socket N: our_id=1 memory=4194304 vectors=2' \
		$'cmd> our_id = 1\n  vector 0 is enabled (fd=N)\n  vector 1 is enabled (fd=N)\ndump  '
	is 'help, at the beginning and when asked for' "$(grep -c '^int ID VECTOR' "$WORK/shown")" 2
	is 'errors' "$(grep -v ': message ' "$WORK/err")" "ivshmem-client: 'lost': unknown command; 'help' lists the commands
ivshmem-client: node 1 has no vector 2: it has 2, numbered from 0
ivshmem-client: there is no node 0"
	has "$WORK/err" 'ivshmem-client: message -1 with a descriptor'
	# All at once, and an input that ends.
	: >"$WORK/waiting"
	"$CLIENT" -n 2 "$SOCK" wait 0 >"$WORK/waiting" 2>&1 3>&- &
	waiting=$!
	PIDS+=("$waiting")
	eventually grep -q '^id 0' "$WORK/waiting"
	try "$WORK/bin/ivshmem-client" -S "$SOCK" <<<'int 0 0'
	is "status: $(cat "$WORK/err")" "$STATUS" 0
	wait "$waiting"
	has "$WORK/waiting" 'vector 0 1'
	stop
}

@test "QEMU's client is rung, and waits for its server, also with what a script has typed before" {
	client_typed -S "$SOCK"
	printf 'int 0 1\nint 0 1\n' >&8
	eventually grep -q 'cannot connect to .*trying to connect again, every second' "$WORK/err"
	start_here -M "$SHM" -n 2
	eventually grep -q 'receive notification from peer_id=0 vector=1$' "$WORK/shown"
	"$CLIENT" "$SOCK" ring 0 0
	eventually grep -q 'receive notification from peer_id=0 vector=0$' "$WORK/shown"
	stop
	eventually grep -q '^disconnected from server$' "$WORK/shown"
	eventually grep -q 'the server closed the connection; trying' "$WORK/err"
	rm "/dev/shm/$SHM"
	start_here -M "$SHM" -n 3
	eventually grep -q 'our_id=0 .*vectors=3' "$WORK/shown"
	echo quit >&8
	client_ends 0
	stop
}
