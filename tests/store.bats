#!/usr/bin/env bats
# The backing store: which objects are taken, at which size, and what is left of them by starts that
# fail, by other servers, and by ends of every kind.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2119,SC2153,SC2314 # each test is a shell of its own

load lib/common

teardown_more() {
	[ -z "${LOOP-}" ] || losetup -d "$LOOP" || true
	[ -z "${LISTENER-}" ] || kill "$LISTENER" 2>/dev/null || true
	huge_pages_return
}

# A file with something in it, of the size given.
make_file() { # PATH SIZE
	truncate -s "$2" "$1"
	printf 'something' | dd of="$1" conv=notrunc status=none
}

bytes() { # PATH
	stat -c %s "$1"
}

# Runs the server as an account that owns nothing, from a copy that it can read; it may write here.
as_nobody() {
	need_root
	need_tool setpriv
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	SERVER=$WORK/tm_ivshmem_server
	chown "$NOBODY:$NOBODY" "$DIR"
	WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
}

# A file system of its own, small enough to be filled.
small_tmpfs() { # SIZE
	need_root
	mkdir small
	mount -t tmpfs -o "size=$1,mode=755" tmpfs small || skip "no tmpfs can be mounted here"
}

small_ext4() { # SIZE [PERCENT THAT ONLY ROOT MAY USE]
	need_root
	need_tool mkfs.ext4 mount
	mkdir small
	truncate -s "$1" "$WORK/image"
	mkfs.ext4 -q -F -m "${2:-0}" -O ^has_journal "$WORK/image"
	mount -o loop "$WORK/image" small || skip "no loop device can be mounted here"
	rmdir small/lost+found
}

# --- sizes

@test "a new object: 1M, or what -m says" {
	serves "serving $DIR/store, size 1M" -- -f store
	is bytes "$(bytes store)" 1048576
	serves "serving $DIR/other, size 16K" -- -f other -m 16K
	is bytes "$(bytes other)" 16384
	serves "$SHM" 'size 1M' -- -s "$SHM"
	is bytes "$(bytes "/dev/shm/$SHM")" 1048576
	serves "$SHM-2" 'size 2M' -- -s "$SHM-2" -m 2
	is bytes "$(bytes "/dev/shm/$SHM-2")" 2097152
}

@test "an empty object is sized like a new one, and keeps owner and mode" {
	local before
	: >store
	chmod 604 store
	before=$(stat -c '%i %a %u:%g' store)
	serves 'size 1M' -- -f store
	is bytes "$(bytes store)" 1048576
	is 'inode, mode, owner' "$(stat -c '%i %a %u:%g' store)" "$before"
	: >store
	serves 'size 8M' -- -f store -m 8
	is bytes "$(bytes store)" 8388608
	is 'inode, mode, owner' "$(stat -c '%i %a %u:%g' store)" "$before"
	: >"/dev/shm/$SHM"
	serves 'size 4M' -- -s "$SHM" -m 4
	is bytes "$(bytes "/dev/shm/$SHM")" 4194304
}

@test "an existing object keeps its size: no -m, an equal one, a smaller one" {
	local before
	make_file store 4M
	make_file "/dev/shm/$SHM" 4M
	before=$(state)
	serves 'size 4M' -- -f store
	hasnt "$LOG" 'more than'
	serves 'size 4M' -- -f store -m 4M
	hasnt "$LOG" 'more than'
	serves 'size 4M' 'more than -m 2M' "$DIR/store has 4M" -- -f store -m 2M
	serves 'size 4M' -- -s "$SHM"
	serves 'size 4M' 'more than -m 16K' -- -s "$SHM" -m 16K
	is 'everything' "$(state)" "$before"
}

@test "an existing object that is smaller than -m is refused without -t" {
	make_file store 4M
	refused "$DIR/store" 4M 8M -t -- -f store -m 8M
	refused "$DIR/store" 4M 1T -t -- -f store -m 1T
	make_file "/dev/shm/$SHM" 4K
	refused "$SHM" 4K 1M -t -- -s "$SHM" -m 1
}

@test "an object in which nobody has ever written is as good as new: -m enlarges it" {
	local before
	serves 'size 1M' -- -f store # as it is left by a first start without options
	serves "$DIR/store has 1M, less than -m 4G, and nothing in it: it is enlarged" 'size 4G' -- \
		-f store -m 4G
	is bytes "$(bytes store)" 4294967296
	# None is cut, and a start that fails leaves it as it was.
	serves 'size 4G' 'more than -m 1M' -- -f store -m 1M
	: >taken
	SAID=2 refused "$DIR/taken" 'it is enlarged' -- -f store -m 8G -p taken
	is bytes "$(bytes store)" 4294967296
	serves 'size 1M' -- -s "$SHM"
	serves 'nothing in it' 'size 4M' -- -s "$SHM" -m 4M
	# One byte, even at the end, is something; so are blocks of zeros.
	truncate -s 1M end
	printf x | dd of=end bs=1 seek=1048575 conv=notrunc status=none
	refused "$DIR/end" 1M 4M -t -- -f end -m 4M
	head -c 1M /dev/zero >zeros
	refused "$DIR/zeros" 1M 4M -t -- -f zeros -m 4M
	greeting_writes() {
		start -s "$SHM"
		greeting "$SOCK" 4 'written by a node' >/dev/null
		stop
	}
	greeting_writes
	refused "$SHM" 4M 8M -t -- -s "$SHM" -m 8M
}

@test "-t enlarges: what was there stays" {
	local before
	make_file store 1M
	before=$(sha256sum <store)
	serves 'size 8M' -- -f store -t -m 8
	hasnt "$LOG" shrank shrinks
	is bytes "$(bytes store)" 8388608
	is 'the start' "$(head -c 1M store | sha256sum)" "$before"
	is 'the rest, without zeros' "$(tail -c +1048577 store | tr -d '\0' | wc -c)" 0
	make_file "/dev/shm/$SHM" 5000
	serves 'size 1M' -- -s "$SHM" -t -m 1
	is bytes "$(bytes "/dev/shm/$SHM")" 1048576
	# For a new object it has nothing to do.
	serves 'size 2M' -- -f new -t -m 2
	is bytes "$(bytes new)" 2097152
}

@test "-t shrinks, and says so" {
	make_file store 8M
	serves 'size 2M' 8M shr -- -f store -t -m 2
	is bytes "$(bytes store)" 2097152
	serves 'size 2M' -- -f store -t -m 2
	hasnt "$LOG" shrank shrinks
	make_file "/dev/shm/$SHM" 8M
	serves 'size 4K' 8M shr -- -s "$SHM" --truncate --size=4K
	is bytes "$(bytes "/dev/shm/$SHM")" 4096
}

@test "-t with a start that fails later has changed nothing" {
	make_file store 2M
	make_file "/dev/shm/$SHM" 2M
	: >empty
	: >taken
	refused "$DIR/taken" -- -f store -t -m 1 -p taken
	refused "$DIR/taken" -- -f store -t -m 8 -p taken
	refused "$DIR/taken" -- -f store -t -m 8 -a -p taken
	refused "$DIR/taken" -- -s "$SHM" -t -m 1 -p taken
	refused "$DIR/taken" -- -s "$SHM" -t -m 8 -p taken
	refused "$DIR/taken" -- -f empty -m 8 -p taken
	refused "$DIR/taken" -- -f new -m 8 -p taken
	rm "/dev/shm/$SHM"
	refused "$DIR/taken" -- -s "$SHM" -m 8 -p taken
	# A server that lives counts just as much.
	start -s "$SHM"
	refused "$SOCK" -- -f store -t -m 1
	refused "$SOCK" -- -f new -a -m 1 -i pidfile
	stop
}

@test "an existing object of a size that QEMU cannot map: the nearest are named, and -t" {
	make_file store 3M
	refused "$DIR/store" 3M 2M 4M 'power of two' -t -- -f store
	refused "$DIR/store" 3M 2M 4M -t -- -f store -m 2M
	make_file store 1000
	refused "$DIR/store" '1000 bytes' 4K -t -- -f store
	make_file store 1048577
	refused "$DIR/store" '1048577 bytes' 1M 2M -t -- -f store
	refused "$DIR/store" '1048577 bytes' 1M 1028K page -- -f store -L
	make_file "/dev/shm/$SHM" 3M
	refused "$SHM" 3M 2M 4M -t -- -s "$SHM"
	# -t is the way out.
	serves 'size 2M' -- -f store -t -m 2
	serves 'size 4M' -- -s "$SHM" -t -m 4
}

@test "--legacy takes any size of whole pages" {
	make_file store 12K
	MESSAGES=3
	serves 'size 12K' -- -f store -L
	serves 'size 20K' -- -f store -L -t -m 20K
	make_file "/dev/shm/$SHM" 3M
	serves 'size 3M' -- -s "$SHM" -L
	serves 'size 3M' -- -L -f new -m 3M
	is bytes "$(bytes new)" 3145728
}

@test "--legacy -m 0 touches no object" {
	local before
	make_file store 3M
	before=$(state)
	start --default-file store -L -m 0
	has "$LOG" 'without memory'
	is 'the greeting' "$(greeting "$SOCK" 2)" $'0\n0 fd 0'
	stop
	is 'everything' "$(state)" "$before"
}

@test "a size that the file system cannot hold" {
	refused "$DIR/store" 4194304T 'File too large' -- -f store -m 4194304T
	make_file store 1M
	refused "$DIR/store" 4194304T 'File too large' -- -f store -t -m 4194304T
}

@test "a size beyond the limit of this process" {
	need_tool prlimit
	WRAP=(prlimit --fsize=4194304)
	refused "$DIR/store" 8M 'File too large' -- -f store -m 8M
	: >empty
	refused "$DIR/empty" 8M 'File too large' -- -f empty -m 8M -a
	refused "$DIR/store" 8M 'File too large' -- -d -f store -m 8M
	serves 'size 4M' -- -f store -m 4M
	WRAP=(prlimit --fsize=65536)
	refused 'ledger' 'File too large' -- -f store -m 64K
}

# --- memory without a name

# What the server has open that is called so.
unnamed() { # TEXT
	local fd
	for fd in "/proc/$PID/fd"/*; do
		[[ $(readlink "$fd") != *"$1"* ]] || echo "$fd"
	done
}

# Cuts the memory as a node would, by the descriptor that it got; says what came of it.
# shellcheck disable=SC2016
cut_by_a_node() { # CALL...
	perl -e '
		use Socket;
		require "sys/syscall.ph";
		socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
		connect($s, pack_sockaddr_un(shift)) or die "connect: $!";
		my $memory;
		for (1 .. 3) { # version, ID, memory
			my ($data, $control) = (pack("q", 0), pack("x24"));
			my $message = pack("Q L x4 P Q P Q L x4", 0, 0, pack("P Q", $data, 8), 1, $control, 24, 0);
			syscall(&SYS_recvmsg, fileno($s), $message, 0) == 8 or die "recvmsg: $!";
			$memory = unpack "x16 l", $control;
		}
		open(my $file, "+<&=", $memory) or die "fdopen: $!";
		my $size = (stat $file)[7];
		for (0, $size / 2, $size * 2) {
			print "$_: ", (truncate($file, $_) ? "done" : $!), "\n";
		}
		fcntl($file, 1033, 8) and print "sealed against writing\n" or print "seal: $!\n";
		print "size: ", (stat $file)[7], "\n"' "$SOCK" 3>&-
}

@test "-A: memory that has no name, and goes with its last user" {
	local memory
	start -A
	has "$LOG" 'serving anonymous memory, size 1M, vectors 1'
	memory=$(unnamed memfd:ivshmem)
	is 'descriptors of it' "$(wc -l <<<"$memory")" 1
	is 'descriptors of other memory' "$(unnamed /dev/shm)" ''
	peer
	eventually grep -q '^-1 fd 1048576' "$HEARD"
	kill -USR1 "$PID"
	eventually grep -q ' 1 node connected' "$LOG"
	stop
	has "$LOG" 'ending, anonymous memory disappears with its last user'
	hasnt "$LOG" warning 'no longer at'
	is 'what is here' "$(ls)" ''
	# The node has it still.
	PID=$PEER_PID
	[ -n "$(unnamed memfd:ivshmem)" ]
	serves 'size 4M' -- --anonymous -m 4m
	MESSAGES=3 serves 'size 12K' -- -A -L -m 12K
}

@test "-A: no node can cut the memory, enlarge it, or seal it against the others" {
	start -A -m 2M
	cut_by_a_node >"$WORK/cut"
	is 'what came of it' "$(cat "$WORK/cut")" "$(printf '%s\n' '0: Operation not permitted' \
		'1048576: Operation not permitted' '4194304: Operation not permitted' \
		'seal: Operation not permitted' 'size: 2097152')"
	stop
	# A file cannot be kept from that, wherever it is: so the sealing is what the test sees.
	start -f store -m 2M
	cut_by_a_node >"$WORK/cut"
	has "$WORK/cut" '0: done'
	stop
}

@test "-A=DIR: a file there that has no name" {
	local memory
	mkdir folder
	start --anonymous=folder -m 2M
	has "$LOG" "serving an unnamed file in $DIR/folder, size 2M"
	memory=$(unnamed "$DIR/folder/")
	is 'descriptors of it' "$(wc -l <<<"$memory")" 1
	is 'its links, size and mode' "$(stat -L -c '%h %s %a' "$memory")" '0 2097152 600'
	is 'what is there' "$(ls -A folder)" ''
	peer
	eventually grep -q '^-1 fd 2097152' "$HEARD"
	stop
	is 'what is there' "$(ls -A folder)" ''
	serves "an unnamed file in $DIR/folder, size 1M" -- -Afolder
	serves "an unnamed file in $DIR/., size 1M" -- -A -A.
	refused "an unnamed file in $DIR/missing" 'No such file' -- --anonymous=missing
	: >file
	refused "an unnamed file in $DIR/file" 'Not a directory' -- --anonymous=file
	: >taken
	refused "$DIR/taken" -- -A -p taken
	refused "$DIR/taken" -- --anonymous=folder -p taken
}

@test "-A=DIR where the file system makes no file without a name: created and removed" {
	need_strace
	local memory
	mkdir folder
	WRAP=(strace -D -f -o "$WORK/trace" -P "$DIR/folder" -e trace=openat
		--inject=openat:error=EOPNOTSUPP:when=1)
	start -Afolder
	has "$WORK/trace" O_TMPFILE EOPNOTSUPP
	memory=$(unnamed "$DIR/folder/ivshmem.")
	is 'links and mode of it' "$(stat -L -c '%h %a' "$memory")" '0 600'
	is 'what is there' "$(ls -A folder)" ''
	greeting "$SOCK" | grep -q '^-1 fd 1048576'
	stop
}

@test "-A -a reserves every block, and a file system that is too small refuses" {
	start -A -am 8
	is 'blocks of it' "$(($(stat -L -c '%b * %B' "$(unnamed memfd:ivshmem)")))" 8388608
	stop
	start -A -m 8
	is 'blocks of it' "$(stat -L -c %b "$(unnamed memfd:ivshmem)")" 0
	stop
	small_tmpfs 2M
	refused "an unnamed file in $DIR/small" 4M 2M -- -Asmall -m 4M
	head -c 1536K /dev/zero >small/filler
	refused "an unnamed file in $DIR/small" 'No space left on device' -- -Asmall -a -m 1M
	serves 'size 1M' warning 'an unnamed file' -- -Asmall -m 1M
	is 'what is there' "$(ls -A small)" filler
}

# --- what can be an object

@test "what is no regular file is refused and left alone" {
	mkdir folder
	mkfifo fifo
	perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "socket", Listen => 1)'
	refused "$DIR/folder" -- -f folder
	refused "$DIR/folder" -- -f folder/
	refused "$DIR" -- -f .
	refused "$DIR/fifo" -- -f fifo
	refused "$DIR/socket" -- -f socket
	refused /dev/null -- -f /dev/null
	refused /dev/zero -- -f /dev/zero -m 1M
	refused /dev/null -- -f /dev/null -t -m 1M
	refused /dev/shm -- -f /dev/shm
	mkdir "/dev/shm/$SHM-folder"
	mkfifo "/dev/shm/$SHM"
	refused "$SHM" -- -s "$SHM"
	refused "$SHM-folder" -- -s "$SHM-folder"
	rmdir "/dev/shm/$SHM-folder"
}

@test "a block device is refused and left alone" {
	local before
	need_root
	need_tool losetup
	make_file "$WORK/image" 1M
	before=$(sha256sum <"$WORK/image")
	LOOP=$(losetup --find --show "$WORK/image") || skip "this machine has no loop devices"
	refused "$LOOP" 'not a regular file' -- -f "$LOOP"
	refused "$LOOP" 'not a regular file' -- -f "$LOOP" -t -m 4K
	ln -s "$LOOP" link
	refused "$DIR/link" 'not a regular file' -- -f link
	is 'what is on it' "$(sha256sum <"$WORK/image")" "$before"
}

@test "symbolic links: one to a file is fine, others are refused" {
	make_file store 1M
	ln -s store link
	serves 'size 1M' -- -f link
	is 'the link' "$(readlink link)" store
	is 'the folder' "$(ls)" $'link\nstore'
	ln -s nothing dangling
	refused "$DIR/dangling" 'a link to a file that does not exist' -- -f dangling
	ln -s loop loop
	refused "$DIR/loop" -- -f loop
	ln -s /dev/null null
	refused "$DIR/null" -- -f null
	# In the folder of shared memory nobody may send us elsewhere.
	ln -s "$DIR/store" "/dev/shm/$SHM"
	refused "$SHM" -- -s "$SHM" -t -m 2M
}

@test "paths that lead nowhere" {
	refused "$DIR/missing/store" 'No such file or directory' -- -f missing/store
	make_file file 4K
	refused "$DIR/file/store" 'Not a directory' -- -f file/store
	refused "$DIR/file/" 'Not a directory' -- -f file/
	refused 'File name too long' -- -f "$(printf 'n%.0s' {1..256})"
	refused "$DIR/new/" -- -f new/
}

@test "what may not be written is refused, as an account without rights" {
	as_nobody
	make_file readable 1M
	chmod 444 readable
	refused "$DIR/readable" 'Permission denied' -- -f readable
	refused "$DIR/readable" 'Permission denied' -- -f readable -t -m 4K
	make_file secret 1M
	chmod 600 secret
	refused "$DIR/secret" 'Permission denied' -- -f secret
	make_file own 1M
	chown "$NOBODY" own
	chmod 400 own
	refused "$DIR/own" 'Permission denied' -- -f own
	mkdir closed
	chmod 755 closed
	refused "$DIR/closed/new" 'Permission denied' -- -f closed/new
	mkdir locked
	make_file locked/store 1M
	chmod 666 locked/store
	chmod 700 locked
	refused "$DIR/locked/store" 'Permission denied' -- -f locked/store
	make_file "/dev/shm/$SHM" 1M
	chmod 644 "/dev/shm/$SHM"
	refused "$SHM" 'Permission denied' -- -s "$SHM"
	# What it may write, it serves.
	chmod 600 own
	serves 'size 1M' -- -f own
	serves 'size 1M' -- -f new
	is 'owner of the new one' "$(stat -c %u:%g new)" "$NOBODY:$NOBODY"
}

@test "a read-only file system" {
	need_namespace
	mkdir ro
	make_file ro/store 1M
	WRAP=(unshare -m sh -c 'mount --bind ro ro && mount -o remount,bind,ro ro && exec "$@"' sh)
	refused "$DIR/ro/store" 'Read-only file system' -- -f ro/store
	refused "$DIR/ro/new" 'Read-only file system' -- -f ro/new
	refused "$DIR/ro/sock" 'Read-only file system' -- -f store -p ro/sock
}

@test "a program that is being run" {
	cp "$(command -v sleep)" program
	./program 1000 3>&- &
	PIDS+=($!)
	eventually test "/proc/$!/exe" -ef program
	refused "$DIR/program" 'Text file busy' -- -f program
}

@test "a file system whose files cannot be mapped" {
	[ -w /proc/sys/kernel/hostname ] || skip "/proc/sys cannot be written here"
	local before
	before=$(hostname)
	refused /proc/sys/kernel/hostname -- -f /proc/sys/kernel/hostname
	is hostname "$(hostname)" "$before"
}

# --- file systems with too little room

@test "memory larger than its tmpfs" {
	small_tmpfs 2M
	refused "$DIR/small/store" 4M 2M -m -- -f small/store -m 4M
	make_file small/store 1M
	refused "$DIR/small/store" 4M 2M -- -f small/store -t -m 4M
	serves 'size 2M' -- -f small/store -t -m 2M
	rm small/store
	# The same for shared memory objects, in a namespace with a small /dev/shm.
	need_namespace
	WRAP=(unshare -m sh -c 'mount -t tmpfs -o size=2M tmpfs /dev/shm; "$@"; status=$?
		ls -A /dev/shm >"$0"; exit $status' "$WORK/shm")
	refused "$SHM" 4M 2M -m -- -s "$SHM" -m 4M
	is 'what is in /dev/shm' "$(cat "$WORK/shm")" ''
}

@test "a sparse file larger than the free space is served with a warning that names -a" {
	small_ext4 16M
	serves 'size 64M' warning "$DIR/small/store" 64M -a -- -f small/store -m 64M
	rm small/store
	serves 'size 4M' -- -f small/store -m 4M
	hasnt "$LOG" warning
	# A file that has all its blocks needs no more, however little is free.
	fallocate -l 4M small/store
	dd if=/dev/zero of=small/filler bs=64K status=none 2>/dev/null || true
	serves 'size 4M' -- -f small/store
	hasnt "$LOG" warning
	truncate -s 0 small/store
	dd if=/dev/zero of=small/filler2 bs=64K status=none 2>/dev/null || true
	serves 'size 4M' warning -- -f small/store -m 4M
}

@test "-a reserves every block: of a new file, an existing one, shared memory" {
	serves 'size 8M' -- -f store -m 8 -a
	hasnt "$LOG" % reserving
	[ $(($(stat -c '%b * %B' store))) -ge 8388608 ] || no "$(stat store)"
	make_file sparse 8M
	[ $(($(stat -c '%b * %B' sparse))) -lt 8388608 ] || no "$(stat sparse)"
	sha256sum sparse >"$WORK/sums"
	serves 'size 8M' -- -f sparse --allocate
	[ $(($(stat -c '%b * %B' sparse))) -ge 8388608 ] || no "$(stat sparse)"
	sha256sum -c --quiet "$WORK/sums"
	serves 'size 16M' -- -f sparse -a -t -m 16
	[ $(($(stat -c '%b * %B' sparse))) -ge 16777216 ] || no "$(stat sparse)"
	serves 'size 4M' -- -s "$SHM" -a -m 4
	[ $(($(stat -c '%b * %B' "/dev/shm/$SHM"))) -ge 4194304 ] || no "$(stat "/dev/shm/$SHM")"
	# Without -a it stays sparse.
	serves 'size 8M' -- -f thin -m 8
	[ $(($(stat -c '%b * %B' thin))) -lt 65536 ] || no "$(stat thin)"
}

@test "-a on a file system that is too full: a new file is gone, an existing one as it was" {
	local used
	small_ext4 16M
	used=$(stat -f -c %f small)
	refused "$DIR/small/store" 64M 'No space left on device' -- -f small/store -a -m 64M
	refused "$DIR/small/store" 16M 'No space left on device' -- -f small/store -a -m 16M
	is 'free blocks' "$(stat -f -c %f small)" "$used"
	make_file small/store 4M
	refused "$DIR/small/store" 64M 'No space left on device' -- -f small/store -a -t -m 64M
	truncate -s 64M small/store
	refused "$DIR/small/store" 64M 'No space left on device' -- -f small/store -a
	: >small/empty
	refused "$DIR/small/empty" 64M 'No space left on device' -- -f small/empty -a -m 64M
	# With the room it works.
	serves 'size 8M' -- -f small/new -a -m 8M
	[ $(($(stat -c '%b * %B' small/new))) -ge 8388608 ] || no "$(stat small/new)"
}

@test "-a on a tmpfs that is too full" {
	small_tmpfs 8M
	head -c 6M /dev/zero >small/filler
	refused "$DIR/small/store" 4M 'No space left on device' -- -f small/store -a -m 4M
	rm small/filler
	serves 'size 4M' -- -f small/store -a -m 4M
}

# The server sees another /proc/meminfo, where one is given, and a cgroup of version 2 called
# /outer/inner in what $CGROUPS is mounted on.
# shellcheck disable=SC2034
other_memory() { # [AVAILABLE KB, SWAP KB]
	need_namespace
	[ "$#" = 0 ] || printf 'MemTotal: 9 kB\nMemAvailable: %8d kB\nSwapFree: %12d kB\n' "$@" >"$WORK/meminfo"
	printf '1:cpu:/elsewhere\n0::/outer/inner\n' >"$WORK/cgroup"
	WRAP=(unshare -m sh -c 'work=$0
		[ ! -e "$work/meminfo" ] || mount --bind "$work/meminfo" /proc/meminfo || exit 3
		mount --bind "$work/cgroup" /proc/$$/cgroup || exit 3
		mount --bind "$work/cgroups" /sys/fs/cgroup || exit 3
		exec "$@"' "$WORK")
	mkdir -p "$WORK/cgroups/outer/inner"
}

@test "-a of more memory than there is: refused before the first block, and the limit is named" {
	local outer=$WORK/cgroups/outer inner=$WORK/cgroups/outer/inner
	need_strace
	other_memory 65536 32768
	refused "$SHM" 'this machine has only 96M of memory left' 'cannot reserve 128M' -m -- -s "$SHM" -m 128M -a
	refused 'anonymous memory' 'this machine has only 96M' -- -A -m 128M -a
	refused 'this machine has only 96M' -- -d -i pid -s "$SHM" -m 128M -a
	serves 'size 64M' -- -s "$SHM" -m 64M -a
	# What it has already it need not get: 64M of 128M.
	serves 'size 128M' -- -s "$SHM" -m 128M -t -a
	rm "/dev/shm/$SHM"
	# A file is on disk.
	serves 'size 128M' -- -f store -m 128M -a
	rm store
	# The limits of its cgroup, and of those around it; caches give way, swap may be used.
	other_memory 999999999 0
	echo max >"$inner/memory.max"
	echo 90000000 >"$inner/memory.current"
	serves 'size 16M' -- -s "$SHM" -m 16M -a
	rm "/dev/shm/$SHM"
	echo 100000000 >"$inner/memory.max"
	refused '/sys/fs/cgroup/outer/inner has only 9M' 'limit of that cgroup' -- -s "$SHM" -m 16M -a
	printf 'anon 1\ninactive_file 5000000\nactive_file 4000000\nfile 99999999\n' >"$inner/memory.stat"
	serves 'size 16M' -- -s "$SHM" -m 16M -a
	rm "/dev/shm/$SHM"
	echo 95000000 >"$inner/memory.high"
	refused 'outer/inner has only 13M' -- -s "$SHM" -m 16M -a
	other_memory 999999999 4096
	serves 'size 16M' -- -s "$SHM" -m 16M -a
	rm "/dev/shm/$SHM"
	echo 1000 >"$inner/memory.swap.max"
	echo 1000 >"$inner/memory.swap.current"
	refused 'outer/inner has only 13M' -- -s "$SHM" -m 16M -a
	rm "$inner"/memory.*
	echo 4000000 >"$outer/memory.max"
	echo 1000000 >"$outer/memory.current"
	refused '/sys/fs/cgroup/outer has only' -- -s "$SHM" -m 16M -a
	# Without -a nothing is taken.
	serves 'size 16M' -- -s "$SHM" -m 16M
}

@test "-a beyond the limit of a real cgroup: refused, and nobody is killed" {
	need_root
	local version=1 root=/sys/fs/cgroup/memory group
	[ -e $root/memory.limit_in_bytes ] || version=2 root=/sys/fs/cgroup
	group=$root/tm-test-$BASHPID
	mkdir "$group" 2>/dev/null || skip "no cgroup can be made here"
	if [ $version = 1 ]; then
		echo 100M >"$group/memory.limit_in_bytes"
	elif ! echo 100M >"$group/memory.max" 2>/dev/null; then
		rmdir "$group"
		skip "no limit of memory can be set here"
	fi
	[ $version = 1 ] || echo 0 >"$group/memory.swap.max"
	WRAP=(sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group")
	try "${WRAP[@]}" "$SERVER" -p "$SOCK" -s "$SHM" -m 512M -a -i pid
	WRAP=()
	eventually rmdir "$group" # who was in it may not have left yet
	is "status: $(cat "$WORK/err")" "$STATUS" 1
	has "$WORK/err" "cannot reserve 512M for /dev/shm/$SHM" "$group has only" 'kill a process'
	missing "/dev/shm/$SHM" pid "$SOCK"
}

@test "a file system without any limit has room" {
	small_tmpfs 0
	serves 'size 4M' -- -f small/sparse -m 4M
	hasnt "$LOG" warning
	serves 'size 4M' -- -f small/store -a -m 4M
}

# Stops a start at a system call on the file store, which has failed, while a command is run.
fails_late() { # CALL COMMAND -- ARGUMENT...
	need_strace
	WRAP=(strace -D -o "$WORK/trace" -P "$DIR/store" -e "trace=$1" "--inject=$1:error=EIO:signal=STOP")
	launch "${@:4}"
	WRAP=()
	eventually stopped
	"$2"
	kill -CONT "$PID"
	! wait "$PID" || no "it has started"
}

@test "a start that fails removes only its own file" {
	replace() {
		echo precious >other
		mv other store
	}
	fails_late fallocate replace -- -f store -a
	has "$LOG" 'cannot reserve' 'Input/output error'
	is 'what stands there' "$(cat store)" precious
	missing "$SOCK"
}

@test "a start that fails late turns away who has connected, and has said who it is" {
	connect() {
		greeting "$SOCK" 4 >"$WORK/greeting" &
		CLIENT=$!
		PIDS+=("$CLIENT")
		eventually sh -c "[ \$(grep -c ' $SOCK\$' /proc/net/unix) = 2 ]" # who listens, and who waits
		is pidfile "$(cat pid)" "$PID"
		refused "process $PID" -- -f other -i pid -p other.sock
	}
	make_file store 4M
	echo 4194303 >pid
	fails_late ftruncate connect -- -f store -t -m 1M -i pid
	has "$LOG" 'cannot shrink' 'a client is refused: the server could not start'
	wait "$CLIENT"
	is 'what the client got' "$(cat "$WORK/greeting")" $'-1 fd 0\n-1 fd 0\n-1 fd 0\nend'
	is 'the pidfile, stale as before' "$(cat pid)" 4194303
	is bytes "$(bytes store)" 4194304
}

@test "-a where only root may use the last blocks: as an account without rights" {
	as_nobody
	small_ext4 16M 50
	chmod 777 small
	refused "$DIR/small/store" 8M 'No space left on device' -- -f small/store -a -m 8M
	truncate -s 8M small/store
	chmod 666 small/store
	refused "$DIR/small/store" 8M 'No space left on device' -- -f small/store -a
	is blocks "$(stat -c %b small/store)" 0
}

@test "-a shows its progress on a terminal, up to 100 %" {
	need_tool script
	local size last
	for size in 1M 64M 256M; do
		rm -f store
		: >"$LOG"
		# The log is what is on the terminal.
		script -qefc "exec '$SERVER' -p '$SOCK' -f store -a -m $size" "$LOG" >/dev/null 2>&1 3>&- </dev/null &
		PID=$!
		PIDS+=("$PID")
		ready
		has "$LOG" reserving "$DIR/store" %
		last=$(tr '\r' '\n' <"$LOG" | grep -o '[0-9]* %' | tail -n 1)
		is "the last that was said for $size" "$last" '100 %'
		pkill -TERM -P "$PID"
		wait "$PID"
	done
}

@test "-a can be ended by a signal: a new file is gone" {
	need_strace
	local signal status
	for signal in TERM INT QUIT; do
		# Before the second step.
		WRAP=(strace -D -o "$WORK/trace" -e trace=fallocate --inject=fallocate:signal=STOP:when=1)
		launch -f store -a -m 1G
		eventually stopped
		kill -s "$signal" "$PID"
		kill -CONT "$PID"
		status=0
		wait "$PID" || status=$?
		is 'status' "$status" 1
		is 'what is here' "$(ls)" ''
		rm "$WORK/trace"
	done
}

# --- huge pages

@test "huge pages: whole ones, and all of them there at the start" {
	huge_pages_take 4
	refused "$DIR/huge/store" 1M 2M -m -- -f huge/store
	refused "$DIR/huge/store" 64K 2M -m -- -f huge/store -m 64K
	refused "$DIR/huge/store" 'Cannot allocate memory' -- -f huge/store -m 64M
	refused "$DIR/huge/store" 3M 2M -- -f huge/store -L -m 3M
	serves 'size 4M' -- -f huge/store -m 4M
	hasnt "$LOG" warning
	has "$WORK/greeting" '-1 fd 4194304'
	serves 'size 4M' -- -f huge/store
	refused "$DIR/huge/store" 'Cannot allocate memory' -- -f huge/store -t -m 64M
	serves 'size 8M' -- -f huge/store -t -m 8M
	serves 'size 2M' -- -f huge/store -t -m 2M
	serves 'size 2M' -- -f huge/all -m 2M -a
	rm huge/all
	mount -o remount,size=-1 huge 2>/dev/null || {
		rm huge/store # its pages: others may have copied the mount to namespaces of theirs
		umount huge
		mount -t hugetlbfs none huge
	}
	serves 'size 2M' -- -f huge/all -m 2M -a
	MESSAGES=3 serves 'size 6M' -- -L -f huge/store -t -m 6M
	rm huge/*
	refused 'an unnamed file' 1M 2M -m -- -Ahuge
	serves 'size 4M' 'an unnamed file' -- -Ahuge -m 4M
	is 'what is there' "$(ls -A huge)" ''
}

@test "huge pages: a start that fails takes none for a file that it has found" {
	huge_pages_take 4
	reserved() {
		awk '/^HugePages_Rsvd:/ { print $2 }' /proc/meminfo
	}
	local before
	truncate -s 4M huge/store
	: >taken
	before=$(reserved)
	refused "$DIR/taken" -- -f huge/store -p taken
	is 'reserved pages' "$(reserved)" "$before"
	refused "$DIR/taken" -- -f huge/store -t -m 8M -p taken
	is 'reserved pages' "$(reserved)" "$before"
	serves 'size 4M' -- -f huge/store
	is 'reserved pages' "$(reserved)" $((before + 2))
}

# --- one server for each object

@test "two servers on one object exclude each other, by whatever name" {
	start -f store
	ln store hard
	ln -s store symbolic
	mkdir folder
	refused "$DIR/store" 'another server' -- -f store -p other
	refused "$DIR/folder/../store" 'another server' -- -f folder/../store -p other
	refused "$DIR/hard" 'another server' -- -f hard -p other
	refused "$DIR/symbolic" 'another server' -- -f symbolic -p other
	refused "$DIR/store" 'another server' -- -f store -p other -t -m 4K
	refused "$DIR/store" 'another server' -- -f store -p other -t -m 4M -a
	stop
	start -s "$SHM"
	refused "$SHM" 'another server' -- -s "$SHM" -p other
	refused "$SHM" 'another server' -- -s "/$SHM" -p other
	refused "$SHM" 'another server' -- -f "/dev/shm/$SHM" -p other
	stop
	serves -- -f hard
}

@test "what another program has locked: it is named, and not taken for a server" {
	need_tool flock
	local kind
	locked_by() { # FILE COMMAND...
		"${@:2}" 3>&- &
		PID=$!
		PIDS+=("$PID")
		eventually sh -c "! flock -n '$1' true"
	}
	make_file store 1M
	echo 1 >pid
	for kind in store pid; do
		locked_by $kind flock -F $kind sleep 1000
		eventually grep -qx sleep "/proc/$PID/comm"
		refused "$DIR/$kind is locked by another program, process $PID (sleep)" -- -f store -i pid
		hasnt "$WORK/err" 'another server'
		kill "$PID"
		wait "$PID" || true
		eventually flock -n $kind true
	done
	# Who took the lock need not be there any more.
	exec {kept}<store
	flock "$kept"
	refused "$DIR/store is locked for a server that has ended, or by an unknown program: " -- -f store
	exec {kept}<&-
	# The other kind of lock.
	perl -e 'use Fcntl; open(my $f, "+<", "store") or die; my $lock = pack("s s l! l! i", F_WRLCK, 0, 0, 0, 0);
		fcntl($f, F_SETLK, $lock) or die "$!"; print "locked\n"; close STDOUT; sleep 1000' >"$WORK/locked" 3>&- &
	PIDS+=($!)
	eventually grep -q locked "$WORK/locked"
	refused "$DIR/store is locked by another program, process $! (perl)" -- -f store
}

# Two servers that create the same object, the first slowed down as given to strace, so that the
# second gets in between: one lives, with the object, and the other says that there is another.
race_to_create() { # STRACE ARGUMENT...
	local first second loser_log=$WORK/log
	need_strace
	WRAP=(strace -D -o "$WORK/trace" "$@")
	LOG=$WORK/log
	launch -f store -p first
	first=$PID
	eventually grep -qs "flock(\|O_CREAT" "$WORK/trace"
	WRAP=()
	LOG=$WORK/log2
	launch -f store -p second
	second=$PID
	one_ended() {
		! alive "$first" || ! alive "$second"
	}
	eventually one_ended
	if ! alive "$second"; then # it may also be the other way round
		PID=$first loser_log=$LOG LOG=$WORK/log
	fi
	ready
	has "$loser_log" "$DIR/store" 'another server'
	is 'descriptors of what stands there, of the one that lives' \
		"$(stat -L -c %i "/proc/$PID/fd"/* | grep -cx "$(stat -c %i store)")" 3
	stop
	is bytes "$(bytes store)" 1048576
	rm store "$WORK/trace"
}

@test "two servers that create the same object at once: the one that loses leaves it" {
	# One has created the file and is slow to lock it.
	race_to_create -e trace=flock --inject=flock:delay_enter=2000000:when=1
}

@test "two servers that create the same object at once: the one that loses says so" {
	# One has seen that there is no file and is slow to create it.
	race_to_create -P "$DIR/store" -e trace=openat --inject=openat:delay_enter=2000000:when=2
}

@test "many servers that create the same object at once: one lives, with the object" {
	local round i said
	for round in {1..10}; do
		rm -f store "$WORK"/log?
		for i in {1..4}; do
			"$SERVER" -f store -p "sock$i" >"$WORK/log$i" 2>&1 3>&- &
			PIDS+=($!)
		done
		eventually at_most_one_alive "${PIDS[@]: -4}"
		eventually grep -q 'connect a node:' "$WORK"/log?
		is "servers ready in round $round" "$(cat "$WORK"/log? | grep -c 'connect a node:')" 1
		is "sockets in round $round" "$(find . -type s | wc -l)" 1
		is bytes "$(bytes store)" 1048576
		# Those that lost say why: that there is another.
		said=$(grep -h -v 'serving\|connect a node' "$WORK"/log? | grep -v 'another server' || true)
		is "what else was said in round $round" "$said" ''
		kill "${PIDS[@]: -4}" 2>/dev/null || true
		wait
	done
}

@test "kill -9 gives the object free, though a node that has it mapped lives on" {
	local before
	start -f store
	peer
	eventually grep -q '^-1 fd 1048576' "$HEARD"
	greeting "$SOCK" 3 'kept' >/dev/null
	kill -KILL "$PID"
	wait "$PID" || true
	alive "$PEER_PID"
	find "/proc/$PEER_PID/fd" -lname "$DIR/store" | grep -q . # it holds the memory
	before=$(sha256sum <store)
	start -f store # on the stale socket
	is 'the memory' "$(sha256sum <store)" "$before"
	greeting "$SOCK" 4 >"$WORK/greeting"
	has "$WORK/greeting" '-1 fd 1048576'
	is 'the start of it' "$(head -c 4 store)" kept
	stop
	alive "$PEER_PID"
}

# --- what stays

@test "the object stays when the server ends, with what the nodes have written" {
	local signal
	for signal in TERM INT QUIT; do
		start -f store -m 2M
		greeting "$SOCK" 4 "written before $signal" >/dev/null
		stop "$signal"
		missing "$SOCK"
		is bytes "$(bytes store)" 2097152
		is 'what is in it' "$(tr -d '\0' <store)" "written before $signal"
		start -f store
		is 'what is in it' "$(tr -d '\0' <store)" "written before $signal"
		stop "$signal"
		rm store
	done
	start -s "$SHM"
	greeting "$SOCK" 4 written >/dev/null
	stop
	is 'what is in it' "$(tr -d '\0' <"/dev/shm/$SHM")" written
	start -s "$SHM"
	is 'what is in it' "$(tr -d '\0' <"/dev/shm/$SHM")" written
	stop
}

@test "the memory that nodes get is the object" {
	make_file store 4M
	start -f store
	greeting "$SOCK" 4 'by a node' >"$WORK/greeting"
	has "$WORK/greeting" '-1 fd 4194304'
	is 'the start of the file' "$(head -c 9 store)" 'by a node'
	stop
}

@test "relative paths mean the folder of the start" {
	mkdir sub
	cd sub
	SOCK=$DIR/sub/s serves "$DIR/sub/store" "$DIR/sub/s" -- -f store -p s -i pid
	cd "$DIR"
	serves "$DIR/sub/store" -- -f sub/store
	serves "$DIR/sub/other" -- -vfsub/other
	serves "$DIR/sub/other" -- --fi=sub/other
	MESSAGES=3 serves "$DIR/sub/other" -- -L --file sub/other -m 4K
	is 'what is here' "$(find . -type f | sort)" $'./sub/other\n./sub/store'
}

# --- what others do to it

@test "an object that others can cut is warned of" {
	need_root
	truncate -s 1M store
	serves 'serving' -- -f store
	hasnt "$LOG" warning
	chmod 666 store
	serves "warning: $DIR/store" 'mode 0666' 'chmod 0600' -- -f store
	chmod 600 store
	chown "$NOBODY" store
	serves "warning: $DIR/store belongs to uid $NOBODY" 'chown 0' -- -f store
	chown 0:"$NOBODY" store
	chmod 660 store
	serves "warning: $DIR/store" "gid $NOBODY" -- -f store
	serves 'serving' -- -f store -g "$NOBODY"
	hasnt "$LOG" warning
}

@test "an object that was resized or replaced shows in the table of nodes" {
	start -f store
	peer
	truncate -s 8M store
	kill -s USR1 "$PID"
	eventually grep -q 'was 1M and has been resized to 8M' "$LOG"
	has "$LOG" 'truncate -s 1048576'
	greeting "$SOCK" 4 >"$WORK/greeting"
	is 'what a newcomer got' "$(cat "$WORK/greeting")" $'-1 fd 0\n-1 fd 0\n-1 fd 0\nend'
	truncate -s 512K store
	greeting "$SOCK" 4 >"$WORK/greeting"
	has "$LOG" 'has been resized to 512K' 'a client is refused'
	truncate -s 1M store
	greeting "$SOCK" 4 >"$WORK/greeting"
	is 'what a newcomer got' "$(head -n 2 "$WORK/greeting" | tr '\n' ' ')" '0 1 '
	rm store
	kill -s USR1 "$PID"
	eventually grep -q "the memory that the nodes share is no longer at $DIR/store" "$LOG"
	stop
}

@test "the pidfile and the object are one file: that is what the error says" {
	ln -s f linked
	refused "$DIR/./f is the pidfile, too" -- -i f -f ./f
	refused "$DIR/linked is the pidfile, too" -- -i f -f linked
}

# --- flushing

# Lines of the log that say that a flush failed.
failures() {
	grep -c 'cannot flush' "$LOG"
}

@test "an error of a flush reaches the log, whoever collects it" {
	need_strace
	# The child's first flush fails, and so does the server's own.
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync
		-e inject=fdatasync:error=EIO:delay_enter=1000000)
	start -f store
	greeting "$SOCK" >/dev/null
	eventually grep -q 'fdatasync(' "$WORK/trace"
	stop
	is 'errors of flushes' "$(failures)" 2
	# Nodes have another opening of the file than the one that is flushed.
	start -f store
	is 'openings of the object' "$(for fd in "/proc/$PID/fd"/*; do readlink "$fd"; done | grep -c "$DIR/store")" 3
	stop
}

@test "a flush that was not made is made again" {
	local first second
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e "trace=fdatasync,clone" -e inject=clone:error=EAGAIN:when=1)
	start -f store
	greeting "$SOCK" >/dev/null
	eventually grep -q 'fdatasync(.* = 0' "$WORK/trace"
	has "$LOG" 'cannot start a process to flush'
	stop
	# A child that is killed.
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync -e inject=fdatasync:signal=STOP)
	start -f store
	greeting "$SOCK" >/dev/null
	eventually stopped
	first=$(awk '/stopped by/ { print $1 }' "$WORK/trace")
	kill -KILL "$first"
	eventually grep -q 'cannot flush' "$LOG"
	another_stopped() {
		second=$(awk -v first="$first" '/stopped by/ && $1 != first { print $1 }' "$WORK/trace")
		[ -n "$second" ]
	}
	eventually another_stopped
	let_go "$PID"
	kill -CONT "$second"
	stop
}
